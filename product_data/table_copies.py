"""Copy a table in its own format, with new cells in some columns, and without some of its rows."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from product_data.atomic_files import file_written_whole
from product_data.core_boxes.picture_paths import with_absolute_paths
from product_data.table_files import TableError, columns_of, is_absent, read_rows

_ROWS_PER_READ = 256


@dataclass(frozen=True)
class Column:
    """A column that a copy has, whether or not the table has it.

    Args:
        name (`str`): its name.
        kind: its type in parquet. A column of texts stays one: numbers and lists are written as text there, as in CSV.
        feature: its type for Hugging Face datasets.
        separator (`str`): separates the entries of a list in text. Default "|".
    """

    name: str
    kind: pyarrow.DataType
    feature: Mapping[str, Any] = field(hash=False)
    separator: str = "|"


_TEXT, _NUMBER = {"dtype": "string", "_type": "Value"}, {"dtype": "float64", "_type": "Value"}


def text_column(name: str) -> Column:
    """Return a column of texts."""
    return Column(name, pyarrow.string(), _TEXT)


def texts_column(name: str) -> Column:
    """Return a column of lists of texts."""
    return Column(name, pyarrow.list_(pyarrow.string()), {"feature": _TEXT, "_type": "List"})


def numbers_column(name: str, separator: str = "|") -> Column:
    """Return a column of lists of numbers."""
    return Column(name, pyarrow.list_(pyarrow.float64()), {"feature": _NUMBER, "_type": "List"}, separator)


def count_column(name: str) -> Column:
    """Return a column of whole numbers."""
    return Column(name, pyarrow.int64(), {"dtype": "int64", "_type": "Value"})


def box_columns(name: str) -> tuple[Column, Column]:
    """Return a column of boxes in pixels, and the column `box_by` that names their detectors."""
    return numbers_column(name, ","), text_column("box_by")


Cells = Mapping[str, list[Any]]
"""Column → its new cells, one for each row: a text, a number, a list of these, None, or any cell of a picture."""
Edit = Callable[[list[dict[str, Any]]], Cells]
"""Returns the new cells of some rows."""


def rows_of(path: Path) -> int:
    """Return the number of rows of a parquet file, which is known without reading it, or of another table."""
    return pyarrow.parquet.read_metadata(path).num_rows if path.suffix.lower() == ".parquet" else len(read_rows(path))


def columns_in(path: Path) -> list[str]:
    """Return the columns of a table.

    Raises:
        TableError: see `product_data.table_files.read_rows`.
    """
    if path.suffix.lower() != ".parquet":
        return columns_of(read_rows(path))
    try:
        return list(pyarrow.parquet.read_schema(path).names)
    except (pyarrow.ArrowException, OSError) as error:
        raise TableError(f"{path}: not a readable parquet file ({error})") from error


def rows_in_parts(path: Path) -> Iterator[list[dict[str, Any]]]:
    """Yield the rows of a table, of parquet in parts of 256 rows.

    Raises:
        TableError: see `product_data.table_files.read_rows`.
    """
    if path.suffix.lower() != ".parquet":
        yield read_rows(path)
        return
    for batch in pyarrow.parquet.ParquetFile(path).iter_batches(_ROWS_PER_READ):
        yield batch.to_pylist()


def copy_table(
    source: Path, target: Path, columns: Sequence[Column], edit: Edit, left_out: frozenset[int] = frozenset()
) -> None:
    """Copy a table of any format; the copy gets its name once it is complete.

    Args:
        source: a .parquet, .jsonl or .csv file.
        target: a file of the same format.
        columns: the columns that `edit` writes and the table may lack; others keep their type.
        edit: receives the rows and returns the new cells. Parquet is read in parts of 256 rows.
        left_out: numbers of the rows that are not copied, from 0; `edit` receives them, too. Default: none.
    """
    copy = {".parquet": _copy_parquet, ".jsonl": _copy_jsonl, ".csv": _copy_csv}[source.suffix.lower()]
    with file_written_whole(target) as partial:
        copy(source, partial, columns, edit, left_out)


def _copy_parquet(source: Path, target: Path, columns: Sequence[Column], edit: Edit, left_out: frozenset[int]) -> None:
    file = pyarrow.parquet.ParquetFile(source)
    schema = _with_columns(file.schema_arrow, columns)
    separators = {column.name: column.separator for column in columns}
    first = 0
    with pyarrow.parquet.ParquetWriter(target, schema) as writer:
        for batch in file.iter_batches(_ROWS_PER_READ):
            rows = batch.to_pylist()
            arrays = dict(zip(batch.schema.names, batch.columns, strict=True))
            for name, cells in edit(rows).items():
                kind, sign = schema.field(name).type, separators.get(name, "|")
                arrays[name] = pyarrow.array([_cell(cell, kind, sign) for cell in cells], kind)
            cast = [arrays[name].cast(schema.field(name).type) for name in schema.names]
            kept = pyarrow.array([first + place not in left_out for place in range(len(rows))])
            writer.write_batch(pyarrow.RecordBatch.from_arrays(cast, schema=schema).filter(kept))
            first += len(rows)


def _cell(cell: Any, kind: pyarrow.DataType, separator: str) -> Any:
    """Return a cell as text for a column of texts; any other cell unchanged."""
    return cell_text(cell, separator) if _is_text(kind) and cell is not None else cell


def _is_text(kind: pyarrow.DataType) -> bool:
    return bool(pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind))


def _with_columns(schema: pyarrow.Schema, columns: Sequence[Column]) -> pyarrow.Schema:
    """Return a schema with further columns, also in the metadata of Hugging Face datasets."""
    added: dict[str, Any] = {}
    for column in columns:
        place = schema.get_field_index(column.name)
        field = pyarrow.field(column.name, column.kind)
        if place >= 0 and _can_hold(schema.field(place).type, column.kind):
            continue
        schema = schema.append(field) if place < 0 else schema.set(place, field)
        added[column.name] = column.feature
    metadata = dict(schema.metadata or {})
    if added and b"huggingface" in metadata:
        facts = json.loads(metadata[b"huggingface"])
        facts.get("info", {}).get("features", {}).update(added)
        schema = schema.with_metadata(metadata | {b"huggingface": json.dumps(facts).encode()})
    return schema


def _can_hold(kind: pyarrow.DataType, wanted: pyarrow.DataType) -> bool:
    """Return whether a table's column keeps its type: one of texts, or the wanted one."""
    return _is_text(kind) or bool(kind == wanted) or (_item_of(kind) is not None and _item_of(kind) == _item_of(wanted))


