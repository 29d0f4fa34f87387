"""`moon3 serve`: what it serves, where it listens, and where its key comes from."""

from __future__ import annotations

import importlib.util

import pytest
import uvicorn
from small_feeds import feed
from starlette.testclient import TestClient

from moon3.__main__ import main
from retrieval.embedding.embedding_options import EmbeddingOptions
from retrieval.embedding.job import embed_feed
from retrieval.stores.opening import create_store, sync
from retrieval.vectors.vector_files import VectorFolder

KEY = "a key of this test"


@pytest.fixture(scope="module")
def vectors(tmp_path_factory, tiny_moon):
    folder = tmp_path_factory.mktemp("shop")
    products = feed(folder, range(6))
    embed_feed(products, folder / "vectors", EmbeddingOptions(str(tiny_moon())), report=lambda _: None)
    vectors = VectorFolder(folder / "vectors")
    store = create_store(vectors.store_folder, vectors.dimension, vectors.fingerprint)
    sync(store, vectors)
    store.close()
    return str(vectors.path)


@pytest.fixture
def served(monkeypatch):
    """What `uvicorn.run` was called with, and what the service answered meanwhile."""
    seen: dict = {}

    def run(app, **options):
        with TestClient(app) as client:
            seen.update(options)
            seen["search"] = client.post("/search", json={"text": "red shoe", "k": 2})
            seen["delete"] = client.request(
                "DELETE", "/products", json={"product_ids": ["p0001"]}, headers={"Authorization": f"Bearer {KEY}"}
            )
            seen["allowed"] = client.get("/health", headers={"Origin": "https://shop.example"}).headers

    monkeypatch.setattr(uvicorn, "run", run)
    return seen


def test_a_folder_of_vectors_is_served_on_this_machine_and_cannot_be_changed(vectors, served, monkeypatch, capsys):
    monkeypatch.delenv("MOON_API_KEY", raising=False)
    assert main(["serve", vectors]) == 0
    assert (served["host"], served["port"]) == ("127.0.0.1", 8000)
    assert len(served["search"].json()["hits"]) == 2
    assert served["delete"].status_code == 403
    assert "access-control-allow-origin" not in served["allowed"]
    assert "search at http://127.0.0.1:8000/" in capsys.readouterr().err


def test_key_origins_and_port_are_the_operators(vectors, served, monkeypatch):
    monkeypatch.setenv("MOON_API_KEY", KEY)
    options = ["--host", "0.0.0.0", "--port", "9000", "--allow-origin", "https://shop.example"]
    assert main(["serve", vectors, *options]) == 0
    assert (served["host"], served["port"]) == ("0.0.0.0", 9000)
    assert served["delete"].json() == {"removed": 1}
    assert served["allowed"]["access-control-allow-origin"] == "https://shop.example"


def test_a_short_key_is_refused_before_the_model_is_loaded(vectors, served, monkeypatch, capsys):
    monkeypatch.setenv("MOON_API_KEY", "short")
    assert main(["serve", vectors]) == 2
    assert "expected a secret of 16 or more" in capsys.readouterr().err
    assert not served


def test_a_missing_package_is_named_with_the_extra_that_has_it(vectors, served, monkeypatch, capsys):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "multipart" else found(name))
    assert main(["serve", vectors]) == 2
    assert "found no package multipart; expected pip install 'moon3[serve]'" in capsys.readouterr().err
    assert not served
