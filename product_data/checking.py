"""Count and name what is wrong with product data: the report that is printed before anything starts."""

from __future__ import annotations

import functools
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from tqdm import tqdm

from product_data.missing_images import all_missing
from product_data.rows import ProductRow, QueryRow
from product_data.table_files import ImageSource, TableError, is_address
from product_data.text_cells import html_in

_EXAMPLES = 5
# kind of issue → (fatal, what it means)
_KINDS = {
    "no_products": (True, "the data set has no products"),
    "missing_product_ids": (True, "products without product_id"),
    "duplicate_product_ids": (True, "product_id used by more than one product"),
    "missing_query_ids": (False, "queries without query_id"),
    "duplicate_query_ids": (False, "query_id used by more than one query"),
    "identical_products": (
        False,
        "products that repeat the texts and pictures of another one: no model can tell them apart; scores count them as right "
        "where the other is, and they are never a negative of it",
    ),
    "no_image_files": (True, "not one product can be read, its pictures are missing"),
    "empty_products": (False, "products with neither text nor image"),
    "invalid_unicode": (
        True,
        "cells with invalid Unicode, such as half of an emoji (a lone surrogate), which no tokenizer reads: write them again",
    ),
    "swallowed_rows": (
        False,
        "quoted cells with line breaks whose lines look like rows, which an unbalanced quote would join: look whether rows are "
        "missing, and write a quote inside of a cell twice",
    ),
    "html_cells": (
        False,
        "cells that hold HTML (tags or entities), read and learned letter by letter: write plain text, or use strip_html",
    ),
    "split_categories": (
        False,
        "categories whose levels were found by another sign than the format's: if it separates none, name category_separator",
    ),
    "undecided_categories": (
        False,
        "categories that hold a '/' and stay one label: if it separates levels, category_separator: '/'",
    ),
    "several_categories": (False, "categories that name several paths, of which one is read"),
    "broken_rows": (False, "rows left out, their query or product cannot be had wholly"),
    "broken_negatives": (False, "hard negatives left out, they cannot be read or their pictures cannot be had"),
    "repeated_rows": (False, "rows left out, they repeat another row wholly"),
    "shared_row_ids": (False, "rows with the id of another row: they are queries of their own"),
    "conflicting_products": (False, "products of which rows say different things: what the first row says counts"),
    "words_for_nothing": (
        False,
        "queries that are the word 'nan', 'null' or 'None' and are read as this word: leave the cell empty where there are none",
    ),
    "empty_queries": (False, "queries with neither text nor image"),
    "malformed_cells": (False, "cells that could not be read and count as empty"),
    "type_mismatches": (False, "queries that lack what their type asks for; they count as what they have"),
    "missing_images": (False, "image files that are not there"),
    "unreadable_images": (False, "images that cannot be opened"),
    "image_addresses": (
        False,
        "images given as addresses, which were not looked at; training fetches them with allow_urls: true, mining and "
        "evaluation leave these items out: download them and name the files",
    ),
    "dangling_positives": (False, "positives that are no product of the table"),
    "dangling_negatives": (False, "negatives that are no product of the table"),
    "dangling_references": (False, "reference_product_id that is no product of the table"),
    "queries_without_positives": (False, "queries without a positive product or category"),
    "no_interactions": (True, "not one interaction can be used"),
    "unknown_actions": (False, "interactions left out, their action has no weight"),
    "dangling_interactions": (False, "interactions left out, their product_id is no product of the table"),
    "empty_interactions": (False, "interactions left out, they have neither query nor query_image"),
    "unusable_counts": (False, "interactions left out, their count is no whole number of at least 1"),
    "unusable_times": (
        False,
        "interactions whose time cannot be read: they do not age, and the same row twice is counted twice",
    ),
    "no_times": (True, "a half-life is asked for, and not one interaction has a time"),
    "duplicate_interactions": (False, "interactions left out, the same row with the same time came before"),
    "duplicate_written_attributes": (False, "rows of written_attributes left out, their product_id came before"),
    "dangling_written_attributes": (False, "rows of written_attributes left out, their product_id is no product"),
    "unknown_columns": (False, "columns that are not read"),
}


