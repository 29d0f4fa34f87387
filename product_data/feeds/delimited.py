"""Stream the rows of a delimited file: CSV with commas, semicolons, tabs or bars, in any of the usual encodings.

`product_data.csv_files` refuses what is not strictly CSV. A feed is written by others and cannot be corrected by hand:
here, unbalanced quotes and rows of another length are read as well as they can be, and each one is reported.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TextIO

from product_data.csv_files import hidden_rows, shape_of
from product_data.feeds.report import Loss
from product_data.feeds.text_encoding import detect_encoding
from product_data.table_files import TableError

SEPARATORS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}
REPLACEMENT = "\ufffd"
_LONGEST_CELL = 2**30
_LONGEST_RECORD = 2000  # lines; a quote that is still open then is read as text
_KEPT_SHAPES = 1000

Note = Callable[[Loss], None]


class FeedRow:
    """One row of a feed: its number in a spreadsheet, its first line in the file, and its cells by column.

    Args:
        number (`int`): the header is row 1.
        line (`int`): from 1; 0 if unknown.
        cells: column → cell, without empty cells.
    """

    __slots__ = ("cells", "line", "number")

    def __init__(self, number: int, line: int, cells: dict[str, str]) -> None:
        self.number, self.line, self.cells = number, line, cells


class _Lines:
    """The lines of a file, of which some can be put back; `count` lines were taken."""

    def __init__(self, lines: Iterator[str]) -> None:
        self._lines, self._back, self.count = lines, list[str](), 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._back.pop() if self._back else next(self._lines)
        self.count += 1
        return line

    def put_back(self, lines: Sequence[str]) -> None:
        self._back += reversed(lines)
        self.count -= len(lines)


class DelimitedFile:
    """A delimited file with a header.

    Args:
        path: the file.
        separator (`str` or `None`): one of `SEPARATORS`. Default `None`: a first line such as `sep=;` decides, else the
            separator that splits the header into most names.

    Raises:
        TableError: a file without a header line.
    """

    def __init__(self, path: Path, separator: str | None = None) -> None:
        self.path = path
        self.encoding = detect_encoding(path)
        self._problems: list[Loss] = []
        csv.field_size_limit(_LONGEST_CELL)
        with self._open() as file:
            lines = _Lines(iter(file))
            declared = self._skip_to_header(lines)
            text = next(lines, "")
            lines.put_back([text] if text else [])
            self.separator = separator or declared or _separator_of(text)
            chosen = f"the line 'sep={declared}'" if declared and not separator else ""
            name = SEPARATORS.get(self.separator, repr(self.separator))
            self.separator_label = f"{name} ({chosen})" if chosen else name
            cells, _, _ = _record(next(lines), lines, self.separator, 0) if text else ([], [], "")
        if not any(cell.strip() for cell in cells):
            raise TableError(f"{path}: found an empty file; expected a header line with the names of the columns")
        self.header = self._names(cells)

    def _open(self) -> TextIO:
        return self.path.open(encoding=self.encoding.codec, errors="replace", newline="")

    def _skip_to_header(self, lines: _Lines) -> str:
        """Skip empty lines and a line `sep=` before the header; return the separator that it declares, or ""."""
        declared = ""
        for line in lines:
            text = line.strip("\ufeff\r\n ")
            if text.casefold().startswith("sep=") and len(text.strip('"')) in (4, 5):
                declared = text.strip('"')[4:] or "\t"
            elif text.strip():
                lines.put_back([line])
                break
        return declared

    def _names(self, cells: Sequence[str]) -> list[str]:
        names: list[str] = []
        for number, cell in enumerate(cells, start=1):
            name = cell.strip("\ufeff \t\r\n") or f"column {number}"
            if name in names:
                repeated = f"{name} ({number})"
                why = f"column {number} repeats the name of an earlier column; it is not read"
                self._problems.append(Loss("repeated_column", row=1, column=repeated, found=name, why=why))
                name = repeated
            names.append(name)
        return names

    def rows(self, note: Note | None = None) -> Iterator[FeedRow]:
        """Yield the rows in the order of the file, with bounded memory.

        Args:
            note: receives each loss and repair. Default: none are reported.
        """
        note = note or _ignore
        for problem in self._problems:
            note(problem)
        for number, line, cells in self._rows_of_cells(note):
            row = FeedRow(number, line, {name: cell for name, cell in zip(self.header, cells, strict=False) if cell})
            if not any(map(str.strip, row.cells.values())):
                note(Loss("blank_row", number, line, why="every cell is empty"))
                continue
            if REPLACEMENT in "".join(cells):
                _note_damage(note, row)
            yield row

    def _rows_of_cells(self, note: Note) -> Iterator[tuple[int, int, list[str]]]:
        """Yield number, first line and cells of each row that is not an empty line."""
        width, separator = len(self.header), self.separator
        shapes: set[str] = set()
        with self._open() as file:
            lines = _Lines(iter(file))
            self._skip_to_header(lines)
            _record(next(lines), lines, separator, width)
            for number, text in enumerate(lines, start=2):
                line = lines.count
                cells, record, repair = _record(text, lines, separator, width)
                if not cells:
                    continue
                if repair:
                    note(Loss("quotes", number, line, found=record[0].rstrip("\r\n"), why=repair))
                elif len(record) > 1:
                    if hidden := hidden_rows(line, record, self.header, shapes, separator):
                        note(Loss("swallowed_rows", number, line, hidden.column, found=hidden.text, why=str(hidden)))
                elif len(shapes) < _KEPT_SHAPES:
                    shapes.add(shape_of(cells[0]))
                if len(cells) != width:
                    _note_length(note, number, line, cells, width)
                yield number, line, cells


def _ignore(_: Loss) -> None:
    """Report nothing."""


def _note_length(note: Note, number: int, line: int, cells: Sequence[str], width: int) -> None:
    found = f"found {len(cells)} cells; expected the header's {width}"
    if len(cells) < width:
        note(Loss("short_row", number, line, why=f"{found}; the last {width - len(cells)} columns count as empty"))
    elif more := [cell for cell in cells[width:] if cell.strip()]:
        note(Loss("long_row", number, line, found=" | ".join(more), why=f"{found}; the rest is not read"))


def _note_damage(note: Note, row: FeedRow) -> None:
    for column, cell in row.cells.items():
        if REPLACEMENT in cell:
            why = "bytes that the file's encoding does not have are read as the replacement character"
            note(Loss("damaged_text", row.number, row.line, column, found=cell, why=why))


def _separator_of(text: str) -> str:
    """Return the separator that splits a header into most names; a comma if none does."""
    counts = {}
    for separator in SEPARATORS:
        try:
            counts[separator] = len(next(csv.reader([text], delimiter=separator), []))
        except csv.Error:
            counts[separator] = text.count(separator) + 1
    return max(counts, key=counts.__getitem__)


def _record(text: str, lines: _Lines, separator: str, width: int) -> tuple[list[str], list[str], str]:
    """Return the cells of the record that begins with a line, its lines, and the repair that it needed, or "".

    Args:
        text: the line; further ones are taken from `lines`.
        lines: the rest of the file.
        separator: between cells.
        width: number of columns; 0 while the header is read.
    """
    if '"' not in text:
        text = text.rstrip("\r\n")
        return (text.split(separator) if text else []), [text], ""
    record = [text]
    try:
        cells = next(csv.reader(_taken(record, lines), delimiter=separator, strict=True))
    except csv.Error:
        return _repaired(record, lines, separator, width)
    if len(record) > 1 and len(cells) != width and all(len(_plain(line, separator)) == width for line in record):
        lines.put_back(record[1:])
        return _plain(text, separator), record[:1], "the quotes that begin here would join several rows; read as text"
    return cells, record, ""


def _taken(record: list[str], lines: _Lines) -> Iterator[str]:
    """Yield the first line of a record, and further lines, which are added to it."""
    yield record[0]
    while len(record) < _LONGEST_RECORD:
        line = next(lines, None)
        if line is None:
            return
        record.append(line)
        yield line


def _repaired(record: list[str], lines: _Lines, separator: str, width: int) -> tuple[list[str], list[str], str]:
    """Return the cells of a record that is not CSV: a quote closes a cell only before a separator or the line's end."""
    cells, used = _lenient(record, separator)
    if used and (used == 1 or len(cells) == width):
        lines.put_back(record[used:])
        return cells, record[:used], "a quote inside of a quoted cell is not written twice; it is read as text"
    lines.put_back(record[1:])
    return _plain(record[0], separator), record[:1], "a quote is never closed; all quotes of the line are read as text"


def _plain(line: str, separator: str) -> list[str]:
    return line.rstrip("\r\n").split(separator)


def _lenient(record: Sequence[str], separator: str) -> tuple[list[str], int]:
    """Return the cells up to the first line where no quote is open, and the number of lines; 0 if there is none."""
    cells: list[str] = []
    cell: list[str] = []
    inside = False
    for number, line in enumerate(record, start=1):
        body = line.rstrip("\r\n")
        place, end = 0, len(body)
        while place < end:
            sign = body[place]
            following = body[place + 1 : place + 2]
            if inside and sign == '"' and following == '"' and body[place + 2 : place + 3] not in ("", separator):
                cell.append('"')
                place += 1
            elif inside and sign == '"' and following in ("", separator):
                inside = False
            elif inside and sign == '"' and body[place + 1 : place + 3] in ('"', f'"{separator}'):
                cell.append('"')  # an inch sign before the closing quote
                inside = False
                place += 1
            elif not inside and sign == separator:
                cells.append("".join(cell))
                cell = []
            elif not inside and sign == '"' and not cell:
                inside = True
            else:
                cell.append(sign)
            place += 1
        if not inside:
            return [*cells, "".join(cell)], number
        cell.append(line[len(body) :])
    return [], 0
