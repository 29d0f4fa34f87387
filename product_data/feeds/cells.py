"""Read the cells of a feed: plain text, prices, categories, pictures, availability; each loss is noted with its place."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

from product_data.categories import CategoryReader
from product_data.feeds.delimited import FeedRow, Note
from product_data.feeds.feed_product import BACKORDER, IN_STOCK, OUT_OF_STOCK, PREORDER, UNKNOWN
from product_data.feeds.prices import parse_price
from product_data.feeds.report import Loss
from product_data.table_files import is_absent
from product_data.text_cells import has_visible_text, strip_html

_AVAILABILITY = {
    **dict.fromkeys(
        ("in stock", "instock", "available", "1", "true", "yes", "on sale", "limited availability"), IN_STOCK
    ),
    **dict.fromkeys(("out of stock", "outofstock", "unavailable", "0", "false", "no", "sold out"), OUT_OF_STOCK),
    **dict.fromkeys(("preorder", "pre order", "presale"), PREORDER),
    **dict.fromkeys(("backorder", "on backorder", "onbackorder", "available for order"), BACKORDER),
}
_TRUE, _FALSE = frozenset(("1", "true", "yes", "notify")), frozenset(("0", "false", "no", "-1", ""))
_BETWEEN_PICTURES = re.compile(r"\s*[\n|;]\s*|\s*,\s*(?=https?://|/|[^,\s]+\.[A-Za-z]{3,5}(?:[?,\s]|$))")
Split = Callable[[str], list[tuple[str, ...]]]


class Row(NamedTuple):
    """A row of a feed by role.

    Args:
        source: its number, line and cells by column.
        columns: role → column.
    """

    source: FeedRow
    columns: Mapping[str, str]

    def get(self, role: str) -> str:
        """Return the cell of a role without surrounding spaces; "" if it is empty or there is no such column."""
        cell = self.source.cells.get(self.columns.get(role, ""), "").strip()
        return "" if is_absent(cell) else cell


class CellReader:
    """Read cells for the products of one feed.

    Args:
        note: receives losses and repairs.
        decimal: column of prices → its decimal sign.
        categories: the reader of the category column.
    """

    def __init__(self, note: Note, decimal: Mapping[str, str], categories: CategoryReader) -> None:
        self._note, self._decimal, self.categories = note, decimal, categories

    def note(
        self, kind: str, row: Row | None, role: str = "", product_id: str = "", found: str = "", why: str = ""
    ) -> None:
        """Note one loss or repair at the column of a role."""
        number, line = (row.source.number, row.source.line) if row else (0, 0)
        column = row.columns.get(role, role) if row else role
        self._note(Loss(kind, number, line, column, product_id, found, why))

    def text(self, row: Row, role: str, product_id: str = "") -> str:
        """Return a cell as plain text; HTML is removed and noted."""
        return self.plain(row.get(role), row, role, product_id)

    def plain(self, text: str, row: Row, role: str, product_id: str = "") -> str:
        """Return a part of a cell as plain text; HTML is removed and noted."""
        plain = strip_html(text)
        if plain != text:
            self.note("html", row, role, product_id, found=text)
        return plain if has_visible_text(plain) else ""

    def price(self, row: Row, role: str, product_id: str = "") -> tuple[float | None, str]:
        """Return the price of a cell and its currency; (None, "") for an empty cell or an unreadable price."""
        text = row.get(role)
        if not text:
            return None, ""
        column = row.columns[role]
        decimal = self._decimal.get(column, "")
        try:
            price = parse_price(text, decimal)
        except ValueError as error:
            self.note("unreadable_price", row, role, product_id, text, str(error))
            return None, ""
        if price.ambiguous:
            by = (
                f"the column's other prices have the decimal sign {decimal!r}"
                if decimal
                else "no other price shows more"
            )
            self.note("ambiguous_price", row, role, product_id, text, f"{by}; read as {price.value:g}")
        if price.assumed:
            self.note("assumed_currency", row, role, product_id, text, f"read as {price.currency}")
        return price.value, price.currency

    def category(self, row: Row, role: str, product_id: str = "", split: Split | None = None) -> tuple[str, ...]:
        """Return a category path.

        Args:
            row, role, product_id: the cell.
            split: returns the paths of a cell, for formats with rules of their own. Default: `CategoryReader` decides.
        """
        text = self.text(row, role, product_id)
        if not text:
            return ()
        if split is None:
            cell = self.categories.read(text)
            path, paths = cell.path, cell.paths
        else:
            paths = tuple(dict.fromkeys(path for path in split(text) if path))
            path = first_path(paths)
        others = [other for other in paths if other != path[: len(other)]]
        if others:
            left = "; ".join(" > ".join(other) for other in others)
            self.note(
                "several_categories", row, role, product_id, text, f"read as {' > '.join(path)!r}; not read: {left}"
            )
        return path

    def availability(self, row: Row, role: str, product_id: str = "") -> str:
        """Return an availability, one of `feed_product.AVAILABILITY`."""
        text = row.get(role)
        if not text:
            return UNKNOWN
        word = " ".join(text.casefold().replace("_", " ").replace("-", " ").split())
        word = word.removeprefix("https://schema.org/").removeprefix("http://schema.org/")
        if word not in _AVAILABILITY:
            expected = "expected in stock, out of stock, preorder or backorder"
            self.note("unknown_availability", row, role, product_id, text, expected)
        return _AVAILABILITY.get(word, UNKNOWN)

    def stock(self, row: Row, role: str, product_id: str = "") -> float | None:
        """Return a number of pieces in stock; None for an empty or unreadable cell."""
        text = row.get(role)
        if not text:
            return None
        try:
            return float(text.replace(",", "."))
        except ValueError:
            self.note("unreadable_cell", row, role, product_id, text, "expected a number of pieces")
            return None


def is_true(text: str) -> bool:
    """Return whether a cell says yes: 1, true, yes or notify, in any case."""
    return text.strip().casefold() in _TRUE


def is_false(text: str) -> bool:
    """Return whether a cell says no: 0, false, no or -1, in any case; an empty cell counts as no."""
    return text.strip().casefold() in _FALSE


def first_path(paths: tuple[tuple[str, ...], ...]) -> tuple[str, ...]:
    """Return the first category path that no other path continues; () if there is none."""
    ends = [path for path in paths if not any(path == other[: len(path)] and path != other for other in paths)]
    return ends[0] if ends else ()


def split_pictures(text: str) -> list[str]:
    """Return the pictures of a cell: a comma separates them only before a URL, a path or a file name."""
    return [part for part in _BETWEEN_PICTURES.split(text.strip()) if part.strip(" ,")]


def split_escaped(text: str, separator: str) -> list[str]:
    """Return the parts of a text; a separator after a backslash belongs to a part."""
    parts = re.split(rf"(?<!\\){re.escape(separator)}", text)
    return [part.replace(f"\\{separator}", separator).strip() for part in parts if part.strip()]