@dataclass(frozen=True)
class Issue:
    """One kind of trouble: how often, and up to five places by name.

    Of ids that are not there, `near` is how many would be found if they were written otherwise, `near_example` the first.
    """

    kind: str
    count: int
    examples: tuple[str, ...]
    near: int = 0
    near_example: str = ""

    @property
    def fatal(self) -> bool:
        """Whether nothing should start with this."""
        return _KINDS[self.kind][0]

    def __str__(self) -> str:
        more = ", …" if self.count > len(self.examples) else ""
        level = "ERROR" if self.fatal else "warning"
        text = f"{level}: {self.count} × {_KINDS[self.kind][1]} ({self.kind}): {', '.join(self.examples)}{more}"
        return text + (f"; {self.near} of them are written otherwise: {self.near_example}" if self.near else "")


@dataclass(frozen=True)
class ValidationReport:
    """What the tables hold and what is wrong with them. `str(report)` is meant to be read by a person."""

    name: str
    products: int
    queries: int
    splits: dict[str, tuple[int, int]]
    issues: tuple[Issue, ...] = ()
    interactions: int = 0
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether nothing fatal was found."""
        return not any(issue.fatal for issue in self.issues)

    def count(self, kind: str) -> int:
        """How often `kind` was found.

        Raises:
            KeyError: no such kind.
        """
        if kind not in _KINDS:
            raise KeyError(f"{kind!r}; known kinds: {', '.join(_KINDS)}")
        return sum(issue.count for issue in self.issues if issue.kind == kind)

    def raise_if_fatal(self) -> None:
        """Stop here if the tables cannot be used.

        Raises:
            TableError: with the whole report, where an issue is fatal.
        """
        if not self.ok:
            raise TableError(str(self))

    def __str__(self) -> str:
        splits = ", ".join(f"{split} {products}/{queries}" for split, (products, queries) in self.splits.items())
        log = f" ({self.interactions} interactions)" if self.interactions else ""
        counts = f"{self.products} products, {self.queries} queries{log}"
        lines = [f"{self.name}: {counts} (products/queries by split: {splits})"]
        return "\n  ".join(lines + [*self.notes] + [str(issue) for issue in self.issues])


class Found:
    """Collects issues by kind while a table is read or checked."""

    def __init__(self, issues: Iterable[Issue] = ()) -> None:
        self.counts: Counter[str] = Counter({issue.kind: issue.count for issue in issues})
        self.examples: dict[str, list[str]] = {issue.kind: list(issue.examples) for issue in issues}
        self.near: Counter[str] = Counter({issue.kind: issue.near for issue in issues})
        self.near_examples: dict[str, str] = {issue.kind: issue.near_example for issue in issues if issue.near}

    def add(self, kind: str, example: str, count: int = 1) -> None:
        self.counts[kind] += count
        examples = self.examples.setdefault(kind, [])
        if len(examples) < _EXAMPLES:
            examples.append(example)

    def add_dangling(self, kind: str, place: str, product_id: str, ids: Ids) -> None:
        """Note an id that is no product, and whether it would be one if it were written otherwise."""
        self.add(kind, f"{place} → {product_id!r}")
        if (nearly := ids.nearly(product_id)) is not None:
            self.near[kind] += 1
            self.near_examples.setdefault(kind, f"{product_id!r} is not there, {nearly!r} is")

    def issues(self) -> tuple[Issue, ...]:
        return tuple(
            Issue(
                kind, self.counts[kind], tuple(self.examples[kind]), self.near[kind], self.near_examples.get(kind, "")
            )
            for kind in _KINDS
            if self.counts[kind]
        )


class Ids(frozenset[str]):
    """The ids of the products, and which of them an id may mean that is written otherwise."""

    def nearly(self, product_id: str) -> str | None:
        """The product's id that differs in spaces, letter case, leading zeros or a decimal part of zeros alone, or None."""
        return self._by_form.get(_form_of(product_id))

    @functools.cached_property
    def _by_form(self) -> dict[str, str]:
        return {_form_of(name): name for name in sorted(self, reverse=True) if name}


