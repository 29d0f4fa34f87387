import math

import numpy as np

from evaluation.baselines.bm25 import bm25_scores, product_text, words
from product_data.tables import ProductRow

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
