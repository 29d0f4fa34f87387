"""The page on what a joint stage writes: its numbers, its order, its curves, and that no written text becomes markup."""

import base64
import io
import json
import math
import re
from collections import defaultdict
from contextlib import nullcontext
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree.ElementTree import fromstring

import pyarrow
import pyarrow.parquet
import pytest
import torch
import yaml
from PIL import Image

from moon3.__main__ import main
from training.rewards import reward_names
from training.runs.folder import RunFolder
from training.studies.completions import ReportError, completion_steps, read_series, read_step, sort_pairs
from training.studies.completions_page import draw_lines, reward_sentence, running_mean
from training.studies.completions_report import make_report

WELL = "colour: red; material: leather"
WEIGHTS = {"format": 0.5, "retrieval": 1.0, "attributes": 2.0}


VOID = {"meta", "img", "br", "hr", "input", "link"}
PHRASES = {"span", "a", "b", "bdi", "code", "strong", "img"}  # of those that the page uses
INSIDE = {  # element → what may stand directly in it, by HTML's content models
    "html": {"head", "body"},
    "head": {"meta", "title", "style"},
    "title": set(),
    "style": set(),
    "body": {"main"},
    "dl": {"div"},
    "dt": PHRASES,
    "dd": PHRASES,
    "p": PHRASES,
    "h1": PHRASES,
    "h2": PHRASES,
    "h3": PHRASES,
    "span": PHRASES,
    "b": PHRASES,
    "bdi": PHRASES,
    "code": PHRASES,
    "strong": PHRASES,
    "a": PHRASES - {"a"},
    "figcaption": PHRASES,
    "ul": {"li"},
    "table": {"thead", "tbody"},
    "thead": {"tr"},
    "tbody": {"tr"},
    "tr": {"td", "th"},
    "th": PHRASES,
    "td": PHRASES | {"div"},
    "svg": {"g", "defs"},
    "g": {"g", "defs", "path", "text", "use"},
    "defs": {"path", "clippath"},
    "clippath": {"rect"},
    "path": set(),
    "use": set(),
    "rect": set(),
    "figure": {"h3", "div", "ul", "figcaption", "p"},
    "main": {"h1", "h2", "dl", "p", "div", "article"},
    "article": {"header", "section"},
    "header": PHRASES,
    "section": {"div"},
    "li": PHRASES,
    "div": PHRASES | {"div", "figure", "table", "dt", "dd", "svg"},
    "text": set(),
}


