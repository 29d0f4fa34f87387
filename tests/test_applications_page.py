"""docs/applications.md says what was measured: its figures are those of the results files, and its commands exist."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from applications.ctr.model import VARIANTS
from moon3.__main__ import commands, parse_words

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "applications.md").read_text(encoding="utf-8")
TEXT = " ".join(PAGE.split())


def results(name: str) -> dict:
    return json.loads((ROOT / "results" / name).read_text(encoding="utf-8"))


def points(value: float) -> str:
    return f"{100 * value:+.2f}".replace("-", "−")


def change_in_words(change: dict) -> tuple[str, str]:
    return points(change["mean"]), " to ".join(points(bound).removeprefix("+") for bound in change["interval"])


@pytest.mark.parametrize(
    "line",
    [
        line
        for block in re.findall(r"```bash\n(.*?)```", PAGE, re.S)
        for line in block.replace("\\\n", " ").splitlines()
    ],
)
def test_every_command_of_the_page_is_understood(line):
    line = line.removeprefix("for seed in 0 1 2; do ").removesuffix("; done").replace("$seed", "0")
    name, *words = shlex.split(line)[1:]
    parse_words(commands()[name], words)


def test_the_table_of_clicks_is_that_of_the_results():
    found = results("ctr.json")
    assert all(log["simulated"] for log in found["log"].values())
    for name, model in found["models"].items():
        cells = [f"{100 * model['mean'][subset]['AUC']:.2f}" for subset in ("all", "known", "new")]
        change = model["against"].get("ids", {}).get("new")
        cells.append("–" if change is None else "{} ({})".format(*change_in_words(change)))
        assert f"| {name} | {' | '.join(cells)} |" in PAGE
    assert len(found["models"]) == 1 + 2 * sum(parts.vectors for parts in VARIANTS.values())


def test_the_sentences_on_new_products_are_those_of_the_results():
    models = results("ctr.json")["models"]
    name = "{}: ids + vectors + histogram"
    trained, untrained = (models[name.format(one)]["against"] for one in ("trained", "untrained"))
    for change in (trained["ids"]["new"], untrained["ids"]["new"], trained[name.format("untrained")]["new"]):
        mean, interval = change_in_words(change)
        assert re.search(re.escape(mean) + r"( points)? " + re.escape(f"({interval})"), TEXT)
    assert all(value > 0 for value in trained["ids"]["new"]["seeds"])
    assert "in three of three seeds" in TEXT


def test_the_sentences_on_equal_tastes_are_those_of_the_results():
    models = results("ctr_equal_tastes.json")["models"]
    name = "{}: ids + vectors + histogram"
    trained, untrained = (models[name.format(one)]["against"] for one in ("trained", "untrained"))
    for change in (trained["ids"]["new"], untrained["ids"]["new"], trained[name.format("untrained")]["new"]):
        mean, interval = change_in_words(change)
        assert re.search(re.escape(mean) + r"( points)? " + re.escape(f"({interval})"), TEXT)


def test_the_sentences_on_the_exchange_rate_are_those_of_the_results():
    found = results("exchange_rate.json")
    for words in found["words"]:
        if "points of AUC" in words:
            slope, interval = re.search(r"goes with (\S+) \(([^)]+)\) points", words).groups()
            assert f"{slope} points of AUC" in TEXT or f"with {slope} on new products" in TEXT
            assert f"({interval})" in TEXT
    first, second, last = (f"{100 * found['all']['AUC'][step]:.2f}" for step in (0, 1, -1))
    assert f"AUC first falls, from {first} to {second} after 40 steps, and reaches {last} at the end" in TEXT
    assert len(found["steps"]) >= 5


def test_the_exponents_of_the_page_are_those_of_the_results():
    found = results("scaling.json")
    for line in found["fits"]:
        b = line["fit"]["b"]
        assert "| {:.3f} ({:.3f} to {:.3f}) |".format(b["value"], *b["interval"]) in PAGE
        assert line["fit"]["law"] == "a·x^(−b)"
