"""The one reader of product data: the embedded catalogue, a folder in the two-table format, a user's own files.

Two tables make a data set. `products`: product_id, title, description, category_path, attributes, images, split, group,
core_box; and, as in MBE3.0, attributes_image and attributes_text: what the picture and what the text show of a product, in
cells like those of attributes (an empty list says that it shows nothing, a missing cell that nobody has looked).
`queries`: query_id, type (text, image, both), text, image or image_id, bbox, positives, positive_weights, negatives, split,
kind, derived, reference_product_id, positive_categories. Pictures named by `image_id` stand in `query_images` (image_id,
image). `positive_weights` grades the answers: a number above 0 for each of `positives`, 1 for a purchase; without the column
every answer has 1. Beside or instead of `queries`, a shop's log `interactions` (query, query_image, product_id, action,
count, time, split) becomes such queries: see `evaluation.data.interactions`. A table `written_attributes` (product_id,
attributes_image, attributes_text), as `training.data.write_attributes` makes it, fills cells of these columns that products
lack.
What is wrong with a table is counted and named in a report before anything starts; no row is left out on reading.

    python -m evaluation.data.tables FOLDER|FILE [--images-root FOLDER]      prints the report, every picture opened
"""

from __future__ import annotations

import argparse
import difflib
import functools
import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from html.entities import html5
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from evaluation.data.duplicates import EqualProducts, identical_examples, variants_sentence
from evaluation.data.interactions import (
    GradedQuery,
    Interaction,
    InteractionOptions,
    graded_queries,
    parse_count,
    parse_time,
    query_key,
)
from evaluation.data.missing_images import all_missing, found_beside, table_folders
from evaluation.data.table_files import (
    SUFFIXES,
    ImageSource,
    TableError,
    columns_of,
    is_absent,
    is_address,
    parse_attributes,
    parse_box,
    parse_category,
    parse_flag,
    parse_images,
    parse_text,
    parse_texts,
    parse_weights,
    read_rows,
)
from processing_moon.product_moon import ProductError, open_image

__all__ = ["ImageSource", "ProductRow", "ProductTables", "QueryRow", "TableError", "ValidationReport", "load_tables"]

QUERY_TYPES = ("text", "image", "both")
PRODUCT_FORMS = ("mm", "t", "i")
EVERY_SPLIT = "all"
_EXAMPLES = 5

_PRODUCT_COLUMNS = (
    "product_id",
    "title",
    "description",
    "category_path",
    "attributes",
    "images",
    "split",
    "group",
    "core_box",
    "attributes_image",
    "attributes_text",
)
_QUERY_COLUMNS = (
    "query_id",
    "type",
    "text",
    "image_id",
    "image",
    "bbox",
    "positives",
    "positive_weights",
    "negatives",
    "split",
    "kind",
    "derived",
    "reference_product_id",
    "positive_categories",
)
_IMAGE_COLUMNS = ("image_id", "image")
_INTERACTION_COLUMNS = ("query", "query_image", "product_id", "action", "count", "time", "split")
_WRITTEN_COLUMNS = (
    "product_id",
    "attributes_image",
    "attributes_text",
    "written_image",
    "written_text",
    "problem_image",
    "problem_text",
    "attempts_image",
    "attempts_text",
    "model",
)
_PARTS = ("products", "queries", "query_images", "interactions", "written_attributes")
# Other names that files use. An alias counts only where the table has no column of the real name.
_PRODUCT_ALIASES = {
    "id": "product_id",
    "image": "images",
    "category": "category_path",
    "name": "title",
    "bbox": "core_box",
}
_QUERY_ALIASES = {"id": "query_id", "core_box": "bbox", "positive": "positives"}
_INTERACTION_ALIASES = {"text": "query", "image": "query_image", "event": "action", "timestamp": "time"}