def _form_of(product_id: str) -> str:
    """An id without what differs when two programs write the same one."""
    plain = "".join(unicodedata.normalize("NFKC", product_id).split()).casefold()
    whole = re.sub(r"^([0-9]+)\.0*$", r"\1", plain)
    return whole.lstrip("0") or "0" if re.fullmatch("[0-9]+", whole) else whole


def check_products(products: list[ProductRow], found: Found, categories_alone: bool) -> None:
    if not products and not categories_alone:  # queries that ask for a category need no products
        found.add("no_products", "the products table is empty or not there")
    if missing := all_missing(products):
        found.add("no_image_files", missing)
    for product_id, uses in Counter(row.product_id for row in products if row.product_id).items():
        if uses > 1:
            found.add("duplicate_product_ids", f"{product_id!r} ({uses} times)")
    for row in products:
        if not row.has_text and not row.images:
            found.add("empty_products", repr(row.product_id))


def check_queries(queries: list[QueryRow], product_ids: Ids, found: Found) -> None:
    for query_id, uses in Counter(row.query_id for row in queries if row.query_id).items():
        if uses > 1:
            found.add("duplicate_query_ids", f"{query_id!r} ({uses} times)")
    for row in queries:
        if not row.text and row.image is None:
            found.add("empty_queries", repr(row.query_id))
        if not row.positives and not row.positive_categories:
            found.add("queries_without_positives", repr(row.query_id))
        reference = (row.reference_product_id,) if row.reference_product_id else ()
        for kind, ids in (("positives", row.positives), ("negatives", row.negatives), ("references", reference)):
            for product_id in ids:
                if product_id not in product_ids:
                    found.add_dangling(f"dangling_{kind}", repr(row.query_id), product_id, product_ids)


def check_html(products: Iterable[ProductRow], queries: Iterable[QueryRow], found: Found) -> None:
    """Count the cells that a model reads and that hold HTML."""
    for place, text in _texts(products, queries):
        if ("<" in text or "&" in text) and (html := html_in(text)):
            found.add("html_cells", f"{place}: {html!r}")


def _texts(products: Iterable[ProductRow], queries: Iterable[QueryRow]) -> Iterator[tuple[str, str]]:
    """The texts of each cell, joined, and where they stand."""
    for row in products:
        item = f"product {row.product_id!r}"
        yield f"{item}, title", row.title
        yield f"{item}, description", row.description
        yield f"{item}, category_path", "\n".join(row.category)
        for column in ("attributes", "attributes_image", "attributes_text"):
            pairs = getattr(row, column) or {}
            yield f"{item}, {column}", "\n".join(part for key, values in pairs.items() for part in (key, *values))
    for query in queries:
        yield f"query {query.query_id!r}, text", query.text
        yield f"query {query.query_id!r}, positive_categories", "\n".join(query.positive_categories)


def named_images(products: Iterable[ProductRow], queries: Iterable[QueryRow]) -> Iterator[tuple[str, ImageSource]]:
    """Each picture once, under the name of the first product or query that has it: many share one."""
    named = [
        (f"product {product.product_id!r}, images[{number}]", image)
        for product in products
        for number, image in enumerate(product.images)
    ]
    named += [(f"query {query.query_id!r}, image", query.image) for query in queries if query.image is not None]
    seen: set[int | str] = set()
    for name, image in named:
        key = image if isinstance(image, str) else id(image)
        if key not in seen:
            seen.add(key)
            yield name, image


def check_pictures(images: Iterable[tuple[str, ImageSource]], found: Found, open_them: bool) -> None:
    for name, source in tqdm(images, desc="pictures opened", unit="picture", delay=3.0, disable=not open_them):
        if is_address(source):
            found.add("image_addresses", f"{name}: {source}")
        elif isinstance(source, str) and not os.path.isfile(source):
            found.add("missing_images", f"{name}: {source}")
        elif open_them and (reason := _why_unreadable(source)):
            found.add("unreadable_images", f"{name}: {reason}")


def _why_unreadable(source: ImageSource) -> str | None:
    from processing_moon import ProductError, open_image  # brings torch, which tables alone do not need

    try:
        open_image(source)
    except ProductError as error:
        return error.reason
    return None
