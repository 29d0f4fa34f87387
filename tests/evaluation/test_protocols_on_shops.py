"""Cut-offs, grades, the matrix of forms, attribute-level recall and the papers' keys, on hand-made shops."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from concepts import CodeModel, CodeProcessor, cache_of, shop

from evaluation.benchmarks.attribute_recall import evaluate_attribute_recall
from evaluation.benchmarks.attributes import (
    _text_without_attributes,
    evaluate_attributes,
    evaluate_shown_attributes,
    grouped,
)
from evaluation.benchmarks.classification import evaluate_classification
from evaluation.benchmarks.form_matrix import evaluate_form_matrix
from evaluation.benchmarks.retrieval import evaluate_retrieval
from evaluation.report import comparison_table, results_table
from evaluation.run import EvaluationOptions, evaluate_model
from moon3.__main__ import main
from product_data.errors import OptionError
from product_data.tables import load_tables
from retrieval.encode import Scoring, VectorCache

COLOURS = ("red", "blue", "green")


def coloured(products: int = 30, **changes: Any) -> Any:
    """A shop whose products have colours (some none, some two) and, every second one, a material."""
    rows, queries = [], []
    for number in range(products):
        values = [COLOURS[number % 3], *(["red"] if number % 7 == 0 else [])] if number % 5 else []
        attributes = [{"key": "colour", "value": value} for value in dict.fromkeys(values)]
        attributes += [{"key": "material", "value": f"cloth {number % 8}"}] if number % 2 else []
        rows.append({"product_id": f"p{number}", "title": f"concept {number}", "attributes": attributes} | changes)
        query = {"query_id": f"q{number}", "text": f"I want concept {number}", "positives": [f"p{number}"]}
        if number % 4 == 0:
            query |= {"reference_product_id": f"p{(number + 3) % products}"}
        queries.append(query)
    return load_tables({"products": rows, "queries": queries})


def test_attribute_recall_equals_a_loop_over_the_rankings() -> None:
    tables = coloured()
    cache = cache_of(tables, CodeModel(knows=False))
    cutoffs = (1, 3, 8)
    found = evaluate_attribute_recall(cache, cutoffs=cutoffs, resamples=5)
    assert list(found) == ["t2mm"]
    gallery, queries = cache.gallery("mm").vectors, cache.all_queries().vectors
    for key in ("colour", "material"):
        hits: dict[int, list[float]] = {k: [] for k in cutoffs}
        shares: dict[int, list[float]] = {k: [] for k in cutoffs}
        for row, query in enumerate(tables.queries):
            answer = next(product for product in tables.products if product.product_id == query.positives[0])
            wanted = set(answer.attributes.get(key, ()))
            if not wanted:
                continue
            ranked = []
            for place, product in enumerate(tables.products):
                if key in product.attributes and product.product_id != query.reference_product_id:
                    ranked.append(
                        (-float(queries[row] @ gallery[place]), not wanted.isdisjoint(product.attributes[key]))
                    )
            ranked.sort()
            for k in cutoffs:
                hits[k].append(any(agrees for _, agrees in ranked[:k]))
                shares[k].append(np.mean([agrees for _, agrees in ranked[:k]]))
        scores = found["t2mm"]["keys"][key]
        assert scores["queries"] == len(hits[1])
        for k in cutoffs:
            assert scores[f"recall@{k}"] == pytest.approx(np.mean(hits[k]))
            assert scores[f"agreement@{k}"] == pytest.approx(np.mean(shares[k]))
            low, high = scores[f"recall@{k}_interval"]
            assert 0 <= low <= high <= 1
    means = [found["t2mm"]["keys"][key]["recall@3"] for key in ("colour", "material")]
    assert found["t2mm"]["mean"]["recall@3"] == pytest.approx(np.mean(means))
    assert found["t2mm"]["mean"]["keys"] == 2


def test_a_perfect_search_agrees_at_once_and_chance_is_counted() -> None:
    scores = evaluate_attribute_recall(cache_of(coloured()), resamples=5)["t2mm"]["keys"]["material"]
    assert scores["recall@1"] == scores["agreement@1"] == 1.0
    assert 0 < scores["recall@1_chance"] < 0.5
    assert evaluate_attribute_recall(cache_of(coloured(attributes=[])), resamples=5) == {}


def test_the_matrix_holds_nine_cells_and_the_five_directions_among_them() -> None:
    cache = cache_of(shop(), CodeModel(knows=False))
    matrix = evaluate_form_matrix(cache, cutoffs=(1, 2), resamples=5)
    found = evaluate_retrieval(cache, cutoffs=(1, 2), resamples=5)
    assert matrix.pop("absent") == {}
    assert {form: set(cells) for form, cells in matrix.items()} == {form: {"mm", "t", "i"} for form in ("t", "i", "mm")}
    for name, scores in (found["scores"] | found["image_only"]).items():
        asked, form = name.split("2")
        assert matrix[asked][form] == scores
    assert all(cell["queries"] == 12 for cells in matrix.values() for cell in cells.values())
    bare = evaluate_form_matrix(cache_of(shop(queries_rows=[])), resamples=5)
    assert bare["mm"] == {"mm": None, "t": None, "i": None}
    assert bare["absent"]["mm2t"] == "the data has no queries of type 'both'"
    assert bare["t"]["i"]["source"] == "products"


def test_grades_count_in_ndcg_and_identical_products_have_the_grade_of_their_twin() -> None:
    rows = [{"product_id": f"p{number}", "title": f"concept {number}"} for number in range(4)]
    rows.append({"product_id": "twin", "title": "concept 1"})
    query = {"query_id": "q", "text": "concept 1", "positives": ["p1", "p2"], "positive_weights": [1, 3]}
    scores = evaluate_retrieval(cache_of(shop(products_rows=rows, queries_rows=[query])), resamples=2)["scores"]["t2mm"]
    # p1 and its twin are first, with grade 1 each; p2, of grade 3, ties with the two others and stands behind them.
    dcg = 1 + 1 / np.log2(3) + 3 / np.log2(6)
    assert scores["nDCG@5"] == pytest.approx(dcg / (3 + 1 / np.log2(3) + 1 / np.log2(4)))
    assert scores["nDCG@1"] == pytest.approx(1 / 3)
    assert scores["graded"]
    plain = evaluate_retrieval(cache_of(shop()), resamples=2)["scores"]["t2mm"]
    assert (plain["graded"], plain["nDCG@10"]) == (False, 1.0)


def test_image_search_recall_is_named_and_says_whether_its_queries_are_derived() -> None:
    found = evaluate_retrieval(cache_of(shop()), resamples=2)
    named = found["image_search_recall"]
    assert (named["direction"], named["R@1"], named["queries"], named["derived"]) == ("i2mm", 1.0, 12, 0.0)
    assert named["R@10_interval"] == found["scores"]["i2mm"]["R@10_interval"]
    query = {"query_id": "i", "image": "https://example.org/concept 1", "positives": ["p1"], "derived": True}
    assert (
        evaluate_retrieval(cache_of(shop(queries_rows=[query])), resamples=2)["image_search_recall"]["derived"] == 1.0
    )
    assert "image_search_recall" not in evaluate_retrieval(cache_of(shop(queries_rows=[])), resamples=2)


CHINESE = [
    {"product_id": "a", "title": "concept 1", "attributes": {"颜色分类": ["concept 1"], "赠品": ["x"]}},
    {"product_id": "b", "title": "concept 2", "attributes": {"主色": ["concept 2"], "color": ["concept 4"]}},
    {"product_id": "c", "title": "concept 3", "attributes": {"颜色": ["concept 1"]}},
]


def test_the_papers_keys_join_what_shops_call_them() -> None:
    assert grouped({"颜色": ("红",), "主色": ("红", "蓝"), "赠品": ("x",)}, "paper") == {"colour": ("红", "蓝")}
    cache = cache_of(shop(products_rows=CHINESE, queries_rows=[]))
    own, paper = evaluate_attributes(cache, resamples=2), evaluate_attributes(cache, resamples=2, keys="paper")
    assert own == {}  # every key has one value
    assert list(paper["mm"]["keys"]) == ["colour"]
    scores = paper["mm"]["keys"]["colour"]
    assert (scores["items"], scores["labels"], scores["top1"]) == (3, 3, pytest.approx(2 / 3))


def test_accuracy_over_all_pairs_counts_each_pair_once() -> None:
    rows = [
        {
            "product_id": f"p{number}",
            "title": f"concept {number}",
            "attributes": {"look": [f"concept {40 + number % 3}"]}
            | ({"kind": [f"concept {50 + number % 4}"]} if number % 5 else {}),
        }
        for number in range(30)
    ]
    cache = cache_of(shop(products_rows=rows, queries_rows=[]), CodeModel(knows=False))
    found = evaluate_attributes(cache, resamples=5)["mm"]
    keys = found["keys"]
    pairs = sum(scores["items"] for scores in keys.values())
    right = sum(scores["items"] * scores["top1"] for scores in keys.values())
    assert found["all"]["pairs"] == pairs == 54
    assert found["all"]["top1"] == pytest.approx(right / pairs)
    assert found["all"]["top10"] == 1.0  # three looks and four kinds
    assert found["relaxed"] is None


def test_what_the_picture_and_the_text_show_is_judged_apart() -> None:
    rows = [
        {
            "product_id": f"p{number}",
            "title": f"concept {number}",
            "images": [f"https://example.org/concept {number}"],
            "attributes": {"look": [f"concept {number}"]},
            "attributes_image": {"look": [f"concept {number}"]} if number else None,
            "attributes_text": {"look": [f"concept {(number + 1) % 5}"]},
        }
        for number in range(5)
    ]
    cache = cache_of(shop(products_rows=rows, queries_rows=[]))
    found = evaluate_shown_attributes(cache, resamples=2)
    picture, text = found["i"]["keys"]["look"], found["t"]["keys"]["look"]
    assert (picture["top1"], picture["items"], picture["labels"]) == (1.0, 4, 4)
    assert (text["top1"], text["items"], text["labels"]) == (0.0, 5, 5)
    assert evaluate_shown_attributes(cache_of(shop()), resamples=2) == {}


def test_the_text_does_not_tell_the_attributes_that_it_is_judged_on() -> None:
    row = {
        "product_id": "p",
        "title": "x",
        "category_path": ["Kitchen", "Mug"],
        "attributes_text": {"category": ["mug"]},
    }
    product = load_tables({"products": [row]}).products[0]
    assert "category" not in _text_without_attributes(product)
    other = load_tables({"products": [row | {"attributes_text": {"category": ["cup"]}}]}).products[0]
    assert "category" in _text_without_attributes(other)


def test_levels_bear_their_own_names_and_labels_of_other_rows_count() -> None:
    tables = shop()
    more = load_tables({"products": [{"product_id": "x", "title": "x", "category_path": ["concept 60", "other"]}]})
    scoring = Scoring(label_products=[*tables.products, *more.products])
    cache = VectorCache(CodeModel(), CodeProcessor(), tables.products, [], scoring=scoring, progress=False)
    found = evaluate_classification(cache, resamples=2, level_names=("industry", "level_1"))["mm"]
    assert list(found) == ["industry", "level_1", "level_3", "deepest"]
    assert found["level_1"]["labels"] == 3
    assert found["level_1"]["relaxed"] is None
    assert found["level_3"]["relaxed"] == {"k": 10, "accuracy": 1.0, "precision": 1.0, "recall": 1.0, "f1": 1.0}


def test_all_protocols_of_a_model_are_in_its_results_and_tables() -> None:
    only = ("retrieval", "classification", "attributes", "matrix", "attribute_recall", "shown_attributes")
    options = EvaluationOptions(split=None, only=only, cutoffs=(2, 10, 20), resamples=2, progress=False)
    results = evaluate_model(CodeModel(), CodeProcessor(), shop(30), options=options)
    assert results["cutoffs"] == [2, 10, 20]
    assert {"R@2", "R@20", "nDCG@20"} <= results["scores"]["t2mm"].keys()
    assert results["shown_attributes"] == {}
    table = results_table([results])
    for words in ("R@2 ", "R@20", "chance R@10", "t→t", "mm→t", "precision, in 10", "agreement@20", "mean of 2 keys"):
        assert words in table
    assert "nDCG" not in table  # no grades
    assert "nDCG@20, %" in comparison_table([results], metric="nDCG@20")
    with pytest.raises(OptionError, match="expected one of R@2, R@10, R@20, nDCG@2, nDCG@10, nDCG@20, MRR"):
        comparison_table([results], metric="R@1")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"cutoffs": ()}, r"cutoffs=\(\); expected numbers of 1 or more"),
        ({"cutoffs": (0, 5)}, "expected numbers of 1 or more"),
        ({"attribute_keys": "ten"}, "attribute_keys='ten'; expected one of own, paper"),
        (
            {"only": ("retrieval", "colour")},
            "expected one of retrieval, classification, attributes, matrix, attribute_recall",
        ),
    ],
)
def test_options_that_cannot_be_used_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        EvaluationOptions(**values)


def test_the_command_takes_cutoffs_keys_and_protocols(
    tiny_moon: Callable[..., Path], tmp_path: Path, capsys: Any
) -> None:
    rows = [
        {"query": f"买 {name}", "doc_title": name, "doc_attributes": f"颜色分类：{name[:2]}"}
        for name in ("红色 包", "蓝色 鞋", "黑色 帽")
    ]
    path, output = tmp_path / "rows.jsonl", tmp_path / "results.json"
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    arguments = ["evaluate", "--model", str(tiny_moon()), "--benchmark", f"m5product={path}", "--device", "cpu"]
    protocols = ["--only", "retrieval,attributes,matrix,attribute-recall", "--attribute-keys", "paper"]
    assert main([*arguments, *protocols, "--output", str(output)]) == 0
    results = json.loads(output.read_text(encoding="utf-8"))
    assert results["cutoffs"] == [10, 100, 500]
    assert results["scores"]["t2mm"]["R@500"] == 1.0
    assert list(results["attributes"]["mm"]["keys"]) == list(results["attribute_recall"]["t2mm"]["keys"]) == ["colour"]
    assert results["matrix"]["t"]["t"]["queries"] == 3
    assert results["attribute_keys"] == "paper"
    assert main([*arguments, "--cutoffs", "3,1", "--only", "retrieval", "--output", str(output)]) == 0
    assert json.loads(output.read_text(encoding="utf-8"))["cutoffs"] == [1, 3]
    capsys.readouterr()
    assert main([*arguments, "--cutoffs", "ten"]) == 2
    assert "--cutoffs: found 'ten'; expected numbers such as 1,5,10" in capsys.readouterr().err
