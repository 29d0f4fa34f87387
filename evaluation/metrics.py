"""Compute retrieval and classification metrics with bootstrap intervals, as pure functions on arrays.

Shape suffixes: Q queries, G products of the gallery, D vector size, N classified products or queries, L labels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

CUTOFFS = (1, 5, 10)
_ROWS_PER_BLOCK = 1024
Scorer = Callable[..., dict[str, Any]]
"""A function that scores vectors against labels, such as `classification_scores`."""
LEVEL = 0.95
RELAXED = 10
"""Number of nearest labels that count as the prediction in the relaxed rule of MOON."""


def ranks(similarity_QG: np.ndarray, positives_QG: np.ndarray, exclude_QG: np.ndarray | None = None) -> np.ndarray:
    """Return the rank of each query's best right answer, 1 being the top.

    `rank_q = 1 + #{g : g is neither right nor excluded, s_qg >= max over right answers p of s_qp}`

    Ties count against the model: a wrong answer with the same score ranks before the right one, so a model with
    the same vector for all products finds nothing.

    Args:
        similarity_QG (`ndarray`): scores, higher is nearer.
        positives_QG (`ndarray` of bool): the right answers.
        exclude_QG (`ndarray` of bool or `None`): products to leave out of a query's ranking, even right answers.

    Shapes: returns (Q,) float64; `inf` for a query without a right answer in the ranking.

    Raises:
        ValueError: shapes that differ, or scores that are not finite.
    """
    similarity, positives = np.asarray(similarity_QG), np.asarray(positives_QG, dtype=bool)
    exclude = np.zeros_like(positives) if exclude_QG is None else np.asarray(exclude_QG, dtype=bool)
    if similarity.shape != positives.shape or similarity.shape != exclude.shape:
        raise ValueError(
            f"shapes differ: found similarity {similarity.shape}, positives {positives.shape}, "
            f"exclude {exclude.shape}; expected one shape"
        )
    if not np.isfinite(similarity).all():
        raise ValueError("similarity: found NaN or infinite scores; expected finite numbers")
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
    """Return `ranks` of a search by dot product, computed in blocks of queries so that a large gallery fits in memory.

    Args:
        query_QD, gallery_GD (`ndarray`): unit vectors.
        positives (Q lists of gallery indices): the right answers of each query.
        exclude (Q lists of gallery indices or `None`): products to leave out of each query's ranking.

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
    """Return the share of queries with a right answer among the first k.

    A query with several right answers counts as found if any of them is among the first k. This is the usual R@k of
    retrieval benchmarks with one purchased product per query, not the share of all right answers that were found.

    Raises:
        ValueError: no queries, or k < 1.
    """
    return float(np.mean(_hits(rank_Q, k)))


def _hits(rank_Q: np.ndarray, k: int) -> np.ndarray:
    if k < 1 or len(rank_Q) == 0:
        raise ValueError(
            f"recall: found k={k} and {len(rank_Q)} queries; expected k of at least 1, and at least one query"
        )
    return (np.asarray(rank_Q) <= k).astype(np.float64)


def rank_score(rank_Q: np.ndarray, candidates_Q: np.ndarray) -> float:
    """Return `mean_q 1 - log(rank_q) / log(N_q)`: 1 at the top, 0 at the bottom; each halving of a rank adds the same.

    This is the retrieval reward of the joint stage (LREM, arXiv 2510.14321), computed over a gallery. A query without a
    right answer in the ranking counts as 0, a query with a single candidate as 1.

    Args:
        rank_Q (`ndarray`): ranks from 1 to N, or `inf`.
        candidates_Q (`ndarray` of int): N, the number of products in each query's ranking.

    Raises:
        ValueError: no queries.
    """
    rank_Q, candidates_Q = np.asarray(rank_Q, dtype=np.float64), np.asarray(candidates_Q, dtype=np.float64)
    if len(rank_Q) == 0:
        raise ValueError("rank score: found 0 queries; expected at least one")
    found_Q = np.isfinite(rank_Q)
    share_Q = np.log(np.where(found_Q, rank_Q, 1.0)) / np.log(np.maximum(candidates_Q, 2))
    return float(np.mean(np.where(found_Q, 1.0 - share_Q, 0.0)))


