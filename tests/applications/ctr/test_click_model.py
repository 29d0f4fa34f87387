"""The click model: attention and histogram against slow references, what a variant reads, and that training learns."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from clicks import SMALL, attribute_vectors, clicks, shop, vectors_of_shop
from sklearn.metrics import roc_auc_score

from applications.ctr.model import VARIANTS, CtrModel, CtrSettings
from applications.ctr.periods import NONE, Histories, divide
from applications.ctr.product_vectors import ProductVectors, read_vectors, similarity_histogram
from applications.ctr.training import ClickRows, train
from product_data.errors import OptionError

SETTINGS = CtrSettings(history=8, size=8, tiers=5, hidden=16, batch_size=64, epochs=2)


@pytest.fixture(scope="module")
def log():
    return clicks(settings=replace(SMALL, users=120, sessions=10))


@pytest.fixture(scope="module")
def vectors(log):
    return ProductVectors("m", "f", attribute_vectors(shop()), 0)


def test_the_histogram_counts_cosines_by_tier(log, vectors):
    histories = Histories(log, 8)
    vector_PD = vectors.vector_PD.copy()
    vector_PD[3] = 0  # a product without a vector
    found_NT = similarity_histogram(vector_PD, log.product_N, histories, 5)
    for row in range(0, len(log), 41):
        expected = np.zeros(5)
        for other in histories.of(np.array([row]))[0]:
            if other != NONE and vector_PD[other].any() and vector_PD[log.product_N[row]].any():
                cosine = float(vector_PD[other] @ vector_PD[log.product_N[row]])
                expected[min(int((cosine + 1) / 2 * 5), 4)] += 1
        assert np.allclose(found_NT[row], np.log1p(expected))
    assert found_NT.sum() > 0


def test_centred_vectors_use_the_given_products_alone_and_keep_missing_ones_zero(vectors):
    own = ProductVectors("m", "f", vectors.vector_PD.copy(), 1)
    own.vector_PD[3] = 0
    centred = own.centred(np.arange(10))
    kept = [place for place in range(10) if place != 3]
    plain = own.vector_PD[20] - own.vector_PD[kept].mean(axis=0)
    assert np.allclose(centred[20], plain / np.linalg.norm(plain), atol=1e-6)
    assert not centred[3].any()


def slow_logit(model, ids, places, histogram):
    represented = model._represent(ids, places)
    target, pooled = represented[0, 0], 0
    for click in range(1, ids.shape[1]):
        if places[0, click] >= 0:
            own = represented[0, click]
            weight = model.attention(torch.cat([own, target, own - target, own * target]))
            pooled = pooled + weight * own
    count = int((places[0, 1:] >= 0).sum())
    pooled = pooled / model.settings.history**0.5
    parts = [pooled, target, pooled * target, torch.log1p(torch.tensor([float(count)]))]
    return model.head(torch.cat([*parts, histogram[0]] if model.parts.histogram else parts))[0]


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_logit_is_that_of_the_equation_and_padding_changes_nothing(log, vectors, variant):
    rows = ClickRows(log, divide(log), vectors, SETTINGS)
    torch.manual_seed(0)
    model = CtrModel(variant, rows.known_ids, rows.vector_PD, SETTINGS)
    lengths = rows.histories.lengths()
    chosen = np.flatnonzero((lengths > 1) & (lengths < 8))[:2]
    ids, places, histogram = rows.batch(chosen)
    found = model(ids, places, histogram)
    for row in range(2):
        one = slice(row, row + 1)
        assert torch.allclose(found[row], slow_logit(model, ids[one], places[one], histogram[one]), atol=1e-5)
    other_ids, other_places = ids.clone(), places.clone()
    other_ids[places < 0] = 1  # what stands in the padding does not matter
    assert torch.equal(model(other_ids, other_places, histogram), found)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_variant_reads_its_parts_and_nothing_else(log, vectors, variant):
    rows = ClickRows(log, divide(log), vectors, SETTINGS)
    parts = VARIANTS[variant]
    model = CtrModel(variant, rows.known_ids, rows.vector_PD, SETTINGS)
    chosen = np.flatnonzero(rows.histories.lengths() > 2)[:16]
    ids, places, histogram = rows.batch(chosen)
    plain = model(ids, places, histogram)
    assert (not torch.equal(model(torch.zeros_like(ids), places, histogram), plain)) == parts.ids
    assert (not torch.equal(model(ids, places, histogram + 1), plain)) == parts.histogram
    moved = torch.where(places < 0, places, (places + 7) % len(log.products))
    assert (not torch.equal(model(ids, moved, histogram), plain)) == parts.vectors
    plain.sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())


def test_new_products_share_the_id_of_unknown_ones(log, vectors):
    periods = divide(log)
    rows = ClickRows(log, periods, vectors, SETTINGS)
    ids, _, _ = rows.batch(periods.test)
    assert (ids[:, 0] == 0).tolist() == periods.is_new_N[periods.test].tolist()
    assert (rows.batch(periods.train)[0][:, 0] > 0).all()


def test_vectors_of_the_attributes_predict_clicks_on_new_products_better_than_ids(log, vectors):
    periods = divide(log)
    rows = ClickRows(log, periods, vectors, SETTINGS)
    settings = replace(SETTINGS, epochs=6, learning_rate=5e-3)
    new = np.isin(periods.test, periods.subsets()["new"])
    auc = {}
    for variant in ("ids", "vectors"):
        trained = train(rows, variant, settings, seed=0)
        assert trained.steps > 0
        assert np.isfinite(trained.probability_N).all()
        auc[variant] = roc_auc_score(log.clicked_N[periods.test][new], trained.probability_N[new])
    assert auc["vectors"] > auc["ids"] + 0.02


def test_a_training_is_repeatable_and_its_test_clicks_never_matter(log, vectors):
    periods = divide(log)
    first = train(ClickRows(log, periods, vectors, SETTINGS), "ids_vectors_histogram", SETTINGS, seed=3)
    again = train(ClickRows(log, periods, vectors, SETTINGS), "ids_vectors_histogram", SETTINGS, seed=3)
    assert np.array_equal(first.probability_N, again.probability_N)
    # Turn the clicks of the last moment of the test period: no history contains them.
    clicked_N = log.clicked_N.copy()
    last = log.time_N == log.time_N.max()
    clicked_N[last] = ~clicked_N[last]
    turned = replace(log, clicked_N=clicked_N)
    other = train(ClickRows(turned, divide(turned), vectors, SETTINGS), "ids_vectors_histogram", SETTINGS, seed=3)
    assert np.array_equal(first.probability_N, other.probability_N)
    assert train(ClickRows(log, periods, vectors, SETTINGS), "ids", SETTINGS, seed=4).valid_loss != first.valid_loss


def test_vectors_are_read_in_the_order_of_the_log(log, tmp_path):
    products = shop()
    vectors_of_shop(tmp_path / "v", products[:50], attribute_vectors(products)[:50])
    found = read_vectors(tmp_path / "v", log)
    by_id = {row.product_id: vector for row, vector in zip(products, attribute_vectors(products), strict=True)}
    missing = {row.product_id for row in products[50:]}
    for name, vector in zip(log.products, found.vector_PD, strict=True):
        assert np.allclose(vector, 0 if name in missing else by_id[name], atol=1e-6)
    assert found.missing == len(missing & {log.products[place] for place in set(log.product_N.tolist())})


def test_a_log_of_other_products_is_refused(log, tmp_path):
    products = shop()
    vectors_of_shop(tmp_path / "v", products[:20], attribute_vectors(products)[:20])
    with pytest.raises(OptionError, match="found vectors of 20 of the 60 products"):
        read_vectors(tmp_path / "v", log)


@pytest.mark.parametrize(("option", "value"), [("history", 0), ("unknown_share", 1.0), ("learning_rate", 0.0)])
def test_a_setting_out_of_range_is_refused(option, value):
    with pytest.raises(OptionError, match=option):
        CtrSettings(**{option: value})


def test_a_variant_with_vectors_needs_them():
    with pytest.raises(OptionError, match="found no vectors"):
        CtrModel("vectors", 3, None, SETTINGS)