class Page(HTMLParser):
    """What a browser would find in a page; one that is no valid HTML5 fails."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.doctypes: list[str] = []
        assert text.startswith("<!doctype html>\n<html lang=")
        self.feed(text)
        self.close()
        assert self.open == [], "an element is not closed"
        assert self.doctypes == ["doctype html"]
        names = [name for name, _ in self.elements]
        assert [names.count(name) for name in ("html", "head", "title", "body", "main", "h1")] == [1] * 6
        ids = self.attributes("id")
        assert len(ids) == len(set(ids))
        assert {link.removeprefix("#") for link in self.attributes("href")} <= set(ids)
        assert all("alt" in found for name, found in self.elements if name == "img")

    @property
    def in_style(self) -> bool:
        return "style" in self.open

    def handle_decl(self, decl):
        self.doctypes.append(decl)

    def handle_starttag(self, tag, attrs):
        assert tag in INSIDE or tag in VOID, tag
        assert not self.open or tag in INSIDE[self.open[-1]], (self.open, tag)
        assert len(attrs) == len(dict(attrs)), "an attribute comes twice"
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open, tag
        assert self.open.pop() == tag
        if tag in ("td", "th", "p", "div", "h1", "h2", "li", "span"):
            self.words.append("|")

    def handle_data(self, data):
        if not self.in_style:
            self.words.append(data)
        spaced = {"html", "head", "dl", "ul", "table", "thead", "tbody", "tr", "main", "article"}
        assert not (data.strip() and self.open and self.open[-1] in spaced), (self.open, data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def attributes(self, name: str) -> list[str]:
        return [found[name] or "" for _, found in self.elements if name in found]


def row(item: str = "q0", side: str = "query", **values: Any) -> dict[str, Any]:
    own = {"step": 3, "item": item, "side": side, "text": WELL, "well_formed": True, "rank_without": 4.0, "rank": 2.0}
    rewards = {"candidates": 20, "format_reward": 1.0, "retrieval_reward": 0.5, "attributes_reward": 0.25}
    return {**own, **rewards, "advantage": 0.5, **values}


def pair(number: int, rank: float, rollouts: int = 2, **values: Any) -> list[dict[str, Any]]:
    sides = (("query", f"q{number}"), ("product", f"shop/p{number}"))
    return [row(item, side, rank=rank, **values) for side, item in sides for _ in range(rollouts)]


def write_step(run: Path, rows: list[dict[str, Any]], step: int = 3) -> Path:
    (run / "completions").mkdir(parents=True, exist_ok=True)
    path = run / "completions" / f"step-{step:06d}.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def write_recipe(run: Path, **values: Any) -> None:
    run.mkdir(parents=True, exist_ok=True)
    recipe = {"preset": "moon3", "stage": "grpo", "rollouts": 2, "rewards": WEIGHTS, "seed": 1, "max_steps": 5}
    recipe["data"] = ["/nowhere"]  # the default, the catalogue, takes long to draw
    (run / "resolved_recipe.yaml").write_text(yaml.safe_dump(recipe | values))


def write_metrics(run: Path, lines: list[dict[str, Any] | str]) -> None:
    run.mkdir(parents=True, exist_ok=True)
    written = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    (run / "metrics.jsonl").write_text("\n".join(written) + "\n")


def rendered(run: Path, *options: str) -> Page:
    assert main(["completions", str(run), "--output", str(run / "page.html"), *options]) == 0
    return Page((run / "page.html").read_text(encoding="utf-8"))


@pytest.fixture
def shop(tmp_path):
    """Two products, one with a picture that is not there, and two queries, as a shop's folder."""
    folder = tmp_path / "shop"
    folder.mkdir()
    Image.new("RGB", (400, 200), (200, 30, 30)).save(folder / "red.png")
    products = [
        {"product_id": "p0", "title": "Red <b>bag</b>", "attributes": [{"key": "colour", "value": "red"}]}
        | {"images": ["red.png"], "split": "train"},
        {"product_id": "p1", "title": "Blue mug", "images": [], "split": "train"},
    ]
    queries = [
        {"query_id": "q0", "type": "text", "text": "a red bag", "positives": ["p0"], "split": "train"},
        {"query_id": "q1", "type": "image", "image": "red.png", "positives": ["p1"], "split": "train"},
    ]
    for name, rows in (("products", products), ("queries", queries)):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


# Reading


def test_rows_of_one_item_and_side_that_follow_each_other_are_a_group_and_two_groups_a_pair(tmp_path):
    rows = pair(0, 2.0) + pair(0, 3.0, rollouts=3) + pair(1, 4.0)
    found = read_step(write_step(tmp_path, rows), None)
    shape = [[(group.item, group.side, len(group.rollouts)) for group in one.groups] for one in found]
    assert shape == [
        [("q0", "query", 2), ("shop/p0", "product", 2)],
        [("q0", "query", 3), ("shop/p0", "product", 3)],
        [("q1", "query", 2), ("shop/p1", "product", 2)],
    ]
    assert [one.number for one in found] == [0, 1, 2]


def test_the_total_is_the_weighted_sum_of_the_rewards_that_apply(tmp_path):
    path = write_step(tmp_path, [row(), row(attributes_reward=math.nan), row(retrieval_reward=None)])
    totals = [one.total for one in read_step(path, WEIGHTS)[0].rollouts]
    assert totals == pytest.approx([0.5 * 1 + 0.5 + 2 * 0.25, 0.5 * 1 + 0.5, 0.5 * 1 + 2 * 0.25])
    assert [one.total for one in read_step(path, None)[0].rollouts] == [None] * 3
    assert read_step(path, None)[0].rollouts[1].rewards["attributes"] is None


