"""docs/retrieval.md takes a shop engineer from an export to a search: its commands run, in order, on a small shop."""

from __future__ import annotations

import contextlib
import csv
import functools
import io
import json
import re
import shlex
from pathlib import Path

import pytest
import uvicorn
from shop_exports import HEADER, write_export
from starlette.testclient import TestClient

from moon3.__main__ import main
from retrieval.serve.settings import ServiceSettings
from retrieval.stores.ranking import FUSION_DEPTH
from retrieval.stores.tuning import EXACT_VALUES, LEAST_FILTERED_RECALL, LEAST_RECALL

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "retrieval.md").read_text(encoding="utf-8")
# A server, and processes of Ray: the tests of the stores and of the executors start these.
ELSEWHERE = ("qdrant=", "--executor ray")


def commands() -> list[list[str]]:
    """Return the words of every command of the page that runs here, in order."""
    lines = [
        line
        for block in re.findall(r"```bash\n(.*?)```", PAGE, flags=re.DOTALL)
        for line in block.replace("\\\n", " ").splitlines()
    ]
    words = [shlex.split(line, comments=True) for line in lines]
    return [one for one in words if one and one[0] != "pip" and not any(part in " ".join(one) for part in ELSEWHERE)]


@functools.cache
def curl_commands() -> list[list[str]]:
    return [words for words in commands() if words[0] == "curl"]


def called(client: TestClient, words: list[str]) -> dict:
    """Send the request of a curl command to the service, and return its answer."""
    path, headers, data, fields, files = "", {}, None, {}, {}
    arguments = iter(words[1:])
    for word in arguments:
        if word.startswith("localhost"):
            path = word.partition("8000")[2]
        elif word == "-H":
            name, _, value = next(arguments).partition(": ")
            headers[name] = value
        elif word == "-d":
            data = next(arguments)
        elif word == "-F":
            name, _, value = next(arguments).partition("=")
            if value.startswith("@"):
                files[name] = Path(value[1:]).read_bytes()
            else:
                fields[name] = value
        else:
            assert word == "-s", word
    if data is None and not files:
        answer = client.get(path)
    else:
        answer = client.post(path, content=data, data=fields or None, files=files or None, headers=headers)
    assert answer.status_code == 200, (words, answer.text)
    return answer.json()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Run the page once in a shop's folder; return command → what it printed."""
    folder = tmp_path_factory.mktemp("shop")
    write_export(folder)
    (folder / "training").symlink_to(ROOT / "training")
    printed: dict[str, str] = {}

    def serve(app, **options):
        assert options["port"] == 8000
        with TestClient(app) as client:
            for words in curl_commands():
                printed[" ".join(words)] = json.dumps(called(client, words))

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(uvicorn, "run", serve)
        patch.delenv("MOON_API_KEY", raising=False)
        for words in commands():
            if words[0] == "moon3":
                printed[" ".join(words)] = output_of(words[1:])
        for code in re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL):
            printed["python"] = output_of_code(code)
        with Path("products_export.csv").open(newline="", encoding="utf-8") as file:
            printed["blue"] = " ".join(row["Handle"] for row in csv.DictReader(file) if row[HEADER[-1]] == "blue")
        printed["hits.html"] = Path("hits.html").read_text(encoding="utf-8")
    return printed


def output_of(words: list[str]) -> str:
    """Run a command of moon3, and return what it printed."""
    with contextlib.redirect_stdout(io.StringIO()) as said:
        status = main(words)
    assert status == 0, (words, status, said.getvalue())
    return said.getvalue()


def output_of_code(code: str) -> str:
    """Run a snippet, and return what it printed."""
    with contextlib.redirect_stdout(io.StringIO()) as said:
        exec(compile(code, "docs/retrieval.md", "exec"), {})
    return said.getvalue()


def lines(page: dict[str, str], *parts: str) -> list[list[str]]:
    """Return the cells of the products that the command with these parts printed."""
    [text] = [text for command, text in page.items() if all(part in command for part in ("moon3 search", *parts))]
    return [re.split(r"\s{2,}", line.strip()) for line in text.splitlines()[2:]]


def test_the_page_is_short_enough_to_read_before_the_first_search():
    assert len(PAGE.splitlines()) < 130
    assert PAGE.index("moon3 search") < 900


def test_the_limits_that_the_page_names_are_those_of_the_code():
    service = ServiceSettings()
    text = " ".join(PAGE.split())
    for limit in (
        f"the first {FUSION_DEPTH} products of both rankings",
        f"exactly up to {EXACT_VALUES // 10**6} million numbers for each form ({EXACT_VALUES // 256:,} vectors of 256)",
        f"at least {LEAST_RECALL:.0%} ({LEAST_FILTERED_RECALL:.0%} with the filter)".replace("%", " %"),
        f"Queries that arrive within {service.batch_milliseconds:g} ms",
        f"more than {service.max_requests} requests in work",
        f"{service.max_body_bytes // 2**20} MiB and {service.max_pixels // 10**6} million pixels",
    ):
        assert limit in text, limit


def test_every_command_of_the_page_says_something(page):
    ran = [" ".join(words) for words in commands() if words[:2] != ["moon3", "serve"]]
    assert len(ran) > 15
    assert all(page[command].strip() for command in ran)
    assert page["python"].strip()


def test_the_export_is_read_and_embedded_whole_and_the_second_time_nothing_changed(page):
    first = next(text for command, text in page.items() if command.startswith("moon3 embed"))
    assert "embedded 0, kept 24, removed 0, failed 0" in first  # the later of two equal commands


def test_each_kind_of_search_finds_products(page):
    assert len(lines(page, "--weight")) == 10
    assert "tote-0" not in [cells[3] for cells in lines(page, "--like")]
    second = [cells[0] for cells in lines(page, "--offset")]
    assert second == ["6", "7", "8", "9", "10"]
    assert page["hits.html"].count("data:image/jpeg") == 10
    assert lines(page, "--words")[0][4].endswith("Blue Tote Bag")


def test_filters_keep_what_they_say(page):
    cheap = lines(page, "price < 40 and availability")
    assert cheap
    assert all(float(cells[5]) < 40 and cells[6] == "in stock" for cells in cheap)
    assert {cells[3].rpartition("-")[0] for cells in lines(page, "brand in")} == {"tote", "tote-bags"}
    assert sorted(cells[3] for cells in lines(page, "attributes.Color")) == sorted(page["blue"].split())


def test_python_and_http_give_the_answers_of_the_command(page):
    assert len(page["python"].splitlines()) == 5
    answers = [json.loads(page[" ".join(words)]) for words in curl_commands()]
    words, photo, product, facets = answers
    assert [hit["price"] < 40 for hit in words["hits"]] == [True] * 3
    both = [cells[3] for cells in lines(page, "the same in blue")]
    assert [hit["product_id"] for hit in photo["hits"]] == both
    assert product["title"].endswith("Blue Tote Bag")
    assert facets["category"]["Fashion > Bags"] == 6