def _item_of(kind: pyarrow.DataType) -> pyarrow.DataType | None:
    return kind.value_type if pyarrow.types.is_list(kind) else None


def _copy_jsonl(source: Path, target: Path, _: Sequence[Column], edit: Edit, left_out: frozenset[int]) -> None:
    rows = read_rows(source)
    with target.open("w", encoding="utf-8") as stream:
        for row in _edited(rows, edit, left_out):
            stream.write(json.dumps(row, ensure_ascii=False) + "\n")


def _copy_csv(source: Path, target: Path, columns: Sequence[Column], edit: Edit, left_out: frozenset[int]) -> None:
    rows = read_rows(source)
    separators = {column.name: column.separator for column in columns}
    edited = list(_edited(rows, edit, left_out))
    names = list(dict.fromkeys([*columns_of(rows), *columns_of(edited)]))
    with target.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, names)
        writer.writeheader()
        for row in edited:
            writer.writerow(
                {
                    name: cell_text(cell, separators.get(name, "|")) if isinstance(cell, list) else cell
                    for name, cell in row.items()
                }
            )


def _edited(rows: list[dict[str, Any]], edit: Edit, left_out: frozenset[int]) -> Iterator[dict[str, Any]]:
    cells = edit(rows)
    for place, row in enumerate(rows):
        if place not in left_out:
            yield {**row, **{name: column[place] for name, column in cells.items()}}


def cell_text(cell: Any, separator: str) -> str:
    """Return a cell as text: the entries of a list with a separator between them, numbers in their shortest form.

    A list of texts that contain the separator is written as JSON.
    """
    if not isinstance(cell, list | tuple):
        return str(cell)
    parts = [f"{part:.10g}" if isinstance(part, float) else str(part) for part in cell]
    if any(separator in part for part in parts):
        return json.dumps(list(cell), ensure_ascii=False)
    return separator.join(parts)


def rebased(rows: list[dict[str, Any]], columns: tuple[str, ...], folders: tuple[Path, ...]) -> dict[str, list[Any]]:
    """Return the cells of the columns of pictures whose relative paths must become absolute ones, as a copy is elsewhere."""
    cells = {}
    for column in columns:
        before = [row.get(column) for row in rows]
        after = [cell if is_absent(cell) else with_absolute_paths(cell, folders) for cell in before]
        if any(new is not old for new, old in zip(after, before, strict=True)):
            cells[column] = after
    return cells


def same_folder(one: Path, other: Path) -> bool:
    """Return whether two paths are the same folder."""
    return os.path.realpath(one) == os.path.realpath(other)
