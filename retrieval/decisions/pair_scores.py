"""Find candidate pairs among a catalogue's vectors, and score pairs by cosine and margin.

Shape suffixes: N products, D embedding, K neighbours, P pairs, F features.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from retrieval.decisions.errors import DecisionError

FEATURES = ("cosine", "margin")
"""Columns of `PairScorer.features`."""
_BLOCK = 1024


def nearest_neighbours(vector_ND: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the k nearest other vectors of each vector by exact search, and their cosines, the nearest first.

    Args:
        vector_ND: unit vectors, finite.
        k (`int`): number of neighbours; N - 1 if the catalogue is smaller.

    Shapes: returns (N, K) int64 rows and (N, K) float32 cosines.

    Raises:
        DecisionError: fewer than two vectors, a vector with a NaN, or `k` below 1.
    """
    require_vectors(vector_ND)
    if k < 1:
        raise DecisionError(f"neighbours: found {k}; expected 1 or more")
    count = min(k, len(vector_ND) - 1)
    rows, cosines = [], []
    starts = range(0, len(vector_ND), _BLOCK)
    for start in tqdm(starts, desc="nearest neighbours", unit="block", delay=3.0, leave=False):
        cosine_BN = vector_ND[start : start + _BLOCK] @ vector_ND.T
        own = np.arange(len(cosine_BN))
        cosine_BN[own, start + own] = -np.inf
        part_BK = np.argpartition(-cosine_BN, count - 1, axis=1)[:, :count]
        part_BK = np.sort(part_BK, axis=1)  # ties are in the order of rows
        found_BK = np.take_along_axis(cosine_BN, part_BK, axis=1)
        order_BK = np.argsort(-found_BK, axis=1, kind="stable")
        rows.append(np.take_along_axis(part_BK, order_BK, axis=1))
        cosines.append(np.take_along_axis(found_BK, order_BK, axis=1))
    return np.concatenate(rows), np.concatenate(cosines)


def require_vectors(vector_ND: np.ndarray) -> None:
    """Check that there are vectors to compare.

    Raises:
        DecisionError: fewer than two vectors, or a vector with a NaN.
    """
    if vector_ND.ndim != 2 or len(vector_ND) < 2:
        raise DecisionError(f"vectors: found shape {vector_ND.shape}; expected at least two vectors")
    bad = np.flatnonzero(~np.isfinite(vector_ND).all(axis=1))
    if len(bad):
        raise DecisionError(
            f"vectors: found {len(bad)} that are not finite, first row {bad[0]}; expected finite numbers"
        )


@dataclass(frozen=True)
class PairScorer:
    """Score pairs of a catalogue's products.

    `cosine(a, b) = a·b` and `margin(a, b) = a·b - ½ (m_a + m_b)`, where m_a is the mean cosine of a and its K nearest
    neighbours. The margin is high if a pair is nearer than what else is around: in a dense region of look-alikes a cosine
    of .9 means less. Source: the "distance" margin of Artetxe and Schwenk, "Margin-based Parallel Corpus Mining with
    Multilingual Sentence Embeddings", ACL 2019 (arXiv 1811.01136), §3.2.

    Args:
        vector_ND: (N, D) float32 unit vectors.
        neighbour_NK: (N, K) rows of the nearest neighbours, see `nearest_neighbours`.
        mean_N: (N,) mean cosine of a product and its neighbours.
    """

    vector_ND: np.ndarray
    neighbour_NK: np.ndarray
    mean_N: np.ndarray

    @classmethod
    def of(cls, vector_ND: np.ndarray, k: int) -> PairScorer:
        """Return the scorer of a catalogue; see `nearest_neighbours` for arguments and errors."""
        neighbour_NK, cosine_NK = nearest_neighbours(vector_ND, k)
        return cls(vector_ND, neighbour_NK, cosine_NK.mean(axis=1))

    def features(self, pair_P2: np.ndarray) -> np.ndarray:
        """Return the (P, F) float64 features of pairs of rows, in the order of `FEATURES`."""
        left, right = pair_P2[:, 0], pair_P2[:, 1]
        cosine_P = np.einsum("pd,pd->p", self.vector_ND[left], self.vector_ND[right], dtype=np.float64)
        margin_P = cosine_P - 0.5 * (self.mean_N[left] + self.mean_N[right])
        return np.stack([cosine_P, margin_P], axis=1)

    def candidates(self, min_cosine: float = -1.0) -> np.ndarray:
        """Return the pairs in which one product is among the nearest neighbours of the other, each once.

        Args:
            min_cosine (`float`): least cosine. Default -1: all.

        Shapes: returns (P, 2) int64, the smaller row first, in ascending order.
        """
        left = np.repeat(np.arange(len(self.neighbour_NK)), self.neighbour_NK.shape[1])
        pair_P2 = np.stack([left, self.neighbour_NK.ravel()], axis=1)
        pair_P2 = np.unique(np.sort(pair_P2, axis=1), axis=0)
        return pair_P2[self.features(pair_P2)[:, 0] >= min_cosine] if min_cosine > -1 else pair_P2
