"""Retrieval in the five directions of MOON2.0/3.0 (t→mm, i→mm, mm→mm, t→i, i→t), and image-only scores beside them.

Text, image and both name the type of the query; mm, i, t the form that the gallery's products are encoded in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from evaluation.data.tables import ProductRow, QueryRow
from evaluation.encode import Encoded, VectorCache
from evaluation.metrics import CUTOFFS, chance_recall, rank_score, retrieval_scores, search_ranks

# direction → (type of the queries, form of the gallery)
DIRECTIONS = {
    "t2mm": ("text", "mm"),
    "i2mm": ("image", "mm"),
    "mm2mm": ("both", "mm"),
    "t2i": ("text", "i"),
    "i2t": ("image", "t"),
}
IMAGE_ONLY = {"t2i": ("text", "i"), "i2i": ("image", "i"), "mm2i": ("both", "i")}
# Directions in which a product's own text finds its own image, and the reverse, where the data has no such queries.
_OWN_PARTS = {"t2i": ("t", "i"), "i2t": ("i", "t")}
_FORM_NAMES = {"mm": "text or image", "t": "text", "i": "image"}
_EXAMPLES = 5


@dataclass(frozen=True)
class Search:
    """Queries ready to be ranked against one gallery.

    Args:
        vectors, gallery: (Q, D) and (G, D) float32.
        asked: of each query its place in the cache's queries; of a product's own part the product's place.
        positives, exclude: of each query its right answers, and what is left out of its ranking, as rows of the gallery.
        source: "queries" or "products".
        unanswerable: ids of queries without a right answer in the gallery, which are not among the Q.
        reasoned: (Q,) bool, which queries reasoned because they were unsure; None without a gate.
    """

    vectors: np.ndarray
    gallery: np.ndarray
    asked: list[int]
    positives: list[list[int]]
    exclude: list[list[int]]
    source: str
    unanswerable: list[str]
    reasoned: np.ndarray | None = None

    def ranks(self) -> np.ndarray:
        """(Q,) float64: the rank of each query's best right answer."""
        return search_ranks(self.vectors, self.gallery, self.positives, self.exclude)


def evaluate_retrieval(cache: VectorCache, *, resamples: int = 1000, seed: int = 0) -> dict[str, Any]:
    """Recall at 1, 5, 10 and mean reciprocal rank in every direction that the data allows.

    A query is found when any of its positives is among the first k. Its `reference_product_id` is not in its ranking.
    Queries none of whose positives is in the gallery are left out of the scores, counted and named under "unanswerable".
    Without text (image) queries, t→i (i→t) takes each product's own text (image) as the query and its own image (text) as
    the answer, "source": "products"; products whose text is the same character for character are then all right. The
    other directions are null without queries of their type. Own parts are embedded as products, with the products' reasoning.

    Returns: "scores" and "image_only", each direction → R@k, intervals, chance, MRR, rank score, queries, gallery, source,
    unanswerable, or `None`; with queries that reason when unsure also "reasoned", the share of them that did; "absent",
    direction → why there is no score.
    """
    absent: dict[str, str] = {}
    scores = {name: _score(cache, name, *DIRECTIONS[name], absent, (resamples, seed)) for name in DIRECTIONS}
    image_only: dict[str, Any] = {}
    for name, (kind, form) in IMAGE_ONLY.items():
        if name in scores:
            image_only[name] = scores[name]
        else:
            image_only[name] = _score(cache, name, kind, form, absent, (resamples, seed))
    return {"scores": scores, "image_only": image_only, "absent": absent}


def _score(
    cache: VectorCache, name: str, kind: str, form: str, absent: dict[str, str], bootstrap: tuple[int, int]
) -> dict[str, Any] | None:
    search = make_search(cache, name, (kind, form), absent)
    if search is None:
        return None
    rank_Q = search.ranks()
    right_Q = np.asarray([len(right) for right in search.positives])
    candidates_Q = np.asarray([len(search.gallery) - len(left_out) for left_out in search.exclude])
    chance = {f"R@{k}_chance": chance_recall(right_Q, candidates_Q, k) for k in CUTOFFS}
    scores = retrieval_scores(rank_Q, resamples=bootstrap[0], seed=bootstrap[1])
    return (
        scores
        | chance
        | {
            "rank_score": rank_score(rank_Q, candidates_Q),
            "queries": len(rank_Q),
            "gallery": len(search.gallery),
            "source": search.source,
            "unanswerable": {"count": len(search.unanswerable), "examples": search.unanswerable[:_EXAMPLES]},
        }
        | ({} if search.reasoned is None else {"reasoned": float(search.reasoned.mean())})
    )


