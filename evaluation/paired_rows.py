"""Compare models on the same queries: make rows with one value per query, and compute the paired differences of rows.

Shape suffixes: N queries or products of a row, Q queries, G products of a gallery, D vector size, L labels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from evaluation.baselines.bm25 import bm25_scores, product_text
from evaluation.benchmarks.attributes import evaluate_attributes, without_attributes
from evaluation.benchmarks.classification import evaluate_classification, without_category
from evaluation.benchmarks.retrieval import DIRECTIONS, IMAGE_ONLY, Search, make_search
from evaluation.metrics import (
    bootstrap_interval,
    chance_recall,
    classification_scores,
    ndcg_at,
    ranks,
    search_ranks,
)
from evaluation.significance import paired_test
from retrieval.encode import VectorCache

CUTOFFS = (1, 10)
MEAN_OF_KEYS = "mean of keys"
_VALUES = "right_N"


@dataclass(frozen=True)
class Row:
    """One row of an evaluation of one model.

    Args:
        task (`str`): "retrieval", "classification" or "attributes".
        what (`str`): a direction, a level, or an attribute key.
        form (`str`): form of the products: "mm", "t" or "i".
        metric (`str`): "R@1", "R@10", "nDCG@10" or "top-1".
        value_N (`ndarray`): one value for each query or product, whose mean is the score.
        names (`tuple[str, ...]`): the query or product of each value.
        choices (`int` or `None`): number of products in the gallery, or of labels; None for a mean over keys.
        chance (`float` or `None`): the score of a random order.
        word_N (`ndarray` or `None`): BM25's values, for text queries.
    """

    task: str
    what: str
    form: str
    metric: str
    value_N: np.ndarray
    names: tuple[str, ...]
    choices: int | None
    chance: float | None
    word_N: np.ndarray | None = None

    @property
    def key(self) -> tuple[str, str, str, str]:
        """Task, target, form and metric of the row, which are the same for each model."""
        return self.task, self.what, self.form, self.metric


def all_rows(cache: VectorCache, *, least: int = 20) -> list[Row]:
    """Return all rows that the data of a cache allows: retrieval, classification, attributes.

    Args:
        cache: the vectors of one model.
        least (`int`): minimum number of queries, or of products with a label, for a row. Default 20.
    """
    rows = [*retrieval_rows(cache), *classification_rows(cache), *attribute_rows(cache, least=least)]
    return [row for row in rows if len(row.names) >= least]


# ---------------------------------------------------------------------------------------------------------------------
# Retrieval


def retrieval_rows(cache: VectorCache) -> list[Row]:
    """Return R@1 and R@10 of each direction and each image-only gallery, and nDCG@10 if answers are graded."""
    rows = []
    for name, (kind, form) in (DIRECTIONS | IMAGE_ONLY).items():
        search = make_search(cache, name, (kind, form), {})
        if search is None:
            continue
        score_QG = search.vectors @ search.gallery.T
        by_words = kind == "text" and form != "i" and search.source == "queries"
        words_QG = _word_scores(cache, search, form) if by_words else None
        rows += [Row("retrieval", name, form, *values) for values in _search_values(cache, search, score_QG, words_QG)]
    return rows


def _search_values(
    cache: VectorCache, search: Search, score_QG: np.ndarray, words_QG: np.ndarray | None
) -> Iterator[tuple[str, np.ndarray, tuple[str, ...], int, float | None, np.ndarray | None]]:
    shape = score_QG.shape
    right_QG, excluded_QG = _mask(search.positives, shape), _mask(search.exclude, shape)
    ids = [row.query_id for row in cache.queries]
    if search.source == "products":
        ids = [row.product_id for row in cache.products]
    names = tuple(ids[place] for place in search.indices)
    count_Q, candidates_Q = right_QG.sum(axis=1), (~excluded_QG).sum(axis=1)
    score_sets = [scores for scores in (score_QG, words_QG) if scores is not None]
    rank_sets = [ranks(scores, right_QG, excluded_QG) for scores in score_sets]
    for k in CUTOFFS:
        hits = [(rank_Q <= k).astype(np.float64) for rank_Q in rank_sets]
        yield f"R@{k}", hits[0], names, shape[1], chance_recall(count_Q, candidates_Q, k), (hits + [None])[1]
    graded = search.source == "queries" and any(
        set(cache.queries[place].answers.values()) - {1.0} for place in search.indices
    )
    if graded and not excluded_QG.any():
        gain_QG = _gains(cache, search, shape)
        kept = [ndcg_at(scores, gain_QG, 10) for scores in score_sets]
        yield "nDCG@10", kept[0], names, shape[1], None, (kept + [None])[1]


def _mask(indices: Sequence[Sequence[int]], shape: tuple[int, int]) -> np.ndarray:
    mask = np.zeros(shape, dtype=bool)
    for row, columns in enumerate(indices):
        mask[row, list(columns)] = True
    return mask


def _gains(cache: VectorCache, search: Search, shape: tuple[int, int]) -> np.ndarray:
    """Return the grade of each product for each query, (Q, G)."""
    place = {cache.products[index].product_id: row for row, index in enumerate(cache.gallery("mm").kept)}
    gain_QG = np.zeros(shape)
    for row, index in enumerate(search.indices):
        for product, weight in cache.queries[index].answers.items():
            if product in place:
                gain_QG[row, place[product]] = weight
    return gain_QG


def _word_scores(cache: VectorCache, search: Search, form: str) -> np.ndarray:
    texts = [cache.queries[place].text for place in search.indices]
    return bm25_scores(texts, [product_text(cache.products[index]) for index in cache.gallery(form).kept])


# ---------------------------------------------------------------------------------------------------------------------
# Labels


def scores_with_values(
    item_ND: np.ndarray, label_LD: np.ndarray, truth: Sequence[Sequence[int]], **bootstrap: Any
) -> dict[str, Any]:
    """Return `classification_scores` with two more entries: whether each nearest label is right, and its chance."""
    right_N = (search_ranks(item_ND, label_LD, truth) <= 1).astype(np.float64)
    chance = float(np.mean([len(set(labels)) for labels in truth])) / len(label_LD)
    return classification_scores(item_ND, label_LD, truth, **bootstrap) | {_VALUES: right_N, "chance": chance}


def classification_rows(cache: VectorCache) -> list[Row]:
    """Return top-1 for each level of the category tree, and for the deepest level if paths have different lengths."""
    rows = []
    for form, levels in evaluate_classification(cache, resamples=1, scorer=scores_with_values).items():
        gallery = (
            cache.varied_gallery("mm, no category", "mm", without_category) if form == "mm" else cache.gallery(form)
        )
        paths = {cache.products[index].product_id: cache.products[index].category for index in gallery.kept}
        last = levels[[name for name in levels if name != "deepest"][-1]]
        for name, scores in levels.items():
            if scores is None or (name == "deepest" and last is not None and last["labels"] == scores["labels"]):
                continue
            depth = None if name == "deepest" else int(name.removeprefix("level_"))
            names = [product_id for product_id, path in paths.items() if len(path) >= (depth or 1)]
            rows.append(_label_row("classification", name.replace("_", " "), form, scores, names))
    return rows


def attribute_rows(cache: VectorCache, *, least: int = 1) -> list[Row]:
    """Return top-1 of each attribute key that at least `least` products have, and the mean over these keys."""
    rows = []
    for form, results in evaluate_attributes(cache, resamples=1, scorer=scores_with_values).items():
        gallery = (
            cache.varied_gallery("mm, no attributes", "mm", without_attributes) if form == "mm" else cache.gallery(form)
        )
        products = [cache.products[index] for index in gallery.kept]
        of_keys = [
            _label_row("attributes", key, form, scores, [row.product_id for row in products if key in row.attributes])
            for key, scores in results["keys"].items()
            if scores["items"] >= least
        ]
        rows += [*of_keys, _mean_of_keys(of_keys)] if of_keys else []
    return rows


def _label_row(task: str, what: str, form: str, scores: dict[str, Any], names: Sequence[str]) -> Row:
    if len(names) != len(scores[_VALUES]):
        raise ValueError(
            f"{task}, {what}: found {len(scores[_VALUES])} values for {len(names)} products; expected one each"
        )
    return Row(task, what, form, "top-1", scores[_VALUES], tuple(names), scores["labels"], scores["chance"])


def _mean_of_keys(rows: Sequence[Row]) -> Row:
    """Return the mean over keys of each key's mean, as a mean over products: `value_p = N/K · Σ_k right_pk / n_k`.

    This form allows a paired bootstrap over products, each with all of its keys.
    """
    share: dict[str, float] = {}
    for row in rows:
        for name, value in zip(row.names, row.value_N, strict=True):
            share[name] = share.get(name, 0.0) + float(value) / len(row.names)
    value_N = np.array(list(share.values())) * len(share) / len(rows)
    chance = float(np.mean([row.chance for row in rows if row.chance is not None]))
    return Row("attributes", MEAN_OF_KEYS, rows[0].form, "top-1", value_N, tuple(share), None, chance)


# ---------------------------------------------------------------------------------------------------------------------
# Pairs


def compare_rows(
    first: Sequence[Row], second: Sequence[Row], names: tuple[str, str], *, resamples: int = 1000, seed: int = 0
) -> list[dict[str, Any]]:
    """Compare two models row by row; `second` is the reference.

    Args:
        first, second: rows of the same data, as `all_rows` returns them.
        names: names of the two models.
        resamples (`int`): samples of the bootstrap. Default 1000.
        seed (`int`): seed of the bootstrap. Default 0.

    Returns: for each row task, what, form, metric, queries, choices, chance, models (name → value and interval; also
    BM25 for text queries), difference (the first minus the second, see `evaluation.significance.paired_test`) and ahead
    (the name of the model that is ahead if the interval excludes 0, or None).

    Raises:
        ValueError: rows or queries that differ.
    """
    if [row.key for row in first] != [row.key for row in second]:
        raise ValueError(
            "the two models have different rows; expected the same data, with the same records skipped for both"
        )
    bootstrap = {"resamples": resamples, "seed": seed}
    compared = []
    for ours, other in zip(first, second, strict=True):
        if ours.names != other.names:
            raise ValueError(f"{ours.key}: the two models have different queries; expected the same queries for both")
        difference: dict[str, Any] = {**paired_test(other.value_N, ours.value_N, **bootstrap)}
        interval = difference["interval"]
        low, high = interval
        values = {names[0]: ours.value_N, names[1]: other.value_N}
        values |= {} if ours.word_N is None else {"BM25": ours.word_N}
        compared.append(
            {
                **dict(zip(("task", "what", "form", "metric"), ours.key, strict=True)),
                "queries": len(ours.names),
                "choices": ours.choices,
                "chance": ours.chance,
                "models": {
                    name: {"value": float(value_N.mean()), "interval": list(bootstrap_interval(value_N, **bootstrap))}
                    for name, value_N in values.items()
                },
                "difference": difference,
                "ahead": names[0] if low > 0 else names[1] if high < 0 else None,
            }
        )
    return compared
