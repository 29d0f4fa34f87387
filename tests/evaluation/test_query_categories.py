"""Queries whose answer is a category: classified against the label texts, or a reason why not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from concepts import CodeModel, CodeProcessor, shop

from evaluation.benchmarks.query_categories import category_labels
from evaluation.report import results_table
from evaluation.run import EvaluationOptions, evaluate_model
from product_data.tables import ProductTables, TableError, load_tables


def photos(categories: list[list[str]], **fields: Any) -> list[dict[str, Any]]:
    return [
        {"query_id": f"c{n}", "image": f"https://example.org/concept {n}", "positive_categories": names} | fields
        for n, names in enumerate(categories)
    ]


def evaluated(tables: ProductTables, **options: Any) -> dict[str, Any]:
    chosen = EvaluationOptions(**{"progress": False, "split": None} | options)
    return evaluate_model(CodeModel(), CodeProcessor(), tables, options=chosen)


def test_photos_are_classified_against_the_categories_that_queries_have_without_any_product() -> None:
    queries = photos([["concept 0"], ["concept 9", "concept 1"], ["concept 2"], ["concept 0"]])
    tables = load_tables({"products": [], "queries": queries})
    assert tables.report.ok
    results = evaluated(tables)
    scores = results["query_categories"]["image"]
    assert (scores["items"], scores["labels"], scores["skipped"]) == (4, 4, 0)
    assert scores["top1"] == 0.75  # the fourth photo shows concept 3 and is said to be a concept 0
    assert scores["top1_chance"] == pytest.approx((1 + 2 + 1 + 1) / 4 / 4)
    assert scores["majority"] == 0.5
    table = results_table([results])
    assert "category of queries" in table
    json.dumps(results)


def test_they_are_no_unanswerable_queries_of_retrieval() -> None:
    tables = shop()
    both = load_tables(
        {
            "products": [{"product_id": "p1", "title": "concept 1"}, {"product_id": "p2", "title": "concept 2"}],
            "queries": [
                {"query_id": "t", "text": "concept 1", "positives": ["p1"]},
                *photos([["concept 1"], ["concept 2"]], image=None, text="concept 1"),
            ],
        }
    )
    assert tables.queries
    results = evaluated(both)
    assert results["scores"]["t2mm"]["queries"] == 1
    assert results["scores"]["t2mm"]["unanswerable"]["count"] == 0
    assert results["query_categories"]["text"]["items"] == 2


def test_the_labels_are_those_of_the_whole_data_set_and_of_its_products() -> None:
    products = [
        {"product_id": f"p{n}", "title": f"concept {n}", "category_path": ["A", f"concept {n}"], "split": "train"}
        for n in range(5)
    ]
    queries = [*photos([["concept 0"], ["concept 1"]], split="test"), *photos([["concept 7"]], split="train")]
    queries = [query | {"query_id": f"c{n}"} for n, query in enumerate(queries)]
    tables = load_tables({"products": products, "queries": queries})
    assert category_labels(tables.products, tables.queries) == ["concept 0", "concept 1", "concept 7"]
    scores = evaluated(tables, split="test")["query_categories"]["image"]
    assert (scores["items"], scores["labels"]) == (2, 3)
    leaves = load_tables({"products": products, "queries": queries[:2]})
    assert len(category_labels(leaves.products, leaves.queries)) == 5
    paths = photos([["A > concept 0"], ["A"]])
    named = load_tables({"products": products, "queries": paths})
    assert category_labels(named.products, named.queries) == ["A"] + [f"A > concept {n}" for n in range(5)]


def test_one_category_alone_is_no_benchmark_and_the_results_say_so() -> None:
    tables = load_tables(
        {"products": [{"product_id": "p", "title": "concept 0"}], "queries": photos([["concept 0"]] * 2)}
    )
    results = evaluated(tables)
    assert results["query_categories"] == {}
    assert "the only category of queries is 'concept 0'" in results["absent"]["query_categories"]


def test_photos_that_cannot_be_read_are_counted_as_skipped() -> None:
    queries = [
        *photos([["concept 0"], ["concept 1"]]),
        *photos([["concept 1"]], query_id="x", image="https://example.org/none"),
    ]
    tables = load_tables({"products": [], "queries": queries})
    scores = evaluated(tables)["query_categories"]["image"]
    assert (scores["items"], scores["skipped"]) == (2, 1)
    unread = load_tables(
        {"products": [], "queries": queries[2:] + photos([["concept 2"]], image="https://example.org/no")}
    )
    assert evaluated(unread)["absent"]["query_categories, image"] == "all 2 queries with categories were skipped"


def test_a_limit_keeps_them_and_tables_with_neither_are_still_refused() -> None:
    tables = load_tables(
        {"products": [{"product_id": "p", "title": "concept 0"}], "queries": photos([["concept 0"], ["concept 1"]])}
    )
    assert evaluated(tables, limit=1)["query_categories"]["image"]["items"] == 2
    empty = load_tables({"products": [], "queries": [{"query_id": "q", "text": "concept 1", "positives": ["gone"]}]})
    assert empty.report.count("no_products") == 1
    with pytest.raises(TableError, match="the gallery is empty"):
        evaluated(empty)


def test_regions_of_street_photos_are_a_benchmark(shared_data: Path) -> None:
    tables = load_tables(shared_data / "street")
    tables.report.raise_if_fatal()
    labels = category_labels(tables.products, tables.queries)
    assert len(labels) > 20
    assert all(query.box is not None for query in tables.queries)
