"""The inverted index has the scores of the formula."""

import math

import numpy as np
import pytest

from retrieval.bm25 import WordIndex, idf, saturation

TEXTS = [["red", "shoe"], ["blue", "shoe", "red", "lace", "red"], ["mug"], []]


def slow_score(query, text, texts, k1=1.2, b=0.75):
    mean = sum(map(len, texts)) / len(texts)
    total = 0.0
    for word in query:
        having = sum(word in one for one in texts)
        count = text.count(word)
        weight = math.log(1 + (len(texts) - having + 0.5) / (having + 0.5))
        total += weight * count * (k1 + 1) / (count + k1 * (1 - b + b * len(text) / mean))
    return total


@pytest.mark.parametrize("query", [["red"], ["red", "shoe"], ["red", "red", "mug"], ["zebra"], []])
def test_scores_are_those_of_the_formula(query):
    expected = [slow_score(query, text, TEXTS) for text in TEXTS]
    np.testing.assert_allclose(WordIndex(TEXTS).scores(query), expected, atol=1e-12)
    assert any(expected) == bool({"red", "mug"} & set(query))


def test_an_index_of_no_texts_and_of_empty_texts_has_no_scores():
    assert WordIndex([]).scores(["red"]).shape == (0,)
    assert WordIndex([[], []]).scores(["red"]).tolist() == [0, 0]


def test_the_idf_is_never_negative_and_the_saturation_stays_below_its_limit():
    assert (idf(10, np.arange(11)) > 0).all()
    weights = saturation(np.arange(100.0), 10, 10.0)
    assert weights[0] == 0
    assert (np.diff(weights) > 0).all()
    assert weights[-1] < 2.2


def test_the_memory_counts_each_word_of_each_text_once():
    assert WordIndex(TEXTS).memory_bytes == 4 * 8 + 7 * 8
