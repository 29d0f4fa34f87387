"""Read the project's own products table as a feed: parquet, JSON lines or CSV, see `product_data.tables`.

Besides the columns of that format it reads what only a feed has: price, currency, availability, brand and url.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from product_data.categories import CategoryReader
from product_data.checking import IssueLog
from product_data.feeds.cells import CellReader, Row
from product_data.feeds.delimited import FeedRow
from product_data.feeds.feed_format import FeedFormat
from product_data.feeds.product_builder import ProductBuilder
from product_data.feeds.typed_files import price_text
from product_data.reading import FEED_COLUMNS, ReadingOptions, Table, read_products
from product_data.table_files import parse_text

OWN = "tables"
_MORE = ("split", "group", "core_box", "attributes_image", "attributes_text")


class OwnTables(FeedFormat):
    """The project's own products table: one row is one product."""

    name = OWN
    title = "the project's own products table"
    columns = {
        "product_id": "key",
        "id": "key",
        "title": "title",
        "name": "title",
        "description": "description",
        "category_path": "category",
        "category": "category",
        "attributes": "attributes",
        "images": "images",
        "image": "images",
        "split": "split",
        "group": "group",
        "core_box": "core_box",
        "bbox": "core_box",
        "attributes_image": "attributes_image",
        "attributes_text": "attributes_text",
        **{column: column for column in FEED_COLUMNS},
    }
    needed = (("key",), ("title", "description", "images"))
    least = 0
    typical = (
        "product_id",
        "images",
        "image",
        "category_path",
        "attributes",
        "attributes_image",
        "attributes_text",
        "core_box",
        "split",
    )

    def key(self, row: Row) -> str:
        try:
            return parse_text(row.source.cells.get(row.columns["key"]))
        except ValueError:  # a list or an object: the row is noted as one without an id
            return ""

    def fill(self, product: ProductBuilder, rows: Sequence[Row]) -> None:
        first, *others = rows
        for row in others:
            why = "an earlier row has this id; it counts"
            product.cells.note("duplicate_id", row, "key", product.product_id, product.product_id, why)
        cells = {
            role: first.source.cells[column] for role, column in first.columns.items() if column in first.source.cells
        }
        own = {
            ("product_id" if role == "key" else role): cell for role, cell in cells.items() if role not in FEED_COLUMNS
        }
        if "category" in own:
            own["category_path"] = own.pop("category")
        options = ReadingOptions(strip_html=True)
        table = _Table([own], _Issues(product.cells, first, product.product_id), options, product.cells.categories)
        [parsed] = read_products(table, Path())
        product.texts = {"title": parsed.title, "description": parsed.description}
        product.category = parsed.category
        for key, values in parsed.attributes.items():
            product.attribute(key, values)
        product.add_images([(image, "images") for image in parsed.images], first)
        product.more = {name: getattr(parsed, name) for name in _MORE}
        texts = _as_texts(product, first)
        for role in ("brand", "url"):
            product.text(texts, role)
        product.price = product.money(texts, "sale_price", "price")
        product.availability = product.cells.availability(texts, "availability", product.product_id)


def _as_texts(product: ProductBuilder, row: Row) -> Row:
    """Return a row whose cells of a feed's columns are texts."""
    cells = {}
    for role in (role for role in FEED_COLUMNS if role in row.columns):
        column = row.columns[role]
        cell = row.source.cells.get(column)
        try:
            cells[column] = price_text(cell) if role in ("price", "sale_price") else parse_text(cell)
        except ValueError as error:
            product.cells.note("unreadable_cell", row, role, product.product_id, str(cell), str(error))
    return Row(FeedRow(row.source.number, row.source.line, cells), row.columns)


class _Table(Table):
    """One row of a products table, whose categories are read as those of the whole column."""

    def __init__(
        self, rows: list[dict[str, Any]], log: IssueLog, options: ReadingOptions, reader: CategoryReader
    ) -> None:
        super().__init__("products", rows, log, options)
        self._reader = reader

    def categories(self, column: str) -> CategoryReader:
        return self._reader


class _Issues(IssueLog):
    """Note the issues of a table as losses of a feed."""

    def __init__(self, cells: CellReader, row: Row, product_id: str) -> None:
        super().__init__()
        self._cells, self._row, self._product_id = cells, row, product_id

    def add(self, kind: str, example: str, count: int = 1) -> None:
        self._cells.note("table_issue", self._row, "", self._product_id, example, kind.replace("_", " "))


FORMAT = OwnTables()
