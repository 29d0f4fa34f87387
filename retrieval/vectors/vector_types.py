"""Store unit vectors as float32, float16 or int8 columns of Arrow, and read them back as float32 unit vectors.

int8 is symmetric and scaled for each vector: s = max|x| / 127, q = round(x / s), x ≈ s·q. So each component is off by at most
s / 2 = max|x| / 254, and the vector by at most √D·max|x| / 254 before, and twice that after it is scaled to unit length.
The precedent is the scalar quantisation of sentence-transformers, whose ranges are those of a calibration set; a range for each
vector needs no such set, and a vector does not change when others are added.

Shape suffixes: N vectors, D dimension.
"""

from __future__ import annotations

import numpy as np
import pyarrow

DTYPES = ("float32", "float16", "int8")
_LARGEST = 127


def vector_columns(vectors_ND: np.ndarray, absent_N: np.ndarray, dtype: str) -> dict[str, pyarrow.Array]:
    """Return the Arrow columns that hold vectors: "vector", and "scale" for int8.

    Args:
        vectors_ND: (N, D) float32 unit vectors; absent rows may hold anything.
        absent_N: (N,) bool, the rows that have no vector; they become null.
        dtype (`str`): one of `DTYPES`.
    """
    values_ND, columns = np.where(absent_N[:, None], 0, vectors_ND).astype(np.float32), {}
    if dtype == "int8":
        scale_N = np.abs(values_ND).max(axis=1, initial=0) / np.float32(_LARGEST)
        values_ND = np.rint(values_ND / np.where(scale_N > 0, scale_N, 1)[:, None])
        columns["scale"] = pyarrow.array(scale_N, pyarrow.float32(), mask=absent_N)
    flat = pyarrow.array(values_ND.astype(dtype).ravel())
    mask = pyarrow.array(absent_N)
    return {"vector": pyarrow.FixedSizeListArray.from_arrays(flat, vectors_ND.shape[1], mask=mask), **columns}


def shortened(vector_ND: np.ndarray, dimension: int) -> np.ndarray:
    """Return the first numbers of vectors, scaled to unit length; at the full width the vectors unchanged.

    `x_{1..d} / |x_{1..d}|`, the prefix that a model with Matryoshka widths is trained for (arXiv 2205.13147 §3).

    Args:
        vector_ND: (N, D) float32 or float64 unit vectors; rows of NaN stay.
        dimension (`int`): d, from 1 to D.

    Relations: `training.losses.matryoshka.prefix` is the same in the loss.
    """
    if vector_ND.shape[1] == dimension:
        return vector_ND
    prefix_Nd = vector_ND[:, :dimension]
    return prefix_Nd / np.maximum(np.linalg.norm(prefix_Nd, axis=1, keepdims=True), 1e-12)


def vector_type(dtype: str, dimension: int) -> pyarrow.DataType:
    """Return the Arrow type of the column "vector"."""
    return pyarrow.list_(pyarrow.from_numpy_dtype(np.dtype(dtype)), dimension)


def unit_vectors(table: pyarrow.Table) -> np.ndarray:
    """Return the (N, D) float32 unit vectors of a table of `vector_columns` without null vectors.

    float32 vectors are returned as they were stored, bit by bit.
    """
    column = table["vector"].combine_chunks()
    stored_ND = column.flatten().to_numpy().reshape(len(table), column.type.list_size)
    if stored_ND.dtype == np.float32:
        return stored_ND
    vectors_ND = stored_ND.astype(np.float32)
    if "scale" in table.column_names:
        vectors_ND *= table["scale"].to_numpy()[:, None]
    return vectors_ND / np.maximum(np.linalg.norm(vectors_ND, axis=1, keepdims=True), np.float32(1e-12))
