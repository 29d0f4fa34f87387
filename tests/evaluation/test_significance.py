"""Paired tests: exact where they can be, equal to scipy's and to hand-written loops, and corrected for their number."""

import itertools

import numpy as np
import pytest
from scipy import stats

from evaluation.significance import FLIPS, holm, mcnemar_p, paired_test, sign_flip_p


def by_hand(difference):
    """The share of all sign patterns, zeros included, whose sum is at least as far from 0."""
    sums = [
        abs(sum(sign * value for sign, value in zip(signs, difference, strict=True)))
        for signs in itertools.product((1, -1), repeat=len(difference))
    ]
    return sum(found >= abs(sum(difference)) - 1e-9 for found in sums) / len(sums)


@pytest.mark.parametrize("seed", range(12))
def test_the_exact_test_is_that_of_all_patterns_with_ties_and_zeros(seed):
    rng = np.random.default_rng(seed)
    ranks = rng.integers(1, 5, (2, 11))  # few values: many differences are 0, or alike
    difference = 1 / ranks[1] - 1 / ranks[0]
    assert sign_flip_p(difference) == pytest.approx(by_hand(difference.tolist()), abs=1e-12)
    hits = (ranks <= 1).astype(float)
    assert sign_flip_p(hits[1] - hits[0]) == pytest.approx(by_hand((hits[1] - hits[0]).tolist()), abs=1e-12)


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (1, 0), (5, 5), (3, 9), (120, 80), (0, 40)])
def test_hits_are_tested_as_by_mcnemar(gained, lost):
    p = mcnemar_p(gained, lost)
    expected = stats.binomtest(gained, gained + lost, 0.5).pvalue if gained + lost else 1.0
    assert p == pytest.approx(expected, abs=1e-12)
    both = np.array([1.0] * gained + [-1.0] * lost + [0.0] * 7)
    assert sign_flip_p(np.random.default_rng(0).permutation(both)) == p


@pytest.mark.parametrize("seed", range(3))
def test_drawn_patterns_agree_with_scipys_paired_permutation_test(seed):
    rng = np.random.default_rng(seed)
    before, after = 1 / rng.integers(1, 9, 60), 1 / rng.integers(1, 7, 60)
    expected = stats.permutation_test(
        (after, before), lambda a, b: np.mean(a - b), permutation_type="samples", n_resamples=20_000, rng=seed
    ).pvalue
    drawn = sign_flip_p(after - before, seed=seed)
    assert drawn == pytest.approx(expected, abs=0.02)
    assert drawn == sign_flip_p(after - before, seed=seed)
    assert (drawn * (FLIPS + 1)) == pytest.approx(round(drawn * (FLIPS + 1)))


def test_a_drawn_p_is_never_zero_and_no_difference_is_never_significant():
    clear = np.random.default_rng(0).uniform(0.5, 1, 200)
    assert sign_flip_p(clear) == 1 / (FLIPS + 1)
    assert sign_flip_p(clear, flips=19) == 1 / 20
    assert sign_flip_p(np.zeros(5)) == 1.0


def test_equal_models_are_called_different_about_as_often_as_the_level_says():
    rng = np.random.default_rng(1)
    p = np.array([sign_flip_p(rng.normal(size=12)) for _ in range(400)])
    assert 0.02 <= (p < 0.05).mean() <= 0.09
    assert 0.4 <= p.mean() <= 0.6


@pytest.mark.parametrize(
    "given", [np.array([]), np.array([0.1, np.nan]), np.array([np.inf])], ids=["none", "not a number", "infinite"]
)
def test_what_cannot_be_tested_is_refused(given):
    with pytest.raises(ValueError, match="expected at least one finite difference"):
        sign_flip_p(given)
    with pytest.raises(ValueError, match="flips=0"):
        sign_flip_p(np.ones(3), flips=0)
    with pytest.raises(ValueError, match="lost=-1"):
        mcnemar_p(2, -1)


def test_holms_correction_is_the_worked_example_and_keeps_the_order():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []
    with pytest.raises(ValueError, match=r"expected numbers in \[0, 1\]"):
        holm([0.5, 1.5])


@pytest.mark.parametrize("seed", range(5))
def test_holms_correction_rejects_what_the_sequential_procedure_rejects(seed):
    p = np.random.default_rng(seed).uniform(size=9) ** 3
    for level in (0.01, 0.05, 0.2):
        rejected = set()
        for step, index in enumerate(np.argsort(p)):
            if p[index] > level / (len(p) - step):
                break
            rejected.add(int(index))
        assert {index for index, value in enumerate(holm(p.tolist())) if value <= level} == rejected


def test_a_paired_test_has_the_difference_its_interval_and_its_p():
    before, after = np.array([0.0, 0, 1, 0, 0, 1]), np.array([1.0, 1, 1, 1, 1, 0])
    found = paired_test(before, after, seed=3)
    assert found["difference"] == pytest.approx(0.5)
    low, high = found["interval"]
    assert low <= 0.5 <= high
    assert found["p"] == pytest.approx(stats.binomtest(4, 5, 0.5).pvalue)
    assert found == paired_test(before, after, seed=3)
    with pytest.raises(ValueError, match="expected the same queries on both sides"):
        paired_test(before, after[:3])
