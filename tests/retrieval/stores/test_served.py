"""The store in Qdrant is opened again from its folder, and corrects the weights of words."""

import pytest
from qdrant_client import QdrantClient, models
from stored_products import FINGERPRINT, ids_of, opened, shop, units

from retrieval.stores.interface import StoredProduct, StoreError
from retrieval.stores.served import ServedStore, condition_of, point_id
from retrieval.stores.where import Where


def test_a_collection_is_the_same_when_it_is_opened_again(tmp_path):
    store = opened("served", tmp_path)
    store.upsert(shop(), {"t": units(40, 1)})
    before = store.search(units(1, 3), words=["red"])
    with pytest.raises(StoreError, match="cannot be opened .*already accessed"):
        ServedStore(str(tmp_path / "qdrant"), "shop")
    store.close()
    again = ServedStore(str(tmp_path / "qdrant"), "shop")
    assert (again.dimension, again.fingerprint, again.forms) == (8, FINGERPRINT, ("t",))
    assert again.search(units(1, 3), words=["red"]) == before
    again.close()


def test_compaction_writes_the_weights_of_words_again_once_texts_have_another_length():
    exact, store = opened("exact", None), opened("served", None)
    for one in (exact, store):
        one.upsert([StoredProduct("a", title="red")], {"t": units(1)})
        long = [StoredProduct(f"b{number}", title="red " + "word " * number) for number in range(20)]
        one.upsert(long, {"t": units(20)})
    assert "written again for a mean length of 10.0 words" in store.compact()
    found, expected = (one.search(None, words=["red word"], k=21) for one in (store, exact))
    assert found == expected
    assert store.compact() == "21 products; Qdrant merges its files by itself"


def test_a_collection_of_others_and_an_unknown_form_are_refused(tmp_path):
    client = QdrantClient(path=str(tmp_path / "qdrant"))
    client.create_collection("shop", vectors_config={})
    client.close()
    with pytest.raises(StoreError, match="found the metadata .*; expected those of moon3 index"):
        opened("served", tmp_path)
    store = opened("served", None)
    with pytest.raises(StoreError, match="found the form 'x'; expected one of mm, t, i"):
        store.upsert([StoredProduct("a")], {"x": units(1)})


def test_a_server_is_asked_for_exact_search_and_indices_of_payloads(monkeypatch):
    calls = []
    store = opened("served", None)
    store.upsert(shop(), {"t": units(40)})
    store.is_server = True
    query = store._client.query_points
    monkeypatch.setattr(
        store._client, "query_points", lambda *a, search_params, **k: (calls.append(search_params), query(*a, **k))[1]
    )
    monkeypatch.setattr(store._client, "create_payload_index", lambda *a: calls.append(a))
    assert ids_of(store.search(units(40)[:1], words=["red"], k=1)[0])
    store.exact = False
    store.search(units(1), k=1)
    assert calls == [models.SearchParams(exact=True), None, models.SearchParams(exact=False)]
    calls.clear()
    store.collection = "other"
    store._create(8, FINGERPRINT, None)
    assert [call[1] for call in calls] == ["brand", "availability", "category_paths", "attribute_pairs", "price"]


def test_conditions_are_conditions_on_payloads():
    (condition,) = Where.parse("category in ('Shoes>Boots', Home)").conditions
    match = models.MatchAny(any=["Shoes > Boots", "Home"])
    assert condition_of(condition) == models.Filter(should=[models.FieldCondition(key="category_paths", match=match)])
    assert point_id("a") == point_id("a") != point_id("b")