def mean_reciprocal_rank(rank_Q: np.ndarray) -> float:
    """Return `mean_q 1 / rank_q`; a query without a right answer in the ranking counts as 0.

    Raises:
        ValueError: no queries.
    """
    if len(rank_Q) == 0:
        raise ValueError("mean reciprocal rank: found 0 queries; expected at least one")
    return float(np.mean(1.0 / np.asarray(rank_Q, dtype=np.float64)))


def ndcg_at(score_QG: np.ndarray, gain_QG: np.ndarray, k: int) -> np.ndarray:
    """Return the normalised discounted cumulative gain of each query, for graded answers.

    `DCG@k = Σ_{r ≤ k} gain_r / log2(1 + r)`, divided by the DCG@k of the best order. Ties count against the model.

    Source: Järvelin and Kekäläinen, "Cumulated gain-based evaluation of IR techniques", 2002, with linear gains.

    Args:
        score_QG (`ndarray`): scores, higher is nearer.
        gain_QG (`ndarray`): the grade of each product for each query, 0 if it is not an answer.

    Shapes: returns (Q,) float64 in [0, 1].

    Raises:
        ValueError: shapes that differ, k < 1, or a query without an answer.
    """
    score, gain = np.asarray(score_QG, dtype=np.float64), np.asarray(gain_QG, dtype=np.float64)
    if score.shape != gain.shape or k < 1 or not (gain > 0).any(axis=1).all():
        raise ValueError(
            f"nDCG: found k={k}, scores {score.shape}, gains {gain.shape}; expected k of 1 or more, one shape, and an "
            "answer for each query"
        )
    order_QG = np.lexsort((gain, -score), axis=1)  # among equal scores the lower gain first
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
    """Return `ndcg_at` of a search by dot product, in blocks of queries, without sorting the gallery.

    The rank of an answer is 1 plus the number of products with a higher score, with the same score and a lower gain, or
    with the same score and gain that come first.

    Args:
        query_QD, gallery_GD (`ndarray`): unit vectors.
        gains (Q mappings): gallery index → gain above 0 of each query's answers.
        exclude (Q lists of gallery indices or `None`): products to leave out of each query's ranking, even answers.
        cutoffs: the k of nDCG@k. Default 1, 5, 10.

    Returns: k → (Q,) float64 in [0, 1]; 0 for a query all of whose answers are left out.

    Raises:
        ValueError: a query without an answer, or a gain that is not positive.
    """
    if any(not answers or min(answers.values()) <= 0 for answers in gains):
        raise ValueError(
            "gains: found a query without answers or a gain of 0 or less; expected answers with gains above 0"
        )
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
    """Return nDCG of one query at each cut-off."""
    order = sorted(gains, key=lambda place: gains[place])  # among equal scores the lower gain first
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
    """Return the share of the first k products of each ranking that agree with the answer, for example in colour.

    Among equal scores, products that do not agree come first. A ranking of fewer than k products is used whole.

    Args:
        similarity_QG (`ndarray`): scores, higher is nearer.
        agree_QG, exclude_QG (`ndarray` of bool): products that agree, and products to leave out.
        k (`int`): number of first products.

    Shapes: returns (Q,) float64 in [0, 1]; NaN for an empty ranking.

    Raises:
        ValueError: k < 1.
    """
    if k < 1:
        raise ValueError(f"agreement: found k={k}; expected k of 1 or more")
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
    """Return recall at k of a ranking in random order.

    `mean_q 1 - C(n_q - p_q, k) / C(n_q, k)` for p_q right answers among n_q candidates; k / n if each query has one.

    Raises:
        ValueError: no queries, or k < 1.
    """
    if k < 1 or len(positives_Q) == 0:
        raise ValueError(
            f"chance: found k={k} and {len(positives_Q)} queries; expected k of at least 1, and at least one query"
        )
    positives, candidates = np.asarray(positives_Q, dtype=np.float64), np.asarray(candidates_Q, dtype=np.float64)
    miss_Q = np.ones(len(positives))
    for drawn in range(k):
        miss_Q *= np.clip(candidates - positives - drawn, 0, None) / np.maximum(candidates - drawn, 1)
    return float(np.mean(1 - miss_Q))


