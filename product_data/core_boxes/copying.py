"""Copy a table in its own format, with new cells in some columns."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from product_data.atomic_files import file_written_whole
from product_data.core_boxes.picture_paths import with_absolute_paths
from product_data.table_files import TableError, columns_of, is_absent, read_rows

BOX = pyarrow.list_(pyarrow.float64())
TEXT = pyarrow.string()
_ROWS_PER_READ = 256

Cells = Mapping[str, list[Any]]
"""Column → its new cells, one for each row: boxes (four numbers or None), texts, or any cell of a picture."""
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


def copy_table(source: Path, target: Path, boxes: str | None, edit: Edit) -> None:
    """Copy a table of any format; the copy gets its name once it is complete.

    Args:
        source: a .parquet, .jsonl or .csv file.
        target: a file of the same format.
        boxes: the column of boxes, which may be new; None for a table without boxes. With it, the column `box_by`.
        edit: receives the rows and returns the new cells. Parquet is read in parts of 256 rows.
    """
    copy = {".parquet": _copy_parquet, ".jsonl": _copy_jsonl, ".csv": _copy_csv}[source.suffix.lower()]
    with file_written_whole(target) as partial:
        copy(source, partial, boxes, edit)


def _copy_parquet(source: Path, target: Path, boxes: str | None, edit: Edit) -> None:
    file = pyarrow.parquet.ParquetFile(source)
    schema = _with_box_columns(file.schema_arrow, boxes)
    with pyarrow.parquet.ParquetWriter(target, schema) as writer:
        for batch in file.iter_batches(_ROWS_PER_READ):
            rows = batch.to_pylist()
            columns = dict(zip(batch.schema.names, batch.columns, strict=True))
            for name, cells in edit(rows).items():
                kind = schema.field(name).type
                columns[name] = pyarrow.array([_cell(cell, kind) for cell in cells], kind)
            arrays = [columns[name].cast(schema.field(name).type) for name in schema.names]
            writer.write_batch(pyarrow.RecordBatch.from_arrays(arrays, schema=schema))


def _cell(cell: Any, kind: pyarrow.DataType) -> Any:
    """Return a box as text for a column of texts; any other cell unchanged."""
    is_text = pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)
    return box_text(cell) if is_text and isinstance(cell, list | tuple) else cell


def _with_box_columns(schema: pyarrow.Schema, boxes: str | None) -> pyarrow.Schema:
    """Return a schema with the columns of boxes, also in the metadata of Hugging Face datasets."""
    if boxes is None:
        return schema
    added: dict[str, Any] = {}
    for name, kind, feature in ((boxes, BOX, _BOX_FEATURE), ("box_by", TEXT, _TEXT_FEATURE)):
        place = schema.get_field_index(name)
        if place < 0:
            schema = schema.append(pyarrow.field(name, kind))
        elif pyarrow.types.is_string(schema.field(place).type) or pyarrow.types.is_large_string(
            schema.field(place).type
        ):
            continue
        else:
            schema = schema.set(place, pyarrow.field(name, kind))
        added[name] = feature
    metadata = dict(schema.metadata or {})
    if b"huggingface" in metadata:
        facts = json.loads(metadata[b"huggingface"])
        facts.get("info", {}).get("features", {}).update(added)
        schema = schema.with_metadata(metadata | {b"huggingface": json.dumps(facts).encode()})
    return schema


_TEXT_FEATURE = {"dtype": "string", "_type": "Value"}
_BOX_FEATURE = {"feature": {"dtype": "float64", "_type": "Value"}, "_type": "List"}


def _copy_jsonl(source: Path, target: Path, _: str | None, edit: Edit) -> None:
    rows = read_rows(source)
    with target.open("w", encoding="utf-8") as stream:
        for row in _edited(rows, edit):
            stream.write(json.dumps(row, ensure_ascii=False) + "\n")


def _copy_csv(source: Path, target: Path, _: str | None, edit: Edit) -> None:
    rows = read_rows(source)
    edited = list(_edited(rows, edit))
    with target.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, columns_of(edited))
        writer.writeheader()
        for row in edited:
            writer.writerow({name: box_text(cell) if isinstance(cell, list) else cell for name, cell in row.items()})


def _edited(rows: list[dict[str, Any]], edit: Edit) -> Iterator[dict[str, Any]]:
    cells = edit(rows)
    for place, row in enumerate(rows):
        yield {**row, **{name: column[place] for name, column in cells.items()}}


def box_text(box: Any) -> str:
    """Return a box as "x0,y0,x1,y1"."""
    return ",".join(f"{float(side):.10g}" for side in box)


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
