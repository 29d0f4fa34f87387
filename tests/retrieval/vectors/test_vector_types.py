"""Stored types of vectors: float32 bit by bit, float16 and int8 within their bounds."""

from __future__ import annotations

import numpy as np
import pyarrow
import pytest

from retrieval.vectors.vector_types import DTYPES, unit_vectors, vector_columns, vector_type


def unit(count, dimension, seed=0):
    vectors = np.random.default_rng(seed).standard_normal((count, dimension)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def stored(vectors, dtype):
    return pyarrow.table(vector_columns(vectors, np.zeros(len(vectors), bool), dtype))


def test_float32_comes_back_bit_by_bit():
    vectors = unit(100, 33)
    np.testing.assert_array_equal(unit_vectors(stored(vectors, "float32")), vectors)


def test_float16_is_within_its_rounding():
    vectors = unit(100, 256)
    found = unit_vectors(stored(vectors, "float16"))
    assert found.dtype == np.float32
    assert np.linalg.norm(found - vectors, axis=1).max() < 2**-10
    assert np.abs(found - vectors).max() > 0


@pytest.mark.parametrize("dimension", [4, 64, 1024])
def test_int8_keeps_the_bound_that_is_stated(dimension):
    vectors = unit(200, dimension)
    vectors[0] = 0
    vectors[0, 1] = 1  # one large component
    table = stored(vectors, "int8")
    largest = np.abs(vectors).max(axis=1)
    quantised = table["vector"].combine_chunks().flatten().to_numpy().reshape(len(vectors), dimension)
    before = quantised * table["scale"].to_numpy()[:, None]
    assert (np.abs(before - vectors).max(axis=1) <= largest / 254 * 1.0001).all()
    found = unit_vectors(table)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    bound = 2 * np.sqrt(dimension) * largest / 254
    assert (np.linalg.norm(found - vectors, axis=1) <= bound * 1.0001).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_absent_vectors_are_null_and_a_vector_ignores_its_neighbours(dtype):
    vectors = unit(3, 8)
    absent = np.array([False, True, False])
    vectors[1] = np.nan
    table = pyarrow.table(vector_columns(vectors, absent, dtype))
    assert table["vector"].type == vector_type(dtype, 8)
    assert table["vector"].is_null().to_pylist() == absent.tolist()
    alone = unit_vectors(stored(vectors[2:], dtype))
    np.testing.assert_array_equal(unit_vectors(table.filter(pyarrow.array(~absent)))[1:], alone)
