"""Evaluate zero-shot classification: the category label text nearest to a product (MOON, arXiv 2508.11999 §2)."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from evaluation.metrics import Scorer, classification_scores
from product_data.tables import ProductRow
from retrieval.encode import Encoded, VectorCache

FORMS = ("mm", "i")
SEPARATOR = " > "


def without_category(product: ProductRow) -> dict[str, Any]:
    """Return a product's record without its category, and without attribute values that repeat a name of its path."""
    names = {name.casefold() for name in product.category}
    record = product.record("mm", without=("category",))
    attributes = {
        key: kept
        for key, values in product.attributes.items()
        if (kept := [value for value in values if value.casefold() not in names])
    }
    return {name: value for name, value in record.items() if name != "attributes"} | (
        {"attributes": attributes} if attributes else {}
    )


def evaluate_classification(
    cache: VectorCache,
    *,
    resamples: int = 1000,
    seed: int = 0,
    scorer: Scorer = classification_scores,
    level_names: Sequence[str] = (),
) -> dict[str, Any]:
    """Compute top-1, top-10, macro precision, recall and F1 for each level of the category tree and the deepest one.

    The scores are strict; "relaxed" holds those by the rule of MOON, see `evaluation.metrics.relaxed_scores`.

    A label is a path of names ("Home > Kitchen > Mugs"), because two branches can share a name; it is embedded as a
    query of task "category". The labels of a level are all paths of that length in the whole data set. A level with a
    single label is null, since it would always be right. Products are encoded without their category or
    attributes that repeat it (form "mm"), and from the image alone (form "i").

    `scorer` computes the scores of a level, with the arguments of `classification_scores`; the study of shops also
    keeps single values. `level_names` are the names of the levels, root first, such as "industry"; the default names
    are level_1, level_2, ….

    Returns: form → "level_1", …, "deepest" → scores; an empty dict if no product has a category.
    """
    depth = max((len(product.category) for product in cache.label_products), default=0)
    if depth == 0:
        return {}
    named = dict(enumerate(level_names, start=1))
    levels: list[tuple[str, int | None]] = [
        (named.get(level, f"level_{level}"), level) for level in range(1, depth + 1)
    ]
    results: dict[str, Any] = {}
    for form in FORMS:
        if cache.unrelated("t", form):
            continue
        gallery = (
            cache.varied_gallery("mm, no category", "mm", without_category) if form == "mm" else cache.gallery(form)
        )
        scored = functools.partial(scorer, resamples=resamples, seed=seed)
        found = {name: _level(cache, gallery, level, scored) for name, level in [*levels, ("deepest", None)]}
        if any(found.values()):
            results[form] = found
    return results


def _level(cache: VectorCache, gallery: Encoded, level: int | None, scorer: Scorer) -> dict[str, Any] | None:
    wanted = [_path(product, level) for product in cache.products]
    labels = sorted({path for product in cache.label_products if (path := _path(product, level))})
    place = {path: number for number, path in enumerate(labels)}
    rows = [row for row, index in enumerate(gallery.kept) if wanted[index]]
    if not rows or len(labels) == 1:
        return None
    label_LD = cache.labels([SEPARATOR.join(path) for path in labels], "category")
    truth = [[place[wanted[gallery.kept[row]]]] for row in rows]
    return scorer(gallery.vectors[rows], label_LD, truth)


def _path(product: ProductRow, level: int | None) -> tuple[str, ...]:
    """Return a product's path down to a level (`None`: its deepest), or () if the path is shorter."""
    path = product.category if level is None else product.category[:level]
    return path if level is None or len(path) == level else ()
