"""Group the rows of a feed by product with bounded memory; rows that do not stand together are merged through the disk.

Our design; precedent: the external merge of SQLite, which holds the rows that are out of place in a temporary file.
"""

from __future__ import annotations

import errno
import hashlib
import pickle
import sqlite3
import tempfile
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from product_data.feeds.cells import Row
from product_data.feeds.delimited import FeedRow
from product_data.table_files import TableError

_BATCH = 1000

KeyedRows = Callable[[], Iterator[tuple[str, Row]]]
"""Reads the feed from its beginning, and yields product id and row."""


class _ScratchDatabase:
    """A temporary SQLite file; a full disk is the error that it is for any other file.

    Raises:
        OSError: from each call, with ENOSPC: the disk of temporary files is full.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._connection = path, sqlite3.connect(path, check_same_thread=False)
        self.close = self._connection.close

    def execute(self, statement: str, values: Sequence[Any] = ()) -> sqlite3.Cursor:
        """Run one statement."""
        return self._checked(self._connection.execute, statement, values)

    def executemany(self, statement: str, rows: Iterable[Sequence[Any]]) -> sqlite3.Cursor:
        """Run one statement for each row."""
        return self._checked(self._connection.executemany, statement, rows)

    def _checked(self, run: Callable[..., sqlite3.Cursor], *arguments: Any) -> sqlite3.Cursor:
        try:
            return run(*arguments)
        except sqlite3.OperationalError as error:
            if "full" not in str(error):
                raise
            raise OSError(errno.ENOSPC, f"the disk of temporary files is full ({error})", str(self._path)) from error


class FeedIndex:
    """What a first reading of a feed leaves on disk: ids that mean another id, texts of a language, rows out of place.

    In memory it keeps 8 bytes for each run of rows of one product.
    """

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="moon-feed-")
        self._database = _ScratchDatabase(Path(self._folder.name) / "index.sqlite")
        for line in (
            "PRAGMA journal_mode = OFF",
            "PRAGMA synchronous = OFF",
            "CREATE TABLE aliases (alias TEXT PRIMARY KEY, key TEXT) WITHOUT ROWID",
            "CREATE TABLE texts (key TEXT PRIMARY KEY, texts BLOB) WITHOUT ROWID",
            "CREATE TABLE rows (key TEXT, place INTEGER, row BLOB, PRIMARY KEY (key, place)) WITHOUT ROWID",
        ):
            self._database.execute(line)
        self.has_aliases = self.has_texts = False
        self._runs = array("Q")
        self._last: str | None = None
        self._recurring = np.empty(0, dtype=np.uint64)

    def add_aliases(self, pairs: Iterable[tuple[str, str]]) -> None:
        """Note that an id means the product of another id; the first meaning counts."""
        for pair in pairs:
            self.has_aliases = True
            self._database.execute("INSERT OR IGNORE INTO aliases VALUES (?, ?)", pair)

    def key_of(self, alias: str) -> str:
        """Return the id of the product that an id means: itself, unless another one was noted."""
        if not self.has_aliases:
            return alias
        found = self._database.execute("SELECT key FROM aliases WHERE alias = ?", (alias,)).fetchone()
        return found[0] if found else alias

    def add_texts(self, translations: Iterable[tuple[str, dict[str, str]]]) -> None:
        """Keep the texts of products in a language; the first ones of a product count."""
        for key, texts in translations:
            self.has_texts = True
            self._database.execute("INSERT OR IGNORE INTO texts VALUES (?, ?)", (key, pickle.dumps(texts)))

    def texts_of(self, key: str) -> dict[str, str]:
        """Return the texts of a product; {} if there are none."""
        if not self.has_texts:
            return {}
        found = self._database.execute("SELECT texts FROM texts WHERE key = ?", (key,)).fetchone()
        return pickle.loads(found[0]) if found else {}

    def see(self, key: str) -> None:
        """Note the product id of the next row."""
        if key != self._last:
            self._runs.append(_hash(key))
            self._last = key

    def prepare(self, read: KeyedRows) -> None:
        """Keep the rows of products whose rows do not stand together.

        Args:
            read: reads the feed; its ids are those of products.
        """
        if self.has_aliases:  # the ids that `see` was called with were not yet those of products
            self._runs, self._last = array("Q"), None
            for key, _ in read():
                self.see(key)
        hashes, counts = np.unique(np.frombuffer(self._runs, dtype=np.uint64), return_counts=True)
        self._recurring, self._runs = hashes[counts > 1], array("Q")
        if not len(self._recurring):
            return
        batch: list[tuple[str, int, bytes]] = []
        for place, (key, row) in enumerate(read(), start=1):
            if self._recurs(key):
                source = row.source
                batch.append((key, place, pickle.dumps((source.number, source.line, source.cells, row.columns))))
            if len(batch) >= _BATCH:
                self._database.executemany("INSERT INTO rows VALUES (?, ?, ?)", batch)
                batch = []
        self._database.executemany("INSERT INTO rows VALUES (?, ?, ?)", batch)

    def grouped(self, rows: Iterable[tuple[str, Row]]) -> Iterator[tuple[str, list[Row]]]:
        """Yield each product id once, in the order of first rows, with all its rows in the order of the feed.

        Args:
            rows: product id and row, as `prepare` has read them.
        """
        key, run = "", list[Row]()
        for next_key, row in rows:
            if run and next_key != key:
                yield from self._whole(key, run)
                run = []
            key = next_key
            run.append(row)
        if run:
            yield from self._whole(key, run)

    def _recurs(self, key: str) -> bool:
        number = np.uint64(_hash(key))
        place = int(np.searchsorted(self._recurring, number))
        return place < len(self._recurring) and bool(self._recurring[place] == number)

    def _whole(self, key: str, run: list[Row]) -> Iterator[tuple[str, list[Row]]]:
        """Yield a run with the rows of the product that stand elsewhere, or nothing for a later run."""
        if not len(self._recurring) or not self._recurs(key):
            yield key, run
            return
        stored = self._database.execute("SELECT row FROM rows WHERE key = ? ORDER BY place", (key,))
        if (known := stored.fetchone()) is None:
            raise TableError(f"product {key!r}: found a row that was not there before; the feed has changed meanwhile")
        first = _restored(*pickle.loads(known[0]))
        if first.source.number == run[0].source.number:
            yield key, [first, *(_restored(*pickle.loads(row)) for (row,) in stored.fetchall())]

    def close(self) -> None:
        """Remove the files."""
        self._database.close()
        self._folder.cleanup()


def _restored(number: int, line: int, cells: dict[str, Any], columns: dict[str, str]) -> Row:
    return Row(FeedRow(number, line, cells), columns)


def _hash(key: str) -> int:
    return int.from_bytes(hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")
