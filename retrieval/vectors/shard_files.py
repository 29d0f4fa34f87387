"""Write and read one shard of vectors: a parquet file of one row group, which is complete or does not exist.

A row is one product in one form: either its vector or the reason why it has none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet

from product_data.atomic_files import file_written_whole
from retrieval.vectors.vector_types import vector_columns, vector_type


class VectorFileError(ValueError):
    """A folder or file of vectors that cannot be used; says which file, what was found and what is expected."""

    exit_status = 2


@dataclass(frozen=True)
class ShardRows:
    """The rows of one shard.

    Args:
        product_ids, forms: of each row.
        content_hashes: hash of what the model read for each row, see `retrieval.vectors.content_hash`.
        fingerprint (`str`): of the model and the settings that made the vectors, see `retrieval.vectors.fingerprint`.
        vectors_ND: (N, D) float32 unit vectors; rows with an error may hold anything.
        errors: why a row has no vector; `None` for a row that has one.
    """

    product_ids: Sequence[str]
    forms: Sequence[str]
    content_hashes: Sequence[str]
    fingerprint: str
    vectors_ND: np.ndarray
    errors: Sequence[str | None]

    def table(self, dtype: str) -> pyarrow.Table:
        """Return the rows as an Arrow table with vectors of one of `retrieval.vectors.vector_types.DTYPES`."""
        columns = {
            "product_id": pyarrow.array(self.product_ids, pyarrow.string()),
            "form": pyarrow.array(self.forms, pyarrow.string()),
            "content_hash": pyarrow.array(self.content_hashes, pyarrow.string()),
            "fingerprint": pyarrow.array([self.fingerprint] * len(self.forms), pyarrow.string()),
            "error": pyarrow.array(self.errors, pyarrow.string()),
        }
        absent_N = np.array([error is not None for error in self.errors], bool)
        return pyarrow.table(columns | vector_columns(self.vectors_ND, absent_N, dtype))


def write_shard(path: Path, rows: pyarrow.Table) -> None:
    """Write a shard; a reader sees either the whole file or none."""
    with file_written_whole(path) as partial:
        pyarrow.parquet.write_table(
            rows, partial, row_group_size=max(1, len(rows)), use_dictionary=["form", "fingerprint"]
        )


def read_shard(path: Path, columns: Sequence[str] | None = None) -> pyarrow.Table:
    """Return the rows of a shard.

    Args:
        path: the file.
        columns: columns to read. Default: all.

    Raises:
        VectorFileError: a missing or torn file, or a file that is not a shard.
    """
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            known = {"product_id", "form", "content_hash", "fingerprint", "error", "vector"}
            if missing := known - set(file.schema_arrow.names):
                raise VectorFileError(
                    f"{path}: found a parquet file without the columns {', '.join(sorted(missing))}; expected a shard of "
                    "vectors. Move it out of this folder"
                )
            return file.read(columns=None if columns is None else list(columns))
    except FileNotFoundError as error:
        raise VectorFileError(f"{path}: no such file; expected a shard of vectors: run moon3 embed again") from error
    except (pyarrow.ArrowException, OSError) as error:
        raise VectorFileError(
            f"{path}: found a file that is not complete parquet ({error}); expected a shard of vectors. Remove it; "
            "moon3 embed then makes its vectors again"
        ) from error


def shard_dimension(path: Path) -> int:
    """Return the dimension of a shard's vectors.

    Raises:
        VectorFileError: as for `read_shard`.
    """
    return int(read_shard(path, ("vector",)).schema.field("vector").type.list_size)


def check_vectors(path: Path, rows: pyarrow.Table, dtype: str, dimension: int) -> None:
    """Check that a shard's vectors have the folder's type and dimension.

    Raises:
        VectorFileError: they have another.
    """
    found, expected = rows.schema.field("vector").type, vector_type(dtype, dimension)
    if found != expected:
        raise VectorFileError(
            f"{path}: found vectors of the type {found}; expected {expected}, as the folder's other shards have"
        )
