"""Dictionaries of stores: made once for a state of phrases and vectors, made again for another one, refusals."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from modeling_moon import MoonConfig  # noqa: F401 - registers the model
from retrieval.encode import load_for_evaluation
from retrieval.explanation.phrase_dictionary import build_dictionary, unit_or_zero
from retrieval.explanation.phrases import ExplanationError
from retrieval.stores.exact import ExactStore
from retrieval.stores.interface import StoredProduct
from retrieval.vectors.vector_files import VectorFolder

COLORS = ("red", "blue", "green")


@pytest.fixture(scope="module")
def model(tiny_moon):
    return load_for_evaluation(tiny_moon(), device="cpu")


@pytest.fixture
def store(model):
    width = model[0].config.vector_size
    vectors = unit_or_zero(np.random.default_rng(0).normal(size=(24, width))).astype(np.float32)
    facts = [StoredProduct(f"p{n:02}", brand="Acme", attributes={"color": (COLORS[n % 3],)}) for n in range(24)]
    found = ExactStore(width, "tiny")
    found.upsert(facts, {"t": vectors})
    return found


@pytest.fixture
def fits(monkeypatch):
    """Count how often readers are fitted and phrases embedded."""
    from retrieval.explanation import phrase_dictionary

    counts = {"readers": 0, "words": 0}
    fit, embed = phrase_dictionary.ValueReaders.fit, phrase_dictionary.embed_phrases

    def counted_fit(*args, **options):
        counts["readers"] += 1
        return fit(*args, **options)

    def counted_embed(*args, **options):
        counts["words"] += 1
        return embed(*args, **options)

    monkeypatch.setattr(phrase_dictionary.ValueReaders, "fit", counted_fit)
    monkeypatch.setattr(phrase_dictionary, "embed_phrases", counted_embed)
    return counts


def test_a_dictionary_is_made_once_for_a_state_of_the_store(model, store, tmp_path, fits):
    first = build_dictionary(*model, store, folder=tmp_path).readers("t")
    again = build_dictionary(*model, store, folder=tmp_path)
    assert fits == {"readers": 1, "words": 1}
    kept = again.readers("t")
    for name in ("mean_D", "effect_PD", "right_K", "frequent_K", "noise"):
        np.testing.assert_array_equal(getattr(kept, name), getattr(first, name))
    centred = store.vectors(["p03"], "t") - kept.mean_D
    np.testing.assert_array_equal(kept.read(centred), first.read(centred))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["readers-t.npz", "words.npz"]


def test_new_vectors_alone_make_new_readers(model, store, tmp_path, fits):
    """Not a new product, not a new value: the state of the vectors counts."""
    before = build_dictionary(*model, store, folder=tmp_path).readers("t")
    vector = unit_or_zero(np.ones((1, store.dimension))).astype(np.float32)
    store.upsert([store.get(["p00"])[0]], {"t": vector})
    after = build_dictionary(*model, store, folder=tmp_path).readers("t")
    assert fits == {"readers": 2, "words": 1}
    assert np.abs(after.mean_D - before.mean_D).max() > 1e-3
    assert len(list(tmp_path.iterdir())) == 2  # the file of the old state is replaced


def test_another_stated_value_or_model_makes_a_new_dictionary(model, store, tmp_path, fits, monkeypatch):
    build_dictionary(*model, store, folder=tmp_path).readers("t")
    known = store.get(["p00"])[0]
    store.upsert([replace(known, attributes={"color": ("blue",)})], {"t": store.vectors(["p00"], "t")})
    build_dictionary(*model, store, folder=tmp_path).readers("t")
    assert fits == {"readers": 2, "words": 1}
    monkeypatch.setattr(store, "fingerprint", "another")
    build_dictionary(*model, store, folder=tmp_path).readers("t")
    assert fits == {"readers": 3, "words": 2}


def test_torn_files_and_unknown_forms_are_refused(model, store, tmp_path):
    made = build_dictionary(*model, store, folder=tmp_path)
    made.readers("t")
    with pytest.raises(ExplanationError, match="'i'; expected one of the store's forms: t"):
        made.readers("i")
    (tmp_path / "readers-t.npz").write_bytes(b"torn")
    with pytest.raises(ExplanationError, match="readers-t.npz: cannot be read .*; remove it, and it is made again"):
        build_dictionary(*model, store, folder=tmp_path).readers("t")
    (tmp_path / "words.npz").write_bytes(b"torn")
    with pytest.raises(ExplanationError, match="words.npz: cannot be read"):
        build_dictionary(*model, store, folder=tmp_path)


def test_readers_of_a_large_catalogue_are_fitted_to_every_nth_product(model, store, monkeypatch):
    monkeypatch.setattr("retrieval.explanation.phrase_dictionary.MOST_PRODUCTS", 9)
    made = build_dictionary(*model, store)
    assert made.product_ids == [f"p{n:02}" for n in range(0, 24, 3)]
    assert made.readers("t").sums.count == 8


def test_a_product_without_a_vector_changes_no_reader(model, store):
    before = build_dictionary(*model, store).readers("t")
    store.upsert([StoredProduct("zz", brand="Acme")], {"mm": unit_or_zero(np.ones((1, store.dimension), np.float32))})
    after = build_dictionary(*model, store).readers("t")
    np.testing.assert_allclose(after.sums.value_P, before.sums.value_P)
    np.testing.assert_allclose(after.effect_PD, before.effect_PD, atol=1e-8)


def test_the_folder_of_vectors_names_the_folder_of_phrases(tmp_path):
    (tmp_path / "job.json").write_text(
        '{"format": 1, "model": "m", "fingerprint": "f", "settings": {}, "forms": ["t"], "dtype": "float32"}'
    )
    assert VectorFolder(tmp_path).phrases_folder == tmp_path / "phrases"
