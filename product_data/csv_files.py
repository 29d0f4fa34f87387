"""Read CSV files strictly: an error message has the line of an unbalanced quote or of a wrong delimiter.

The reader of the standard library joins rows or drops quotes silently instead.
"""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

_LONGEST_CELL = 2**30  # characters; csv's own limit is shorter than a long description
_OTHER_DELIMITERS = {";": "semicolons", "\t": "tabs", "|": "bars"}
_SHOWN = 40  # characters of a cell in a message


class CsvError(ValueError):
    """Raised for a file that is not CSV, or that has unsupported quotes or delimiters; the caller adds the file's name."""

    exit_status = 2


@dataclass(frozen=True)
class SwallowedRows:
    """A quoted cell with line breaks that may hide whole rows.

    Args:
        line: the line where its quote opens, from 1.
        last: the line where the quote closes.
        column: the column of the cell.
        text: the beginning of the cell.
    """

    line: int
    last: int
    column: str
    text: str

    def __str__(self) -> str:
        return f"line {self.line}, column {self.column!r}: the quote before {self.text!r} closes on line {self.last}"


class CsvRows(list[dict[str, Any]]):
    """The rows of a CSV file, and the cells that may hide other rows."""

    def __init__(self) -> None:
        super().__init__()
        self.swallowed: list[SwallowedRows] = []


class _Quote(NamedTuple):
    """A quote that opens a cell: its line within the record (from 0), its cell, and the text after it."""

    line: int
    cell: int
    after: str


class _Lines:
    """The lines of a file; keeps those of the record that is being read."""

    def __init__(self, lines: Iterable[str]) -> None:
        self._lines = iter(lines)
        self.count = 0
        self.record: list[str] = []

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = next(self._lines)
        self.count += 1
        self.record.append(line)
        return line

    @property
    def first(self) -> int:
        """Return the number of the record's first line."""
        return self.count - len(self.record) + 1


def read_csv(path: Path, *, errors: str = "strict") -> CsvRows:
    """Read a comma-separated file with a header line; cells stay text.

    Args:
        path: the file.
        errors: how to handle bytes that are not UTF-8, as in `open`. Default "strict".

    Raises:
        CsvError: a delimiter other than a comma, two columns of one name, a row with more or fewer cells than the header,
            or a quote that is never closed or closes before the cell ends.
        UnicodeDecodeError: bytes that are not UTF-8.
    """
    csv.field_size_limit(_LONGEST_CELL)
    rows = CsvRows()
    with path.open(encoding="utf-8-sig", newline="", errors=errors) as file:
        lines = _Lines(file)
        reader = csv.reader(lines, strict=True)
        names: list[str] = []
        try:
            names = next(reader, [])
            _check_header(names, "".join(lines.record))
            shapes: set[str] = set()
            spanning: list[tuple[int, list[str]]] = []
            lines.record = []
            for cells in reader:
                if cells:
                    rows.append(_whole_row(names, cells, lines))
                    if len(lines.record) > 1:
                        spanning.append((lines.first, lines.record))
                    else:
                        shapes.add(shape_of(cells[0]))
                lines.record = []
        except csv.Error as error:
            raise CsvError(_why_not_csv(error, names, lines)) from error
    rows.swallowed = [cell for first, record in spanning if (cell := hidden_rows(first, record, names, shapes))]
    return rows


def _check_header(names: list[str], line: str) -> None:
    for delimiter, plural in _OTHER_DELIMITERS.items():
        count = line.count(delimiter)
        if count > line.count(","):
            raise CsvError(
                f"line 1: found {count + 1} names that are separated by {plural} ({delimiter!r}): {_begin(line)!r}; "
                "expected commas: save the file as comma-separated"
            )
    for name, uses in Counter(names).items():
        if name.strip() and uses > 1:  # columns without a name, as spreadsheets add, may repeat
            raise CsvError(f"line 1: {uses} columns are named {name!r}; expected one name for each column")


def _whole_row(names: list[str], cells: list[str], lines: _Lines) -> dict[str, Any]:
    if len(cells) != len(names):
        where = f"line {lines.first}" if len(lines.record) == 1 else f"lines {lines.first} to {lines.count}"
        opened = _last_quote(lines.record) if len(lines.record) > 1 else None
        hint = f"; {_opening(opened, names, lines)}" if opened else ""
        raise CsvError(f"{where}: found {len(cells)} cells; expected the header's {len(names)}{hint}")
    return dict(zip(names, cells, strict=True))


def _why_not_csv(error: csv.Error, names: list[str], lines: _Lines) -> str:
    opened = _last_quote(lines.record)
    if opened is None or "limit" in str(error):
        return f"line {lines.count}: not CSV ({error})"
    never = "unexpected end" in str(error)
    problem = "is never closed" if never else f"closes on line {lines.count}, in the middle of a cell"
    return f'{_opening(opened, names, lines)} {problem}; expected: a quote inside of a cell written twice, "5"" pipe"'


def _opening(opened: _Quote, names: list[str], lines: _Lines) -> str:
    column = f", column {names[opened.cell]!r}" if opened.cell < len(names) else ""
    return f"line {lines.first + opened.line}{column}: the quote before {opened.after!r}"


def _last_quote(record: list[str], delimiter: str = ",") -> _Quote | None:
    """Return the last quote of a record that opens a cell, up to the place where the record stops being CSV."""
    quote, cell, at_start, inside = None, 0, True, False
    for number, line in enumerate(record):
        place = 0
        while place < len(line):
            sign = line[place]
            if inside and sign == '"':
                if line[place + 1 : place + 2] == '"':
                    place += 1
                else:
                    inside = False
                    if line[place + 1 : place + 2] not in ("", delimiter, "\r", "\n"):
                        return quote
            elif not inside and sign == delimiter:
                cell, at_start = cell + 1, True
                place += 1
                continue
            elif not inside and sign == '"' and at_start:
                quote, inside = _Quote(number, cell, _begin(line[place + 1 :])), True
            at_start = False
            place += 1
    return quote


def _begin(text: str) -> str:
    text = text.rstrip("\r\n")
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def hidden_rows(
    first: int, record: list[str], names: list[str], shapes: set[str], delimiter: str = ","
) -> SwallowedRows | None:
    """Return the opening quote of a record whose lines all look like rows, or None.

    A line looks like a row if it has as many delimiters as the header and a first cell like those of other rows. A quoted
    cell may hold line breaks. Its lines also look like rows where one cell begins with an inch sign and a later one
    ends with one; a reader of CSV cannot distinguish these inch signs from quotes.

    Args:
        first (`int`): number of the record's first line.
        record: its lines.
        names: the columns.
        shapes: `shape_of` the first cells of other rows.
        delimiter (`str`): default ",".
    """
    opened = _last_quote(record, delimiter)
    if opened is None or len(names) < 2 or any(line.count(delimiter) != len(names) - 1 for line in record):
        return None
    known = {*shapes, shape_of(record[0].split(delimiter)[0])}
    if any(shape_of(line.split(delimiter)[0]) not in known for line in record[1:]):
        return None
    column = names[opened.cell] if opened.cell < len(names) else ""
    return SwallowedRows(first + opened.line, first + len(record) - 1, column, opened.after)


def shape_of(cell: str) -> str:
    """Return a cell with each run of digits written as "9" and each run of letters as "a"."""
    return re.sub(r"[^\W\d_]+", "a", re.sub(r"\d+", "9", cell.strip().strip('"')))
