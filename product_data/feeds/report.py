"""Report how a feed was read: its format and columns, its counts, and each loss and repair with its place.

Our design; precedent: `product_data.checking`, which counts issues of tables by kind and shows the first ones.
"""

from __future__ import annotations

import csv
import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from product_data.atomic_files import PARTIAL

FATAL, LEFT_OUT, REPAIRED, NOTE = "ERROR", "left out", "repaired", "note"
_FIRST = 5
_SHOWN, _SHOWN_WHY = 80, 400  # characters of a cell, and of a reason, in the report
# kind → (severity, explanation)
KINDS = {
    "no_products": (FATAL, "the feed has no products"),
    "missing_id": (LEFT_OUT, "rows without the id of a product"),
    "orphan_variant": (REPAIRED, "variants whose product is not in the feed: each parent id becomes a product"),
    "duplicate_id": (LEFT_OUT, "rows that repeat the id of another product or variant"),
    "conflicting_cells": (LEFT_OUT, "cells that differ from an earlier row of the same product: the first one counts"),
    "missing_title": (NOTE, "products without a title"),
    "empty_product": (NOTE, "products with neither text nor picture"),
    "no_picture": (NOTE, "products without a picture"),
    "variant_without_picture": (NOTE, "variants without a picture of their own"),
    "hidden_product": (NOTE, "products that the shop does not show (draft, archived or disabled): they are read"),
    "missing_picture": (LEFT_OUT, "pictures that are not there: the product keeps its other pictures"),
    "failed_picture": (LEFT_OUT, "pictures that could not be fetched: the product keeps its other pictures"),
    "shared_file": (NOTE, "pictures of a product with the file of another one of its pictures: they count once"),
    "unreadable_picture": (LEFT_OUT, "pictures that cannot be opened: the product keeps its other pictures"),
    "picture_not_fetched": (NOTE, "pictures that are URLs: they are fetched if a folder for pictures is given"),
    "unreadable_price": (LEFT_OUT, "prices that cannot be read"),
    "ambiguous_price": (REPAIRED, "prices with one sign and three digits after it, such as 1.299"),
    "assumed_currency": (REPAIRED, "signs that several currencies share: the most frequent currency is assumed"),
    "several_currencies": (LEFT_OUT, "prices in another currency than the product's first price"),
    "dated_sale_price": (LEFT_OUT, "sale prices with dates: the regular price counts"),
    "unknown_availability": (LEFT_OUT, "availabilities that are not known words"),
    "unreadable_attribute": (LEFT_OUT, "attributes that cannot be read"),
    "unreadable_cell": (LEFT_OUT, "cells that cannot be read"),
    "several_categories": (
        LEFT_OUT,
        "categories with several paths: the first path that no other one continues is read",
    ),
    "category_number": (
        LEFT_OUT,
        "categories that are numbers of Google's taxonomy, whose names the feed does not have",
    ),
    "variant_text": (NOTE, "texts of a variant that differ from its product's: those of the first variant are read"),
    "missing_translation": (REPAIRED, "products without a translation: the default language is read"),
    "html": (REPAIRED, "texts with HTML: they are read as plain text"),
    "quotes": (REPAIRED, "rows with unbalanced quotes, such as inch signs: these quotes are read as text"),
    "swallowed_rows": (
        NOTE,
        "quoted cells with line breaks whose lines look like rows: check whether rows are missing",
    ),
    "short_row": (REPAIRED, "rows with fewer cells than the header: the last columns count as empty"),
    "long_row": (LEFT_OUT, "cells beyond the last column of the header"),
    "damaged_text": (NOTE, "cells with the replacement character: some bytes are not text in the file's encoding"),
    "blank_row": (LEFT_OUT, "rows without any cell"),
    "repeated_column": (LEFT_OUT, "columns with the name of another column"),
    "filled_id": (REPAIRED, "rows without an id below the rows of a product: they belong to this product"),
    "unused_row": (LEFT_OUT, "rows that add nothing to their product"),
    "table_issue": (NOTE, "issues of the project's own tables"),
}


@dataclass(frozen=True, slots=True)
class Loss:
    """One loss or repair.

    Args:
        kind (`str`): a key of `KINDS`.
        row (`int`): number of the row as a spreadsheet shows it, the header is row 1; the number of the item in XML; 0 if
            the loss has no row.
        line (`int`): line of the file where the row begins, from 1; 0 if unknown.
        column (`str`): name of the column; "" if the loss concerns the row.
        product_id (`str`): "" if unknown.
        found (`str`): the cell.
        why (`str`): what is wrong, and what was done.
    """

    kind: str
    row: int = 0
    line: int = 0
    column: str = ""
    product_id: str = ""
    found: str = ""
    why: str = ""

    def __str__(self) -> str:
        row = f"row {self.row}" + (f" (line {self.line})" if self.line not in (0, self.row) else "") if self.row else ""
        product = f"product {_short(self.product_id)!r}" if self.product_id else ""
        place = ", ".join(filter(None, (row, product, f"column {_short(self.column)!r}" if self.column else "")))
        found = f"found {_short(self.found)!r}" if self.found else ""
        return ": ".join(filter(None, (place, "; ".join(filter(None, (found, _short(self.why, _SHOWN_WHY)))))))


