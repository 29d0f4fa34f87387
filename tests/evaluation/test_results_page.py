"""Results files become one page: whole, escaped, without outside requests, and readable on a phone."""

import html
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

from evaluation.compare import measured
from evaluation.query_sheets import chosen_queries, worst_queries
from evaluation.report import named_results, result_tables
from evaluation.results_page import page as rendered
from evaluation.results_page import write_page
from moon3.__main__ import main

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
SHOP = ["--catalogue-products", "36"]
NASTY = "<script>alert(1)</script>"
_MEASURE = """<!doctype html><body><iframe id="f" style="border:0;width:{width}px;height:900px" srcdoc="{page}"></iframe><script>
document.getElementById("f").onload = function () {{
  const inner = this.contentDocument.documentElement, seen = this.contentWindow.performance.getEntriesByType("resource");
  document.body.textContent = "measured " + JSON.stringify({{
    scrolled: inner.scrollWidth, shown: inner.clientWidth, fetched: seen.map(one => one.name.slice(0, 40)),
    pictures: Array.from(this.contentDocument.images).filter(one => !one.naturalWidth).length,
    wide: Array.from(this.contentDocument.querySelectorAll(".scroll")).filter(one => one.scrollWidth > one.clientWidth).length}});
}};</script>"""


class Page(HTMLParser):
    """Text, tags and addresses of a page."""

    def __init__(self, text):
        super().__init__()
        self.words, self.tags, self.addresses = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [
            value for name, value in attrs if name in ("src", "href", "srcset", "action", "poster", "data")
        ]

    def handle_data(self, data):
        self.words.append(data.strip())


@pytest.fixture(scope="module")
def files(tiny_moon, tmp_path_factory):
    """Results of two models on one small catalogue, and the first model."""
    folder = tmp_path_factory.mktemp("results")
    models = [tiny_moon("qwen3_vl", trained=True), tiny_moon("qwen3_vl", preset="moon2", trained=True)]
    for name, model in zip("ab", models, strict=True):
        found = [
            "evaluate",
            "--model",
            str(model),
            "--benchmark",
            "catalogue",
            "--split",
            "all",
            *SHOP,
            "--device",
            "cpu",
        ]
        assert main([*found, "--output", str(folder / f"{name}.json")]) == 0
    return folder / "a.json", folder / "b.json", models[0]


@pytest.fixture(scope="module")
def page(files, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "made" / "report.html"
    given = ["--output", str(path), "--model", str(files[2]), "--data", "catalogue", *SHOP, "--device", "cpu"]
    assert main(["report", str(files[0]), str(files[1]), *given]) == 0
    return path


def test_the_page_holds_every_table_the_comparison_the_sheets_and_where_it_comes_from(files, page):
    text = page.read_text(encoding="utf-8")
    words = set(Page(text).words)
    names, results = named_results(files[:2])
    cells = {cell for _, rows in result_tables(results) for row in rows for cell in row[2:]}
    assert cells <= words
    assert {f"{name} on catalogue" for name in names} <= words
    assert {
        "p, Holm",
        "Retrieval at a glance",
        "worst queries, with the rank of the best right answer",
        "Where this comes from",
    } <= words
    assert sum(word.startswith("R@10 on catalogue") for word in words) == 1
    assert results[0]["provenance"]["config_digest"] in words
    assert 'name="viewport"' in text
    assert "prefers-color-scheme: dark" in text
    assert text.count("<svg") == 2
    ids = set(re.findall(r'\bid="([^"]+)"', text))
    assert len(ids) == len(re.findall(r'\bid="([^"]+)"', text))
    first = measured(names[0], results[0])
    for direction in ("t2mm", "i2mm", "mm2mm"):
        for found in chosen_queries(first.directions[direction], 10).values():
            for name, rank in found:
                assert name in words
                assert f"rank {rank} of 36" in words
    assert text.count('<article class="query">') == sum(
        len(found)
        for name in ("t2mm", "i2mm", "mm2mm")
        for found in chosen_queries(first.directions[name], 10).values()
    )
    assert "✓ right" in words
    assert (
        len(re.findall(r"rank \d+ of 36, now", text)) <= 2
    )  # other batches round otherwise, which may swap neighbours


def test_the_page_is_one_file_that_asks_for_nothing(page):
    text = page.read_text(encoding="utf-8")
    found = Page(text)
    assert "script" not in found.tags
    assert "link" not in found.tags
    assert found.addresses
    assert all(address.startswith(("data:image/jpeg;base64,", "#")) for address in found.addresses)
    assert not re.findall(r"url\((?!#)|@import", text)
    assert "default-src 'none'" in html.unescape(text)


def test_what_files_hold_is_text_and_never_markup(files, tmp_path):
    content = json.loads(files[0].read_text())
    content["model"] = f"runs/{NASTY.replace('/', '')}"
    content["benchmark"] = NASTY
    content["warnings"] = [NASTY]
    content["absent"] = {NASTY: NASTY}
    asked = content["per_query"]["asked"]["text"]
    content["per_query"]["asked"]["text"] = {name + NASTY: digest for name, digest in asked.items()}
    (tmp_path / "nasty.json").write_text(json.dumps(content))
    found = Page(write_page([tmp_path / "nasty.json"], tmp_path / "nasty.html").read_text(encoding="utf-8"))
    assert "script" not in found.tags
    assert sum("<script>" in word for word in found.words) >= 5


def test_results_that_cannot_be_paired_are_shown_with_the_reason(files, tmp_path):
    content = json.loads(files[1].read_text())
    del content["per_query"]
    (tmp_path / "old.json").write_text(json.dumps(content))
    text = write_page([files[0], tmp_path / "old.json"], tmp_path / "page.html").read_text(encoding="utf-8")
    assert "Not compared query by query: " in text
    assert "found no &#39;per_query&#39;" in text
    alone = write_page([tmp_path / "old.json"], tmp_path / "alone.html").read_text(encoding="utf-8")
    assert "Query by query" not in alone
    assert "worst queries" not in alone
    assert "<details open>" in alone


def test_worst_queries_are_those_with_the_largest_ranks_and_kinds_share_none(files):
    names, results = named_results(files[:1])
    for values in measured(names[0], results[0]).directions.values():
        ranks = sorted(values.rank_Q.tolist(), reverse=True)
        worst = worst_queries(values, 3)
        assert [rank for _, rank in worst] == [rank for rank in ranks[:3] if rank > 1]
        kinds = chosen_queries(values, 5, count=3)
        assert all(rank == 1 for _, rank in kinds["hits"])
        assert all(rank > 5 for _, rank in kinds["misses"])
        shown = [name for found in kinds.values() for name, _ in found]
        assert len(shown) == len(set(shown))


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--output", "x.html", "--compare", "R@1"], "--compare and --output; expected one of them"),
        (["--output", "x.pdf"], "expected a .html file"),
        (["--model", "m"], "expected all three, or neither"),
        (["--output", "x.html", "--data", "catalogue"], "expected all three, or neither"),
    ],
)
def test_options_that_do_not_belong_together_are_refused(files, more, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["report", str(files[0]), *more]) == 2
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_another_model_and_other_data_than_the_first_files_are_refused(files, tmp_path, capsys):
    given = ["--output", str(tmp_path / "x.html"), "--data", "catalogue", "--device", "cpu"]
    assert main(["report", str(files[1]), *given, *SHOP, "--model", str(files[2])]) == 2
    assert "--model: its configuration has the digest" in capsys.readouterr().err
    assert main(["report", str(files[0]), *given, *SHOP, "--seed", "1", "--model", str(files[2])]) == 2
    assert "36 products that are not the 36 of the first results file" in capsys.readouterr().err