@pytest.mark.parametrize("rollouts", [2, 8])
@pytest.mark.parametrize("spread, degenerate", [(0.0, True), (1e-9, True), (1e-6, False), (0.3, False)])
def test_a_group_is_degenerate_where_trl_finds_no_spread(tmp_path, rollouts, spread, degenerate):
    reward_G = torch.linspace(-1, 1, rollouts, dtype=torch.float64)
    reward_G = 0.5 + spread * reward_G / reward_G.std()
    advantage_G = (reward_G - reward_G.mean()) / (reward_G.std() + 1e-4)  # trl.GRPOTrainer, scale_rewards="group"
    assert bool(torch.isclose(reward_G.std(), torch.zeros((), dtype=torch.float64))) == degenerate
    path = write_step(tmp_path, [row(advantage=value) for value in advantage_G.tolist()])
    assert read_step(path, None)[0].groups[0].degenerate == degenerate


def test_a_gain_is_how_often_the_rank_was_halved(tmp_path):
    ranks = [(8.0, 2.0), (2.0, 8.0), (1.0, 1.0), (400.0, 200.0), (2.5, 1.0)]
    path = write_step(tmp_path, [row(rank_without=before, rank=after) for before, after in ranks])
    gains = [one.gain for one in read_step(path, None)[0].rollouts]
    assert gains == pytest.approx([2, -2, 0, 1, math.log2(2.5)])


def test_the_best_come_first_by_rank_or_by_reward_or_as_they_came(tmp_path):
    rows = pair(0, 8.0, format_reward=0.9) + pair(1, 1.0, format_reward=0.1) + pair(2, 4.0, format_reward=0.5)
    pairs = read_step(write_step(tmp_path, rows), {"format": 1.0})
    numbers = {order: [one.number for one in sort_pairs(pairs, order)] for order in ("change", "reward", "step")}
    assert numbers == {"change": [1, 2, 0], "reward": [0, 2, 1], "step": [0, 1, 2]}


def test_what_the_trainer_writes_can_be_read(tmp_path):
    """The trainer's own two methods fill and write the table."""
    from accelerate import PartialState

    from processing_moon.reasoning_moon import read_reasoning
    from training.reasoning.grpo_trainer import MoonGRPOTrainer

    PartialState(cpu=True)
    one = SimpleNamespace(query={"id": "q7"}, names=["shop/p7"])
    metrics: dict[str, list[float]] = defaultdict(list)
    trainer = SimpleNamespace(
        _metric=lambda name, value: metrics[name].append(float(value)),
        state=SimpleNamespace(global_step=4),
        reasoning=SimpleNamespace(completions_steps=5),
        accelerator=SimpleNamespace(is_main_process=True),
        run_folder=RunFolder(tmp_path),
        disk=SimpleNamespace(keeping=nullcontext),
        _logs={"rewards": {"format_reward": [1.0, 0.0, 1.0, math.nan]}, "advantages": [1.0, -1.0, 0.0, 0.0]},
    )
    sides = [(one, "query"), (one, "query"), (one, "product"), (one, "product")]
    near = SimpleNamespace(
        positive=[torch.tensor([value, value]) for value in (0.9, 0.1, 0.5, 0.5)],
        negative=[torch.tensor([0.3, 0.6, 0.2])] * 4,
        plain_positive=torch.tensor([0.25]),
        plain_negative=[torch.tensor([0.3, 0.6, 0.2])],
    )
    readings = [read_reasoning(text) for text in (f"{WELL}</think>", "nonsense", "</think>", "colour: blue")]
    MoonGRPOTrainer._note_facts(trainer, sides, readings, near)
    MoonGRPOTrainer._log_completions(trainer, trainer._facts)
    assert list(completion_steps(tmp_path)) == [5]
    (found,) = read_step(completion_steps(tmp_path)[5], {"format": 2.0})
    assert [group.item for group in found.groups] == ["q7", "shop/p7"]
    assert [(one.rank_without, one.rank, one.candidates) for one in found.rollouts] == [
        (3.0, 1.0, 4),
        (3.0, 4.0, 4),
        (3.0, 2.0, 4),
        (3.0, 2.0, 4),
    ]
    assert [one.total for one in found.rollouts] == [2.0, 0.0, 2.0, 0.0]
    assert [one.well_formed for one in found.rollouts] == [True, False, False, False]
    assert rendered(tmp_path).text.count("✗") >= 3


