"""Find the columns of a triplet table that hold the query, the purchased product and the hard negative, by their names.

Public tables of triplets have no common column names (MBE: `doc_title`, `doc_image`, `doc_cate1_name` …; the names for
query and negative are unpublished). The chosen columns are always printed, and the user can replace each choice.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from product_data.categories import CategoryReader
from product_data.mbe_cells import parse_any_attributes, parse_any_box
from product_data.reading import ReadingOptions
from product_data.table_files import is_absent, is_word_for_nothing, parse_query_text, parse_text
from product_data.text_cells import lone_surrogate, mended

__all__ = ["ColumnError", "RowColumns", "content_id", "find_columns", "parse_any_attributes", "product_fields"]

PARTS = ("query", "positive", "negative")
_ATTRIBUTES = ("attributes", "attributes_image", "attributes_text")
FIELDS = ("id", "title", "description", "image", "box", "category", *_ATTRIBUTES, "group")
ROW_ID = "row.id"  # an id of neither query nor product; it identifies the row in messages
_QUERY_FIELDS = ("id", "title", "image", "box")
_MANY = ("image", "category")  # fields that several columns may hold, in their order
# Words of a column's name → part; the first part with a word wins: "neg_doc_title" is the negative's.
_PART_WORDS = (
    ("negative", {"neg", "negs", "negative", "negatives", "hardneg", "hn"}),
    ("query", {"query", "q", "qry", "search", "anchor"}),
    ("positive", {"doc", "pos", "positive", "positives", "item", "product", "target", "answer", "goods", "candidate"}),
)
# Chinese words in column names → the words above and below.
_CHINESE = {
    "负例": "negative", "负样本": "negative", "查询": "query", "搜索": "query", "搜索词": "query title", "查询词": "query title",
    "商品": "item", "正例": "positive", "正样本": "positive", "标题": "title", "名称": "title", "图片": "image",
    "主图": "image", "图像": "image", "类目": "category", "分类": "category", "行业": "industry", "属性": "attributes",
    "描述": "description", "详情": "description", "主体框": "bbox", "编号": "id", "图片属性": "image attributes",
    "文本属性": "text attributes",
}  # fmt: skip
_WORD = re.compile(
    "|".join((*sorted(_CHINESE, key=len, reverse=True), r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+|[\u4e00-\u9fff]"))
)
_CHINESE_NUMBERS = {sign: number for number, sign in enumerate("一二三四五六", start=1)}
# Words → field; the first field with a word wins: "cate1_name" is a category.
_FIELD_WORDS = (
    ("box", {"bbox", "bboxes", "box"}),
    ("image", {"image", "images", "img", "imgs", "pic", "pics", "picture", "pictures", "photo", "photos"}),
    ("category", {"category", "categories", "cate", "cat", "industry"}),
    ("attributes", {"attributes", "attribute", "attrs", "attr", "properties", "props"}),
    ("description", {"description", "desc", "detail", "details"}),
    ("title", {"title", "name", "text", "keyword", "keywords", "caption"}),
    ("group", {"group", "spu", "variant"}),
)
# Words that may accompany "image" in the name of a picture column; with any other word the contents are unclear.
_OF_PICTURES = frozenset(
    (
        "url",
        "urls",
        "uri",
        "link",
        "links",
        "path",
        "paths",
        "src",
        "file",
        "files",
        "main",
        "cover",
        "raw",
        "bytes",
        "base",
        "hard",
    )
)
_BESIDE = {"image": _OF_PICTURES, "box": frozenset(("core", "xyxy", "main", "image", "img", "hard", "b", "d"))}


class ColumnError(ValueError):
    """Raised for columns that cannot be assigned or that contain no training pair."""

    exit_status = 2


@dataclass(frozen=True)
class RowColumns:
    """The role of each column.

    Args:
        taken: role ("query.title", "positive.image", …) → its columns, in order.
        unread: the columns without a role.
        unclear: those of the unread columns whose name contains a word for a picture or box, and other words as well.
    """

    taken: dict[str, tuple[str, ...]]
    unread: tuple[str, ...] = ()
    unclear: tuple[str, ...] = ()

    def has(self, part: str) -> bool:
        """Return whether a part has a text or pictures."""
        return any(f"{part}.{name}" in self.taken for name in ("title", "image"))

    def __str__(self) -> str:
        lines = [f"{role} ← {', '.join(columns)}" for role, columns in self.taken.items()]
        if not self.has("query"):
            lines.append("no column of queries: queries are derived from the products")
        if not self.has("negative"):
            lines.append("no column of hard negatives: negatives come from the batch and the queue")
        if plain := [name for name in self.unread if name not in self.unclear]:
            lines.append(f"not read: {', '.join(plain)}")
        if self.unclear:
            lines.append(f"unclear, not read unless `columns` lists them: {', '.join(self.unclear)}")
        return "\n  ".join(lines)


def find_columns(names: Iterable[str], given: Mapping[str, Any] | None = None) -> RowColumns:
    """Find the role of each column.

    A name is split into words at case changes, digits, "_", "-", "." and spaces. One word is the part (query,
    positive or negative; default: positive), one the field (title, image, …; default: title, if the name has a part).
    A word for pictures with a word for attributes means the attributes that the picture shows ("doc_image_attributes").
    A column holds pictures only if every word of its name can describe a picture ("query_image_url"): "image_width" is
    unclear and not read.

    Args:
        names: all columns; those inside a struct as "struct.column".
        given: roles such as "query.title" → a column, a list of columns, or None for no column; they replace the found
            ones.

    Raises:
        ColumnError: an unknown role or column, two columns for one role, or neither a text nor a picture of the
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
                f"columns: found {taken[role][0]!r} and {name!r} for {role}; expected columns: {{{role}: one of them}}"
            )
        taken[role] = (*taken.get(role, ()), name)
    taken |= {role: columns for role, columns in chosen.items() if columns}
    used = {column for columns in taken.values() for column in columns}
    unread = tuple(name for name in names if name not in used)
    unclear = tuple(name for name in unread if _is_unclear(name))
    order = [f"{part}.{name}" for part in ("row", *PARTS) for name in FIELDS]
    found = RowColumns({role: _in_order(role, taken[role]) for role in order if role in taken}, unread, unclear)
    if not found.has("positive"):
        raise ColumnError(
            f"columns: the product has neither a title nor an image in {', '.join(names) or 'no columns'}; "
            "expected columns: {positive.title: NAME, positive.image: NAME, query.title: NAME, …}"
        )
    return found