def test_ranks_of_other_weights_are_said(files, tmp_path, capsys):
    content = json.loads(files[0].read_text())
    packed = content["per_query"]["directions"]["t2mm"]
    packed["rank"] = " ".join(str(int(rank) + 1) for rank in packed["rank"].split())
    (tmp_path / "other.json").write_text(json.dumps(content))
    given = [
        "--output",
        str(tmp_path / "x.html"),
        "--data",
        "catalogue",
        *SHOP,
        "--model",
        str(files[2]),
        "--device",
        "cpu",
    ]
    assert main(["report", str(tmp_path / "other.json"), *given]) == 0
    text = (tmp_path / "x.html").read_text(encoding="utf-8")
    shown = re.findall(r"rank (\d+) of 36, now (\d+)", text)
    assert shown
    assert sum(int(file) != int(now) + 1 for file, now in shown) <= 2
    assert f"{len(shown)} of these ranks are others now" in text


def shortened(result, model, **changed):
    """Return a results file of another model, whose scores are at most a tenth."""
    scores = {
        name: None
        if one is None
        else one | {"R@10": 0.1, "R@10_interval": [0.05, 0.15], "R@1": 0.0, "R@1_interval": [0, 0]}
        for name, one in result["scores"].items()
    }
    return result | {"model": model, "scores": scores, "image_only": {}} | changed


def test_many_models_fit_and_what_is_left_out_is_said(files):
    result = json.loads(Path(files[0]).read_text(encoding="utf-8"))
    origin = "trained from random, 60 steps on grocery and fashion"
    every = [shortened(result, f"model {number}", weights=origin, warnings=["cut"]) for number in range(12)]
    every[3]["scores"] = dict.fromkeys(every[3]["scores"])
    text = rendered([one["model"] for one in every], every)
    assert "2 more models in the table" in text
    legend = re.search(r'<ul class="legend">(.*?)</ul>', text, flags=re.DOTALL)[1]
    assert re.findall(r"<bdi>(.*?)</bdi>", legend) == [f"model {number}" for number in range(10) if number != 3]
    assert all(f"var(--c{number})" in legend for number in range(10) if number != 3)
    assert "<summary>12 warnings</summary>" in text
    assert f'<td class=" long"><bdi>{origin}</bdi></td>' in text
    assert "Differences to model 0" in text
    labels = re.search(r"<svg.*?</svg>", text, flags=re.DOTALL)[0]
    assert ">25<" in labels
    assert ">100<" not in labels


def chromium(*words):
    flags = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars")
    return subprocess.run([CHROMIUM, *flags, *words], capture_output=True, text=True, timeout=120, check=True).stdout


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here, in which the page would be laid out")
@pytest.mark.parametrize("width", [390, 1200])
def test_in_a_browser_the_page_is_no_wider_than_the_screen_and_fetches_nothing(page, width, tmp_path):
    harness = tmp_path / "measure.html"
    harness.write_text(
        _MEASURE.format(width=width, page=html.escape(page.read_text(encoding="utf-8"))), encoding="utf-8"
    )
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    found = chromium(
        profile, "--virtual-time-budget=8000", f"--window-size={width + 100},1000", "--dump-dom", harness.as_uri()
    )
    measures = json.loads(html.unescape(re.search(r"measured (\{.*?\})<", found)[1]))
    assert measures["shown"] == width
    assert measures["scrolled"] == width
    assert measures["pictures"] == 0
    assert [name for name in measures["fetched"] if not name.startswith("data:")] == []
    assert measures["wide"] > 0 or width > 390  # on a phone tables scroll in their own boxes
    picture = tmp_path / "shot.png"
    chromium(profile, f"--screenshot={picture}", f"--window-size={width},2000", page.as_uri())
    assert picture.stat().st_size > 20_000
