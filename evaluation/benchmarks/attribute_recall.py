"""Evaluate attribute-level recall: whether the results of a search agree with the answer in colour, material and so on.

R@k does not distinguish a search that finds a wrong product of the right colour and material from one that finds
neither the colour nor the material. Our design (precedent: precision at k, with the right value instead of the right product).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from evaluation.benchmarks.attributes import OWN_KEYS, grouped
from evaluation.benchmarks.retrieval import DIRECTIONS, Search, make_search
from evaluation.metrics import CUTOFFS, agreement_at, bootstrap_interval, chance_recall, ranks
from retrieval.encode import VectorCache

_ROWS_PER_BLOCK = 1024
SEARCHES = ("t2mm", "i2mm", "mm2mm")
Attributes = Mapping[str, Sequence[str]]


def evaluate_attribute_recall(
    cache: VectorCache, *, keys: str = OWN_KEYS, cutoffs: Sequence[int] = CUTOFFS, resamples: int = 1000, seed: int = 0
) -> dict[str, Any]:
    """Compute for each attribute key how often the first k products have a value of the answer.

    A query counts for a key if its right answers have the key. Products without the key and products that the search
    leaves out are not in the ranking. A product agrees if it has one of the answers' values. recall@k is the share of
    queries with an agreeing product among the first k; agreement@k is the mean share of the first k that agree. Ties
    count against the model.

    Args:
        cache: the vectors of one model.
        keys: "own", or "paper" for the ten keys of MBE, see `evaluation.benchmarks.attributes.grouped`.
        cutoffs: the k. Default 1, 5, 10.
        resamples, seed: samples and seed of the bootstrap of recall@k. Default 1000 and 0.

    Returns: direction → "keys" (key → recall@k with its interval and chance, agreement@k, queries) and "mean" over the
        keys; directions without queries or attributes are left out.
    """
    results: dict[str, Any] = {}
    for name in SEARCHES:
        search = make_search(cache, name, DIRECTIONS[name], {})
        if search is None or search.source != "queries":
            continue
        kept = cache.gallery(DIRECTIONS[name][1]).kept
        attributes = [grouped(cache.products[index].attributes, keys) for index in kept]
        scores = {}
        for key in sorted({key for found in attributes for key in found}):
            if (found := _key_scores(search, attributes, key, cutoffs, (resamples, seed))) is not None:
                scores[key] = found
        if scores:
            metrics = [f"{metric}@{k}" for metric in ("recall", "agreement") for k in cutoffs]
            mean = {metric: float(np.mean([found[metric] for found in scores.values()])) for metric in metrics}
            results[name] = {"keys": scores, "mean": mean | {"keys": len(scores)}}
    return results


def _key_scores(
    search: Search, attributes: Sequence[Attributes], key: str, cutoffs: Sequence[int], bootstrap: tuple[int, int]
) -> dict[str, Any] | None:
    rows_of: dict[str, list[int]] = {}
    for row, of_product in enumerate(attributes):
        for value in of_product.get(key, ()):
            rows_of.setdefault(value, []).append(row)
    lacking = [row for row, of_product in enumerate(attributes) if key not in of_product]
    wanted = [{value for row in right for value in attributes[row].get(key, ())} for right in search.positives]
    queries = [row for row, values in enumerate(wanted) if values]
    if not queries:
        return None
    ranks_B, counts_B, candidates_B = [], [], []
    shares_B: dict[int, list[np.ndarray]] = {k: [] for k in cutoffs}
    for start in range(0, len(queries), _ROWS_PER_BLOCK):
        block = queries[start : start + _ROWS_PER_BLOCK]
        similarity = search.vectors[block] @ search.gallery.T
        agree, left_out = np.zeros(similarity.shape, dtype=bool), np.zeros(similarity.shape, dtype=bool)
        left_out[:, lacking] = True
        for place, row in enumerate(block):
            agree[place, [other for value in wanted[row] for other in rows_of[value]]] = True
            left_out[place, search.exclude[row]] = True
        ranks_B.append(ranks(similarity, agree, left_out))
        counts_B.append((agree & ~left_out).sum(axis=1))
        candidates_B.append((~left_out).sum(axis=1))
        for k in cutoffs:
            shares_B[k].append(agreement_at(similarity, agree, left_out, k))
    rank_Q, count_Q, candidates_Q = map(np.concatenate, (ranks_B, counts_B, candidates_B))
    scores: dict[str, Any] = {"queries": len(queries)}
    for k in cutoffs:
        hit_Q = (rank_Q <= k).astype(np.float64)
        scores[f"recall@{k}"] = float(hit_Q.mean())
        interval = bootstrap_interval(hit_Q, resamples=bootstrap[0], seed=bootstrap[1])
        scores[f"recall@{k}_interval"] = list(interval)
        scores[f"recall@{k}_chance"] = chance_recall(count_Q, candidates_Q, k)
        scores[f"agreement@{k}"] = float(np.nanmean(np.concatenate(shares_B[k])))
    return scores
