"""Rank candidates by exact scores with ties in the order of ids, and fuse rankings by reciprocal rank.

Legend: Q queries, P candidates of a pool, D embedding.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

RANK_CONSTANT = 60
"""k of reciprocal rank fusion (Cormack, Clarke and Büttcher 2009)."""
FUSION_DEPTH = 100
"""Number of products of each ranking that are fused; more if more are requested. Our design (precedent: the rank windows of
Elasticsearch's and Qdrant's fusion)."""
TIE = 1e-5
"""Scores within this distance of the last place may be ties after rounding: all of them stay candidates."""


class Candidate(NamedTuple):
    """A product that a search found, with its score and the form of its nearest vector ("" for words)."""

    product_id: str
    score: float
    form: str = ""


def exact_cosines(query_D: np.ndarray, vector_PD: np.ndarray) -> np.ndarray:
    """Return the dot products of a query with vectors, summed in float64 in the same order for every row.

    Equal vectors have equal scores, wherever they are stored: a matrix product does not promise this.

    Shapes: query (D,), vectors (P, D) float32; returns (P,) float32.
    """
    product_PD = vector_PD.astype(np.float64) * query_D.astype(np.float64)
    return product_PD.sum(axis=1).astype(np.float32)


def best(candidates: Iterable[Candidate], k: int) -> list[Candidate]:
    """Return the k best candidates, best first; ties are in the order of ids.

    A product that several of its vectors found counts once, with its highest score.
    """
    highest: dict[str, Candidate] = {}
    for candidate in candidates:
        other = highest.get(candidate.product_id)
        if other is None or candidate.score > other.score:
            highest[candidate.product_id] = candidate
    return sorted(highest.values(), key=lambda one: (-one.score, one.product_id))[:k]


def rounded(score: float) -> float:
    """Return a BM25 score with five significant digits: sums in another order or precision then still tie."""
    return float(f"{score:.4e}")


def reciprocal_rank_fusion(rankings: Sequence[Sequence[str]], *, constant: int = RANK_CONSTANT) -> dict[str, float]:
    """Return the fused score of every id that a ranking has.

    `score(d) = Σ_r 1 / (constant + rank_r(d))`, with ranks from 1; a ranking without d adds nothing.

    Source: Cormack, Clarke and Büttcher, "Reciprocal Rank Fusion outperforms Condorcet and individual Rank Learning
    Methods", SIGIR 2009.

    Args:
        rankings: ids, best first.
        constant (`int`): reduces the weight of the first ranks. Default 60, as in the paper.
    """
    scores: dict[str, float] = {}
    for ranking in rankings:
        for rank, product_id in enumerate(ranking, start=1):
            scores[product_id] = scores.get(product_id, 0.0) + 1.0 / (constant + rank)
    return scores
