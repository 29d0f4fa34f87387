"""Readers of values: against scikit-learn and slow sums, products left out exactly, noise chosen on held-out products."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from retrieval.explanation.value_readers import NOISES, SHRINKAGE, ValueReaders, stated_values

KEYS = np.array([0, 0, 0, 1, 1])
WIDTH = 6


def catalogue(products=400, *, seed=0, noise=0.3):
    """Vectors that contain the three values of key 0, but not the two of key 1, which half of the products state."""
    rng = np.random.default_rng(seed)
    values = np.zeros((products, 5))
    first = rng.integers(0, 3, products)
    values[np.arange(products), first] = 1
    has = rng.random(products) < 0.5
    values[np.flatnonzero(has), 3 + rng.integers(0, 2, int(has.sum()))] = 1
    directions = np.random.default_rng(7).normal(size=(3, WIDTH))
    vectors = directions[first] + noise * rng.normal(size=(products, WIDTH))
    return vectors.astype(np.float32), stated_values(
        [np.flatnonzero(row).tolist() for row in values], dict(enumerate(range(5)))
    )


def test_only_the_key_that_vectors_contain_is_read():
    vectors, values = catalogue(2000)
    readers = ValueReaders.fit(vectors, values, KEYS, progress=False)
    assert readers.right_K[0] > 0.95
    assert readers.frequent_K[0] < 0.5
    assert readers.right_K[1] < 0.65
    new, stated = catalogue(seed=1)
    read = readers.read(new - readers.mean_D)
    assert (read[:, :3].argmax(axis=1) == stated.toarray()[:, :3].argmax(axis=1)).mean() > 0.95
    assert np.abs(read[:, 3:] - 0.25).max() < 0.2  # a quarter of the products states each of both values
    assert (read >= 0).all()
    assert (read[:, :3].sum(axis=1) <= 1 + 1e-9).all()


def test_probabilities_are_those_of_the_equation():
    vectors, values = catalogue(60)
    readers = ValueReaders.fit(vectors, values, KEYS, progress=False)
    centred = vectors.astype(np.float64) - vectors.mean(axis=0, dtype=np.float64)
    dense = values.toarray()
    covariance = centred.T @ centred / len(centred)
    for columns in ([0, 1, 2], [3, 4]):
        member = np.column_stack([dense[:, columns], dense[:, columns].sum(axis=1) == 0]).astype(bool)
        means = np.stack([centred[rows].sum(axis=0) / (rows.sum() + SHRINKAGE) for rows in member.T])
        shares = member.mean(axis=0)
        within = covariance - sum(s * np.outer(m, m) for s, m in zip(shares, means, strict=True))
        within += readers.noise * np.trace(covariance) / WIDTH * np.eye(WIDTH)
        inverse = np.linalg.inv(within)
        with np.errstate(divide="ignore"):
            score = centred @ inverse @ means.T - 0.5 * np.diag(means @ inverse @ means.T) + np.log(shares)
        expected = np.exp(score) / np.exp(score).sum(axis=1, keepdims=True)
        found = readers.read(centred)[:, columns]
        np.testing.assert_allclose(found, expected[:, :-1], atol=1e-8)


def test_effects_are_those_of_ridge_regression():
    vectors, values = catalogue(80)
    readers = ValueReaders.fit(vectors, values, KEYS, progress=False)
    slow = Ridge(alpha=SHRINKAGE, fit_intercept=False).fit(values.toarray(), vectors - vectors.mean(axis=0))
    np.testing.assert_allclose(readers.effects(), slow.coef_.T, atol=1e-5)


@pytest.mark.parametrize("rows", [[5], [5, 17]])
def test_products_are_left_out_as_if_they_were_never_there(rows):
    vectors, values = catalogue(80)
    readers = ValueReaders.fit(vectors, values, KEYS, progress=False)
    known = vectors[rows].astype(np.float64) - readers.mean_D
    rest = np.setdiff1d(np.arange(80), rows)
    centred = vectors[rest].astype(np.float64) - readers.mean_D
    dense = values[rest].toarray()
    slow = np.linalg.solve(dense.T @ dense + SHRINKAGE * np.eye(5), dense.T @ centred)
    np.testing.assert_allclose(readers.effects(without=rows, known_SD=known), slow, atol=1e-8)
    assert np.abs(readers.effects() - slow).max() > 1e-4
    sums = readers.sums - type(readers.sums).of(known, values[rows], KEYS, 2)
    again = type(readers.sums).of(centred, values[rest], KEYS, 2)
    for name in ("count", "total_D", "square_DD", "value_PD", "value_P", "key_KD", "key_K"):
        np.testing.assert_allclose(getattr(sums, name), getattr(again, name), atol=1e-8)
    without = readers.read(known, without=rows, known_SD=known)
    assert np.abs(without - readers.read(known)).max() > 1e-4
    part = readers.parts(known[:1], np.array([1, 3]), without=rows, known_SD=known)
    np.testing.assert_allclose(part[0], without[0, [1, 3], None] * slow[[1, 3]], atol=1e-8)


def test_only_wanted_keys_are_read():
    vectors, values = catalogue(80)
    readers = ValueReaders.fit(vectors, values, KEYS, progress=False)
    read = readers.read(vectors - readers.mean_D, keys=[1])
    assert not read[:, :3].any()
    assert read[:, 3:].any()


def test_noise_is_chosen_on_held_out_products_and_the_largest_without_any():
    few, values = catalogue(24, noise=2.0)
    assert ValueReaders.fit(few, values, KEYS, progress=False).noise in NOISES
    one = ValueReaders.fit(few[:1], values[:1], KEYS, progress=False)
    assert one.noise == NOISES[-1]
    assert np.isnan(one.right_K).all()
    assert np.isfinite(one.read(np.zeros((1, WIDTH)))).all()


def test_a_value_that_nobody_states_any_more_has_probability_zero():
    vectors, values = catalogue(30)
    rows = np.flatnonzero(values.toarray()[:, 3]).tolist()
    readers = ValueReaders.fit(vectors, values, KEYS, progress=False)
    known = vectors[rows].astype(np.float64) - readers.mean_D
    read = readers.read(known, without=rows, known_SD=known)
    assert not read[:, 3].any()
    assert np.isfinite(read).all()
    np.testing.assert_allclose(readers.effects(without=rows, known_SD=known)[3], 0, atol=1e-7)