_HTML = re.compile(
    r"</?(?:a|abbr|b|big|br|center|code|del|div|em|font|h[1-6]|hr|i|img|ins|label|li|mark|ol|p|pre|q|s|script|small|span|"
    r"strike|strong|style|su[bp]|table|tbody|td|th|thead|tr|tt|u|ul)(?:\s[^<>]*)?/?>|<!--|"
    r"&(?:(?P<name>[a-z][a-z0-9]*)|#[0-9]+|#x[0-9a-f]+);",
    re.IGNORECASE,
)

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
    "html_titles": (
        False,
        "titles that hold HTML (tags or entities), which is read and learned letter by letter: write plain text",
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
    "duplicate_interactions": (False, "interactions left out, the same row with the same time came before"),
    "duplicate_written_attributes": (False, "rows of written_attributes left out, their product_id came before"),
    "dangling_written_attributes": (False, "rows of written_attributes left out, their product_id is no product"),
    "unknown_columns": (False, "columns that are not read"),
}


@dataclass(frozen=True, slots=True)
class ProductRow:
    """One product. Pictures stay encoded: a row is light and pickles.

    `attributes_image` and `attributes_text` are what the picture and what the text show, None where nobody has said; they
    are no part of the record that a model sees.
    """

    product_id: str
    title: str = ""
    description: str = ""
    category: tuple[str, ...] = ()
    attributes: dict[str, tuple[str, ...]] = field(default_factory=dict)
    images: tuple[ImageSource, ...] = ()
    split: str = EVERY_SPLIT
    group: str | None = None
    core_box: tuple[float, float, float, float] | None = None
    attributes_image: dict[str, tuple[str, ...]] | None = None
    attributes_text: dict[str, tuple[str, ...]] | None = None

    @property
    def has_text(self) -> bool:
        """Whether any field can be written into a prompt."""
        return bool(self.title or self.description or self.category or self.attributes)

    def record(self, form: str = "mm", *, without: Iterable[str] = ()) -> dict[str, Any]:
        """The product record for MoonProcessor.

        Args:
            form (`str`): "mm" everything, "t" the text fields only, "i" the images (and core box) only.
            without (`Iterable[str]`): record fields to leave out, such as "category".

        Raises:
            ValueError: another form.
        """
        if form not in PRODUCT_FORMS:
            raise ValueError(f"form={form!r}; accepted: {', '.join(PRODUCT_FORMS)}")
        fields: dict[str, Any] = {}
        if form != "i":
            fields |= {"title": self.title, "description": self.description}
            fields |= {"category": list(self.category)}
            fields |= {"attributes": {key: list(values) for key, values in self.attributes.items()}}
        if form != "t":
            fields |= {"images": list(self.images), "core_box": list(self.core_box) if self.core_box else None}
        left_out = set(without)
        return {"id": self.product_id} | {
            name: value for name, value in fields.items() if value and name not in left_out
        }


@dataclass(frozen=True, slots=True)
class QueryRow:
    """One query and its right answers."""

    query_id: str
    type: str
    text: str = ""
    image: ImageSource | None = None
    box: tuple[float, float, float, float] | None = None
    positives: tuple[str, ...] = ()
    split: str = EVERY_SPLIT
    kind: str = ""
    derived: bool = False
    reference_product_id: str | None = None
    negatives: tuple[str, ...] = ()
    positive_categories: tuple[str, ...] = ()
    positive_weights: tuple[float, ...] = ()

    @property
    def answers(self) -> dict[str, float]:
        """Product id → relevance weight of each known answer, 1 where the table gives none."""
        weights = self.positive_weights or (1.0,) * len(self.positives)
        return dict(zip(self.positives, weights, strict=True))

    def record(self) -> dict[str, Any]:
        """The query record for MoonProcessor; a query of type "image" leaves its text out and the reverse."""
        fields: dict[str, Any] = {"id": self.query_id}
        if self.type != "image" and self.text:
            fields["text"] = self.text
        if self.type != "text" and self.image is not None:
            fields["image"] = self.image
            if self.box is not None:
                fields["core_box"] = list(self.box)
        return fields


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


class _Found:
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

    def add_dangling(self, kind: str, place: str, product_id: str, ids: _Ids) -> None:
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


class _Ids(frozenset[str]):
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


