"""Make the cosines of old and of new vectors comparable, so that one ranking can hold both.

Shape suffixes: Q queries, P products, K products of a ranking.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

DEPTH = 20
"""Number of first products of each ranking whose scores are compared."""


@dataclass(frozen=True)
class Calibration:
    """A line that maps cosines with old vectors to cosines with new ones: `s_new ≈ scale · s_old + shift`.

    The slope is positive, so the order within a group never changes.

    Args:
        scale (`float`): above 0. Default 1.
        shift (`float`): Default 0.
    """

    scale: float = 1.0
    shift: float = 0.0

    def __call__(self, cosine: np.ndarray | float) -> np.ndarray | float:
        return self.scale * cosine + self.shift


def fit_calibration(old_QP: np.ndarray, new_QP: np.ndarray) -> Calibration:
    """Return the line that gives old scores the mean and the standard deviation of new ones.

    Both models score the same queries and products. The pairs are those among the first 20 products of either ranking:
    what a merged ranking shows. Matching moments rather than regression, because regression shrinks the slope, and old vectors
    would then win or lose as a group. Our design; the precedent is the merging of results in federated search (Callan 2000).

    Args:
        old_QP: cosines of adapted queries and old vectors.
        new_QP: cosines of the new model's queries and vectors.

    Raises:
        ValueError: shapes that differ, or no scores.
    """
    if old_QP.shape != new_QP.shape or not old_QP.size:
        raise ValueError(f"scores: found shapes {old_QP.shape} and {new_QP.shape}; expected one shape, not empty")
    depth = min(DEPTH, old_QP.shape[1])
    kept_QP = np.zeros(old_QP.shape, dtype=bool)
    for score_QP in (old_QP, new_QP):
        first_QK = np.argpartition(-score_QP, depth - 1, axis=1)[:, :depth]
        np.put_along_axis(kept_QP, first_QK, True, axis=1)
    old, new = old_QP[kept_QP].astype(np.float64), new_QP[kept_QP].astype(np.float64)
    scale = float(new.std() / old.std()) if old.std() > 1e-9 and new.std() > 1e-9 else 1.0
    return Calibration(scale, float(new.mean() - scale * old.mean()))
