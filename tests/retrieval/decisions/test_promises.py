"""Promised precisions: bounds against slow references, one sequence of tests, promises that hold on fresh data."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import binom, binomtest

from product_data.errors import OptionError
from retrieval.decisions.promises import fewest_decided, precision_lower_bound, promise_precision


@pytest.mark.parametrize(("right", "decided"), [(0, 10), (1, 1), (57, 60), (60, 60), (199, 200)])
@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.99])
def test_the_lower_bound_is_that_of_an_exact_binomial_test(right, decided, confidence):
    found = precision_lower_bound(right, decided, confidence)
    # scipy's two-sided interval at level 1 - 2 alpha has the one-sided bound of level 1 - alpha.
    interval = binomtest(right, decided).proportion_ci(1 - 2 * (1 - confidence), method="exact")
    assert found == pytest.approx(interval.low, abs=1e-9)
    if right:
        assert binom.sf(right - 1, decided, found) == pytest.approx(1 - confidence, abs=1e-9)


@pytest.mark.parametrize(
    ("precision", "confidence", "fewest"), [(0.95, 0.95, 59), (0.9, 0.95, 29), (0.99, 0.9, 230), (0.5, 0.75, 2)]
)
def test_the_fewest_pairs_are_exactly_enough_for_a_promise(precision, confidence, fewest):
    assert fewest_decided(precision, confidence) == fewest
    assert precision_lower_bound(fewest, fewest, confidence) >= precision - 1e-9
    assert precision_lower_bound(fewest - 1, fewest - 1, confidence) < precision


def sample(rng, count):
    """Return scores that are the probabilities of being right, and answers."""
    score = rng.beta(4, 0.6, count)
    return score, rng.random(count) < score


GRID = np.sort(np.random.default_rng(99).beta(4, 0.6, 1_000_000))[::-1]


def true_precision(threshold):
    """Return the mean score of a very large sample above a threshold: the population's precision."""
    return float(GRID[threshold <= GRID].mean())


def test_promises_hold_on_fresh_data_at_least_as_often_as_stated():
    rng = np.random.default_rng(0)
    confidence, repeats = 0.9, 600
    made = broken = 0
    for _ in range(repeats):
        promise = promise_precision(sample(rng, 150), sample(rng, 400), precision=0.95, confidence=confidence)
        made += promise.threshold is not None
        broken += promise.threshold is not None and true_precision(promise.threshold) < 0.95
    assert made > 0.5 * repeats  # otherwise nothing would be tested
    # Not significantly more false promises than 1 - confidence.
    assert binom.sf(broken - 1, repeats, 1 - confidence) > 0.01


def test_the_threshold_is_the_last_one_that_passed_before_the_first_failure():
    rng = np.random.default_rng(1)
    fit, choosing = sample(rng, 300), sample(rng, 600)
    promise = promise_precision(fit, choosing, precision=0.95, confidence=0.95)
    assert promise.threshold is not None
    thresholds = [step.threshold for step in promise.steps]
    assert thresholds == sorted(thresholds, reverse=True)
    assert set(thresholds) <= set(fit[0].tolist())  # none comes from the part that chooses
    for step in promise.steps:
        is_decided = choosing[0] >= step.threshold
        assert (step.decided, step.right) == (is_decided.sum(), (choosing[1] & is_decided).sum())
        assert step.bound == precision_lower_bound(step.right, step.decided, 0.95)
    assert all(step.bound >= 0.95 for step in promise.steps[:-1])
    assert promise.threshold == promise.passed[-1].threshold
    assert f"{promise.passed[-1].right} of {promise.passed[-1].decided}" in promise.sentence


def test_later_thresholds_are_not_tried_after_a_failure():
    score = np.linspace(1, 0, 1000)
    right = np.ones(1000, dtype=bool)
    right[200:300] = False  # the precision falls, and would pass again only by luck further down
    promise = promise_precision((score, right), (score, right), precision=0.95, confidence=0.95)
    assert promise.steps[-1].bound < 0.95
    assert promise.threshold == promise.steps[-2].threshold
    assert promise.threshold > score[230]


@pytest.mark.parametrize("count", [0, 1, 40])
def test_with_few_labels_a_sentence_says_how_many_are_needed(count):
    score = np.linspace(1, 0, count)
    right = np.ones(count, dtype=bool)
    promise = promise_precision((score, right), (score, right), precision=0.95, confidence=0.95)
    assert promise.threshold is None
    assert f"with {count} labelled pairs" in promise.sentence
    assert "needs at least 59 decided pairs" in promise.sentence


def test_the_number_to_label_grows_with_the_rarity_of_the_answer():
    score, right = np.linspace(1, 0, 100), np.arange(100) < 10
    promise = promise_precision((score, right), (score, right), precision=0.95, confidence=0.95)
    assert f"label at least {math.ceil(59 / 0.1)} pairs" in promise.sentence


def test_scores_that_say_nothing_promise_nothing():
    rng = np.random.default_rng(2)
    parts = [(rng.random(2000), rng.random(2000) < 0.5) for _ in range(2)]
    promise = promise_precision(*parts, precision=0.95, confidence=0.95)
    assert promise.threshold is None
    assert "tells these pairs apart better" in promise.sentence


@pytest.mark.parametrize("name", ["precision", "confidence"])
@pytest.mark.parametrize("value", [0, 1, -0.5, 95, float("nan")])
def test_a_precision_or_confidence_that_is_no_share_is_refused(name, value):
    part = (np.ones(3), np.ones(3, dtype=bool))
    with pytest.raises(OptionError, match=name):
        promise_precision(part, part, **({"precision": 0.9, "confidence": 0.9} | {name: value}))
