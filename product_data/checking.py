"""Check product data, and report its issues before training or evaluation starts."""

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
# kind of issue → (fatal, explanation)
_KINDS = {
    "no_products": (True, "the data set has no products"),
    "missing_product_ids": (True, "products without product_id"),
    "duplicate_product_ids": (True, "product_id used by more than one product"),
    "missing_query_ids": (False, "queries without query_id"),
    "duplicate_query_ids": (False, "query_id used by more than one query"),
    "identical_products": (
        False,
        "products that repeat the texts and pictures of another product: a model cannot tell them apart; scores count "
        "them as right where the other one is right, and they are never its negatives",
    ),
    "no_image_files": (True, "every product lacks its pictures, so no product can be read"),
    "empty_products": (False, "products with neither text nor image"),
    "invalid_unicode": (
        True,
        "cells with invalid Unicode, such as half of an emoji (a lone surrogate), which tokenizers refuse; correct them",
    ),
    "swallowed_rows": (
        False,
        "quoted cells with line breaks whose lines look like rows, as an unbalanced quote produces: check whether rows "
        "are missing, and write a quote inside a cell twice",
    ),
    "html_cells": (
        False,
        "cells with HTML (tags or entities), which a model reads as text: write plain text, or use strip_html",
    ),
    "split_categories": (
        False,
        "categories with a separator other than the format's: if it does not separate levels, set category_separator",
    ),
    "undecided_categories": (
        False,
        "categories with a '/' that were read as one label: if it separates levels, set category_separator: '/'",
    ),
    "several_categories": (False, "categories with several paths; only one is read"),
    "broken_rows": (False, "rows left out: their query or product is incomplete or cannot be read"),
    "broken_negatives": (False, "hard negatives left out: they cannot be read, or their pictures are missing"),
    "repeated_rows": (False, "rows left out: they repeat another row completely"),
    "shared_row_ids": (False, "rows with the id of another row, read as separate queries"),
    "conflicting_products": (False, "products that several rows describe differently: the first row counts"),
    "words_for_nothing": (
        False,
        "queries with the text 'nan', 'null' or 'None', which is read as a word: leave the cell empty for no text",
    ),
    "empty_queries": (False, "queries with neither text nor image"),
    "malformed_cells": (False, "cells that could not be read and count as empty"),
    "type_mismatches": (False, "queries whose type does not match their text and image; the text and image count"),
    "missing_images": (False, "image files that do not exist"),
    "unreadable_images": (False, "images that cannot be opened"),
    "image_addresses": (
        False,
        "images given as URLs, which are not checked; training fetches them with allow_urls: true, mining and "
        "evaluation leave out their products and queries: download them and give the paths of the files",
    ),
    "dangling_positives": (False, "positives that are not in the products table"),
    "dangling_negatives": (False, "negatives that are not in the products table"),
    "dangling_references": (False, "reference_product_id that is not in the products table"),
    "queries_without_positives": (False, "queries without a positive product or category"),
    "no_interactions": (True, "none of the interactions can be used"),
    "unknown_actions": (False, "interactions left out: their action has no weight"),
    "dangling_interactions": (False, "interactions left out: their product_id is not in the products table"),
    "empty_interactions": (False, "interactions left out: they have neither query nor query_image"),
    "unusable_counts": (False, "interactions left out: their count is not a whole number of at least 1"),
    "unusable_times": (
        False,
        "interactions whose time cannot be read: they do not age, and repeated rows are counted twice",
    ),
    "no_times": (True, "half_life_days is set, and none of the interactions has a time"),
    "duplicate_interactions": (False, "interactions left out: they repeat an earlier row with the same time"),
    "broken_impressions": (False, "rows of a log of showings left out: a cell is empty or cannot be read"),
    "duplicate_written_attributes": (False, "rows of written_attributes left out: an earlier row has their product_id"),
    "dangling_written_attributes": (
        False,
        "rows of written_attributes left out: their product_id is not in the products table",
    ),
    "unknown_columns": (False, "columns that are not read"),
}


@dataclass(frozen=True)
class Issue:
    """One kind of issue: how often it occurs, and up to five places.

    For unknown ids, `near` counts those that differ from a known id only in spelling; `near_example` is the first of
    them.
    """

    kind: str
    count: int
    examples: tuple[str, ...]
    near: int = 0
    near_example: str = ""

    @property
    def fatal(self) -> bool:
        """Whether the tables cannot be used with this issue."""
        return _KINDS[self.kind][0]

    def __str__(self) -> str:
        more = ", …" if self.count > len(self.examples) else ""
        level = "ERROR" if self.fatal else "warning"
        text = f"{level}: {self.count} × {_KINDS[self.kind][1]} ({self.kind}): {', '.join(self.examples)}{more}"
        return text + (f"; {self.near} of them differ only in spelling: {self.near_example}" if self.near else "")


