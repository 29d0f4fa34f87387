"""The search service: its answers, its limits, its key, its metrics and what it refuses to open."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import os
import re
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest
from folder_holder import holding
from pictures import file_of, noise, plain
from PIL import Image
from starlette.testclient import TestClient

from product_data.errors import OptionError
from product_data.rows import ProductRow
from retrieval.encode import encode, load_for_evaluation
from retrieval.queries import Query
from retrieval.query_encoder import QueryEncoder
from retrieval.search import Searcher
from retrieval.serve.app import create_app
from retrieval.serve.explaining import MatchAnswers
from retrieval.serve.logs import request_logger
from retrieval.serve.settings import ServiceSettings
from retrieval.stores.embedded import EmbeddedStore
from retrieval.stores.exact import ExactStore
from retrieval.stores.interface import CLIENT_DIGEST, StoredProduct

KEY = "a key of this test"
AUTHORISED = {"Authorization": f"Bearer {KEY}"}
PHOTO = file_of(noise(64, 64, 3))
PHOTO_TEXT = base64.b64encode(PHOTO).decode()
TITLES = ("red shoes", "blue bag", "green mug", "brown tote, leather", "navy cotton shirt")


@pytest.fixture(scope="module")
def moon(tiny_moon: Callable[..., Path]) -> tuple[Any, Any]:
    return load_for_evaluation(tiny_moon(trained=True), device="cpu")


@pytest.fixture
def searcher(moon: tuple[Any, Any], tmp_path: Path) -> Iterator[Searcher]:
    """A searcher over five products of one form."""
    store = EmbeddedStore(tmp_path / "store", 32, "print")
    vectors = encode(*moon, [{"title": title} for title in TITLES], progress=False).vectors
    products = [
        StoredProduct(f"p/{place}", title, brand="Noru" if place % 2 else "Tessel", price=10.0 * place)
        for place, title in enumerate(TITLES)
    ]
    store.upsert(products, {"mm": vectors})
    yield Searcher(store, QueryEncoder(*moon, "print"))
    store.close()


@pytest.fixture
def client(searcher: Searcher) -> Iterator[TestClient]:
    settings = ServiceSettings(api_key=KEY, max_body_bytes=100_000, max_pixels=100_000, max_text=100, max_k=50)
    with TestClient(create_app(searcher, settings)) as opened:
        yield opened


def ids(answer: Any) -> list[str]:
    assert answer.status_code == 200, answer.text
    return [hit["product_id"] for hit in answer.json()["hits"]]


def expected(searcher: Searcher, query: Query | str, **options: Any) -> list[str]:
    return [hit.product.product_id for hit in searcher.search(query, **options).hits]


# ---------------------------------------------------------------------------------------------------------------------
# Answers
# ---------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("fields", "query", "options"),
    [
        ({"text": "red shoes"}, Query("red shoes"), {}),
        ({"text": "red shoes", "k": 2, "offset": 1}, Query("red shoes"), {"k": 2, "offset": 1}),
        ({"text": "red shoes", "where": "price < 25", "forms": ["mm"]}, Query("red shoes"), {"where": "price < 25"}),
        ({"text": "blue bag", "words": True}, Query("blue bag"), {"words": True}),
        ({"image": PHOTO_TEXT}, Query(image=PHOTO), {}),
        ({"image": f"data:image/png;base64,{PHOTO_TEXT}"}, Query(image=PHOTO), {}),
        ({"image": PHOTO_TEXT, "box": [5, 5, 40, 40]}, Query(image=PHOTO, box=(5, 5, 40, 40)), {}),
        ({"image": PHOTO_TEXT, "text": "in blue"}, Query("in blue", PHOTO), {}),
        ({"image": PHOTO_TEXT, "text": "in blue", "weight": 0.5}, Query("in blue", PHOTO, weight=0.5), {}),
        ({"like": "p/1"}, Query(like="p/1"), {}),
    ],
)
def test_each_kind_of_query_is_answered_as_the_searcher_answers_it(client, searcher, fields, query, options):
    answer = client.post("/search", json=fields)
    assert ids(answer) == expected(searcher, query, **options)
    assert answer.json()["query_form"] == query.form
    assert json.loads(searcher.search(query, **options).json()).keys() == answer.json().keys()


def test_a_form_with_a_file_is_the_same_search(client, searcher):
    data = {"text": "in blue", "weight": "0.5", "box": "5,5,40,40", "k": "3", "words": "true", "forms": "mm"}
    answer = client.post("/search", data=data, files={"image": ("photo.png", PHOTO, "image/png")})
    query = Query("in blue", PHOTO, (5, 5, 40, 40), weight=0.5)
    assert ids(answer) == expected(searcher, query, k=3, words=True)


def test_the_vector_of_a_query_is_the_one_that_is_searched(client, searcher):
    answer = client.post("/embed", json={"text": "red shoes", "image": PHOTO_TEXT, "weight": 0.3}).json()
    np.testing.assert_allclose(answer["vectors"], searcher.vectors(Query("red shoes", PHOTO, weight=0.3)), atol=1e-5)
    assert (answer["dimension"], answer["fingerprint"], answer["query_form"]) == (32, "print", "mm")


def test_the_product_in_a_picture_is_detected_for_a_search(client):
    picture = Image.new("RGB", (100, 80), "white")
    picture.paste("navy", (20, 10, 60, 50))
    for answer in (
        client.post("/region", json={"image": base64.b64encode(file_of(picture)).decode()}),
        client.post("/region", files={"image": ("photo.png", file_of(picture), "image/png")}),
    ):
        assert answer.json()["box"] == pytest.approx([20, 10, 60, 50], abs=3)
    fields = {"image": base64.b64encode(file_of(picture)).decode(), "box": answer.json()["box"]}
    assert client.post("/search", json=fields).status_code == 200
    assert client.post("/region", json={"image": base64.b64encode(file_of(plain("red"))).decode()}).json() == {
        "box": None
    }
    for fields in ({}, {"text": "bag"}):
        assert client.post("/region", json=fields).status_code == 400


def test_products_facets_and_health(client):
    assert client.get("/products/p/1").json()["title"] == "blue bag"
    assert client.get("/products/none").status_code == 404
    assert client.get("/facets").json()["brand"] == {"Tessel": 3, "Noru": 2}
    assert client.get("/facets", params={"where": "price < 15"}).json()["brand"] == {"Noru": 1, "Tessel": 1}
    assert client.get("/facets", params={"where": "colour = red"}).status_code == 400
    assert client.get("/health").json() == {"status": "ok", "products": 5, "fingerprint": "print"}


# ---------------------------------------------------------------------------------------------------------------------
# The page, pictures, explanations
# ---------------------------------------------------------------------------------------------------------------------
def test_a_match_is_explained_and_its_query_is_checked(client):
    why = client.post("/explain", json={"text": "blue bag", "product": "p/1"}).json()
    parts = sum(entry["contribution"] for entry in why["shared"])
    total = parts + why["different"] + why["residual"] + why["common"]
    assert total == pytest.approx(why["cosine"], abs=1e-5)
    assert client.post("/explain", json={"like": "p/2", "product": "p/1"}).json()["cosine"] < 1
    for fields, message in (
        ({"text": "bag"}, "product: found none"),
        ({"product": "p/1"}, "found nothing to search for"),
        ({"text": "bag", "product": "missing"}, "product: found id 'missing'"),
        ({"text": "bag", "product": 3}, "product: found int"),
    ):
        answer = client.post("/explain", json=fields)
        assert answer.status_code == 400
        assert message in answer.json()["error"]


def test_phrases_are_collected_again_when_the_number_of_products_has_changed(searcher, monkeypatch):
    made: list[int] = []

    class Explainer:
        def __init__(self, own, *, folder):
            made.append(own.store.count())

        def explain(self, *_):
            return SimpleNamespace(as_dict=dict)

    monkeypatch.setattr("retrieval.serve.explaining.MatchExplainer", Explainer)
    answers = MatchAnswers(searcher)
    for _ in range(2):
        answers.answer(Query("bag"), "p/1")
    assert made == [5]
    searcher.store.delete(["p/0"])
    answers.answer(Query("bag"), "p/1")
    answers.answer(Query("bag"), "p/1")
    assert made == [5, 4]


def test_only_pictures_that_the_operator_s_feed_names_are_served(searcher, tmp_path):
    (tmp_path / "photo.png").write_bytes(PHOTO)
    (tmp_path / "secret.txt").write_text("secret")
    images = (str(tmp_path / "photo.png"), str(tmp_path / "secret.txt"), "https://pictures.example/1.jpg")
    (product,) = searcher.store.get(["p/1"])
    searcher.store.upsert([replace(product, images=images)], {"mm": searcher.store.vectors(["p/1"], "mm")})
    with TestClient(create_app(searcher, ServiceSettings(api_key=KEY))) as client:
        found = client.get("/pictures/0/p/1")
        assert found.headers["content-type"] == "image/jpeg"
        assert found.content == client.get("/pictures/0/p/1").content
        assert [client.get(f"/pictures/{number}/p/1").status_code for number in (1, 2, 3)] == [404] * 3
        named = {"product_id": "x", "title": "x", "images": [str(tmp_path / "photo.png")]}
        refused = client.put("/products", json={"products": [named]}, headers=AUTHORISED)
        assert refused.status_code in (400, 409)


def test_the_page_runs_its_own_script_alone(client):
    page = client.get("/")
    policy = page.headers["content-security-policy"]
    assert "unsafe" not in policy
    assert policy.count("sha256-") == 2
    assert "http" not in re.sub(r"sha256-\S+", "", policy)
    assert not re.search(r"(src|href)=\"(https?:)?//", page.text)


# ---------------------------------------------------------------------------------------------------------------------
# What is refused
# ---------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "found nothing to search for"),
        ({"text": "x" * 101}, "text: found 101 characters; expected at most 100"),
        ({"text": 3}, "text: found int; expected a string"),
        ({"text": "bag", "k": 0}, "k: found 0"),
        ({"text": "bag", "k": True}, "k: found bool; expected a whole number"),
        ({"text": "bag", "k": 51}, "k: found offset + k = 51; expected at most 50"),
        ({"text": "bag", "colour": "red"}, "colour: unknown field"),
        ({"text": "bag", "where": "colour = red"}, "expected one of price"),
        ({"text": "bag", "reasoning": "generate"}, "does not reason"),
        ({"like": "missing"}, "like: found product id 'missing'"),
        ({"image": "not base64!"}, "image: not base64"),
        ({"image": base64.b64encode(b"nonsense").decode()}, "not an image that can be read"),
        ({"image": base64.b64encode(file_of(plain("red", 400))).decode()}, "too many pixels; expected at most 100000"),
        ({"image": PHOTO_TEXT, "box": [1, 2]}, "box: found (1, 2)"),
        ({"image": PHOTO_TEXT, "box": ["a", 0, 1, 1]}, "box: found"),
    ],
)
def test_a_bad_request_is_answered_with_what_is_expected(client, fields, message):
    answer = client.post("/search", json=fields)
    assert answer.status_code == 400
    assert message in answer.json()["error"]


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'{"weight": NaN}', b"[" * 5000])
def test_a_body_that_is_not_a_json_object_is_refused(client, body):
    answer = client.post("/search", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    assert "expected a JSON object" in answer.json()["error"]


@pytest.mark.parametrize("data", [{"k": "many"}, {"weight": "heavy"}, {"box": "1,2"}, {"words": "perhaps"}])
def test_a_form_with_a_bad_value_is_refused(client, data):
    answer = client.post("/search", data={"text": "bag"} | data, files={"image": ("a.png", PHOTO)})
    assert answer.status_code == 400
    assert answer.json()["error"].startswith(f"{next(iter(data))}: found")


def test_a_file_under_another_name_is_refused(client):
    answer = client.post("/search", data={"text": "bag"}, files={"photo": ("a.png", PHOTO)})
    assert (answer.status_code, answer.json()["error"]) == (400, "photo: found a file; expected a file as image only")


def test_other_types_methods_and_sizes_have_their_own_status(client):
    assert client.post("/search", content=b"x", headers={"Content-Type": "text/plain"}).status_code == 415
    assert client.get("/search").status_code == 405
    assert client.get("/nowhere").status_code == 404
    large = client.post("/search", json={"text": "x" * 200_000})
    assert large.status_code == 413
    assert "expected at most 100000" in large.json()["error"]
    broken = client.post("/search", content=b"--x", headers={"Content-Type": "multipart/form-data; boundary=y"})
    assert broken.status_code == 400


@pytest.mark.parametrize("place", ["file", "url", "data"])
def test_no_file_and_no_url_is_opened_on_the_word_of_a_client(client, tmp_path, place, monkeypatch):
    secret = tmp_path / "secret.png"
    secret.write_bytes(PHOTO)
    monkeypatch.setattr("processing_moon.images_moon.fetch", lambda *_, **__: pytest.fail("a URL was fetched"))
    named = {"file": str(secret), "url": "https://example.org/a.jpg", "data": "data:image/png,abc"}[place]
    answer = client.post("/search", json={"image": named})
    assert answer.status_code == 400
    assert "base64" in answer.json()["error"]
    form = b'--b\r\nContent-Disposition: form-data; name="image"\r\n\r\n' + named.encode() + b"\r\n--b--\r\n"
    uploaded = client.post("/search", content=form, headers={"Content-Type": "multipart/form-data; boundary=b"})
    assert (uploaded.status_code, uploaded.json()["error"]) == (400, "image: found text; expected a file")


# ---------------------------------------------------------------------------------------------------------------------
# Changing products
# ---------------------------------------------------------------------------------------------------------------------
def test_products_are_added_replaced_and_removed_with_the_key(client, searcher, moon):
    product = {
        "product_id": "new",
        "title": "striped navy shirt",
        "category": ["Clothing", "Shirts"],
        "attributes": {"colour": "navy", "material": ["cotton", "linen"]},
        "price": 25,
        "currency": "EUR",
        "availability": "in_stock",
        "images": ["https://example.org/shirt.jpg"],
        "pictures": [PHOTO_TEXT],
    }
    assert client.put("/products", json={"products": [product]}, headers=AUTHORISED).json() == {"written": 1}
    row = ProductRow(
        "new", "striped navy shirt", category=("Clothing", "Shirts"),
        attributes={"colour": ("navy",), "material": ("cotton", "linen")}, images=(PHOTO,),
    )  # fmt: skip
    own = encode(*moon, [row.record("mm")], progress=False).vectors
    np.testing.assert_allclose(searcher.store.vectors(["new"], "mm"), own, atol=1e-5)
    shown = client.get("/products/new").json()
    assert (shown["price"], shown["images"]) == (25, ["pictures/0/new", "https://example.org/shirt.jpg"])
    assert "new" in ids(client.post("/search", json={"text": "navy shirt", "where": "category = Clothing"}))
    client.put("/products", json={"products": [product | {"price": 30}]}, headers=AUTHORISED)
    assert client.get("/products/new").json()["price"] == 30
    removed = client.request("DELETE", "/products", json={"product_ids": ["new", "none"]}, headers=AUTHORISED)
    assert removed.json() == {"removed": 1}
    assert client.get("/products/new").status_code == 404


@pytest.mark.parametrize(
    ("products", "message"),
    [
        ([], "expected {"),
        ("a", "expected {"),
        (["a"], "products[0]: found str"),
        ([{"product_id": "a", "titel": "x"}], "products[0]: found titel"),
        ([{"title": "x"}], "products[0].product_id: found none"),
        ([{"product_id": "a", "title": 3}], "products[0].title: found int"),
        ([{"product_id": "a", "title": "x", "availability": "soon"}], "availability: found 'soon'"),
        ([{"product_id": "a", "title": "x", "price": "9"}], "products[0].price: found '9'"),
        ([{"product_id": "a", "title": "x", "category": "Shoes"}], "category: found str; expected a list"),
        ([{"product_id": "a", "title": "x", "attributes": ["a"]}], "attributes: found list"),
        ([{"product_id": "a", "title": "x", "pictures": ["/etc/passwd!"]}], "products[0].pictures[0]: not base64"),
        (
            [{"product_id": "a", "title": "x", "images": ["/etc/passwd"]}],
            "products[0].images[0]: found '/etc/passwd'; expected a URL",
        ),
        ([{"product_id": "a"}], "product 'a': found nothing to embed"),
        ([{"product_id": "ok", "title": "x"}, {"product_id": "a", "pictures": ["AAAA"]}], "products[1].pictures[0]"),
        ([{"product_id": "a", "title": "x"}, {"product_id": "a", "title": "y"}], "'a' occurs twice"),
    ],
)
def test_a_bad_product_is_named_and_nothing_is_written(client, products, message):
    answer = client.put("/products", json={"products": products}, headers=AUTHORISED)
    assert answer.status_code == 400
    assert message in answer.json()["error"]
    assert client.get("/health").json()["products"] == 5


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {KEY}"}])
def test_nothing_is_changed_without_the_key(client, searcher, headers):
    product = {"products": [{"product_id": "new", "title": "bag"}]}
    assert client.put("/products", json=product, headers=headers).status_code == 401
    gone = client.request("DELETE", "/products", json={"product_ids": ["p/1"]}, headers=headers)
    assert gone.status_code == 401
    with TestClient(create_app(searcher)) as without_key:
        assert without_key.put("/products", json=product, headers=AUTHORISED).status_code == 403
    assert client.get("/health").json()["products"] == 5


def test_a_store_in_memory_is_not_changed_since_the_changes_would_be_lost(searcher):
    store = ExactStore(32, "print")
    with TestClient(create_app(Searcher(store, searcher.encoder), ServiceSettings(api_key=KEY))) as client:
        added = client.put("/products", json={"products": [{"product_id": "a", "title": "b"}]}, headers=AUTHORISED)
        removed = client.request("DELETE", "/products", json={"product_ids": ["a"]}, headers=AUTHORISED)
    assert [added.status_code, removed.status_code] == [409, 409]
    assert "expected a store that moon3 index made" in added.json()["error"]


def pictures_of(searcher: Searcher) -> list[str]:
    folder = searcher.store.path / "pictures"
    return sorted(str(file) for file in folder.iterdir()) if folder.is_dir() else []


def test_pictures_of_a_client_are_shown_and_go_with_their_product(client, searcher):
    def put(product_id: str, *pictures: bytes, **more: Any) -> int:
        texts = [base64.b64encode(picture).decode() for picture in pictures]
        product = {"product_id": product_id, "title": "lamp", "pictures": texts} | more
        return client.put("/products", json={"products": [product]}, headers=AUTHORISED).status_code

    red, blue = file_of(plain("red")), file_of(plain("blue"))
    assert (put("a", red, blue, images=["https://example.org/1.jpg"]), put("b/../c", red)) == (200, 200)
    shown = client.get("/products/a").json()["images"]
    assert shown == ["pictures/0/a", "pictures/1/a", "https://example.org/1.jpg"]
    (hit,) = [
        hit for hit in client.post("/search", json={"text": "lamp"}).json()["hits"] if hit["product_id"] == "b/../c"
    ]
    assert hit["images"] == ["pictures/0/b%2F..%2Fc"]
    served = client.get("/" + shown[1])
    assert (served.status_code, served.headers["content-type"]) == (200, "image/jpeg")
    assert len(pictures_of(searcher)) == 3

    assert put("a", blue) == 200
    assert len(pictures_of(searcher)) == 2
    assert put("a", b"nonsense") == 400
    assert len(pictures_of(searcher)) == 2
    (product,) = searcher.store.get(["a"])
    moved = replace(product, images=tuple(image.replace("/store/", "/elsewhere/") for image in product.images))
    searcher.store.upsert([moved], {"mm": searcher.store.vectors(["a"], "mm")})
    assert client.get("/pictures/0/a").status_code == 200
    client.request("DELETE", "/products", json={"product_ids": ["a"]}, headers=AUTHORISED)
    assert pictures_of(searcher) == list(searcher.store.get(["b/../c"])[0].images)


def test_no_answer_names_a_path_of_the_machine(client, searcher, tmp_path):
    (product,) = searcher.store.get(["p/1"])
    named = replace(product, images=(str(tmp_path / "photo.png"),))
    searcher.store.upsert([named], {"mm": searcher.store.vectors(["p/1"], "mm")})
    (tmp_path / "photo.png").write_bytes(b"nonsense")
    answers = [client.post("/search", json={"text": "bag"}), client.get("/products/p/1"), client.get("/pictures/0/p/1")]
    answers += [
        client.get("/health"),
        client.get("/metrics"),
        client.post("/explain", json={"text": "bag", "product": "p/1"}),
    ]
    assert not any(str(tmp_path) in answer.text for answer in answers)


def test_a_client_s_product_has_a_digest_of_its_own(client, searcher):
    for title in ("lamp", "lamp", "desk lamp"):
        client.put("/products", json={"products": [{"product_id": "a", "title": title}]}, headers=AUTHORISED)
        digest = searcher.store.digests()["a"]
        assert digest.startswith(CLIENT_DIGEST)
    first = client.put("/products", json={"products": [{"product_id": "b", "title": "desk lamp"}]}, headers=AUTHORISED)
    assert first.status_code == 200
    assert digest != searcher.store.digests()["b"]


def test_a_write_waits_for_another_process_and_then_says_so(client, searcher, monkeypatch):
    product = {"products": [{"product_id": "a", "title": "lamp"}]}
    monkeypatch.setattr("retrieval.serve.products.WAIT_SECONDS", 0.1)
    with ThreadPoolExecutor(1) as pool:
        with holding(searcher.store.path, "store.lock"):
            refused = client.put("/products", json=product, headers=AUTHORISED)
            assert (refused.status_code, refused.headers["Retry-After"]) == (503, "1")
            assert "in use by process" in refused.json()["error"]
            assert client.post("/search", json={"text": "bag"}).status_code == 200
            monkeypatch.setattr("retrieval.serve.products.WAIT_SECONDS", 20)
            waiting = pool.submit(client.put, "/products", json=product, headers=AUTHORISED)
        assert waiting.result().json() == {"written": 1}


def test_the_store_is_compacted_after_many_writes_and_left_pictures_are_removed(searcher, monkeypatch):
    monkeypatch.setattr("retrieval.serve.products.COMPACT_AFTER", 3)
    left = searcher.store.path / "pictures" / f"{'0' * 32}.jpg"
    left.parent.mkdir()
    left.write_bytes(PHOTO)
    os.utime(left, (1, 1))
    with TestClient(create_app(searcher, ServiceSettings(api_key=KEY))) as client:
        for number in range(3):
            assert left.exists()
            product = {"product_id": "a", "title": f"lamp {number}", "pictures": [PHOTO_TEXT]}
            assert client.put("/products", json={"products": [product]}, headers=AUTHORISED).status_code == 200
    assert pictures_of(searcher) == list(searcher.store.get(["a"])[0].images)
    assert len(searcher.store._table().list_versions()) == 1
    assert searcher.store.get(["a"])[0].title == "lamp 2"


def test_searches_go_on_while_products_are_written(client, searcher):
    expected_ids = set(ids(client.post("/search", json={"text": "shoes"})))
    products = [{"product_id": f"new-{number}", "title": f"lamp {number}", "brand": "new"} for number in range(4)]
    with ThreadPoolExecutor(5) as pool:
        writes = [
            pool.submit(client.put, "/products", json={"products": [one]}, headers=AUTHORISED) for one in products
        ]
        reads = [
            pool.submit(client.post, "/search", json={"text": "shoes", "where": "brand in (Noru, Tessel)"})
            for _ in range(12)
        ]
        assert [write.result().json() for write in writes] == [{"written": 1}] * 4
        assert all(set(ids(read.result())) == expected_ids for read in reads)
    assert client.get("/health").json()["products"] == 9


def test_ids_to_remove_must_be_a_list(client):
    answer = client.request("DELETE", "/products", json={"product_ids": "p/1"}, headers=AUTHORISED)
    assert (answer.status_code, client.get("/health").json()["products"]) == (400, 5)


# ---------------------------------------------------------------------------------------------------------------------
# Load
# ---------------------------------------------------------------------------------------------------------------------
class Held:
    """Replace `encode_queries`: calls wait until `go` is set, and their sizes are noted."""

    def __init__(self, encoder: QueryEncoder) -> None:
        self.go, self.started, self.sizes = threading.Event(), threading.Event(), list[int]()
        self.encode_queries, encoder.encode_queries = encoder.encode_queries, self  # type: ignore[method-assign]

    def __call__(self, queries, reasoning="none"):
        self.sizes.append(len(queries))
        self.started.set()
        assert self.go.wait(20)
        return self.encode_queries(queries, reasoning)


def test_queries_that_arrive_together_share_a_batch_and_keep_their_own_answers(searcher):
    titles = [*TITLES, "red bag", "blue shoes", "green shirt"]
    alone = [expected(searcher, title) for title in titles]
    held = Held(searcher.encoder)
    with (
        TestClient(create_app(searcher, ServiceSettings(batch_milliseconds=200))) as client,
        ThreadPoolExecutor(8) as pool,
    ):
        answers = [pool.submit(client.post, "/search", json={"text": title}) for title in titles]
        held.go.set()
        assert [ids(answer.result()) for answer in answers] == alone
        assert max(held.sizes) > 1
        assert sum(held.sizes) == len(titles)
        assert "moon_batch_queries_sum 8" in client.get("/metrics").text


def test_a_full_service_answers_429_and_works_again(searcher):
    held = Held(searcher.encoder)
    with TestClient(create_app(searcher, ServiceSettings(max_requests=2))) as client, ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(client.post, "/search", json={"text": title}) for title in TITLES[:2]]
        assert held.started.wait(10)
        while "moon_requests_in_work 2" not in client.get("/metrics").text:
            pass
        refused = client.post("/search", json={"text": "bag"})
        assert (refused.status_code, refused.headers["Retry-After"]) == (429, "1")
        held.go.set()
        assert [answer.result().status_code for answer in waiting] == [200, 200]
        assert client.post("/search", json={"text": "bag"}).status_code == 200


def test_words_that_were_searched_lately_are_not_encoded_again(searcher):
    held = Held(searcher.encoder)
    held.go.set()
    with TestClient(create_app(searcher, ServiceSettings(recent_queries=2))) as client:
        first = [client.post("/search", json={"text": title}).json()["hits"] for title in ("red", "blue", "red")]
        assert first[0] == first[2]
        assert len(held.sizes) == 2
        client.post("/search", json={"text": "green"})
        client.post("/search", json={"text": "red"})
        assert len(held.sizes) == 3
        client.post("/search", json={"text": "blue"})  # the oldest of three went
        client.post("/search", json={"text": "blue", "image": PHOTO_TEXT})
        client.post("/search", json={"text": "blue", "image": PHOTO_TEXT})
        assert len(held.sizes) == 6
        assert 'moon_word_queries_total{recent="true"} 2' in client.get("/metrics").text


def test_a_body_that_arrives_slowly_takes_no_place_of_work(searcher):
    async def slow() -> AsyncIterator[bytes]:
        yield b'{"text": '
        await asyncio.sleep(30)

    async def asked() -> tuple[Any, Any]:
        app = create_app(searcher, ServiceSettings(max_requests=1, body_seconds=1))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://service") as client:
            headers = {"Content-Type": "application/json"}
            late = asyncio.create_task(client.post("/search", content=slow(), headers=headers))
            await asyncio.sleep(0.1)
            return await client.post("/search", json={"text": "bag"}), await late

    other, late = asyncio.run(asked())
    assert (other.status_code, late.status_code) == (200, 408)
    assert "found 9 bytes after 1 s" in late.json()["error"]


def test_a_late_answer_is_504(searcher):
    held = Held(searcher.encoder)
    with TestClient(create_app(searcher, ServiceSettings(seconds=0.2))) as client:
        assert client.post("/search", json={"text": "bag"}).status_code == 504
        held.go.set()


# ---------------------------------------------------------------------------------------------------------------------
# What an operator sees
# ---------------------------------------------------------------------------------------------------------------------
def test_metrics_count_requests_by_path_and_status(client):
    client.post("/search", json={"text": "bag"})
    client.post("/search", json={})
    client.get("/products/p/1")
    text = client.get("/metrics").text
    assert 'moon_requests_total{method="POST",path="/search",status="200"} 1' in text
    assert 'moon_requests_total{method="POST",path="/search",status="400"} 1' in text
    assert 'path="/products/{product_id:path}",status="200"} 1' in text
    assert 'moon_request_seconds_count{method="POST",path="/search"} 2' in text
    buckets = [
        int(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith("moon_batch_queries_bucket")
    ]
    assert buckets == sorted(buckets)
    assert buckets[-1] == 1


class Lines(logging.Handler):
    """Keep what is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[dict[str, Any]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.found.append(json.loads(record.getMessage()))


@pytest.mark.parametrize("log_queries", [False, True])
def test_logs_are_json_lines_and_contain_words_of_queries_only_if_wanted(searcher, log_queries):
    lines, logger = Lines(), request_logger()
    logger.addHandler(lines)
    try:
        with TestClient(create_app(searcher, ServiceSettings(log_queries=log_queries))) as client:
            client.post("/search", json={"text": "a secret wish"})
    finally:
        logger.removeHandler(lines)
    assert [(line["path"], line["status"]) for line in lines.found] == [("/search", 200)]
    assert lines.found[0]["milliseconds"] > 0
    assert lines.found[0].get("query") == ("a secret wish" if log_queries else None)


def test_cross_origin_calls_are_answered_for_the_allowed_origins_only(searcher):
    asked = {"Origin": "https://shop.example", "Access-Control-Request-Method": "POST"}
    with TestClient(create_app(searcher)) as closed:
        assert "access-control-allow-origin" not in closed.get("/health", headers=asked).headers
    with TestClient(create_app(searcher, ServiceSettings(origins=("https://shop.example",)))) as opened:
        assert opened.get("/health", headers=asked).headers["access-control-allow-origin"] == "https://shop.example"
        other = opened.get("/health", headers={"Origin": "https://other.example"})
        assert "access-control-allow-origin" not in other.headers


def test_the_description_names_every_path_and_field_that_the_service_accepts(client):
    described = client.get("/openapi.json").json()
    assert described["openapi"].startswith("3.1")
    app_paths = {re.sub(":(path|int)", "", route.path) for route in client.app.routes} - {"/metrics", "/openapi.json"}
    assert set(described["paths"]) == app_paths
    body = described["paths"]["/search"]["post"]["requestBody"]["content"]["application/json"]["schema"]["properties"]
    refused = client.post("/search", json={"unknown": 1}).json()["error"]
    assert set(body) == set(refused.partition("expected one of ")[2].split(", "))
    answer = client.post("/search", json={"text": "bag"}).json()
    schema = described["paths"]["/search"]["post"]["responses"]["200"]["content"]["application/json"]["schema"]
    assert set(schema["required"]) == set(answer)
    assert set(answer["hits"][0]) == set(schema["properties"]["hits"]["items"]["properties"])
    why = client.post("/explain", json={"text": "bag", "product": "p/1"}).json()
    schema = described["paths"]["/explain"]["post"]["responses"]["200"]["content"]["application/json"]["schema"]
    assert set(schema["required"]) == set(why)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_requests": 0}, "max_requests=0"),
        ({"seconds": 0}, "seconds=0"),
        ({"body_seconds": 0}, "body_seconds=0"),
        ({"recent_queries": -1}, "recent_queries=-1"),
        ({"batch_milliseconds": -1}, "batch_milliseconds=-1"),
        ({"api_key": "short"}, "expected a secret of 16 or more"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(OptionError, match=message):
        ServiceSettings(**settings)


def test_the_service_needs_the_model_of_the_store(moon):
    with pytest.raises(ValueError, match="fingerprint"):
        create_app(SimpleNamespace(store=ExactStore(32, "a"), encoder=QueryEncoder(*moon, "b")))
