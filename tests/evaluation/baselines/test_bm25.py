import math

import numpy as np
import pytest
from pictures import file_of, plain

from evaluation.baselines.bm25 import BM25Cache, bm25_scores, product_text, words
from evaluation.run import EvaluationOptions, evaluate_model
from product_data.tables import ProductRow, load_tables
from retrieval.encode import load_for_evaluation

OPTIONS = EvaluationOptions(
    split=None, only=("retrieval", "classification", "attributes", "matrix"), resamples=10, progress=False
)

DOCUMENTS = ["red shoes", "blue shoes, red laces and red soles", "mug", ""]


def slow_score(query, document, documents, k1=1.2, b=0.75):
    mean = sum(len(words(one)) for one in documents) / len(documents)
    total = 0.0
    for word in words(query):
        having = sum(word in words(one) for one in documents)
        count = words(document).count(word)
        idf = math.log(1 + (len(documents) - having + 0.5) / (having + 0.5))
        total += idf * count * (k1 + 1) / (count + k1 * (1 - b + b * len(words(document)) / mean))
    return total


def test_scores_are_those_of_the_formula():
    queries = ["red shoes", "RED! laces", "nothing like it", ""]
    found = bm25_scores(queries, DOCUMENTS)
    expected = [[slow_score(query, document, DOCUMENTS) for document in DOCUMENTS] for query in queries]
    np.testing.assert_allclose(found, expected, atol=1e-12)
    assert found[0].argmax() == 0
    assert found[1].argmax() == 1
    assert not found[2:].any()


def test_documents_without_a_word_and_no_documents_have_no_score():
    assert bm25_scores(["red"], ["", ""]).tolist() == [[0, 0]]
    assert bm25_scores(["red"], []).shape == (1, 0)


def test_everything_written_of_a_product_is_searched():
    product = ProductRow("1", "Mug", "for tea", ("Home", "Mugs"), {"colour": ("red", "blue")}, ("photo.jpg",))
    assert product_text(product).split() == ["Mug", "for", "tea", "Home", "Mugs", "colour", "red", "blue"]


PRODUCTS = [
    {"product_id": "a", "title": "Red shoes", "category": "Home > Shoes", "attributes": {"colour": "red"}},
    {"product_id": "b", "title": "Blue shoes, red laces and red soles", "category": "Home > Shoes > Laces"},
    {"product_id": "c", "title": "A mug", "category": "Home > Mugs", "attributes": {"colour": "blue"}},
    {"product_id": "d", "title": "A red mug with a blue sole", "category": "Home > Mugs"},
]
QUERIES = [
    {"query_id": "1", "text": "red shoes", "positives": ["a"]},
    {"query_id": "2", "text": "blue laces, red red", "positives": ["b"]},
    {"query_id": "3", "text": "mug", "positives": ["d"]},
]


def with_pictures(rows):
    return [row | {"images": [file_of(plain("red"))]} for row in rows]


def test_the_vectors_of_the_cache_have_the_scores_as_their_dot_products():
    tables = load_tables({"products": PRODUCTS, "queries": QUERIES})
    model, processor = load_for_evaluation("bm25", device="cpu")
    cache = BM25Cache(model, processor, tables.products, tables.queries)
    documents = [product_text(row) for row in tables.products]
    expected = bm25_scores([row.text for row in tables.queries], documents)
    for form in ("mm", "t"):  # no product has a picture, so that both forms are texts
        found = cache.all_queries().vectors @ cache.gallery(form).vectors.T
        np.testing.assert_allclose(found, expected, atol=1e-12)
    assert expected.max() > 1


def test_text_products_are_ranked_by_bm25_and_labels_of_products_say_why_they_have_no_score():
    tables = load_tables({"products": PRODUCTS, "queries": QUERIES})
    results = evaluate_model(*load_for_evaluation("bm25", device="cpu"), tables, options=OPTIONS)
    ranks = [1 + (row > row[place]).sum() for row, place in zip(slow(tables), (0, 1, 3), strict=True)]
    assert results["scores"]["t2mm"]["MRR"] == pytest.approx(np.mean([1 / rank for rank in ranks]))
    assert (results["classification"], results["attributes"]) == ({}, {})
    why = "bm25 scores products for queries; the texts of labels are not queries"
    assert (results["absent"]["classification"], results["absent"]["attributes"]) == (why, why)
    assert results["provenance"]["dtype"] == "float64"


def slow(tables):
    return bm25_scores([row.text for row in tables.queries], [product_text(row) for row in tables.products])


def test_forms_with_pictures_have_no_score_and_say_why_and_texts_have_one():
    queries = [*QUERIES, {"query_id": "4", "image": file_of(plain("red")), "positives": ["a"]}]
    queries += [{"query_id": "5", "text": "red", "image": file_of(plain("red")), "positives": ["a"]}]
    tables = load_tables({"products": [*with_pictures(PRODUCTS[:3]), PRODUCTS[3]], "queries": queries})
    results = evaluate_model(*load_for_evaluation("bm25", device="cpu"), tables, options=OPTIONS)
    assert not any(results["scores"].values())
    of_products = "bm25 reads no pictures, and 3 of 4 products of the form 'mm' have one"
    assert results["absent"]["t2mm"] == of_products
    assert results["absent"]["i2t"] == "bm25 reads no pictures, and 1 of 1 queries of type 'image' have one"
    assert results["matrix"]["absent"]["mm2t"] == "bm25 reads no pictures, and 1 of 1 queries of type 'both' have one"
    assert results["matrix"]["t"]["t"]["queries"] == 3
    assert results["skipped"] == []
    ranks = [1 + (row > row[place]).sum() for row, place in zip(slow(tables), (0, 1, 3), strict=False)]
    assert results["matrix"]["t"]["t"]["MRR"] == pytest.approx(np.mean([1 / rank for rank in ranks]))


def test_a_query_that_asks_for_a_category_searches_the_labels():
    queries = [
        {"query_id": "1", "text": "a red mug", "positive_categories": ["Mugs"]},
        {"query_id": "2", "text": "shoes", "positive_categories": ["Shoes"]},
    ]
    tables = load_tables({"products": PRODUCTS, "queries": queries})
    results = evaluate_model(*load_for_evaluation("bm25", device="cpu"), tables, options=OPTIONS)
    assert results["query_categories"]["text"]["labels"] == 3
    # "mug" is not the word "mugs": only the second query finds its label.
    assert results["query_categories"]["text"]["top1"] == pytest.approx(0.5)
