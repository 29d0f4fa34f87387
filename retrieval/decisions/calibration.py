"""Calibrate scores of pairs into probabilities of being the same product.

Shape suffixes: P pairs, F features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from retrieval.decisions.errors import DecisionError

FEWEST_BY_CLASS = 50
"""Least number of same and of different labelled pairs of a category for a calibration of its own."""
_CLOSE = 1e-6  # probabilities stay inside (0, 1)


@dataclass(frozen=True)
class Calibrator:
    """Turn features of pairs into probabilities of being the same product.

    `p = σ(w · (x - mean) / deviation + b)` by logistic regression over all pairs; for a category with enough labels,
    `p' = g_c(p)` with an isotonic (non-decreasing) g_c. Sources: Platt, "Probabilistic Outputs for Support Vector Machines",
    1999; Zadrozny and Elkan, KDD 2002.

    Args:
        features: names of the features.
        mean, deviation: of each feature in the fitting part.
        weights, bias: of the logistic regression.
        categories: category → (points, values) of its isotonic function, which is linear between points.
    """

    features: tuple[str, ...]
    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    weights: tuple[float, ...]
    bias: float
    categories: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = field(default_factory=dict)

    def probabilities(self, feature_PF: np.ndarray, categories: Sequence[str]) -> np.ndarray:
        """Return the (P,) probabilities of pairs.

        Args:
            feature_PF: (P, F) features.
            categories: P categories of the pairs; "" for pairs without one, or of two categories.

        Raises:
            DecisionError: a feature with a NaN.
        """
        require_finite(feature_PF)
        scaled_PF = (feature_PF - np.array(self.mean)) / np.array(self.deviation)
        probability_P = 1 / (1 + np.exp(-(scaled_PF @ np.array(self.weights) + self.bias)))
        names = np.array(categories, dtype=object)
        for category, (points, values) in self.categories.items():
            is_inside_P = names == category
            # A little of the logistic probability keeps the order within the steps of the isotonic function.
            stepped_P = np.interp(probability_P[is_inside_P], points, values)
            probability_P[is_inside_P] = (1 - _CLOSE) * stepped_P + _CLOSE * probability_P[is_inside_P]
        return probability_P

    def as_dict(self) -> dict[str, Any]:
        """Return the calibrator in types of JSON."""
        categories = {name: {"points": list(x), "values": list(y)} for name, (x, y) in self.categories.items()}
        vectors = {name: list(getattr(self, name)) for name in ("features", "mean", "deviation", "weights")}
        return vectors | {"bias": self.bias, "categories": categories}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Calibrator:
        """Return the calibrator that `as_dict` described."""
        categories = {name: (tuple(g["points"]), tuple(g["values"])) for name, g in values["categories"].items()}
        vectors = {name: tuple(values[name]) for name in ("features", "mean", "deviation", "weights")}
        return cls(**vectors, bias=float(values["bias"]), categories=categories)


def fit_calibrator(
    feature_PF: np.ndarray,
    same_P: np.ndarray,
    categories: Sequence[str],
    features: Sequence[str],
    *,
    fewest: int = FEWEST_BY_CLASS,
) -> Calibrator:
    """Fit a calibrator to labelled pairs.

    Args:
        feature_PF: (P, F) features.
        same_P: (P,) bool, whether both are the same product.
        categories: P categories, see `Calibrator.probabilities`.
        features: F names.
        fewest (`int`): see `FEWEST_BY_CLASS`. Default 50.

    Raises:
        DecisionError: pairs of one class only, or a feature with a NaN.
    """
    require_finite(feature_PF)
    same_P = np.asarray(same_P, dtype=bool)
    if same_P.all() or not same_P.any():
        found = (
            f"{len(same_P)} labelled pairs, all of them {'the same product' if same_P.all() else 'different products'}"
        )
        raise DecisionError(
            f"labels: found {found if len(same_P) else 'no labelled pair'} for fitting; expected pairs of both kinds"
        )
    mean_F, deviation_F = feature_PF.mean(axis=0), np.maximum(feature_PF.std(axis=0), 1e-9)
    model = LogisticRegression().fit((feature_PF - mean_F) / deviation_F, same_P)
    weights = tuple(map(float, model.coef_[0]))
    logistic = Calibrator(
        tuple(features), tuple(map(float, mean_F)), tuple(map(float, deviation_F)), weights, float(model.intercept_[0])
    )
    probability_P = logistic.probabilities(feature_PF, categories)
    names, own = np.array(categories, dtype=object), {}
    for category in sorted({name for name in categories if name}):
        is_inside_P = names == category
        same = int(same_P[is_inside_P].sum())
        if min(same, int(is_inside_P.sum()) - same) >= fewest:
            isotonic = IsotonicRegression(y_min=_CLOSE, y_max=1 - _CLOSE, out_of_bounds="clip")
            isotonic.fit(probability_P[is_inside_P], same_P[is_inside_P])
            own[category] = (tuple(map(float, isotonic.X_thresholds_)), tuple(map(float, isotonic.y_thresholds_)))
    return Calibrator(logistic.features, logistic.mean, logistic.deviation, weights, logistic.bias, own)


def require_finite(feature_PF: np.ndarray) -> None:
    """Check that all features are finite.

    Raises:
        DecisionError: the row and column of the first one that is not.
    """
    bad = np.argwhere(~np.isfinite(feature_PF))
    if len(bad):
        row, column = bad[0]
        raise DecisionError(
            f"scores, pair {row}, column {column}: found {feature_PF[row, column]}; expected finite numbers"
        )
