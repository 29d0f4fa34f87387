"""The store in memory states its memory and frees that of deleted products."""

import numpy as np
from stored_products import ids_of, opened, shop, units

from retrieval.stores.interface import StoredProduct


def test_the_stated_memory_grows_with_vectors_facts_and_indices_and_shrinks_by_compaction():
    store = opened("exact", None)
    store.upsert(shop(40), {"t": units(40)})
    first = store.memory_bytes
    assert first >= 40 * 8 * 4 + sum(len(one.title) for one in shop(40))
    store.search(None, words=["red"])
    words = store.memory_bytes
    store.facets()
    assert first < words < store.memory_bytes
    store.delete([f"p{number:03}" for number in range(30)])
    assert store.compact() == "freed the memory of 30 deleted products; 10 are kept"
    assert store.memory_bytes < first
    assert ids_of(store.search(units(40)[35:36], k=1)[0]) == ["p035"]
    np.testing.assert_array_equal(store.vectors(["p035"], "t"), units(40)[35:36])
    assert store.count() == len(store.search(None, words=["red blue green"], k=50)[0]) == 10


def test_vectors_and_facts_can_come_one_after_the_other():
    store = opened("exact", None)
    rows = store.add_products(shop(3))
    assert store.without_vector() == ["p000", "p001", "p002"]
    store.add_vectors("t", rows[:2], units(2))
    assert store.without_vector() == ["p002"]
    assert "p002" in store
    assert store.delete(store.without_vector()) == 1
    assert ids_of(store.search(units(2)[1:], k=5)[0])[0] == "p001"


class Counted(frozenset):
    """A set that counts how often it was iterated over."""

    walks = 0

    def __iter__(self):
        Counted.walks += 1
        return super().__iter__()


def test_a_repeated_exclusion_is_looked_up_once_and_again_after_each_change():
    store = opened("exact", None)
    store.upsert(shop(30), {"t": units(30)})
    left_out = Counted(f"p{number:03}" for number in range(20))
    Counted.walks = 0

    def found(exclude):
        candidates = store.nearest(units(1, 3), 30, None, ["t"], exclude)[0]
        return {one.product_id for one in candidates}

    kept = {f"p{number:03}" for number in range(20, 30)}
    assert found(left_out) == found(left_out) == kept
    assert Counted.walks == 1
    assert found(frozenset({"p029"})) == {f"p{number:03}" for number in range(29)}
    assert found(frozenset()) == {f"p{number:03}" for number in range(30)}
    assert found(left_out) == kept
    store.delete(["p029"])
    assert found(left_out) == kept - {"p029"}
    store.upsert([*shop(30)[29:], StoredProduct("new", title="x")], {"t": units(2, 5)})
    assert found(left_out) == kept | {"new"}
    store.delete(["p001", "p028"])
    store.compact()
    assert found(left_out) == (kept | {"new"}) - {"p028"}
