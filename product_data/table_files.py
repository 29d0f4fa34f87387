"""Files of product data → rows of Python values; cells of any spelling → the values of `product_data.tables`.

Parquet is read with Arrow and its pictures stay encoded. JSONL and CSV are read as they stand, without guessing column
types: an id such as "007" remains text, and rows may differ in shape.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
from PIL import Image

from product_data.csv_files import CsvError, read_csv
from product_data.text_cells import has_visible_text, html_spans, lone_surrogate

SUFFIXES = (".parquet", ".jsonl", ".csv")
_ABSENT_WORDS = frozenset(("", "nan", "NaN", "None", "null", "NULL"))
_ROWS_PER_READ = 1024

ImageSource = bytes | str | Image.Image
"""An encoded picture, the path (or address) of one, or an opened one: what MoonProcessor opens."""


class TableError(ValueError):
    """A table that cannot be used: which file, which column or row, what was found, what is expected."""

    exit_status = 2


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a .parquet, .jsonl or .csv file, in file order.

    Raises:
        TableError: no such file, another suffix, or contents that are not of that kind or not UTF-8 (with the line where known).
    """
    if not path.is_file():
        raise TableError(f"{path}: no such file")
    readers = {".parquet": _read_parquet, ".jsonl": _read_jsonl, ".csv": _read_csv}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise TableError(
            f"{path}: cannot read {path.suffix or 'a file without a suffix'}; expected {', '.join(SUFFIXES)}"
        )
    try:
        return reader(path)
    except UnicodeDecodeError as error:
        raise TableError(_why_not_utf8(path, error)) from error


def _why_not_utf8(path: Path, error: UnicodeDecodeError) -> str:
    """Name the first cell whose bytes are not UTF-8, where the file is otherwise of its kind."""
    with path.open("rb") as file:
        start = file.read(2)
    if start in (b"\xff\xfe", b"\xfe\xff"):
        return f"{path}: found UTF-16; expected text saved as UTF-8"
    place = ", ".join(_first_undecodable(path))
    return (
        f"{path}{place and f', {place}'}: not UTF-8 (byte {error.object[error.start]:#04x}: {error.reason}); "
        "expected text saved as UTF-8"
    )


def _first_undecodable(path: Path) -> list[str]:
    """Row and column of the first cell that is not UTF-8; nothing where they cannot be told."""
    if path.suffix.lower() == ".parquet":
        return _first_undecodable_in_parquet(path)
    try:
        rows = (_read_jsonl if path.suffix.lower() == ".jsonl" else read_csv)(path, errors="surrogateescape")
    except (TableError, CsvError):
        return []
    for index, row in enumerate(rows):
        for column, cell in row.items():
            if lone_surrogate(column) or lone_surrogate(cell):
                return [f"row {index}", f"column {column!r}"]
    return ["line 1"]  # the names of a table without rows


def _first_undecodable_in_parquet(path: Path) -> list[str]:
    file, first = pyarrow.parquet.ParquetFile(path), 0
    for batch in file.iter_batches(_ROWS_PER_READ, columns=_text_leaves(file)):
        if place := undecodable(batch, first):
            return place
        first += batch.num_rows
    return []


def _text_leaves(file: pyarrow.parquet.ParquetFile) -> list[str]:
    """The paths of a file's texts, those inside of structs and lists too: no picture is read with them."""
    leaves = [file.schema.column(number) for number in range(len(file.schema))]
    return [leaf.path for leaf in leaves if leaf.converted_type == "UTF8" or leaf.logical_type.type == "STRING"]


def undecodable(rows: pyarrow.Table | pyarrow.RecordBatch, first: int = 0) -> list[str]:
    """Row and column of the first text that is not UTF-8, where there is one.

    Args:
        rows: Arrow's rows.
        first: the number of the first of them. Default 0.
    """
    for name in rows.schema.names:
        column = rows.column(name)
        try:
            column.validate(full=True)
        except pyarrow.ArrowInvalid:
            for place in range(rows.num_rows):
                try:
                    column[place].as_py()
                except UnicodeDecodeError:
                    return [f"row {first + place}", f"column {name!r}"]
    return []


def refuse_undecodable(path: Path) -> None:
    """Look through the texts of a parquet file, and at nothing else of it.

    Raises:
        TableError: a text that is not UTF-8, with its row and column.
    """
    if place := _first_undecodable_in_parquet(path):
        raise TableError(f"{path}, {', '.join(place)}: not UTF-8; expected text saved as UTF-8")


