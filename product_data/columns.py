"""Which columns of a triplet table hold the query, the purchased product and the hard negative, found by pattern.

Public tables of triplets name their columns as they like (MBE: `doc_title`, `doc_image`, `doc_cate1_name` …, the query's and
the negative's names unpublished). What was taken for what is always printed, and any choice can be replaced.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from product_data.categories import CategoryReader
from product_data.reading import ReadingOptions
from product_data.table_files import is_absent, is_word_for_nothing, parse_attributes, parse_query_text, parse_text
from product_data.text_cells import lone_surrogate, mended

PARTS = ("query", "positive", "negative")
FIELDS = ("id", "title", "description", "image", "category", "attributes", "group")
ROW_ID = "row.id"  # an id that does not say whose it is names the row, for messages
_QUERY_FIELDS = ("id", "title", "image")
_MANY = ("image", "category")  # fields that several columns may hold, in their order
# Words of a column's name → part; the first part with a word wins, so that "neg_doc_title" is the negative's.
_PART_WORDS = (
    ("negative", {"neg", "negs", "negative", "negatives", "hardneg", "hn"}),
    ("query", {"query", "q", "qry", "search", "anchor"}),
    ("positive", {"doc", "pos", "positive", "positives", "item", "product", "target", "answer", "goods", "candidate"}),
)
# Words → field; the first field with a word wins, so that "cate1_name" is a category.
_FIELD_WORDS = (
    ("image", {"image", "images", "img", "imgs", "pic", "pics", "picture", "pictures", "photo", "photos"}),
    ("category", {"category", "categories", "cate", "cat", "industry"}),
    ("attributes", {"attributes", "attribute", "attrs", "attr", "properties", "props"}),
    ("description", {"description", "desc", "detail", "details"}),
    ("title", {"title", "name", "text", "keyword", "keywords", "caption"}),
    ("group", {"group", "spu", "variant"}),
)


class ColumnError(ValueError):
    """Columns from which no training pair can be made."""

    exit_status = 2


@dataclass(frozen=True)
class RowColumns:
    """What each column is taken for.

    Args:
        taken: "query.title", "positive.image", … → the columns, in order.
        unread: the columns that nothing is read from.
    """

    taken: dict[str, tuple[str, ...]]
    unread: tuple[str, ...] = ()

    def has(self, part: str) -> bool:
        """Return whether there are words or pictures of a part."""
        return any(f"{part}.{name}" in self.taken for name in ("title", "image"))

    def __str__(self) -> str:
        lines = [f"{role} ← {', '.join(columns)}" for role, columns in self.taken.items()]
        if not self.has("query"):
            lines.append("no query column: queries are derived from the products")
        if not self.has("negative"):
            lines.append("no column of hard negatives: negatives come from the batch and the queue")
        if self.unread:
            lines.append(f"not read: {', '.join(self.unread)}")
        return "\n  ".join(lines)


def find_columns(names: Iterable[str], given: Mapping[str, Any] | None = None) -> RowColumns:
    """Find what each column is.

    A name is cut into words at case changes, digits, "_", "-", "." and spaces; one word says the part (query, positive,
    negative; none: the positive), one the field (title, image, …; none: the title, for a column that says its part).

    Args:
        names: all columns; those inside a struct as "struct.column".
        given: roles such as "query.title" → a column, a list of columns, or None for none, which replace what is found.

    Raises:
        ColumnError: a role or column that does not exist, one role found twice, or no words and no picture of the
            positive.
    """
    names = list(names)
    taken: dict[str, tuple[str, ...]] = {}
    roles = {ROW_ID} | {f"{part}.{name}" for part in PARTS for name in (_QUERY_FIELDS if part == "query" else FIELDS)}
    chosen = {role: _as_columns(role, columns, names, roles) for role, columns in (given or {}).items()}
    assigned = {column for columns in chosen.values() for column in columns}
    for name in names:
        role = _role_of(name)
        if role is None or role in chosen or name in assigned:
            continue
        if role in taken and role.split(".")[1] not in _MANY:
            raise ColumnError(
                f"columns: both {taken[role][0]!r} and {name!r} look like {role}; expected columns: {{{role}: one of them}}"
            )
        taken[role] = (*taken.get(role, ()), name)
    taken |= {role: columns for role, columns in chosen.items() if columns}
    found = RowColumns(
        {role: _in_order(role, taken[role]) for role in sorted(taken, key=_rank)},
        tuple(name for name in names if name not in {column for columns in taken.values() for column in columns}),
    )
    if not found.has("positive"):
        raise ColumnError(
            f"columns: found no title and no image of the product among {', '.join(names) or 'no columns'}; "
            "expected columns: {positive.title: NAME, positive.image: NAME, query.title: NAME, …}"
        )
    return found


def _rank(role: str) -> tuple[int, int]:
    part, name = role.split(".")
    return ("row", *PARTS).index(part), FIELDS.index(name)


def _as_columns(role: str, columns: Any, names: Sequence[str], roles: set[str]) -> tuple[str, ...]:
    if role not in roles:
        raise ColumnError(f"columns: found {role!r}; expected {', '.join(sorted(roles))}")
    listed = [] if columns is None else [columns] if isinstance(columns, str) else list(columns)
    for column in listed:
        if column not in names:
            raise ColumnError(f"columns: {role}: found no column {column!r}; the columns are: {', '.join(names)}")
    return tuple(listed)


def _role_of(name: str) -> str | None:
    words = [word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+", name)]
    part = next((part for part, known in _PART_WORDS if known.intersection(words)), None)
    field = next((field for field, known in _FIELD_WORDS if known.intersection(words)), None)
    if "id" in words:
        return None if field is not None else ROW_ID if part is None else f"{part}.id"  # image_id names no picture
    if (part is None and field is None) or (part == "query" and field not in (None, *_QUERY_FIELDS)):
        return None
    if field is None and not set(words) <= {word for _, known in _PART_WORDS for word in known} | {"hard"}:
        return None  # "query_time" is no query
    return f"{part or 'positive'}.{field or 'title'}"


def _in_order(role: str, columns: tuple[str, ...]) -> tuple[str, ...]:
    """Category levels by their number, an industry above them; pictures by their number."""

    def key(name: str) -> tuple[bool, list[int]]:
        return "industry" not in name.lower(), [int(number) for number in re.findall(r"\d+", name)]

    return tuple(sorted(columns, key=key)) if role.split(".")[1] in _MANY else columns


def product_fields(
    row: Mapping[str, Any], columns: RowColumns, part: str, reading: ReadingOptions | None = None
) -> dict[str, Any]:
    """Return a part of a row as the fields of a `ProductRow`, pictures as the row holds them.

    Args:
        row: its cells.
        columns: what they are taken for.
        part: "query", "positive" or "negative".
        reading: how cells are read. Default: ReadingOptions's own.

    Raises:
        ValueError: a cell that cannot be read, with its column.
    """
    reading = reading or ReadingOptions()
    for role, names in columns.taken.items():
        if role.startswith(f"{part}."):
            _refuse_invalid_unicode(row, names)
    fields: dict[str, Any] = {}
    pictures = [cell_of(row, column) for column in columns.taken.get(f"{part}.image", ())]
    fields["images"] = tuple(item for cell in pictures for item in (cell if isinstance(cell, list) else [cell]))
    for name in ("title", "description"):
        if text := reading.clean(_first_text(row, columns.taken.get(f"{part}.{name}", ()))):
            fields[name] = text
    if group := _first_text(row, columns.taken.get(f"{part}.group", ())):
        fields["group"] = group
    if part == "query" and not fields.get("title") and not any(image is not None for image in fields["images"]):
        words = filter(is_word_for_nothing, (cell_of(row, column) for column in columns.taken.get("query.title", ())))
        if word := next(words, None):
            fields["title"] = parse_query_text(word, has_picture=False)
    reader = CategoryReader(separator=reading.category_separator)
    category = [
        level
        for column in columns.taken.get(f"{part}.category", ())
        for level in _parsed(lambda cell: reader.read(reading.clean_category(cell)).path, row, column, ())
    ]
    fields["category"] = tuple(category)
    for column in columns.taken.get(f"{part}.attributes", ()):
        fields["attributes"] = _parsed(lambda cell: parse_any_attributes(cell, reading.clean), row, column, {})
    return fields


def _refuse_invalid_unicode(row: Mapping[str, Any], columns: Sequence[str]) -> None:
    for column in columns:
        if half := lone_surrogate(cell_of(row, column)):
            raise ValueError(
                f"column {mended(column)!r}: found half of a sign (a lone surrogate) in {half!r}; expected Unicode"
            )


def cell_of(row: Mapping[str, Any], column: str) -> Any:
    """Return a cell; "struct.column" is looked for inside the struct."""
    if column in row:
        return row[column]
    outer, _, inner = column.partition(".")
    return (row.get(outer) or {}).get(inner)


def _first_text(row: Mapping[str, Any], columns: Sequence[str]) -> str:
    return next((text for column in columns if (text := _parsed(parse_text, row, column, ""))), "")


def _parsed(parse: Any, row: Mapping[str, Any], column: str, empty: Any) -> Any:
    value = cell_of(row, column)
    try:
        return empty if is_absent(value) else parse(value)
    except (ValueError, TypeError) as error:
        raise ValueError(f"column {column!r}: {error}") from error


def parse_any_attributes(value: Any, clean: Callable[[str], str] = str) -> dict[str, tuple[str, ...]]:
    """Attributes as MBE writes them ("key:value!!!value,,key:value"), or as `parse_attributes` reads them."""
    if not isinstance(value, str) or not ("!!!" in value or ",," in value):
        return parse_attributes(value, clean)
    pairs = []
    for pair in filter(None, (pair.strip() for pair in value.split(",,"))):
        key, colon, values = pair.partition(":")
        if not colon:
            raise ValueError(f"{pair[:40]!r} has no colon; expected 'key:value,,key:value!!!value'")
        pairs.append({"key": key, "value": [part for part in values.split("!!!") if part.strip()]})
    return parse_attributes(pairs, clean)
