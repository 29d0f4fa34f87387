"""Evaluate retrieval with the first numbers of each vector: the cost of a width (Matryoshka, arXiv 2205.13147)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from evaluation.benchmarks.retrieval import DIRECTIONS, Measures, make_search, scores_of
from evaluation.metrics import CUTOFFS
from product_data.errors import OptionError
from retrieval.encode import VectorCache
from retrieval.vectors.vector_types import shortened


def evaluate_dimensions(
    cache: VectorCache,
    widths: Sequence[int],
    *,
    cutoffs: Sequence[int] = CUTOFFS,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """Compute recall in every direction with the first numbers of each vector, normalised, without encoding again.

    The whole vector determines which queries are unsure and reason.

    Args:
        cache: the vectors of the gallery and the queries.
        widths: numbers of each vector to use, at least 1 and at most all.
        cutoffs: the k of R@k and nDCG@k. Default 1, 5, 10.
        resamples, seed: samples and seed of the bootstrap. Default 1000 and 0.

    Returns: the width as text → {"scores": direction → scores as in `evaluate_retrieval`, without directions that have
    no queries}.

    Raises:
        OptionError: a width out of range.
    """
    results: dict[str, dict[str, Any]] = {str(width): {"scores": {}} for width in widths}
    for name, kind_and_form in DIRECTIONS.items():
        search = make_search(cache, name, kind_and_form, {})
        if search is None:
            continue
        for width in widths:
            if not 1 <= width <= search.gallery.shape[1]:
                raise OptionError(
                    f"dimensions={width}; expected 1 to {search.gallery.shape[1]}, the width of the vectors"
                )
            narrow = replace(search, vectors=shortened(search.vectors, width), gallery=shortened(search.gallery, width))
            results[str(width)]["scores"][name] = scores_of(narrow, Measures(tuple(cutoffs), resamples, seed))
    return results
