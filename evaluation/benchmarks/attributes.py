"""Zero-shot attribute prediction: for each key the value text nearest to a product (MOON, arXiv 2508.11999 §2)."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from evaluation.data.tables import ProductRow
from evaluation.encode import Encoded, VectorCache
from evaluation.metrics import Scorer, bootstrap_interval_of, classification_scores, search_ranks

FORMS = ("mm", "i")
AVERAGED = ("top1", "top1_chance", "top10", "top10_chance", "precision", "recall", "f1", "majority")


def without_attributes(product: ProductRow) -> dict[str, Any]:
    """The product's record without its attributes, and without its category where that repeats an attribute's value."""
    values = {value.casefold() for found in product.attributes.values() for value in found}
    repeats = any(name.casefold() in values for name in product.category)
    return product.record("mm", without=("attributes", "category") if repeats else ("attributes",))


def evaluate_attributes(
    cache: VectorCache, *, resamples: int = 1000, seed: int = 0, scorer: Scorer = classification_scores
) -> dict[str, Any]:
    """The four metrics of classification for every attribute key, and their mean over keys.

    The candidates of a key are the values that it has anywhere in the data set, evaluated or not, each embedded as a query of
    task "attribute". Products without the key are skipped; a product with several values is right with any of them. A key
    with one value only would always be right: it is left out and named. Products are encoded without their attributes,
    and without a category that repeats one (form "mm"), and from the image alone (form "i").

    `scorer` makes the scores of a key, with the arguments of `classification_scores`; the study of shops keeps more.

    Returns: form → "keys" (key → scores), "mean" (over keys, with the 95 % interval of its top-1 over products), "single_valued"
    (keys left out); empty without attributes.
    """
    keys = sorted({key for product in cache.products for key in product.attributes})
    results: dict[str, Any] = {}
    scored = functools.partial(scorer, resamples=resamples, seed=seed)
    for form in FORMS:
        gallery = (
            cache.varied_gallery("mm, no attributes", "mm", without_attributes) if form == "mm" else cache.gallery(form)
        )
        scores, single = {}, []
        hits: list[np.ndarray] = []
        for key in keys:
            values = sorted({value for product in cache.label_products for value in product.attributes.get(key, ())})
            if len(values) == 1:
                single.append(key)
            elif found := _key(cache, gallery, key, values, scored):
                scores[key], hit_N = found
                hits.append(hit_N)
        if scores:
            interval = bootstrap_interval_of(_mean_over_keys, np.stack(hits, axis=1), resamples=resamples, seed=seed)
            mean = _mean(scores) | {"top1_interval": list(interval)}
            results[form] = {"keys": scores, "mean": mean, "single_valued": single}
    return results


def _key(
    cache: VectorCache, gallery: Encoded, key: str, values: list[str], scorer: Scorer
) -> tuple[dict[str, Any], np.ndarray] | None:
    """The scores of a key, and of each product of the gallery whether its value was found, NaN where it has none."""
    place = {value: number for number, value in enumerate(values)}
    rows = [row for row, index in enumerate(gallery.kept) if key in cache.products[index].attributes]
    if not rows:
        return None
    truth = [[place[value] for value in cache.products[gallery.kept[row]].attributes[key]] for row in rows]
    value_LD = cache.labels(values, "attribute")
    hit_N = np.full(len(gallery.kept), np.nan)
    hit_N[rows] = search_ranks(gallery.vectors[rows], value_LD, truth) <= 1
    return scorer(gallery.vectors[rows], value_LD, truth), hit_N


def _mean_over_keys(hit_NK: np.ndarray) -> float:
    """The mean over keys of the share of hits; a key that none of the products has does not count."""
    there_K = (~np.isnan(hit_NK)).sum(axis=0)
    return float((np.nansum(hit_NK, axis=0)[there_K > 0] / there_K[there_K > 0]).mean()) if there_K.any() else 0.0


def _mean(scores: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Each metric's mean over the keys that have it (top-10 is null with ten values or fewer)."""
    mean: dict[str, Any] = {"keys": len(scores)}
    for metric in AVERAGED:
        there = [found[metric] for found in scores.values() if found[metric] is not None]
        mean[metric] = float(np.mean(there)) if there else None
    return mean