def test_of_a_step_that_was_logged_twice_the_later_line_counts(tmp_path):
    write_metrics(
        tmp_path, [{"step": 1, "reward": 0.1}, {"step": 2, "reward": 0.2}, {"step": 2, "reward": 0.7, "a": "b"}]
    )
    series, notes = read_series(tmp_path / "metrics.jsonl")
    assert series == {"reward": {1: 0.1, 2: 0.7}}
    assert notes == []


def test_a_line_that_was_cut_off_is_named_and_the_others_are_read(tmp_path):
    write_metrics(tmp_path, [{"step": 1, "reward": 0.1}, '{"step": 2, "rew'])
    series, notes = read_series(tmp_path / "metrics.jsonl")
    assert series == {"reward": {1: 0.1}}
    assert "line 2 could not be read" in notes[0]


# The page


def test_the_page_says_what_each_rollout_wrote_and_what_it_got(tmp_path):
    write_recipe(tmp_path, data=["/nowhere"])
    rows = [row(rank=1.0, advantage=1.25), row(text="colour: blue", rank=8.0, advantage=-1.25, attributes_reward=None)]
    write_step(tmp_path, [*rows, row("shop/p0", "product"), row("shop/p0", "product")])
    words = rendered(tmp_path).text
    for said in ("▲ 4 → 1", "▼ 4 → 8", "+1.250", "−1.250", "1.500", "1.000", "leather", "–", "of 20", "q0", "shop/p0"):
        assert said in words
    assert "mean rank before | 4.00 | 4.00 | 4.00" in words
    assert "mean rank after | 3.25 | 4.50 | 2.00" in words
    assert "well formed | 4 (100 %)" in words
    assert "rank worse | 1 (25 %) | 1 (50 %) | 0 (0 %)" in words
    assert "does not apply to 1" in words


def test_nothing_that_was_written_becomes_markup_and_nothing_is_fetched(tmp_path):
    nasty = '<script>alert(1)</script>: "><img src=http://x.example onerror=alert(1)>; \u202egnp: \x1b[31m\u200b'
    write_step(tmp_path, [row('<a href="javascript:1">', text=nasty, well_formed=False), row(text=nasty)])
    write_recipe(tmp_path, data=["<script>"], seed="</style><script>", rewards={"<i>": 1})
    write_metrics(tmp_path, [{"step": 1, "reward": 1.0, "rewards/<b>x_reward/mean": 1.0}])
    page = rendered(tmp_path)
    assert {name for name, _ in page.elements}.isdisjoint({"script", "iframe", "i", "object", "link", "form"})
    assert not [name for _, found in page.elements for name in found if name.startswith("on")]
    assert all(link.startswith("#") for link in page.attributes("href"))
    assert all(source.startswith("data:image/jpeg;base64,") for source in page.attributes("src"))
    assert "default-src 'none'" in page.attributes("content")[0]
    assert "<script>alert(1)</script>" in page.text
    raw = (tmp_path / "page.html").read_text(encoding="utf-8")
    addresses = re.findall(r"(?:https?:)?//[\w.]+|url\(|@import", raw)
    assert set(addresses) <= {"http://x.example"}  # which is text
    assert raw.index("charset") < 1024
    assert not set(raw) & set("\u202e\x1b\u200b")
    assert "⟨U+202E⟩" in page.text


