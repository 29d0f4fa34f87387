"""All models of a table are compared with one of them, with one correction for the whole table."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from evaluation.against_reference import against_reference, significance_rows, significance_sentences
from evaluation.per_query import QueryValues, pack
from evaluation.significance import holm, sign_flip_p
from product_data.errors import OptionError

QUERIES = 80


def result(
    model: str, benchmark: str, seed: int, *, found: float = 0.3, directions: tuple[str, ...] = ("t2mm",)
) -> Any:
    """A results file whose queries find their answer at rank 1 with a probability, and otherwise anywhere up to 20."""
    rng = np.random.default_rng(seed)
    values, scores = {}, {}
    for name in directions:
        rank_Q = np.where(rng.uniform(size=QUERIES) < found, 1, rng.integers(1, 21, QUERIES)).astype(float)
        digests = {f"q{number}": f"d{number}" for number in range(QUERIES)}
        values[name] = QueryValues("text", digests, f"products {name[-1]}", 20, rank_Q, {})
        scores[name] = {"R@10": float((rank_Q <= 10).mean()), "R@10_chance": 0.5}
    return {
        "model": model,
        "benchmark": benchmark,
        "cutoffs": [1, 10],
        "scores": scores,
        "per_query": pack(values, []),
        "provenance": {"split": "test"},
    }


def table() -> list[Any]:
    """Three models on two shops, and a fourth that has another direction in the first shop and is not in the second."""
    models = [("good", 0.9), ("base", 0.3), ("same", 0.3)]
    found = [
        result(name, shop, number + 10 * place, found=share)
        for place, shop in enumerate(("one", "two"))
        for number, (name, share) in enumerate(models)
    ]
    return [*found, result("text", "one", 5, directions=("t2t",))]


def test_the_correction_counts_all_rows_of_all_models_and_shops() -> None:
    found = against_reference(table(), reference="base", resamples=50)
    assert [on["benchmark"] for on in found["benchmarks"]] == ["one", "two"]
    assert [[one["model"] for one in on["comparisons"]] for on in found["benchmarks"]] == [["good", "same"]] * 2
    rows = [row for on in found["benchmarks"] for one in on["comparisons"] for row in one["rows"]]
    assert found["tested"] == len(rows) == 2 * 2 * 3  # shops, models, metrics
    assert [row["p_holm"] for row in rows] == pytest.approx(holm([row["difference"]["p"] for row in rows]))
    ranks = [
        np.array([float(rank) for rank in one["per_query"]["directions"]["t2mm"]["rank"].split()])
        for one in table()[:2]
    ]
    row = next(row for row in found["benchmarks"][0]["comparisons"][0]["rows"] if row["metric"] == "R@10")
    difference_Q = (ranks[0] <= 10).astype(float) - (ranks[1] <= 10)
    assert row["difference"]["difference"] == pytest.approx(difference_Q.mean())
    assert row["difference"]["p"] == pytest.approx(sign_flip_p(difference_Q))
    assert row["ahead_after_holm"] == "good"
    assert {row["ahead_after_holm"] for row in found["benchmarks"][0]["comparisons"][1]["rows"]} == {None}


def test_the_table_marks_what_is_beyond_chance_and_names_what_is_not_compared() -> None:
    found = against_reference(table(), reference="base", resamples=50)
    columns, rows = significance_rows(found, "R@10")
    assert columns == ["benchmark", "R@10, points", "good", "same"]
    assert [row[:2] for row in rows] == [["one", "t→mm"], ["two", "t→mm"]]
    assert all(row[2].startswith("+") and row[2].endswith(" *") for row in rows)
    assert not any(row[3].endswith("*") for row in rows)
    said = significance_sentences(found, "R@10")
    assert "Differences to base in points of R@10" in said[0]
    assert "all 12 rows (R@10, MRR, nDCG@10 of all models" in said[0]
    assert "2 cells" in said[0]
    assert said[-1] == "Not compared: base and text have no direction in common; expected at least one."


def test_the_first_model_is_the_reference_unless_one_is_named() -> None:
    found = against_reference(table(), resamples=20)
    assert (found["reference"], found["benchmarks"][0]["baseline"]) == ("good", "good")
    with pytest.raises(OptionError, match="reference 'nobody'; expected one of good, base, same, text"):
        against_reference(table(), reference="nobody")
    alone = against_reference(table(), reference="text", resamples=20)
    assert alone["benchmarks"][1]["not_compared"] == ["text has no results on two"]
    assert alone["tested"] == 0
