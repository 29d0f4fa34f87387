"""What every store promises: the same suite for exact, embedded and served stores."""

from dataclasses import replace

import numpy as np
import pytest
from stored_products import DIMENSION, HOSTILE, ids_of, opened, shop, units

from retrieval.stores.interface import StoredProduct, StoreError
from retrieval.stores.where import Condition, Where

NONE = np.full((1, DIMENSION), np.nan, dtype=np.float32)


@pytest.fixture(params=["exact", "embedded", "served"])
def store(request, tmp_path):
    found = opened(request.param, None if request.param == "served" else tmp_path)
    yield found
    found.close()


@pytest.fixture
def full(store):
    store.upsert(shop(), {"t": units(40, 1), "i": units(40, 2)})
    return store


def slow_ranking(query, k, passes=lambda product: True, forms=("t", "i")):
    vectors = {"t": units(40, 1), "i": units(40, 2)}
    scores = {
        product.product_id: max(float(vectors[form][row].astype(float) @ query.astype(float)) for form in forms)
        for row, product in enumerate(shop())
        if passes(product)
    }
    return sorted(scores.items(), key=lambda pair: (-pair[1], pair[0]))[:k]


def test_an_empty_store_finds_nothing(store):
    assert store.count() == 0
    assert store.forms == ()
    assert store.search(units(2), k=3) == [[], []]
    assert store.search(units(1), words=["red"]) == [[]]
    assert store.search(None, words=["red", ""]) == [[], []]
    assert store.get(["a"]) == [None]
    assert np.isnan(store.vectors(["a"], "t")).all()
    assert store.delete(["a"]) == 0
    assert list(store.products()) == []
    assert store.digests() == {}
    assert store.facets() == {"category": {}, "brand": {}, "availability": {}}
    assert store.compact()


def test_the_nearest_vector_of_a_product_is_its_score(full):
    queries = units(5, 3)
    for query, hits in zip(queries, full.search(queries, k=7), strict=True):
        expected = slow_ranking(query, 7)
        assert ids_of(hits) == [product_id for product_id, _ in expected]
        np.testing.assert_allclose([hit.score for hit in hits], [score for _, score in expected], atol=1e-6)
        for hit in hits:
            assert hit.cosine == hit.score
            row = full.vectors([hit.product.product_id], hit.form)[0]
            assert row @ query == pytest.approx(hit.score, abs=1e-6)


def test_only_the_chosen_forms_are_searched(full):
    query = units(1, 3)
    assert full.forms == ("i", "t")
    hits = full.search(query, k=5, forms=["i"])[0]
    assert ids_of(hits) == [one for one, _ in slow_ranking(query[0], 5, forms=("i",))]
    assert {hit.form for hit in hits} == {"i"}
    with pytest.raises(StoreError, match="forms: found 'mm'; expected some of i, t"):
        full.search(query, forms=["mm"])


@pytest.mark.parametrize(
    "text",
    [
        "price < 20",
        "price >= 20 and availability = in_stock",
        "price != 3 and price > 1.5",
        "price in (1, 2, 3)",
        "category = Shoes",
        "category = 'Shoes > Boots'",
        "category != Shoes",
        "category in ('Home>Kitchen', 'Shoes > Boots')",
        "brand = 'O''Neill'",
        "brand != Acme and attributes.color = red",
        "attributes.size != L",
        "attributes.size in (M, L) and price <= 12",
        "brand = ''",
        "brand = nobody",
    ],
)
def test_a_filter_keeps_what_its_predicate_keeps_and_k_are_found(full, text):
    where = Where.parse(text)
    kept = [product for product in shop() if where.holds(product)]
    assert full.count(where) == len(kept)
    assert list(full.products(where)) == kept
    query = units(1, 5)
    expected = [one for one, _ in slow_ranking(query[0], 5, where.holds)]
    assert ids_of(full.search(query, k=5, where=where)[0]) == expected
    assert len(expected) == min(5, len(kept))


def test_excluded_products_are_left_out_and_others_take_their_places(full):
    query = units(1, 3)
    first = [one for one, _ in slow_ranking(query[0], 6)]
    assert ids_of(full.search(query, k=3, exclude=[*first[:3], "unknown"])[0]) == first[3:]
    assert first[0] not in ids_of(full.search(None, words=["red blue green"], k=100, exclude=first[:1])[0])


def test_k_above_the_number_of_products_returns_them_all_once(full):
    for hits in full.search(units(2, 3), k=500):
        assert sorted(ids_of(hits)) == [product.product_id for product in shop()]