@pytest.mark.parametrize(
    "text, said",
    [
        ("", "nothing was written"),
        (" just words", "no 'key: value' in"),
        ("colour: red; colour: blue", "the key 'colour' comes again"),
        ("colour: red; size", "not read: no 'key: value' in 'size'"),
        (WELL, "not closed within the maximum length"),
    ],
)
def test_a_malformed_reasoning_is_marked_and_says_why(tmp_path, text, said):
    write_step(tmp_path, [row(text=text, well_formed=False)])
    words = rendered(tmp_path).text
    assert "✗" in words
    assert said in words
    assert text.strip()[:6] in words
    write_step(tmp_path, [row()])
    assert "✗" not in rendered(tmp_path).text


def test_the_best_half_and_the_worst_half_are_shown_each_from_its_end(tmp_path):
    ranks = [3.0, 1.0, 16.0, 2.0, 8.0, 4.0]
    write_step(tmp_path, [line for number, rank in enumerate(ranks) for line in pair(number, rank)])

    def cards(*options: str) -> list[str]:
        page = rendered(tmp_path, *options)
        return [found["id"] for name, found in page.elements if name == "article"]

    def named(*numbers: int) -> list[str]:
        return [f"pair-{number}" for number in numbers]

    assert cards("--items", "3") == named(1, 3, 2)
    assert cards() == named(1, 3, 0, 2, 4, 5)
    assert cards("--order", "step", "--items", "2") == named(0, 1)
    links = rendered(tmp_path, "--items", "1").attributes("href")
    assert "#pair-1" in links
    assert "#pair-2" not in links  # an example whose card is not on the page has no link


def test_the_largest_changes_of_ranks_stand_first_and_what_is_cut_is_said(tmp_path):
    """Before curves and items: those where reasoning helped most, then those that it hurt most, each from its end."""
    ranks = [4.0 / 2**gain for gain in (2, -3, 1.5, -1, 0, 0.5, 1, 1.75, -2, 0.25)]
    write_step(tmp_path, [line for number, rank in enumerate(ranks) for line in pair(number, rank)])
    write_metrics(tmp_path, [{"step": step, "reward": step / 400} for step in range(1, 400)])
    page = rendered(tmp_path, "--items", "4")
    helped, hurt, curves = (page.text.index(said) for said in ("helped most", "hurt most", "Curves"))
    items = page.text.index("Pairs: the best by")
    assert helped < hurt < curves < items
    named = [
        [int(one) for one in re.findall(r"query q(\d)", page.text[start:stop])]
        for start, stop in ((helped, hurt), (hurt, curves))
    ]
    assert named == [[0, 7, 2], [1, 8, 3]]  # a query and its product changed alike: six of each
    assert "The first 6 of 12 queries and products, each with the rollout of the largest change." in page.text
    assert page.text.count("queries and products, each with") == 1  # of those that it hurt none is cut
    assert "6 pairs between the best and the worst are left out; a larger --items shows them." in page.text
    assert "Curves of more than 300 values are drawn as means of neighbours." in page.text
    whole = rendered(tmp_path).text
    assert "left out" not in whole
    assert "6 pairs after these are left out" in rendered(tmp_path, "--items", "4", "--order", "step").text


def test_one_pair_alone_has_no_worst_half_and_examples_may_be_none(tmp_path):
    write_step(tmp_path, pair(0, 4.0, advantage=0.0))
    words = rendered(tmp_path).text
    assert "the worst by" not in words
    assert words.count("Reasoning had no such effect in this step.") == 2
    assert words.count("degenerate: all rewards equal") == 2
    assert "degenerate groups (all rewards equal) | 2 (100 %)" in words


def test_a_run_without_recipe_metrics_and_pictures_is_shown_as_far_as_it_goes(tmp_path):
    write_step(tmp_path, [row()])
    words = rendered(tmp_path).text
    assert "No weights of the rewards: resolved_recipe.yaml does not exist." in words
    assert "No curves: metrics.jsonl does not exist." in words
    assert "No titles or pictures" in words
    assert "weighted sum" not in words
    assert "not finished" in words


