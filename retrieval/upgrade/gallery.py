"""Search a small gallery of arrays, whose products have one vector or several.

Shape suffixes: V vectors, D width, P products, Q queries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Gallery:
    """The vectors of products. A product's score is that of its nearest vector, as in a store.

    Args:
        vector_VD: unit vectors.
        product_V: index of the product of each vector, ascending; every product from 0 to P - 1 has a vector.

    Raises:
        ValueError: `product_V` is not as described.
    """

    vector_VD: np.ndarray
    product_V: np.ndarray

    def __post_init__(self) -> None:
        step_V = np.diff(self.product_V, prepend=-1)
        if len(self.product_V) != len(self.vector_VD) or not np.isin(step_V, (0, 1)).all() or step_V[:1] != [1]:
            raise ValueError("product_V: expected ascending numbers from 0 without a gap, one for each vector")

    def __len__(self) -> int:
        """Return the number of products."""
        return int(self.product_V[-1]) + 1

    def scores(self, query_QD: np.ndarray) -> np.ndarray:
        """Return the (Q, P) cosines of queries and products."""
        first_P = np.flatnonzero(np.diff(self.product_V, prepend=-1))
        return np.maximum.reduceat(query_QD @ self.vector_VD.T, first_P, axis=1)


def ranks(score_QP: np.ndarray, right: Sequence[Sequence[int]]) -> np.ndarray:
    """Return the rank of each query's best right answer, from 1; a wrong product of the same score ranks before it.

    Shapes: (Q, P) scores and Q lists of right products → (Q,) int64.
    """
    found = np.zeros(len(score_QP), dtype=np.int64)
    for row, (score_P, answers) in enumerate(zip(score_QP, right, strict=True)):
        before_P = score_P >= score_P[list(answers)].max()
        before_P[list(answers)] = False
        found[row] = 1 + before_P.sum()
    return found
