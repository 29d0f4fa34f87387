"""Evaluate retrieval in the five directions of MOON2.0/3.0 (t→mm, i→mm, mm→mm, t→i, i→t), and in image-only galleries.

A direction is the type of the query (t text, i image, mm both) and the form of the gallery's products (mm, i or t).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from evaluation.metrics import CUTOFFS, chance_recall, rank_score, retrieval_scores, search_ndcg, search_ranks
from evaluation.per_query import QueryValues, distinct, gallery_digest, pack, product_digest, query_digest
from product_data.tables import ProductRow, QueryRow
from retrieval.encode import Encoded, VectorCache, describe_skipped

# direction → (type of the queries, form of the gallery)
DIRECTIONS = {
    "t2mm": ("text", "mm"),
    "i2mm": ("image", "mm"),
    "mm2mm": ("both", "mm"),
    "t2i": ("text", "i"),
    "i2t": ("image", "t"),
}
IMAGE_ONLY = {"t2i": ("text", "i"), "i2i": ("image", "i"), "mm2i": ("both", "i")}
QUERY_FORMS = {"t": "text", "i": "image", "mm": "both"}
"""Form of a query in the name of a direction → type of the queries."""
# Directions in which a product's text searches its image, or the reverse, if the data has no queries of that type.
_OWN_PARTS = {"t2i": ("t", "i"), "i2t": ("i", "t")}
_FORM_NAMES = {"mm": "text or image", "t": "text", "i": "image"}
_EXAMPLES = 5


@dataclass(frozen=True)
class Search:
    """Queries with their vectors and right answers, to rank against one gallery.

    Args:
        vectors, gallery: (Q, D) and (G, D) float32.
        indices: index of each query in the cache's queries; if parts of products are the queries, that of the product.
        positives, exclude: for each query its right answers, and the products to leave out of its ranking, as rows of
            the gallery.
        source: "queries" or "products".
        unanswerable: ids of queries without a right answer in the gallery; they are not among the Q.
        reasoned: (Q,) bool, the queries that reasoned because they were unsure; None without a gate.
        repeated: for each query the rows that a gate ignores: its reference product, and products that are identical to
            another product of the gallery.
        equal: by name, the number of queries for which a product counts as right because it is identical to an answer,
            and of those with a variant of an answer, which `cache.variants` leaves out or counts as right.
        gains: for each query the grade of each right answer, by its row of the gallery; empty: all grades are 1.
    """

    vectors: np.ndarray
    gallery: np.ndarray
    indices: list[int]
    positives: list[list[int]]
    exclude: list[list[int]]
    source: str
    unanswerable: list[str]
    reasoned: np.ndarray | None = None
    repeated: list[list[int]] = field(default_factory=list)
    equal: dict[str, int] = field(default_factory=dict)
    gains: list[dict[int, float]] = field(default_factory=list)

    def ranks(self) -> np.ndarray:
        """Return the rank of each query's best right answer, (Q,) float64."""
        return search_ranks(self.vectors, self.gallery, self.positives, self.exclude)

    def ndcg(self, cutoffs: Sequence[int]) -> dict[int, np.ndarray]:
        """Return k → nDCG@k of each query, (Q,) float64, with graded answers if the data grades them."""
        gains = self.gains or [dict.fromkeys(right, 1.0) for right in self.positives]
        return search_ndcg(self.vectors, self.gallery, gains, self.exclude, cutoffs)


@dataclass(frozen=True)
class Measures:
    """Settings of the measures of a direction.

    Args:
        cutoffs: the k of R@k and nDCG@k. Default 1, 5, 10.
        resamples, seed: samples and seed of the bootstrap. Default 1000 and 0.
    """

    cutoffs: tuple[int, ...] = CUTOFFS
    resamples: int = 1000
    seed: int = 0


