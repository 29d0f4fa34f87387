"""The sample, its parts, the choice of an adapter, and calibrated scores."""

import dataclasses
import random
from collections import Counter

import numpy as np
import pytest

from retrieval.stores.interface import StoredProduct
from retrieval.upgrade.adapters import unit
from retrieval.upgrade.calibration import Calibration, fit_calibration
from retrieval.upgrade.fitting import ADAPTED, NEW_TO_NEW, OLD_TO_OLD, UNADAPTED, Sample, fit_upgrade
from retrieval.upgrade.gallery import Gallery, ranks
from retrieval.upgrade.recipes import Texts, linear_recipes, short_texts
from retrieval.upgrade.sampling import UpgradeError, split, stratified_sample

PRODUCTS, WIDTH = 200, 24


def normal(*shape, seed):
    return np.random.default_rng(seed).normal(size=shape)


def sample_of(old_width=WIDTH, noise=0.0, with_old=True):
    """Two vectors for each product; queries are near their products; the old model is a rotated or cut copy."""
    product = np.repeat(np.arange(PRODUCTS), 2)
    new = unit(normal(PRODUCTS, WIDTH, seed=0)[product] + 0.2 * normal(2 * PRODUCTS, WIDTH, seed=1))
    query = unit(normal(PRODUCTS, WIDTH, seed=0) + 0.3 * normal(PRODUCTS, WIDTH, seed=2))
    turn = np.linalg.qr(normal(WIDTH, WIDTH, seed=3))[0][:, :old_width]
    old = unit(new @ turn + noise * normal(len(new), old_width, seed=4))
    old_query = unit(query @ turn) if with_old else None
    return Sample(Gallery(old, product), Gallery(new, product), query, np.arange(PRODUCTS), old_query)


def recall(fitted, name):
    return (fitted.rank_by[name] <= 10).mean()


def test_a_rotated_model_loses_nothing_and_the_simplest_adapter_is_chosen():
    fitted = fit_upgrade(sample_of())
    assert fitted.name == "procrustes"
    assert np.array_equal(fitted.rank_by[ADAPTED], fitted.rank_by[NEW_TO_NEW])
    assert np.array_equal(fitted.rank_by[ADAPTED], fitted.rank_by[OLD_TO_OLD])
    assert recall(fitted, UNADAPTED) < 0.3 < 0.9 < recall(fitted, ADAPTED)
    assert (fitted.calibration.scale, fitted.calibration.shift) == pytest.approx((1, 0), abs=1e-3)
    assert len(fitted.rank_by[ADAPTED]) == PRODUCTS * 0.2
    found = fitted.back(fitted.adapter(unit(normal(9, WIDTH, seed=8))))
    assert np.allclose(found, unit(normal(9, WIDTH, seed=8)), atol=1e-3)


def test_between_widths_nothing_is_compared_without_an_adapter():
    fitted = fit_upgrade(sample_of(old_width=16, with_old=False))
    assert UNADAPTED not in fitted.rank_by
    assert OLD_TO_OLD not in fitted.rank_by
    assert recall(fitted, ADAPTED) > 0.8
    assert fitted.adapter(np.ones((1, WIDTH))).shape == (1, 16)
    assert fitted.back(np.ones((1, 16))).shape == (1, WIDTH)


def test_no_measured_product_takes_part_in_the_choice_and_all_take_part_in_the_final_fit():
    sample = sample_of(noise=0.3)
    measured = split(PRODUCTS, seed=0).measure
    rows = np.isin(sample.old.product_V, measured)
    other = sample.old.vector_VD.copy()
    other[rows] = unit(normal(rows.sum(), WIDTH, seed=11))
    changed = Sample(Gallery(other, sample.old.product_V), sample.new, sample.new_query_QD, sample.right_Q)
    one, two = fit_upgrade(sample), fit_upgrade(changed)
    material = sample.material
    recipe = {recipe.name: recipe for recipe in linear_recipes(material)}[one.name]
    again, wanted = recipe.fit(split(PRODUCTS, seed=0).fit), recipe.fit(np.arange(PRODUCTS))
    assert np.array_equal(one.adapter.matrix_DE, wanted.matrix_DE)
    assert not np.array_equal(one.adapter.matrix_DE, two.adapter.matrix_DE)
    queries = np.flatnonzero(np.isin(sample.right_Q, measured))
    assert np.array_equal(one.rank_by[ADAPTED], sample.ranks(again(sample.new_query_QD), sample.old, queries))