def _as_columns(role: str, columns: Any, names: Sequence[str], roles: set[str]) -> tuple[str, ...]:
    if role not in roles:
        raise ColumnError(f"columns: found {role!r}; expected one of {', '.join(sorted(roles))}")
    listed = [] if columns is None else [columns] if isinstance(columns, str) else list(columns)
    for column in listed:
        if column not in names:
            raise ColumnError(f"columns: {role}: found no column {column!r}; expected one of {', '.join(names)}")
    return tuple(listed)


def _words_of(name: str) -> list[str]:
    return [part for word in _WORD.findall(name) for part in _CHINESE.get(word, word.lower()).split()]


def names_a_part(name: str) -> bool:
    """Return whether a name has a part but no field; then a mapping in its cells holds the fields ("neg")."""
    words = _words_of(name)
    return "id" not in words and _field_of(words) is None and any(known.intersection(words) for _, known in _PART_WORDS)


def _role_of(name: str) -> str | None:
    words = _words_of(name)
    part = next((part for part, known in _PART_WORDS if known.intersection(words)), None)
    field = _field_of(words)
    if "id" in words:
        return None if field is not None else ROW_ID if part is None else f"{part}.id"  # image_id names no picture
    if (part is None and field is None) or (part == "query" and field not in (None, *_QUERY_FIELDS)):
        return None
    if field in _BESIDE and not _only_names(words, field):
        return None
    if field is None and not set(words) <= {word for _, known in _PART_WORDS for word in known} | {"hard"}:
        return None  # "query_time" does not hold queries
    return f"{part or 'positive'}.{field or 'title'}"


def _field_of(words: Sequence[str]) -> str | None:
    fields = [field for field, known in _FIELD_WORDS if known.intersection(words)]
    if "attributes" in fields:
        source = next((field for field in ("image", "title") if field in fields), "")
        return {"image": "attributes_image", "title": "attributes_text"}.get(source, "attributes")
    return fields[0] if fields else None