def _read_parquet(path: Path) -> list[dict[str, Any]]:
    try:
        file = pyarrow.parquet.ParquetFile(path)
        return [row for batch in file.iter_batches(_ROWS_PER_READ) for row in batch.to_pylist()]
    except (pyarrow.ArrowException, OSError) as error:
        raise TableError(f"{path}: not a readable parquet file ({error})") from error


def _read_jsonl(path: Path, *, errors: str = "strict") -> list[dict[str, Any]]:
    rows = []
    with path.open(encoding="utf-8-sig", errors=errors) as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise TableError(f"{path}, line {number}: not JSON ({error.msg} at column {error.colno})") from error
            if not isinstance(row, dict):
                raise TableError(f"{path}, line {number}: {type(row).__name__} found; expected one JSON object a line")
            rows.append(row)
    return rows


def _read_csv(path: Path) -> list[dict[str, Any]]:
    try:
        return read_csv(path)
    except CsvError as error:
        raise TableError(f"{path}, {error}") from error


def is_absent(value: Any) -> bool:
    """Whether a cell says that there is nothing: None, NaN, empty, or one of the words that files use for it."""
    if value is None or (isinstance(value, str) and value.strip() in _ABSENT_WORDS):
        return True
    if isinstance(value, float | np.floating):
        return math.isnan(value)
    return isinstance(value, list | tuple | dict | np.ndarray | bytes) and len(value) == 0


def parse_text(value: Any) -> str:
    """A cell as text; absent, or without a sign that can be seen → "". A whole number held as 7.0 or as a decimal becomes "7"."""
    if is_absent(value):
        return ""
    if isinstance(value, float | np.floating) and float(value).is_integer():
        return str(int(value))
    if isinstance(value, Decimal) and value.is_finite():
        return str(int(value)) if value == value.to_integral_value() else str(value)
    if isinstance(value, str | int | float | np.number):
        text = str(value).strip()
        return text if has_visible_text(text) else ""
    raise ValueError(f"{type(value).__name__} found; expected text")


def parse_query_text(value: Any, *, has_picture: bool) -> str:
    """The words of a query. "nan", "null" and "None" are searches too; beside a picture they say that there are no words."""
    return value.strip() if is_word_for_nothing(value) and not has_picture else parse_text(value)


def is_word_for_nothing(value: Any) -> bool:
    """Whether a cell holds one of the words that files use where there is nothing."""
    return isinstance(value, str) and bool(value.strip()) and value.strip() in _ABSENT_WORDS


def _as_items(value: Any, separators: tuple[str, ...]) -> list[Any]:
    if is_absent(value):
        return []
    if isinstance(value, str):
        if value.lstrip().startswith("["):
            value = _parse_json(value)
        else:
            for separator in separators[1:]:
                value = value.replace(separator, separators[0])
            value = value.split(separators[0])
    if isinstance(value, list | tuple | np.ndarray):
        return [item for item in value if not is_absent(item)]
    return [value]