def evaluate_retrieval(
    cache: VectorCache,
    *,
    cutoffs: Sequence[int] = CUTOFFS,
    resamples: int = 1000,
    seed: int = 0,
    ranked: dict[str, Ranked] | None = None,
) -> dict[str, Any]:
    """Compute recall and nDCG at each cut-off, by default 1, 5 and 10, and mean reciprocal rank in every direction.

    A query counts as found at k if any of its positives is among the first k. Its `reference_product_id` is left out of
    its ranking. Products that are identical to a positive in the gallery's form are right too, since a model cannot
    tell them apart. `cache.variants` sets how variants of a positive count, by default left out of the ranking.
    Variants that a query lists as `negatives` stay wrong, and all variants do if it has a `reference_product_id`.
    Queries without a positive in the gallery are left out of the scores; "unanswerable" counts and lists them. Without
    text (image) queries, t→i (i→t) uses each product's text (image) as a query and its image (text) as the answer
    ("source": "products"); all products with the same text are then right. The other directions are null without
    queries of their type. Parts of products are embedded as products, with the products' reasoning.

    Args:
        cache: the vectors.
        cutoffs, resamples, seed: of the measures.
        ranked: takes the ranks of each direction's queries, of which "per_query" is made. Default: a new dictionary.

    Returns: "scores" and "image_only", each direction → R@k, intervals, chance, nDCG@k, graded (whether answers have
    grades), MRR, rank score, queries, gallery, source, unanswerable, equal (number of queries with identical products
    that count as right, and with variants that are left out), or `None`; if queries reason when unsure also "reasoned",
    the share of queries that reasoned; "per_query", see `evaluation.per_query`; "absent", direction → why there is no
    score; "image_search_recall", with image queries: the recalls of i→mm under the name of MOON Embedding's
    intermediate metric (arXiv 2511.11305: from the picture of a search to the purchased product).
    """
    absent: dict[str, str] = {}
    measures = Measures(tuple(cutoffs), resamples, seed)
    ranked = {} if ranked is None else ranked
    scores = {name: direction_scores(cache, name, *DIRECTIONS[name], absent, measures, ranked) for name in DIRECTIONS}
    image_only: dict[str, Any] = {}
    for name, (kind, form) in IMAGE_ONLY.items():
        if name in scores:
            image_only[name] = scores[name]
        else:
            image_only[name] = direction_scores(cache, name, kind, form, absent, measures, ranked)
    results: dict[str, Any] = {"scores": scores, "image_only": image_only, "absent": absent, "cutoffs": list(cutoffs)}
    results["per_query"] = per_query(cache, ranked)
    if (image_search := scores["i2mm"]) is not None:
        queries = [query for query in cache.queries if query.type == "image" and not asks_for_category(query)]
        kept = ("R@", "MRR", "queries", "gallery")
        recalls = {name: value for name, value in image_search.items() if name.startswith(kept)}
        derived = float(np.mean([query.derived for query in queries]))
        results["image_search_recall"] = {"direction": "i2mm", **recalls, "derived": derived}
    return results


def direction_scores(
    cache: VectorCache,
    name: str,
    kind: str,
    form: str,
    absent: dict[str, str],
    measures: Measures,
    ranked: dict[str, Ranked] | None = None,
) -> dict[str, Any] | None:
    """Return the scores of one direction, or None with the reason in `absent`; see `evaluate_retrieval`.

    `ranked` receives the ranks of each query under the direction's name.
    """
    search = make_search(cache, name, (kind, form), absent)
    if search is None:
        return None
    rank_Q, ndcg = search.ranks(), search.ndcg(measures.cutoffs)
    if ranked is not None:
        several = any(len(right) > 1 for right in search.positives)
        ranked[name] = Ranked(kind, form, search.indices, search.source, several, rank_Q, ndcg)
    return scores_of(search, measures, (rank_Q, ndcg))


