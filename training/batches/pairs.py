"""Draw training pairs: a query, a product that answers it, and hard negatives, as a pure function of (seed, position).

There are no epochs: position i of the data set is drawn by a generator with the seed (seed, i), in any process or
worker. A run can therefore resume at a position without replaying earlier ones, and two processes see the same pairs as
one.
"""

import dataclasses
import functools
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from processing_moon import ProductError, open_image
from product_data.duplicates import EqualProducts, classes, looks_of
from product_data.tables import ProductRow, ProductTables, QueryRow
from training.batches.negatives import NO_ID, stable_id
from training.batches.variants import VariantDraws
from training.batches.views import altered_view
from training.recipe.pairs import PairArguments

FORM_OF_TYPE = {"image": "i", "text": "t", "both": "mm"}
"""Type of a query in a table → form."""
_TYPE_OF_FORM = {form: kind for kind, form in FORM_OF_TYPE.items()}
_PICTURES = ("image", "images", "core_box")
_NO_CONTENT = ("id", "reasoning")
_VARIANT_SALT = 0x76617279
_TRIES = 8  # draws for a hard negative at one level of the category tree, before its parent is tried


@dataclass(frozen=True)
class Pair:
    """A training pair: records for `MoonProcessor`, and ids (see `stable_id`) for masking.

    Args:
        query: the query record; its "id" names the query.
        products: product records, the positives first, then the hard negatives.
        names: the full names of `products`, such as "fashion/fa-10000".
        product_ids: ids of `products`. Products that are identical in text and pictures share the id of the first.
        group_ids: ids of the products' variant groups, NO_ID for none (see `PairSource.variants`).
        query_group: the group of the positive if variants are not negatives of this query, otherwise NO_ID.
        other_ids: other products that are not negatives: known positives and the reference product.
        negative_ids: known negatives.
        position: the position in the data set.
        positive_count: the number of positives among `products`, at least 1.
        answers: id → relevance weight of every known positive, those among `products` first and in their order. A
            weight is greater than 0, and 1 for a purchase or an ungraded positive. Empty: the positives, each with 1.
        query_key: a key that pairs of the same query share if other pairs may know more of its answers, as in a stream;
            "" if all answers are known.
        query_labels, product_labels: key → values of the attributes that the query and the first product support in
            the form of their rollouts; None if none are known or labels are not used (see
            `training.labels.reasoning.ReasonedPairs`).
        form_reasonings: for the query, then for each product: single form ("t", "i") → the reasoning of the record in that
            form; a form without reasoning is missing. (): records are not reduced to single forms.
        rollout_records: the query and the first product in the forms of their rollouts; None: as they were drawn.
    """

    query: dict[str, Any]
    products: list[dict[str, Any]]
    names: list[str]
    product_ids: list[int]
    group_ids: list[int]
    query_group: int
    other_ids: list[int]
    negative_ids: list[int]
    position: int = 0
    positive_count: int = 1
    answers: dict[int, float] = field(default_factory=dict)
    query_key: str = ""
    query_labels: Mapping[str, tuple[str, ...]] | None = None
    product_labels: Mapping[str, tuple[str, ...]] | None = None
    form_reasonings: Sequence[Mapping[str, Mapping[str, list[str]]]] = ()
    rollout_records: tuple[dict[str, Any], dict[str, Any]] | None = None

    @property
    def rolled(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The query and the first product of the rollouts."""
        return self.rollout_records or (self.query, self.products[0])

    def __post_init__(self) -> None:
        if not self.answers:
            object.__setattr__(self, "answers", dict.fromkeys(self.product_ids[: self.positive_count], 1.0))


def has_form(record: Mapping[str, Any]) -> tuple[bool, bool]:
    """Return whether the record of a query or product has text, and whether it has a picture."""
    return bool(record.keys() - {*_NO_CONTENT, *_PICTURES}), bool(record.get("image") or record.get("images"))


def in_form(record: Mapping[str, Any], form: str) -> dict[str, Any]:
    """Return a record with its text only ("t"), its pictures and core box only ("i"), or both ("mm"), without reasoning.

    Args:
        record: of a query or product.
        form: "t", "i" or "mm".
    """
    kept = {name: value for name, value in record.items() if name != "reasoning"}
    if form == "mm":
        return kept
    return {name: value for name, value in kept.items() if name == "id" or (name in _PICTURES) == (form == "i")}


@dataclass(frozen=True)
class _Drawn:
    """A drawn query with its chosen positives, and all its known answers with their weights."""

    record: dict[str, Any]
    chosen: Sequence[ProductRow]
    answers: Mapping[str, float]
    negatives: Sequence[str] = ()
    reference: str | None = None


class PairSource:
    """A data set from which pairs are drawn.

    Args:
        tables: products and queries of the training split.
        weight: the frequency of draws from this data set, relative to others. None: the square root of the number of
            its products and queries, so a small data set is drawn more often than its share (our design; precedent: the
            temperature sampling of multilingual training, arXiv 1907.05019).
        mask_groups: whether to exclude products of the answer's group from the negatives. Identical products, and
            products with the answer's title and pictures, are always excluded.
        streamed: whether other rows of a stream may contain the same products. If so, title and pictures identify a
            variant group.

    Raises:
        ValueError: the split has no products, or the weight is not positive.
    """

    def __init__(
        self, tables: ProductTables, weight: float | None = None, mask_groups: bool = True, streamed: bool = False
    ) -> None:
        if not tables.products:
            raise ValueError(f"{tables.name}: found no products in this split; expected at least one")
        self.name = tables.name
        self.mask_groups, self.streamed = mask_groups, streamed
        self.products = {row.product_id: row for row in tables.products}
        self.queries: dict[str, list[QueryRow]] = {form: [] for form in _TYPE_OF_FORM}
        for query in tables.queries:
            if any(product_id in self.products for product_id in query.positives):
                self.queries[FORM_OF_TYPE[query.type]].append(query)
        self.weight = float(np.sqrt(len(tables.products) + len(tables.queries))) if weight is None else float(weight)
        if not self.weight > 0:
            raise ValueError(f"{tables.name}: weight: found {weight}; expected a number above 0")
        self.derivable: dict[str, list[ProductRow]] = {
            "i": [row for row in tables.products if row.images],
            "t": [row for row in tables.products if _short_texts(row)],
            "mm": [row for row in tables.products if row.images and _short_texts(row)],
        }
        self.of_category: dict[tuple[str, ...], list[ProductRow]] = defaultdict(list)
        self.of_fact: dict[tuple[str, str], set[str]] = defaultdict(set)
        self.of_title: dict[str, list[str]] = defaultdict(list)
        equal = EqualProducts(tables.products)
        ids = [row.product_id for row in tables.products]
        self._identical_to = {ids[place]: ids[first] for place, first in enumerate(equal.identical()) if first != place}
        self.variants = self._variants(tables.products, equal)
        self.of_variants: dict[str, list[str]] = defaultdict(list)
        for row in tables.products:
            self._index(row)

    def _variants(self, products: Sequence[ProductRow], equal: EqualProducts) -> dict[str, str]:
        """Return product id → name of its variant group: its masked group, or the first product that looks the same."""
        named = {row.product_id: f"group/{row.group}" for row in products if row.group and self.mask_groups}
        for places in classes(equal.variants_by_group if self.mask_groups else equal.same_looks):
            ids = [products[place].product_id for place in places]
            name = min((named[product_id] for product_id in ids if product_id in named), default=f"same/{ids[0]}")
            named |= dict.fromkeys(ids, name)
        return named

    def _index(self, row: ProductRow) -> None:
        for depth in range(len(row.category) + 1):
            self.of_category[row.category[:depth]].append(row)
        self.of_title[row.title].append(row.product_id)
        if row.product_id in self.variants:
            self.of_variants[self.variants[row.product_id]].append(row.product_id)
        for fact in _facts(row):
            self.of_fact[fact].add(row.product_id)

    def pool_size(self, form: str, derived_queries: bool) -> int:
        """Return the number of different queries of a form that can be drawn."""
        real = len(self.queries[form])
        too_few = derived_queries and real < len(self.products)
        return real + (len(self.derivable[form]) if too_few else 0)

    def name_of(self, product_id: str) -> str:
        """Return the full name of a product, which is unique across data sets."""
        return f"{self.name}/{product_id}"

    def same_as(self, product_id: str) -> str:
        """Return the first product that is identical in text and pictures, or the product itself."""
        return self._identical_to.get(product_id, product_id)

    def id_of(self, product_id: str) -> int:
        """Return the id of a product for masking, which identical products share."""
        return stable_id(self.name_of(self.same_as(product_id)))

    def variants_of(self, names: Iterable[str]) -> set[str]:
        """Return the names of the variant groups of products of this data set; see `variants`."""
        return {self.variants[name] for name in names if name in self.variants}

    def group_id(self, row: ProductRow) -> int:
        """Return the id of a product's variant group, NO_ID for none."""
        name = self.variants.get(row.product_id) or (f"looks/{looks_of(row)}" if self.streamed else "")
        return stable_id(f"{self.name}/{name}") if name else NO_ID


class PairDataset(Dataset):
    """Pairs of one or several data sets, by position.

    A query form is drawn by `query_mix` among the forms that any data set has, then a data set with that form by
    weight, then a query. Source: MOON's triplets (query, purchased positive, hard negative of the same
    category), arXiv 2508.11999 §3.2, and its mix of forms, §5.1; queries derived from products are our design.

    Args:
        sources: the data sets.
        options: the recipe's keys of pairs.
        seed: the seed of all draws.
        length: the number of positions, which is the number of pairs that the run will see.
        variants: variants of the products, which are drawn by a generator of their own: with and without them, a position
            has the same query and products. Default: none.

    Raises:
        ValueError: no query of any form in the mix can be drawn.
        IndexError: a position is not below the length.
    """

    def __init__(
        self,
        sources: Sequence[PairSource],
        options: PairArguments,
        seed: int,
        length: int,
        variants: VariantDraws | None = None,
    ) -> None:
        self.sources = list(sources)
        self.variants = variants
        self.options = options
        self.seed = seed
        self.length = length
        derived = options.derived_queries
        self.able = {
            form: [source for source in self.sources if source.pool_size(form, derived)]
            for form, share in options.query_mix.items()
            if share > 0
        }
        self.able = {form: able for form, able in self.able.items() if able}
        if not self.able:
            raise ValueError(
                f"query_mix: found no query of the forms {list(options.query_mix)} in "
                f"{[source.name for source in self.sources]}; expected data with such queries, or derived_queries"
            )

    def __len__(self) -> int:
        return self.length

    def missing_forms(self) -> list[str]:
        """Return the forms of the mix that are not drawn, because no data set has them."""
        return [form for form, share in self.options.query_mix.items() if share > 0 and form not in self.able]

    def __getitem__(self, position: int) -> Pair:
        if not 0 <= position < self.length:
            raise IndexError(f"position: found {position}; expected 0 to {self.length - 1}")
        return self.draw(position)

    def draw(self, position: int, attempt: int = 0) -> Pair:
        """Return the pair of a position, or a substitute for a pair that cannot be read.

        Args:
            position: 0 or more.
            attempt: 0 for the pair, 1 and above for its substitutes, which are functions of (seed, position, attempt).
        """
        rng = np.random.default_rng((self.seed, position, attempt) if attempt else (self.seed, position))
        return dataclasses.replace(self.draw_by(rng), position=position)

    def draw_by(self, rng: np.random.Generator) -> Pair:
        """Return the pair that is drawn by a generator."""
        form, source, number = self._first_choices(rng)
        show = self._showing(rng, source)
        drawn = self._draw(rng, source, form, number, show)
        negatives = self._hard_negatives(rng, source, drawn)
        return self._pair(rng, source, drawn, negatives, show)

    def _showing(self, rng: np.random.Generator, source: PairSource) -> "Show":
        """Return the function that draws how products of a pair are shown, by the seed of the pair's generator."""
        if self.variants is None:
            return lambda row: row
        entropy: Any = rng.bit_generator.seed_seq.entropy  # type: ignore[attr-defined]
        seed = tuple(entropy) if isinstance(entropy, Sequence) else (entropy,)
        return functools.partial(self.variants.shown, source.name, np.random.default_rng((_VARIANT_SALT, *seed)))

    def outline(self, position: int) -> tuple[str, int]:
        """Return the type of the query and the approximate length of the pair's texts, without opening a picture."""
        return self.outline_by(np.random.default_rng((self.seed, position)))

    def outline_by(self, rng: np.random.Generator) -> tuple[str, int]:
        """Return the outline of the pair that `draw_by` draws with a generator in the same state."""
        form, source, number = self._first_choices(rng)
        real = source.queries[form]
        if number >= len(real):
            row = source.derivable[form][number - len(real)]
            return _TYPE_OF_FORM[form], _text_length(row) + (len(row.title) if form != "i" else 0)
        query = real[number]
        answer = next(source.products[name] for name in query.positives if name in source.products)
        return _TYPE_OF_FORM[form], _text_length(answer) + (len(query.text) if form != "i" else 0)

    def _first_choices(self, rng: np.random.Generator) -> tuple[str, PairSource, int]:
        """Draw a form, a data set, and the index of a query (beyond the queries: of a product to derive one from)."""
        form = _choose(rng, list(self.able), [self.options.query_mix[form] for form in self.able])
        able = self.able[form]
        source = _choose(rng, able, [source.weight for source in able])
        return form, source, int(rng.integers(source.pool_size(form, self.options.derived_queries)))

    def _draw(self, rng: np.random.Generator, source: PairSource, form: str, number: int, show: "Show") -> _Drawn:
        real = source.queries[form]
        if number >= len(real):
            return self._derived(rng, source, source.derivable[form][number - len(real)], form, show)
        query = real[number]
        answers = {source.same_as(name): name for name in reversed(query.positives) if name in source.products}
        distinct = list(answers.values())[::-1]  # identical answers count once
        record = query.record()
        if "image" in record and rng.random() < self.options.augment_queries:
            record["image"] = self._view(record["image"], rng, geometry="core_box" not in record)
        first = distinct.pop(int(rng.integers(len(distinct))))
        more = rng.permutation(len(distinct))[: self.options.positives_per_query - 1] if distinct else ()
        chosen = [source.products[first], *(source.products[distinct[index]] for index in more)]
        return _Drawn(record, chosen, query.answers, query.negatives, query.reference_product_id)

    def _derived(
        self, rng: np.random.Generator, source: PairSource, row: ProductRow, form: str, show: "Show"
    ) -> _Drawn:
        """Derive a query from a product: an altered view of its picture, a short text about it, or both."""
        shown = show(row)
        record: dict[str, Any] = {"id": f"derived from {source.name_of(row.product_id)}"}
        positives: Sequence[str] = (row.product_id,)
        if form != "t":
            image = shown.images[int(rng.integers(len(row.images)))]
            record["image"] = self._view(image, rng, geometry=True)
        if form != "i":
            texts = _short_texts(row)
            kind = list(texts)[int(rng.integers(len(texts)))]
            if kind == "title":
                record["text"], same_text = shown.title, source.of_title[row.title]
            else:
                record["text"], same_text = _phrase(rng, source, row)
            positives = same_text if form == "t" else positives
        return _Drawn(record, [row], dict.fromkeys(positives, 1.0))

    def _view(self, image: Any, rng: np.random.Generator, geometry: bool) -> Any:
        """Return the altered picture, or the image itself if it cannot be opened, which the processor then reports."""
        try:
            return altered_view(open_image(image), rng, geometry)
        except ProductError:
            return image

    def _hard_negatives(self, rng: np.random.Generator, source: PairSource, drawn: _Drawn) -> list[ProductRow]:
        """Draw hard negatives: known negatives of the query first, then other products of the same category."""
        answers = [drawn.chosen[0].product_id, *drawn.answers]
        taken = {source.same_as(name) for name in (*answers, drawn.reference) if name is not None}
        variants = source.variants_of(answers)
        negatives = dict.fromkeys(name for name in drawn.negatives if name in source.products)
        names = [name for name in negatives if source.same_as(name) not in taken]
        known = [source.products[names[index]] for index in rng.permutation(len(names))]
        chosen: list[ProductRow] = []
        while len(chosen) < self.options.hard_negatives:
            row = known.pop() if known else self._of_same_category(rng, source, drawn.chosen[0], (taken, variants))
            if row is None:
                break
            taken.add(source.same_as(row.product_id))
            chosen.append(row)
        return chosen

    def _of_same_category(
        self,
        rng: np.random.Generator,
        source: PairSource,
        positive: ProductRow,
        excluded: tuple[set[str], set[str]],
    ) -> ProductRow | None:
        """Draw a product from the positive's category or a parent category, except the excluded products and variants."""
        taken, variants = excluded
        for depth in range(len(positive.category), -1, -1):
            near = source.of_category[positive.category[:depth]]
            for _ in range(_TRIES):
                row = near[int(rng.integers(len(near)))]
                if source.same_as(row.product_id) not in taken and source.variants.get(row.product_id) not in variants:
                    return row
        return None

    def _pair(
        self,
        rng: np.random.Generator,
        source: PairSource,
        drawn: _Drawn,
        negatives: list[ProductRow],
        show: "Show",
    ) -> Pair:
        rows = [*drawn.chosen, *negatives]
        forms = [form for form, share in self.options.product_mix.items() if share > 0]
        form = _choose(rng, forms, [self.options.product_mix[form] for form in forms])
        names = [source.name_of(row.product_id) for row in rows]
        records = [self._target(rng, show(row), form) | {"id": name} for row, name in zip(rows, names, strict=True)]
        # A query that names its variant ("same in blue") must be able to tell variants apart.
        mask_group = drawn.reference is None
        others = {name: True for name in [*drawn.answers, *([drawn.reference] if drawn.reference else [])]}
        if mask_group and len(drawn.answers) > 1:  # `query_group` holds a single group
            variants = source.variants_of(drawn.answers) - source.variants_of([drawn.chosen[0].product_id])
            wrong = set(drawn.negatives)
            others |= {
                name: True for group in sorted(variants) for name in source.of_variants[group] if name not in wrong
            }
        answers = {name: drawn.answers.get(name, 1.0) for name in [row.product_id for row in drawn.chosen]}
        answers |= drawn.answers
        weights: dict[int, float] = {}
        for name, weight in answers.items():
            weights[source.id_of(name)] = max(weight, weights.get(source.id_of(name), 0.0))
        other_ids = dict.fromkeys(source.id_of(name) for name in others)
        negative_ids = dict.fromkeys(source.id_of(name) for name in drawn.negatives)
        return Pair(
            query=drawn.record,
            products=records,
            names=names,
            product_ids=[source.id_of(row.product_id) for row in rows],
            group_ids=[source.group_id(row) for row in rows],
            query_group=source.group_id(drawn.chosen[0]) if mask_group else NO_ID,
            other_ids=[number for number in other_ids if number != source.id_of(drawn.chosen[0].product_id)],
            negative_ids=[number for number in negative_ids if number not in weights],
            positive_count=len(drawn.chosen),
            answers=weights,
        )

    def _target(self, rng: np.random.Generator, row: ProductRow, form: str) -> dict[str, Any]:
        """Return the record of a product in a form. A product without that form is encoded with all that it has."""
        options = self.options
        if form == "i" and row.images:
            record = row.record("i")
        else:
            record = row.record("t") if form == "t" and row.has_text else row.record("mm")
        if options.drop_titles and record.keys() - {"id", "title"} and rng.random() < options.drop_titles:
            record.pop("title", None)
        if options.augment_products and "images" in record and rng.random() < options.augment_products:
            geometry = "core_box" not in record
            record["images"] = [self._view(image, rng, geometry) for image in record["images"]]
        return record


Show = Callable[[ProductRow], ProductRow]
"""Returns a product as the pair shows it: itself, or with a variant's title or picture."""


def _choose(rng: np.random.Generator, options: list[Any], weights: list[float]) -> Any:
    """Draw an option by weight."""
    bounds = np.cumsum(np.asarray(weights, dtype=np.float64))
    return options[min(int(np.searchsorted(bounds, rng.random() * bounds[-1], side="right")), len(options) - 1)]


def _text_length(row: ProductRow) -> int:
    attributes = sum(len(key) + sum(map(len, values)) for key, values in row.attributes.items())
    return len(row.title) + len(row.description) + sum(map(len, row.category)) + attributes


def _facts(row: ProductRow) -> list[tuple[str, str]]:
    """Return the facts of a product that a phrase can contain: attribute values and the leaf category."""
    facts = [(key, value) for key, values in row.attributes.items() for value in values]
    return facts + ([("", row.category[-1])] if row.category else [])


def _short_texts(row: ProductRow) -> dict[str, bool]:
    """Return the kinds of short text that can be derived from a product."""
    return {kind: True for kind, content in (("title", row.title), ("phrase", _facts(row))) if content}


def _phrase(rng: np.random.Generator, source: PairSource, row: ProductRow) -> tuple[str, list[str]]:
    """Return a phrase of one to three attribute values and the category, and all products that it describes."""
    facts = _facts(row)
    leaf = [fact for fact in facts if fact[0] == ""]
    values = [fact for fact in facts if fact[0] != ""]
    count = int(rng.integers(1, 4)) if values else 0
    chosen = [values[index] for index in rng.permutation(len(values))[:count]] + leaf
    described = set.intersection(*(source.of_fact[fact] for fact in chosen))
    return " ".join(value for _, value in chosen), sorted(described)
