"""Retrieval and classification metrics as pure functions on arrays, with bootstrap intervals.

Shape suffixes: Q queries, G gallery items, D vector size, N items, L labels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

CUTOFFS = (1, 5, 10)
_ROWS_PER_BLOCK = 1024
Scorer = Callable[..., dict[str, Any]]
"""Makes the scores of items against labels, as `classification_scores` does."""
LEVEL = 0.95
RELAXED = 10
"""How many of the nearest labels the relaxed rule of MOON looks at."""


def ranks(similarity_QG: np.ndarray, positives_QG: np.ndarray, exclude_QG: np.ndarray | None = None) -> np.ndarray:
    """Rank of each query's best-placed right answer, 1 being the top.

    `rank_q = 1 + #{g : g is neither right nor excluded, s_qg >= max over right answers p of s_qp}`

    Ties are counted against the model: a wrong answer with the same score stands before the right one, so that a model
    that gives every item the same vector finds nothing.

    Args:
        similarity_QG (`ndarray`): scores, higher is nearer.
        positives_QG (`ndarray` of bool): the right answers.
        exclude_QG (`ndarray` of bool or `None`): items left out of that query's ranking, right answers included.

    Shapes: returns (Q,) float64; `inf` for a query without a right answer in the ranking.

    Raises:
        ValueError: shapes that differ, or scores that are not finite.
    """
    similarity, positives = np.asarray(similarity_QG), np.asarray(positives_QG, dtype=bool)
    exclude = np.zeros_like(positives) if exclude_QG is None else np.asarray(exclude_QG, dtype=bool)
    if similarity.shape != positives.shape or similarity.shape != exclude.shape:
        raise ValueError(
            f"shapes differ: similarity {similarity.shape}, positives {positives.shape}, exclude {exclude.shape}"
        )
    if not np.isfinite(similarity).all():
        raise ValueError("similarity holds NaN or infinite scores; expected finite numbers")
    right = positives & ~exclude
    best_Q = np.where(right, similarity, -np.inf).max(axis=1, initial=-np.inf)
    before_Q = ((similarity >= best_Q[:, None]) & ~positives & ~exclude).sum(axis=1)
    return np.where(right.any(axis=1), 1.0 + before_Q, np.inf)


def search_ranks(
    query_QD: np.ndarray,
    gallery_GD: np.ndarray,
    positives: Sequence[Sequence[int]],
    exclude: Sequence[Sequence[int]] | None = None,
) -> np.ndarray:
    """`ranks` of a search by dot product, computed in blocks of queries so that a large gallery fits in memory.

    Args:
        query_QD, gallery_GD (`ndarray`): unit vectors.
        positives (Q lists of gallery indices): the right answers of each query.
        exclude (Q lists of gallery indices or `None`): left out of each query's ranking.

    Shapes: returns (Q,) float64.
    """
    count, size = len(query_QD), len(gallery_GD)
    blocks = [np.zeros(0)]
    for start in range(0, count, _ROWS_PER_BLOCK):
        rows = range(start, min(start + _ROWS_PER_BLOCK, count))
        right = _mask([positives[row] for row in rows], size)
        left_out = _mask([exclude[row] for row in rows], size) if exclude is not None else None
        blocks.append(ranks(query_QD[rows.start : rows.stop] @ gallery_GD.T, right, left_out))
    return np.concatenate(blocks)


def _mask(indices: Sequence[Sequence[int]], size: int) -> np.ndarray:
    mask = np.zeros((len(indices), size), dtype=bool)
    for row, columns in enumerate(indices):
        mask[row, list(columns)] = True
    return mask


def recall_at(rank_Q: np.ndarray, k: int) -> float:
    """Share of queries with a right answer among the first k.

    A query with several right answers counts as found when any of them is there (the usual R@k of retrieval benchmarks
    with one purchased item per query; not the share of all right answers that were found).

    Raises:
        ValueError: no queries, or k < 1.
    """
    return float(np.mean(_hits(rank_Q, k)))


def _hits(rank_Q: np.ndarray, k: int) -> np.ndarray:
    if k < 1 or len(rank_Q) == 0:
        raise ValueError(f"recall at k={k} of {len(rank_Q)} queries; expected k of 1 or more, at least one query")
    return (np.asarray(rank_Q) <= k).astype(np.float64)


def rank_score(rank_Q: np.ndarray, candidates_Q: np.ndarray) -> float:
    """`mean_q 1 - log(rank_q) / log(N_q)`: 1 at the top, 0 at the bottom; each halving of a rank counts alike.

    The retrieval reward of the joint stage (LREM, arXiv 2510.14321), over a gallery. A query whose right answer is not in the
    ranking counts 0, one with a single candidate 1.

    Args:
        rank_Q (`ndarray`): ranks from 1 to N, or `inf`.
        candidates_Q (`ndarray` of int): N, the items in each query's ranking.

    Raises:
        ValueError: no queries.
    """
    rank_Q, candidates_Q = np.asarray(rank_Q, dtype=np.float64), np.asarray(candidates_Q, dtype=np.float64)
    if len(rank_Q) == 0:
        raise ValueError("rank score of 0 queries; expected at least one")
    found_Q = np.isfinite(rank_Q)
    share_Q = np.log(np.where(found_Q, rank_Q, 1.0)) / np.log(np.maximum(candidates_Q, 2))
    return float(np.mean(np.where(found_Q, 1.0 - share_Q, 0.0)))


def mean_reciprocal_rank(rank_Q: np.ndarray) -> float:
    """`mean_q 1 / rank_q`; a query whose right answer is not in the ranking counts 0.

    Raises:
        ValueError: no queries.
    """
    if len(rank_Q) == 0:
        raise ValueError("mean reciprocal rank of 0 queries; expected at least one")
    return float(np.mean(1.0 / np.asarray(rank_Q, dtype=np.float64)))


def ndcg_at(score_QG: np.ndarray, gain_QG: np.ndarray, k: int) -> np.ndarray:
    """Normalised discounted cumulative gain of each query, for graded answers.

    `DCG@k = Σ_{r ≤ k} gain_r / log2(1 + r)`, divided by that of the best order. Ties are counted against the model.

    Source: Järvelin and Kekäläinen, "Cumulated gain-based evaluation of IR techniques", 2002, with linear gains.

    Args:
        score_QG (`ndarray`): scores, higher is nearer.
        gain_QG (`ndarray`): the grade of each item for each query, 0 where it is no answer.

    Shapes: returns (Q,) float64 in [0, 1].

    Raises:
        ValueError: shapes that differ, k < 1, or a query without an answer.
    """
    score, gain = np.asarray(score_QG, dtype=np.float64), np.asarray(gain_QG, dtype=np.float64)
    if score.shape != gain.shape or k < 1 or not (gain > 0).any(axis=1).all():
        raise ValueError(
            f"k={k}, scores {score.shape}, gains {gain.shape}; expected k of 1 or more, one shape, an answer for each query"
        )
    order_QG = np.lexsort((gain, -score), axis=1)  # of equal scores the lower gain first
    discount_K = 1 / np.log2(2 + np.arange(min(k, score.shape[1])))
    found_QK = np.take_along_axis(gain, order_QG, axis=1)[:, : len(discount_K)]
    best_QK = -np.sort(-gain, axis=1)[:, : len(discount_K)]
    return (found_QK @ discount_K) / (best_QK @ discount_K)


def search_ndcg(
    query_QD: np.ndarray,
    gallery_GD: np.ndarray,
    gains: Sequence[Mapping[int, float]],
    exclude: Sequence[Sequence[int]] | None = None,
    cutoffs: Sequence[int] = CUTOFFS,
) -> dict[int, np.ndarray]:
    """`ndcg_at` of a search by dot product, in blocks of queries, without sorting the gallery.

    The place of an answer is 1 plus the number of items with a higher score, of those with its score and a lower gain, and of
    those with its score and its gain that come first.

    Args:
        query_QD, gallery_GD (`ndarray`): unit vectors.
        gains (Q mappings): gallery index → gain above 0 of each query's answers.
        exclude (Q lists of gallery indices or `None`): left out of each query's ranking, answers included.
        cutoffs: the k of nDCG@k.

    Returns: k → (Q,) float64 in [0, 1]; 0 for a query all of whose answers are left out.

    Raises:
        ValueError: a query without an answer, or a gain that is not positive.
    """
    if any(not found or min(found.values()) <= 0 for found in gains):
        raise ValueError("gains; expected at least one answer for each query, and gains above 0")
    found_KQ = np.zeros((len(cutoffs), len(query_QD)))
    for start in range(0, len(query_QD), _ROWS_PER_BLOCK):
        similarity = query_QD[start : start + _ROWS_PER_BLOCK] @ gallery_GD.T
        for row, score_G in enumerate(similarity, start=start):
            left_out = set(exclude[row]) if exclude is not None else set()
            score_G[list(left_out)] = -np.inf
            kept = {place: gain for place, gain in gains[row].items() if place not in left_out}
            found_KQ[:, row] = _ndcg(score_G, kept, cutoffs)
    return dict(zip(cutoffs, found_KQ, strict=True))


def _ndcg(score_G: np.ndarray, gains: Mapping[int, float], cutoffs: Sequence[int]) -> list[float]:
    """nDCG at each cut-off of one query."""
    order = sorted(gains, key=lambda place: gains[place])  # of equal scores the lower gain stands first
    places = []
    for number, place in enumerate(order):
        tied = (score_G == score_G[place]).sum() - sum(score_G[other] == score_G[place] for other in order[number:])
        places.append((1 + int((score_G > score_G[place]).sum()) + int(tied), gains[place]))
    best = sorted(gains.values(), reverse=True)
    values = []
    for k in cutoffs:
        ideal = sum(gain / np.log2(1 + rank) for rank, gain in enumerate(best[:k], start=1))
        found = sum(gain / np.log2(1 + rank) for rank, gain in places if rank <= k)
        values.append(float(found / ideal) if ideal else 0.0)
    return values


def agreement_at(similarity_QG: np.ndarray, agree_QG: np.ndarray, exclude_QG: np.ndarray, k: int) -> np.ndarray:
    """Share of the first k items of each ranking that agree with the answer, such as in colour.

    Of equal scores, items that do not agree stand first. A ranking of fewer than k items is taken whole.

    Args:
        similarity_QG (`ndarray`): scores, higher is nearer.
        agree_QG, exclude_QG (`ndarray` of bool): which items agree, and which are left out.
        k (`int`): how many.

    Shapes: returns (Q,) float64 in [0, 1]; NaN for an empty ranking.

    Raises:
        ValueError: k < 1.
    """
    if k < 1:
        raise ValueError(f"agreement at k={k}; expected k of 1 or more")
    share_Q = np.full(len(similarity_QG), np.nan)
    for row, (score_G, agree_G, left_G) in enumerate(zip(similarity_QG, agree_QG, exclude_QG, strict=True)):
        score_C, agree_C = score_G[~left_G], agree_G[~left_G]
        count = min(k, len(score_C))
        if not count:
            continue
        last = np.partition(score_C, len(score_C) - count)[len(score_C) - count]
        above, tied = score_C > last, score_C == last
        agreeing = int((above & agree_C).sum()) + max(0, count - int(above.sum()) - int((tied & ~agree_C).sum()))
        share_Q[row] = agreeing / count
    return share_Q


def chance_recall(positives_Q: np.ndarray, candidates_Q: np.ndarray, k: int) -> float:
    """Recall at k of a ranking in random order.

    `mean_q 1 - C(n_q - p_q, k) / C(n_q, k)` for p_q right answers among n_q candidates; k / n where each query has one.

    Raises:
        ValueError: no queries, or k < 1.
    """
    if k < 1 or len(positives_Q) == 0:
        raise ValueError(f"chance at k={k} of {len(positives_Q)} queries; expected k of 1 or more, at least one query")
    positives, candidates = np.asarray(positives_Q, dtype=np.float64), np.asarray(candidates_Q, dtype=np.float64)
    miss_Q = np.ones(len(positives))
    for drawn in range(k):
        miss_Q *= np.clip(candidates - positives - drawn, 0, None) / np.maximum(candidates - drawn, 1)
    return float(np.mean(1 - miss_Q))


def bootstrap_interval(
    values_N: np.ndarray, *, resamples: int = 1000, seed: int = 0, level: float = LEVEL
) -> tuple[float, float]:
    """Percentile bootstrap interval of a mean over queries (Efron 1979).

    Args:
        values_N (`ndarray`): one value a query, such as 1 for a hit and 0 for a miss.
        resamples (`int`): how many times the N queries are drawn again, with replacement. Default 1000.
        seed (`int`): the same seed gives the same interval. Default 0.
        level (`float`): share of the resampled means inside the interval. Default 0.95.

    Raises:
        ValueError: no values.
    """
    values = np.asarray(values_N, dtype=np.float64)
    if len(values) == 0:
        raise ValueError("bootstrap over 0 values; expected at least one")
    low, high = _percentiles([values[rows].mean() for rows in _draws(len(values), resamples, seed)], level)
    return low, high


def bootstrap_interval_of(
    statistic: Callable[[np.ndarray], float], values: np.ndarray, *, resamples: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """`bootstrap_interval` of any statistic of rows that are drawn together.

    Args:
        statistic: called with drawn rows of `values`.
        values (`ndarray`): one row an item.

    Raises:
        ValueError: no rows.
    """
    if len(values) == 0:
        raise ValueError("bootstrap over 0 values; expected at least one")
    low, high = _percentiles([statistic(values[rows]) for rows in _draws(len(values), resamples, seed)])
    return low, high


def _draws(count: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    rng = np.random.default_rng(seed)
    return (rng.integers(0, count, count) for _ in range(resamples))


def _percentiles(values: Sequence[float], level: float = LEVEL) -> list[float]:
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return [float(low), float(high)]


def paired_difference(
    before_N: np.ndarray, after_N: np.ndarray, *, resamples: int = 1000, seed: int = 0
) -> dict[str, float | list[float]]:
    """Mean of `after - before` over the same queries, with its bootstrap interval.

    The pairs are drawn together: what a query contributes to both sides cancels, so that the interval is narrower than
    what the two intervals alone suggest. The difference is beyond chance where the interval leaves out 0.

    Raises:
        ValueError: different numbers of queries, or none.
    """
    before, after = np.asarray(before_N, dtype=np.float64), np.asarray(after_N, dtype=np.float64)
    if before.shape != after.shape:
        raise ValueError(f"{len(before)} and {len(after)} values; expected the same queries on both sides")
    difference = after - before
    interval = bootstrap_interval(difference, resamples=resamples, seed=seed)
    return {"difference": float(difference.mean()), "interval": list(interval)}


def retrieval_scores(
    rank_Q: np.ndarray, *, cutoffs: Sequence[int] = CUTOFFS, resamples: int = 1000, seed: int = 0
) -> dict[str, Any]:
    """R@k with its 95 % interval for each cut-off, by default 1, 5 and 10, and the mean reciprocal rank.

    Raises:
        ValueError: no queries.
    """
    scores: dict[str, Any] = {}
    for k in cutoffs:
        scores[f"R@{k}"] = recall_at(rank_Q, k)
        scores[f"R@{k}_interval"] = list(bootstrap_interval(_hits(rank_Q, k), resamples=resamples, seed=seed))
    return scores | {"MRR": mean_reciprocal_rank(rank_Q)}


def classification_scores(
    item_ND: np.ndarray,
    label_LD: np.ndarray,
    true_labels: Sequence[Sequence[int]],
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Nearest label by dot product, against the true labels of each item.

    An item with several true labels is right with any of them. Macro averages are over the labels that some item truly
    has; for an item with several, the one that was predicted counts as its truth, or else its first.

    Args:
        item_ND, label_LD (`ndarray`): unit vectors.
        true_labels (N lists of label indices, none empty).

    Returns: top1, top10 (`None` with 10 labels or fewer, where it could only be 1), precision, recall, f1 (macro), each with its
    95 % bootstrap interval over items under "…_interval"; relaxed, see `relaxed_scores` (`None` with 10 labels or fewer);
    top1_chance and top10_chance, what labels in random order give; majority, what always naming the label that most items have
    would give at top-1; most_predicted, the share of items for which the label that is named most often is named: near 1, all
    items get one label; items, labels.

    Raises:
        ValueError: no items, or an item without a label.
    """
    if len(item_ND) == 0 or not all(len(labels) for labels in true_labels):
        raise ValueError(f"{len(item_ND)} items; expected at least one, each with a true label")
    rank_N = search_ranks(item_ND, label_LD, true_labels)
    # A tie at the top is not a right answer (see `ranks`): the item then counts as predicted to be some wrong label.
    predicted_N, best_true_N = _predict(item_ND, label_LD, true_labels, rank_N)
    truth = np.where(rank_N <= 1, predicted_N, [labels[0] for labels in true_labels]).astype(int)
    count_N = np.asarray([len(set(labels)) for labels in true_labels])
    labels_N, size = np.full(len(item_ND), len(label_LD)), len(label_LD)
    draws = list(_draws(len(item_ND), resamples, seed))
    from evaluation.metric_classes import MacroScores  # takes seconds to import

    macro = MacroScores().compute(predictions=predicted_N, references=truth)
    drawn_macro = [macro_scores(truth[rows], predicted_N[rows], size) for rows in draws]
    scores: dict[str, Any] = {}
    for name, k in (("top1", 1), ("top10", 10)):
        says_something = k == 1 or size > k
        hits = _hits(rank_N, k)
        scores[name] = float(hits.mean()) if says_something else None
        scores[f"{name}_interval"] = _percentiles([hits[rows].mean() for rows in draws]) if says_something else None
        scores[f"{name}_chance"] = chance_recall(count_N, labels_N, k) if says_something else None
    for place, name in enumerate(("precision", "recall", "f1")):
        scores[name] = macro[name]
        scores[f"{name}_interval"] = _percentiles([found[place] for found in drawn_macro])
    first_N = np.asarray([labels[0] for labels in true_labels])
    relaxed = relaxed_scores(rank_N, predicted_N, best_true_N, first_N, size) if size > RELAXED else None
    majority = np.bincount(np.concatenate([sorted(set(labels)) for labels in true_labels]).astype(int), minlength=size)
    said = np.bincount(predicted_N, minlength=size)
    shares = {"majority": float(majority.max() / len(item_ND)), "most_predicted": float(said.max() / len(item_ND))}
    return scores | shares | {"relaxed": relaxed, "items": len(item_ND), "labels": size}