def bootstrap_interval(
    values_N: np.ndarray, *, resamples: int = 1000, seed: int = 0, level: float = LEVEL
) -> tuple[float, float]:
    """Return the percentile bootstrap interval of a mean over queries (Efron 1979).

    Args:
        values_N (`ndarray`): one value per query, such as 1 for a hit and 0 for a miss.
        resamples (`int`): number of samples of N queries, with replacement. Default 1000.
        seed (`int`): seed of the samples. Default 0.
        level (`float`): share of the resampled means inside the interval. Default 0.95.

    Raises:
        ValueError: no values.
    """
    values = np.asarray(values_N, dtype=np.float64)
    if len(values) == 0:
        raise ValueError("bootstrap: found 0 values; expected at least one")
    low, high = _percentiles([values[rows].mean() for rows in _draws(len(values), resamples, seed)], level)
    return low, high


def bootstrap_interval_of(
    statistic: Callable[[np.ndarray], float], values: np.ndarray, *, resamples: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Return the bootstrap interval of any statistic of rows, see `bootstrap_interval`.

    Args:
        statistic: function of sampled rows of `values`.
        values (`ndarray`): one row per product or query.

    Raises:
        ValueError: no rows.
    """
    if len(values) == 0:
        raise ValueError("bootstrap: found 0 values; expected at least one")
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
    """Return the mean of `after - before` over the same queries, with its bootstrap interval.

    Both values of a query are drawn together: what a query contributes to both sides cancels, and the interval is
    narrower than the two single intervals suggest. The difference is beyond chance if the interval excludes 0.

    Raises:
        ValueError: different numbers of queries, or none.
    """
    before, after = np.asarray(before_N, dtype=np.float64), np.asarray(after_N, dtype=np.float64)
    if before.shape != after.shape:
        raise ValueError(f"found {len(before)} and {len(after)} values; expected the same queries on both sides")
    difference = after - before
    interval = bootstrap_interval(difference, resamples=resamples, seed=seed)
    return {"difference": float(difference.mean()), "interval": list(interval)}


def retrieval_scores(
    rank_Q: np.ndarray, *, cutoffs: Sequence[int] = CUTOFFS, resamples: int = 1000, seed: int = 0
) -> dict[str, Any]:
    """Return R@k with its 95 % interval for each cut-off, by default 1, 5 and 10, and the mean reciprocal rank.

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
    """Return the scores of predicting the nearest label by dot product.

    A product or query with several true labels is right with any of them. Macro averages are over the labels that are
    true for at least one of them; if several labels are true, the predicted one counts as the true one, or else the first.

    Args:
        item_ND, label_LD (`ndarray`): unit vectors.
        true_labels (N lists of label indices, none empty).

    Returns: top1, top10 (`None` with 10 labels or fewer, where it is always 1), precision, recall, f1 (macro), each
    with its 95 % bootstrap interval over products or queries under "…_interval"; relaxed, see `relaxed_scores` (`None`
    with 10 labels or fewer); top1_chance and top10_chance, the scores of labels in random order; majority, top-1 of
    always predicting the most common label; most_predicted, the share of predictions that are the most frequent one
    (near 1, all predictions are the same); items (number of products or queries), labels (number of labels).

    Raises:
        ValueError: no vectors, or a product or query without a true label.
    """
    if len(item_ND) == 0 or not all(len(labels) for labels in true_labels):
        raise ValueError(f"found {len(item_ND)} products or queries; expected at least one, each with a true label")
    rank_N = search_ranks(item_ND, label_LD, true_labels)
    # A tie at the top is wrong (see `ranks`): the prediction is then one of the wrong labels.
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
        is_informative = k == 1 or size > k
        hits = _hits(rank_N, k)
        scores[name] = float(hits.mean()) if is_informative else None
        scores[f"{name}_interval"] = _percentiles([hits[rows].mean() for rows in draws]) if is_informative else None
        scores[f"{name}_chance"] = chance_recall(count_N, labels_N, k) if is_informative else None
    for place, name in enumerate(("precision", "recall", "f1")):
        scores[name] = macro[name]
        scores[f"{name}_interval"] = _percentiles([found[place] for found in drawn_macro])
    first_N = np.asarray([labels[0] for labels in true_labels])
    relaxed = relaxed_scores(rank_N, predicted_N, best_true_N, first_N, size) if size > RELAXED else None
    majority = np.bincount(np.concatenate([sorted(set(labels)) for labels in true_labels]).astype(int), minlength=size)
    predicted = np.bincount(predicted_N, minlength=size)
    shares = {"majority": float(majority.max() / len(item_ND)), "most_predicted": float(predicted.max() / len(item_ND))}
    return scores | shares | {"relaxed": relaxed, "items": len(item_ND), "labels": size}


def relaxed_scores(
    rank_N: np.ndarray, predicted_N: np.ndarray, best_true_N: np.ndarray, first_true_N: np.ndarray, labels: int
) -> dict[str, float | int]:
    """Return accuracy and macro precision, recall and F1 if the ten nearest labels count as the prediction.

    If the true label is among them, it is the prediction; otherwise the nearest label is. All four metrics use these
    predictions (MOON, arXiv 2508.11999 App. B); accuracy is then top-10.

    Args:
        rank_N (`ndarray`): the rank of the true label, or of the best of several.
        predicted_N, best_true_N, first_true_N (`ndarray` of int): the nearest label, the nearest true one, the first
        true one.
        labels (`int`): number of labels.

    Returns: accuracy, precision, recall, f1, and k, the number of labels that count as the prediction.
    """
    found_N = rank_N <= RELAXED
    precision, recall, f1 = macro_scores(
        np.where(found_N, best_true_N, first_true_N), np.where(found_N, best_true_N, predicted_N), labels
    )
    return {"k": RELAXED, "accuracy": float(found_N.mean()), "precision": precision, "recall": recall, "f1": f1}


def macro_scores(truth_N: np.ndarray, predicted_N: np.ndarray, labels: int) -> tuple[float, float, float]:
    """Return macro-averaged precision, recall and F1 over the labels in the ground truth; 0 / 0 counts as 0.

    Computes the same scores as `evaluation.metric_classes.MacroScores`, but takes only microseconds.

    Args:
        truth_N, predicted_N (`ndarray` of int): label indices.
        labels (`int`): number of labels.
    """
    true_L = np.bincount(truth_N, minlength=labels)
    predicted_L = np.bincount(predicted_N, minlength=labels)
    hit_L = np.bincount(truth_N[truth_N == predicted_N], minlength=labels)
    occurs_L = true_L > 0
    precision_L = hit_L / np.maximum(predicted_L, 1)
    recall_L = hit_L / np.maximum(true_L, 1)
    f1_L = 2 * hit_L / np.maximum(true_L + predicted_L, 1)
    return float(precision_L[occurs_L].mean()), float(recall_L[occurs_L].mean()), float(f1_L[occurs_L].mean())


def _predict(
    item_ND: np.ndarray, label_LD: np.ndarray, true_labels: Sequence[Sequence[int]], rank_N: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return each vector's nearest label (a wrong one if it ties with the true one) and nearest true label."""
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
