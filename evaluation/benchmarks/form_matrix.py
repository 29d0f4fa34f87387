"""Evaluate each form of query against each form of product: a three by three matrix of text, image and both.

The five directions of MOON2.0 and MOON3.0 (arXiv 2511.12449, 2604.00513) are five of its cells; the other four cover
the remaining combinations. Our design.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from evaluation.benchmarks.retrieval import QUERY_FORMS, Measures, Ranked, direction_scores
from evaluation.metrics import CUTOFFS
from product_data.rows import PRODUCT_FORMS
from retrieval.encode import VectorCache


def evaluate_form_matrix(
    cache: VectorCache,
    *,
    cutoffs: Sequence[int] = CUTOFFS,
    resamples: int = 1000,
    seed: int = 0,
    ranked: dict[str, Ranked] | None = None,
) -> dict[str, Any]:
    """Compute the scores of each form of query against each form of product.

    Args:
        cache: the vectors.
        cutoffs, resamples, seed: of the measures.
        ranked: takes the ranks of each direction's queries, for `per_query`. Default: they are not kept.

    Returns: form of the query ("t", "i", "mm") → form of the product → scores as in `evaluate_retrieval`, or None;
        "absent" → direction ("t2mm", …) → why there is no score. Without text (image) queries, parts of products search
        in t→i (i→t), as in `evaluate_retrieval`.
    """
    absent: dict[str, str] = {}
    measures = Measures(tuple(cutoffs), resamples, seed)
    matrix: dict[str, Any] = {
        query: {
            form: direction_scores(cache, f"{query}2{form}", kind, form, absent, measures, ranked)
            for form in PRODUCT_FORMS
        }
        for query, kind in QUERY_FORMS.items()
    }
    return matrix | {"absent": absent}