@dataclass(frozen=True)
class ProductTables:
    """Products and queries of one data set (or of one split of it).

    `report` is the report on the tables as they were read; `validate()` looks again, at these rows.
    """

    name: str
    products: list[ProductRow]
    queries: list[QueryRow]
    report: ValidationReport
    reading_issues: tuple[Issue, ...] = ()
    interactions: int = 0
    notes: tuple[str, ...] = ()

    @property
    def splits(self) -> dict[str, tuple[int, int]]:
        """Split → (products, queries) that bear exactly this name."""
        products = Counter(row.split for row in self.products)
        queries = Counter(row.split for row in self.queries)
        return {split: (products[split], queries[split]) for split in dict.fromkeys([*products, *queries])}

    def select(self, split: str | None) -> ProductTables:
        """The rows of one split; those of split "all" belong to every split. `None` or "all" keeps everything.

        Raises:
            TableError: no such split, naming those there are.
        """
        names = self.splits
        if split in (None, EVERY_SPLIT) or set(names) <= {EVERY_SPLIT}:
            return self
        if split not in names:
            raise TableError(f"{self.name}: no split {split!r}; there are: {', '.join(sorted(names))}")
        kept = (split, EVERY_SPLIT)
        return replace(
            self,
            products=[row for row in self.products if row.split in kept],
            queries=[row for row in self.queries if row.split in kept],
        )

    def validate(self, *, check_images: bool = False) -> ValidationReport:
        """Check ids, contents and image files.

        Args:
            check_images (`bool`): also open every picture, as the processor would. Default False.
        """
        found = _Found(self.reading_issues)
        _check_products(self.products, found, any(row.positive_categories for row in self.queries))
        equal = EqualProducts(self.products)
        for count, example in identical_examples(equal):
            found.add("identical_products", example, count)
        notes = (*self.notes, *filter(None, [variants_sentence(equal)]))
        _check_queries(self.queries, _Ids(row.product_id for row in self.products), found)
        _check_images(_named_images(self), found, check_images)
        counts = len(self.products), len(self.queries)
        return ValidationReport(self.name, *counts, self.splits, found.issues(), self.interactions, notes)


def load_tables(
    source: str | Path | Mapping[str, Any],
    *,
    split: str | None = None,
    images_root: str | Path | None = None,
    seed: int = 0,
    check_images: bool = False,
    interactions: InteractionOptions | None = None,
    **catalogue_options: Any,
) -> ProductTables:
    """Read a data set.

    Args:
        source: "catalogue" (the embedded one); a folder with products.{parquet,jsonl,csv} and, where there are any,
            queries.*, query_images.*, interactions.* and written_attributes.*; a products file; or {"products": …,
            "queries": …, "query_images": …, "interactions": …, "written_attributes": …, "images": folder} whose tables
            are files or iterables of row dicts, such as a `datasets.Dataset`.
        split (`str` or `None`): keep one split. Default: all rows.
        images_root: folder that image paths are relative to. Default: the folder of the table.
        seed (`int`): seed of the embedded catalogue; other sources do not use it. Default 0.
        check_images (`bool`): open every picture for the report. Default False.
        interactions: how the interactions become weights. Default: InteractionOptions's own.
        **catalogue_options: options of `evaluation.data.catalogue.make_catalogue`; for "catalogue" only.

    Raises:
        TableError: a source, file, required column or split that is not there.

    Relations: `tables.report.raise_if_fatal()` before training or evaluation.
    """
    if source == "catalogue":
        from evaluation.data.catalogue import make_catalogue  # drawing is needed by this source alone

        products, queries = make_catalogue(seed=seed, **catalogue_options)
        parts: dict[str, Any] = {"products": products, "queries": queries}
        name = "catalogue"
    elif catalogue_options:
        raise TableError(
            f"options {', '.join(sorted(catalogue_options))} are for source 'catalogue', not for {source!r}"
        )
    else:
        name, parts = _find_parts(source)
    tables = _build(name, parts, images_root, interactions or InteractionOptions())
    if images_root is None and not parts.get("images"):
        tables = _with_pictures_beside(tables, table_folders(parts.values()))
    tables = replace(tables, report=tables.validate(check_images=check_images))
    return tables.select(split)


def _with_pictures_beside(tables: ProductTables, folders: Sequence[Path]) -> ProductTables:
    """The tables with missing picture files taken from a folder `images` beside them."""
    products, found = found_beside(tables.products, "images", folders)
    queries, more = found_beside(tables.queries, "image", folders)
    count = len(found | more)
    notes = (f"{count} picture files were found in the folder 'images' beside the table",) if count else ()
    return replace(tables, products=products, queries=queries, notes=(*tables.notes, *notes))


