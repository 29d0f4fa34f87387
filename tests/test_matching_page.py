"""docs/matching.md states the figures of the results files."""

import json
from pathlib import Path

from evaluation.decisions_study import promises_table, titles_table
from evaluation.explanations_study import explanations_table

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "matching.md").read_text(encoding="utf-8")
EXPLANATIONS = json.loads((ROOT / "results" / "explanations.json").read_text(encoding="utf-8"))

DECISIONS = json.loads((ROOT / "results" / "decisions.json").read_text(encoding="utf-8"))


def test_the_page_shows_which_promises_are_made_and_kept():
    assert promises_table(DECISIONS) in PAGE
    assert titles_table(DECISIONS) in PAGE


def test_the_page_shows_how_often_each_key_is_explained_right():
    assert explanations_table(EXPLANATIONS) in PAGE


def test_the_page_states_the_comparison_of_ways_and_the_trusted_share():
    validation, unseen = EXPLANATIONS["validation"], EXPLANATIONS["unseen"]["catalogue"]
    text = " ".join(PAGE.split())
    texts, discriminants = validation["ways"]["phrases as texts, lasso 0.02"], validation["other_families"]
    assert f"names the shared value in {texts['right']:.0%} of".replace("%", " %") in text
    assert f"alone name it in {discriminants['right']:.0%}.".replace("%", " %") in text
    for part in (validation["catalogue"], unseen):
        assert f"{part['trusted']['right']:.1%}".replace("%", " %") in text