@pytest.mark.parametrize("content", ["{", "- a list", ""])
def test_a_recipe_that_cannot_be_read_is_said(tmp_path, content):
    write_step(tmp_path, [row()])
    (tmp_path / "resolved_recipe.yaml").write_text(content)
    assert "No weights of the rewards: resolved_recipe.yaml" in rendered(tmp_path).text


def test_the_last_step_is_the_last_that_was_written_whole(tmp_path, capsys):
    write_step(tmp_path, [row("early")], step=5)
    write_step(tmp_path, [row("late")], step=10)
    (tmp_path / "completions" / "step-000015.parquet").write_bytes(b"PAR1 half")
    report = make_report(tmp_path)
    assert (report.step, report.steps) == (10, [5, 10, 15])
    assert "Step 15 is left out" in report.notes[1]
    assert "early" in rendered(tmp_path, "--step", "5").text
    assert main(["completions", str(tmp_path), "--step", "15"]) == 2
    assert "cannot be read as parquet" in capsys.readouterr().err


# Items


def test_titles_attributes_and_small_pictures_come_from_the_recipes_tables(tmp_path, shop):
    run = tmp_path / "run"
    write_recipe(run, data=[str(shop)])
    write_step(run, pair(0, 1.0) + pair(1, 2.0) + [row("q9"), row("shop/p9", "product")])
    page = rendered(run)
    pictures = [Image.open(io.BytesIO(base64.b64decode(one.partition(",")[2]))) for one in page.attributes("src")]
    assert [one.size for one in pictures] == [(144, 72)] * 2  # the product's, and that of the query by picture
    assert all(abs(one.getpixel((70, 30))[0] - 200) < 8 for one in pictures)
    for said in ("Red <b>bag</b>", "Blue mug", "a red bag", "known: colour: red", "no picture"):
        assert said in page.text
    assert "do not contain this product" in page.text
    assert "do not contain this query" in page.text
    assert {number for number, _ in make_report(run, items=1).facts_of} == {0}  # no picture is read that is not shown
    without = rendered(run, "--no-pictures")
    assert without.attributes("src") == []
    assert "a red bag" in without.text


def test_a_picture_that_cannot_be_opened_is_named(tmp_path, shop):
    run = tmp_path / "run"
    write_recipe(run, data=[str(shop)])
    write_step(run, pair(0, 1.0))
    (shop / "red.png").write_bytes(b"no picture at all")
    page = rendered(run)
    assert page.attributes("src") == []
    assert "not shown: shop/p0, field 'images[0]'" in page.text


def test_two_data_sets_may_use_the_same_query_id(tmp_path, shop):
    other = tmp_path / "other"
    other.mkdir()
    (other / "products.jsonl").write_text(json.dumps({"product_id": "x", "title": "Green tea", "split": "train"}))
    query = {"query_id": "q0", "type": "text", "text": "sencha", "positives": ["x"], "split": "train"}
    (other / "queries.jsonl").write_text(json.dumps(query))
    run = tmp_path / "run"
    write_recipe(run, data=[str(shop), str(other)])
    write_step(run, [row("q0"), row("other/x", "product"), row("q0", rank=1.0), row("shop/p0", "product", rank=1.0)])
    report = make_report(run)
    assert report.facts_of[0, "query"].text == "sencha"
    assert report.facts_of[1, "query"].text == "a red bag"


def test_a_query_that_the_training_made_of_a_product_says_so(tmp_path, shop):
    run = tmp_path / "run"
    write_recipe(run, data=[str(shop)])
    write_step(run, [row("derived from shop/p0"), row("shop/p0", "product")])
    assert "The training derived this query from the product" in rendered(run).text


