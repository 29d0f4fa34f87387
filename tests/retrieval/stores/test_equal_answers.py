"""The three stores give equal answers, on random tables and random filters."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stored_products import opened, shop, units

from retrieval.stores.interface import StoredProduct
from retrieval.stores.where import Condition, Where

WORDS = ["red", "blue", "it's", 'a"b', "x;--", "日本", "ñ", "100%", "\\", "a > b"]
texts = st.sampled_from(WORDS) | st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
attributes = st.dictionaries(texts.filter(bool), st.lists(texts, min_size=1, max_size=2).map(tuple), max_size=2)


@st.composite
def tables(draw):
    ids = draw(st.lists(texts.filter(bool), min_size=1, max_size=12, unique=True))
    return [
        StoredProduct(
            product_id,
            title=draw(texts),
            category=tuple(draw(st.lists(texts, max_size=3))),
            attributes=draw(attributes),
            brand=draw(texts),
            price=draw(st.none() | st.sampled_from([0.0, 9.99, 10.0, 1e22, -3.0])),
            availability=draw(st.sampled_from(["in_stock", "out_of_stock", ""])),
        )
        for product_id in ids
    ]


@st.composite
def filters(draw, products):
    conditions = []
    for _ in range(draw(st.integers(1, 3))):
        product = draw(st.sampled_from(products))
        key = draw(st.sampled_from(["price", "brand", "availability", "category", "attributes"]))
        if key == "price":
            operator = draw(st.sampled_from(["=", "!=", "<", "<=", ">", ">=", "in"]))
            values = st.sampled_from([0.0, 9.99, 10.0, 5.5, 1e22])
        elif key == "attributes":
            name = draw(st.sampled_from([*product.attributes, "color"]))
            key, values = f"attributes.{name}", st.sampled_from([*product.attributes.get(name, ()), "red"])
        elif key == "category":
            levels = product.category[: draw(st.integers(1, 3))] or ("red",)
            values = st.just(" > ".join(levels))
        else:
            values = st.sampled_from([getattr(product, key), "red"])
        if not key.startswith("price"):
            operator = draw(st.sampled_from(["=", "!=", "in"]))
        count = draw(st.integers(1, 2)) if operator == "in" else 1
        conditions.append(Condition(key, operator, tuple(draw(values) for _ in range(count))))
    return Where(tuple(conditions))


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_random_tables_filters_words_and_vectors_have_equal_answers(data, tmp_path_factory):
    products = data.draw(tables())
    where = data.draw(st.none() | filters(products))
    words = data.draw(st.lists(texts, min_size=2, max_size=2))
    vectors = {"t": units(len(products), 1), "i": units(len(products), 2)}
    missing = data.draw(st.lists(st.booleans(), min_size=len(products), max_size=len(products)))
    vectors["i"][np.array(missing)] = np.nan
    answers = []
    for kind in ("exact", "embedded", "served"):
        store = opened(kind, None if kind == "served" else tmp_path_factory.mktemp("s"))
        store.upsert(products, vectors)
        kept = [one for one in sorted(products, key=lambda one: one.product_id) if where is None or where.holds(one)]
        assert list(store.products(where)) == kept, kind
        queries = units(2, 3)
        both = [store.search(queries, k=4, where=where), store.search(queries, words=words, k=4, where=where)]
        found = [[(hit.product.product_id, hit.score, hit.form) for hit in hits] for one in both for hits in one]
        answers.append((store.count(where), store.facets(where), found))
        store.close()
    assert answers[1] == answers[0]
    assert answers[2] == answers[0]


@pytest.mark.parametrize("kind", ["embedded", "served"])
def test_words_have_the_answers_of_exact_search(kind, tmp_path):
    stores = [opened(one, tmp_path) for one in ("exact", kind)]
    for store in stores:
        store.upsert(shop(), {"t": units(40)})
    queries = ["red boots", "mug", "nice nice lamp", "M", "Kitchen acme", "o'neill", "zebra", ""]
    answers = [store.search(None, words=queries, k=15) for store in stores]
    assert answers[1] == answers[0]
    assert [bool(one) for one in answers[0]] == [True] * 6 + [False] * 2
    fused = [store.search(units(8, 4), words=queries, k=15) for store in stores]
    assert fused[1] == fused[0]
    stores[1].close()


def test_words_of_a_store_on_disk_have_the_answers_of_exact_search_again_after_changes_and_compaction(tmp_path):
    stores = [opened(one, tmp_path) for one in ("exact", "embedded")]
    for store in stores:
        store.upsert(shop(), {"t": units(40)})
        store.delete([f"p{number:03}" for number in range(0, 40, 3)])
        store.upsert([StoredProduct("new", title="red boots, red mug")], {"t": units(1, 7)})
        store.compact()
    answers = [store.search(None, words=["red boots", "mug", "nice"], k=15) for store in stores]
    assert answers[1] == answers[0]
    assert answers[0][0][0].product.product_id == "new"