def _find_parts(source: str | Path | Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    if isinstance(source, Mapping):
        accepted = (*_PARTS, "images")
        unknown = set(source) - set(accepted)
        if unknown or not source:
            raise TableError(f"source has {', '.join(sorted(unknown)) or 'no entry'}; accepted: {', '.join(accepted)}")
        path = source.get("products")
        return (Path(path).parent.name or "tables") if isinstance(path, str | Path) else "tables", dict(source)
    path = Path(source)
    if path.is_dir():
        parts = {part: file for part in _PARTS if (file := _find_table(path, part))}
        if not parts.keys() & {"products", "queries"}:
            raise TableError(f"{path}: no products table; accepted: products{{{','.join(SUFFIXES)}}} in that folder")
        return path.resolve().name, parts
    if path.is_file():
        return path.stem, {"products": path}
    raise TableError(
        f"{source}: no such file or folder; accepted: 'catalogue', a folder with products.*, or a products file"
    )


def _find_table(folder: Path, part: str) -> Path | None:
    there = [folder / f"{part}{suffix}" for suffix in SUFFIXES if (folder / f"{part}{suffix}").is_file()]
    if len(there) > 1:
        raise TableError(f"{folder}: {' and '.join(path.name for path in there)} are both there; keep one of them")
    return there[0] if there else None


class _Table:
    """Rows of one table under their known column names, and the cells that could not be read."""

    def __init__(self, part: str, source: Any, found: _Found) -> None:
        columns, aliases = {
            "products": (_PRODUCT_COLUMNS, _PRODUCT_ALIASES),
            "queries": (_QUERY_COLUMNS, _QUERY_ALIASES),
            "query_images": (_IMAGE_COLUMNS, {"id": "image_id"}),
            "interactions": (_INTERACTION_COLUMNS, _INTERACTION_ALIASES),
            "written_attributes": (_WRITTEN_COLUMNS, {}),
        }[part]
        self.part, self.found = part, found
        self.label = str(source) if isinstance(source, str | Path) else part
        self.folder = Path(source).parent if isinstance(source, str | Path) else Path()
        self.rows = read_rows(Path(source)) if isinstance(source, str | Path) else [dict(row) for row in source]
        there = columns_of(self.rows)
        self.names = {column: column for column in there if column in columns}
        for column in there:
            if column in columns:
                continue
            if column in aliases and aliases[column] not in self.names:
                self.names[aliases[column]] = column
            else:
                near = difflib.get_close_matches(column, [*columns, *aliases], n=1)
                found.add("unknown_columns", f"{part}: {column!r}" + (f" (nearest known: {near[0]!r})" if near else ""))

    def require(self, *columns: str) -> None:
        """Raise unless one of `columns` is there (an empty table has no columns and needs none)."""
        if self.rows and not any(column in self.names for column in columns):
            there = ", ".join(columns_of(self.rows))
            raise TableError(f"{self.label}: no column {' or '.join(map(repr, columns))}; the columns are: {there}")

    def ids(self, column: str) -> list[str]:
        """The rows' own names.

        Raises:
            TableError: one that is no text and no number.
        """
        found = []
        for index, row in enumerate(self.rows):
            try:
                found.append(parse_text(row.get(self.names[column])))
            except ValueError as error:
                raise TableError(f"{self.label}, row {index}, column {self.names[column]!r}: {error}") from error
        return found

    def cell(self, index: int, item: str, column: str, parse: Callable[[Any], Any], empty: Any) -> Any:
        """One parsed cell; `empty` where there is none, or where it is malformed, which is noted."""
        value = self.rows[index].get(self.names.get(column, ""))
        try:
            return empty if is_absent(value) else parse(value)
        except (ValueError, TypeError) as error:
            self.found.add("malformed_cells", f"{self.part} {item!r}, column {column!r}: {error}")
            return empty

    def shown(self, index: int, item: str, column: str) -> dict[str, tuple[str, ...]] | None:
        """What a picture or a text shows: attributes, none where the cell is an empty list or dict, None where it is absent."""
        value = self.rows[index].get(self.names.get(column, ""))
        if isinstance(value, list | tuple | dict | np.ndarray) and len(value) == 0:
            return {}
        return self.cell(index, item, column, parse_attributes, None)


def _build(
    name: str, parts: Mapping[str, Any], images_root: str | Path | None, interactions: InteractionOptions
) -> ProductTables:
    found = _Found()
    root = images_root or parts.get("images")
    if root is not None and not Path(root).is_dir():
        raise TableError(f"images folder {root}: no such folder")
    tables = {part: _Table(part, parts[part], found) for part in parts if part != "images" and parts[part] is not None}
    products = _read_products(tables["products"], root) if "products" in tables else []
    if "written_attributes" in tables:
        products = _with_written_attributes(products, tables["written_attributes"])
    images = _read_query_images(tables["query_images"], root) if "query_images" in tables else {}
    queries = _read_queries(tables["queries"], images, root) if "queries" in tables else []
    if "interactions" in tables:
        queries += _read_interactions(tables["interactions"], products, root, interactions)
    issues = found.issues()
    empty = ValidationReport(name, len(products), len(queries), {}, issues)
    rows = len(tables["interactions"].rows) if "interactions" in tables else 0
    return ProductTables(name, products, queries, empty, issues, rows)


def _read_products(table: _Table, root: str | Path | None) -> list[ProductRow]:
    table.require("product_id")
    table.require("title", "description", "images")
    folder = Path(root) if root is not None else table.folder
    rows = []
    for index, product_id in enumerate(table.ids("product_id")):
        item = product_id or f"row {index}"
        if not product_id:
            table.found.add("missing_product_ids", item)
        rows.append(
            ProductRow(
                product_id=product_id,
                title=table.cell(index, item, "title", parse_text, ""),
                description=table.cell(index, item, "description", parse_text, ""),
                category=table.cell(index, item, "category_path", parse_category, ()),
                attributes=table.cell(index, item, "attributes", parse_attributes, {}),
                images=table.cell(index, item, "images", lambda value: parse_images(value, folder), ()),
                split=table.cell(index, item, "split", parse_text, EVERY_SPLIT),
                group=table.cell(index, item, "group", parse_text, None),
                core_box=table.cell(index, item, "core_box", parse_box, None),
                attributes_image=table.shown(index, item, "attributes_image"),
                attributes_text=table.shown(index, item, "attributes_text"),
            )
        )
    return rows


def _with_written_attributes(products: list[ProductRow], table: _Table) -> list[ProductRow]:
    """The products with what was written about them; what their own table says stays."""
    table.require("product_id")
    table.require("attributes_image", "attributes_text")
    known = _Ids(row.product_id for row in products)
    written: dict[str, tuple[Any, Any]] = {}
    for index, product_id in enumerate(table.ids("product_id")):
        if product_id not in known:
            table.found.add_dangling("dangling_written_attributes", f"row {index}", product_id, known)
        elif product_id in written:
            table.found.add("duplicate_written_attributes", f"row {index} → {product_id!r}")
        else:
            written[product_id] = (
                table.shown(index, product_id, "attributes_image"),
                table.shown(index, product_id, "attributes_text"),
            )
    rows = []
    for row in products:
        image, text = written.get(row.product_id, (None, None))
        image = image if row.attributes_image is None else row.attributes_image
        text = text if row.attributes_text is None else row.attributes_text
        rows.append(replace(row, attributes_image=image, attributes_text=text))
    return rows


def _read_query_images(table: _Table, root: str | Path | None) -> dict[str, ImageSource]:
    table.require("image_id")
    table.require("image")
    folder = Path(root) if root is not None else table.folder
    images: dict[str, ImageSource] = {}
    for index, image_id in enumerate(table.ids("image_id")):
        pictures = table.cell(index, image_id, "image", lambda value: parse_images(value, folder), ())
        if pictures:
            images[image_id] = pictures[0]
    return images


def _read_queries(table: _Table, images: Mapping[str, ImageSource], root: str | Path | None) -> list[QueryRow]:
    table.require("query_id")
    table.require("positives", "positive_categories")
    table.require("text", "image", "image_id")
    folder = Path(root) if root is not None else table.folder
    rows = []
    for index, query_id in enumerate(table.ids("query_id")):
        item = query_id or f"row {index}"
        if not query_id:
            table.found.add("missing_query_ids", item)
        text = table.cell(index, item, "text", parse_text, "")
        image = _query_image(table, index, item, images, folder)
        positives = tuple(dict.fromkeys(table.cell(index, item, "positives", parse_texts, ())))
        rows.append(
            QueryRow(
                query_id=query_id,
                type=_query_type(table, index, item, bool(text), image is not None),
                text=text,
                image=image,
                box=table.cell(index, item, "bbox", parse_box, None),
                positives=positives,
                split=table.cell(index, item, "split", parse_text, EVERY_SPLIT),
                kind=table.cell(index, item, "kind", parse_text, ""),
                derived=table.cell(index, item, "derived", parse_flag, False),
                reference_product_id=table.cell(index, item, "reference_product_id", parse_text, None),
                negatives=table.cell(index, item, "negatives", parse_texts, ()),
                positive_categories=table.cell(index, item, "positive_categories", parse_texts, ()),
                positive_weights=_positive_weights(table, index, item, positives),
            )
        )
    return rows


def _positive_weights(table: _Table, index: int, item: str, positives: tuple[str, ...]) -> tuple[float, ...]:
    """The weights in order of the positives; a positive that is named twice keeps its greatest weight."""
    weights = table.cell(index, item, "positive_weights", parse_weights, ())
    if not weights:
        return ()
    named = table.cell(index, item, "positives", parse_texts, ())
    if len(weights) != len(named):
        problem = f"{len(weights)} weights for {len(named)} positives; accepted: one for each, or none"
        table.found.add("malformed_cells", f"{table.part} {item!r}, column 'positive_weights': {problem}")
        return ()
    pairs = list(zip(named, weights, strict=True))
    return tuple(max(weight for name, weight in pairs if name == positive) for positive in positives)


def _read_interactions(
    table: _Table, products: list[ProductRow], root: str | Path | None, options: InteractionOptions
) -> list[QueryRow]:
    """The log as queries. One without a split goes with its best answer."""
    table.require("product_id")
    table.require("action")
    table.require("query", "query_image")
    folder = Path(root) if root is not None else table.folder
    split_of = {row.product_id: row.split for row in products}
    known = _Ids(split_of)
    usable: dict[tuple[Any, ...], Interaction] = {}
    for index in range(len(table.rows)):
        row = _read_interaction(table, index, folder, options)
        if row is None:
            continue
        # Rows that a time tells apart are one event each, and so are all rows without a time.
        same = (row.key, row.product_id, row.action.casefold(), index if row.time is None else row.time)
        if row.product_id not in split_of:
            table.found.add_dangling("dangling_interactions", f"row {index}", row.product_id, known)
        elif same in usable:
            table.found.add("duplicate_interactions", f"row {index} ({row.action} of {row.product_id!r})")
        else:
            usable[same] = row
    if not usable:
        table.found.add("no_interactions", f"{table.label}: {len(table.rows)} rows")
    queries = graded_queries(usable.values(), options.half_life_days)
    return [_logged_query(query, query.split or split_of[query.positives[0]]) for query in queries]


def _logged_query(query: GradedQuery, split: str) -> QueryRow:
    return QueryRow(
        query_id=f"interactions-{query.key}",
        type="image" if not query.text else "text" if query.image is None else "both",
        text=query.text,
        image=query.image,
        positives=query.positives,
        split=split,
        kind="interactions",
        positive_weights=query.weights,
    )


def _read_interaction(table: _Table, index: int, folder: Path, options: InteractionOptions) -> Interaction | None:
    """One row of the log, or None where the report says why it cannot be used."""
    item = f"row {index}"
    text = table.cell(index, item, "query", parse_text, "")
    pictures = table.cell(index, item, "query_image", lambda value: parse_images(value, folder), ())
    image = pictures[0] if pictures else None
    if not text and image is None:
        table.found.add("empty_interactions", item)
        return None
    action = table.cell(index, item, "action", parse_text, "")
    weight = options.weight_of(action)
    if weight is None:
        near = difflib.get_close_matches(action.casefold(), [name.casefold() for name in options.action_weights], n=1)
        hint = f"the nearest: {near[0]!r}" if near else f"accepted: {', '.join(options.action_weights)}"
        table.found.add("unknown_actions", f"{item}: {action!r} ({hint})")
        return None
    counted = table.rows[index].get(table.names.get("count", ""))
    try:
        count = 1.0 if is_absent(counted) else parse_count(counted)
    except (ValueError, TypeError):
        table.found.add("unusable_counts", f"{item}: {counted!r}")
        return None
    named = table.rows[index].get(table.names.get("query_image", ""))
    return Interaction(
        key=query_key(text, image, named.strip() if isinstance(named, str) else ""),
        text=text,
        image=image,
        product_id=table.cell(index, item, "product_id", parse_text, ""),
        action=action.casefold(),
        weight=weight,
        count=count,
        time=table.cell(index, item, "time", parse_time, None),
        split=table.cell(index, item, "split", parse_text, ""),
    )


def _query_image(
    table: _Table, index: int, item: str, images: Mapping[str, ImageSource], folder: Path
) -> ImageSource | None:
    pictures = table.cell(index, item, "image", lambda value: parse_images(value, folder), ())
    if pictures:
        return pictures[0]
    image_id = table.cell(index, item, "image_id", parse_text, "")
    if not image_id:
        return None
    # An id without a picture in query_images is taken as a file name; where there is no such file, the report says so.
    return images[image_id] if image_id in images else str(folder / image_id)


def _query_type(table: _Table, index: int, item: str, has_text: bool, has_image: bool) -> str:
    there = "both" if has_text and has_image else "image" if has_image else "text"
    declared = table.cell(index, item, "type", parse_text, there)
    if not has_text and not has_image:
        return "text"  # counted as an empty query
    if declared not in QUERY_TYPES:
        problem = f"type {declared!r}; accepted: {', '.join(QUERY_TYPES)}"
    elif (declared != "image" and not has_text) or (declared != "text" and not has_image):
        problem = f"type {declared!r} without {'image' if has_text else 'text'}"
    else:
        return declared
    table.found.add("type_mismatches", f"{item!r}: {problem}")
    return there


def _check_products(products: list[ProductRow], found: _Found, categories_alone: bool) -> None:
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
        if ("<" in row.title or "&" in row.title) and (html := _html_in(row.title)):
            found.add("html_titles", f"{row.product_id!r}: {html!r}")


def _html_in(text: str) -> str:
    """The first tag or entity of a text, or nothing; `<New>` is no tag of HTML, and `&shop;` no entity."""
    matches = (match for match in _HTML.finditer(text) if not match["name"] or f"{match['name']};" in html5)
    return next((match[0] for match in matches), "")


def _check_queries(queries: list[QueryRow], product_ids: _Ids, found: _Found) -> None:
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


def _named_images(tables: ProductTables) -> Iterator[tuple[str, ImageSource]]:
    """Each picture once, under the name of the first product or query that has it: many share one."""
    named = [
        (f"product {product.product_id!r}, images[{number}]", image)
        for product in tables.products
        for number, image in enumerate(product.images)
    ]
    named += [(f"query {query.query_id!r}, image", query.image) for query in tables.queries if query.image is not None]
    seen: set[int | str] = set()
    for name, image in named:
        key = image if isinstance(image, str) else id(image)
        if key not in seen:
            seen.add(key)
            yield name, image


def _check_images(images: Iterable[tuple[str, ImageSource]], found: _Found, open_them: bool) -> None:
    for name, source in tqdm(images, desc="pictures opened", unit="picture", delay=3.0, disable=not open_them):
        if is_address(source):
            found.add("image_addresses", f"{name}: {source}")
        elif isinstance(source, str) and not Path(source).is_file():
            found.add("missing_images", f"{name}: {source}")
        elif open_them and (reason := _why_unreadable(source)):
            found.add("unreadable_images", f"{name}: {reason}")


def _why_unreadable(source: ImageSource) -> str | None:
    try:
        open_image(source)
    except ProductError as error:
        return error.reason
    return None


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the report on a data set; the exit status is 1 where something fatal was found, 2 where nothing could be read."""
    parser = argparse.ArgumentParser(prog="python -m evaluation.data.tables", description="Check product data.")
    parser.add_argument("source", help="catalogue, or a folder or products file in the two-table format")
    parser.add_argument("--images-root", type=Path, help="folder that image paths are relative to")
    chosen = parser.parse_args(arguments)
    try:
        report = load_tables(chosen.source, images_root=chosen.images_root, check_images=True).report
    except TableError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(report)
    return 0 if report.ok else 1


if __name__ == "__main__":
    sys.exit(main())