@pytest.mark.parametrize(
    "provenance, said",
    [
        ('{"commit": "0123456789abcdef", "uncommitted_changes": true}', "0123456789ab with changes"),
        ('{"commit": "0123456789abcdef", "uncommitted_changes": false}', "0123456789ab"),
        ('{"commit": null}', "not known"),
        ("{", "not known"),
    ],
)
def test_the_page_says_which_run_it_is_of(tmp_path, provenance, said):
    write_recipe(tmp_path, data=["/nowhere", {"path": "x", "name": "mine"}])
    write_step(tmp_path, [row()])
    write_metrics(tmp_path, [{"step": 4, "loss": 1.0}])
    (tmp_path / "provenance.json").write_text(provenance)
    facts = make_report(tmp_path, pictures=False).facts
    assert facts["commit"] == said
    assert facts["state"] == "not finished, logged up to step 4 of 5"
    assert facts["data"] == "/nowhere, mine"
    (tmp_path / "finished.json").write_text("{}")
    assert make_report(tmp_path).facts["state"].startswith("finished")


# Curves


def svg(lines: list[list[tuple[float, float]]], marked: int = 1) -> tuple[list[list[tuple[float, float]]], list[str]]:
    """The lines' points, by the colours of the page, and the labels of a drawing."""
    found = fromstring(draw_lines(lines, marked, "name").replace("xlink:", ""))
    drawn = [one.get("d") for one in found.iter("path") if "fill: none; stroke: var(--c" in one.get("style", "")]
    points = [[(float(x), float(y)) for x, y in re.findall(r"([-\d.]+) ([-\d.]+)", one)] for one in drawn]
    return points, [one.text for one in found.iter("text")]


def test_a_curve_is_drawn_to_scale_inside_its_frame():
    points, labels = svg([[(1, 0.0), (2, 0.25), (5, 1.0)]])
    (first, second, third) = points[0]
    assert (second[0] - first[0]) / (third[0] - first[0]) == pytest.approx(0.25, abs=0.01)
    assert (first[1] - second[1]) / (first[1] - third[1]) == pytest.approx(0.25, abs=0.01)
    assert all(0 <= x <= 380 and 0 <= y <= 190 for x, y in points[0])
    assert {"0.0", "0.4", "1.0", "step 1", "step 5"} <= set(labels)


def test_each_line_has_its_own_colour_of_the_page():
    lines = [[(step, float(line)) for step in range(1, 60)] for line in range(5)]
    drawn = draw_lines(lines, 30, "name")
    for number in range(5):
        assert drawn.count(f"stroke: var(--c{number})") == 2  # faint, and its running mean
    assert "var(--line)" in drawn
    assert "fill: var(--faint)" in drawn
    assert not re.search(r"#[0-9a-f]{6}", drawn)


@pytest.mark.parametrize(
    "values",
    [
        [0.0],
        [3.0, 3.0],
        [-2.0, -1.0],
        [1e-7, 2e-7],
        [6.789, 6.791],
        [1e6, 2.5e6],
        [0.0, 1e-300],
        [-5.0, 1e9],
        [10.7, 5],
        [0.9, 2.2],
    ],
)
def test_whatever_the_values_the_ticks_differ_and_hold_them_between(values):
    points, labels = svg([list(enumerate(values, start=1))])
    numbers = [label.replace("−", "-") for label in labels if not label.startswith("step")]
    size = float(numbers.pop()) if "e" in numbers[-1] else 1.0  # above the axis: 1e9
    ticks = [float(number) * size for number in numbers]
    assert max(map(len, numbers)) <= 7  # there is room for
    assert 3 <= len(ticks) == len(set(ticks)) <= 7
    assert all(10 <= y <= 170 for _, y in points[0])
    beyond = 1e-8 * max(map(abs, values))  # less than is seen
    assert ticks[0] - beyond <= min(values) <= max(values) <= ticks[-1] + beyond


def test_a_long_curve_is_thinned_by_means_and_has_its_running_mean_above():
    values = [(step, float(step % 2)) for step in range(1, 2001)]
    points, labels = svg([values])
    raw, mean = points
    assert len(raw) == len(mean) == 300
    assert [label for label in labels if label.startswith("step")] == ["step 1", "step 2000"]
    spread = [max(y for _, y in one) - min(y for _, y in one) for one in (raw, mean)]
    assert spread[1] < 0.2 * spread[0]
    assert sum(y for _, y in mean) / 300 == pytest.approx(sum(y for _, y in raw) / 300, abs=1)


