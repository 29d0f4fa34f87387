"""Read files of product data into rows, and parse their cells into the values of `product_data.tables`.

Parquet is read with Arrow and its pictures stay encoded. JSONL and CSV are read without guessing column types: an id
such as "007" remains text, and rows may have different columns.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
_LISTED, _LONGEST_NAME = 20, 60  # columns, and characters of a name, in a message

ImageSource = bytes | str | Image.Image
"""A picture that MoonProcessor can open: its encoded bytes, its path or URL, or a PIL image."""


class TableError(ValueError):
    """Raised for a table that cannot be used; says which file and column or row, what was found and what is expected."""

    exit_status = 2


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a .parquet, .jsonl or .csv file, in file order.

    Raises:
        TableError: no such file, an unsupported suffix, contents of a different format, or text that is not UTF-8; the
            message has the line if it is known.
    """
    if not path.is_file():
        raise TableError(f"{path}: no such file")
    readers = {".parquet": _read_parquet, ".jsonl": _read_jsonl, ".csv": _read_csv}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise TableError(
            f"{path}: found {path.suffix or 'a file without a suffix'}; expected one of {', '.join(SUFFIXES)}"
        )
    try:
        return reader(path)
    except UnicodeDecodeError as error:
        raise TableError(why_not_utf8(path, error)) from error


def why_not_utf8(path: Path, error: UnicodeDecodeError) -> str:
    """Return an error message with the first cell that is not UTF-8, if the rest of the file can be read."""
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
    """Return row and column of the first cell that is not UTF-8, or nothing if they cannot be determined."""
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
    """Return the paths of a file's text columns, including those in structs and lists; reading these skips pictures."""
    leaves = [file.schema.column(number) for number in range(len(file.schema))]
    return [leaf.path for leaf in leaves if leaf.converted_type == "UTF8" or leaf.logical_type.type == "STRING"]


def undecodable(rows: pyarrow.Table | pyarrow.RecordBatch, first: int = 0) -> list[str]:
    """Return row and column of the first text that is not UTF-8, or nothing if all texts are.

    Args:
        rows: a table or record batch of Arrow.
        first: the number of its first row. Default 0.
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
    """Check that all texts of a parquet file are UTF-8; other columns are not read.

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
    return [row for _, row in json_lines(path, errors=errors)]


