"""Searching a store by every kind of query: right products against brute force, pages, filters, reasoning, refusals."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from pictures import file_of, noise, plain
from stored_products import opened

from modeling_moon.gate_moon import MarginGate
from product_data.catalogue.making import make_catalogue
from product_data.rows import PRODUCT_FORMS, ProductRow
from retrieval.encode import encode, load_for_evaluation
from retrieval.queries import Query, SearchError, SearchOptions, read_box
from retrieval.query_encoder import EncodedQuery, QueryEncoder, weighted
from retrieval.search import Answer, Searcher
from retrieval.stores.exact import ExactStore
from retrieval.stores.interface import StoredProduct, StoreError

PHOTO = file_of(noise(80, 60, 5))
WORDS = "red running shoes"


def rows_of_catalogue(count: int = 24) -> list[ProductRow]:
    """Return drawn products; every sixth has no picture."""
    drawn, _ = make_catalogue(products=count, image_size=64, queries_per_product=0, progress=False)
    return [
        ProductRow(
            row["product_id"],
            title=row["title"],
            category=tuple(row["category_path"]),
            attributes={pair["key"]: (pair["value"],) for pair in row["attributes"]},
            images=() if place % 6 == 5 else tuple(row["images"]),
        )
        for place, row in enumerate(drawn)
    ]


def embedded(model: Any, processor: Any, rows: list[ProductRow]) -> dict[str, np.ndarray]:
    """Return form → (N, D) vectors; a row of NaN for a product without the form."""
    vectors = {}
    for form in PRODUCT_FORMS:
        records = [row.record(form) for row in rows]
        there = [place for place, record in enumerate(records) if record.keys() - {"id"}]
        vectors[form] = np.full((len(rows), model.config.vector_size), np.nan, np.float32)
        chosen = [records[place] for place in there]
        vectors[form][there] = encode(model, processor, chosen, form=form, progress=False).vectors
    return vectors


def stored(row: ProductRow, place: int) -> StoredProduct:
    """Return the facts of a product; the price of product n is 10·n euros."""
    prices = {"price": 10.0 * place, "currency": "EUR", "availability": "in_stock" if place % 2 else "out_of_stock"}
    return StoredProduct(row.product_id, row.title, category=row.category, attributes=row.attributes, **prices)


@pytest.fixture(scope="module")
def shop(tiny_moon: Callable[..., Path]) -> SimpleNamespace:
    """A store of drawn products in every form, its vectors, and a searcher with a model that can reason."""
    model, processor = load_for_evaluation(tiny_moon(preset="moon3", trained=True), device="cpu")
    rows = rows_of_catalogue()
    vectors = embedded(model, processor, rows)
    store = ExactStore(model.config.vector_size, "print")
    products = [stored(row, place) for place, row in enumerate(rows)]
    store.upsert(products, vectors)
    searcher = Searcher(store, QueryEncoder(model, processor, "print"))
    ids = [row.product_id for row in rows]
    return SimpleNamespace(
        model=model, processor=processor, rows=rows, ids=ids, products=products, vectors=vectors, searcher=searcher
    )


def query_vectors(shop: SimpleNamespace, *records: dict[str, Any], reasoning: str = "none") -> np.ndarray:
    return encode(
        shop.model, shop.processor, records, kind="query", reasoning=reasoning, progress=False, batch_size=1
    ).vectors


def brute_force(
    shop: SimpleNamespace, query_VD: np.ndarray, forms: tuple[str, ...] = PRODUCT_FORMS, without: str = ""
) -> list[tuple[str, float]]:
    """Return (id, cosine) of all products, best first; a cosine is the largest of all forms and query vectors."""
    cosine_FVN = np.stack([query_VD @ shop.vectors[form].T for form in forms])
    cosine_N = np.nanmax(cosine_FVN, axis=(0, 1))
    ranked = sorted(zip(shop.ids, cosine_N.tolist(), strict=True), key=lambda pair: (-pair[1], pair[0]))
    return [(one, cosine) for one, cosine in ranked if one != without]


def pairs(answer: Answer) -> list[tuple[str, float]]:
    return [(hit.product.product_id, hit.score) for hit in answer.hits]


def assert_same(answer: Answer, expected: list[tuple[str, float]]) -> None:
    found = pairs(answer)
    assert [one for one, _ in found] == [one for one, _ in expected]
    np.testing.assert_allclose([score for _, score in found], [score for _, score in expected], atol=2e-5)


@pytest.mark.parametrize("forms", [PRODUCT_FORMS, ("mm",), ("i", "t")])
@pytest.mark.parametrize(
    ("query", "record", "form"),
    [
        (Query(WORDS), {"text": WORDS}, "t"),
        (Query(image=PHOTO), {"image": PHOTO}, "i"),
        (Query(image=PHOTO, box=(10, 10, 50, 40)), {"image": PHOTO, "core_box": [10.0, 10.0, 50.0, 40.0]}, "i"),
        (Query(WORDS, PHOTO), {"text": WORDS, "image": PHOTO}, "mm"),
    ],
)
def test_words_and_pictures_find_the_products_that_brute_force_finds(shop, query, record, form, forms):
    answer = shop.searcher.search(query, k=7, forms=forms)
    assert answer.form == form
    assert not answer.reasoned
    assert set(answer.milliseconds) == {"encode", "search"}
    assert_same(answer, brute_force(shop, query_vectors(shop, record), forms)[:7])
    assert {hit.form for hit in answer.hits} <= set(forms)
    assert all(hit.cosine == hit.score for hit in answer.hits)


def test_a_string_is_a_query_of_words(shop):
    assert pairs(shop.searcher.search(WORDS)) == pairs(shop.searcher.search(Query(WORDS)))


def test_a_path_and_a_pil_image_are_the_same_query_as_the_bytes(shop, tmp_path):
    path = tmp_path / "photo.png"
    path.write_bytes(PHOTO)
    expected = pairs(shop.searcher.search(Query(image=PHOTO)))
    assert pairs(shop.searcher.search(Query(image=str(path)))) == expected
    assert pairs(shop.searcher.search(Query(image=noise(80, 60, 5)))) == expected


def test_a_box_changes_what_is_searched(shop):
    whole, part = (shop.searcher.search(Query(image=PHOTO, box=box)) for box in (None, (0, 0, 20, 20)))
    assert pairs(whole) != pairs(part)


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_a_weight_combines_the_unit_vectors_of_words_and_picture(shop, weight):
    words_D, picture_D = query_vectors(shop, {"text": WORDS}, {"image": PHOTO})
    sum_D = weight * words_D + (1 - weight) * picture_D
    expected = brute_force(shop, (sum_D / np.linalg.norm(sum_D))[None])
    assert_same(shop.searcher.search(Query(WORDS, PHOTO, weight=weight), k=9), expected[:9])


def test_the_ends_of_the_weight_are_the_words_and_the_picture_alone(shop):
    assert_same(shop.searcher.search(Query(WORDS, PHOTO, weight=1)), pairs(shop.searcher.search(WORDS)))
    assert_same(shop.searcher.search(Query(WORDS, PHOTO, weight=0)), pairs(shop.searcher.search(Query(image=PHOTO))))


@pytest.mark.parametrize("forms", [None, ("mm",), ("t", "i")])
@pytest.mark.parametrize("place", [0, 5])
def test_products_like_one_are_nearest_to_any_of_its_vectors_and_do_not_include_it(shop, place, forms):
    product_id = shop.ids[place]
    own_VD = np.stack([shop.vectors[form][place] for form in forms or PRODUCT_FORMS])
    own_VD = own_VD[np.isfinite(own_VD).all(axis=1)]
    assert len(own_VD) == len(forms or PRODUCT_FORMS) - (place == 5 and "i" in (forms or PRODUCT_FORMS))
    answer = shop.searcher.search(Query(like=product_id), k=8, forms=forms)
    assert answer.form == "like"
    assert_same(answer, brute_force(shop, own_VD, forms or PRODUCT_FORMS, without=product_id)[:8])


def test_a_product_with_words_is_moved_towards_the_words(shop):
    words_D = query_vectors(shop, {"text": "in blue"})[0]
    own_VD = np.stack([shop.vectors[form][0] for form in PRODUCT_FORMS])
    answer = shop.searcher.search(Query("in blue", like=shop.ids[0], weight=0.4), k=6)
    assert answer.form == "like+t"
    assert_same(answer, brute_force(shop, weighted(words_D, own_VD, 0.4), without=shop.ids[0])[:6])


@pytest.mark.parametrize("options", [{}, {"words": True}, {"where": "price < 170"}, {"forms": ["i"]}])
@pytest.mark.parametrize("query", [Query(WORDS), Query(WORDS, PHOTO), Query(like="c0-000001")])
def test_pages_are_one_long_page(shop, query, options):
    if query.like is not None:
        query = Query(like=shop.ids[3])
        if "words" in options:
            return
    whole = shop.searcher.search(query, k=len(shop.ids), **options)
    pages = [shop.searcher.search(query, k=5, offset=offset, **options) for offset in range(0, len(shop.ids), 5)]
    assert [hit for page in pages for hit in page.hits] == list(whole.hits)
    assert len(whole.hits) > 10
    assert [page.offset for page in pages] == list(range(0, len(shop.ids), 5))
    assert pages[1].as_dict()["hits"][0]["rank"] == 6


def test_a_filter_keeps_the_order_of_the_products_that_satisfy_it(shop):
    cheap = {
        product.product_id for product in shop.products if product.price < 100 and product.availability == "in_stock"
    }
    answer = shop.searcher.search(WORDS, k=20, where="price < 100 and availability = in_stock")
    everything = brute_force(shop, query_vectors(shop, {"text": WORDS}))
    assert_same(answer, [pair for pair in everything if pair[0] in cheap])
    assert len(answer.hits) == len(cheap) == 5


def test_words_add_the_reciprocal_ranks_of_their_own_ranking(shop):
    text = shop.rows[2].title
    answer = shop.searcher.search(text, k=12, words=True)
    vectors = [one for one, _ in brute_force(shop, query_vectors(shop, {"text": text}))]
    by_words = [hit.product.product_id for hit in shop.searcher.store.search(None, words=[text], k=100)[0]]
    rank_in = [{one: rank for rank, one in enumerate(ranking, start=1)} for ranking in (vectors, by_words)]
    score = {one: sum(1 / (60 + ranks[one]) for ranks in rank_in if one in ranks) for one in shop.ids}
    best = sorted(score.items(), key=lambda pair: (-pair[1], pair[0]))[:12]
    assert shop.rows[shop.ids.index(by_words[0])].title == text
    assert_same(answer, best)
    assert pairs(answer) != pairs(shop.searcher.search(text, k=12))


@pytest.mark.parametrize("kind", ["embedded", "served"])
def test_every_store_gives_the_answers_of_exact_search(shop, kind, tmp_path):
    store = opened(kind, None if kind == "served" else tmp_path, 32, "print")
    store.upsert(shop.products, shop.vectors)
    searcher = Searcher(store, shop.searcher.encoder)
    queries = [
        Query(WORDS),
        Query(image=PHOTO),
        Query(WORDS, PHOTO),
        Query(WORDS, PHOTO, weight=0.4),
        Query(like=shop.ids[5]),
    ]
    try:
        for query in queries:
            for options in (
                {},
                {"where": "price < 150 and availability = in_stock"},
                {"forms": ["t"], "offset": 3, "k": 4},
            ):
                assert_same(searcher.search(query, **options), pairs(shop.searcher.search(query, **options)))
        by_words = searcher.search(shop.rows[2].title, words=True, k=5)
        assert_same(by_words, pairs(shop.searcher.search(shop.rows[2].title, words=True, k=5)))
        assert by_words.store == store.about
    finally:
        store.close()


# ---------------------------------------------------------------------------------------------------------------------
# Reasoning
# ---------------------------------------------------------------------------------------------------------------------
def test_a_query_that_reasons_is_searched_by_the_vector_after_its_reasoning(shop):
    answer = shop.searcher.search(WORDS, k=6, reasoning="generate")
    assert answer.reasoned
    assert len(answer.reasoning) == 1
    assert_same(answer, brute_force(shop, query_vectors(shop, {"text": WORDS}, reasoning="generate"))[:6])
    plain_answer = shop.searcher.search(WORDS, k=6)
    assert np.abs(np.subtract([p for _, p in pairs(answer)], [p for _, p in pairs(plain_answer)])).max() > 1e-4


@pytest.mark.parametrize("form", PRODUCT_FORMS)
def test_auto_reasons_below_the_threshold_of_the_margin_gate(shop, form):
    gallery_ND = shop.vectors[form][np.isfinite(shop.vectors[form]).all(axis=1)]
    margin = float(MarginGate(gallery_ND).margins(torch.from_numpy(query_vectors(shop, {"text": WORDS})))[0])
    assert 0 < margin < 1
    sure, unsure = (
        shop.searcher.search(WORDS, reasoning="auto", threshold=margin * factor, forms=[form]) for factor in (0.9, 1.1)
    )
    assert sure.margin == pytest.approx(margin, abs=1e-5)
    assert (sure.reasoned, unsure.reasoned) == (False, True)
    assert_same(sure, pairs(shop.searcher.search(WORDS, forms=[form])))
    assert_same(unsure, pairs(shop.searcher.search(WORDS, reasoning="generate", forms=[form])))
    assert set(unsure.milliseconds) == {"encode", "search", "reason"}


def test_auto_has_no_second_product_to_be_unsure_of_and_no_words_of_a_product_to_reason_about(shop):
    one = shop.searcher.search(WORDS, reasoning="auto", threshold=2, where="price = 10")
    assert (len(one.hits), one.reasoned, one.as_dict()["margin"]) == (1, False, None)
    liked = shop.searcher.search(Query(like=shop.ids[0]), reasoning="auto", threshold=2)
    assert (liked.reasoned, liked.margin) == (False, None)


# ---------------------------------------------------------------------------------------------------------------------
# What is refused
# ---------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("query", "message"),
    [
        ({}, "query: found nothing to search for; expected words, a picture or a product id"),
        ({"text": " \u200b"}, "query: found nothing to search for"),
        ({"text": 3}, "text: found int; expected a string"),
        ({"image": PHOTO, "like": "a"}, "query: found a picture and a product id; expected one of them"),
        ({"text": "in blue", "like": "a"}, "expected a weight"),
        ({"text": "bag", "box": (0, 0, 1, 1)}, "box: found a box without a picture"),
        ({"image": PHOTO, "box": (5, 5, 5, 9)}, "which has no area"),
        ({"image": PHOTO, "box": (0, 0, 1)}, "expected x0, y0, x1, y1"),
        ({"image": PHOTO, "box": (0, 0, float("nan"), 1)}, "expected x0, y0, x1, y1"),
        ({"image": PHOTO, "weight": 0.5}, "weight: found a weight for one part"),
        ({"text": "bag", "image": PHOTO, "weight": 1.5}, "weight: found 1.5; expected a number from 0"),
        ({"text": "bag", "image": PHOTO, "weight": True}, "weight: found True"),
    ],
)
def test_a_query_without_sense_is_refused(query, message):
    with pytest.raises(SearchError, match=message.replace("(", r"\(")):
        Query(**query)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0}, "k: found 0; expected a whole number from 1 to 1000000000"),
        ({"k": 2.0}, "k: found 2.0"),
        ({"k": True}, "k: found True"),
        ({"offset": -1}, "offset: found -1; expected a whole number from 0 to 1000000000"),
        ({"forms": []}, "forms: found"),
        ({"forms": ["image"]}, "expected some of mm, t, i"),
        ({"forms": "mm"}, "forms: found 'mm'"),
        ({"reasoning": "given"}, "reasoning: found 'given'; expected one of none, generate, auto"),
        ({"threshold": 0.1}, "expected query_reasoning='auto'"),
        ({"words": True, "k": 60, "offset": 50}, "words: found offset \\+ k = 110; expected at most 100"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(SearchError, match=message):
        SearchOptions(**options)


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("colour = red", "expected one of price, availability"),
        ("price < cheap", "expected a number"),
        (" ", "a condition"),
    ],
)
def test_a_filter_that_cannot_be_read_is_refused_before_anything_is_encoded(where, message):
    with pytest.raises(StoreError, match=message):
        SearchOptions(where=where)


@pytest.mark.parametrize(
    ("query", "options", "message"),
    [
        (Query(image=b"nonsense"), {}, "picture: the bytes: not an image that can be read"),
        (Query(image="nowhere.jpg"), {}, "picture: no such file: 'nowhere.jpg'"),
        (Query("bag", "https://example.org/a.jpg"), {}, "picture: URL .* is not fetched"),
        (Query(image=PHOTO, box=(500, 500, 600, 600)), {}, "box: "),
        (Query(like="missing"), {}, "like: found product id 'missing'; expected the id of one of the 24 products"),
        (Query(image=PHOTO), {"words": True}, "words: found a query of the form 'i'"),
    ],
)
def test_what_cannot_be_searched_is_refused_with_its_reason(shop, query, options, message):
    with pytest.raises(SearchError, match=message):
        shop.searcher.search(query, **options)


def test_a_product_without_a_vector_of_the_form_is_refused(shop):
    with pytest.raises(SearchError, match="has no vector of the forms i"):
        shop.searcher.search(Query(like=shop.ids[5]), forms=["i"])


def test_a_model_that_does_not_reason_is_refused_before_the_search(tiny_moon, shop):
    model, processor = load_for_evaluation(tiny_moon(), device="cpu")
    searcher = Searcher(shop.searcher.store, QueryEncoder(model, processor, "print"))
    with pytest.raises(SearchError, match="does not reason"):
        searcher.search(WORDS, reasoning="auto")


def test_a_model_of_other_vectors_is_refused_with_both_fingerprints(shop):
    with pytest.raises(SearchError, match="found fingerprint 'other'; expected 'print'"):
        Searcher(shop.searcher.store, QueryEncoder(shop.model, shop.processor, "other"))
    wide = ExactStore(4096, "print")
    with pytest.raises(SearchError, match=r"vectors of size \d+; expected at least 4096"):
        Searcher(wide, QueryEncoder(shop.model, shop.processor, "print"))


def test_vectors_that_cancel_each_other_are_refused():
    one_D = np.array([1.0, 0.0], np.float32)
    with pytest.raises(SearchError, match="cancel each other"):
        weighted(one_D, -one_D[None], 0.5)


def test_a_text_that_is_no_box_is_refused():
    assert read_box("1,2.5, 30,40") == (1, 2.5, 30, 40)
    with pytest.raises(SearchError, match="box: found '1,2,3'"):
        read_box("1,2,3")


def test_a_text_model_says_that_it_reads_no_pictures(shop):
    processor = SimpleNamespace(reads_pictures=False, kind="words")
    refused = QueryEncoder(shop.model, processor).encode_queries([Query(image=PHOTO)])[0]
    assert isinstance(refused, SearchError)
    assert "words reads no pictures" in str(refused)


# ---------------------------------------------------------------------------------------------------------------------
# Several queries, several threads, prefixes, JSON
# ---------------------------------------------------------------------------------------------------------------------
def test_a_bad_query_does_not_fail_the_queries_beside_it(shop):
    queries = [
        Query(WORDS),
        Query(image=b"nonsense"),
        Query(WORDS, PHOTO, weight=0.5),
        Query(like="x"),
        Query(image=PHOTO),
    ]
    first, bad, weighted_query, liked, last = shop.searcher.encoder.encode_queries(queries)
    assert isinstance(bad, SearchError)
    assert isinstance(liked, EncodedQuery)
    assert liked.vectors_RD.shape == (0, 32)
    words_D, picture_D = query_vectors(shop, {"text": WORDS}, {"image": PHOTO})
    np.testing.assert_allclose(first.vectors_RD, [words_D], atol=1e-5)
    np.testing.assert_allclose(weighted_query.vectors_RD, [words_D, picture_D], atol=1e-5)
    np.testing.assert_allclose(last.vectors_RD, [picture_D], atol=1e-5)


def test_threads_get_the_answers_of_their_own_queries(shop):
    queries = [Query(f"{colour} bag") for colour in ("red", "blue", "green", "black")] * 3
    expected = [pairs(shop.searcher.search(query)) for query in queries]
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(shop.searcher.search, queries))
    assert [pairs(answer) for answer in answers] == expected
    assert len({str(one) for one in expected}) > 1


def test_a_store_of_shorter_vectors_is_searched_with_their_prefix(shop):
    short = {
        form: rows[:, :8] / np.linalg.norm(rows[:, :8], axis=1, keepdims=True) for form, rows in shop.vectors.items()
    }
    store = ExactStore(8, "print")
    store.upsert(shop.products, short)
    answer = Searcher(store, shop.searcher.encoder).search(WORDS, k=5)
    query_1D = query_vectors(shop, {"text": WORDS})[:, :8]
    narrow = SimpleNamespace(ids=shop.ids, vectors=short)
    assert_same(answer, brute_force(narrow, query_1D / np.linalg.norm(query_1D))[:5])


def test_the_encoder_can_be_replaced_by_one_that_collects_queries(shop):
    asked: list[tuple[Query, str]] = []

    def collect(query: Query, reasoning: str) -> EncodedQuery:
        asked.append((query, reasoning))
        return shop.searcher.encoder.encode_queries([query], reasoning)[0]

    searcher = Searcher(shop.searcher.store, shop.searcher.encoder, encode=collect)
    assert_same(
        searcher.search(WORDS, reasoning="auto", threshold=2), pairs(shop.searcher.search(WORDS, reasoning="generate"))
    )
    assert [reasoning for _, reasoning in asked] == ["none", "generate"]


def test_an_answer_is_json_with_the_facts_of_each_product(shop):
    answer = json.loads(shop.searcher.search(Query("mug", plain("red")), k=2, offset=3).json())
    assert set(answer) == {"query_form", "offset", "reasoned", "reasoning", "margin", "store", "milliseconds", "hits"}
    assert answer["query_form"] == "mm"
    first = answer["hits"][0]
    product = next(product for product in shop.products if product.product_id == first["product_id"])
    assert (first["rank"], first["price"], first["currency"]) == (4, product.price, "EUR")
    assert first["category"] == list(product.category)
    assert first["attributes"] == {key: list(values) for key, values in product.attributes.items()}
    assert isinstance(first["score"], float)
    assert first["form"] in PRODUCT_FORMS
    assert "digest" not in first
