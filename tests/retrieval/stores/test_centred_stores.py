"""Stores that centre vectors by form: equal answers, and the means stay with the store."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stored_products import DIMENSION, opened, shop, units, vector_folder

from retrieval.centring import Centring, content_form
from retrieval.stores.interface import StoreError
from retrieval.stores.opening import create_store, folder_centring, open_store, sync

KINDS = ("exact", "embedded", "served")


def contents(number):
    """Texts, pictures and both in turn."""
    product = shop(90)[number]
    if number % 3 == 1:
        return replace(product, title="", description="", category=(), attributes={})
    return replace(product, images=()) if number % 3 == 0 else product


def slowly_centred(vector, mean):
    centred = vector.astype(np.float64) - mean
    return centred / np.linalg.norm(centred)


@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 1000), forms=st.sets(st.sampled_from(["mm", "t", "i"]), min_size=1), kept=st.integers(3, 30))
def test_every_store_ranks_as_the_formula_does(seed, forms, kept, tmp_path_factory):
    products = [contents(number) for number in range(kept)]
    means = {form: 0.4 * units(1, seed + place)[0] for place, form in enumerate(("mm", "t", "i"))}
    centring = Centring(means, dict.fromkeys(means, 20))
    vectors = {form: units(kept, seed + 10 + place) for place, form in enumerate(sorted(forms))}
    query = centring(units(1, seed + 20), ["t"])
    expected = {}
    for row, product in enumerate(products):
        scores = []
        for form, rows in vectors.items():
            mean = means[content_form(product) if form == "mm" else form]
            scores.append(float(slowly_centred(rows[row], mean) @ query[0].astype(np.float64)))
        expected[product.product_id] = max(scores)
    answers = []
    for kind in KINDS:
        store = opened(kind, None if kind == "served" else tmp_path_factory.mktemp("s"), centring=centring)
        store.upsert(products, vectors)
        hits = store.search(query, k=5)[0]
        answers.append([(hit.product.product_id, hit.score, hit.form) for hit in hits])
        store.close()
    assert answers[1] == answers[0]
    assert answers[2] == answers[0]
    wanted = sorted(expected, key=lambda one: -expected[one])[:5]
    assert [product_id for product_id, _, _ in answers[0]] == wanted
    assert [score for _, score, _ in answers[0]] == pytest.approx([expected[one] for one in wanted], abs=1e-5)


@pytest.fixture
def folder(tmp_path):
    products = [contents(number) for number in range(90)]
    return vector_folder(tmp_path / "vectors", products, {"mm": units(90, 1)})


def test_the_means_of_a_folder_are_those_of_what_the_model_read(folder):
    centring = folder_centring(folder)
    assert dict(centring.counts) == {"t": 30, "i": 30, "mm": 30}
    for place, form in enumerate(("t", "i", "mm")):
        assert centring.means[form] == pytest.approx(units(90, 1)[place::3].mean(axis=0), abs=1e-6)


@pytest.mark.parametrize("place", ["store", "qdrant"])
def test_the_means_stay_with_the_store_and_centre_later_products_too(folder, tmp_path, place):
    centring = folder_centring(folder)
    name = str(tmp_path / place) if place == "store" else f"qdrant={tmp_path / 'qdrant'}/shop"
    store = create_store(name, DIMENSION, folder.fingerprint, centring)
    sync(store, folder)
    store.close()
    store = open_store(name)
    assert store.about.endswith("centred by form")
    assert store.centring.means.keys() == centring.means.keys()
    assert all(np.array_equal(store.centring.means[form], mean) for form, mean in centring.means.items())
    new = replace(contents(0), product_id="new")
    store.upsert([new], {"mm": units(1, 9)})
    wanted = [slowly_centred(units(90, 1)[0], centring.means["t"]), slowly_centred(units(1, 9)[0], centring.means["t"])]
    assert store.vectors(["p000", "new"], "mm") == pytest.approx(np.stack(wanted), abs=1e-6)
    store.close()
    again = create_store(name, DIMENSION, folder.fingerprint, Centring({"t": units(1)[0]}, {"t": 20}))
    assert again.centring.means.keys() == centring.means.keys()  # the store keeps its own
    again.close()


def test_a_plain_store_is_not_centred_afterwards(folder, tmp_path):
    store = create_store(tmp_path / "store", DIMENSION, folder.fingerprint)
    assert store.centring is None
    store.close()
    with pytest.raises(StoreError, match="found a store whose vectors are not centred by form; expected a new one"):
        create_store(tmp_path / "store", DIMENSION, folder.fingerprint, folder_centring(folder))


def test_settings_that_cannot_be_read_are_refused(folder, tmp_path):
    store = create_store(tmp_path / "store", DIMENSION, folder.fingerprint, folder_centring(folder))
    store.close()
    file = tmp_path / "store" / "moon_store.json"
    file.write_text(file.read_text().replace('"means"', '"other"'))
    with pytest.raises(StoreError, match="in the means by form; expected those of moon3 index"):
        open_store(tmp_path / "store")


def test_a_catalogue_of_one_form_is_not_centred(tmp_path):
    only = vector_folder(tmp_path / "vectors", [contents(3 * number) for number in range(30)], {"mm": units(30)})
    with pytest.raises(StoreError, match="found vectors of these forms: 30 of t; expected at least 20 of two forms"):
        folder_centring(only)
