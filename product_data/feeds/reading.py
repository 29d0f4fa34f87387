"""Read a product feed as a shop system exports it: stream its products, and report what was read and what was not.

    feed = read_feed("products_export.csv")
    for product in feed:
        ...
    print(feed.report)

A feed is read twice: once to see its encoding, its ids, its categories and the decimal signs of its prices, then to build
the products. Memory does not grow with the number of rows, except for 8 bytes for each product.
"""

from __future__ import annotations

import contextlib
import os
import weakref
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Protocol

from tqdm import tqdm

from product_data.categories import CategoryReader
from product_data.feeds.cells import CellReader, Row
from product_data.feeds.delimited import DelimitedFile, FeedRow, Note
from product_data.feeds.feed_format import FeedFormat, format_named, lacking, recognise
from product_data.feeds.feed_product import FeedProduct
from product_data.feeds.grouping import FeedIndex
from product_data.feeds.own_tables import OWN
from product_data.feeds.pictures import PictureFinder, PictureNote
from product_data.feeds.prices import decimal_sign, decimal_sign_of
from product_data.feeds.product_builder import ProductBuilder
from product_data.feeds.report import FeedReport, Loss, LossLog
from product_data.feeds.text_encoding import Encoding
from product_data.feeds.typed_files import TypedFile, TypedTexts
from product_data.feeds.xml_items import XmlItems
from product_data.outputs import OutputError, require_writable_file
from product_data.picture_files import PictureFetcher, PictureFetching
from product_data.table_files import TableError, listed
from product_data.text_cells import strip_html

_BATCH = 256  # products whose pictures are fetched together
_CATEGORIES = 20_000  # different cells of categories that decide how categories are read
_START = 512  # bytes that show whether a file is XML
_TYPED = (".parquet", ".jsonl")
_DELIMITED = (".csv", ".tsv", ".txt")


class FeedFile(Protocol):
    """A file whose rows are streamed."""

    path: Path
    header: list[str]
    separator_label: str

    @property
    def encoding(self) -> Encoding | None:
        """The encoding; None for a file with types of its own."""

    def rows(self, note: Note | None = None) -> Iterator[FeedRow]:
        """Yield the rows in the order of the file."""


@dataclass(frozen=True)
class FeedOptions:
    """What `read_feed` was called with."""

    language: str | None
    pictures: PictureFetching | None
    images_root: str | Path | None
    losses: Path | None
    check_images: bool


