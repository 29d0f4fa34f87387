"""Stream the rows of parquet and JSON lines files, whose cells have types: as they are, or as texts for shop formats."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from product_data.feeds.delimited import FeedRow, Note
from product_data.feeds.report import Loss
from product_data.table_files import TableError, json_lines, parse_text, why_not_utf8
from product_data.text_cells import lone_surrogate, mended

_ROWS_PER_READ = 256


class TypedFile:
    """A parquet or JSON lines file whose rows are streamed; its cells keep their types.

    Args:
        path: the file.

    Raises:
        TableError: a file that is not of its format or not UTF-8, or JSON lines without a row; `rows` raises it too.
    """

    encoding = None
    separator_label = ""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._is_parquet = path.suffix.lower() == ".parquet"
        if self._is_parquet:
            try:
                self.header: list[str] = pyarrow.parquet.read_schema(path).names
            except (pyarrow.ArrowException, OSError) as error:
                raise TableError(f"{path}: not a readable parquet file ({error})") from error
        else:
            self.header = list(dict.fromkeys(column for row in self.rows() for column in row.cells))
        if not self.header:
            raise TableError(f"{path}: found a file without rows; expected at least one product")

    def rows(self, note: Note | None = None) -> Iterator[FeedRow]:
        """Yield the rows with the cells that are not None; the first row has number 1, and in JSON lines its line.

        Args:
            note: receives cells with half of a surrogate pair, which are read with the replacement character.
        """
        read = self._parquet() if self._is_parquet else json_lines(self.path)
        try:
            for number, (line, cells) in enumerate(read, start=1):
                cells = {name: cell for name, cell in cells.items() if cell is not None}
                yield FeedRow(number, line, _mended(cells, number, line, note))
        except UnicodeDecodeError as error:
            raise TableError(why_not_utf8(self.path, error)) from error

    def _parquet(self) -> Iterator[tuple[int, dict[str, Any]]]:
        try:
            for batch in pyarrow.parquet.ParquetFile(self.path).iter_batches(_ROWS_PER_READ):
                for row in batch.to_pylist():
                    yield 0, row
        except (pyarrow.ArrowException, OSError) as error:
            raise TableError(f"{self.path}: not a readable parquet file ({error})") from error


def _mended(cells: dict[str, Any], number: int, line: int, note: Note | None) -> dict[str, Any]:
    damaged = [column for column, cell in cells.items() if lone_surrogate(cell) or lone_surrogate(column)]
    if not damaged:
        return cells
    if note is not None:
        for column in damaged:
            why = "half of a surrogate pair is read as the replacement character"
            note(Loss("damaged_text", number, line, mended(column), found=str(mended(cells[column])), why=why))
    return {mended(column): mended(cell) for column, cell in cells.items()}


class TypedTexts:
    """The rows of a `TypedFile` with texts for cells, as the formats of shop systems read them.

    A list becomes one text with a line for each entry. A cell that is no text, number or list of these is noted and left out.

    Args:
        file: the file.
        prices: columns with prices.
    """

    encoding = None
    separator_label = ""

    def __init__(self, file: TypedFile, prices: Collection[str]) -> None:
        self.path, self.header = file.path, file.header
        self._file, self._prices = file, prices

    def rows(self, note: Note | None = None) -> Iterator[FeedRow]:
        """Yield the rows; see `TypedFile.rows`.

        Args:
            note: also receives the cells that are left out.
        """
        for row in self._file.rows(note):
            cells = {}
            for column, cell in row.cells.items():
                text_of = price_text if column in self._prices else parse_text
                try:
                    text = "\n".join(map(text_of, cell)) if isinstance(cell, list) else text_of(cell)
                except ValueError as error:
                    if note is not None:
                        note(Loss("unreadable_cell", row.number, row.line, column, found=str(cell), why=str(error)))
                    continue
                if text:
                    cells[column] = text
            yield FeedRow(row.number, row.line, cells)


def price_text(cell: Any) -> str:
    """Return a price as text; a number with decimals has four of them, so that no sign is ambiguous.

    Raises:
        ValueError: neither a number nor a text.
    """
    if isinstance(cell, float) and math.isfinite(cell) and not cell.is_integer():
        return f"{Decimal(repr(cell)):.4f}"
    return parse_text(cell)