def make_search(
    cache: VectorCache,
    name: str,
    kind_and_form: tuple[str, str],
    absent: dict[str, str],
    searched: VectorCache | None = None,
) -> Search | None:
    """The search of one direction, or None where the data has none.

    Args:
        cache: whose queries ask.
        name: of the direction.
        kind_and_form: the type of the queries and the form of the gallery, see `DIRECTIONS`.
        absent: takes why there is no search, under the direction's name.
        searched: whose products are searched, of the same rows. Default: those of `cache`.
    """
    kind, form = kind_and_form
    has_queries = any(query.type == kind for query in cache.queries)
    if not has_queries and name not in _OWN_PARTS:
        absent[name] = f"the data has no queries of type {kind!r}"
        return None
    gallery = (searched or cache).gallery(form)
    if not gallery.kept:
        absent[name] = f"no product of the gallery has {_FORM_NAMES[form]}"
        return None
    search = _search_queries(cache, kind, gallery) if has_queries else _search_own_parts(cache, name, gallery)
    if not len(search.vectors):
        why = "has a right answer in the gallery" if has_queries else "has both text and image"
        absent[name] = f"none of the {'queries' if has_queries else 'products'} {why}"
        return None
    return search


def _search_queries(cache: VectorCache, kind: str, gallery: Encoded) -> Search:
    place = {cache.products[index].product_id: row for row, index in enumerate(gallery.kept)}
    encoded = cache.all_queries()
    rows, positives, exclude, unanswerable = [], [], [], []
    for row, index in enumerate(encoded.kept):
        query = cache.queries[index]
        if query.type != kind:
            continue
        left_out = [place[query.reference_product_id]] if query.reference_product_id in place else []
        right = [place[found] for found in query.positives if found in place and place[found] not in left_out]
        if not right:
            unanswerable.append(query.query_id)
            continue
        rows.append(row)
        positives.append(right)
        exclude.append(left_out)
    vectors, reasoned = cache.asked(rows, gallery.vectors, exclude)
    asked = [encoded.kept[row] for row in rows]
    return Search(vectors, gallery.vectors, asked, positives, exclude, "queries", unanswerable, reasoned)


def _search_own_parts(cache: VectorCache, name: str, gallery: Encoded) -> Search:
    asked = cache.gallery(_OWN_PARTS[name][0])
    place = {index: row for row, index in enumerate(gallery.kept)}
    rows = [row for row, index in enumerate(asked.kept) if index in place]
    same_text: dict[str, list[int]] = {}
    for index in place:
        same_text.setdefault(_own_text(cache.products[index]), []).append(place[index])
    positives = [same_text[_own_text(cache.products[asked.kept[row]])] for row in rows]
    indices = [asked.kept[row] for row in rows]
    return Search(asked.vectors[rows], gallery.vectors, indices, positives, [[] for _ in rows], "products", [])


def _own_text(product: ProductRow) -> str:
    record = product.record("t")
    return repr({name: value for name, value in record.items() if name != "id"})


@dataclass(frozen=True)
class SearchExample:
    """One query with its best products: what a contact sheet shows. `found` holds (product, score, whether right)."""

    query: QueryRow
    found: tuple[tuple[ProductRow, float, bool], ...]


def search_examples(cache: VectorCache, *, count: int = 8, top: int = 5, seed: int = 0) -> list[SearchExample]:
    """The first `top` products of `count` queries drawn by `seed`, the query types taking turns.

    Only queries with a right answer in the gallery are drawn; the reference product is left out, as in the scores.
    """
    gallery = cache.gallery("mm")
    place = {cache.products[index].product_id: row for row, index in enumerate(gallery.kept)}
    encoded = cache.all_queries()
    row_of = {index: row for row, index in enumerate(encoded.kept)}
    answerable = [index for index in row_of if any(found in place for found in cache.queries[index].positives)]
    examples = []
    for index in _taking_turns(answerable, [query.type for query in cache.queries], count, seed):
        query = cache.queries[index]
        left_out = [place[query.reference_product_id]] if query.reference_product_id in place else []
        score_G = gallery.vectors @ cache.asked([row_of[index]], gallery.vectors, [left_out])[0][0]
        score_G[left_out] = -np.inf
        best = [int(row) for row in np.argsort(-score_G, kind="stable")[:top] if np.isfinite(score_G[row])]
        products = [cache.products[gallery.kept[row]] for row in best]
        found = [
            (product, float(score_G[row]), product.product_id in query.positives)
            for product, row in zip(products, best, strict=True)
        ]
        examples.append(SearchExample(query, tuple(found)))
    return examples


def _taking_turns(indices: Sequence[int], types: Sequence[str], count: int, seed: int) -> list[int]:
    shuffled = np.random.default_rng(seed).permutation(np.asarray(indices, dtype=int)).tolist()
    lines = {kind: [index for index in shuffled if types[index] == kind] for kind in ("text", "image", "both")}
    chosen: list[int] = []
    while len(chosen) < count and any(lines.values()):
        for line in lines.values():
            if line and len(chosen) < count:
                chosen.append(line.pop(0))
    return sorted(chosen, key=lambda index: ("text", "image", "both").index(types[index]))
