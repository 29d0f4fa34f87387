"""`moon3 index --centre`: it shows its effect, makes a centred store, and searches centre their queries."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from small_feeds import feed

from moon3.__main__ import main
from retrieval.embedding.embedding_options import EmbeddingOptions
from retrieval.embedding.job import embed_feed
from retrieval.encode import encode, load_for_evaluation
from retrieval.queries import Query
from retrieval.search import open_searcher
from retrieval.stores.opening import folder_centring
from retrieval.vectors.vector_files import VectorFolder


@pytest.fixture(scope="module")
def shop(tmp_path_factory, tiny_moon):
    """Forty-four products: half of them texts alone, half with a picture too."""
    folder = tmp_path_factory.mktemp("shop")
    products = [
        dataclasses.replace(
            product, row=dataclasses.replace(product.row, images=() if number % 2 else product.row.images)
        )
        for number, product in enumerate(feed(folder, range(44)))
    ]
    embed_feed(products, folder / "vectors", EmbeddingOptions(str(tiny_moon(trained=True))), report=lambda _: None)
    return VectorFolder(folder / "vectors"), str(folder / "0-0.png")


def test_the_effect_is_shown_and_searches_of_words_and_pictures_are_centred(shop, capsys):
    folder, photo = shop
    assert main(["index", str(folder.path), "--centre"]) == 0
    said = capsys.readouterr().out
    assert said.splitlines()[0].split()[:2] == ["gallery", "queries"]
    assert "text (44)" in said
    assert "image (22)" in said
    assert "centred by form: 44 products added" in said
    centring = folder_centring(folder)
    assert dict(centring.counts) == {"t": 22, "mm": 22}
    ((ids, vector_ND),) = folder.vectors("mm")
    by_id = {product.product_id: product for product in folder.products()}
    centred_ND = centring(vector_ND, ["mm" if by_id[one].images else "t" for one in ids])
    model = load_for_evaluation(folder.embedding.model, device="cpu")
    with open_searcher(folder.path) as searcher:
        for query, record, form in (
            (Query("red shoe"), {"text": "red shoe"}, "t"),
            (Query(image=photo), {"image": photo}, "i"),
            (Query("in red", image=photo), {"text": "in red", "image": photo}, "mm"),
        ):
            query_1D = centring(encode(*model, [record], kind="query", progress=False).vectors, [form])
            cosine_N = (centred_ND @ query_1D[0]).tolist()
            hits = searcher.search(query, k=44).hits
            assert {hit.product.product_id: hit.score for hit in hits} == pytest.approx(
                dict(zip(ids, cosine_N, strict=True)), abs=1e-5
            )
        like = searcher.search(Query(like=ids[0]), k=5).hits
        best = np.argsort(-(centred_ND @ centred_ND[0]))
        assert [hit.product.product_id for hit in like] == [ids[row] for row in best[1:6]]


def test_a_centred_store_is_brought_up_to_date_and_is_not_explained_or_decided_on(shop, capsys, tmp_path):
    folder, _ = shop
    assert main(["index", str(folder.path), "--centre"]) == 0
    assert main(["index", str(folder.path)]) == 0
    assert "0 products added" in capsys.readouterr().out.splitlines()[-1]
    assert main(["search", str(folder.path), "red shoe", "--json"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["store"].endswith("centred by form")
    for command in (
        ["explain", str(folder.path), "p0001", "--query", "red shoe"],
        ["decide", str(folder.path), "--output", str(tmp_path / "decisions"), "--to-label", "5"],
    ):
        assert main(command) == 2
        assert "found a store that is centred by form; expected the vectors as the model made them" in (
            capsys.readouterr().err
        )


def test_the_model_is_for_the_effect_alone(shop, capsys):
    assert main(["index", str(shop[0].path), "--model", "somewhere"]) == 2
    assert "--model: found no --centre; expected both" in capsys.readouterr().err


def test_a_store_of_a_matryoshka_width_ranks_as_truncated_vectors_and_stays_up_to_date(shop, capsys, tmp_path):
    folder, photo = shop
    store = tmp_path / "narrow"
    assert main(["index", str(folder.path), "--dim", "8", "--store", str(store)]) == 0
    assert "44 products added" in capsys.readouterr().out
    ((ids, vector_ND),) = folder.vectors("mm")
    narrow_ND = vector_ND[:, :8] / np.linalg.norm(vector_ND[:, :8], axis=1, keepdims=True)
    encoder = load_for_evaluation(folder.embedding.model, device="cpu")
    with open_searcher(store, model=folder.embedding.model) as searcher:
        assert searcher.store.dimension == 8
        for query, record in ((Query("red shoe"), {"text": "red shoe"}), (Query(image=photo), {"image": photo})):
            query_D = encode(*encoder, [record], kind="query", progress=False).vectors[0, :8]
            cosine_N = narrow_ND @ (query_D / np.linalg.norm(query_D))
            hits = searcher.search(query, k=44).hits
            assert [hit.score for hit in hits] == pytest.approx(sorted(cosine_N.tolist(), reverse=True), abs=1e-5)
            found = {hit.product.product_id: hit.score for hit in hits}
            assert found == pytest.approx(dict(zip(ids, cosine_N.tolist(), strict=True)), abs=1e-5)
    assert main(["index", str(folder.path), "--store", str(store)]) == 0  # the width is the store's
    assert "0 products added, 0 replaced, 0 removed, 44 unchanged" in capsys.readouterr().out


def test_a_folder_whose_store_is_narrower_is_served_and_embedded_again(tmp_path, tiny_moon, capsys):
    products, options = feed(tmp_path, range(6)), EmbeddingOptions(str(tiny_moon(trained=True)))
    embed_feed(products, tmp_path / "vectors", options, report=lambda _: None)
    assert main(["index", str(tmp_path / "vectors"), "--dim", "8"]) == 0
    assert main(["search", str(tmp_path / "vectors"), "red shoe", "--json"]) == 0
    done = embed_feed(feed(tmp_path, range(7)), tmp_path / "vectors", options, report=lambda _: None)
    assert "1 products added" in done.synced
    with open_searcher(tmp_path / "vectors") as searcher:
        assert (searcher.store.dimension, searcher.store.count()) == (8, 7)


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--dim", "0"], "--dim: found 0; expected 1 to 32, the width of the vectors"),
        (["--dim", "33"], "--dim: found 33; expected 1 to 32"),
        (["--dim", "8", "--centre"], "--dim: found --centre; expected one of them"),
    ],
)
def test_a_width_that_cannot_be_served_is_refused(shop, capsys, words, why, tmp_path):
    assert main(["index", str(shop[0].path), "--store", str(tmp_path / "s"), *words]) == 2
    assert why in capsys.readouterr().err
