"""Retrieval in the five directions of MOON2.0/3.0 (t→mm, i→mm, mm→mm, t→i, i→t), and image-only scores beside them.

Text, image and both name the type of the query; mm, i, t the form that the gallery's products are encoded in.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from evaluation.metrics import CUTOFFS, chance_recall, rank_score, retrieval_scores, search_ndcg, search_ranks
from product_data.tables import ProductRow, QueryRow
from retrieval.encode import Encoded, VectorCache, all_skipped

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
        repeated: of each query what it cannot find apart, whatever its answer: its reference, and products that are identical
            to another one of the gallery; a gate does not look at them.
        equal: how many queries have a product that is counted as right because it is identical to an answer, or left out
            (or right) as a variant.
        source: "queries" or "products".
        unanswerable: ids of queries without a right answer in the gallery, which are not among the Q.
        reasoned: (Q,) bool, which queries reasoned because they were unsure; None without a gate.
        gains: of each query the grade of each right answer, by its row of the gallery; empty: all are 1.
    """

    vectors: np.ndarray
    gallery: np.ndarray
    asked: list[int]
    positives: list[list[int]]
    exclude: list[list[int]]
    source: str
    unanswerable: list[str]
    reasoned: np.ndarray | None = None
    repeated: list[list[int]] = field(default_factory=list)
    equal: dict[str, int] = field(default_factory=dict)
    gains: list[dict[int, float]] = field(default_factory=list)

    def ranks(self) -> np.ndarray:
        """(Q,) float64: the rank of each query's best right answer."""
        return search_ranks(self.vectors, self.gallery, self.positives, self.exclude)

    def ndcg(self, cutoffs: Sequence[int]) -> dict[int, np.ndarray]:
        """k → (Q,) float64: nDCG@k of each query, its answers graded where the data grades them."""
        gains = self.gains or [dict.fromkeys(right, 1.0) for right in self.positives]
        return search_ndcg(self.vectors, self.gallery, gains, self.exclude, cutoffs)


@dataclass(frozen=True)
class Measures:
    """What is counted of each direction.

    Args:
        cutoffs: the k of R@k and nDCG@k. Default 1, 5, 10.
        resamples, seed: of the bootstrap.
    """

    cutoffs: tuple[int, ...] = CUTOFFS
    resamples: int = 1000
    seed: int = 0


def evaluate_retrieval(
    cache: VectorCache, *, cutoffs: Sequence[int] = CUTOFFS, resamples: int = 1000, seed: int = 0
) -> dict[str, Any]:
    """Recall and nDCG at each cut-off, by default 1, 5 and 10, and mean reciprocal rank in every direction that the data allows.

    A query is found when any of its positives is among the first k. Its `reference_product_id` is not in its ranking.
    Products that are identical to a positive in the gallery's form are right too: no model can tell them apart. Its variants
    are what `cache.variants` says, by default left out of the ranking, except where the query tells variants apart: those that it
    has as `negatives`, and all where it has a `reference_product_id`, stay wrong.
    Queries none of whose positives is in the gallery are left out of the scores, counted and named under "unanswerable".
    Without text (image) queries, t→i (i→t) takes each product's own text (image) as the query and its own image (text) as
    the answer, "source": "products"; products whose text is the same are then all right. The
    other directions are null without queries of their type. Own parts are embedded as products, with the products' reasoning.

    Returns: "scores" and "image_only", each direction → R@k, intervals, chance, nDCG@k, graded (whether answers have grades),
    MRR, rank score, queries, gallery, source, unanswerable, equal (queries for which identical products counted as right, and for
    which variants were left out), or `None`; with queries that reason when unsure also "reasoned", the share of them that did;
    "absent", direction → why there is no score; "image_search_recall" where users' pictures ask (MOON Embedding's intermediate
    metric, arXiv 2511.11305: from the picture of a search to the purchased product), the recalls of i→mm under their own name.
    """
    absent: dict[str, str] = {}
    how = Measures(tuple(cutoffs), resamples, seed)
    scores = {name: direction_scores(cache, name, *DIRECTIONS[name], absent, how) for name in DIRECTIONS}
    image_only: dict[str, Any] = {}
    for name, (kind, form) in IMAGE_ONLY.items():
        if name in scores:
            image_only[name] = scores[name]
        else:
            image_only[name] = direction_scores(cache, name, kind, form, absent, how)
    found: dict[str, Any] = {"scores": scores, "image_only": image_only, "absent": absent, "cutoffs": list(cutoffs)}
    if (searched := scores["i2mm"]) is not None:
        queries = [query for query in cache.queries if query.type == "image" and not asks_for_category(query)]
        kept = ("R@", "MRR", "queries", "gallery")
        named = {name: value for name, value in searched.items() if name.startswith(kept)}
        derived = float(np.mean([query.derived for query in queries]))
        found["image_search_recall"] = {"direction": "i2mm", **named, "derived": derived}
    return found