def _short(text: str, length: int = _SHOWN) -> str:
    return text if len(text) <= length else f"{text[:length]}…"


class LossLog:
    """Count losses by kind, keep the first ones, and write all of them to a CSV file if it is given.

    Args:
        path: the file; it gets its name when the log closes. Default `None`: losses are counted only.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path, self.counts = path, Counter[str]()
        self.first: dict[str, list[Loss]] = {}
        self._stream: TextIO | None = None
        self._writer: Any = None

    def add(self, loss: Loss) -> None:
        """Count one loss."""
        self.counts[loss.kind] += 1
        first = self.first.setdefault(loss.kind, [])
        if len(first) < _FIRST:
            first.append(loss)
        if self.path is None:
            return
        if self._writer is None:
            self._open()
        severity, explanation = KINDS[loss.kind]
        why = loss.why or explanation
        self._writer.writerow(
            (loss.row or "", loss.line or "", loss.product_id, loss.column, severity, loss.kind, loss.found, why)
        )

    def _open(self) -> None:
        assert self.path is not None
        self._partial.parent.mkdir(parents=True, exist_ok=True)
        self._stream = self._partial.open("w", encoding="utf-8", newline="")
        self._writer = csv.writer(self._stream)
        self._writer.writerow(("row", "line", "product_id", "column", "severity", "kind", "found", "why"))

    @property
    def _partial(self) -> Path:
        assert self.path is not None
        return self.path.with_name(self.path.name + PARTIAL)

    def close(self) -> None:
        """Give the file its name; a feed without losses gets a file with the header alone."""
        if self.path is None:
            return
        if self._writer is None:
            self._open()
        assert self._stream is not None
        self._stream.close()
        os.replace(self._partial, self.path)
        self._stream = self._writer = None


@dataclass
class FeedReport:
    """How a feed was read. The counts are complete once the feed was iterated over.

    Args:
        path: the file.
        format (`str`): name of the format; `chosen_by` says how it was chosen.
        encoding, separator (`str`): as they are printed; "" where they do not apply.
        columns: column → role, of the columns that are read.
        unread: the other columns.
        languages: the languages that the feed has texts in; the first one is its default.
        language (`str`): the language that was read.
        rows, products, variants, pictures (`int`): counts; a picture counts once for each product.
        price_signs: column of prices → its decimal sign, as its cells show.
        notes: further sentences.
        losses: see `LossLog`.
    """

    path: Path
    format: str
    chosen_by: str = ""
    encoding: str = ""
    separator: str = ""
    columns: dict[str, str] = field(default_factory=dict)
    unread: tuple[str, ...] = ()
    languages: tuple[str, ...] = ()
    language: str = ""
    rows: int = 0
    products: int = 0
    variants: int = 0
    pictures: int = 0
    price_signs: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    losses: LossLog = field(default_factory=LossLog)

    @property
    def ok(self) -> bool:
        """Whether the feed has no fatal problem."""
        return not any(KINDS[kind][0] == FATAL for kind in self.losses.counts)

    def count(self, kind: str) -> int:
        """Return how often a kind of loss occurs.

        Raises:
            KeyError: no such kind.
        """
        if kind not in KINDS:
            raise KeyError(f"{kind!r}; known kinds: {', '.join(KINDS)}")
        return self.losses.counts[kind]

    def __str__(self) -> str:
        counts = f"{self.rows} rows, {self.products} products, {self.variants} variants, {self.pictures} pictures"
        lines = [f"{self.path}: {counts}", f"format: {self.format} ({self.chosen_by})"]
        if self.encoding:
            lines.append(f"encoding: {self.encoding}")
        if self.separator:
            lines.append(f"separator: {self.separator}")
        if self.languages:
            lines.append(f"languages: {', '.join(self.languages)}; read: {self.language}")
        read = ", ".join(f"{column} → {role}" for column, role in self.columns.items())
        lines.append(f"columns read: {read or 'none'}")
        lines.append(f"columns not read: {', '.join(self.unread) or 'none'}")
        for column, sign in self.price_signs.items():
            lines.append(f"decimal sign of column {column!r}: {sign!r}")
        lines += self.notes
        for kind, (severity, explanation) in KINDS.items():
            if count := self.losses.counts[kind]:
                more = ["…"] if count > _FIRST else []
                examples = [*map(str, self.losses.first[kind]), *more]
                shown = "".join(f"\n    {example}" for example in examples if example)
                lines.append(f"{severity}: {count} × {explanation} ({kind}){shown}")
        return "\n  ".join(lines)
