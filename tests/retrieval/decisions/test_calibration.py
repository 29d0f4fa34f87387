"""Calibration of scores: probabilities near the true ones, categories of their own, refusals."""

from __future__ import annotations

import json

import numpy as np
import pytest
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from retrieval.decisions.calibration import Calibrator, fit_calibrator
from retrieval.decisions.errors import DecisionError

NAMES = ("cosine", "margin")


def labelled(count, seed=0, shift=0.0):
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(count, 2)) * (0.1, 0.05) + (0.6, 0.1)
    probability = 1 / (1 + np.exp(-(20 * (features[:, 0] - 0.65 - shift) + 10 * (features[:, 1] - 0.1))))
    return features, rng.random(count) < probability, probability


def test_probabilities_are_those_of_a_logistic_regression_and_near_the_true_ones():
    features, same, probability = labelled(3000)
    found = fit_calibrator(features, same, [""] * 3000, NAMES).probabilities(features, [""] * 3000)
    scaled = StandardScaler().fit_transform(features)
    np.testing.assert_allclose(found, LogisticRegression().fit(scaled, same).predict_proba(scaled)[:, 1], atol=1e-9)
    assert np.abs(found - probability).mean() < 0.03


def test_a_category_with_enough_labels_has_a_curve_of_its_own():
    first, second = labelled(1000, 1), labelled(1000, 2, shift=0.15)
    features, same = np.vstack([first[0], second[0]]), np.r_[first[1], second[1]]
    categories = ["Shoes"] * 1000 + ["Watches"] * 950 + ["Hats"] * 50
    calibrator = fit_calibrator(features, same, categories, NAMES)
    assert set(calibrator.categories) == {"Shoes", "Watches"}
    fresh, _, truth = labelled(2000, 3, shift=0.15)
    own, shared = (calibrator.probabilities(fresh, [name] * 2000) for name in ("Watches", "Hats"))
    assert np.abs(own - truth).mean() < 0.6 * np.abs(shared - truth).mean()
    # The same function as scikit-learn's, over the logistic probabilities of the category.
    logistic = calibrator.probabilities(features, [""] * 2000)[1000:1950]
    reference = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(logistic, same[1000:1950])
    np.testing.assert_allclose(
        calibrator.probabilities(features[1000:1950], ["Watches"] * 950), reference.predict(logistic), atol=1e-5
    )


def test_order_is_kept_within_a_category():
    features, same, _ = labelled(1000)
    calibrator = fit_calibrator(features, same, ["Shoes"] * 1000, NAMES)
    plain, own = (calibrator.probabilities(features, [name] * 1000) for name in ("", "Shoes"))
    order = np.argsort(plain)
    assert "Shoes" in calibrator.categories
    assert (np.diff(own[order]) >= 0).all()
    assert ((own > 0) & (own < 1)).all()


def test_a_calibrator_survives_json():
    features, same, _ = labelled(500)
    categories = ["Shoes"] * 400 + ["Hats"] * 100
    calibrator = fit_calibrator(features, same, categories, NAMES)
    again = Calibrator.from_dict(json.loads(json.dumps(calibrator.as_dict())))
    assert again == calibrator
    assert calibrator.categories


@pytest.mark.parametrize(
    ("answer", "words"), [(True, "all of them the same product"), (False, "all of them different products")]
)
def test_labels_of_one_kind_are_refused(answer, words):
    with pytest.raises(DecisionError, match=words):
        fit_calibrator(np.zeros((4, 2)), np.full(4, answer), [""] * 4, NAMES)
    with pytest.raises(DecisionError, match="no labelled pair"):
        fit_calibrator(np.zeros((0, 2)), np.zeros(0, dtype=bool), [], NAMES)


def test_a_feature_that_is_no_number_is_refused_with_its_place():
    features, same, _ = labelled(10)
    features[3, 1] = np.nan
    with pytest.raises(DecisionError, match="pair 3, column 1: found nan"):
        fit_calibrator(features, same, [""] * 10, NAMES)
    calibrator = fit_calibrator(labelled(50)[0], labelled(50)[1], [""] * 50, NAMES)
    with pytest.raises(DecisionError, match="pair 3"):
        calibrator.probabilities(features, [""] * 10)