def direction_scores(
    cache: VectorCache, name: str, kind: str, form: str, absent: dict[str, str], how: Measures
) -> dict[str, Any] | None:
    """The scores of one direction, or None, with why in `absent`; see `evaluate_retrieval` and `make_search`."""
    search = make_search(cache, name, (kind, form), absent)
    return None if search is None else scores_of(search, how)


def scores_of(search: Search, how: Measures) -> dict[str, Any]:
    """Return the scores of one search, as `evaluate_retrieval` names them.

    Args:
        search: queries and gallery.
        how: what is counted.
    """
    rank_Q = search.ranks()
    right_Q = np.asarray([len(right) for right in search.positives])
    candidates_Q = np.asarray([len(search.gallery) - len(left_out) for left_out in search.exclude])
    chance = {f"R@{k}_chance": chance_recall(right_Q, candidates_Q, k) for k in how.cutoffs}
    scores = retrieval_scores(rank_Q, cutoffs=how.cutoffs, resamples=how.resamples, seed=how.seed)
    return (
        scores
        | chance
        | {f"nDCG@{k}": float(value_Q.mean()) for k, value_Q in search.ndcg(how.cutoffs).items()}
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
    """The search of one direction, or None where the data has none.

    Args:
        cache: whose queries ask.
        name: of the direction.
        kind_and_form: the type of the queries and the form of the gallery, see `DIRECTIONS`.
        absent: takes why there is no search, under the direction's name.
        searched: whose products are searched, of the same rows. Default: those of `cache`.
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
        skipped = all_skipped(f"products with {_FORM_NAMES[form]}", gallery) if gallery.skipped else ""
        absent[name] = skipped or f"no product of the gallery has {_FORM_NAMES[form]}"
        return None
    search = (
        _search_queries(cache, kind, gallery, form) if has_queries else _search_own_parts(cache, name, gallery, form)
    )
    if not len(search.vectors):
        why = "has a right answer in the gallery" if has_queries else "has both text and image"
        skipped = _queries_skipped(cache, kind) if has_queries else _own_parts_skipped(cache, _OWN_PARTS[name][0])
        absent[name] = skipped or f"none of the {'queries' if has_queries else 'products'} {why}"
        return None
    return search


def _refusal(cache: VectorCache, asked: str, searched: VectorCache, form: str) -> str:
    """Why the model cannot embed what asks (queries of a type, or products of a form) or what is searched; "" where it can."""
    if asked in _FORM_NAMES:
        cache.gallery(asked)
    return searched.refusal(form) or (cache.refusal(asked) if asked in _FORM_NAMES else cache.unread_queries(asked))


def asks_for_category(query: QueryRow) -> bool:
    """Whether a query's answer is a category and not a product: see `evaluation.benchmarks.query_categories`."""
    return bool(query.positive_categories) and not query.positives


def _queries_skipped(cache: VectorCache, kind: str) -> str:
    """That all queries of a type were skipped, or nothing where one was not."""
    encoded = cache.all_queries()
    if any(cache.queries[index].type == kind for index in encoded.kept):
        return ""
    skipped = [one for one in encoded.skipped if cache.queries[one.index].type == kind]
    return all_skipped(f"queries of type {kind!r}", replace(encoded, skipped=skipped)) if skipped else ""


def _own_parts_skipped(cache: VectorCache, form: str) -> str:
    encoded = cache.gallery(form)
    none_read = encoded.skipped and not encoded.kept
    return all_skipped(f"products with {_FORM_NAMES[form]}", encoded) if none_read else ""


class _Answers:
    """The right answers of queries among the products of a gallery, with what is equal to them."""

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
        """(right, left out) rows of the gallery for a query with these rows.

        Args:
            positives: known answers.
            wrong: known wrong answers.
            reference: the product that the query starts from, which also says that it tells variants apart.
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
        """(right, left out) of a query of the table."""
        right, wrong = self._rows(query.positives), self._rows(query.negatives)
        return self.of(right, wrong, self.row_of.get(query.reference_product_id or ""))

    def gains(self, query: QueryRow, right: Iterable[int]) -> dict[int, float]:
        """The grade of each right row: its own, or the best of the answers that it is equal to."""
        grades = {self.row_of[name]: grade for name, grade in query.answers.items() if name in self.row_of}
        classes: dict[tuple[str, int], float] = {}
        for row, grade in grades.items():
            for key in (("identical", self.identical[row]), ("variant", self.variants[row])):
                classes[key] = max(grade, classes.get(key, 0.0))
        found = {}
        for row in right:
            equal = classes.get(("identical", self.identical[row]), classes.get(("variant", self.variants[row]), 1.0))
            found[row] = grades.get(row, equal)
        return found

    def _rows(self, names: Iterable[str]) -> list[int]:
        return [self.row_of[name] for name in names if name in self.row_of]

    def repeated(self, query: QueryRow) -> list[int]:
        """What a query cannot find apart, whatever its answer is."""
        reference = self.row_of.get(query.reference_product_id or "")
        if reference is None:
            return self.repeats
        return sorted({*self._of_identical[self.identical[reference]], *self.repeats})

    @staticmethod
    def _same(places: dict[int, list[int]], class_of: list[int], rows: Iterable[int]) -> set[int]:
        return {row for one in {class_of[row] for row in rows} for row in places[one]}


def _places(class_of: Sequence[int]) -> dict[int, list[int]]:
    places: dict[int, list[int]] = {}
    for row, one in enumerate(class_of):
        places.setdefault(one, []).append(row)
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
    vectors, reasoned = cache.asked(rows, gallery.vectors, repeated)
    asked = [encoded.kept[row] for row in rows]
    return Search(
        vectors,
        gallery.vectors,
        asked,
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
    asked = cache.gallery(_OWN_PARTS[name][0])
    place = {index: row for row, index in enumerate(gallery.kept)}
    rows = [row for row, index in enumerate(asked.kept) if index in place]
    answers = _Answers(cache, gallery, form)
    texts = cache.equal.identical("t")
    same_text: dict[int, list[int]] = {}
    for index in place:
        same_text.setdefault(texts[index], []).append(place[index])
    found = [answers.of(same_text[texts[asked.kept[row]]], (), None) for row in rows]
    indices = [asked.kept[row] for row in rows]
    positives, exclude = [right for right, _ in found], [left_out for _, left_out in found]
    repeated = [answers.repeats for _ in rows]
    vectors = asked.vectors[rows]
    return Search(vectors, gallery.vectors, indices, positives, exclude, "products", [], None, repeated, answers.equal)


@dataclass(frozen=True)
class SearchExample:
    """One query with its best products: what a contact sheet shows. `found` holds (product, score, whether right)."""

    query: QueryRow
    found: tuple[tuple[ProductRow, float, bool], ...]


def search_examples(cache: VectorCache, *, count: int = 8, top: int = 5, seed: int = 0) -> list[SearchExample]:
    """The first `top` products of `count` queries drawn by `seed`, the query types taking turns.

    Only queries with a right answer in the gallery are drawn; what is left out of the scores is left out here.
    """
    gallery = cache.gallery("mm")
    answers = _Answers(cache, gallery, "mm")
    encoded = cache.all_queries()
    row_of = {index: row for row, index in enumerate(encoded.kept)}
    found_of = {index: answers.of_query(cache.queries[index]) for index in row_of}
    answerable = [index for index, (right, _) in found_of.items() if right]
    examples = []
    for index in _taking_turns(answerable, [query.type for query in cache.queries], count, seed):
        query, (right, left_out) = cache.queries[index], found_of[index]
        vectors, _ = cache.asked([row_of[index]], gallery.vectors, [answers.repeated(query)])
        score_G = gallery.vectors @ vectors[0]
        score_G[left_out] = -np.inf
        best = [int(row) for row in np.argsort(-score_G, kind="stable")[:top] if np.isfinite(score_G[row])]
        found = [(cache.products[gallery.kept[row]], float(score_G[row]), row in right) for row in best]
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