@dataclass(frozen=True)
class ValidationReport:
    """The contents and issues of tables. `str(report)` is a readable summary."""

    name: str
    products: int
    queries: int
    splits: dict[str, tuple[int, int]]
    issues: tuple[Issue, ...] = ()
    interactions: int = 0
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether no issue is fatal."""
        return not any(issue.fatal for issue in self.issues)

    def count(self, kind: str) -> int:
        """Return how often a kind of issue occurs.

        Raises:
            KeyError: no such kind.
        """
        if kind not in _KINDS:
            raise KeyError(f"{kind!r}; known kinds: {', '.join(_KINDS)}")
        return sum(issue.count for issue in self.issues if issue.kind == kind)

    def raise_if_fatal(self) -> None:
        """Raise an error if the tables cannot be used.

        Raises:
            TableError: an issue is fatal; the message is the whole report.
        """
        if not self.ok:
            raise TableError(str(self))

    def __str__(self) -> str:
        splits = ", ".join(f"{split} {products}/{queries}" for split, (products, queries) in self.splits.items())
        log = f" ({self.interactions} interactions)" if self.interactions else ""
        counts = f"{self.products} products, {self.queries} queries{log}"
        lines = [f"{self.name}: {counts} (products/queries by split: {splits})"]
        return "\n  ".join(lines + [*self.notes] + [str(issue) for issue in self.issues])


class IssueLog:
    """Collect issues by kind while a table is read or checked."""

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
        """Note an id without a product, and whether it differs from a known id only in spelling."""
        self.add(kind, f"{place} → {product_id!r}")
        if (known := ids.closest(product_id)) is not None:
            self.near[kind] += 1
            self.near_examples.setdefault(kind, f"found {product_id!r}, the table has {known!r}")

    def issues(self) -> tuple[Issue, ...]:
        return tuple(
            Issue(
                kind, self.counts[kind], tuple(self.examples[kind]), self.near[kind], self.near_examples.get(kind, "")
            )
            for kind in _KINDS
            if self.counts[kind]
        )


class Ids(frozenset[str]):
    """The ids of products; finds an id even if it is spelled differently."""

    def closest(self, product_id: str) -> str | None:
        """Return the id that differs only in spaces, case, leading zeros or a decimal part of zeros, or None."""
        return self._by_form.get(_form_of(product_id))

    @functools.cached_property
    def _by_form(self) -> dict[str, str]:
        return {_form_of(name): name for name in sorted(self, reverse=True) if name}


def _form_of(product_id: str) -> str:
    """Return an id without the differences between programs that write it."""
    plain = "".join(unicodedata.normalize("NFKC", product_id).split()).casefold()
    whole = re.sub(r"^([0-9]+)\.0*$", r"\1", plain)
    return whole.lstrip("0") or "0" if re.fullmatch("[0-9]+", whole) else whole


def check_products(products: list[ProductRow], log: IssueLog, categories_alone: bool) -> None:
    if not products and not categories_alone:  # queries that ask for a category need no products
        log.add("no_products", "the products table is empty or missing")
    if missing := all_missing(products):
        log.add("no_image_files", missing)
    for product_id, uses in Counter(row.product_id for row in products if row.product_id).items():
        if uses > 1:
            log.add("duplicate_product_ids", f"{product_id!r} ({uses} times)")
    for row in products:
        if not row.has_text and not row.images:
            log.add("empty_products", repr(row.product_id))


def check_queries(queries: list[QueryRow], product_ids: Ids, log: IssueLog) -> None:
    for query_id, uses in Counter(row.query_id for row in queries if row.query_id).items():
        if uses > 1:
            log.add("duplicate_query_ids", f"{query_id!r} ({uses} times)")
    for row in queries:
        if not row.text and row.image is None:
            log.add("empty_queries", repr(row.query_id))
        if not row.positives and not row.positive_categories:
            log.add("queries_without_positives", repr(row.query_id))
        reference = (row.reference_product_id,) if row.reference_product_id else ()
        for kind, ids in (("positives", row.positives), ("negatives", row.negatives), ("references", reference)):
            for product_id in ids:
                if product_id not in product_ids:
                    log.add_dangling(f"dangling_{kind}", repr(row.query_id), product_id, product_ids)


def check_html(products: Iterable[ProductRow], queries: Iterable[QueryRow], log: IssueLog) -> None:
    """Count the cells with HTML among those that a model reads."""
    for place, text in _texts(products, queries):
        if ("<" in text or "&" in text) and (html := html_in(text)):
            log.add("html_cells", f"{place}: {html!r}")


def _texts(products: Iterable[ProductRow], queries: Iterable[QueryRow]) -> Iterator[tuple[str, str]]:
    """Yield the name of each cell, and its texts joined."""
    for row in products:
        product = f"product {row.product_id!r}"
        yield f"{product}, title", row.title
        yield f"{product}, description", row.description
        yield f"{product}, category_path", "\n".join(row.category)
        for column in ("attributes", "attributes_image", "attributes_text"):
            pairs = getattr(row, column) or {}
            yield f"{product}, {column}", "\n".join(part for key, values in pairs.items() for part in (key, *values))
    for query in queries:
        yield f"query {query.query_id!r}, text", query.text
        yield f"query {query.query_id!r}, positive_categories", "\n".join(query.positive_categories)


def named_images(products: Iterable[ProductRow], queries: Iterable[QueryRow]) -> Iterator[tuple[str, ImageSource]]:
    """Yield each picture once, with the name of the first product or query that has it."""
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


def check_pictures(images: Iterable[tuple[str, ImageSource]], log: IssueLog, open_pictures: bool) -> None:
    for name, source in tqdm(images, desc="pictures opened", unit="picture", delay=3.0, disable=not open_pictures):
        if is_address(source):
            log.add("image_addresses", f"{name}: {source}")
        elif isinstance(source, str) and not os.path.isfile(source):
            log.add("missing_images", f"{name}: {source}")
        elif open_pictures and (reason := why_unreadable(source)):
            log.add("unreadable_images", f"{name}: {reason}")


def why_unreadable(source: ImageSource) -> str | None:
    """Return why a picture cannot be opened, or None."""
    from processing_moon import ProductError, open_image  # brings torch, which tables alone do not need

    try:
        open_image(source)
    except ProductError as error:
        return error.reason
    return None