@dataclass(frozen=True)
class Ranked:
    """The ranks of each query of one direction.

    Args:
        kind, form: type of the queries and form of the gallery.
        indices, source: see `Search`.
        several: whether a query has several right answers.
        rank_Q, ndcg: the rank of each best right answer; k → nDCG@k of each query.
    """

    kind: str
    form: str
    indices: Sequence[int]
    source: str
    several: bool
    rank_Q: np.ndarray
    ndcg: dict[int, np.ndarray]


def per_query(cache: VectorCache, ranked: Mapping[str, Ranked]) -> dict[str, Any]:
    """Return the ranks of single queries in the format of results files, see `evaluation.per_query`.

    Args:
        cache: the cache with the queries and products.
        ranked: direction → the ranks of each query.
    """
    names = distinct(query.query_id for query in cache.queries)
    kept = {form: cache.gallery(form).kept for form in {ranks.form for ranks in ranked.values()}}
    digests = {form: gallery_digest(cache.products, rows, cache.equal, form) for form, rows in kept.items()}
    directions = {}
    for name, ranks in ranked.items():
        if ranks.source == "products":
            asked = f"product {'t' if ranks.kind == 'text' else 'i'}"
            products = [cache.products[place] for place in ranks.indices]
            own = {product.product_id: product_digest(product) for product in products}
        else:
            asked, own = ranks.kind, {names[place]: query_digest(cache.queries[place]) for place in ranks.indices}
        size = len(kept[ranks.form])
        directions[name] = QueryValues(asked, own, digests[ranks.form], size, ranks.rank_Q, ranks.ndcg)
    return pack(directions, [name for name, ranks in ranked.items() if ranks.several])


