"""Evaluate zero-shot attribute prediction: for each key the nearest value text (MOON, arXiv 2508.11999 §2)."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from evaluation.metrics import RELAXED, Scorer, bootstrap_interval_of, classification_scores, search_ranks
from product_data.attribute_keys import mbe_key
from product_data.tables import ProductRow
from retrieval.encode import Encoded, VectorCache

FORMS = ("mm", "i")
OWN_KEYS = "own"
KEYS = (OWN_KEYS, "paper")
AVERAGED = ("top1", "top1_chance", "top10", "top10_chance", "precision", "recall", "f1", "majority")


def without_attributes(product: ProductRow, labels: Mapping[str, Sequence[str]] | None = None) -> dict[str, Any]:
    """Return a product's record without its attributes, and without its category if that repeats a value of them.

    Args:
        product: the product.
        labels: further attributes that must not be repeated, because they are to be predicted. Default: none.
    """
    known = [*product.attributes.values(), *(labels or {}).values()]
    values = {value.casefold() for listed in known for value in listed}
    repeats = any(name.casefold() in values for name in product.category)
    return product.record("mm", without=("attributes", "category") if repeats else ("attributes",))


def grouped(attributes: Mapping[str, Sequence[str]], keys: str = OWN_KEYS) -> dict[str, tuple[str, ...]]:
    """Group attributes by the keys of the evaluation.

    Args:
        attributes: key → values.
        keys: "own": the keys of the data; "paper": the ten keys of MBE (`processing_moon`'s REASONING_KEYS), where
            "颜色分类" and "主颜色" are one key; other keys are left out. Values are unchanged.
    """
    if keys == OWN_KEYS:
        return {key: tuple(values) for key, values in attributes.items()}
    joined: dict[str, dict[str, None]] = {}
    for key, values in attributes.items():
        if (known := mbe_key(key)) is not None:
            joined.setdefault(known, {}).update(dict.fromkeys(values))
    return {key: tuple(values) for key, values in joined.items()}


def evaluate_attributes(
    cache: VectorCache,
    *,
    resamples: int = 1000,
    seed: int = 0,
    scorer: Scorer = classification_scores,
    keys: str = OWN_KEYS,
) -> dict[str, Any]:
    """Compute the metrics of classification for each attribute key, their mean over keys, and accuracy over all pairs.

    The candidates of a key are all of its values in the whole data set, each embedded as a query of task "attribute".
    Products without the key are skipped; a product with several values is right with any of them. A key with a single
    value would always be right; it is left out and listed. Products are encoded without their attributes or a category
    that repeats one (form "mm"), and from the image alone (form "i").

    `scorer` computes the scores of a key, with the arguments of `classification_scores`; the study of shops also keeps
    single values. `keys` is "own" or "paper", see `grouped`.

    Returns: form → "keys" (key → scores), "mean" (over keys, with the 95 % interval of its top-1 over products),
    "relaxed" (`evaluation.metrics.relaxed_scores`, mean over the keys with more than ten values), "all" (over all pairs
    of product and key: pairs, top1 with its interval, top10), "single_valued" (keys that are left out); empty without
    attributes.
    """
    truth = [grouped(product.attributes, keys) for product in cache.products]
    labels = _values_by_key(grouped(product.attributes, keys) for product in cache.label_products)
    scored = functools.partial(scorer, resamples=resamples, seed=seed)
    results: dict[str, Any] = {}
    for form in FORMS:
        if cache.unrelated("t", form):
            continue
        gallery = (
            cache.varied_gallery("mm, no attributes", "mm", without_attributes) if form == "mm" else cache.gallery(form)
        )
        if found := _form_scores(cache, gallery, truth, labels, scored, (resamples, seed)):
            results[form] = found
    return results


def evaluate_shown_attributes(
    cache: VectorCache, *, resamples: int = 1000, seed: int = 0, keys: str = OWN_KEYS
) -> dict[str, Any]:
    """Evaluate attribute prediction against the attributes that picture and text show (MOON3.0, arXiv 2604.00513).

    A product's picture alone (form "i") is compared with `attributes_image`, its text alone without its attributes
    (form "t") with `attributes_text`; products for which these are unknown are skipped. Candidates are the values of
    that set in the whole data set.

    Returns: as `evaluate_attributes`, for the forms "i" and "t".
    """
    results: dict[str, Any] = {}
    scored = functools.partial(classification_scores, resamples=resamples, seed=seed)
    for form, field in (("i", "attributes_image"), ("t", "attributes_text")):
        if cache.unrelated("t", form):
            continue
        truth = [grouped(getattr(product, field) or {}, keys) for product in cache.products]
        labels = _values_by_key(grouped(getattr(product, field) or {}, keys) for product in cache.label_products)
        if not any(truth):
            continue
        gallery = (
            cache.gallery("i")
            if form == "i"
            else cache.varied_gallery("t, no attributes", "t", _text_without_attributes)
        )
        if found := _form_scores(cache, gallery, truth, labels, scored, (resamples, seed)):
            results[form] = found
    return results


def _text_without_attributes(product: ProductRow) -> dict[str, Any]:
    record = without_attributes(product, product.attributes_text)
    return {name: value for name, value in record.items() if name not in ("images", "core_box")}


def _values_by_key(rows: Iterable[Mapping[str, Sequence[str]]]) -> dict[str, list[str]]:
    values: dict[str, set[str]] = {}
    for row in rows:
        for key, listed in row.items():
            values.setdefault(key, set()).update(listed)
    return {key: sorted(listed) for key, listed in sorted(values.items())}


def _form_scores(
    cache: VectorCache,
    gallery: Encoded,
    truth: Sequence[Mapping[str, Sequence[str]]],
    labels: Mapping[str, list[str]],
    scored: Scorer,
    bootstrap: tuple[int, int],
) -> dict[str, Any]:
    """Return the scores of one form of products; empty if no key can be scored."""
    scores, single = {}, []
    found_ranks: list[np.ndarray] = []
    evaluated = {key for row in truth for key in row}
    if texts := [text for key, values in labels.items() if key in evaluated and len(values) > 1 for text in values]:
        cache.labels(texts, "attribute")  # all at once: full batches, where most keys have only a few values
    for key, values in labels.items():
        if key not in evaluated:
            continue
        if len(values) == 1:
            single.append(key)
        elif found := _key(cache, gallery, truth, (key, values), scored):
            scores[key], rank_N = found
            found_ranks.append(rank_N)
    if not scores:
        return {}
    rank_NK = np.stack(found_ranks, axis=1)
    hit_NK = np.where(np.isnan(rank_NK), np.nan, rank_NK <= 1)
    resamples, seed = bootstrap
    interval = bootstrap_interval_of(_mean_over_keys, hit_NK, resamples=resamples, seed=seed)
    mean = _mean(scores) | {"top1_interval": list(interval)}
    interval = bootstrap_interval_of(_mean_over_pairs, hit_NK, resamples=resamples, seed=seed)
    pairs = {
        "pairs": int((~np.isnan(rank_NK)).sum()),
        "top1": _mean_over_pairs(hit_NK),
        "top1_interval": list(interval),
        "top10": _mean_over_pairs(np.where(np.isnan(rank_NK), np.nan, rank_NK <= RELAXED)),
    }
    return {"keys": scores, "mean": mean, "relaxed": _relaxed_mean(scores), "all": pairs, "single_valued": single}


def _key(
    cache: VectorCache,
    gallery: Encoded,
    truth: Sequence[Mapping[str, Sequence[str]]],
    key_and_values: tuple[str, list[str]],
    scorer: Scorer,
) -> tuple[dict[str, Any], np.ndarray] | None:
    """Return the scores of a key, and the rank of each gallery product's value, NaN without a value."""
    key, values = key_and_values
    place = {value: number for number, value in enumerate(values)}
    rows = [row for row, index in enumerate(gallery.kept) if key in truth[index]]
    if not rows:
        return None
    wanted = [[place[value] for value in truth[gallery.kept[row]][key]] for row in rows]
    value_LD = cache.labels(values, "attribute")
    rank_N = np.full(len(gallery.kept), np.nan)
    rank_N[rows] = search_ranks(gallery.vectors[rows], value_LD, wanted)
    return scorer(gallery.vectors[rows], value_LD, wanted), rank_N


def _mean_over_pairs(hit_NK: np.ndarray) -> float:
    """Return the share of hits among all pairs of product and key."""
    return 0.0 if np.isnan(hit_NK).all() else float(np.nanmean(hit_NK))


def _mean_over_keys(hit_NK: np.ndarray) -> float:
    """Return the mean over keys of the share of hits, without keys that none of the products has."""
    count_K = (~np.isnan(hit_NK)).sum(axis=0)
    return float((np.nansum(hit_NK, axis=0)[count_K > 0] / count_K[count_K > 0]).mean()) if count_K.any() else 0.0


def _relaxed_mean(scores: dict[str, dict[str, Any]]) -> dict[str, float | int] | None:
    """Return the mean of the relaxed scores over the keys that have them; None if no key has."""
    relaxed = [of_key["relaxed"] for of_key in scores.values() if of_key["relaxed"]]
    if not relaxed:
        return None
    metrics = ("accuracy", "precision", "recall", "f1")
    return {"keys": len(relaxed)} | {name: float(np.mean([of_key[name] for of_key in relaxed])) for name in metrics}


def _mean(scores: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return each metric's mean over the keys that have it (top-10 is null with ten values or fewer)."""
    mean: dict[str, Any] = {"keys": len(scores)}
    for metric in AVERAGED:
        values = [of_key[metric] for of_key in scores.values() if of_key[metric] is not None]
        mean[metric] = float(np.mean(values)) if values else None
    return mean
