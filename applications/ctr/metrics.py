"""Measure predicted chances of clicks: ranking, log loss, calibration; and intervals by a bootstrap over users.

Shape suffixes: N rows, U users, R resamples.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from sklearn.metrics import log_loss, roc_auc_score

_BINS = 10
_LEVEL = 0.95


def click_scores(clicked_N: np.ndarray, probability_N: np.ndarray, user_N: np.ndarray) -> dict[str, Any] | None:
    """Return all metrics of predicted chances; `None` for rows that have no click, or nothing else.

    Args:
        clicked_N: whether each row was clicked, bool.
        probability_N: predicted chances, in [0, 1].
        user_N: the user of each row.

    Returns: rows, clicks, AUC, GAUC (`None` if no user has rows with and without a click), log_loss, ECE, predicted_to_actual
        (mean prediction divided by the share of clicks; 1 is calibrated).
    """
    clicks = int(clicked_N.sum())
    if not 0 < clicks < len(clicked_N):
        return None
    return {
        "rows": len(clicked_N),
        "clicks": clicks,
        "AUC": float(roc_auc_score(clicked_N, probability_N)),
        "GAUC": grouped_auc(clicked_N, probability_N, user_N),
        "log_loss": float(log_loss(clicked_N, probability_N, labels=[False, True])),
        "ECE": expected_calibration_error(clicked_N, probability_N),
        "predicted_to_actual": float(probability_N.mean() / clicked_N.mean()),
    }


def grouped_auc(clicked_N: np.ndarray, probability_N: np.ndarray, user_N: np.ndarray) -> float | None:
    """Return the mean of the users' AUC, weighted by their showings (GAUC, arXiv 1706.06978 §5.2).

    `GAUC = Σ_u n_u · AUC_u / Σ_u n_u` over the users with rows with and without a click; `None` without such a user.
    """
    _, user_N = np.unique(user_N, return_inverse=True)
    order = np.lexsort((probability_N, user_N))
    clicked_N, probability_N, user_N = clicked_N[order], probability_N[order], user_N[order]
    count_U, clicks_U = np.bincount(user_N), np.bincount(user_N, weights=clicked_N)
    is_start_N = (np.diff(user_N, prepend=-1) != 0) | (np.diff(probability_N, prepend=-1.0) != 0)
    starts = np.flatnonzero(is_start_N)
    ends = np.append(starts[1:], len(order))
    rank_N = ((starts + ends + 1) / 2)[np.cumsum(is_start_N) - 1] - (np.cumsum(count_U) - count_U)[
        user_N
    ]  # mean of ties
    ranks_U = np.bincount(user_N, weights=rank_N * clicked_N)
    pairs_U = clicks_U * (count_U - clicks_U)
    counts = pairs_U > 0
    if not counts.any():
        return None
    auc_U = (ranks_U - clicks_U * (clicks_U + 1) / 2)[counts] / pairs_U[counts]
    return float((count_U[counts] * auc_U).sum() / count_U[counts].sum())


def expected_calibration_error(clicked_N: np.ndarray, probability_N: np.ndarray, bins: int = _BINS) -> float:
    """Return `ECE = Σ_b n_b / N · |mean prediction_b − share of clicks_b|` over bins of equal numbers of rows.

    Source: Naeini, Cooper and Hauskrecht, AAAI 2015; bins of equal numbers as in arXiv 1909.10155, since most chances of
    clicks are small.

    Args:
        bins (`int`): number of bins; fewer if there are fewer rows. Default 10.
    """
    parts = np.array_split(np.argsort(probability_N, kind="stable"), min(bins, len(probability_N)))
    gaps = [len(part) * abs(probability_N[part].mean() - clicked_N[part].mean()) for part in parts]
    return float(sum(gaps) / len(probability_N))


class UserBootstrap:
    """Resample the users of some rows: the same draws for all models that are compared.

    Args:
        clicked_N: whether each row was clicked, bool.
        user_N: the user of each row.
        resamples (`int`): R. Default 500.
        seed (`int`): seed of the draws. Default 0.
    """

    def __init__(self, clicked_N: np.ndarray, user_N: np.ndarray, *, resamples: int = 500, seed: int = 0) -> None:
        self.clicked_N, self.resamples, self.seed = clicked_N, resamples, seed
        users, self.place_N = np.unique(user_N, return_inverse=True)
        self.users = len(users)

    def auc(self, probability_N: np.ndarray) -> np.ndarray:
        """Return the AUC in each resample, (R,) float64; NaN where a resample has no click, or nothing else."""
        order = np.argsort(probability_N, kind="stable")
        starts = np.flatnonzero(np.diff(probability_N[order], prepend=-1.0))
        clicked_N, place_N = self.clicked_N[order], self.place_N[order]
        return np.array([_weighted_auc(clicked_N, weight_U[place_N], starts) for weight_U in self._draws()])

    def _draws(self) -> Iterator[np.ndarray]:
        """Yield how often each user is in each resample."""
        rng = np.random.default_rng(self.seed)
        for _ in range(self.resamples):
            yield np.bincount(rng.integers(self.users, size=self.users), minlength=self.users).astype(np.float64)


def _weighted_auc(clicked_N: np.ndarray, weight_N: np.ndarray, starts: np.ndarray) -> float:
    """Return the AUC of weighted rows in ascending order of prediction; rows from one start to the next are tied."""
    positive = np.add.reduceat(weight_N * clicked_N, starts)
    negative = np.add.reduceat(weight_N * ~clicked_N, starts)
    pairs = positive.sum() * negative.sum()
    below = np.cumsum(negative) - negative
    return float((positive * (below + negative / 2)).sum() / pairs) if pairs else float("nan")


def percentile_interval(values_R: np.ndarray) -> list[float] | None:
    """Return the 95 % percentile interval of resampled values (Efron 1979); `None` if one is NaN."""
    if np.isnan(values_R).any():
        return None
    return [float(bound) for bound in np.quantile(values_R, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])]