def scores_of(
    search: Search, measures: Measures, found: tuple[np.ndarray, dict[int, np.ndarray]] | None = None
) -> dict[str, Any]:
    """Return the scores of one search, under the names that `evaluate_retrieval` uses.

    Args:
        search: queries and gallery.
        measures: settings of the measures.
        found: the ranks and the nDCG of each query, if they are known.
    """
    rank_Q, ndcg = found or (search.ranks(), search.ndcg(measures.cutoffs))
    right_Q = np.asarray([len(right) for right in search.positives])
    candidates_Q = np.asarray([len(search.gallery) - len(left_out) for left_out in search.exclude])
    chance = {f"R@{k}_chance": chance_recall(right_Q, candidates_Q, k) for k in measures.cutoffs}
    scores = retrieval_scores(rank_Q, cutoffs=measures.cutoffs, resamples=measures.resamples, seed=measures.seed)
    return (
        scores
        | chance
        | {f"nDCG@{k}": float(value_Q.mean()) for k, value_Q in ndcg.items()}
        | {
            "graded": any(len(set(gains.values())) > 1 or set(gains.values()) - {1.0} for gains in search.gains),
            "rank_score": rank_score(rank_Q, candidates_Q),
            "queries": len(rank_Q),
            "gallery": len(search.gallery),
            "source": search.source,
            "unanswerable": {"count": len(search.unanswerable), "examples": search.unanswerable[:_EXAMPLES]},
            "equal": search.equal,
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
    """Return the search of one direction, or None if the data does not allow it.

    Args:
        cache: the cache with the queries.
        name: name of the direction.
        kind_and_form: type of the queries and form of the gallery, see `DIRECTIONS`.
        absent: receives the reason under the direction's name if there is no search.
        searched: the cache with the gallery, of the same products. Default `None`: `cache`.
    """
    kind, form = kind_and_form
    has_queries = any(query.type == kind and not asks_for_category(query) for query in cache.queries)
    if not has_queries and name not in _OWN_PARTS:
        absent[name] = f"the data has no queries of type {kind!r}"
        return None
    gallery = (searched or cache).gallery(form)
    if why := _refusal(cache, kind if has_queries else _OWN_PARTS[name][0], searched or cache, form):
        absent[name] = why
        return None
    if not gallery.kept:
        skipped = describe_skipped(f"products with {_FORM_NAMES[form]}", gallery) if gallery.skipped else ""
        absent[name] = skipped or f"no product of the gallery has {_FORM_NAMES[form]}"
        return None
    search = (
        _search_queries(cache, kind, gallery, form) if has_queries else _search_own_parts(cache, name, gallery, form)
    )
    if not len(search.vectors):
        condition = "has a right answer in the gallery" if has_queries else "has both text and image"
        skipped = _queries_skipped(cache, kind) if has_queries else _own_parts_skipped(cache, _OWN_PARTS[name][0])
        absent[name] = skipped or f"none of the {'queries' if has_queries else 'products'} {condition}"
        return None
    return search


def _refusal(cache: VectorCache, asked: str, searched: VectorCache, form: str) -> str:
    """Return why the model cannot embed the queries (of a type, or products of a form) or the gallery, or compare both; "" if it
    can."""
    if asked in _FORM_NAMES:
        cache.gallery(asked)
    unread = searched.refusal(form) or (cache.refusal(asked) if asked in _FORM_NAMES else cache.unread_queries(asked))
    return unread or cache.unrelated(asked, form)


def asks_for_category(query: QueryRow) -> bool:
    """Return whether the answer of a query is a category; see `evaluation.benchmarks.query_categories`."""
    return bool(query.positive_categories) and not query.positives


def _queries_skipped(cache: VectorCache, kind: str) -> str:
    """Return a sentence if all queries of a type were skipped, or ""."""
    encoded = cache.all_queries()
    if any(cache.queries[index].type == kind for index in encoded.kept):
        return ""
    skipped = [record for record in encoded.skipped if cache.queries[record.index].type == kind]
    return describe_skipped(f"queries of type {kind!r}", replace(encoded, skipped=skipped)) if skipped else ""


def _own_parts_skipped(cache: VectorCache, form: str) -> str:
    encoded = cache.gallery(form)
    all_were_skipped = encoded.skipped and not encoded.kept
    return describe_skipped(f"products with {_FORM_NAMES[form]}", encoded) if all_were_skipped else ""


class _Answers:
    """Find the right answers of queries in a gallery, and the products that are equal to them."""

    def __init__(self, cache: VectorCache, gallery: Encoded, form: str) -> None:
        self.cache, self.gallery = cache, gallery
        identical, variants = cache.equal.identical(form), cache.equal.variants
        self.identical = [identical[index] for index in gallery.kept]
        self.variants = [variants[index] for index in gallery.kept]
        self.row_of = {cache.products[index].product_id: row for row, index in enumerate(gallery.kept)}
        self._of_identical, self._of_variants = _places(self.identical), _places(self.variants)
        self.repeats = sorted(row for rows in self._of_identical.values() for row in rows[1:])
        self.equal = {"identical_right": 0, f"variants_{cache.variants}": 0}

    def of(self, positives: Sequence[int], wrong: Sequence[int], reference: int | None) -> tuple[list[int], list[int]]:
        """Return the (right, left out) rows of the gallery for a query.

        Args:
            positives: rows of known answers.
            wrong: rows of known wrong answers.
            reference: row of the product that the query starts from; such a query distinguishes variants.
        """
        left_out: set[int] = set()
        if reference is not None:
            left_out = {reference, *(self._same(self._of_identical, self.identical, [reference]) - set(positives))}
        right = dict.fromkeys(row for row in positives if row not in left_out)
        if not right:
            return [], sorted(left_out)
        identical = self._same(self._of_identical, self.identical, right) - left_out - right.keys()
        left_out |= identical & set(wrong)
        right |= dict.fromkeys(sorted(identical - set(wrong)))
        self.equal["identical_right"] += bool(identical - set(wrong))
        if reference is None and self.cache.variants != "wrong":
            variants = self._same(self._of_variants, self.variants, right) - left_out - right.keys() - set(wrong)
            self.equal[f"variants_{self.cache.variants}"] += bool(variants)
            if self.cache.variants == "right":
                right |= dict.fromkeys(sorted(variants))
            else:
                left_out |= variants
        return list(right), sorted(left_out)

    def of_query(self, query: QueryRow) -> tuple[list[int], list[int]]:
        """Return the (right, left out) rows for a query of the table."""
        right, wrong = self._rows(query.positives), self._rows(query.negatives)
        return self.of(right, wrong, self.row_of.get(query.reference_product_id or ""))

    def gains(self, query: QueryRow, right: Iterable[int]) -> dict[int, float]:
        """Return the grade of each right row: its own, or the best grade of the answers that it is equal to."""
        grades = {self.row_of[name]: grade for name, grade in query.answers.items() if name in self.row_of}
        classes: dict[tuple[str, int], float] = {}
        for row, grade in grades.items():
            for key in (("identical", self.identical[row]), ("variant", self.variants[row])):
                classes[key] = max(grade, classes.get(key, 0.0))
        gains = {}
        for row in right:
            equal = classes.get(("identical", self.identical[row]), classes.get(("variant", self.variants[row]), 1.0))
            gains[row] = grades.get(row, equal)
        return gains

    def _rows(self, names: Iterable[str]) -> list[int]:
        return [self.row_of[name] for name in names if name in self.row_of]

    def repeated(self, query: QueryRow) -> list[int]:
        """Return the rows that a gate ignores for a query; see `Search`."""
        reference = self.row_of.get(query.reference_product_id or "")
        if reference is None:
            return self.repeats
        return sorted({*self._of_identical[self.identical[reference]], *self.repeats})

    @staticmethod
    def _same(places: dict[int, list[int]], class_of: list[int], rows: Iterable[int]) -> set[int]:
        return {row for number in {class_of[row] for row in rows} for row in places[number]}


def _places(class_of: Sequence[int]) -> dict[int, list[int]]:
    places: dict[int, list[int]] = {}
    for row, number in enumerate(class_of):
        places.setdefault(number, []).append(row)
    return places


def _search_queries(cache: VectorCache, kind: str, gallery: Encoded, form: str) -> Search:
    answers = _Answers(cache, gallery, form)
    encoded = cache.all_queries()
    rows, positives, exclude, repeated, gains, unanswerable = [], [], [], [], [], []
    for row, index in enumerate(encoded.kept):
        query = cache.queries[index]
        if query.type != kind or asks_for_category(query):
            continue
        right, left_out = answers.of_query(query)
        if not right:
            unanswerable.append(query.query_id)
            continue
        rows.append(row)
        positives.append(right)
        exclude.append(left_out)
        repeated.append(answers.repeated(query))
        gains.append(answers.gains(query, right))
    vectors, reasoned = cache.search_vectors(rows, gallery.vectors, repeated)
    indices = [encoded.kept[row] for row in rows]
    return Search(
        vectors,
        gallery.vectors,
        indices,
        positives,
        exclude,
        "queries",
        unanswerable,
        reasoned,
        repeated,
        answers.equal,
        gains,
    )


def _search_own_parts(cache: VectorCache, name: str, gallery: Encoded, form: str) -> Search:
    parts = cache.gallery(_OWN_PARTS[name][0])
    place = {index: row for row, index in enumerate(gallery.kept)}
    rows = [row for row, index in enumerate(parts.kept) if index in place]
    answers = _Answers(cache, gallery, form)
    texts = cache.equal.identical("t")
    same_text: dict[int, list[int]] = {}
    for index in place:
        same_text.setdefault(texts[index], []).append(place[index])
    answers_of = [answers.of(same_text[texts[parts.kept[row]]], (), None) for row in rows]
    indices = [parts.kept[row] for row in rows]
    positives, exclude = [right for right, _ in answers_of], [left_out for _, left_out in answers_of]
    repeated = [answers.repeats for _ in rows]
    vectors = parts.vectors[rows]
    return Search(vectors, gallery.vectors, indices, positives, exclude, "products", [], None, repeated, answers.equal)


@dataclass(frozen=True)
class SearchExample:
    """One query with its best products, for a contact sheet. `results` holds (product, score, whether it is right)."""

    query: QueryRow
    results: tuple[tuple[ProductRow, float, bool], ...]


def search_examples(cache: VectorCache, *, count: int = 8, top: int = 5, seed: int = 0) -> list[SearchExample]:
    """Return the first `top` products of `count` queries, drawn by `seed` from each query type in turn.

    Only queries with a right answer in the gallery are drawn. Products that are left out of the scores are left out
    here too.
    """
    gallery = cache.gallery("mm")
    answers = _Answers(cache, gallery, "mm")
    encoded = cache.all_queries()
    row_of = {index: row for row, index in enumerate(encoded.kept)}
    answers_of = {index: answers.of_query(cache.queries[index]) for index in row_of}
    answerable = [index for index, (right, _) in answers_of.items() if right]
    examples = []
    for index in _taking_turns(answerable, [query.type for query in cache.queries], count, seed):
        query, (right, left_out) = cache.queries[index], answers_of[index]
        vectors, _ = cache.search_vectors([row_of[index]], gallery.vectors, [answers.repeated(query)])
        score_G = gallery.vectors @ vectors[0]
        score_G[left_out] = -np.inf
        examples.append(SearchExample(query, _best(cache, gallery, score_G, right, top)))
    return examples


def examples_of(
    cache: VectorCache, direction: str, queries: Iterable[str], *, top: int = 5
) -> dict[str, tuple[SearchExample, int]]:
    """Return id → the first `top` products of a query in one direction, and the rank of its best right answer.

    Queries that cannot be ranked in the direction are left out.

    Args:
        cache: the cache with the gallery.
        direction (`str`): form of the query and of the products, such as "t2mm".
        queries: ids of queries, not of products.
        top (`int`): number of products. Default 5.
    """
    asked, _, form = direction.partition("2")
    search = make_search(cache, direction, (QUERY_FORMS[asked], form), {})
    if search is None or search.source == "products":
        return {}
    wanted, gallery = set(queries), cache.gallery(form)
    examples: dict[str, tuple[SearchExample, int]] = {}
    rank_Q = search.ranks()
    for row, place in enumerate(search.indices):
        query = cache.queries[place]
        if query.query_id in wanted:
            score_G = search.gallery @ search.vectors[row]
            score_G[search.exclude[row]] = -np.inf
            found = _best(cache, gallery, score_G, search.positives[row], top)
            examples[query.query_id] = SearchExample(query, found), int(rank_Q[row])
    return examples


def _best(
    cache: VectorCache, gallery: Encoded, score_G: np.ndarray, right: Sequence[int], top: int
) -> tuple[tuple[ProductRow, float, bool], ...]:
    """Return the products with the highest scores, each with its score and whether it is right."""
    best = [int(row) for row in np.argsort(-score_G, kind="stable")[:top] if np.isfinite(score_G[row])]
    return tuple((cache.products[gallery.kept[row]], float(score_G[row]), row in right) for row in best)


def _taking_turns(indices: Sequence[int], types: Sequence[str], count: int, seed: int) -> list[int]:
    shuffled = np.random.default_rng(seed).permutation(np.asarray(indices, dtype=int)).tolist()
    lines = {kind: [index for index in shuffled if types[index] == kind] for kind in ("text", "image", "both")}
    chosen: list[int] = []
    while len(chosen) < count and any(lines.values()):
        for line in lines.values():
            if line and len(chosen) < count:
                chosen.append(line.pop(0))
    return sorted(chosen, key=lambda index: ("text", "image", "both").index(types[index]))