def _parse_json(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{text[:40]!r} is not JSON ({error.msg})") from error


def parse_texts(value: Any, separators: tuple[str, ...] = ("|",)) -> tuple[str, ...]:
    """A list, a JSON list as text, or text parted by `separators` → texts without the absent ones."""
    return tuple(text for text in map(parse_text, _as_items(value, separators)) if text)


def parse_attributes(value: Any, clean: Callable[[str], str] = str) -> dict[str, tuple[str, ...]]:
    """Attributes: [{key, value}, …], {key: value or values}, either as JSON, or "key: value; key: value | value".

    A key that comes twice keeps all its values, each once, in order. A semicolon that belongs to HTML, as in "gr&uuml;n",
    does not end a value. `clean` is applied to each key and each value.
    """
    if is_absent(value):
        return {}
    if isinstance(value, str):
        value = _parse_json(value) if value.lstrip()[:1] in ("[", "{") else _parse_attribute_text(value)
    if isinstance(value, Mapping):
        pairs = list(value.items())
    elif isinstance(value, list | tuple | np.ndarray):
        pairs = [_as_pair(item) for item in value if not is_absent(item)]
    else:
        raise ValueError(f"{type(value).__name__} found; expected a list of {{key, value}}, a dict or 'key: value; …'")
    attributes: dict[str, list[str]] = {}
    for key, found in pairs:
        values = attributes.setdefault(clean(parse_text(key)), [])
        values += [text for text in map(clean, parse_texts(found)) if text and text not in values]
    return {key: tuple(values) for key, values in attributes.items() if key and values}


def _as_pair(item: Any) -> tuple[Any, Any]:
    if isinstance(item, Mapping) and "key" in item and "value" in item:
        return item["key"], item["value"]
    if isinstance(item, list | tuple) and len(item) == 2:
        return item[0], item[1]
    raise ValueError(f"{str(item)[:40]!r} is not a pair; expected {{'key': …, 'value': …}}")


def _parse_attribute_text(text: str) -> list[tuple[str, str]]:
    pairs = []
    for part in filter(None, (part.strip() for part in _split_outside_html(text, ";"))):
        key, colon, value = part.partition(":")
        if not colon:
            raise ValueError(f"{part[:40]!r} has no colon; expected 'key: value; key: value'")
        pairs.append((key, value))
    return pairs


def _split_outside_html(text: str, separator: str) -> list[str]:
    """Split a text at a sign where it does not belong to a tag or an entity."""
    inside = [False] * len(text)
    for start, end in html_spans(text):
        inside[start:end] = [True] * (end - start)
    cuts = [place for place, sign in enumerate(text) if sign == separator and not inside[place]]
    starts, ends = [0, *(place + 1 for place in cuts)], [*cuts, len(text)]
    return [text[start:end] for start, end in zip(starts, ends, strict=True)]


def parse_box(value: Any) -> tuple[float, float, float, float] | None:
    """A box x0, y0, x1, y1 in pixels: a list, a JSON list, or four numbers parted by commas, bars or spaces."""
    if is_absent(value):
        return None
    if isinstance(value, str) and not value.lstrip().startswith("["):
        value = value.replace(",", " ").replace("|", " ").split()
    numbers = [float(number) for number in _as_items(value, ("|",))]
    if (
        len(numbers) != 4
        or not all(map(math.isfinite, numbers))
        or numbers[2] <= numbers[0]
        or numbers[3] <= numbers[1]
    ):
        raise ValueError(f"{str(value)[:60]} found; expected x0, y0, x1, y1 in pixels with x0 < x1 and y0 < y1")
    return numbers[0], numbers[1], numbers[2], numbers[3]


def parse_weights(value: Any) -> tuple[float, ...]:
    """Relevance weights, each above 0: a list, a JSON list, or numbers parted by bars, commas or spaces."""
    if isinstance(value, str) and not value.lstrip().startswith("["):
        value = value.replace(",", " ").replace("|", " ").split()
    weights = tuple(float(number) for number in _as_items(value, ("|",)))
    if not all(math.isfinite(weight) and weight > 0 for weight in weights):
        raise ValueError(f"{str(value)[:60]} found; expected numbers above 0")
    return weights


def parse_flag(value: Any) -> bool:
    """True or false, 1 or 0, as a value or as text; absent is false."""
    if is_absent(value):
        return False
    if isinstance(value, bool | np.bool_ | int) and value in (0, 1):
        return bool(value)
    word = str(value).strip().lower()
    if word not in ("true", "false", "1", "0", "yes", "no"):
        raise ValueError(f"{value!r} found; expected true or false")
    return word in ("true", "1", "yes")


def parse_images(value: Any, folder: Path) -> tuple[ImageSource, ...]:
    """Pictures of a cell: one or a list of bytes, {bytes, path}, paths relative to `folder`, addresses or PIL images."""
    if isinstance(value, np.ndarray) and value.dtype != object and value.ndim > 1:
        raise ValueError("an array of pixels found; expected bytes, a path, or a PIL image")
    return tuple(_parse_image(item, folder) for item in _as_items(value, ("|",)))


def _parse_image(item: Any, folder: Path) -> ImageSource:
    if isinstance(item, Mapping):
        item = item.get("bytes") if not is_absent(item.get("bytes")) else item.get("path")
    if isinstance(item, bytes | Image.Image):
        return item
    if isinstance(item, Path):
        item = str(item)
    if not isinstance(item, str) or is_absent(item):
        raise ValueError(f"{type(item).__name__} found; expected bytes, a path, or a PIL image")
    item = item.strip()
    return item if is_address(item) else str(folder / item)


def is_address(source: object) -> bool:
    """Whether a picture is given as an http(s) address rather than a file."""
    return isinstance(source, str) and source.startswith(("http://", "https://"))


def columns_of(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """All columns that any row has, in order of first appearance."""
    return list(dict.fromkeys(column for row in rows for column in row))
