"""Products that are identical, or variants of one: found, reported, and counted in scores as the results say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from concepts import CodeModel, CodeProcessor
from pictures import file_of, noise

from evaluation.benchmarks.retrieval import evaluate_retrieval, make_search, search_examples
from evaluation.report import results_table
from evaluation.run import EvaluationOptions, evaluate_model
from product_data.duplicates import EqualProducts, classes
from product_data.tables import ProductRow, ProductTables, load_tables
from retrieval.encode import Scoring, VectorCache

SHOES, SIZES = 20, 12


def shoes(**changes: Any) -> list[dict[str, Any]]:
    """20 shoes in 12 sizes each; one title and one picture a shoe, so that a perfect model gives 12 equal vectors."""
    return [
        {"product_id": f"s{shoe}-{size}", "title": f"concept {shoe}", "images": [f"https://example.org/concept {shoe}"]}
        | {name: make(shoe, size) for name, make in changes.items()}
        for shoe in range(SHOES)
        for size in range(SIZES)
    ]


def queries(**changes: Any) -> list[dict[str, Any]]:
    return [
        {"query_id": f"q{shoe}", "text": f"concept {shoe}", "positives": [f"s{shoe}-7"]} | changes
        for shoe in range(SHOES)
    ]


def scores_of(
    products: list[dict[str, Any]], asked: list[dict[str, Any]], variants: str = "left_out"
) -> dict[str, Any]:
    return evaluate_retrieval(cache_of(load_tables({"products": products, "queries": asked}), variants))["scores"][
        "t2mm"
    ]


def cache_of(tables: ProductTables, variants: str = "left_out") -> VectorCache:
    scoring = Scoring(variants)
    return VectorCache(CodeModel(), CodeProcessor(), tables.products, tables.queries, scoring=scoring, progress=False)


def test_a_perfect_model_finds_every_shoe_that_is_sold_in_twelve_identical_sizes() -> None:
    scores = scores_of(shoes(), queries())
    assert (scores["R@1"], scores["R@10"], scores["queries"], scores["gallery"]) == (1.0, 1.0, SHOES, SHOES * SIZES)
    assert scores["R@1_chance"] == pytest.approx(1 / SHOES)  # 12 of 240 are right
    assert scores["equal"] == {"identical_right": SHOES, "variants_left_out": 0}


def test_what_differs_in_attributes_alone_is_a_variant_and_does_what_the_option_says() -> None:
    sized = shoes(attributes=lambda shoe, size: [{"key": "size", "value": str(36 + size)}])
    left_out = scores_of(sized, queries())
    assert (left_out["R@1"], left_out["equal"]) == (1.0, {"identical_right": 0, "variants_left_out": SHOES})
    assert left_out["R@1_chance"] == pytest.approx(1 / (SHOES * SIZES - (SIZES - 1)))
    right = scores_of(sized, queries(), "right")
    assert (right["R@1"], right["equal"]) == (1.0, {"identical_right": 0, "variants_right": SHOES})
    wrong = scores_of(sized, queries(), "wrong")
    assert (wrong["R@10"], wrong["equal"]) == (0.0, {"identical_right": 0, "variants_wrong": 0})


def test_products_of_a_group_are_variants_unless_the_query_tells_them_apart() -> None:
    grouped = shoes(
        title=lambda shoe, size: f"size {size} of concept {shoe}",
        images=lambda shoe, size: [f"https://example.org/{size}/concept {shoe}"],
        group=lambda shoe, size: f"g{shoe}",
        category_path=lambda shoe, size: ["Shoes"],
    )
    assert scores_of(grouped, queries())["R@1"] == 1.0
    known = [
        query | {"negatives": [f"s{number}-{size}" for size in range(7)]} for number, query in enumerate(queries())
    ]
    assert scores_of(grouped, known)["MRR"] == pytest.approx(1 / 8)  # seven sizes are known to be wrong answers
    like_this = [query | {"reference_product_id": f"s{number}-0"} for number, query in enumerate(queries())]
    assert scores_of(grouped, like_this)["MRR"] == pytest.approx(1 / 11)  # ten others, and the reference left out


def test_a_group_that_spans_categories_is_a_kind_of_thing_and_not_one_product() -> None:
    kinds = shoes(
        title=lambda shoe, size: f"size {size} of concept {shoe}",
        images=lambda shoe, size: [f"https://example.org/{size}/concept {shoe}"],
        group=lambda shoe, size: f"g{shoe}",
        category_path=lambda shoe, size: ["Fruit", f"Kind {size}"],
    )
    assert scores_of(kinds, queries())["R@10"] == 0.0


def test_identical_products_are_right_on_the_sheet_and_do_not_make_a_query_unsure() -> None:
    tables = load_tables({"products": shoes(), "queries": queries()})
    cache = cache_of(tables)
    for example in search_examples(cache, top=5):
        assert [right for _, _, right in example.results] == [True] * 5
    search = make_search(cache, "t2mm", ("text", "mm"), {})
    assert search is not None
    assert all(len(repeated) == SHOES * (SIZES - 1) for repeated in search.repeated)


def test_results_state_the_choice_and_the_report_says_how_often_it_was_made() -> None:
    tables = load_tables({"products": shoes(), "queries": queries()})
    options = EvaluationOptions(only=("retrieval",), progress=False, split=None)
    results = evaluate_model(CodeModel(), CodeProcessor(), tables, options=options)
    assert results["equal_products"] == {"identical": "right", "variants": "left_out"}
    json.dumps(results)
    # 20 queries search products, and their pictures.
    assert "identical products count as right in 40 searches" in results_table([results])
    with pytest.raises(ValueError, match="variants='all'; expected one of left_out, right, wrong"):
        EvaluationOptions(variants="all")


def test_the_table_report_names_identical_products_and_counts_variants() -> None:
    report = load_tables({"products": shoes(), "queries": queries()}).report
    assert report.count("identical_products") == SHOES * (SIZES - 1)
    assert "'s0-0' = 's0-1' = 's0-2' and 9 more" in str(report)
    assert "variants: 240 products are 20 products in several variants" in str(report)
    distinct = load_tables({"products": shoes()[::SIZES]}).report
    assert distinct.count("identical_products") == 0
    assert "variants" not in str(distinct)


def test_pictures_are_equal_by_what_is_in_them_wherever_they_lie(tmp_path: Path) -> None:
    for name, seed in (("a.png", 1), ("b.png", 1), ("c.png", 2)):
        (tmp_path / name).write_bytes(file_of(noise(8, 8, seed)))
    rows = [
        ProductRow("file", "Red  Mug", images=(str(tmp_path / "a.png"),)),
        ProductRow("copy", "red mug", images=(str(tmp_path / "b.png"),)),
        ProductRow("bytes", "Red Mug", images=(file_of(noise(8, 8, 1)),)),
        ProductRow("other picture", "Red Mug", images=(str(tmp_path / "c.png"),)),
        ProductRow("other title", "Blue Mug", images=(file_of(noise(8, 8, 1)),)),
        ProductRow("gone", "Red Mug", images=(str(tmp_path / "gone.png"),)),
        ProductRow("nothing"),
        ProductRow("nothing either"),
    ]
    equal = EqualProducts(rows)
    assert list(classes(equal.identical())) == [[0, 1, 2]]
    assert list(classes(equal.identical("i"))) == [[0, 1, 2, 4]]
    assert list(classes(equal.identical("t"))) == [[0, 1, 2, 3, 5]]
    assert list(classes(equal.variants)) == [[0, 1, 2]]


def test_equal_titles_without_a_picture_are_no_variants_where_attributes_differ() -> None:
    rows = [ProductRow(name, "Mug", attributes={"brand": (name,)}) for name in ("a", "b")]
    assert list(classes(EqualProducts(rows).variants)) == []
    assert list(classes(EqualProducts([ProductRow("a", "Mug"), ProductRow("b", "Mug")]).variants)) == [[0, 1]]


def test_variants_join_through_group_and_looks_in_any_order() -> None:
    rows = [
        ProductRow("a", "one", images=(file_of(noise(8, 8, 1)),), group="x"),
        ProductRow("b", "two", images=(file_of(noise(8, 8, 2)),), group="y"),
        ProductRow("c", "three", images=(file_of(noise(8, 8, 3)),)),
        ProductRow("d", "one", images=(file_of(noise(8, 8, 1)),), group="y", attributes={"size": ("4",)}),
        ProductRow("e", "four", images=(file_of(noise(8, 8, 4)),), group="x"),
    ]
    assert list(classes(EqualProducts(rows).variants)) == [[0, 1, 3, 4]]
