"""Exact search in blocks agrees with a slow reference and with faiss, in bounded memory; first passes lose little."""

import numpy as np
import pytest
from stored_products import units

from evaluation.search_speed import best_rows
from retrieval.stores.exact_search import FlatVectors
from retrieval.stores.interface import StoreError

ROWS = units(1000, 1, dimension=16)


def flat_of(rows, **options):
    flat = FlatVectors(rows.shape[1], **options)
    for start in range(0, len(rows), 300):
        end = min(start + 300, len(rows))
        flat.resize(end)
        flat.write(np.arange(start, end), rows[start:end])
    return flat


def slow(query_QD, rows, k, mask_N=None):
    score_QN = query_QD.astype(np.float64) @ rows.astype(np.float64).T
    if mask_N is not None:
        score_QN[:, ~mask_N] = -np.inf
    order = np.argsort(-score_QN, axis=1, kind="stable")[:, :k]
    return [[row for row in one if score_QN[query, row] > -np.inf] for query, one in enumerate(order)]


def ranked(found, k):
    return [rows[np.argsort(-scores, kind="stable")[:k]].tolist() for rows, scores in found]


@pytest.mark.parametrize("share", [None, 0.0, 0.01, 0.3, 0.9])
@pytest.mark.parametrize("block_rows", [64, 1000, 4096])
def test_blocks_and_masks_have_the_answers_of_a_slow_reference(share, block_rows):
    mask_N = None if share is None else np.random.default_rng(0).random(1000) < share
    query_QD = units(7, 2, dimension=16)
    flat = flat_of(ROWS, block_rows=block_rows, query_rows=3)
    assert ranked(flat.search(query_QD, 10, mask_N), 10) == slow(query_QD, ROWS, 10, mask_N)
    assert ranked(flat.search(query_QD, 2000, mask_N), 2000) == slow(query_QD, ROWS, 2000, mask_N)


def test_the_answers_are_those_of_faiss():
    faiss = pytest.importorskip("faiss")
    query_QD = units(20, 2, dimension=16)
    index = faiss.IndexFlatIP(16)
    index.add(ROWS)
    assert ranked(flat_of(ROWS).search(query_QD, 10), 10) == index.search(query_QD, 10)[1].tolist()


def test_all_ties_of_the_last_place_are_returned_with_equal_scores():
    rows = ROWS.copy()
    rows[::3] = units(1, 9, dimension=16)
    ((found, scores),) = flat_of(rows, block_rows=128).search(units(1, 9, dimension=16), 5)
    assert found.tolist() == list(range(0, 1000, 3))
    assert len(set(scores.tolist())) == 1


def test_rows_are_overwritten_and_read_back():
    flat = flat_of(ROWS, block_rows=128)
    flat.write(np.array([3, 700]), units(2, 7, dimension=16))
    np.testing.assert_array_equal(flat.read(np.array([700, 3, 4])), [*units(2, 7, dimension=16)[::-1], ROWS[4]])
    assert ranked(flat.search(units(2, 7, dimension=16), 1), 1) == [[3], [700]]


def test_the_memory_is_what_is_stated():
    flat = flat_of(ROWS, block_rows=128)
    assert 4 * 16 * 1000 <= flat.memory_bytes <= 4 * 16 * (1000 + 128)
    assert flat.search_bytes == 4 * 128 * (512 + 16)
    coded = flat_of(ROWS, block_rows=128, first_pass="int8")
    assert 1000 * (5 * 16 + 4) <= coded.memory_bytes <= 1128 * (5 * 16 + 4)
    prefix = flat_of(ROWS, block_rows=128, first_pass=8)
    assert 1000 * (4 * 16 + 4) <= prefix.memory_bytes <= 1128 * (4 * 16 + 4)


def nested(count, seed):
    """Return unit vectors whose first dimensions have most of the variance, as those of a Matryoshka model."""
    rows = units(count, seed, dimension=64) * (0.9 ** np.arange(64, dtype=np.float32))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.mark.parametrize("first_pass", [32, "int8"])
def test_a_first_pass_finds_the_same_with_exact_scores(first_pass):
    query_QD, rows = nested(50, 2), nested(5000, 1)
    plain, flat = flat_of(rows), flat_of(rows, first_pass=first_pass)
    assert best_rows(flat, query_QD) == best_rows(plain, query_QD)
    expected = dict(zip(*plain.search(query_QD[:1], 5000)[0], strict=True))
    ((found, scores),) = flat.search(query_QD[:1], 10)
    assert len(found) == 100
    assert [expected[row] for row in found] == scores.tolist()


def test_a_first_pass_selects_by_its_own_dimensions():
    rows = np.zeros((300, 8), dtype=np.float32)
    rows[:, 0], rows[:, 7] = 0.6, 0.8
    rows[200:, 0], rows[200:, 1], rows[200:, 7] = 0.6, 0.1, np.sqrt(1 - 0.37)
    ((found, _),) = flat_of(rows, first_pass=2).search(np.eye(1, 8, dtype=np.float32), 1)
    assert found.tolist() == list(range(100)) or (set(found) <= set(range(200)) and len(found) == 100)


@pytest.mark.parametrize("first_pass", [0, 16, -1, "float8", None])
def test_an_unusable_first_pass_is_refused(first_pass):
    with pytest.raises(StoreError, match=f"first_pass: found {first_pass!r}; expected 'none', 'int8' or a number"):
        FlatVectors(16, first_pass=first_pass)