def test_words_rank_by_bm25(full):
    hits = full.search(None, words=["green boots"], k=40)[0]
    found = [hit.product for hit in hits]
    assert all(
        "green" in one.title or "boot" in f"{one.title} {one.description} {one.category}".lower() for one in found
    )
    assert hits[0].product.title == "green boot"
    assert hits[0].cosine is None
    assert hits[0].form == ""
    assert full.search(None, words=["zebra"], k=3) == [[]]


def test_words_obey_the_filter(full):
    hits = full.search(None, words=["red"], k=40, where=Where.parse("price < 10"))[0]
    assert sorted(ids_of(hits)) == ["p000", "p003", "p006"]


def test_words_and_vectors_are_fused_by_reciprocal_rank(full):
    query = units(1, 3)
    by_vector = ids_of(full.search(query, k=100)[0])
    by_words = ids_of(full.search(None, words=["red shoe"], k=100)[0])
    expected = {}
    for ranking in (by_vector, by_words):
        for place, product_id in enumerate(ranking, start=1):
            expected[product_id] = expected.get(product_id, 0) + 1 / (60 + place)
    order = sorted(expected, key=lambda one: (-expected[one], one))
    hits = full.search(query, words=["red shoe"], k=8)[0]
    assert ids_of(hits) == order[:8]
    np.testing.assert_allclose([hit.score for hit in hits], [expected[one] for one in order[:8]])
    assert all(hit.cosine is not None and hit.form for hit in hits)


def test_equal_vectors_are_in_the_order_of_ids(store):
    same = np.repeat(units(1), 60, axis=0)
    products = [StoredProduct(f"{number:02}", title="same") for number in (*range(30, 60), *range(30))]
    store.upsert(products, {"t": same})
    expected = [f"{number:02}" for number in range(5)]
    assert ids_of(store.search(units(1), k=5)[0]) == expected
    assert ids_of(store.search(None, words=["same"], k=5)[0]) == expected
    assert ids_of(store.search(units(1), words=["same"], k=5)[0]) == expected


def test_an_upsert_replaces_the_whole_product(full):
    old = shop()[3]
    new = replace(old, title="velvet curtain", brand="New", price=999.0, category=("Home",), digest="v2-3")
    full.upsert([new], {"t": units(1, 9)})
    assert full.count() == 40
    assert full.get(["p003"]) == [new]
    assert full.digests()["p003"] == "v2-3"
    assert np.isnan(full.vectors(["p003"], "i")).all()
    np.testing.assert_array_equal(full.vectors(["p003"], "t"), units(1, 9))
    assert ids_of(full.search(units(1, 9), k=1)[0]) == ["p003"]
    assert ids_of(full.search(None, words=["velvet"], k=3)[0]) == ["p003"]
    assert full.count(Where.parse("price = 999 and brand = New")) == 1
    assert full.count(Where.parse("price = 3")) == 0


def test_deleted_products_are_gone_from_every_answer(full):
    assert full.delete(["p000", "p001", "p001", "unknown"]) == 2
    assert full.count() == 38
    assert full.get(["p000", "p002"]) == [None, shop()[2]]
    assert not {"p000", "p001"} & set(ids_of(full.search(units(1, 3), k=100)[0]))
    assert not {"p000", "p001"} & set(ids_of(full.search(None, words=["red blue"], k=100)[0]))
    assert [one.product_id for one in full.products()] == [f"p{number:03}" for number in range(2, 40)]
    assert full.facets()["category"]["Shoes > Boots"] == 9
    full.upsert(shop()[:1], {"t": units(1, 1), "i": NONE})
    assert full.count() == 39
    assert full.compact()
    assert full.count() == 39
    assert ids_of(full.search(units(40, 1)[:1], k=1)[0]) == ["p000"]


def test_facets_count_each_level_of_a_category(full):
    facets = full.facets()
    assert facets["category"] == {"Shoes": 20, "Home": 10, "Home > Kitchen": 10, "Home > Kitchen > Mugs": 10} | {
        "Shoes > Boots": 10
    }
    assert list(facets["category"]) == ["Shoes", "Home", "Home > Kitchen", "Home > Kitchen > Mugs", "Shoes > Boots"]
    assert facets["brand"] == {"Acme": 14, "O'Neill": 13}
    assert facets["availability"] == {"in_stock": 14, "out_of_stock": 13}
    assert full.facets(Where.parse("brand = Acme"), limit=1)["category"] == {"Shoes": 7}


