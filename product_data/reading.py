"""Turn the rows of files into products and queries; issues of cells are noted, and no product or query is left out."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from product_data.categories import CategoryReader, is_documented
from product_data.checking import Ids, IssueLog
from product_data.chinese import require_converter, simplified
from product_data.column_names import likely_columns
from product_data.csv_files import CsvRows
from product_data.errors import OptionError
from product_data.interactions import (
    GradedQuery,
    Interaction,
    InteractionOptions,
    graded_queries,
    parse_count,
    parse_time,
    query_key,
)
from product_data.rows import EVERY_SPLIT, QUERY_TYPES, ProductRow, QueryRow
from product_data.table_files import (
    ImageSource,
    TableError,
    columns_of,
    is_absent,
    is_word_for_nothing,
    listed,
    parse_attributes,
    parse_box,
    parse_flag,
    parse_images,
    parse_query_text,
    parse_text,
    parse_texts,
    parse_weights,
    read_rows,
)
from product_data.text_cells import lone_surrogate, mended, strip_html

_PRODUCT_COLUMNS = (
    "product_id",
    "title",
    "description",
    "category_path",
    "attributes",
    "images",
    "split",
    "group",
    "core_box",
    "box_by",
    "attributes_image",
    "attributes_text",
    "source_row",
    "prepared",
)
FEED_COLUMNS = ("price", "sale_price", "currency", "availability", "brand", "url")
"""Columns of a products table that only `product_data.feeds` reads."""
_QUERY_COLUMNS = (
    "query_id",
    "type",
    "text",
    "image_id",
    "image",
    "bbox",
    "box_by",
    "positives",
    "positive_weights",
    "negatives",
    "split",
    "kind",
    "derived",
    "reference_product_id",
    "positive_categories",
    "source_row",
    "prepared",
)
_IMAGE_COLUMNS = ("image_id", "image")
_INTERACTION_COLUMNS = ("query", "query_image", "product_id", "action", "count", "time", "split")
_IMPRESSION_COLUMNS = ("user_id", "product_id", "time", "clicked", "probability")
_WRITTEN_COLUMNS = (
    "product_id",
    "attributes_image",
    "attributes_text",
    "written_image",
    "written_text",
    "problem_image",
    "problem_text",
    "attempts_image",
    "attempts_text",
    "model",
)
# Other names that files use. An alias counts only if the table has no column of the real name.
_PRODUCT_ALIASES = {
    "id": "product_id",
    "image": "images",
    "category": "category_path",
    "name": "title",
    "bbox": "core_box",
}
_QUERY_ALIASES = {"id": "query_id", "core_box": "bbox", "positive": "positives"}
_INTERACTION_ALIASES = {"text": "query", "image": "query_image", "event": "action", "timestamp": "time"}
_IMPRESSION_ALIASES = {
    **dict.fromkeys(("user", "visitor_id", "customer_id"), "user_id"),
    **dict.fromkeys(("product", "item_id", "item"), "product_id"),
    **dict.fromkeys(("timestamp", "datetime", "date"), "time"),
    **dict.fromkeys(("click", "is_click", "label"), "clicked"),
}


READING_KEYS = ("strip_html", "category_separator", "simplify_chinese")


@dataclass(frozen=True)
class ReadingOptions:
    """Options for reading cells.

    Args:
        strip_html (`bool`): remove HTML from titles, descriptions, categories, attributes and texts of queries. Default
            `False`: HTML stays, and the report counts it.
        category_separator (`str` or `None`): separator of category levels, such as "/". Default `None`: it is detected,
            see `product_data.categories.CategoryReader`.
        interactions: options that turn a log into graded answers. Default: `InteractionOptions()`.
        simplify_chinese (`bool`): convert the same texts to simplified Chinese characters; needs OpenCC
            (`moon3[chinese]`). Default `False`.

    Raises:
        ValueError: an empty separator, or simplify_chinese without OpenCC.
    """

    strip_html: bool = False
    category_separator: str | None = None
    interactions: InteractionOptions = field(default_factory=InteractionOptions)
    simplify_chinese: bool = False

    def __post_init__(self) -> None:
        for name in ("strip_html", "simplify_chinese"):
            if not isinstance(getattr(self, name), bool):
                raise OptionError(f"{name}: found {getattr(self, name)!r}; expected true or false")
        if self.simplify_chinese:
            require_converter()
        separator = self.category_separator
        if separator is not None and not (isinstance(separator, str) and separator):
            raise OptionError(f"category_separator: found {separator!r}; expected a text such as '/' or ' - '")

    @classmethod
    def of(cls, entry: Mapping[str, Any], interactions: InteractionOptions | None = None) -> ReadingOptions:
        """Return the options of an entry of `data` in a recipe; its other keys are not read.

        Raises:
            ValueError: a value that cannot be used.
        """
        given = {key: entry[key] for key in READING_KEYS if key in entry}
        return cls(**given, interactions=interactions or InteractionOptions())

    def as_entry(self) -> dict[str, Any]:
        """Return these options as keys of an entry of `data` in a recipe."""
        options = {
            "strip_html": self.strip_html or None,
            "category_separator": self.category_separator,
            "simplify_chinese": self.simplify_chinese or None,
        }
        return {key: value for key, value in options.items() if value is not None}

    def clean(self, text: str) -> str:
        """Return a text as these options read it."""
        text = strip_html(text) if self.strip_html else text
        return simplified(text) if self.simplify_chinese else text

    def clean_category(self, cell: Any) -> Any:
        """Return a category cell as these options read it, with its separators."""
        if not (self.strip_html or self.simplify_chinese):
            return cell
        if isinstance(cell, list | tuple | np.ndarray):
            return [self.clean_category(part) for part in cell]
        return self.clean(cell) if isinstance(cell, str) else cell


class Table:
    """The rows of one table with access by the known column names; issues of cells are noted in `log`."""

    def __init__(self, part: str, source: Any, log: IssueLog, options: ReadingOptions) -> None:
        columns, aliases = {
            "products": (_PRODUCT_COLUMNS, _PRODUCT_ALIASES),
            "queries": (_QUERY_COLUMNS, _QUERY_ALIASES),
            "query_images": (_IMAGE_COLUMNS, {"id": "image_id"}),
            "interactions": (_INTERACTION_COLUMNS, _INTERACTION_ALIASES),
            "written_attributes": (_WRITTEN_COLUMNS, {}),
            "impressions": (_IMPRESSION_COLUMNS, _IMPRESSION_ALIASES),
        }[part]
        self.part, self.log, self.options = part, log, options
        self.label = str(source) if isinstance(source, str | Path) else part
        self.folder = Path(source).parent if isinstance(source, str | Path) else Path()
        self.rows = read_rows(Path(source)) if isinstance(source, str | Path) else [dict(row) for row in source]
        if isinstance(self.rows, CsvRows):
            for cell in self.rows.swallowed:
                log.add("swallowed_rows", f"{self.label}, {cell}")
        self._mend_unicode()
        present = columns_of(self.rows)
        self.names = {column: column for column in present if column in columns}
        for column in present:
            if column in columns:
                continue
            if column in aliases and aliases[column] not in self.names:
                self.names[aliases[column]] = column
            else:
                near = difflib.get_close_matches(column, [*columns, *aliases], n=1)
                about = f" (nearest known: {near[0]!r})" if near else ""
                if part == "products" and column in FEED_COLUMNS:
                    about = " (moon3 embed reads it)"
                log.add("unknown_columns", f"{part}: {column!r}{about}")

    def _mend_unicode(self) -> None:
        """Note and replace lone surrogates in cells and column names, which tokenizers and files refuse."""
        names = {column for column in columns_of(self.rows) if lone_surrogate(column)}
        for index, row in enumerate(self.rows):
            for column in [column for column, cell in row.items() if lone_surrogate(cell) or column in names]:
                half = lone_surrogate(column) or lone_surrogate(row[column])
                self.log.add("invalid_unicode", f"{self.label}, row {index}, column {mended(column)!r}: {half!r}")
                self.rows[index] = {mended(name): mended(cell) for name, cell in self.rows[index].items()}

    def require(self, *columns: str) -> None:
        """Check that the table has one of `columns`; an empty table needs none.

        Raises:
            TableError: none of them; the message lists similar columns and all columns of the table.
        """
        if self.rows and not any(column in self.names for column in columns):
            present = columns_of(self.rows)
            unread = [column for column in present if column not in self.names.values()]
            likely = likely_columns(columns, unread, self.rows)
            hint = f"; {' or '.join(likely)} could be it: rename it" if likely else ""
            wanted = " or ".join(map(repr, columns))
            raise TableError(f"{self.label}: found no column {wanted}{hint}; the columns are: {listed(present)}")

    def ids(self, column: str) -> list[str]:
        """Return the ids in a column.

        Raises:
            TableError: an id that is neither text nor a number.
        """
        ids = []
        for index, row in enumerate(self.rows):
            try:
                ids.append(parse_text(row.get(self.names[column])))
            except ValueError as error:
                raise TableError(f"{self.label}, row {index}, column {self.names[column]!r}: {error}") from error
        return ids

    def cell(
        self,
        index: int,
        name: str,
        column: str,
        parse: Callable[[Any], Any],
        empty: Any,
        *,
        kind: str = "malformed_cells",
    ) -> Any:
        """Return a parsed cell; `empty` if it is absent or malformed, which is noted."""
        value = self.rows[index].get(self.names.get(column, ""))
        try:
            return empty if is_absent(value) else parse(value)
        except (ValueError, TypeError) as error:
            self.log.add(kind, f"{self.part} {name!r}, column {column!r}: {error}")
            return empty

    def shown_attributes(self, index: int, name: str, column: str) -> dict[str, tuple[str, ...]] | None:
        """Return the attributes that a picture or text shows: {} for an empty list or dict, None for an absent cell."""
        value = self.rows[index].get(self.names.get(column, ""))
        if isinstance(value, list | tuple | dict | np.ndarray) and len(value) == 0:
            return {}
        return self.attributes(index, name, column, None)

    def text(self, index: int, name: str, column: str) -> str:
        """Return a text that a person wrote, cleaned according to the options."""
        return self.cell(index, name, column, lambda value: self.options.clean(parse_text(value)), "")

    def query_text(self, index: int, name: str, column: str, has_picture: bool) -> str:
        """Return the text of a query; "nan", "null" and "None" are read as words and noted."""
        value = self.rows[index].get(self.names.get(column, ""))
        if not is_word_for_nothing(value):
            return self.text(index, name, column)
        text = parse_query_text(value, has_picture=has_picture)
        if text:
            self.log.add("words_for_nothing", f"{self.part} {name!r}: {text!r}")
        return text

    def attributes(self, index: int, name: str, column: str, empty: Any) -> Any:
        """Return parsed attributes, cleaned according to the options."""
        return self.cell(index, name, column, lambda value: parse_attributes(value, self.options.clean), empty)

    def categories(self, column: str) -> CategoryReader:
        """Return the reader for a column of category paths."""
        name = self.names.get(column, "")
        cells = [self.options.clean_category(row.get(name)) for row in self.rows] if name else []
        return CategoryReader(cells, self.options.category_separator)

    def category(self, index: int, name: str, column: str, reader: CategoryReader) -> tuple[str, ...]:
        """Return a category path; detected separators and further paths of the cell are noted."""
        value = self.rows[index].get(self.names.get(column, ""))
        cell = self.cell(index, name, column, lambda value: reader.read(self.options.clean_category(value)), None)
        if cell is None:
            return ()
        place = f"{name!r}: {value!r}"
        if not is_documented(cell.separator) and self.options.category_separator is None:
            self.log.add("split_categories", f"{place} → {' > '.join(cell.path)}")
        if cell.paths:
            self.log.add("several_categories", f"{place} → {' > '.join(cell.path)}")
        if cell.undecided:
            self.log.add("undecided_categories", place)
        return cell.path


def read_products(table: Table, root: str | Path | None) -> list[ProductRow]:
    table.require("product_id")
    table.require("title", "description", "images")
    folder = Path(root) if root is not None else table.folder
    categories = table.categories("category_path")
    rows = []
    for index, product_id in enumerate(table.ids("product_id")):
        name = product_id or f"row {index}"
        if not product_id:
            table.log.add("missing_product_ids", name)
        rows.append(
            ProductRow(
                product_id=product_id,
                title=table.text(index, name, "title"),
                description=table.text(index, name, "description"),
                category=table.category(index, name, "category_path", categories),
                attributes=table.attributes(index, name, "attributes", {}),
                images=table.cell(index, name, "images", lambda value: parse_images(value, folder), ()),
                split=table.cell(index, name, "split", parse_text, EVERY_SPLIT),
                group=table.cell(index, name, "group", parse_text, None),
                core_box=table.cell(index, name, "core_box", parse_box, None),
                attributes_image=table.shown_attributes(index, name, "attributes_image"),
                attributes_text=table.shown_attributes(index, name, "attributes_text"),
            )
        )
    return rows


def with_written_attributes(products: list[ProductRow], table: Table) -> list[ProductRow]:
    """Return products with the written attributes of a table; attributes in the products table take precedence."""
    table.require("product_id")
    table.require("attributes_image", "attributes_text")
    known = Ids(row.product_id for row in products)
    written: dict[str, tuple[Any, Any]] = {}
    for index, product_id in enumerate(table.ids("product_id")):
        if product_id not in known:
            table.log.add_dangling("dangling_written_attributes", f"row {index}", product_id, known)
        elif product_id in written:
            table.log.add("duplicate_written_attributes", f"row {index} → {product_id!r}")
        else:
            written[product_id] = (
                table.shown_attributes(index, product_id, "attributes_image"),
                table.shown_attributes(index, product_id, "attributes_text"),
            )
    rows = []
    for row in products:
        image, text = written.get(row.product_id, (None, None))
        image = image if row.attributes_image is None else row.attributes_image
        text = text if row.attributes_text is None else row.attributes_text
        rows.append(replace(row, attributes_image=image, attributes_text=text))
    return rows


def read_query_images(table: Table, root: str | Path | None) -> dict[str, ImageSource]:
    table.require("image_id")
    table.require("image")
    folder = Path(root) if root is not None else table.folder
    images: dict[str, ImageSource] = {}
    for index, image_id in enumerate(table.ids("image_id")):
        pictures = table.cell(index, image_id, "image", lambda value: parse_images(value, folder), ())
        if pictures:
            images[image_id] = pictures[0]
    return images


def read_queries(table: Table, images: Mapping[str, ImageSource], root: str | Path | None) -> list[QueryRow]:
    table.require("query_id")
    table.require("positives", "positive_categories")
    table.require("text", "image", "image_id")
    folder = Path(root) if root is not None else table.folder
    rows = []
    for index, query_id in enumerate(table.ids("query_id")):
        name = query_id or f"row {index}"
        if not query_id:
            table.log.add("missing_query_ids", name)
        image = _query_image(table, index, name, images, folder)
        text = table.query_text(index, name, "text", image is not None)
        positives = tuple(dict.fromkeys(table.cell(index, name, "positives", parse_texts, ())))
        rows.append(
            QueryRow(
                query_id=query_id,
                type=_query_type(table, index, name, bool(text), image is not None),
                text=text,
                image=image,
                box=table.cell(index, name, "bbox", parse_box, None),
                positives=positives,
                split=table.cell(index, name, "split", parse_text, EVERY_SPLIT),
                kind=table.cell(index, name, "kind", parse_text, ""),
                derived=table.cell(index, name, "derived", parse_flag, False),
                reference_product_id=table.cell(index, name, "reference_product_id", parse_text, None),
                negatives=table.cell(index, name, "negatives", parse_texts, ()),
                positive_categories=table.cell(index, name, "positive_categories", parse_texts, ()),
                positive_weights=_positive_weights(table, index, name, positives),
            )
        )
    return rows


def _positive_weights(table: Table, index: int, name: str, positives: tuple[str, ...]) -> tuple[float, ...]:
    """Return the weights in order of the positives; a repeated positive gets its greatest weight."""
    weights = table.cell(index, name, "positive_weights", parse_weights, ())
    if not weights:
        return ()
    named = table.cell(index, name, "positives", parse_texts, ())
    if len(weights) != len(named):
        problem = f"{len(weights)} weights for {len(named)} positives; expected one for each, or none"
        table.log.add("malformed_cells", f"{table.part} {name!r}, column 'positive_weights': {problem}")
        return ()
    pairs = list(zip(named, weights, strict=True))
    return tuple(max(weight for name, weight in pairs if name == positive) for positive in positives)


def read_interactions(table: Table, products: list[ProductRow], root: str | Path | None) -> list[QueryRow]:
    """Return the queries of an interaction log; a query without a split gets that of its best answer."""
    table.require("product_id")
    table.require("action")
    table.require("query", "query_image")
    options = table.options.interactions
    folder = Path(root) if root is not None else table.folder
    split_of = {row.product_id: row.split for row in products}
    known = Ids(split_of)
    usable: dict[tuple[Any, ...], Interaction] = {}
    for index in range(len(table.rows)):
        row = _read_interaction(table, index, folder, options)
        if row is None:
            continue
        # Rows with different times are separate events, and so is each row without a time.
        same = (row.key, row.product_id, row.action.casefold(), index if row.time is None else row.time)
        if row.product_id not in split_of:
            table.log.add_dangling("dangling_interactions", f"row {index}", row.product_id, known)
        elif same in usable:
            table.log.add("duplicate_interactions", f"row {index} ({row.action} of {row.product_id!r})")
        else:
            usable[same] = row
    if usable and options.half_life_days is not None and all(row.time is None for row in usable.values()):
        table.log.add("no_times", f"{table.label}: half_life_days {options.half_life_days:g}")
    if not usable:
        table.log.add("no_interactions", f"{table.label}: {len(table.rows)} rows")
    queries = graded_queries(usable.values(), options.half_life_days)
    return [_logged_query(query, query.split or split_of[query.positives[0]]) for query in queries]


def _logged_query(query: GradedQuery, split: str) -> QueryRow:
    return QueryRow(
        query_id=f"interactions-{query.key}",
        type="image" if not query.text else "text" if query.image is None else "both",
        text=query.text,
        image=query.image,
        positives=query.positives,
        split=split,
        kind="interactions",
        positive_weights=query.weights,
    )


def _read_interaction(table: Table, index: int, folder: Path, options: InteractionOptions) -> Interaction | None:
    """Return a row of the log, or None if it cannot be used, which is noted."""
    name = f"row {index}"
    pictures = table.cell(index, name, "query_image", lambda value: parse_images(value, folder), ())
    image = pictures[0] if pictures else None
    text = table.query_text(index, name, "query", image is not None)
    if not text and image is None:
        table.log.add("empty_interactions", name)
        return None
    action = table.cell(index, name, "action", parse_text, "")
    weight = options.weight_of(action)
    if weight is None:
        near = difflib.get_close_matches(action.casefold(), [name.casefold() for name in options.action_weights], n=1)
        hint = f"the nearest: {near[0]!r}" if near else f"expected one of {', '.join(options.action_weights)}"
        table.log.add("unknown_actions", f"{name}: {action!r} ({hint})")
        return None
    cell = table.rows[index].get(table.names.get("count", ""))
    try:
        count = 1.0 if is_absent(cell) else parse_count(cell)
    except (ValueError, TypeError):
        table.log.add("unusable_counts", f"{name}: {cell!r}")
        return None
    image_name = table.rows[index].get(table.names.get("query_image", ""))
    return Interaction(
        key=query_key(text, image, image_name.strip() if isinstance(image_name, str) else ""),
        text=text,
        image=image,
        product_id=table.cell(index, name, "product_id", parse_text, ""),
        action=action.casefold(),
        weight=weight,
        count=count,
        time=table.cell(index, name, "time", parse_time, None, kind="unusable_times"),
        split=table.cell(index, name, "split", parse_text, ""),
    )


def _query_image(
    table: Table, index: int, name: str, images: Mapping[str, ImageSource], folder: Path
) -> ImageSource | None:
    pictures = table.cell(index, name, "image", lambda value: parse_images(value, folder), ())
    if pictures:
        return pictures[0]
    image_id = table.cell(index, name, "image_id", parse_text, "")
    if not image_id:
        return None
    # An id without a picture in query_images is read as a file name; the report lists it if that file does not exist.
    return images[image_id] if image_id in images else str(folder / image_id)


def _query_type(table: Table, index: int, name: str, has_text: bool, has_image: bool) -> str:
    actual = "both" if has_text and has_image else "image" if has_image else "text"
    declared = table.cell(index, name, "type", parse_text, actual)
    if not has_text and not has_image:
        return "text"  # counted as an empty query
    if declared not in QUERY_TYPES:
        problem = f"type {declared!r}; expected one of {', '.join(QUERY_TYPES)}"
    elif (declared != "image" and not has_text) or (declared != "text" and not has_image):
        problem = f"type {declared!r} without {'image' if has_text else 'text'}"
    else:
        return declared
    table.log.add("type_mismatches", f"{name!r}: {problem}")
    return actual
