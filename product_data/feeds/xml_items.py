"""Stream the items of an RSS or Atom feed with bounded memory.

The parser is expat of the standard library, without a document tree. A file that declares an entity is refused as soon as
the declaration is read, before anything can be expanded ("billion laughs"); external entities and DTDs are never loaded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from xml.parsers import expat

from product_data.feeds.delimited import FeedRow, Note
from product_data.feeds.text_encoding import Encoding
from product_data.table_files import TableError

GOOGLE = "http://base.google.com/ns/"
PART = "\x1f"
"""Stands between the parts of an element with children, such as those of `g:product_detail`."""
_ITEMS = ("item", "entry")
_CHUNK = 1 << 16
_LONGEST_ITEM = 1 << 25  # characters


class XmlItems:
    """The items of an XML feed; an element's text is a cell, repeated elements are lines of one cell.

    Args:
        path: the file.

    Raises:
        TableError: not well-formed XML, a file that declares entities, a very long item, or a file without items; the
            message has the line.
    """

    separator_label = ""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.encoding: Encoding | None = Encoding("", "UTF-8, the default of XML")
        self.root = ""
        self.header = list(dict.fromkeys(column for row in self.rows() for column in row.cells))
        if not self.header:
            raise TableError(
                f"{path}: found XML with root {self.root!r} and no item; expected RSS items or Atom entries"
            )

    def rows(self, note: Note | None = None) -> Iterator[FeedRow]:
        """Yield the items; the first one has number 1."""
        items: list[FeedRow] = []
        reader = _Reader(self, items)
        with self.path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                reader.parse(chunk)
                yield from items
                items.clear()
            reader.parse(b"", last=True)
            yield from items


class _Reader:
    """The handlers of one parser."""

    def __init__(self, file: XmlItems, items: list[FeedRow]) -> None:
        self.file, self.items = file, items
        self.parser = parser = expat.ParserCreate(namespace_separator="\n")
        parser.buffer_text = True
        parser.XmlDeclHandler = self._declaration
        parser.EntityDeclHandler = self._entity
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        parser.CharacterDataHandler = self._characters
        self.depth = self.number = self.line = self.size = 0
        self.item_depth = 0
        self.open = False
        self.cells: dict[str, list[str]] = {}
        self.parts: list[str] = []
        self.text: list[str] = []
        self.address = ""

    def parse(self, chunk: bytes, last: bool = False) -> None:
        try:
            self.parser.Parse(chunk, last)
        except expat.ExpatError as error:
            why = expat.ErrorString(error.code)
            raise TableError(f"{self.file.path}, line {error.lineno}: not well-formed XML ({why})") from error

    def _declaration(self, version: str, encoding: str | None, standalone: int) -> None:
        self.file.encoding = Encoding(encoding or "", f"{encoding}, as the XML declares" if encoding else "UTF-8")

    def _entity(self, name: str, *_: object) -> None:
        line = self.parser.CurrentLineNumber
        raise TableError(
            f"{self.file.path}, line {line}: declares the entity {name!r}; expected a feed without entities"
        )

    def _start(self, name: str, attributes: Mapping[str, str]) -> None:
        self.depth += 1
        local = name.rpartition("\n")[2]
        self.file.root = self.file.root or local
        if not self.open and local in _ITEMS:
            self.open, self.item_depth, self.line, self.size = True, self.depth, self.parser.CurrentLineNumber, 0
            self.cells = {}
        self.text = []
        if self.open and self.depth == self.item_depth + 1:
            self.parts, self.address = [], attributes.get("href", "")

    def _characters(self, text: str) -> None:
        if self.open:
            self.size += len(text)
            if self.size > _LONGEST_ITEM:
                raise TableError(
                    f"{self.file.path}, line {self.line}: the item is longer than {_LONGEST_ITEM} characters"
                )
            self.text.append(text)

    def _end(self, name: str) -> None:
        if self.open and self.depth == self.item_depth:
            self.open = False
            self.number += 1
            cells = {column: "\n".join(texts) for column, texts in self.cells.items()}
            self.items.append(FeedRow(self.number, self.line, cells))
        elif self.open:
            text = "".join(self.text).strip()
            if self.depth > self.item_depth + 1:
                self.parts.append(f"{name.rpartition(chr(10))[2]}:{' '.join(text.split())}")
            else:
                self._cell(name, text)
        self.text = []
        self.depth -= 1

    def _cell(self, name: str, text: str) -> None:
        """Add a child of the item; a column of Google's namespace replaces one of the same name."""
        namespace, _, local = name.rpartition("\n")
        column = f"g:{local}" if namespace.startswith(GOOGLE) else local
        if cell := PART.join(self.parts) or text or self.address:
            self.cells.setdefault(column, []).append(cell)