def test_products_and_vectors_are_returned_unchanged_in_the_given_order(full):
    ids = ["p007", "unknown", "p002", "p007"]
    assert full.get(ids) == [shop()[7], None, shop()[2], shop()[7]]
    rows = full.vectors(ids, "t")
    np.testing.assert_array_equal(rows[[0, 2, 3]], units(40, 1)[[7, 2, 7]])
    assert np.isnan(rows[1]).all()
    assert full.vectors([], "t").shape == (0, DIMENSION)
    assert np.isnan(full.vectors(["p007"], "mm")).all()
    assert full.digests() == {product.product_id: product.digest for product in shop()}


def test_a_form_that_comes_later_is_searched(store):
    products = shop(4)
    store.upsert(products[:2], {"t": units(2, 1)})
    store.upsert(products[2:], {"i": units(2, 2)})
    assert store.forms == ("i", "t")
    hits = store.search(units(2, 2)[:1], k=4)[0]
    assert (ids_of(hits)[0], hits[0].form) == ("p002", "i")
    assert len(hits) == 4


def test_hostile_texts_are_kept_found_and_deleted(store):
    products = [
        StoredProduct(text, title=text, brand=text, category=(text,), attributes={text: (text,)}, availability=text)
        for text in HOSTILE
    ]
    store.upsert(products, {"t": units(len(HOSTILE))})
    assert store.get(list(HOSTILE)) == products
    for number, text in enumerate(HOSTILE):
        quoted = "'" + text.replace("'", "''") + "'"
        for key in ("brand", f"attributes.{quoted}"):
            where = Where.parse(f"{key} = {quoted}")
            assert [one.product_id for one in store.products(where)] == [text], (key, text)
            assert store.count(Where.parse(f"{key} != {quoted}")) == len(HOSTILE) - 1
        available = Where(
            (Condition("availability", "=", (text,)),)
        )  # the words of a filter are checked, its values not
        assert [one.product_id for one in store.products(available)] == [text]
        assert text in [one.product_id for one in store.products(Where.parse(f"category = {quoted}"))]
        assert ids_of(store.search(units(len(HOSTILE))[number : number + 1], k=1, words=[text])[0])
        assert text not in ids_of(store.search(units(1), k=50, exclude=[text])[0])
    assert store.delete(HOSTILE[:5]) == 5
    assert store.count() == len(HOSTILE) - 5
    store.upsert(products, {"t": units(len(HOSTILE))})
    assert store.count() == len(HOSTILE)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vectors": {"t": units(2, dimension=9)}}, r"shape \(2, 9\); expected \(2, 8\)"),
        ({"vectors": {"t": units(3)}}, r"shape \(3, 8\); expected \(2, 8\)"),
        ({"vectors": {"t": units(2) * 3}}, "'a' has a vector of the form 't' with length 3; expected length 1"),
        ({"vectors": {"t": np.vstack([units(1), NONE])}}, "'b' has no vector; expected"),
        ({"vectors": {}}, "'a' has no vector"),
        ({"vectors": {"t": np.where(np.arange(8) == 3, np.nan, units(2))}}, "length nan"),
        ({"ids": ("a", "a")}, "'a' occurs twice"),
        ({"ids": ("a", "")}, "empty id"),
        ({"ids": ("a", "\ud800")}, "half of a surrogate pair"),
        ({"price": float("inf")}, "the price inf; expected a number or None"),
    ],
)
def test_what_cannot_be_stored_is_refused_and_nothing_is_written(store, change, message):
    products = [StoredProduct(one, price=change.get("price")) for one in change.get("ids", ("a", "b"))]
    with pytest.raises(StoreError, match=message):
        store.upsert(products, change.get("vectors", {"t": units(2)}))
    assert store.count() == 0


@pytest.mark.parametrize(
    ("query", "options", "message"),
    [
        (None, {}, "found neither vectors nor words"),
        (units(1, dimension=9), {}, r"shape \(1, 9\); expected \(Q, 8\)"),
        (units(1)[0], {}, r"shape \(8,\); expected \(Q, 8\)"),
        (np.vstack([units(1), NONE]), {}, "query vector 1 has a value that is not finite"),
        (units(2), {"words": ["a"]}, "found 2 vectors and 1 texts"),
        (units(1), {"k": 0}, "found k = 0; expected at least 1"),
    ],
)
def test_a_search_that_cannot_be_answered_is_refused(full, query, options, message):
    with pytest.raises(StoreError, match=message):
        full.search(query, **options)


def test_no_queries_have_no_answers(full):
    assert full.search(units(0), k=3) == []
    assert full.search(None, words=[]) == []
