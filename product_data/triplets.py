"""Turn a table of triplets (query, purchased product, hard negative) into a gallery of products and its queries.

Source: the rows of MBE (MOON, arXiv 2508.11999 §4.2). The gallery is our design, since the papers evaluate rows and do
not describe one: products are merged by id, and a row that cannot be read completely is left out and reported, and
therefore does not change the scores of the other rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from product_data.checking import IssueLog, ValidationReport
from product_data.columns import (
    ROW_ID,
    RowColumns,
    cell_of,
    content_id,
    find_columns,
    level_names,
    product_fields,
)
from product_data.picture_files import FAILURES, FetchedPictures, PictureFetching, available_pictures
from product_data.reading import ReadingOptions
from product_data.row_files import Rows, column_names, sampled
from product_data.rows import EVERY_SPLIT, ProductRow, QueryRow
from product_data.table_files import ImageSource, parse_images, parse_text
from product_data.tables import ProductTables

SPLIT_COLUMN = "split"
_ATTRIBUTE_SETS = ("attributes", "attributes_image", "attributes_text")
_FORMS = (("text", True, False), ("image", False, True), ("both", True, True))
_FILLED = (
    "title",
    "description",
    "category",
    "attributes",
    "images",
    "core_box",
    "attributes_image",
    "attributes_text",
    "group",
)


@dataclass(frozen=True)
class TripletOptions:
    """Options for reading a table of triplets.

    Args:
        columns: roles such as "query.title" → a column, a list of columns or None; replaces what the columns' names
            suggest, see `product_data.columns.find_columns`.
        images_root (`Path`): folder that paths of pictures are relative to. Default: the working directory.
        split (`str` or `None`): read the rows of this split only, if the table has a column "split".
        sample (`int` or `None`): read this many rows, drawn by `seed`; the labels are still those of all rows.
        seed (`int`): seed of the sample. Default 0.
        reading: options for reading cells.
        pictures: settings for fetching pictures.
    """

    columns: Mapping[str, Any] | None = None
    images_root: Path = Path()
    split: str | None = None
    sample: int | None = None
    seed: int = 0
    reading: ReadingOptions = field(default_factory=ReadingOptions)
    pictures: PictureFetching = field(default_factory=PictureFetching)


@dataclass(frozen=True)
class _Triplet:
    """A row that could be read: `query` has title, images and core_box; `positive` and `negative` are (id, fields)."""

    index: int
    name: str
    query: dict[str, Any]
    query_name: str
    positive: tuple[str, dict[str, Any]]
    negative: tuple[str, dict[str, Any]] | None

    @property
    def pictures(self) -> Iterator[ImageSource]:
        """Yield all pictures of the row."""
        for fields in (self.query, self.positive[1], *([self.negative[1]] if self.negative else [])):
            yield from fields["images"]


def triplet_tables(name: str, rows: Rows, options: TripletOptions | None = None) -> ProductTables:
    """Return the products and queries of a table of triplets.

    - A product is identified by its id, or by its title and pictures if it has no id. If several rows have one id, the
      first row that has a field determines it; a later row with another value is reported (`conflicting_products`).
    - A row is one query for each form that it has: text, image, and both if it has both. The row's box is its core box.
      Rows with the same query id and the same query are one query with several answers. A row that repeats another
      completely is left out (`repeated_rows`). A row that only shares another's id is a separate query with its row
      number after the id (`shared_row_ids`).
    - Category columns are levels, in order, and are never split; a path ends before its first empty level.
    - A row is left out (`broken_rows`) if a cell of its query or product cannot be read, if its product has neither
      text nor picture, or if the picture of its query or all pictures of its product are missing or cannot be opened.
      If only the negative cannot be read, only the negative is left out (`broken_negatives`); of several pictures of a
      product only those are left out (`missing_images`, `unreadable_images`).

    Args:
        name (`str`): name of the data set.
        rows: see `product_data.row_files.open_rows`.
        options: options for reading. Default: `TripletOptions()`.

    Returns: tables whose report lists the role of each column, with `level_names` (the names of the category levels)
        and `labels` (the categories and attribute values of the rows that are not in the sample).

    Raises:
        ColumnError: the columns contain no product.
        TableError: a sample below 1.
    """
    options = options or TripletOptions()
    names = column_names(rows)
    columns = find_columns(names, options.columns)
    by_split = SPLIT_COLUMN in names
    light = _without_pictures(rows, columns)
    places = [place for place in range(len(rows)) if not by_split or _is_of_split(light[place], options.split)]
    chosen = [places[place] for place in sampled(len(places), options.sample, options.seed)]
    log = IssueLog()
    reader = _Reader(columns, options, log)
    read = [triplet for place in chosen if (triplet := reader.read(place, rows[place])) is not None]
    read, note = _with_pictures(read, options, log)
    gallery = _Gallery(log)
    for triplet in read:
        gallery.add(triplet)
    left = set(places).difference(chosen)
    notes = [f"columns:\n    {str(columns).replace(chr(10), chr(10) + '  ')}", *filter(None, [note])]
    if left:
        notes.append(
            f"a sample of {len(chosen)} of {len(places)} rows (seed {options.seed}), with the labels of all rows"
        )
    tables = ProductTables(
        name,
        list(gallery.products.values()),
        gallery.queries(),
        ValidationReport(name, 0, 0, {}),
        reading_issues=log.issues(),
        notes=tuple(notes),
        labels=reader.labels(light[place] for place in sorted(left)),
        level_names=level_names(columns),
    )
    return replace(tables, report=tables.validate())


def _is_of_split(row: Mapping[str, Any], split: str | None) -> bool:
    return split in (None, EVERY_SPLIT) or row.get(SPLIT_COLUMN) in (None, "", split, EVERY_SPLIT)


def _without_pictures(rows: Rows, columns: RowColumns) -> Rows:
    """Return the rows of a data set on disk without their picture columns, which makes reading all rows cheap."""
    if not hasattr(rows, "remove_columns"):
        return rows
    pictures = {name for role, names in columns.taken.items() if role.endswith(".image") for name in names}
    return rows.remove_columns([name for name in rows.column_names if name in pictures])  # type: ignore[attr-defined]


class _Reader:
    """Read rows, and note their issues."""

    def __init__(self, columns: RowColumns, options: TripletOptions, log: IssueLog) -> None:
        self.columns, self.options, self.log = columns, options, log
        self.levels = columns.taken.get("positive.category", ())

    def read(self, index: int, row: Mapping[str, Any]) -> _Triplet | None:
        """Read a row; return None if its query or its product cannot be read."""
        name = self._text(row, ROW_ID) or f"row {index}"
        try:
            positive = self._product(row, "positive")
            query = self._fields(row, "query")
            query_name = self._text(row, "query.id")
        except (ValueError, TypeError) as error:
            self.log.add("broken_rows", f"row {index}: {error}")
            return None
        if positive is None:
            self.log.add("broken_rows", f"row {index}: the product has neither text nor picture")
            return None
        try:
            negative = self._product(row, "negative") if self.columns.has("negative") else None
        except (ValueError, TypeError) as error:
            self.log.add("broken_negatives", f"row {index}: {error}")
            negative = None
        return _Triplet(index, name, query, query_name, positive, negative)

    def labels(self, rows: Iterator[Mapping[str, Any]]) -> tuple[ProductRow, ...]:
        """Return the categories and attribute values of rows, each once, as products without other fields."""
        paths: dict[tuple[str, ...], None] = {}
        sets: dict[str, dict[str, dict[str, None]]] = {name: {} for name in _ATTRIBUTE_SETS}
        for row in rows:
            for part in ("positive", "negative"):
                try:
                    fields = self._fields(row, part)
                except (ValueError, TypeError):
                    continue
                paths.setdefault(fields["category"])
                for name, values in sets.items():
                    for key, listed in (fields.get(name) or {}).items():
                        values.setdefault(key, {}).update(dict.fromkeys(listed))
        rows_of_paths = [ProductRow("", category=path) for path in paths if path]
        attributes: dict[str, Any] = {
            name: {key: tuple(listed) for key, listed in values.items()} for name, values in sets.items() if values
        }
        return (*rows_of_paths, *([ProductRow("", **attributes)] if attributes else []))

    def _product(self, row: Mapping[str, Any], part: str) -> tuple[str, dict[str, Any]] | None:
        fields = self._fields(row, part)
        if not fields.get("title") and not fields["images"]:
            return None
        return self._text(row, f"{part}.id") or content_id(fields), fields

    def _fields(self, row: Mapping[str, Any], part: str) -> dict[str, Any]:
        fields = product_fields(row, self.columns, part, self.options.reading)
        fields["images"] = pictures_of(fields["images"], self.options.images_root)
        levels = self.columns.taken.get(f"{part}.category", ())
        if len(levels) > 1:  # a label such as "女装/女士精品" is one level
            texts = [self.options.reading.clean(parse_text(cell_of(row, level))) for level in levels]
            fields["category"] = tuple(texts[: texts.index("")] if "" in texts else texts)
        return fields

    def _text(self, row: Mapping[str, Any], role: str) -> str:
        columns = self.columns.taken.get(role, ())
        return next((text for column in columns if (text := parse_text(cell_of(row, column)))), "")


def _with_pictures(read: list[_Triplet], options: TripletOptions, log: IssueLog) -> tuple[list[_Triplet], str]:
    """Fetch the pictures of rows; return the rows whose pictures exist, and a note on the fetching."""
    fetched = available_pictures((image for triplet in read for image in triplet.pictures), options.pictures)
    kept = [with_files for triplet in read if (with_files := _with_files(triplet, fetched, log)) is not None]
    note = str(fetched) if fetched.files or fetched.failures else ""
    if fetched.failures:
        note += f"; why: {options.pictures.folder / FAILURES}"
    return kept, note


def _with_files(triplet: _Triplet, fetched: FetchedPictures, log: IssueLog) -> _Triplet | None:
    place, negative = f"row {triplet.index}", triplet.negative
    query = with_picture_files(f"{place}, query", triplet.query, fetched, log)
    if query is None:
        return None
    positive = with_picture_files(f"{place}, product", triplet.positive[1], fetched, log)
    if positive is None:
        return None
    if negative is not None:
        lost = IssueLog()
        fields = with_picture_files(f"{place}, negative", negative[1], fetched, lost)
        for issue in lost.issues():
            kind = "broken_negatives" if issue.kind == "broken_rows" else issue.kind
            for example in issue.examples:
                log.add(kind, example)
        negative = None if fields is None else (negative[0], fields)
    return replace(triplet, query=query, positive=(triplet.positive[0], positive), negative=negative)


def pictures_of(cells: Sequence[Any], folder: Path) -> tuple[ImageSource, ...]:
    """Return the pictures of cells; a cell may hold a list, a JSON list, or paths or URLs separated by "|".

    Raises:
        ValueError: a cell that does not hold pictures.
    """
    return tuple(image for cell in cells for image in parse_images(cell, folder))


def with_picture_files(
    place: str, fields: dict[str, Any], fetched: FetchedPictures, log: IssueLog
) -> dict[str, Any] | None:
    """Replace URLs of pictures by their files and leave out pictures that are missing or cannot be opened.

    Args:
        place (`str`): the product or query, as written in the report.
        fields: fields of a product or query, with "images".
        fetched: from `available_pictures`.
        log: collects the pictures that are left out, and why.

    Returns: the fields; None if no picture is left of one or more.
    """
    left, lost = [], []
    for image in fields["images"]:
        why = fetched.why_not(image)
        if why is None:
            left.append(fetched.files.get(image, image) if isinstance(image, str) else image)
        else:
            named = image if isinstance(image, str) else "embedded picture"
            kind = "unreadable_images" if id(image) in fetched.unreadable else "missing_images"
            lost.append((kind, f"{place}: {named}: {why}"))
    if lost and not left:
        log.add("broken_rows", lost[0][1])
        return None
    for kind, example in dict.fromkeys(lost):
        log.add(kind, example)
    return fields | {"images": tuple(left)}


class _Gallery:
    """Products by id, and the queries of rows."""

    def __init__(self, log: IssueLog) -> None:
        self.log = log
        self.products: dict[str, ProductRow] = {}
        self._queries: dict[str, QueryRow] = {}
        self._rows: dict[str, list[Any]] = {}
        self._conflicts: set[tuple[str, str]] = set()

    def add(self, triplet: _Triplet) -> None:
        """Add the products and queries of a row."""
        content = (triplet.query.get("title", ""), triplet.query["images"], triplet.query.get("core_box"))
        answers = (triplet.positive[0], triplet.negative[0] if triplet.negative else None)
        name = triplet.query_name or triplet.name
        before = self._rows.setdefault(name, [])
        if (content, answers) in before:
            self.log.add("repeated_rows", f"row {triplet.index} ({name!r})")
            return
        same_query = bool(triplet.query_name) and any(other == content for other, _ in before)
        if before and not same_query:
            self.log.add("shared_row_ids", f"row {triplet.index} ({name!r})")
            name = f"{name}#{triplet.index}"
        before.append((content, answers))
        for product in filter(None, (triplet.positive, triplet.negative)):
            self._add_product(triplet.index, *product)
        self._add_queries(name, content, answers)

    def queries(self) -> list[QueryRow]:
        """Return all queries; an answer of a query is never one of its negatives."""
        return [
            replace(query, negatives=tuple(name for name in query.negatives if name not in query.positives))
            for query in self._queries.values()
        ]

    def _add_product(self, index: int, name: str, fields: dict[str, Any]) -> None:
        new = ProductRow(product_id=name, **fields)
        old = self.products.get(name)
        if old is None:
            self.products[name] = new
            return
        filled = {}
        for part in _FILLED:
            before, now = getattr(old, part), getattr(new, part)
            if not before and now:
                filled[part] = now
            elif before and now and before != now and (name, part) not in self._conflicts:
                self._conflicts.add((name, part))
                self.log.add("conflicting_products", f"row {index}, product {name!r}: another {part}")
        self.products[name] = replace(old, **filled) if filled else old

    def _add_queries(self, name: str, content: tuple[Any, ...], answers: tuple[str, str | None]) -> None:
        text, images, box = content
        positives, negatives = (answers[0],), tuple(filter(None, answers[1:]))
        for form, needs_text, needs_image in _FORMS:
            if (needs_text and not text) or (needs_image and not images):
                continue
            query_id = f"{name}-{form}"
            if (old := self._queries.get(query_id)) is not None:
                positives_now = tuple(dict.fromkeys((*old.positives, *positives)))
                negatives_now = tuple(dict.fromkeys((*old.negatives, *negatives)))
                self._queries[query_id] = replace(old, positives=positives_now, negatives=negatives_now)
                continue
            self._queries[query_id] = QueryRow(
                query_id,
                form,
                text if needs_text else "",
                images[0] if needs_image else None,
                box if needs_image else None,
                positives,
                negatives=negatives,
            )
