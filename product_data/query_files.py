"""Write queries as a table of the two-table format."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
from PIL import Image

from product_data.atomic_files import file_written_whole
from product_data.rows import QueryRow
from product_data.table_copies import Column
from product_data.table_files import ImageSource, is_address

_TEXTS = pyarrow.list_(pyarrow.string())
_NUMBERS = pyarrow.list_(pyarrow.float64())
_FIELDS = (
    [(name, pyarrow.string()) for name in ("query_id", "type", "text")]
    + [("image", pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])), ("bbox", _NUMBERS)]
    + [("positives", _TEXTS), ("positive_weights", _NUMBERS), ("negatives", _TEXTS)]
    + [(name, pyarrow.string()) for name in ("split", "kind", "reference_product_id")]
    + [("derived", pyarrow.bool_()), ("positive_categories", _TEXTS)]
)


def write_query_rows(
    path: Path, queries: Sequence[QueryRow], more: Mapping[Column, Sequence[Any]] | None = None
) -> None:
    """Write queries as parquet, atomically; paths of pictures become absolute, since the table may be in another folder.

    Args:
        path: the file.
        queries: the queries.
        more: further columns, with a cell for each query. Default: none.
    """
    more = more or {}
    rows = [_row(query) for query in queries]
    for column, cells in more.items():
        for row, cell in zip(rows, cells, strict=True):
            row[column.name] = cell
    schema = pyarrow.schema([*_FIELDS, *((column.name, column.kind) for column in more)])
    with file_written_whole(path) as partial:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, schema=schema), partial)


def _row(query: QueryRow) -> dict[str, Any]:
    return {
        "query_id": query.query_id,
        "type": query.type,
        "text": query.text,
        "image": _image_cell(query.image),
        "bbox": list(query.box) if query.box else None,
        "positives": list(query.positives),
        "positive_weights": list(query.answers.values()),
        "negatives": list(query.negatives),
        "split": query.split,
        "kind": query.kind,
        "derived": query.derived,
        "reference_product_id": query.reference_product_id,
        "positive_categories": list(query.positive_categories),
    }


def _image_cell(image: ImageSource | None) -> dict[str, Any] | None:
    if image is None:
        return None
    if isinstance(image, Image.Image):
        stream = io.BytesIO()
        image.save(stream, "PNG")
        image = stream.getvalue()
    if isinstance(image, bytes):
        return {"bytes": image, "path": None}
    return {"bytes": None, "path": image if is_address(image) else str(Path(image).resolve())}