class Feed:
    """The products of a feed. Each iteration reads the file again and begins a new `report`.

    `report` describes the file at once; its counts and losses are complete when an iteration ends.
    """

    def __init__(self, file: FeedFile, format: FeedFormat, chosen_by: str, options: FeedOptions) -> None:
        self.path, self.format, self.options = file.path, format, options
        self._file, self._chosen_by = file, chosen_by
        self._opened = self._file_state()
        self._roles = format.roles_of(file.header)
        self._languages: dict[str, None] = dict.fromkeys(filter(None, [format.default_language]))
        self._index = FeedIndex()
        weakref.finalize(self, self._index.close)
        self._finder(None)  # a folder that does not exist is refused at once
        self._survey()
        self.language = self._chosen_language()
        self._translates = bool(self.language) and self.language != format.default_language
        if self._translates:
            self._index.add_texts(format.translations(file.path, self.language))
        self._index.prepare(self._keyed)
        self.report = self._new_report(LossLog())

    def __iter__(self) -> Iterator[FeedProduct]:
        """Yield the products.

        Raises:
            TableError: the file has changed since the feed was opened.
        """
        self._require_unchanged()
        self.report = self._new_report(LossLog(self.options.losses))
        with contextlib.ExitStack() as stack:
            stack.callback(self.report.losses.close)
            fetcher = None
            if self.options.pictures is not None:
                fetcher = stack.enter_context(PictureFetcher(self.options.pictures))
            finder = self._finder(fetcher)
            built = self._built(self.report)
            bar = stack.enter_context(tqdm(desc=f"{self.path.name} read", unit=" products", delay=3.0))
            while batch := list(islice(built, _BATCH)):
                for product in self._with_pictures(finder, batch):
                    bar.update()
                    yield product
            self._require_unchanged()
            if not self.report.products:
                self.report.losses.add(Loss("no_products", why=f"{self.report.rows} rows were read"))
            if fetcher is not None:
                self.report.notes.append(str(fetcher))

    def _file_state(self) -> tuple[int, int, int]:
        """Return what changes when a file is written or replaced: its number, size and time."""
        state = self.path.stat()
        return state.st_ino, state.st_size, state.st_mtime_ns

    def _require_unchanged(self) -> None:
        if self._file_state() != self._opened:
            raise TableError(f"{self.path}: the file has changed since it was opened; run the command again")

    def _built(self, report: FeedReport) -> Iterator[tuple[FeedProduct, ProductBuilder]]:
        """Yield the products with the pictures as the feed names them."""
        cells = CellReader(report.losses.add, self._decimal, self._categories)
        for key, rows in self._index.grouped(self._keyed(report)):
            builder = ProductBuilder(key, cells, self.language if self._translates else "")
            self.format.fill(builder, rows)
            texts = {role: cells.plain(text, rows[0], role, key) for role, text in self._index.texts_of(key).items()}
            if self._translates and not (texts.get("title") or builder.translated):
                cells.note("missing_translation", rows[0], "title", key, why=f"no title in {self.language!r}")
            yield builder.build(rows[0], texts), builder

    def _with_pictures(
        self, finder: PictureFinder, batch: list[tuple[FeedProduct, ProductBuilder]]
    ) -> Iterator[FeedProduct]:
        """Yield products with files in place of their pictures, and count them."""
        report = self.report

        def note_of(index: int) -> PictureNote:
            product, builder = batch[index]

            def note(picture: int, kind: str, found: str, why: str) -> None:
                row, role = builder.places[picture]
                builder.cells.note(kind, row, role, product.row.product_id, found, why)

            return note

        for product in finder.find([product for product, _ in batch], note_of):
            report.products += 1
            report.variants += len(product.variants)
            report.pictures += len(product.row.images)
            yield product

    def _keyed(self, report: FeedReport | None = None) -> Iterator[tuple[str, Row]]:
        """Yield product id and row; a row without an id is noted, and left out unless it continues the one above it.

        Args:
            report: counts the rows and receives the losses. Default `None`: they are not reported.
        """
        note = report.losses.add if report else None
        above = ""
        for source in self._file.rows(note):
            row = Row(source, self._roles)
            if report:
                report.rows += 1
            key = self.format.key(row)
            if not key:
                key = above if above and self.format.continues(row) else ""
                kind, why = ("filled_id", f"read as a row of {key!r}") if key else ("missing_id", "the row is left out")
                if note:
                    note(Loss(kind, source.number, source.line, self._roles.get("key", ""), key, why=why))
            if key:
                above = self._index.key_of(key)
                yield above, row

    def _survey(self) -> None:
        """Read the file once: ids, languages, categories, and the decimal signs that prices show."""
        categories = [column for role, column in self._roles.items() if role.partition(".")[0] == "category"]
        prices = {self._roles[role]: Counter[str]() for role in self.format.prices if role in self._roles}
        paths: dict[str, None] = {}
        above = ""
        for source in tqdm(self._file.rows(), desc=f"{self.path.name} surveyed", unit=" rows", delay=3.0):
            row = Row(source, self._roles)
            above = self.format.key(row) or above
            self._index.see(above)
            self._index.add_aliases(self.format.aliases(row))
            if language := self.format.language_of(row):
                self._languages[language] = None
            for column, shown in prices.items():
                if cell := source.cells.get(column):
                    shown[decimal_sign_of(str(cell))] += 1
            for column in categories:
                if len(paths) < _CATEGORIES and isinstance(cell := source.cells.get(column), str):
                    paths[strip_html(cell)] = None
        self._languages |= self.format.languages(self.path)
        self._categories = CategoryReader(paths)
        together = decimal_sign(sum(prices.values(), Counter()))
        self._decimal = {column: decimal_sign(shown) or together for column, shown in prices.items()}

    def _chosen_language(self) -> str:
        """Return the language to read.

        Raises:
            TableError: the feed has no texts in the language of the options.
        """
        wanted, default = self.options.language, self.format.default_language
        if wanted is None:
            return default
        if wanted not in self._languages:
            known = ", ".join(self._languages) or "none named in the feed: leave out the language"
            raise TableError(f"{self.path}: found no texts in language {wanted!r}; expected one of: {known}")
        return wanted

    def _finder(self, fetcher: PictureFetcher | None) -> PictureFinder:
        return PictureFinder(self.path, self.options.images_root, fetcher, self.options.check_images)

    def _new_report(self, losses: LossLog) -> FeedReport:
        encoding = self._file.encoding
        return FeedReport(
            path=self.path,
            format=self.format.name,
            chosen_by=f"{self.format.title}, {self._chosen_by}",
            encoding=encoding.label if encoding else "",
            separator=self._file.separator_label,
            columns={column: role for role, column in self._roles.items()},
            unread=tuple(column for column in self._file.header if column not in self._roles.values()),
            languages=tuple(self._languages),
            language=self.language,
            price_signs={column: sign for column, sign in self._decimal.items() if sign},
            losses=losses,
        )


