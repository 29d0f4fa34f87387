"""docs/service.md says what the service does: its commands run, its limits are those of the code, its figures are measured."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from PIL import Image
from shop_exports import write_export

from evaluation.service_load import ServiceLoad
from evaluation.service_process import KEY, ServiceProcess
from evaluation.service_report import KEPT_UNDER_OVERLOAD, MEMORY_GROWTH, service_table
from moon3.__main__ import main
from retrieval.serve.connections import HEAD_SECONDS
from retrieval.serve.pixel_budget import WAIT_SECONDS as PIXEL_SECONDS
from retrieval.serve.products import COMPACT_AFTER, WAIT_SECONDS
from retrieval.serve.settings import ServiceSettings
from training.shipped_checkpoint import SHIPPED

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "service.md").read_text(encoding="utf-8")
CONTAINER = (ROOT / "Containerfile").read_text(encoding="utf-8")
RESULTS = ROOT / "results" / "service.json"


def curl_lines() -> list[str]:
    blocks = re.findall(r"```bash\n(.*?)```", PAGE, flags=re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.startswith("curl")]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Run the commands and the snippet of the page against a service of its own; return command → what it printed."""
    folder = tmp_path_factory.mktemp("shop")
    write_export(folder)
    vectors = folder / "catalogue_vectors"
    with contextlib.redirect_stdout(io.StringIO()):
        assert (
            main(["embed", str(folder / "products_export.csv"), "--model", str(SHIPPED), "--output", str(vectors)]) == 0
        )
        assert main(["index", str(vectors)]) == 0
    service = ServiceProcess(vectors, folder / "log", ["--device", "cpu"])
    address, printed = f"localhost:{service.port}", {}
    try:
        service.start()
        for line in curl_lines():
            done = subprocess.run(
                ["bash", "-c", line.replace("localhost:8000", address)],
                cwd=folder, env=os.environ | {"MOON_API_KEY": KEY}, capture_output=True, text=True, check=True, timeout=60,
            )  # fmt: skip
            printed[line] = done.stdout
        (code,) = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
        with contextlib.chdir(folder), contextlib.redirect_stdout(io.StringIO()) as said:
            exec(compile(code.replace("localhost:8000", address), "docs/service.md", "exec"), {})
        printed["python"] = said.getvalue()
    finally:
        service.kill()
    return printed


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl here, with which the page's commands run")
def test_every_request_of_the_page_is_answered(page):
    answers = [json.loads(page[line]) for line in curl_lines()]
    words, both, like, region, embedded, why, product, facets, health, written, removed = answers
    assert [hit["price"] < 40 for hit in words["hits"]] == [True] * 3
    assert (both["query_form"], like["query_form"]) == ("mm", "like")
    assert len(embedded["vectors"][0]) == embedded["dimension"]
    assert why["cosine"] > 0
    assert set(region) == {"box"}
    assert product["images"] == ["pictures/0/tote-0"]
    assert facets["category"]
    assert health["products"] == 24
    assert (written, removed) == ({"written": 1}, {"removed": 1})


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl here, with which the page's commands run")
def test_the_client_of_the_page_prints_products(page):
    assert [line.split()[0] for line in page["python"].splitlines()] == ["1", "2", "3"]
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    assert len(code.splitlines()) <= 20


def test_the_commands_of_the_page_have_the_options_that_it_names():
    for line in re.findall(r"moon3 serve [^`\n#]*", PAGE):
        words = shlex.split(line)[2:]
        assert words[0] == "catalogue_vectors", line
    for option in ("--max-requests", "--workers", "--picture-host", "--log-queries", "--allow-origin", "--host"):
        with contextlib.redirect_stdout(io.StringIO()) as said:
            main(["serve", "--help"])
        assert option in said.getvalue()
        assert option in PAGE


def test_the_limits_of_the_page_are_those_of_the_code():
    limits, load, text = ServiceSettings(), ServiceLoad(), " ".join(PAGE.split())
    for limit in (
        f"{limits.max_body_bytes // 2**20} MiB a request, {limits.max_pixels // 10**6} million pixels a picture",
        f"{limits.max_text:,} characters, offset + k of {limits.max_k:,}",
        f"{limits.max_requests} requests in work",
        f"{limits.pixels_in_work // 10**6} million pixels of decoded pictures of all requests, for over "
        f"{PIXEL_SECONDS:g} s",
        f"{HEAD_SECONDS:g} s for the head of a request, {limits.body_seconds:g} s for its body",
        f"{limits.seconds:g} s of work",
        f"writes for over {WAIT_SECONDS:g} s",
        f"within {limits.batch_milliseconds:g} ms",
        f"the {limits.recent_queries:,} most recent queries",
        f"After {COMPACT_AFTER} writes",
        f"within {MEMORY_GROWTH:.0%} of".replace("%", " %"),
        f"at least {KEPT_UNDER_OVERLOAD:.0%} of".replace("%", " %"),
        f"measures 1, 8 and {load.clients} clients on your machine, then {load.overload_clients}",
    ):
        assert limit in text, limit


def test_the_figures_of_the_page_are_those_of_the_results():
    assert service_table(json.loads(RESULTS.read_text(encoding="utf-8"))) in PAGE


def test_the_container_holds_every_package_and_runs_as_a_user():
    packages = {path.name for path in ROOT.iterdir() if (path / "__init__.py").is_file()}
    assert packages <= set(re.findall(r"^COPY (\w+) \1$", CONTAINER, flags=re.MULTILINE))
    assert packages
    for part in ("-slim", "USER moon", "HEALTHCHECK", "download.pytorch.org/whl/cpu", '".[serve]"'):
        assert part in CONTAINER
    (entry,) = re.findall(r"^ENTRYPOINT (\[.*\])$", CONTAINER, flags=re.MULTILINE)
    assert json.loads(entry)[:2] == ["moon3", "serve"]


def test_the_picture_of_the_page_is_small():
    picture = ROOT / "docs" / "search_page.jpg"
    assert picture.stat().st_size < 300_000
    assert Image.open(picture).width > 1000
