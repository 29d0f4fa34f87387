"""Read the project's own products table as a feed: parquet, JSON lines or CSV, see `product_data.tables`.

Besides the columns of that format it reads what only a feed has: price, currency, availability, brand and url.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from product_data.categories import CategoryReader
from product_data.checking import IssueLog
from product_data.feeds.cells import CellReader, Row
from product_data.feeds.delimited import FeedRow, Note
from product_data.feeds.feed_format import FeedFormat
from product_data.feeds.product_builder import ProductBuilder
from product_data.reading import ReadingOptions, Table, read_products
from product_data.table_files import TableError, parse_text

_ROWS_PER_READ = 256
_FEED_COLUMNS = ("price", "sale_price", "currency", "availability", "brand", "url")
_MORE = ("split", "group", "core_box", "attributes_image", "attributes_text")


class TypedFile:
    """A parquet or JSON lines file whose rows are streamed; its cells keep their types.

    Args:
        path: the file.

    Raises:
        TableError: a file that is not of its format.
    """

    encoding = None
    separator_label = ""

    def __init__(self, path: Path) -> None:
        self.path = path
        if path.suffix.lower() == ".parquet":
            try:
                self.header: list[str] = pyarrow.parquet.read_schema(path).names
            except (pyarrow.ArrowException, OSError) as error:
                raise TableError(f"{path}: not a readable parquet file ({error})") from error
        else:
            self.header = list(dict.fromkeys(column for row in self.rows() for column in row.cells))

    def rows(self, note: Note | None = None) -> Iterator[FeedRow]:
        """Yield the rows with the cells that are not None; the first row has number 1, and in JSON lines its line."""
        read = self._parquet if self.path.suffix.lower() == ".parquet" else self._lines
        for number, (line, cells) in enumerate(read(), start=1):
            yield FeedRow(number, line, {name: cell for name, cell in cells.items() if cell is not None})

    def _parquet(self) -> Iterator[tuple[int, dict[str, Any]]]:
        file = pyarrow.parquet.ParquetFile(self.path)
        for batch in file.iter_batches(_ROWS_PER_READ):
            for row in batch.to_pylist():
                yield 0, row

    def _lines(self) -> Iterator[tuple[int, dict[str, Any]]]:
        with self.path.open(encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                except json.JSONDecodeError as error:
                    raise TableError(f"{self.path}, line {number}: not JSON ({error.msg})") from error
                if not isinstance(row, dict):
                    raise TableError(f"{self.path}, line {number}: found {type(row).__name__}; expected a JSON object")
                yield number, row


class OwnTables(FeedFormat):
    """The project's own products table: one row is one product."""

    name = "tables"
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
        **{column: column for column in _FEED_COLUMNS},
    }
    needed = (("key",), ("title", "description", "images"))
    typical = ("product_id", "category_path", "attributes", "attributes_image", "attributes_text", "core_box", "split")

    def key(self, row: Row) -> str:
        return parse_text(row.source.cells.get(row.columns["key"]))

    def fill(self, product: ProductBuilder, rows: Sequence[Row]) -> None:
        first, *others = rows
        for row in others:
            why = "an earlier row has this id; it counts"
            product.cells.note("duplicate_id", row, "key", product.product_id, product.product_id, why)
        cells = {
            role: first.source.cells[column] for role, column in first.columns.items() if column in first.source.cells
        }
        own = {
            ("product_id" if role == "key" else role): cell for role, cell in cells.items() if role not in _FEED_COLUMNS
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
        for role in ("brand", "url"):
            product.text(first, role)
        product.price = product.money(first, "sale_price", "price")
        product.availability = product.cells.availability(first, "availability", product.product_id)


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
