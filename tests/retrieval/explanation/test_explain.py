"""Explanations of matches: the parts sum to the cosine, weights solve the lasso, every kind of query, refusals."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image
from scipy.optimize import minimize

from modeling_moon import MoonConfig  # noqa: F401 - registers the model
from product_data.catalogue.making import make_catalogue
from product_data.rows import ProductRow
from retrieval.encode import encode, load_for_evaluation
from retrieval.explanation.explain import MatchExplainer, Side, decompose, explain_match
from retrieval.explanation.phrases import ExplanationError, Phrase, collect_phrases, embed_phrases, phrases_of
from retrieval.queries import Query, SearchError
from retrieval.query_encoder import QueryEncoder
from retrieval.search import Searcher
from retrieval.stores.exact import ExactStore
from retrieval.stores.interface import StoredProduct

WIDTH = 24


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


NAMES = [Phrase("color", f"c{number:02}") for number in range(12)]


@pytest.fixture
def atoms():
    return unit(np.random.default_rng(0).normal(size=(12, WIDTH)))


def test_weights_minimise_the_equation_of_the_module(atoms):
    rng = np.random.default_rng(1)
    centred = rng.normal(size=(3, WIDTH))
    weights = decompose(centred, atoms, penalty=0.1)
    for vector, found in zip(centred, weights, strict=True):
        length = np.linalg.norm(vector)

        def loss(w, target=vector / length):
            return 0.5 * ((target - w @ atoms) ** 2).sum() + 0.1 * w.sum()

        slow = minimize(loss, np.full(12, 0.1), bounds=[(0, None)] * 12, options={"maxiter": 2000, "ftol": 1e-15})
        np.testing.assert_allclose(found / length, slow.x, atol=2e-3)
        assert loss(found / length) <= slow.fun + 1e-6
    assert (weights >= 0).all()
    assert 0 < (weights > 0).sum() < weights.size  # sparse


def test_a_larger_penalty_names_fewer_phrases_and_a_vector_of_zeros_none(atoms):
    centred = np.random.default_rng(1).normal(size=(20, WIDTH))
    counts = [(decompose(centred, atoms, penalty=penalty) > 0).sum() for penalty in (0.01, 0.1, 0.3, 1.0)]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > counts[-1] == 0
    assert not decompose(np.zeros((1, WIDTH)), atoms).any()


def sides_of(atoms, rng):
    vectors, means = unit(rng.normal(size=(2, WIDTH))), rng.normal(size=(2, WIDTH)) / 9
    weights = rng.uniform(0, 0.3, size=(2, 12)) * (rng.uniform(size=(2, 12)) > 0.4)
    others = [atoms, unit(atoms + 0.3 * rng.normal(size=atoms.shape))]  # both sides may have directions of their own
    return [
        Side(vector, mean, weight[:, None] * other)
        for vector, mean, weight, other in zip(vectors, means, weights, others, strict=True)
    ]


def test_the_parts_sum_to_the_cosine_and_are_those_of_a_slow_sum(atoms):
    query, product = sides_of(atoms, np.random.default_rng(2))
    found = explain_match(query, product, NAMES, read_right={"color": 0.75})
    shared = sum(entry.contribution for entry in found.shared)
    cosine = float(query.vector_D @ product.vector_D)
    assert found.cosine == pytest.approx(cosine)
    assert shared + found.different + found.residual + found.common == pytest.approx(cosine, abs=1e-12)
    own = different = 0.0
    for p in range(12):
        for other in range(12):
            part = float(query.part_CD[p] @ product.part_CD[other])
            own, different = (own + part, different) if p == other else (own, different + part)
    assert (shared, found.different) == (pytest.approx(own), pytest.approx(different))
    residuals = [side.vector_D - side.mean_D - side.part_CD.sum(axis=0) for side in (query, product)]
    described = [side.part_CD.sum(axis=0) for side in (query, product)]
    assert found.residual == pytest.approx(
        described[0] @ residuals[1] + residuals[0] @ described[1] + residuals[0] @ residuals[1]
    )
    assert found.unexplained[0] == pytest.approx((residuals[0] ** 2).sum() / (query.centred**2).sum())
    assert found.share_explained == (pytest.approx(shared / (cosine - found.common)) if cosine > found.common else None)
    assert [entry.contribution for entry in found.shared] == sorted(
        (entry.contribution for entry in found.shared), reverse=True
    )
    assert {entry.read_right for entry in found.shared} == {0.75}


def test_an_explanation_is_json(atoms):
    found = explain_match(*sides_of(atoms, np.random.default_rng(3)), NAMES).as_dict()
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    parts = (
        sum(entry["contribution"] for entry in found["shared"])
        + found["different"]
        + found["residual"]
        + found["common"]
    )
    assert parts == pytest.approx(found["cosine"], abs=1e-4)
    assert found["different_pairs"]
    assert found["shared"][0]["read_right"] is None


@pytest.mark.parametrize(
    ("centred", "penalty", "words"),
    [
        (np.ones((1, 3)), 0.1, "found 3 numbers; expected 24"),
        (np.full((1, WIDTH), np.nan), 0.1, "not finite"),
        (np.ones((1, WIDTH)), 0, "penalty: found 0"),
    ],
)
def test_vectors_that_cannot_be_decomposed_are_refused(centred, penalty, words, atoms):
    with pytest.raises(ExplanationError, match=words):
        decompose(centred, atoms, penalty=penalty)


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


def total(found):
    return sum(entry.contribution for entry in found.shared) + found.different + found.residual + found.common


def test_matches_of_a_store_are_explained_by_words_and_by_another_product(searcher):
    explainer = MatchExplainer(searcher)
    ids = [product.product_id for product in searcher.store.products()][:2]
    found = explainer.explain(ids[0], Query(like=ids[1]))
    vectors = searcher.store.vectors(ids, "t")
    assert found.cosine == pytest.approx(float(vectors[0] @ vectors[1]), abs=1e-6)
    assert total(found) == pytest.approx(found.cosine, abs=1e-9)
    assert found.form == "t"
    stated = [set(phrases_of(product)) for product in searcher.store.get(ids)]
    assert found.shared
    for entry in found.shared:
        names = {(True, True): "both", (False, True): "product", (True, False): "query"}
        assert entry.stated == names[entry.phrase in stated[1], entry.phrase in stated[0]]
    by_words = explainer.explain(ids[0], "red shoes", penalty=0.001)
    words = searcher.encoder.encode_queries([Query("red shoes")])[0].vectors_RD[0]
    assert by_words.cosine == pytest.approx(float(vectors[0] @ words), abs=1e-6)
    assert total(by_words) == pytest.approx(by_words.cosine, abs=1e-9)
    assert by_words.shared
    assert {entry.stated for entry in by_words.shared} == {"product"}
    assert {entry.phrase for entry in by_words.shared} <= stated[0]
    every = explainer.explain(ids[0], Query(like=ids[1]), every_phrase=True)
    assert {entry.phrase for entry in every.shared} > {entry.phrase for entry in found.shared}


def test_a_product_without_stated_values_is_explained_by_all_phrases(searcher):
    found = MatchExplainer(searcher).explain("plain", "red shoes", penalty=0.001)
    assert found.form == "mm"
    assert {entry.stated for entry in found.shared} <= {"neither"}


def photo(color):
    return Image.new("RGB", (64, 64), color)


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("other", ["photo", "product"])
def test_a_weighted_query_is_explained_as_the_vector_that_is_searched(searcher, weight, other):
    ids = [product.product_id for product in searcher.store.products()][:2]
    rest = {"image": photo("red")} if other == "photo" else {"like": ids[1]}
    query = Query("red shoes", weight=weight, **rest)
    explainer = MatchExplainer(searcher)
    found = explainer.explain(ids[0], query, form="t", penalty=0.001)
    searched = searcher.vectors(query, ["t"])[0]
    assert found.cosine == pytest.approx(float(searched @ searcher.store.vectors(ids[:1], "t")[0]), abs=1e-6)
    assert total(found) == pytest.approx(found.cosine, abs=1e-9)
    if weight == 0 or (weight == 1 and other == "photo"):  # one part alone has the whole weight, among the same values
        alone = explainer.explain(ids[0], Query(**rest) if weight == 0 else "red shoes", form="t", penalty=0.001)
        expected = {entry.phrase: entry.contribution for entry in alone.shared}
        own = {entry.phrase: entry.contribution for entry in found.shared}
        assert own == pytest.approx(expected, abs=1e-6)


def test_a_photo_is_explained_alone_and_read_together_with_words(searcher):
    first = next(iter(searcher.store.products())).product_id
    for query in (Query(image=photo("blue")), Query("boots", image=photo("blue"))):
        found = MatchExplainer(searcher).explain(first, query, form="t", every_phrase=True)
        searched = searcher.vectors(query)[0]
        assert found.cosine == pytest.approx(float(searched @ searcher.store.vectors([first], "t")[0]), abs=1e-6)
        assert total(found) == pytest.approx(found.cosine, abs=1e-9)
        assert found.shared


def test_unknown_products_and_forms_are_refused(searcher):
    explainer = MatchExplainer(searcher)
    known = next(iter(searcher.store.products())).product_id
    with pytest.raises(ExplanationError, match="found id 'nobody'; expected the id of one of the 19 products"):
        explainer.explain("nobody", "red")
    with pytest.raises(ExplanationError, match="'i'; expected one of the store's forms: mm, t"):
        explainer.explain(known, "red", form="i")
    with pytest.raises(ExplanationError, match="product 'plain': found no vector of the form t"):
        explainer.explain("plain", "red", form="t")
    with pytest.raises(SearchError, match="nothing to search for"):
        explainer.explain(known, "")


def test_the_products_of_a_match_do_not_explain_themselves(searcher):
    """Readers and effects are those of a store without both products."""
    explainer = MatchExplainer(searcher)
    ids = [product.product_id for product in searcher.store.products()][:2]
    readers, places = explainer.dictionary.readers("t"), explainer.dictionary.places("t")
    assert "plain" not in places  # it has no vector of this form
    vectors, rows = searcher.store.vectors(list(places), "t"), [places[one] for one in ids]
    rest = [row for row in range(len(vectors)) if row not in rows]
    centred = vectors[rest].astype(np.float64) - readers.mean_D
    values = readers.value_NP[rest].toarray()
    slow = np.linalg.solve(values.T @ values + 20 * np.eye(values.shape[1]), values.T @ centred)
    found = explainer.explain(ids[0], Query(like=ids[1]))
    known = vectors[rows].astype(np.float64) - readers.mean_D
    read = readers.read(known, without=rows, known_SD=known)
    for entry in found.shared:
        place = explainer.dictionary.row[entry.phrase]
        assert entry.product_weight == pytest.approx(read[0, place] * np.linalg.norm(slow[place]), abs=1e-7)
        assert entry.query_weight == pytest.approx(read[1, place] * np.linalg.norm(slow[place]), abs=1e-7)


def test_phrases_are_embedded_as_words_or_as_products(searcher):
    encoder = searcher.encoder
    phrases = [Phrase("colour", "red"), Phrase("category", "Boots"), Phrase("sole", "red")]
    words, products = (
        embed_phrases(encoder.model, encoder.processor, phrases, embedded_as=way, progress=False)
        for way in ("query", "product")
    )
    record = {"id": "x", "attributes": {"colour": ["red"]}}
    expected = encode(encoder.model, encoder.processor, [record], form="t", progress=False).vectors[0]
    np.testing.assert_allclose(products[0], expected, atol=1e-4)
    text = encode(encoder.model, encoder.processor, [{"id": "x", "text": "Boots"}], kind="query", progress=False)
    np.testing.assert_allclose(words[1], text.vectors[0], atol=1e-4)
    np.testing.assert_allclose(words[0], words[2], atol=1e-5)  # words are a value without its key
    assert np.abs(products[0] - products[2]).max() > 1e-4
    with pytest.raises(ExplanationError, match="embedded_as"):
        embed_phrases(encoder.model, encoder.processor, phrases, embedded_as="x")
