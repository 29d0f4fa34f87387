"""Evaluate zero-shot classification of queries: the category label text nearest to a user's photo or words (MOON §2).

It is for queries whose answer is a category, not a product (`positive_categories`), such as the regions of a street
photo.
"""

from __future__ import annotations

from typing import Any

from evaluation.benchmarks.classification import SEPARATOR
from evaluation.metrics import classification_scores
from product_data.tables import ProductRow, QueryRow
from retrieval.encode import VectorCache

TYPES = ("text", "image", "both")


def evaluate_query_categories(
    cache: VectorCache, absent: dict[str, str], *, resamples: int = 1000, seed: int = 0
) -> dict[str, Any]:
    """Compute the scores of classification for queries with `positive_categories`, separately for each type of query.

    A query is embedded as any other (its box is its core crop), a label as a query of task "category". A query with
    several categories is right with any of them. The labels are the categories of all queries of the whole data set. If
    these are also categories of products (as paths "Home > Kitchen > Mugs", or as the last names of such paths), the
    labels include all categories of products. With "auto", the vectors are those without reasoning, since the gate
    needs a gallery.

    Args:
        cache: the cache with the queries, and with `label_products` and `label_queries` for the labels.
        absent: receives the reason under "query_categories" if there is no score.
        resamples, seed: samples and seed of the bootstrap. Default 1000 and 0.

    Returns: type → scores of `evaluation.metrics.classification_scores`, and "skipped", the number of queries that
        could not be encoded; empty without such queries.
    """
    wanted = [row for row in cache.queries if row.positive_categories]
    if not wanted:
        return {}
    labels = category_labels(cache.label_products, cache.label_queries)
    if len(labels) < 2:
        absent["query_categories"] = f"the only category of queries is {labels[0]!r}, so every answer would be right"
        return {}
    encoded = cache.all_queries()
    place = {label: number for number, label in enumerate(labels)}
    label_LD = cache.labels(labels, "category")
    results: dict[str, Any] = {}
    for kind in TYPES:
        if why := cache.unrelated(kind, "t"):
            absent[f"query_categories, {kind}"] = why
            continue
        rows = [row for row, index in enumerate(encoded.kept) if _has_category(cache.queries[index], kind)]
        total = sum(_has_category(query, kind) for query in cache.queries)
        if not rows:
            if total:
                why = cache.unread_queries(kind) or f"all {total} queries with categories were skipped"
                absent[f"query_categories, {kind}"] = why
            continue
        truth = [[place[name] for name in cache.queries[encoded.kept[row]].positive_categories] for row in rows]
        scores = classification_scores(encoded.vectors[rows], label_LD, truth, resamples=resamples, seed=seed)
        results[kind] = scores | {"skipped": total - len(rows)}
    return results


def category_labels(products: list[ProductRow] | Any, queries: list[QueryRow] | Any) -> list[str]:
    """Return the labels for the categories of queries; see `evaluate_query_categories`."""
    named = {name for query in queries for name in query.positive_categories}
    paths = {SEPARATOR.join(row.category[:depth]) for row in products for depth in range(1, len(row.category) + 1)}
    leaves = {row.category[-1] for row in products if row.category}
    full = {SEPARATOR.join(row.category) for row in products if row.category}
    if named <= leaves:
        return sorted(named | leaves)
    return sorted(named | full) if named <= paths else sorted(named)


def _has_category(query: QueryRow, kind: str) -> bool:
    return query.type == kind and bool(query.positive_categories)
