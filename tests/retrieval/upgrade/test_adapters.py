"""Adapters against maps that are known, and against slow references."""

import numpy as np
import pytest
import torch

from retrieval.upgrade.adapters import KINDS, Adapter, Pairs, _Objective, fit_affine, fit_network, fit_procrustes, unit
from retrieval.upgrade.gallery import Gallery


def cloud(rows, width, seed=0):
    return unit(np.random.default_rng(seed).normal(size=(rows, width)))


def rotation(width, seed=1):
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(width, width)))[0].astype(np.float32)


def network(new, old, base, gallery=None, **options):
    """A network on pairs of products, whose base is not fitted."""
    return fit_network(Pairs.of_products(new, old), lambda _: base, gallery, **options)


@pytest.fixture
def rotated():
    """Vectors of a new model, and those of an old one that is a rotated copy of it."""
    new = cloud(300, 16)
    return new, new @ rotation(16)


def test_a_rotated_copy_is_recovered_exactly_by_every_adapter(rotated):
    new, old = rotated
    unseen = cloud(50, 16, seed=5)
    procrustes = fit_procrustes(new, old)
    assert np.allclose(procrustes.matrix_DE, rotation(16), atol=1e-5)
    for adapter in (procrustes, fit_affine(new, old, 4), network(new, old, procrustes)):
        assert np.allclose(adapter(unseen), unseen @ rotation(16), atol=1e-4)
        assert np.allclose(np.linalg.norm(adapter(unseen), axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("widths", [(16, 24), (24, 16)])
def test_between_widths_lengths_of_the_smaller_space_are_kept(widths):
    wide = rotation(24)
    small = cloud(200, 16)
    large = small @ wide[:16]
    new, old = (small, large) if widths[0] < widths[1] else (large, small)
    adapter = fit_procrustes(new, old)
    assert adapter.matrix_DE.shape == widths
    assert np.allclose(adapter(new), old, atol=1e-5)
    square = (
        adapter.matrix_DE @ adapter.matrix_DE.T if widths[0] < widths[1] else adapter.matrix_DE.T @ adapter.matrix_DE
    )
    assert np.allclose(square, np.eye(16), atol=1e-5)


def test_no_orthogonal_map_has_a_larger_sum_of_cosines():
    new, old = cloud(100, 6), cloud(100, 6, seed=3)
    best = (new @ fit_procrustes(new, old).matrix_DE * old).sum()
    for seed in range(200):
        assert (new @ rotation(6, seed) * old).sum() <= best + 1e-4


def test_the_affine_map_learns_an_offset_and_a_stretch_that_no_rotation_has():
    new = cloud(2000, 8)
    stretched = unit(new @ np.diag([2, 1, 1, 1, 1, 1, 1, 0.5]).astype(np.float32) + 0.3)
    unseen = cloud(100, 8, seed=7)
    wanted = unit(unseen @ np.diag([2, 1, 1, 1, 1, 1, 1, 0.5]).astype(np.float32) + 0.3)
    procrustes, affine = fit_procrustes(new, stretched), fit_affine(new, stretched, 8)
    residual = network(new, stretched, affine)
    loss = [float(np.square(adapter(unseen) - wanted).sum(axis=1).mean()) for adapter in (procrustes, affine, residual)]
    assert loss[1] < 0.5 * loss[0]
    assert loss[2] < 0.7 * loss[1]


@pytest.mark.parametrize("rank", [1, 3, 8])
def test_the_correction_has_the_rank(rank):
    new, old = cloud(400, 8), cloud(400, 8, seed=2)
    correction = fit_affine(new, old, rank).matrix_DE - fit_procrustes(new, old).matrix_DE
    assert np.linalg.matrix_rank(correction.astype(np.float64), tol=1e-5) == rank


def test_the_full_correction_is_the_ridge_regression_of_what_is_left():
    new, old = cloud(120, 5).astype(np.float64), cloud(120, 5, seed=2).astype(np.float64)
    base = fit_procrustes(new, old).matrix_DE
    centred = new - new.mean(axis=0)
    ridge = 0.01 * (centred**2).sum() / 5
    # The same regression by least squares on rows that the ridge adds.
    rows = np.concatenate([centred, np.sqrt(ridge) * np.eye(5)])
    targets = np.concatenate([old - old.mean(axis=0) - centred @ base, np.zeros((5, 5))])
    slope = np.linalg.lstsq(rows, targets, rcond=None)[0]
    found = fit_affine(new, old, 5)
    assert np.allclose(found.matrix_DE, base + slope, atol=1e-5)
    assert np.allclose(found.offset_E, old.mean(axis=0) - new.mean(axis=0) @ (base + slope), atol=1e-5)


def test_the_network_is_never_worse_than_its_base_and_the_same_for_the_same_seed():
    new = cloud(60, 8)
    old = unit(new @ rotation(8) + 0.05 * cloud(60, 8, seed=4))
    base = fit_procrustes(new, old)
    one, two = (network(new, old, base, seed=3) for _ in range(2))
    assert all(np.array_equal(one.hidden[name], two.hidden[name]) for name in one.hidden)
    assert np.square(one(new) - old).sum() <= np.square(base(new) - old).sum() + 1e-6


def test_an_adapter_survives_its_tensors():
    new, old = cloud(40, 8), cloud(40, 6, seed=2)
    for kind, adapter in zip(KINDS, (fit_procrustes(new, old), fit_affine(new, old, 2), None), strict=True):
        adapter = adapter or network(new, old, fit_procrustes(new, old))
        again = Adapter.of_tensors(kind, adapter.tensors())
        assert (again.kind, adapter.kind) == (kind, kind)
        assert np.array_equal(again(new), adapter(new))


def test_weights_count_as_repeated_pairs():
    new, old = cloud(60, 6), cloud(60, 6, seed=2)
    weight = np.repeat([1.0, 3.0], 30)
    again = np.repeat(np.arange(60), weight.astype(int))
    one, two = fit_affine(new, old, 4, weight), fit_affine(new[again], old[again], 4)
    assert np.allclose(one.matrix_DE, two.matrix_DE, atol=1e-5)
    assert np.allclose(one.offset_E, two.offset_E, atol=1e-5)


def test_the_base_of_a_network_is_fitted_without_the_watched_products():
    seen = []

    def base(pairs):
        seen.append(pairs.product_N)
        return fit_procrustes(pairs.new_ND, pairs.old_NE)

    pairs = Pairs(cloud(80, 8), cloud(80, 8, seed=2), np.ones(80), np.repeat(np.arange(40), 2))
    fit_network(pairs, base)
    assert len(np.unique(seen[0])) == 34
    assert len(seen[0]) == 68


def slow_search_loss(mapped, product, gallery):
    """InfoNCE of each vector with its product's vectors among all of a gallery, by its formula."""
    losses = []
    for vector, own in zip(mapped.astype(float), product, strict=True):
        weights = [np.exp(vector @ other / 0.05) for other in gallery.vector_VD.astype(float)]
        right = sum(weight for weight, one in zip(weights, gallery.product_V, strict=True) if one == own)
        losses.append(-np.log(right / sum(weights)))
    return float(np.mean(losses))


def test_the_objective_is_the_distance_and_the_search_of_the_formula():
    gallery = Gallery(cloud(7, 4, seed=5), np.array([0, 0, 1, 2, 2, 2, 3]))
    pairs = Pairs(cloud(9, 4), cloud(9, 4, seed=2), np.arange(1.0, 10.0), np.arange(9) % 4)
    rows, mapped = np.array([1, 4, 8]), cloud(3, 4, seed=6)
    distance = np.square(pairs.old_NE[rows] - mapped).sum(axis=1)
    near = float((pairs.weight_N[rows] * distance).sum() / pairs.weight_N[rows].sum())
    found = [
        float(_Objective(pairs, some)(torch.from_numpy(mapped), torch.from_numpy(rows))) for some in (None, gallery)
    ]
    assert found[0] == pytest.approx(near, rel=1e-5)
    assert found[1] == pytest.approx(near + slow_search_loss(mapped, pairs.product_N[rows], gallery), rel=1e-5)


def test_a_network_with_a_gallery_learns_to_search_in_it():
    old = cloud(200, 16)
    new = unit(np.tanh(3 * old @ rotation(16)) + 0.6 * np.random.default_rng(0).normal(size=(200, 16)))
    gallery = Gallery(old, np.arange(200))
    base = fit_procrustes(new, old)
    losses = [slow_search_loss(network(new, old, base, some)(new), np.arange(200), gallery) for some in (None, gallery)]
    assert losses[1] < losses[0]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fit_procrustes(cloud(3, 4), cloud(2, 4)), "pairs: found 3 new and 2 old vectors"),
        (
            lambda: Pairs(cloud(3, 4), cloud(3, 4), np.ones(2), np.arange(3)),
            "found 2 weights and 3 products for 3 pairs",
        ),
        (lambda: fit_affine(np.zeros((0, 4)), np.zeros((0, 4)), 1), "pairs: found 0 new"),
        (lambda: fit_affine(cloud(9, 4), cloud(9, 4), 0), "rank: found 0; expected 1 or more"),
        (lambda: network(cloud(7, 4), cloud(7, 4), None), "network: found 7 pairs; expected at least 8"),
        (lambda: fit_procrustes(cloud(9, 4), cloud(9, 4))(cloud(2, 5)), r"found vectors of shape \(2, 5\); expected"),
    ],
)
def test_what_cannot_be_fitted_or_mapped_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
