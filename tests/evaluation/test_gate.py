"""The gate's curve and the four ways to search: from the formulas, from a tiny model, as tables and curves, as a command."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from evaluation.gate import DirectionOutcome, GateOptions, aligned_space, gate_curve, measure_gate
from evaluation.gate_report import ALL, draw_curves, markdown, summary_sentences
from evaluation.run import EvaluationOptions, evaluate_model
from moon3.__main__ import main
from product_data.tables import TableError, load_tables
from retrieval.encode import load_for_evaluation

ARROWS = ("none→none", "none→generate", "generate→none", "generate→generate")


def asked(count: int = 40, seed: int = 0, **changes: Any) -> DirectionOutcome:
    rng = np.random.default_rng(seed)
    ranks = {
        (query, products): rng.integers(1, 25, count).astype(float)
        for query in ("none", "generate")
        for products in ("none", "generate")
    }
    margins = {way: rng.random(count).astype(np.float32) for way in ("none", "generate")}
    seconds = {"none": np.full(count, 0.5), "generate": np.full(count, 2.0)}
    made = {"ranks": ranks, "margins": margins, "tokens": rng.integers(1, 9, count), "seconds": seconds}
    return DirectionOutcome(**(made | {"gallery": 30, "source": "queries"} | changes))


@pytest.mark.parametrize("products", ["none", "generate"])
def test_each_point_of_the_curve_is_what_its_threshold_gives(products: str) -> None:
    one = asked()
    curve = gate_curve(one, products, resamples=20)
    assert [point["quantile"] for point in curve] == [step / 20 for step in range(21)]
    plain, thought = one.ranks["none", products], one.ranks["generate", products]
    for point in curve:
        reasons = [margin < point["threshold"] for margin in one.margins[products]]
        assert point["share"] == np.mean(reasons) == point["quantile"]
        mixed = [other if did else rank for rank, other, did in zip(plain, thought, reasons, strict=True)]
        for k in (1, 10):
            assert point[f"R@{k}"] == np.mean([rank <= k for rank in mixed])
            low, high = point[f"R@{k}_interval"]
            assert low <= point[f"R@{k}"] <= high
            ends = [np.mean(rank <= k) for rank in (plain, thought)]
            assert point[f"R@{k}_coin"] == pytest.approx(ends[0] + point["share"] * (ends[1] - ends[0]))
        assert point["tokens_per_query"] == sum(n for n, did in zip(one.tokens, reasons, strict=True) if did) / 40
        seconds = sum(2.0 if did else 0.5 for did in reasons)
        assert point["items_per_second"] == pytest.approx(40 / seconds)
    assert curve[0]["threshold"] == 0.0
    assert curve[-1]["threshold"] == pytest.approx(one.margins[products].max())


def test_equal_margins_reason_together_and_the_end_is_everybody() -> None:
    flat = np.full(40, 0.25, dtype=np.float32)
    curve = gate_curve(asked(margins={"none": flat, "generate": flat}), "none", resamples=5)
    assert [point["share"] for point in curve] == [0.0] * 20 + [1.0]
    single = gate_curve(asked(1), "none", resamples=5)
    assert [point["share"] for point in single] == [0.0] * 20 + [1.0]


def test_the_gate_beats_the_coin_where_the_unsure_are_those_whom_reasoning_helps() -> None:
    helped = np.arange(40) % 4 == 0
    ranks = {("none", way): np.where(helped, 20.0, 1.0) for way in ("none", "generate")}
    ranks |= {("generate", way): np.ones(40) for way in ("none", "generate")}
    margins = {way: np.where(helped, 0.01, 0.2).astype(np.float32) for way in ("none", "generate")}
    curve = {point["quantile"]: point for point in gate_curve(asked(ranks=ranks, margins=margins), "none", resamples=5)}
    assert curve[0.25]["R@10"] == curve[1.0]["R@10"] == 1.0
    assert curve[0.25]["R@10_coin"] == pytest.approx(0.75 + 0.25 * 0.25)


@pytest.mark.parametrize(("lost", "within"), [(0, True), (1, True), (2, False), (-5, True)])
def test_one_space_is_when_un_reasoned_queries_are_at_most_two_points_behind(lost: int, within: bool) -> None:
    thought = np.where(np.arange(50) < 30, 1.0, 20.0)
    plain = np.where(np.arange(50) < 30 - lost, 1.0, 20.0)
    ranks = {("none", "generate"): plain, ("generate", "generate"): thought}
    ranks |= {("none", "none"): plain, ("generate", "none"): plain}
    found = aligned_space(asked(50, ranks=ranks), resamples=200)
    assert found["within"] is within
    assert found["difference"]["difference"] == pytest.approx(-lost / 50)
    low, high = found["difference"]["interval"]
    assert low <= -lost / 50 <= high
    assert list(found["ways"]) == list(ARROWS)
    assert found["ways"]["generate→generate"]["R@10"] == 0.6


def shop() -> Any:
    colours = ("red", "blue", "green", "black", "white", "brown")
    products = [
        {"product_id": name, "title": f"{name} shoes", "images": [Image.new("RGB", (32, 32), name)]} for name in colours
    ]
    queries = [{"query_id": f"t {name}", "text": f"shoes, {name}", "positives": [name]} for name in colours]
    return products, queries


@pytest.fixture(scope="module")
def folder(tiny_moon: Callable[..., Path]) -> Path:
    return tiny_moon("qwen3_vl", preset="moon3", trained=True)


@pytest.fixture(scope="module")
def measured(folder: Path) -> tuple[Any, Any, Any, dict[str, Any]]:
    """Text queries of their own; products' own pictures in the place of image queries; no queries with both."""
    products, queries = shop()
    broken = {"product_id": "broken", "title": "no picture", "images": [b"nonsense"]}
    tables = load_tables({"products": [*products, broken], "queries": queries})
    model, processor = load_for_evaluation(folder, device="cpu")
    options = GateOptions(split=None, max_reasoning_tokens=3, resamples=20, rounds=1, progress=False)
    return model, processor, tables, measure_gate(model, processor, tables, model_name="runs/tiny", options=options)


