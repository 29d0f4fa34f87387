"""The study of explanations: known codes are found, cases and counts against a slow search, one run on a tiny model."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from evaluation.explanations_study import (
    Case,
    Drawn,
    cases_of,
    constructed,
    measure_explanations,
    nearness,
    read_alone,
    scores,
    sentences,
    shared_counts,
    trusted_contribution,
    trusted_scores,
)
from retrieval.explanation.phrases import Phrase
from retrieval.stores.interface import StoredProduct


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_shared_value_of_known_codes_is_first_in_nine_of_ten_pairs(seed):
    found = constructed(seed=seed, pairs=160)
    assert found["stated"] >= 0.9
    assert found["every"] >= 0.9


def test_noise_alone_names_nothing_right():
    assert constructed(seed=0, pairs=80, noise=50.0)["stated"] < 0.4


def small_catalogue():
    rng = np.random.default_rng(0)
    values = {"color": ("red", "blue"), "size": ("S", "M", "L"), "logo": ("star", "moon", "bolt")}
    facts = [
        StoredProduct(f"p{n}", attributes={key: (str(rng.choice(of)),) for key, of in values.items()})
        for n in range(30)
    ]
    vectors = rng.normal(size=(30, 8)).astype(np.float32) * 0.3
    vectors[:, 0] += [2.0 if fact.attributes["color"] == ("red",) else -2.0 for fact in facts]
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return Drawn(facts, vectors, np.ones(30, dtype=bool))


def test_cases_share_exactly_one_phrase():
    catalogue = small_catalogue()
    counts = shared_counts(catalogue)
    slow = {
        (a, b): len(set(catalogue.stated[a]) & set(catalogue.stated[b])) for a in range(30) for b in range(a + 1, 30)
    }
    assert {pair: int(counts[pair]) for pair in slow} == slow
    assert (np.tril(counts) <= 0).all()
    cases, by_key = cases_of(catalogue, counts, most=20, seed=0)
    assert sum(by_key.values()) == sum(shared == 1 for shared in slow.values())
    assert all(slow[case.left, case.right] == 1 for case in cases)
    assert all({case.truth} == set(catalogue.stated[case.left]) & set(catalogue.stated[case.right]) for case in cases)
    assert max(sum(case.truth.key == key for case in cases) for key in by_key) <= 20


def test_only_a_key_that_the_vectors_contain_brings_products_nearer():
    catalogue = small_catalogue()
    counts = shared_counts(catalogue)
    near = nearness(catalogue, cases_of(catalogue, counts, most=50, seed=0)[0], counts)
    assert near["color"] > 0.9
    assert near["logo"] < 0.6


def explanation(key, contribution):
    shared = [SimpleNamespace(phrase=Phrase(key, "x"), contribution=contribution)] if key else []
    return SimpleNamespace(shared=shared)


def test_scores_weight_keys_by_their_pairs_and_count_silence():
    cases = [Case(0, 1, Phrase("a", "x")), Case(0, 2, Phrase("a", "x")), Case(0, 3, Phrase("b", "x"))]
    found = [explanation("a", 0.5), explanation(None, 0), explanation("a", 0.1)]
    result = scores(cases, found, {"a": 30, "b": 70}, ["a"])
    assert result["by_key"]["a"] == {"pairs": 30, "explained": 2, "right": 0.5, "none": 0.5}
    assert result["right"] == pytest.approx(0.3 * 0.5)
    assert result["right_of_carried"] == 0.5
    assert scores(cases, found, {"a": 30, "b": 70}, [])["right_of_carried"] is None


def test_the_trusted_contribution_is_the_least_that_is_right_often_enough():
    cases = [Case(0, n, Phrase("a", "x")) for n in range(4)]
    found = [explanation("a", 0.4), explanation("a", 0.3), explanation("b", 0.2), explanation(None, 0)]
    assert trusted_contribution(cases, found) == 0.3
    assert trusted_contribution(cases, found, wanted=0.6) == 0.2
    assert trusted_contribution(cases[:1], [explanation("b", 1.0)]) is None
    assert trusted_scores(cases, found, 0.3) == {"least_contribution": 0.3, "cases": 2, "of": 4, "right": 1.0}
    assert trusted_scores(cases, found, None)["right"] is None


def test_a_key_that_vectors_contain_is_read_and_another_is_not():
    catalogue = small_catalogue()
    catalogue = replace(catalogue, test_N=np.arange(30) >= 20)
    alone = read_alone(catalogue, catalogue.readers(), ["color", "logo"])
    assert alone["color"]["right"] == 1
    assert alone["logo"]["right"] < 0.8
    assert 0 < alone["color"]["most_frequent"] < 1


def test_pairs_are_made_from_test_products_alone():
    catalogue = replace(small_catalogue(), test_N=np.arange(30) >= 20)
    cases, _ = cases_of(catalogue, shared_counts(catalogue), most=50, seed=0)
    assert cases
    assert min(case.left for case in cases) >= 20


def test_the_whole_study_gives_json_and_sentences(tiny_moon):
    results = measure_explanations(str(tiny_moon(trained=True)), most=1, products=120)
    assert json.loads(json.dumps(results, allow_nan=False))["unseen"]["catalogue"]["by_key"]
    assert {len(values) for values in results["constructed"].values()} == {5}
    assert len(results["validation"]["ways"]) == 6 + 3 + 1 + 6
    assert len(sentences(results)) >= 4
