"""Compute exchange rates: gain of the downstream AUC divided by gain of an intermediate metric, and which metric predicts best.

Shape suffixes: K checkpoints in the order of steps, the first one untrained or least trained; R resamples.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import stats

from applications.ctr.metrics import percentile_interval

LEAST_CHECKPOINTS = 5


def slope(metric_K: np.ndarray, auc_K: np.ndarray) -> np.ndarray:
    """Return the least-squares slope of AUC over the metric, an exchange rate of all checkpoints; NaN for a constant metric.

    Args:
        metric_K, auc_K: (K,) or (K, R); each column is one resample.

    Returns: a number for each column.
    """
    centred_K = metric_K - metric_K.mean(axis=0)
    spread = (centred_K**2).sum(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(spread > 0, (centred_K * auc_K).sum(axis=0) / spread, np.nan)


def rank_correlation(metric_K: np.ndarray, auc_K: np.ndarray) -> np.ndarray:
    """Return Spearman's rank correlation, with mean ranks for ties; NaN if one side is constant. Arguments as for `slope`."""
    x_K, y_K = (stats.rankdata(side, axis=0) - (len(side) + 1) / 2 for side in (metric_K, auc_K))
    with np.errstate(divide="ignore", invalid="ignore"):
        return (x_K * y_K).sum(axis=0) / np.sqrt((x_K**2).sum(axis=0) * (y_K**2).sum(axis=0))


def leave_one_out_r2(metric_K: np.ndarray, auc_K: np.ndarray) -> np.ndarray:
    """Return how well a line through the other checkpoints predicts the AUC of each one. Arguments as for `slope`.

    `R² = 1 − Σ_k (y_k − ŷ_{−k})² / Σ_k (y_k − ȳ_{−k})²`, with the line and the mean of all checkpoints but k. 0 is as good as the
    mean of the others, and a bad metric is below 0. Our design; the precedent is the predicted residual sum of squares (PRESS,
    Allen 1974).
    """
    error, total = np.zeros(auc_K.shape[1:]), np.zeros(auc_K.shape[1:])
    for left_out in range(len(auc_K)):
        x_K, y_K = np.delete(metric_K, left_out, axis=0), np.delete(auc_K, left_out, axis=0)
        middle = y_K.mean(axis=0)
        predicted = middle + np.nan_to_num(slope(x_K, y_K)) * (metric_K[left_out] - x_K.mean(axis=0))
        error += (auc_K[left_out] - predicted) ** 2
        total += (auc_K[left_out] - middle) ** 2
    with np.errstate(divide="ignore", invalid="ignore"):
        return 1.0 - error / total


def exchange(auc_K: np.ndarray, metric_K: np.ndarray, auc_KR: np.ndarray, metric_KR: np.ndarray) -> dict[str, Any]:
    """Return the exchange rates of one metric with intervals.

    `rate_k = (AUC_k − AUC_0) / (m_k − m_0)` (MOON Embedding, arXiv 2511.11305).

    Args:
        auc_K, metric_K: downstream AUC and metric of each checkpoint.
        auc_KR, metric_KR: the same in each resample of users and of queries.

    Returns: change (of the metric from the first to the last checkpoint: value, interval), rates (of each later checkpoint),
        rate (of all, see `slope`), rank_correlation, leave_one_out_R2; each with value and 95 % interval. A rate is `None` if
        the interval of the metric's change contains 0: dividing by it would mean nothing.

    Raises:
        ValueError: fewer than `LEAST_CHECKPOINTS` checkpoints.
    """
    if len(auc_K) < LEAST_CHECKPOINTS:
        raise ValueError(f"found {len(auc_K)} checkpoints; expected at least {LEAST_CHECKPOINTS}")
    last = len(auc_K) - 1
    rates = [_rate(auc_K, metric_K, auc_KR, metric_KR, place) for place in range(1, len(auc_K))]
    found: dict[str, Any] = {
        "change": _with_interval(float(metric_K[last] - metric_K[0]), metric_KR[last] - metric_KR[0]),
        "rates": rates,
    }
    for name, measure in (
        ("rate", slope),
        ("rank_correlation", rank_correlation),
        ("leave_one_out_R2", leave_one_out_r2),
    ):
        found[name] = _with_interval(float(measure(metric_K, auc_K)), measure(metric_KR, auc_KR))
    if rates[-1] is None:
        found["rate"] = None
    return found


def _rate(
    auc_K: np.ndarray, metric_K: np.ndarray, auc_KR: np.ndarray, metric_KR: np.ndarray, place: int
) -> dict[str, Any] | None:
    interval = percentile_interval(metric_KR[place] - metric_KR[0])
    if interval is None or interval[0] <= 0 <= interval[1]:
        return None
    with np.errstate(divide="ignore", invalid="ignore"):
        drawn_R = (auc_KR[place] - auc_KR[0]) / (metric_KR[place] - metric_KR[0])
    return _with_interval(float((auc_K[place] - auc_K[0]) / (metric_K[place] - metric_K[0])), drawn_R)


def _with_interval(value: float, drawn_R: np.ndarray) -> dict[str, Any] | None:
    if np.isnan(value):
        return None
    usable_R = drawn_R[np.isfinite(drawn_R)]
    enough = 2 * len(usable_R) >= len(drawn_R)
    return {"value": value, "interval": percentile_interval(usable_R) if enough else None}