def test_the_ends_of_the_curves_and_the_four_ways_are_what_the_evaluation_measures(measured: Any) -> None:
    model, processor, tables, found = measured
    assert list(found["directions"]) == [ALL, "t2mm", "t2i", "i2t"]
    assert list(found["absent"]) == ["i2mm", "mm2mm"]
    assert found["directions"]["i2t"]["source"] == "products"
    for query in ("none", "generate"):
        for products in ("none", "generate"):
            reasons = {"query_reasoning": query, "product_reasoning": products}
            settings = {} if (query, products) == ("none", "none") else {"max_reasoning_tokens": 3}
            options = EvaluationOptions(
                split=None, only=("retrieval",), resamples=5, progress=False, **reasons, **settings
            )
            scores = evaluate_model(model, processor, tables, options=options)["scores"]
            for name in ("t2mm", "t2i"):
                one = found["directions"][name]
                point = one["curves"][products][0 if query == "none" else -1]
                assert point["R@1"] == scores[name]["R@1"] == one["aligned"]["ways"][f"{query}→{products}"]["R@1"]
                assert (one["queries"], one["gallery"]) == (scores[name]["queries"], scores[name]["gallery"])
            if query == products:  # own parts reason as products do
                ways = found["directions"]["i2t"]["aligned"]["ways"]
                assert ways[f"{query}→{products}"]["R@1"] == scores["i2t"]["R@1"]
    assert found["directions"][ALL]["queries"] == 18
    assert [one["id"] for one in found["skipped"]] == ["broken"]