def with_texts(sample, old_texts=True):
    """The sample with three noisy texts for each product, whose vectors by the new model have an offset."""
    product = np.repeat(np.arange(PRODUCTS), 3)
    centre = sample.new_query_QD[product]
    new = unit(centre + 0.3 * normal(len(product), WIDTH, seed=21) + 0.2)
    old = unit(sample.old_query_QE[product] + 0.3 * normal(len(product), sample.old_query_QE.shape[1], seed=22))
    return dataclasses.replace(sample, texts=Texts(new, product, old if old_texts else None))


def test_pairs_of_texts_are_those_of_their_product():
    sample = with_texts(sample_of(noise=0.1))
    chosen = np.array([3, 7, 50])
    pairs = sample.material.pairs(chosen, 0.5)
    assert len(pairs) == 3 * 2 + 3 * 3 * 2
    assert pairs.weight_N.tolist() == [1] * 6 + [0.25] * 18
    for new, old, product in zip(pairs.new_ND[6:], pairs.old_NE[6:], pairs.product_N[6:], strict=True):
        own_T = sample.texts.product_T == chosen[product]
        own_V = sample.old.product_V == chosen[product]
        assert (sample.texts.new_TD[own_T] == new).all(axis=1).sum() == 1
        assert (sample.old.vector_VD[own_V] == old).all(axis=1).sum() == 1
    queries = sample.material.pairs(chosen, 0.5, to_queries=True)
    assert np.array_equal(queries.old_NE[6:], sample.texts.old_TE[np.isin(sample.texts.product_T, chosen)])
    assert np.array_equal(sample.material.searched(chosen).product_V, [0, 0, 1, 1, 2, 2])


def test_every_adapter_is_tried_and_texts_recover_the_offset_of_queries():
    plain = sample_of(noise=0.3)
    offset = dataclasses.replace(plain, new_query_QD=unit(plain.new_query_QD + 0.2))
    sample = dataclasses.replace(offset, texts=with_texts(plain).texts)
    fitted, without = fit_upgrade(sample), fit_upgrade(offset)
    names = {name.split(", weight")[0] for name in fitted.chosen_by}
    assert names == {
        "procrustes",
        "affine, rank 16",
        "affine, rank 24",
        "affine, texts to products",
        "affine, texts to queries",
        "network",
        "network, search, texts to products",
    }
    assert {name for name in without.chosen_by if "texts" in name} == set()
    assert recall(fitted, ADAPTED) >= recall(without, ADAPTED)
    alone = fit_upgrade(dataclasses.replace(sample, texts=with_texts(plain, old_texts=False).texts))
    assert not any("texts to queries" in name for name in alone.chosen_by)
    assert any("texts to products" in name for name in alone.chosen_by)


def test_the_choice_is_by_old_neighbours_of_products_and_titles_and_without_the_old_model_by_the_titles_products():
    sample = with_texts(sample_of(noise=0.3))
    products = split(PRODUCTS, seed=0).choose
    queries = np.flatnonzero(np.isin(sample.right_Q, products))
    recipe = {recipe.name: recipe for recipe in linear_recipes(sample.material)}["procrustes"]
    adapter = recipe.fit(split(PRODUCTS, seed=0).fit)

    def shared(new_QD, old_QE):
        shares = []
        for new_D, old_E in zip(adapter(new_QD), old_QE, strict=True):
            own, near = (set(np.argsort(-sample.old.scores(one[None])[0])[:10].tolist()) for one in (new_D, old_E))
            shares.append(len(own & near) / 10)
        return np.mean(shares)

    vectors = np.flatnonzero(np.isin(sample.old.product_V, products))
    by_product = shared(sample.new.vector_VD[vectors], sample.old.vector_VD[vectors])
    by_title = shared(sample.new_query_QD[queries], sample.old_query_QE[queries])
    assert fit_upgrade(sample).chosen_by["procrustes"] == pytest.approx((by_product + by_title) / 2)

    alone = dataclasses.replace(sample, old_query_QE=None, texts=dataclasses.replace(sample.texts, old_TE=None))
    found = ranks(sample.old.scores(adapter(sample.new_query_QD[queries])), [[one] for one in sample.right_Q[queries]])
    expected = (by_product + (found <= 10).mean()) / 2
    assert fit_upgrade(alone).chosen_by["procrustes"] == pytest.approx(expected)