def test_a_running_mean_is_the_mean_of_the_neighbours():
    values = [(float(place), float(place**2 % 7)) for place in range(100)]
    found = running_mean(values)
    for place in range(100):
        near = [value for step, value in values if abs(step - place) <= 2]
        assert found[place] == (place, pytest.approx(sum(near) / len(near)))


def test_every_reward_has_its_own_curve_and_its_own_sentence(tmp_path):
    names = [*reward_names(), "gone"]
    logged = {f"rewards/{name}_reward/mean": 0.5 for name in names} | {"reward": 1.0, "kl": 0.1, "entropy": 2.0}
    logged |= {"rank": 3.0, "rank_without_reasoning": 4.0, "infonce": 2.0, "frac_reward_zero_std": 0.25}
    write_metrics(tmp_path, [{"step": step, **logged} for step in (1, 2)])
    write_step(tmp_path, [row()])
    write_recipe(tmp_path, rewards={"format": 0.5})
    page = rendered(tmp_path)
    assert sum(name == "svg" for name, _ in page.elements) == len(names) + 6
    assert "Reward: format, weight 0.5" in page.text
    for name in names:
        assert f"Reward: {name}" in page.text
        assert reward_sentence(name) in page.text
    assert len({reward_sentence(name) for name in names}) == len(names)


def test_values_that_are_not_finite_are_left_out_and_counted(tmp_path):
    lines = [{"step": 1, "kl": 0.5, "entropy": math.nan}, {"step": 2, "kl": math.inf}, {"step": 3, "kl": 0.7}]
    write_metrics(tmp_path, lines)
    write_step(tmp_path, [row()])
    words = rendered(tmp_path).text
    assert "1 of 3 values are left out, because they are not finite." in words
    assert "This curve has no finite values." in words
    assert "0.5 → 0.7" in words


# Refusals


def test_a_folder_that_is_not_there_or_has_no_completions_is_refused(tmp_path, capsys):
    assert main(["completions", str(tmp_path / "none")]) == 2
    assert "found no folder" in capsys.readouterr().err
    assert main(["completions", str(tmp_path)]) == 2
    assert "found no completions in" in capsys.readouterr().err


@pytest.mark.parametrize(
    "options, said",
    [
        (["--step", "4"], "--step: found 4; expected last, or one of 3"),
        (["--step", "first"], "--step: found 'first'; expected last, or the number of a step"),
        (["--items", "0"], "--items: found 0; expected 1 or more"),
        (["--order", "reward"], "--order: found 'reward', but no"),
    ],
)
def test_an_option_that_cannot_be_met_is_refused(tmp_path, capsys, options, said):
    write_step(tmp_path, [row()])
    assert main(["completions", str(tmp_path), *options]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "completions.html").exists()


def test_an_output_that_is_a_folder_is_refused(tmp_path, capsys):
    write_step(tmp_path, [row()])
    assert main(["completions", str(tmp_path), "--output", str(tmp_path)]) == 2
    assert "found a folder; expected the name of a file" in capsys.readouterr().err


@pytest.mark.parametrize(
    "rows, said",
    [
        ([{"step": 3, "item": "q0"}], "found no column 'side'"),
        ([row(rank=0.0)], "row 0: found rank_without 4.0 and rank 0.0; expected at least 1"),
        ([row(), row(rank=math.nan)], "row 1: found rank_without 4.0 and rank nan"),
        ([row(), row(text=None)], "row 1, column 'text': found nothing; expected a value"),
    ],
)
def test_a_table_that_no_trainer_wrote_is_refused(tmp_path, rows, said):
    with pytest.raises(ReportError, match=re.escape(said)):
        read_step(write_step(tmp_path, rows), None)


def test_an_empty_table_is_refused(tmp_path):
    path = write_step(tmp_path, [row()])
    pyarrow.parquet.write_table(pyarrow.parquet.read_table(path).slice(0, 0), path)
    with pytest.raises(ReportError, match="found no rows; expected at least one"):
        read_step(path, None)