def test_a_threshold_of_the_curve_gives_its_share_and_recall_in_the_evaluation(measured: Any) -> None:
    model, processor, tables, found = measured
    for products in ("none", "generate"):
        curve = found["directions"]["t2mm"]["curves"][products]
        point, threshold = curve[10], (curve[7]["threshold"] + curve[10]["threshold"]) / 2
        assert point["share"] == 0.5
        options = EvaluationOptions(
            split=None,
            only=("retrieval",),
            resamples=5,
            progress=False,
            query_reasoning="auto",
            product_reasoning=products,
            gate_threshold=threshold,
            max_reasoning_tokens=3,
        )
        scores = evaluate_model(model, processor, tables, options=options)["scores"]["t2mm"]
        assert (scores["reasoned"], scores["R@1"]) == (0.5, point["R@1"])


def test_cost_and_words_are_there_and_are_shown(measured: Any, tmp_path: Path) -> None:
    found = measured[3]
    assert list(found["cost"]) == ["text", "image"]
    for one in found["cost"].values():
        assert one["timed"] == 6
        assert all(one[way]["seconds"] > 0 for way in ("none", "generate"))
        assert 1 <= one["generate"]["tokens_per_item"] <= 3
    words = summary_sentences(found)
    assert words == found["words"]
    assert len(words) == 3
    assert words[0].startswith("products without reasoning: R@10 is ")
    assert "points behind" in words[2]
    text = markdown(found)
    for expected in (
        *words,
        "all directions (18 queries)",
        "t→mm (6 queries, 6 products)",
        *ARROWS,
        "No curve for i→mm",
    ):
        assert expected in text
    assert Image.open(draw_curves(found, tmp_path / "new" / "curves.png")).size[0] > 1000


def test_sentences_name_the_directions_that_are_more_than_two_points_behind(measured: Any) -> None:
    changed = json.loads(json.dumps(measured[3]))
    for name, within in ((ALL, True), ("t2mm", False), ("t2i", True), ("i2t", True)):
        changed["directions"][name]["aligned"]["within"] = within
    assert summary_sentences(changed)[2].endswith("not more than 2 points behind; more than 2 points behind in: t→mm.")
    changed["directions"]["t2mm"]["aligned"]["within"] = True
    assert summary_sentences(changed)[2].endswith("not more than 2 points behind, nor in any single direction.")


def test_the_command_writes_numbers_tables_and_curves(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--model", str(folder), "--benchmark", "catalogue", "--catalogue-products", "40", "--device", "cpu"]
    output = tmp_path / "new" / "gate.json"
    assert main(["gate", *arguments, "--max-reasoning-tokens", "2", "--rounds", "1", "--output", str(output)]) == 0
    found = json.loads(output.read_text())
    assert found["max_reasoning_tokens"] == 2
    assert output.with_suffix(".md").read_text() == markdown(found)
    assert output.with_suffix(".png").is_file()
    assert "# Thinking when unsure" in capsys.readouterr().out
    assert main(["gate", *arguments, "--output", str(tmp_path / "gate.txt")]) == 2
    assert "expected a .json file" in capsys.readouterr().err


def test_what_cannot_be_measured_is_refused(folder: Path, tiny_moon: Callable[..., Path]) -> None:
    products, queries = shop()
    moon1 = load_for_evaluation(tiny_moon(), device="cpu")
    whole = load_tables({"products": products, "queries": queries})
    with pytest.raises(ValueError, match="reasoning='generate': this model .* does not reason"):
        measure_gate(*moon1, whole, options=GateOptions(split=None))
    with pytest.raises(ValueError, match="rounds=0; expected 1 or more"):
        GateOptions(rounds=0)
    moon3 = load_for_evaluation(folder, device="cpu")
    single = load_tables({"products": products[:1], "queries": queries[:1]})
    with pytest.raises(TableError, match="cannot search in any direction: .*the gallery has one product"):
        measure_gate(*moon3, single, options=GateOptions(split=None, rounds=1, max_reasoning_tokens=1, progress=False))