def _only_names(words: Sequence[str], field: str) -> bool:
    """Return whether the words of a name mean only a part and a field of pictures."""
    known = {word for _, words_of_part in _PART_WORDS for word in words_of_part} | dict(_FIELD_WORDS)[field]
    return all(word.isdigit() or word in known or word in _BESIDE[field] for word in words)


def _is_unclear(name: str) -> bool:
    words = _words_of(name)
    return "id" not in words and (field := _field_of(words)) in _BESIDE and not _only_names(words, str(field))


def _in_order(role: str, columns: tuple[str, ...]) -> tuple[str, ...]:
    """Sort the columns of category levels by their number, after an industry; those of pictures by their number."""

    def key(name: str) -> tuple[bool, list[int]]:
        return "industry" not in _words_of(name), _numbers_in(name)

    return tuple(sorted(columns, key=key)) if role.split(".")[1] in _MANY else columns


def _numbers_in(name: str) -> list[int]:
    return [_CHINESE_NUMBERS.get(number) or int(number) for number in re.findall(r"\d+|[一二三四五六]", name)]


def level_names(columns: RowColumns, part: str = "positive") -> tuple[str, ...]:
    """Return the names of the category levels, root first: "industry", "level_1", … according to their columns.

    Empty if one column holds the whole path.
    """
    taken = columns.taken.get(f"{part}.category", ())
    if len(taken) < 2:
        return ()
    names = []
    for place, column in enumerate(taken, start=1):
        numbers = _numbers_in(column)
        names.append("industry" if "industry" in _words_of(column) else f"level_{numbers[0] if numbers else place}")
    return (
        tuple(names) if len(set(names)) == len(names) else tuple(f"level_{place}" for place in range(1, len(taken) + 1))
    )


def product_fields(
    row: Mapping[str, Any], columns: RowColumns, part: str, reading: ReadingOptions | None = None
) -> dict[str, Any]:
    """Return a part of a row as the fields of a `ProductRow`, with pictures as the row holds them.

    Args:
        row: the cells of the row.
        columns: the roles of its columns.
        part: "query", "positive" or "negative".
        reading: options for reading cells. Default: `ReadingOptions()`.

    Raises:
        ValueError: a cell that cannot be read, with its column.
    """
    reading = reading or ReadingOptions()
    for role, names in columns.taken.items():
        if role.startswith(f"{part}."):
            _refuse_invalid_unicode(row, names)
    fields: dict[str, Any] = {}
    pictures = [cell_of(row, column) for column in columns.taken.get(f"{part}.image", ())]
    fields["images"] = tuple(image for cell in pictures for image in (cell if isinstance(cell, list) else [cell]))
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
    return fields | _attributes_and_box(row, columns, part, reading)


def _attributes_and_box(
    row: Mapping[str, Any], columns: RowColumns, part: str, reading: ReadingOptions
) -> dict[str, Any]:
    """Return a part's `attributes`, `attributes_image`, `attributes_text` and `core_box`, as far as columns exist."""
    fields: dict[str, Any] = {}
    for name in _ATTRIBUTES:
        for column in columns.taken.get(f"{part}.{name}", ()):
            fields[name] = _parsed(lambda cell: parse_any_attributes(cell, reading.clean), row, column, {})
    for column in columns.taken.get(f"{part}.box", ()):
        if (box := _parsed(parse_any_box, row, column, None)) is not None:
            fields["core_box"] = box
    return fields


def content_id(fields: Mapping[str, Any]) -> str:
    """Return an id for a product without one: a digest of its title and pictures.

    Args:
        fields: "title", and "images": a list of bytes, paths, URLs or PIL images.
    """
    digest = hashlib.blake2b(fields.get("title", "").encode(), digest_size=8)
    for image in fields["images"]:
        digest.update(
            image.tobytes() if isinstance(image, Image.Image) else image if isinstance(image, bytes) else image.encode()
        )
    return digest.hexdigest()


def _refuse_invalid_unicode(row: Mapping[str, Any], columns: Sequence[str]) -> None:
    for column in columns:
        if half := lone_surrogate(cell_of(row, column)):
            raise ValueError(f"column {mended(column)!r}: found a lone surrogate in {half!r}; expected valid Unicode")


def cell_of(row: Mapping[str, Any], column: str) -> Any:
    """Return a cell; "struct.column" means a column inside a struct."""
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
