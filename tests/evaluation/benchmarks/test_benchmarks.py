"""The benchmarks on a hand-made shop, with an encoder that knows everything and one that knows nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from concepts import CodeModel, CodeProcessor, cache_of, shop

from evaluation.benchmarks.attributes import evaluate_attributes, without_attributes
from evaluation.benchmarks.classification import evaluate_classification, without_category
from evaluation.benchmarks.retrieval import evaluate_retrieval, search_examples
from evaluation.report import results_table
from evaluation.run import EvaluationOptions, evaluate_model
from product_data.tables import load_tables
from retrieval.encode import VectorCache


def test_a_perfect_encoder_finds_everything_in_every_direction() -> None:
    results = evaluate_retrieval(cache_of(shop()))
    assert set(results["scores"]) == {"t2mm", "i2mm", "mm2mm", "t2i", "i2t"}
    assert set(results["image_only"]) == {"t2i", "i2i", "mm2i"}
    assert results["absent"] == {}
    for scores in [*results["scores"].values(), *results["image_only"].values()]:
        assert (scores["R@1"], scores["MRR"], scores["queries"], scores["gallery"]) == (1.0, 1.0, 12, 12)
        assert scores["source"] == "queries"
        assert scores["R@1_chance"] == pytest.approx(1 / 12)
        assert scores["unanswerable"] == {"count": 0, "examples": []}


def test_a_random_encoder_finds_what_chance_finds() -> None:
    results = evaluate_retrieval(cache_of(shop(60), CodeModel(knows=False)))
    for scores in results["scores"].values():
        assert scores["R@10"] == pytest.approx(10 / 60, abs=0.15)
        assert scores["R@10_interval"][0] < 1 / 6 + 0.1


def test_the_reference_product_is_not_in_its_querys_ranking() -> None:
    query = {"query_id": "q", "text": "like concept 3", "image": "https://example.org/concept 3", "positives": ["p5"]}
    with_it = shop(queries_rows=[query])
    without_it = shop(queries_rows=[query | {"reference_product_id": "p3"}])
    # Every other product is at similarity 0 to the query: all of them stand before the right one, the reference does not.
    rank = {True: 1 / evaluate_retrieval(cache_of(with_it))["scores"]["mm2mm"]["MRR"]}
    rank[False] = 1 / evaluate_retrieval(cache_of(without_it))["scores"]["mm2mm"]["MRR"]
    assert (rank[True], rank[False]) == (12, 11)
    own = shop(queries_rows=[query | {"positives": ["p3"], "reference_product_id": "p3"}])
    results = evaluate_retrieval(cache_of(own))
    assert results["scores"]["mm2mm"] is None
    assert results["absent"]["mm2mm"] == "none of the queries has a right answer in the gallery"


def test_own_parts_stand_in_for_absent_queries_and_equal_texts_are_all_right() -> None:
    rows = [
        {"product_id": "a", "title": "concept 1", "images": ["https://example.org/concept 1"]},
        {"product_id": "b", "title": "concept 1", "images": ["https://example.org/concept 1"]},
        {"product_id": "c", "title": "concept 2", "images": ["https://example.org/concept 2"]},
        {"product_id": "d", "title": "concept 3"},
        {"product_id": "e", "images": ["https://example.org/concept 4"]},
    ]
    results = evaluate_retrieval(cache_of(shop(products_rows=rows, queries_rows=[])))
    scores = results["scores"]
    assert [scores[name] for name in ("t2mm", "i2mm", "mm2mm")] == [None] * 3
    assert results["absent"]["t2mm"] == "the data has no queries of type 'text'"
    assert (scores["t2i"]["R@1"], scores["t2i"]["queries"], scores["t2i"]["gallery"]) == (1.0, 3, 4)
    assert (scores["i2t"]["R@1"], scores["i2t"]["queries"], scores["i2t"]["gallery"]) == (1.0, 3, 4)
    assert scores["t2i"]["source"] == scores["i2t"]["source"] == "products"
    assert results["image_only"]["i2i"] is None


def test_unanswerable_queries_are_counted_and_named_and_skipped_ones_listed() -> None:
    queries = [
        {"query_id": "good", "text": "concept 1", "positives": ["p1", "gone"]},
        {"query_id": "lost", "text": "concept 1", "positives": ["gone"]},
        {"query_id": "broken", "text": "no number here", "positives": ["p1"]},
    ]
    cache = cache_of(shop(queries_rows=queries))
    scores = evaluate_retrieval(cache)["scores"]["t2mm"]
    assert scores["queries"] == 1
    assert scores["unanswerable"] == {"count": 1, "examples": ["lost"]}
    assert [(record["kind"], record["id"]) for record in cache.skipped()] == [("query", "broken")]


def test_products_without_images_are_no_image_gallery() -> None:
    rows = [{"product_id": "a", "title": "concept 1"}]
    results = evaluate_retrieval(cache_of(shop(products_rows=rows, queries_rows=[])))
    assert results["absent"]["t2i"] == "no product of the gallery has image"
    assert results["absent"]["i2t"] == "none of the products has both text and image"


def test_classification_is_right_at_each_level_and_never_sees_the_category() -> None:
    cache = cache_of(shop())
    results = evaluate_classification(cache)
    deepest = results["mm"]["deepest"]
    assert (deepest["top1"], deepest["top10"], deepest["f1"], deepest["labels"]) == (1.0, 1.0, 1.0, 12)
    assert results["mm"]["level_3"] == deepest
    assert results["i"]["deepest"]["top1"] == 1.0
    products = [record for form, record in cache.processor.seen if form in ("mm", "i")]
    labels = [record["text"] for form, record in cache.processor.seen if form == "category"]
    assert products
    assert not any("category" in record for record in products)
    assert labels[:2] == ["concept 60 > concept 61", "concept 60 > concept 62"]
    assert results["mm"]["level_1"] is None  # one label
    assert "concept 60 > concept 61 > concept 4" in labels
    # No label of level 2 is nearer than the other: a tie is a miss.
    assert results["mm"]["level_2"]["top1"] == 0.0


def test_categories_of_several_depths_are_judged_where_they_are() -> None:
    rows = [
        {"product_id": "a", "title": "concept 1", "category_path": ["concept 1"]},
        {"product_id": "b", "title": "concept 2", "category_path": ["concept 2", "below concept 2"]},
        {"product_id": "c", "title": "concept 3", "category_path": ["concept 2", "below concept 3"]},
        {"product_id": "d", "title": "concept 4"},
    ]
    results = evaluate_classification(cache_of(shop(products_rows=rows, queries_rows=[])))
    assert [results["mm"][name]["items"] for name in ("level_1", "level_2", "deepest")] == [3, 2, 3]
    assert "i" not in results
    bare = [{"product_id": "c", "title": "concept 3"}]
    assert evaluate_classification(cache_of(shop(products_rows=bare, queries_rows=[]))) == {}
    assert evaluate_attributes(cache_of(shop(products_rows=bare, queries_rows=[]))) == {}


def test_attributes_are_predicted_by_key_without_seeing_them() -> None:
    cache = cache_of(shop())
    results = evaluate_attributes(cache)
    assert results["mm"]["keys"]["look"]["top1"] == 1.0
    mean = results["mm"]["mean"]
    assert mean.pop("keys") == 1
    assert mean.pop("top1_interval") == [1.0, 1.0]
    chance = {"top1_chance": 1 / 12, "top10_chance": 10 / 12, "majority": 1 / 12}
    right = dict.fromkeys(("top1", "top10", "precision", "recall", "f1"), 1.0)
    assert mean == pytest.approx(right | chance)
    assert results["mm"]["single_valued"] == ["same"]
    assert not any("attributes" in record for form, record in cache.processor.seen if form == "mm")
    random = evaluate_attributes(cache_of(shop(60), CodeModel(knows=False)))
    assert random["mm"]["mean"]["top1"] < 0.15


def test_fields_that_repeat_a_label_are_left_out_too() -> None:
    row = {
        "product_id": "a",
        "title": "x",
        "category_path": ["Home", "Lamp"],
        "attributes": {"type": "lamp", "colour": ["Red", "home"]},
    }
    product = load_tables({"products": [row]}).products[0]
    assert without_category(product) == {"id": "a", "title": "x", "attributes": {"colour": ["Red"]}}
    assert without_attributes(product) == {"id": "a", "title": "x"}
    other = load_tables({"products": [row | {"attributes": {"colour": "red"}}]}).products[0]
    assert without_attributes(other) == {"id": "a", "title": "x", "category": ["Home", "Lamp"]}


def test_examples_take_turns_and_mark_right_products() -> None:
    examples = search_examples(cache_of(shop()), count=7, top=3)
    assert [example.query.type for example in examples] == ["text"] * 3 + ["image"] * 2 + ["both"] * 2
    for example in examples:
        (first, score, right), *others = example.results
        assert (first.product_id[1:], right) == (example.query.query_id[1:], True)
        assert score == pytest.approx(1.0)
        assert len(others) == 2
        assert not any(right for _, _, right in others)


def test_an_evaluation_is_whole_limited_and_restores_the_processor() -> None:
    processor = CodeProcessor()
    options = EvaluationOptions(split=None, limit=5, core_crop=False, progress=False, resamples=50)
    results = evaluate_model(CodeModel(), processor, shop(), model_name="perfect", options=options)
    assert (results["model"], results["benchmark"]) == ("perfect", "tables")
    assert results["scores"]["t2mm"]["gallery"] == results["scores"]["t2mm"]["queries"] == 5
    assert results["provenance"]["products"] == 5
    assert results["provenance"]["core_crop"] is False
    assert processor.core_crops == {False}
    assert processor.core_crop is True
    assert set(results["provenance"]["versions"]) >= {"python", "torch", "transformers"}
    again = evaluate_model(CodeModel(), CodeProcessor(), shop(), options=options)
    assert again["scores"] == results["scores"]


def test_one_benchmark_can_be_chosen_and_wrong_options_are_refused() -> None:
    options = EvaluationOptions(split=None, only=("classification",), progress=False)
    results = evaluate_model(CodeModel(), CodeProcessor(), shop(), options=options)
    assert results["scores"] == {}
    assert results["classification"]
    assert "attributes" not in results
    with pytest.raises(ValueError, match="expected one of retrieval, classification, attributes"):
        EvaluationOptions(only=("recall",))
    with pytest.raises(ValueError, match="limit=0; expected 1 or more"):
        EvaluationOptions(limit=0)
    empty = load_tables({"products": [], "queries": [{"query_id": "q", "text": "x", "positives": ["a"]}]})
    with pytest.raises(ValueError, match="the gallery is empty"):
        evaluate_model(CodeModel(), CodeProcessor(), empty, options=options)


def test_scores_do_not_depend_on_the_order_of_the_rows() -> None:
    tables = shop(30)
    order = np.random.default_rng(0).permutation(30)
    products = [vars_of(tables.products[int(index)]) for index in order]
    shuffled = load_tables({"products": products, "queries": []})
    first = evaluate_attributes(VectorCache(CodeModel(), CodeProcessor(), tables.products, [], progress=False))
    second = evaluate_attributes(VectorCache(CodeModel(), CodeProcessor(), shuffled.products, [], progress=False))
    assert first == second


def vars_of(row: Any) -> dict[str, Any]:
    fields = {name: getattr(row, name) for name in ("product_id", "title", "attributes")}
    return fields | {"category_path": row.category, "images": list(row.images)}


def test_the_label_set_is_that_of_the_whole_data_set_and_not_of_the_rows_that_are_evaluated() -> None:
    rows = [
        {
            "product_id": f"p{number}",
            "title": f"concept {number}",
            "category_path": [f"concept {number}"],
            "attributes": [{"key": "look", "value": f"concept {number}"}],
            "split": "test" if number < 3 else "train",
        }
        for number in range(12)
    ]
    options = EvaluationOptions(split="test", progress=False)
    results = evaluate_model(CodeModel(), CodeProcessor(), load_tables({"products": rows}), options=options)
    level = results["classification"]["mm"]["level_1"]
    assert (level["items"], level["labels"], level["top10"]) == (3, 12, 1.0)
    assert level["top1_chance"] == pytest.approx(1 / 12)
    look = results["attributes"]["mm"]["keys"]["look"]
    assert (look["items"], look["labels"]) == (3, 12)
    table = results_table([results])
    assert "chance" in table
    assert "labels" in table
    assert "| 12 |" in table.replace("  ", " ").replace("  ", " ").replace("  ", " ").replace("  ", " ")
