"""Queries that reason only when unsure: each search has its own gate, each query reasons at most once, results say so."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
from pictures import file_of, plain

from evaluation.benchmarks.retrieval import DIRECTIONS, Search, evaluate_retrieval, make_search, search_examples
from evaluation.reasonings import reasoning_note
from evaluation.run import EvaluationOptions, evaluate_model
from moon3.__main__ import main
from product_data.tables import ProductTables, load_tables
from retrieval.encode import VectorCache, load_for_evaluation

Pair = tuple[Any, Any]
COLOURS = ("red", "blue", "green", "black", "white", "brown", "navy", "orange")


def shop() -> ProductTables:
    products = [
        {"product_id": colour, "title": f"{colour} shoes of cotton", "images": [file_of(plain(colour, 32 + 4 * place))]}
        for place, colour in enumerate(COLOURS)
    ]
    queries: list[dict[str, Any]] = []
    for place, colour in enumerate(COLOURS):
        other = COLOURS[place - 1]
        queries += [
            {"query_id": f"t {colour}", "text": f"shoes, {colour}", "positives": [colour]},
            {"query_id": f"i {colour}", "image": file_of(plain(colour, 64)), "positives": [colour]},
        ]
        same = {"image": file_of(plain(other, 40)), "text": f"in {colour}", "positives": [colour]}
        queries.append({"query_id": f"b {colour}", "reference_product_id": other, **same})
    return load_tables({"products": products, "queries": queries})


@pytest.fixture(scope="module")
def folder(tiny_moon: Callable[..., Path]) -> Path:
    return tiny_moon("qwen3_vl", preset="moon3", trained=True)


@pytest.fixture(scope="module")
def moon3(folder: Path) -> Pair:
    return load_for_evaluation(folder, device="cpu")


@pytest.fixture(scope="module")
def make(moon3: Pair) -> Callable[..., VectorCache]:
    tables = shop()

    def cache(**settings: Any) -> VectorCache:
        options = {"batch_size": 8, "progress": False}
        if set(settings.values()) != {"none"}:
            options["thinking"] = {"max_tokens": 4}
        return VectorCache(*moon3, tables.products, tables.queries, **settings, **options)

    return cache


def search(cache: VectorCache, name: str) -> Search:
    found = make_search(cache, name, DIRECTIONS[name], {})
    assert found is not None
    return found


def slow_margins(plain: Search) -> np.ndarray:
    margins = []
    for vector, left_out in zip(plain.vectors, plain.exclude, strict=True):
        scores = sorted((float(vector @ item) for row, item in enumerate(plain.gallery) if row not in left_out))
        margins.append(scores[-1] - scores[-2])
    return np.asarray(margins)


@pytest.mark.parametrize("products", ["none", "generate"])
@pytest.mark.parametrize("name", ["t2mm", "mm2mm", "i2t"])
def test_the_unsure_half_of_a_search_has_reasoned_vectors_and_the_other_half_none(
    make: Callable[..., VectorCache], products: str, name: str
) -> None:
    plain, thought = (
        search(make(query_reasoning=way, product_reasoning=products), name) for way in ("none", "generate")
    )
    margin = slow_margins(plain)
    threshold = float(np.sort(margin)[3:5].mean())
    cache = make(query_reasoning="auto", product_reasoning=products, gate_threshold=threshold)
    found = search(cache, name)
    assert found.reasoned is not None
    assert found.reasoned.tolist() == (margin < threshold).tolist()
    assert found.reasoned.sum() == 4
    expected = np.where(found.reasoned[:, None], thought.vectors, plain.vectors)
    np.testing.assert_allclose(found.vectors, expected, atol=1e-4)
    assert (found.indices, found.positives, found.exclude) == (plain.indices, plain.positives, plain.exclude)
    if name == "mm2mm":
        assert all(len(left_out) == 1 for left_out in found.exclude)
    scores = evaluate_retrieval(cache, resamples=5)["scores"]
    assert scores[name]["reasoned"] == 0.5
    assert scores[name]["R@1"] == float(np.mean(found.ranks() <= 1))


def test_at_the_ends_the_gate_is_none_and_generate(make: Callable[..., VectorCache]) -> None:
    for threshold, way, share in ((0.0, "none", 0.0), (2.0, "generate", 1.0)):
        cache = make(query_reasoning="auto", gate_threshold=threshold)
        found, expected = (evaluate_retrieval(one, resamples=5) for one in (cache, make(query_reasoning=way)))
        for name in DIRECTIONS:
            assert found["scores"][name].pop("reasoned") == share
        assert {name: found["scores"][name]["R@1"] for name in DIRECTIONS} == {
            name: expected["scores"][name]["R@1"] for name in DIRECTIONS
        }
        assert len(cache.reasonings()) == share * 24


def test_a_query_reasons_once_for_all_the_searches_that_it_is_unsure_in(
    make: Callable[..., VectorCache], monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = make(query_reasoning="auto", gate_threshold=0.02)
    asked: list[int] = []
    think = VectorCache._reason_about
    monkeypatch.setattr(
        VectorCache, "_reason_about", lambda self, indices: asked.extend(indices) or think(self, indices)
    )
    searches = [search(cache, name) for name in DIRECTIONS]
    search_examples(cache)
    unsure = {
        index
        for one in searches
        for index, reasoned in zip(one.indices, np.asarray(one.reasoned), strict=True)
        if reasoned
    }
    assert 0 < len(unsure) <= 24
    assert len(asked) == len(set(asked))
    assert unsure <= set(asked)
    written = [one.record_id for one in cache.reasonings()]
    assert written == [cache.queries[index].query_id for index in sorted(asked)]


def test_a_gallery_of_one_product_leaves_nothing_to_be_unsure_of(moon3: Pair) -> None:
    tables = load_tables(
        {
            "products": [{"product_id": "a", "title": "shoe"}],
            "queries": [{"query_id": "q", "text": "x", "positives": ["a"]}],
        }
    )
    options = EvaluationOptions(
        split=None, only=("retrieval",), query_reasoning="auto", gate_threshold=2, progress=False
    )
    assert evaluate_model(*moon3, tables, options=options)["scores"]["t2mm"]["reasoned"] == 0.0


def test_the_command_line_says_which_threshold_and_which_share(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--model", str(folder), "--benchmark", "catalogue", "--catalogue-products", "40", "--device", "cpu"]
    arguments += ["--only", "retrieval", "--query-reasoning", "auto", "--max-reasoning-tokens", "2"]
    paths = ["--output", str(tmp_path / "r.json"), "--reasonings", str(tmp_path / "r.parquet")]
    assert main(["evaluate", *arguments, *paths, "--gate-threshold", "0.01", "--sheet", str(tmp_path / "s.png")]) == 0
    results = json.loads((tmp_path / "r.json").read_text())
    settings = {name: value for name, value in results["reasoning"].items() if name not in ("written", "agreement")}
    assert settings == {"query": "auto", "product": "none", "gate_threshold": 0.01, "max_reasoning_tokens": 2}
    assert results["provenance"]["limit"] is None
    scores = [one for one in results["scores"].values() if one]
    assert all(0 <= one["reasoned"] <= 1 for one in scores)
    assert any(one["reasoned"] > 0 for one in scores)
    rows = pyarrow.parquet.read_table(tmp_path / "r.parquet").to_pylist()
    assert len(rows) == results["reasoning"]["written"]["query"]["written"] > 0
    printed = capsys.readouterr().out
    assert f"{folder.name} (queries reason below a margin of 0.01, ≤ 2)" in printed
    assert "% reasoned" in printed
    assert main(["report", str(tmp_path / "r.json")]) == 0


def test_the_note_behind_a_name_tells_the_gate() -> None:
    settings = {"query": "auto", "product": "generate", "gate_threshold": 0.05, "max_reasoning_tokens": 32}
    assert reasoning_note(settings) == " (products reason, queries below a margin of 0.05, ≤ 32)"


def test_what_does_not_go_together_is_refused(moon3: Pair, tiny_moon: Callable[..., Path]) -> None:
    for settings, message in (
        (
            {"gate_threshold": 0.1},
            "gate_threshold=0.1 with query_reasoning='none'; expected query_reasoning='auto'",
        ),
        ({"query_reasoning": "auto", "gate_threshold": 2.5}, r"gate_threshold=2.5; expected a number in \[0, 2\]"),
        ({"query_reasoning": "auto", "gate_threshold": float("nan")}, "gate_threshold=nan"),
        ({"product_reasoning": "auto"}, "reasoning='auto'; expected one of none, generate"),
    ):
        with pytest.raises(ValueError, match=message):
            VectorCache(*moon3, [], [], **settings)
        with pytest.raises(ValueError, match=message):
            EvaluationOptions(**settings)
    moon1 = load_for_evaluation(tiny_moon(), device="cpu")
    with pytest.raises(ValueError, match="reasoning='auto': this model .* does not reason"):
        evaluate_model(*moon1, shop(), options=EvaluationOptions(query_reasoning="auto"))