def json_lines(path: Path, *, errors: str = "strict") -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the rows of a file of JSON lines with the numbers of their lines, from 1; empty lines are skipped.

    Args:
        path: the file.
        errors (`str`): what Python's `open` does with bytes that are not UTF-8. Default "strict".

    Raises:
        TableError: a line that is not a JSON object; the message has its number.
        UnicodeDecodeError: bytes that are not UTF-8; see `why_not_utf8`.
    """
    with path.open(encoding="utf-8-sig", errors=errors) as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise TableError(f"{path}, line {number}: not JSON ({error.msg} at column {error.colno})") from error
            except RecursionError as error:
                raise TableError(
                    f"{path}, line {number}: the JSON is nested too deeply; expected a flat row"
                ) from error
            except ValueError as error:  # a whole number of thousands of digits
                raise TableError(f"{path}, line {number}: not readable JSON ({error})") from error
            if not isinstance(row, dict):
                raise TableError(
                    f"{path}, line {number}: found {type(row).__name__}; expected one JSON object per line"
                )
            yield number, row


def _read_csv(path: Path) -> list[dict[str, Any]]:
    try:
        return read_csv(path)
    except CsvError as error:
        raise TableError(f"{path}, {error}") from error


def is_absent(value: Any) -> bool:
    """Return whether a cell is empty: None, NaN, an empty value, or a word for it such as "null"."""
    if value is None or (isinstance(value, str) and value.strip() in _ABSENT_WORDS):
        return True
    if isinstance(value, float | np.floating):
        return math.isnan(value)
    return isinstance(value, list | tuple | dict | np.ndarray | bytes) and len(value) == 0


def parse_text(value: Any) -> str:
    """Return a cell as text; "" if it is empty or has no visible character. A whole number such as 7.0 becomes "7"."""
    if is_absent(value):
        return ""
    if isinstance(value, float | np.floating) and float(value).is_integer():
        return str(int(value))
    if isinstance(value, Decimal) and value.is_finite():
        return str(int(value)) if value == value.to_integral_value() else str(value)
    if isinstance(value, str | int | float | np.number):
        text = str(value).strip()
        return text if has_visible_text(text) else ""
    raise ValueError(f"found {type(value).__name__}; expected text")


def parse_query_text(value: Any, *, has_picture: bool) -> str:
    """Return the text of a query; beside a picture, "nan", "null" and "None" mean no text, otherwise they are texts."""
    return value.strip() if is_word_for_nothing(value) and not has_picture else parse_text(value)


def is_word_for_nothing(value: Any) -> bool:
    """Return whether a cell holds a word for a missing value, such as "nan", "null" or "None"."""
    return isinstance(value, str) and bool(value.strip()) and value.strip() in _ABSENT_WORDS


def _as_list(value: Any, separators: tuple[str, ...]) -> list[Any]:
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
        return [part for part in value if not is_absent(part)]
    return [value]


def _parse_json(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{text[:40]!r} is not JSON ({error.msg})") from error
    except RecursionError as error:
        raise ValueError(f"{text[:40]!r} is JSON that is nested too deeply") from error


def parse_texts(value: Any, separators: tuple[str, ...] = ("|",)) -> tuple[str, ...]:
    """Return the texts of a list, of a JSON list, or of a text with `separators`, without empty ones."""
    return tuple(text for text in map(parse_text, _as_list(value, separators)) if text)


def parse_attributes(value: Any, clean: Callable[[str], str] = str) -> dict[str, tuple[str, ...]]:
    """Return the attributes of a cell.

    Formats: [{key, value}, …], {key: value or values}, JSON of these, or "key: value; key: value | value". A text
    separates several values of a key by "|". A repeated key keeps all its values, each once, in order. A semicolon that
    belongs to HTML, as in "gr&uuml;n", does not end a value. `clean` is applied to each key and each value.
    """
    if is_absent(value):
        return {}
    if isinstance(value, str):
        value = _parse_json(value) if value.lstrip()[:1] in ("[", "{") else _parse_attribute_text(value)
    if isinstance(value, Mapping):
        pairs = list(value.items())
    elif isinstance(value, list | tuple | np.ndarray):
        pairs = [_as_pair(entry) for entry in value if not is_absent(entry)]
    else:
        raise ValueError(f"found {type(value).__name__}; expected a list of {{key, value}}, a dict or 'key: value; …'")
    attributes: dict[str, list[str]] = {}
    for key, cell in pairs:
        values = attributes.setdefault(clean(parse_text(key)), [])
        values += [text for text in map(clean, parse_texts(cell)) if text and text not in values]
    return {key: tuple(values) for key, values in attributes.items() if key and values}


def _as_pair(entry: Any) -> tuple[Any, Any]:
    if isinstance(entry, Mapping) and "key" in entry and "value" in entry:
        return entry["key"], entry["value"]
    if isinstance(entry, list | tuple) and len(entry) == 2:
        return entry[0], entry[1]
    raise ValueError(f"{str(entry)[:40]!r} is not a pair; expected {{'key': …, 'value': …}}")


def _parse_attribute_text(text: str) -> list[tuple[str, str]]:
    pairs = []
    for part in filter(None, (part.strip() for part in _split_outside_html(text, ";"))):
        key, colon, value = part.partition(":")
        if not colon:
            raise ValueError(f"found {part[:40]!r} without a colon; expected 'key: value; key: value'")
        pairs.append((key, value))
    return pairs


def _split_outside_html(text: str, separator: str) -> list[str]:
    """Split a text at a separator outside HTML tags and entities."""
    inside = [False] * len(text)
    for start, end in html_spans(text):
        inside[start:end] = [True] * (end - start)
    cuts = [place for place, character in enumerate(text) if character == separator and not inside[place]]
    starts, ends = [0, *(place + 1 for place in cuts)], [*cuts, len(text)]
    return [text[start:end] for start, end in zip(starts, ends, strict=True)]


def parse_box(value: Any) -> tuple[float, float, float, float] | None:
    """Return a box (x0, y0, x1, y1) in pixels: a list, a JSON list, or numbers separated by commas, bars or spaces."""
    if is_absent(value):
        return None
    if isinstance(value, str) and not value.lstrip().startswith("["):
        value = value.replace(",", " ").replace("|", " ").split()
    numbers = [float(number) for number in _as_list(value, ("|",))]
    if (
        len(numbers) != 4
        or not all(map(math.isfinite, numbers))
        or numbers[2] <= numbers[0]
        or numbers[3] <= numbers[1]
    ):
        raise ValueError(f"found {str(value)[:60]}; expected x0, y0, x1, y1 in pixels with x0 < x1 and y0 < y1")
    return numbers[0], numbers[1], numbers[2], numbers[3]


def parse_weights(value: Any) -> tuple[float, ...]:
    """Return relevance weights above 0 from a list, a JSON list, or numbers separated by bars, commas or spaces."""
    if isinstance(value, str) and not value.lstrip().startswith("["):
        value = value.replace(",", " ").replace("|", " ").split()
    weights = tuple(float(number) for number in _as_list(value, ("|",)))
    if not all(math.isfinite(weight) and weight > 0 for weight in weights):
        raise ValueError(f"found {str(value)[:60]}; expected numbers above 0")
    return weights


def parse_flag(value: Any) -> bool:
    """Return the truth value of a cell: true or false, 1 or 0, yes or no; an empty cell is false."""
    if is_absent(value):
        return False
    if isinstance(value, bool | np.bool_ | int) and value in (0, 1):
        return bool(value)
    word = str(value).strip().lower()
    if word not in ("true", "false", "1", "0", "yes", "no"):
        raise ValueError(f"found {value!r}; expected true or false")
    return word in ("true", "1", "yes")


def parse_images(value: Any, folder: Path) -> tuple[ImageSource, ...]:
    """Return the pictures of a cell: each is bytes, a dict {bytes, path}, a path in `folder`, a URL, or a PIL image."""
    if isinstance(value, np.ndarray) and value.dtype != object and value.ndim > 1:
        raise ValueError("found an array of pixels; expected bytes, a path, or a PIL image")
    return tuple(_parse_image(image, folder) for image in _as_list(value, ("|",)))


def _parse_image(image: Any, folder: Path) -> ImageSource:
    if isinstance(image, Mapping):
        image = image.get("bytes") if not is_absent(image.get("bytes")) else image.get("path")
    if isinstance(image, bytes | Image.Image):
        return image
    if isinstance(image, Path):
        image = str(image)
    if not isinstance(image, str) or is_absent(image):
        raise ValueError(f"found {type(image).__name__}; expected bytes, a path, or a PIL image")
    image = image.strip()
    return image if is_address(image) else str(folder / image)


def is_address(source: object) -> bool:
    """Return whether a picture is an http(s) URL."""
    return isinstance(source, str) and source.startswith(("http://", "https://"))


def listed(names: Sequence[str]) -> str:
    """Return the names of columns for a message: the first ones if there are many, each shortened if it is long."""
    shown = [name if len(name) <= _LONGEST_NAME else f"{name[:_LONGEST_NAME]}…" for name in names[:_LISTED]]
    return ", ".join([*shown, f"… ({len(names)} columns)"] if len(names) > _LISTED else shown)


def columns_of(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return all columns of any row, in order of first appearance."""
    return list(dict.fromkeys(column for row in rows for column in row))