def read_feed(
    path: str | Path,
    *,
    format: str | None = None,
    language: str | None = None,
    pictures: PictureFetching | None = None,
    images_root: str | Path | None = None,
    losses: str | Path | None = None,
    check_images: bool = False,
) -> Feed:
    """Open a product feed: the export of a shop system, a Google Merchant feed, or the project's own products table.

    Args:
        path: the file, or a folder with the one file `products.*`.
        format (`str` or `None`): name of a format, see `product_data.feeds.feed_format.formats`. Default `None`: the columns
            of the file decide.
        language (`str` or `None`): language of titles and descriptions, for feeds with several. A product without texts in
            it keeps those of the default language, which is reported. Default: the feed's default language.
        pictures: fetches pictures that are URLs. Default `None`: a URL stays a URL, unless the folder `images` beside the
            feed has a file of that name.
        images_root: folder of relative picture paths. Default: the folder of the feed.
        losses: CSV file that receives every loss and repair. Default: the report shows counts and the first ones.
        check_images (`bool`): open every picture file. Default False.

    Returns: an iterable of `FeedProduct` with a `report`.

    Raises:
        TableError: a missing or empty file, a format that is not recognised, columns that the format needs, a language that
            the feed does not have, or a folder of pictures that does not exist.
        OptionError: an unknown format.
        OutputError: a file for losses that cannot be written, or is the feed.
    """
    path = find_feed(path)
    require_writable_file("--losses", losses)
    if losses is not None and Path(losses).exists() and os.path.samefile(losses, path):
        raise OutputError(f"--losses {losses}: found the feed itself; expected another file")
    file = open_feed(path)
    if format is None:
        chosen, by = recognise(path, file.header)
        chosen_by = f"recognised by {by}"
    else:
        chosen, chosen_by = format_named(format), "chosen with --format"
        if missing := lacking(chosen, file.header):
            raise TableError(
                f"{path}: found no column {', '.join(missing)}, which {chosen.title} needs; "
                f"found {listed([*map(repr, file.header)])}"
            )
    if isinstance(file, TypedFile) and chosen.name != OWN:
        roles = chosen.roles_of(file.header)
        file = TypedTexts(file, {roles[role] for role in chosen.prices if role in roles})
    options = FeedOptions(language, pictures, images_root, Path(losses) if losses is not None else None, check_images)
    return Feed(file, chosen, chosen_by, options)


def shop_feed(path: str | Path) -> Path | None:
    """Return the file of a feed if its columns are those of a shop system; None for the project's own tables.

    Raises:
        TableError: a file or folder that is neither; see `recognise`.
    """
    file = find_feed(path)
    chosen, _ = recognise(file, open_feed(file).header)
    return None if chosen.name == OWN else file


def find_feed(path: str | Path) -> Path:
    """Return the file of a feed: the path itself, or the one file `products.*` in a folder.

    Raises:
        TableError: no such file, or not exactly one in the folder.
    """
    path = Path(path)
    if path.is_file():
        return path
    if path.exists() and not path.is_dir():
        raise TableError(f"{path}: found a pipe or a device; expected a file, because a feed is read twice")
    if not path.is_dir():
        raise TableError(f"{path}: no such file or folder; expected a product feed")
    files = [path / f"products{suffix}" for suffix in (*_TYPED, *_DELIMITED, ".xml")]
    present = [file for file in files if file.is_file()]
    if len(present) != 1:
        found = " and ".join(file.name for file in present) or "no products file"
        expected = ", ".join(file.name for file in files)
        raise TableError(f"{path}: found {found}; expected exactly one of {expected}, or the path of the feed")
    return present[0]


def open_feed(path: Path) -> FeedFile:
    """Open the file of a feed; its first bytes decide between XML and rows of text, its suffix on parquet and JSON lines.

    Raises:
        TableError: an empty file, or a file of another kind.
    """
    if path.suffix.lower() in _TYPED:
        return TypedFile(path)
    with path.open("rb") as file:
        start = file.read(_START).replace(b"\0", b"")
    if start.lstrip(b"\xef\xbb\xbf\xff\xfe \t\r\n").startswith(b"<"):
        return XmlItems(path)
    return DelimitedFile(path)