def relaxed_scores(
    rank_N: np.ndarray, predicted_N: np.ndarray, best_true_N: np.ndarray, first_true_N: np.ndarray, labels: int
) -> dict[str, float | int]:
    """Accuracy and macro precision, recall and F1 where the ten nearest labels count as the prediction.

    An item whose true label is among them is predicted to be that label, any other item to be its nearest label. All four metrics
    are of these predictions (MOON, arXiv 2508.11999 App. B); accuracy is then top-10.

    Args:
        rank_N (`ndarray`): the rank of each item's true label, of several that of the best one.
        predicted_N, best_true_N, first_true_N (`ndarray` of int): the nearest label, the nearest true one, the first true one.
        labels (`int`): how many labels there are.

    Returns: accuracy, precision, recall, f1, and k, how many labels are looked at.
    """
    found_N = rank_N <= RELAXED
    precision, recall, f1 = macro_scores(
        np.where(found_N, best_true_N, first_true_N), np.where(found_N, best_true_N, predicted_N), labels
    )
    return {"k": RELAXED, "accuracy": float(found_N.mean()), "precision": precision, "recall": recall, "f1": f1}


def macro_scores(truth_N: np.ndarray, predicted_N: np.ndarray, labels: int) -> tuple[float, float, float]:
    """Precision, recall and F1, each averaged over the labels that some item truly has; a division by 0 gives 0.

    As `evaluation.metric_classes.MacroScores`, in microseconds.

    Args:
        truth_N, predicted_N (`ndarray` of int): label indices.
        labels (`int`): how many labels there are.
    """
    true_L = np.bincount(truth_N, minlength=labels)
    said_L = np.bincount(predicted_N, minlength=labels)
    hit_L = np.bincount(truth_N[truth_N == predicted_N], minlength=labels)
    there = true_L > 0
    precision_L = hit_L / np.maximum(said_L, 1)
    recall_L = hit_L / np.maximum(true_L, 1)
    f1_L = 2 * hit_L / np.maximum(true_L + said_L, 1)
    return float(precision_L[there].mean()), float(recall_L[there].mean()), float(f1_L[there].mean())


def _predict(
    item_ND: np.ndarray, label_LD: np.ndarray, true_labels: Sequence[Sequence[int]], rank_N: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Of each item the nearest label, a wrong one where it ties with the true one, and the nearest of its true labels."""
    predicted, best_true = [], []
    for start in range(0, len(item_ND), _ROWS_PER_BLOCK):
        similarity = item_ND[start : start + _ROWS_PER_BLOCK] @ label_LD.T
        for row, rank, labels in zip(similarity, rank_N[start:], true_labels[start:], strict=False):
            best_true.append(int(labels[int(row[list(labels)].argmax())]))
            if rank > 1:
                row = row.copy()
                row[list(labels)] = -np.inf
            predicted.append(int(row.argmax()))
    return np.asarray(predicted), np.asarray(best_true)