def test_short_texts_are_parts_of_a_product():
    product = StoredProduct(
        "a",
        title="Acme blue tote bag, large",
        description="A bag. It holds a lot!",
        category=("Bags", "Totes"),
        attributes={"colour": ("blue",), "size": ("L",)},
    )
    title, half, values, sentence = short_texts(product, random.Random(0))
    assert title == product.title
    words = product.title.replace(",", "").split()
    assert len(half.split()) == 3
    assert [word for word in words if word in half.split()] == half.split()
    assert set(values.split()) == {"blue", "L", "Totes"}
    assert sentence in ("A bag", "It holds a lot")
    assert short_texts(StoredProduct("b", images=("x.jpg",)), random.Random(0)) == []


def test_pairs_of_different_products_are_refused():
    sample = sample_of()
    shorter = Gallery(sample.old.vector_VD[:-1], sample.old.product_V[:-1])
    with pytest.raises(UpgradeError, match="found 399 old and 400 new vectors of different products"):
        Sample(shorter, sample.new, sample.new_query_QD, sample.right_Q)


def test_a_sample_without_queries_is_refused():
    sample = sample_of()
    with pytest.raises(UpgradeError, match="found 0 and 0 products with a title or picture to search by"):
        fit_upgrade(Sample(sample.old, sample.new, sample.new_query_QD[:0], sample.right_Q[:0]))


def test_each_category_has_its_share_of_the_sample():
    strata = ["shoes"] * 500 + ["bags"] * 300 + ["hats"] * 197 + ["belts"] * 3
    chosen = stratified_sample(strata, 100, seed=4)
    assert Counter(strata[index] for index in chosen) == {"shoes": 50, "bags": 30, "hats": 20}
    assert chosen == sorted(set(chosen))
    assert chosen == stratified_sample(strata, 100, seed=4)
    assert chosen != stratified_sample(strata, 100, seed=5)
    assert len(stratified_sample([str(number % 7) for number in range(90)], 53)) == 53


@pytest.mark.parametrize("count", [49, 201])
def test_a_sample_that_is_too_small_or_larger_than_the_products_is_refused(count):
    with pytest.raises(UpgradeError, match=f"sample: found {count} of 200 products; expected at least 50"):
        stratified_sample(["all"] * 200, count)


def test_the_parts_are_all_products_once():
    parts = split(101, seed=2)
    assert sorted([*parts.fit, *parts.choose, *parts.measure]) == list(range(101))
    assert (len(parts.fit), len(parts.choose), len(parts.measure)) == (61, 20, 20)


def test_a_product_scores_as_its_nearest_vector_and_ties_count_against_the_answer():
    gallery = Gallery(np.array([[1, 0], [0, 1], [0.6, 0.8], [0, -1]], dtype=np.float32), np.array([0, 0, 1, 2]))
    score = gallery.scores(np.array([[0, 1], [1, 0]], dtype=np.float32))
    assert score == pytest.approx(np.array([[1, 0.8, -1], [1, 0.6, 0]]))
    assert ranks(score, [[1], [0]]).tolist() == [2, 1]
    assert ranks(np.zeros((1, 3)), [[2]]).tolist() == [3]
    assert ranks(score, [[1, 2], [1, 2]]).tolist() == [2, 2]


@pytest.mark.parametrize("product", [[0, 2], [1, 2], [0], [1, 0]])
def test_a_gallery_with_products_out_of_order_is_refused(product):
    with pytest.raises(ValueError, match="product_V: expected ascending numbers"):
        Gallery(np.ones((2, 3)), np.array(product))


def test_calibrated_scores_have_the_moments_of_the_new_ones():
    new = np.random.default_rng(0).normal(0.4, 0.2, size=(30, 400))
    old = 0.5 * new + 0.3
    found = fit_calibration(old, new)
    assert (found.scale, found.shift) == pytest.approx((2, -0.6))
    assert found(old) == pytest.approx(new)
    assert fit_calibration(np.ones((2, 3)), np.zeros((2, 3))) == Calibration(1.0, -1.0)
    with pytest.raises(ValueError, match="scores: found shapes"):
        fit_calibration(old, new[:, :3])
