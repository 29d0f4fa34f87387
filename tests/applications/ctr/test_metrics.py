"""Click metrics against slow references and scikit-learn."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from applications.ctr.metrics import (
    UserBootstrap,
    click_scores,
    expected_calibration_error,
    grouped_auc,
    percentile_interval,
)


@pytest.fixture
def rows():
    rng = np.random.default_rng(0)
    user_N = rng.integers(20, size=400)
    probability_N = rng.integers(1, 20, size=400) / 20  # with ties
    return rng.random(400) < probability_N, probability_N, user_N


def test_gauc_is_the_weighted_mean_of_the_users_auc(rows):
    clicked_N, probability_N, user_N = rows
    user_N[:3], clicked_N[:3] = 99, True  # a user without a row that is not clicked does not count
    total = weight = 0.0
    for user in set(user_N.tolist()):
        own = user_N == user
        if 0 < clicked_N[own].sum() < own.sum():
            total += own.sum() * roc_auc_score(clicked_N[own], probability_N[own])
            weight += own.sum()
    assert grouped_auc(clicked_N, probability_N, user_N) == pytest.approx(total / weight)
    assert weight == 397


def test_calibration_of_true_chances_is_near_and_of_doubled_ones_far():
    rng = np.random.default_rng(1)
    chance_N = rng.random(20_000) / 2
    clicked_N = rng.random(20_000) < chance_N
    good, bad = (
        click_scores(clicked_N, chance_N, np.zeros(20_000)),
        click_scores(clicked_N, 2 * chance_N, np.zeros(20_000)),
    )
    assert good["ECE"] < 0.02
    assert bad["ECE"] == pytest.approx(0.25, abs=0.02)
    assert good["predicted_to_actual"] == pytest.approx(1, abs=0.05)
    assert bad["predicted_to_actual"] == pytest.approx(2, abs=0.1)
    assert good["AUC"] == bad["AUC"]


def test_ece_by_hand():
    assert expected_calibration_error(np.array([False, True]), np.array([0.2, 0.7])) == pytest.approx(0.25)


def test_one_class_has_no_scores():
    assert click_scores(np.ones(4, dtype=bool), np.full(4, 0.5), np.zeros(4)) is None


def test_a_resampled_auc_is_that_of_the_repeated_rows(rows):
    clicked_N, probability_N, user_N = rows
    found_R = UserBootstrap(clicked_N, user_N, resamples=5, seed=3).auc(probability_N)
    rng = np.random.default_rng(3)
    for found in found_R:
        drawn = rng.integers(20, size=20)
        repeated = np.concatenate([np.flatnonzero(user_N == user) for user in drawn])
        assert found == pytest.approx(roc_auc_score(clicked_N[repeated], probability_N[repeated]))


def test_all_models_of_one_bootstrap_draw_the_same_users(rows):
    clicked_N, probability_N, user_N = rows
    bootstrap = UserBootstrap(clicked_N, user_N, resamples=20)
    assert np.array_equal(bootstrap.auc(probability_N), bootstrap.auc(probability_N))
    assert percentile_interval(bootstrap.auc(probability_N) - bootstrap.auc(probability_N / 2)) == [0.0, 0.0]
    assert percentile_interval(np.array([0.1, float("nan")])) is None
