"""Explanations of matches: the parts sum to the cosine, weights solve the lasso, the right value is first, refusals."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.optimize import minimize

from modeling_moon import MoonConfig  # noqa: F401 - registers the model
from product_data.catalogue.making import make_catalogue
from product_data.rows import ProductRow
from retrieval.encode import encode, load_for_evaluation
from retrieval.explain import MatchExplainer, Side, decompose, explain_match
from retrieval.phrases import (
    ExplanationError,
    Phrase,
    PhraseDictionary,
    build_dictionary,
    collect_phrases,
    embed_phrases,
    phrases_of,
    product_means,
)
from retrieval.queries import Query, SearchError
from retrieval.query_encoder import QueryEncoder
from retrieval.search import Searcher
from retrieval.stores.exact import ExactStore
from retrieval.stores.interface import StoredProduct

WIDTH = 24


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


@pytest.fixture
def dictionary():
    rng = np.random.default_rng(0)
    names = tuple(Phrase("color", f"c{number:02}") for number in range(12))
    return PhraseDictionary(names, unit(rng.normal(size=(12, WIDTH))).astype(np.float32), {}, np.zeros(WIDTH))


def test_weights_minimise_the_equation_of_the_module(dictionary):
    rng = np.random.default_rng(1)
    centred = rng.normal(size=(3, WIDTH))
    weights = decompose(centred, dictionary.atoms, penalty=0.1)
    for vector, found in zip(centred, weights, strict=True):
        length = np.linalg.norm(vector)

        def loss(w, target=vector / length):
            return 0.5 * ((target - w @ dictionary.atoms) ** 2).sum() + 0.1 * w.sum()

        slow = minimize(loss, np.full(12, 0.1), bounds=[(0, None)] * 12, options={"maxiter": 2000, "ftol": 1e-15})
        np.testing.assert_allclose(found / length, slow.x, atol=2e-3)
        assert loss(found / length) <= slow.fun + 1e-6
    assert (weights >= 0).all()
    assert 0 < (weights > 0).sum() < weights.size  # sparse


def test_a_larger_penalty_names_fewer_phrases_and_a_vector_of_zeros_none(dictionary):
    centred = np.random.default_rng(1).normal(size=(20, WIDTH))
    counts = [(decompose(centred, dictionary.atoms, penalty=penalty) > 0).sum() for penalty in (0.01, 0.1, 0.3, 1.0)]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > counts[-1] == 0
    assert not decompose(np.zeros((1, WIDTH)), dictionary.atoms).any()


def test_the_parts_sum_to_the_cosine_and_are_those_of_a_slow_sum(dictionary):
    rng = np.random.default_rng(2)
    sides = [
        Side(vector, mean)
        for vector, mean in zip(unit(rng.normal(size=(2, WIDTH))), rng.normal(size=(2, WIDTH)) / 9, strict=True)
    ]
    found = explain_match(sides[0], sides[1], dictionary, penalty=0.05)
    shared = sum(entry.contribution for entry in found.shared)
    cosine = float(sides[0].vector_D @ sides[1].vector_D)
    assert found.cosine == pytest.approx(cosine)
    assert shared + found.different + found.residual + found.common == pytest.approx(cosine, abs=1e-12)
    centred = [side.vector_D - side.mean_D for side in sides]
    weights = [decompose(vector[None], dictionary.atoms, penalty=0.05)[0] for vector in centred]
    own = different = 0.0
    for p in range(12):
        for other in range(12):
            part = weights[0][p] * weights[1][other] * float(dictionary.atoms[p] @ dictionary.atoms[other])
            own, different = (own + part, different) if p == other else (own, different + part)
    assert (shared, found.different) == (pytest.approx(own), pytest.approx(different))
    residual = [vector - weight @ dictionary.atoms for vector, weight in zip(centred, weights, strict=True)]
    described = [weight @ dictionary.atoms for weight in weights]
    assert found.residual == pytest.approx(
        described[0] @ residual[1] + residual[0] @ described[1] + residual[0] @ residual[1]
    )
    assert found.unexplained[0] == pytest.approx((residual[0] ** 2).sum() / (centred[0] ** 2).sum())
    assert found.share_explained == (pytest.approx(shared / (cosine - found.common)) if cosine > found.common else None)


def test_only_stated_phrases_are_candidates_unless_every_phrase_is_wanted(dictionary):
    names, atoms = dictionary.phrases, dictionary.atoms
    zero = np.zeros(WIDTH)
    query = Side(unit(atoms[0] + atoms[1] + atoms[2]), zero, (names[0], names[1]))
    product = Side(unit(atoms[0] + atoms[2] + atoms[3]), zero, (names[0], names[3]))
    few = explain_match(query, product, dictionary)
    assert {entry.phrase for entry in few.shared} <= {names[0], names[1], names[3]}
    assert few.shared[0].phrase == names[0]
    assert few.shared[0].stated == "both"
    every = explain_match(query, product, dictionary, every_phrase=True)
    assert {names[0], names[2]} <= {entry.phrase for entry in every.shared}
    assert {entry.phrase: entry.stated for entry in every.shared}[names[2]] == "neither"
    without = explain_match(Side(query.vector_D, zero), Side(product.vector_D, zero), dictionary)
    assert [entry.phrase for entry in without.shared] == [entry.phrase for entry in every.shared]


def test_an_explanation_is_json(dictionary):
    rng = np.random.default_rng(3)
    sides = [Side(vector, np.zeros(WIDTH)) for vector in unit(rng.normal(size=(2, WIDTH)))]
    found = explain_match(*sides, dictionary, penalty=0.01).as_dict()
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    parts = (
        sum(entry["contribution"] for entry in found["shared"])
        + found["different"]
        + found["residual"]
        + found["common"]
    )
    assert parts == pytest.approx(found["cosine"], abs=1e-4)
    assert found["different_pairs"]


@pytest.mark.parametrize(
    ("centred", "penalty", "words"),
    [
        (np.ones((1, 3)), 0.1, "found 3 numbers; expected 24"),
        (np.full((1, WIDTH), np.nan), 0.1, "not finite"),
        (np.ones((1, WIDTH)), 0, "penalty: found 0"),
    ],
)
def test_vectors_that_cannot_be_decomposed_are_refused(centred, penalty, words, dictionary):
    with pytest.raises(ExplanationError, match=words):
        decompose(centred, dictionary.atoms, penalty=penalty)


def test_phrases_are_what_the_shop_states_each_once():
    product = StoredProduct(
        "p",
        category=("Shoes", "Boots"),
        brand="Acme",
        attributes={"color": ("red", "blue"), "category": ("boots",), "Brand": ("acme",)},
    )
    assert phrases_of(product) == (
        Phrase("color", "red"),
        Phrase("color", "blue"),
        Phrase("category", "Boots"),
        Phrase("brand", "Acme"),
    )
    many = [StoredProduct("a", attributes={"color": ("red",)}), product, StoredProduct("c", brand="Rare")]
    assert collect_phrases(many, most=1) == [Phrase("color", "red")]
    assert len(collect_phrases(many)) == 5
    with pytest.raises(ExplanationError, match="found no attributes, brands or categories"):
        collect_phrases([StoredProduct("a", title="only a title")])


@pytest.fixture(scope="module")
def searcher(tiny_moon):
    model, processor = load_for_evaluation(tiny_moon(trained=True), device="cpu")
    drawn, _ = make_catalogue(products=18, image_size=64, queries_per_product=0, progress=False)
    rows = [
        ProductRow(
            row["product_id"],
            row["title"],
            category=tuple(row["category_path"]),
            attributes={pair["key"]: (pair["value"],) for pair in row["attributes"]},
        )
        for row in drawn
    ]
    store = ExactStore(model.config.vector_size, "tiny")
    vectors = encode(model, processor, [row.record("t") for row in rows], form="t", progress=False).vectors
    facts = [StoredProduct(row.product_id, row.title, category=row.category, attributes=row.attributes) for row in rows]
    store.upsert(facts, {"t": vectors})
    store.upsert([StoredProduct("plain", "a thing")], {"mm": vectors[:1]})
    return Searcher(store, QueryEncoder(model, processor, "tiny"))


def test_matches_of_a_store_are_explained_by_words_and_by_another_product(searcher):
    explainer = MatchExplainer(searcher)
    ids = [product.product_id for product in searcher.store.products()][:2]
    found = explainer.explain(ids[0], Query(like=ids[1]), penalty=0.01)
    vectors = searcher.store.vectors(ids, "t")
    assert found.cosine == pytest.approx(float(vectors[0] @ vectors[1]), abs=1e-6)
    assert found.form == "t"
    stated = [set(phrases_of(product)) for product in searcher.store.get(ids)]
    assert found.shared
    for entry in found.shared:
        names = {(True, True): "both", (False, True): "product", (True, False): "query"}
        assert entry.stated == names[entry.phrase in stated[1], entry.phrase in stated[0]]
    by_words = explainer.explain(ids[0], "red shoes", penalty=0.001)
    assert by_words.cosine == pytest.approx(
        float(vectors[0] @ searcher.encoder.encode_queries([Query("red shoes")])[0].vectors_RD[0]), abs=1e-6
    )
    assert {entry.stated for entry in by_words.shared} <= {"product"}
    assert {entry.phrase for entry in by_words.shared} <= stated[0]


def test_unknown_products_forms_and_weights_are_refused(searcher):
    explainer = MatchExplainer(searcher)
    known = next(iter(searcher.store.products())).product_id
    with pytest.raises(ExplanationError, match="found id 'nobody'; expected the id of one of the 19 products"):
        explainer.explain("nobody", "red")
    with pytest.raises(ExplanationError, match="'i'; expected one of the store's forms: mm, t"):
        explainer.explain(known, "red", form="i")
    with pytest.raises(ExplanationError, match="product 'plain': found no vector of the form t"):
        explainer.explain("plain", "red", form="t")
    with pytest.raises(ExplanationError, match="found a weight"):
        explainer.explain(known, Query("red", like=known, weight=0.5))
    with pytest.raises(SearchError, match="nothing to search for"):
        explainer.explain(known, "")


def test_the_dictionary_is_built_once_for_a_state_of_the_catalogue(searcher, tmp_path, monkeypatch):
    encoder, store = searcher.encoder, searcher.store
    first = build_dictionary(encoder.model, encoder.processor, store, folder=tmp_path)
    [file] = tmp_path.iterdir()
    monkeypatch.setattr("retrieval.phrases.encode", None)  # nothing is encoded again
    again = build_dictionary(encoder.model, encoder.processor, store, folder=tmp_path)
    assert again.phrases == first.phrases
    np.testing.assert_array_equal(again.vector_PD, first.vector_PD)
    np.testing.assert_array_equal(again.query_mean_D, first.query_mean_D)
    assert again.product_mean.keys() == {"mm", "t"}
    ids = [product.product_id for product in store.products()]
    vectors = store.vectors(ids, "t")
    np.testing.assert_allclose(
        again.product_mean["t"], vectors[np.isfinite(vectors).all(axis=1)].mean(axis=0), atol=1e-6
    )
    monkeypatch.setattr(store, "fingerprint", "another")
    with pytest.raises(TypeError):  # another model: encoded again
        build_dictionary(encoder.model, encoder.processor, store, folder=tmp_path)
    monkeypatch.undo()
    file.write_bytes(b"torn")
    with pytest.raises(ExplanationError, match="remove it, and it is built again"):
        build_dictionary(encoder.model, encoder.processor, store, folder=tmp_path)


def test_means_are_of_every_nth_product_of_a_large_catalogue(monkeypatch):
    monkeypatch.setattr("retrieval.phrases._MEAN_OF_PRODUCTS", 4)
    store = ExactStore(3, "x")
    vectors = unit(np.random.default_rng(0).normal(size=(10, 3))).astype(np.float32)
    store.upsert([StoredProduct(f"p{n}") for n in range(10)], {"t": vectors})
    means = product_means(store, [f"p{n}" for n in range(10)])
    np.testing.assert_allclose(means["t"], vectors[::3].mean(axis=0), atol=1e-6)


def test_phrases_are_embedded_as_products_or_as_labels(searcher):
    encoder = searcher.encoder
    phrases = [Phrase("colour", "red"), Phrase("category", "Boots"), Phrase("sole", "red")]
    as_products, as_labels = (
        embed_phrases(encoder.model, encoder.processor, phrases, embedded_as=way, progress=False)
        for way in ("product", "label")
    )
    record = {"id": "x", "attributes": {"colour": ["red"]}}
    expected = encode(encoder.model, encoder.processor, [record], form="t", progress=False).vectors[0]
    np.testing.assert_allclose(as_products[0], expected, atol=1e-4)
    label = encode(
        encoder.model, encoder.processor, [{"id": "x", "text": "Boots"}], kind="query", task="category", progress=False
    )
    np.testing.assert_allclose(as_labels[1], label.vectors[0], atol=1e-4)
    np.testing.assert_allclose(as_labels[0], as_labels[2], atol=1e-5)  # a label is a value without its key
    assert np.abs(as_products[0] - as_products[2]).max() > 1e-4
    with pytest.raises(ExplanationError, match="embedded_as"):
        embed_phrases(encoder.model, encoder.processor, phrases, embedded_as="x")
