"""A table says of each model where its weights come from: the record beside them, or what a person declares."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from evaluation.report import side_by_side
from evaluation.weights import weights_of
from model_cards.facts import FACTS_FILE, Base, Card, DataSet, Sizes, Step

RANDOM, PUBLISHED = Base("small_base", random=True), Base("Qwen3-VL-2B", "Qwen/Qwen3-VL-2B-Instruct")
CARD = Card("model", "model", "moon", Sizes(1, 4), (Step("upcycling", RANDOM),))


def trained(steps: int | None, *names: str) -> Step:
    return Step("training", data=tuple(map(DataSet, names)), details={} if steps is None else {"steps": steps})


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        ((Step("upcycling", RANDOM),), "random"),
        ((Step("upcycling", PUBLISHED),), "base, not trained"),
        ((Step("upcycling", RANDOM), trained(120, "a", "b")), "trained from random, 120 steps on a, b"),
        ((Step("upcycling", PUBLISHED), trained(900, "a"), trained(600, "b")), "trained, 1,500 steps on a, b"),
        ((Step("upcycling", PUBLISHED), trained(None, "a")), "trained on a"),
        ((Step("unrecorded"), trained(5, "a")), "not recorded"),
    ],
)
def test_a_checkpoint_says_what_its_record_says(tmp_path: Path, steps: tuple[Step, ...], words: str) -> None:
    (tmp_path / FACTS_FILE).write_text(replace(CARD, steps=steps).to_json(), encoding="utf-8")
    (tmp_path / "README.md").write_text("---\ntags: [moon]\n---\n", encoding="utf-8")
    assert weights_of(str(tmp_path)) == weights_of(f"vlm_mean={tmp_path}") == words
    assert weights_of(str(tmp_path), {str(tmp_path): "mine"}) == "mine (declared)"


def test_what_has_no_record_says_so(tmp_path: Path, tiny_base: Callable[..., Path]) -> None:
    assert weights_of(f"vlm_mean={tiny_base()}") == "random"
    assert weights_of(f"clip={tmp_path}") == "not recorded"
    (tmp_path / FACTS_FILE).write_text("{", encoding="utf-8")
    assert weights_of(f"clip={tmp_path}") == "not recorded"
    assert weights_of("bm25") == "none"
    assert weights_of("siglip=random") == "random"
    assert weights_of("clip=openai/clip-vit-base-patch32") == "published"


def test_the_weights_stand_above_the_scores_of_several_models() -> None:
    scores = {"t2mm": {"R@10": 0.5, "R@10_interval": [0.4, 0.6]}}
    one = {"model": "a", "benchmark": "shop", "cutoffs": [10], "scores": scores, "weights": "random"}
    rows = side_by_side([one, one | {"model": "bm25", "weights": "none"}])[1]
    assert rows[0] == ["shop", "weights", "random", "none", ""]
    assert side_by_side([one])[1][0][1] == "t→mm"
    old = {key: value for key, value in one.items() if key != "weights"}
    assert side_by_side([old, old | {"model": "b"}])[1][0][1] == "t→mm"
    rows = side_by_side([one, old | {"model": "b"}, one | {"benchmark": "other"}])[1]
    assert rows[0] == ["all", "weights", "random", "–", ""]
