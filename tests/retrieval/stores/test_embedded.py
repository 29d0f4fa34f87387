"""The store on disk survives kills, has one writer, many readers, and an index only if it is good enough."""

import json
import multiprocessing
import os
import signal
import time

import numpy as np
import pytest
from folder_holder import holding
from stored_products import FINGERPRINT, ids_of, opened, shop, units, vector_folder

from retrieval.stores.embedded import LOCK_FILE, SETTINGS_FILE, EmbeddedStore
from retrieval.stores.interface import StoredProduct, StoreError
from retrieval.stores.opening import exact_store, sync
from retrieval.stores.tuning import Index, decide
from retrieval.stores.where import Where

SPAWN = multiprocessing.get_context("spawn")


@pytest.fixture
def store(tmp_path):
    return opened("embedded", tmp_path)


def test_a_store_is_the_same_when_it_is_opened_again(store, tmp_path):
    store.upsert(shop(), {"t": units(40, 1)})
    store.compact()
    again = EmbeddedStore(tmp_path / "store")
    assert (again.dimension, again.fingerprint, again.forms) == (8, FINGERPRINT, ("t",))
    query = units(1, 3)
    assert again.search(query, words=["red"]) == store.search(query, words=["red"])


def test_another_model_or_dimension_is_refused(store, tmp_path):
    for dimension, fingerprint in ((9, FINGERPRINT), (8, "model-2")):
        with pytest.raises(StoreError, match="found a store of the model 'model-1' with 8 dimensions; expected"):
            EmbeddedStore(tmp_path / "store", dimension, fingerprint)


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"format": 9, "dimension": 8, "fingerprint": "", "indices": {}}'])
def test_settings_that_cannot_be_read_are_refused(store, tmp_path, text):
    (tmp_path / "store" / SETTINGS_FILE).write_text(text)
    with pytest.raises(StoreError, match=f"{SETTINGS_FILE}: found .*; expected"):
        EmbeddedStore(tmp_path / "store")


def test_one_process_writes_at_a_time_and_others_still_read(store, tmp_path):
    store.upsert(shop(), {"t": units(40, 1)})
    with holding(tmp_path / "store", LOCK_FILE) as process:
        for write in (lambda: store.upsert(shop(1), {"t": units(1)}), lambda: store.delete(["p000"]), store.compact):
            with pytest.raises(StoreError, match=f"in use by process {process.pid} .*One process writes to a store"):
                write()
        assert ids_of(store.search(units(40, 1)[5:6], k=1)[0]) == ["p005"]
    assert store.delete(["p000"]) == 1
    assert not (tmp_path / "store" / LOCK_FILE).exists()


def test_compaction_removes_old_versions_and_reduces_files(store, tmp_path):
    for number in range(12):
        store.upsert([StoredProduct(f"p{number}", title="red")], {"t": units(1, number)})
    table = tmp_path / "store" / "products.lance"
    before = len(list((table / "data").iterdir()))
    said = store.compact()
    assert int(said.split()[0]) >= 12
    assert "old versions removed; form t: exact search over 12 vectors" in said
    assert len(list((table / "data").iterdir())) < before
    assert len(list((table / "_versions").glob("*.manifest"))) == 1
    assert store.count() == 12
    assert len(store.search(None, words=["red"], k=20)[0]) == 12


def test_a_store_whose_first_upsert_was_cut_off_before_its_index_of_words_is_empty_and_can_be_written(
    store, monkeypatch
):
    monkeypatch.setattr("lancedb.table.LanceTable.create_index", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        store.upsert(shop(), {"t": units(40)})
    monkeypatch.undo()
    assert store.search(units(1), words=["red"]) == [[]]
    store.upsert(shop(), {"t": units(40)})
    assert len(store.search(None, words=["red"], k=50)[0]) == 14


def test_a_reader_uses_what_a_later_compaction_decided(clustered, tmp_path):
    store, rows = clustered
    reader = EmbeddedStore(tmp_path / "store")
    assert reader.indices == {}
    store.compact()
    assert reader.indices["t"]["index"]["kind"] == "ivf_flat"
    assert len(reader.search(rows[:1], k=5)[0]) == 5


def _sync(place, folder):
    from retrieval.stores import opening
    from retrieval.vectors.vector_files import VectorFolder

    opening.BATCH_BYTES = 4 * 8 * 2 * 20
    opening.sync(opening.create_store(place, 8, FINGERPRINT), VectorFolder(folder))


@pytest.mark.parametrize("delay", [0.0, pytest.param(0.3, marks=pytest.mark.slow)])
def test_a_killed_sync_leaves_a_store_that_opens_and_goes_on(tmp_path, delay):
    vectors = {"t": units(2000, 1), "i": units(2000, 2)}
    products = [StoredProduct(f"{number:05}", title="red shoe", digest="d") for number in range(2000)]
    folder = vector_folder(tmp_path / "vectors", products, vectors, rows_per_shard=1000)
    place = tmp_path / "store"
    process = SPAWN.Process(target=_sync, args=(place, folder.path))
    process.start()
    give_up = time.monotonic() + 120
    while process.is_alive() and not (place / "products.lance" / "data").is_dir():
        assert time.monotonic() < give_up
        time.sleep(0.01)
    time.sleep(delay)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    store = EmbeddedStore(place, 8, FINGERPRINT)
    stored = store.digests()
    assert len(stored) < 2000
    assert store.count() == len(stored)
    counts = sync(store, folder)
    assert (counts.added, counts.unchanged) == (2000 - len(stored), len(stored))
    query = units(2, 4)
    assert store.search(query, words=["red"] * 2, k=5) == exact_store(folder).search(query, words=["red"] * 2, k=5)


def _write(place, done):
    store = EmbeddedStore(place)
    for number in range(8):
        store.upsert([StoredProduct(f"n{number}{one}", title="new") for one in range(20)], {"t": units(20, number)})
        store.delete([f"n{number}{one}" for one in range(20)])
        if number % 2:
            store.compact()
    done.set()


def test_a_reader_has_whole_answers_while_another_process_writes_and_compacts(store, tmp_path):
    store.upsert(shop(), {"t": units(40, 1)})
    store.compact()
    done = SPAWN.Event()
    writer = SPAWN.Process(target=_write, args=(tmp_path / "store", done))
    writer.start()
    where, rounds, query = Where.parse("brand = Acme"), 0, units(40, 1)[:1]
    while not done.is_set() and writer.is_alive():
        assert ids_of(store.search(query, k=5, where=where)[0])[0] == "p000"
        assert store.count(where) == 14
        assert store.get(["p001"]) == [shop()[1]]
        red = ids_of(store.search(None, words=["red"], k=50, where=where)[0])
        assert sorted(red) == [f"p{n:03}" for n in range(0, 40, 3)]
        assert {one.product_id for one in store.products()} >= {f"p{n:03}" for n in range(40)}
        rounds += 1
    writer.join()
    assert writer.exitcode == 0
    assert rounds > 1
    assert store.count() == 40


@pytest.fixture
def clustered(store, monkeypatch):
    """A store of 3,000 vectors in 30 clusters, which is above the size of exact search."""
    monkeypatch.setattr("retrieval.stores.tuning.EXACT_VALUES", 8000)
    source = np.random.default_rng(0)
    rows = units(30, 5)[source.integers(30, size=3000)] + 0.3 * source.standard_normal((3000, 8))
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    store.upsert([StoredProduct(f"{number:05}", price=number % 50) for number in range(3000)], {"t": rows})
    return store, rows


def test_an_index_is_built_above_a_size_and_keeps_the_recall_that_it_states(clustered, tmp_path):
    store, rows = clustered
    said = store.compact()
    assert "form t: ivf_flat over 3000 vectors" in said
    decision = store.indices["t"]
    assert decision["recall"] >= 0.97
    assert decision["filtered_recall"] >= 0.95
    assert json.loads((tmp_path / "store" / SETTINGS_FILE).read_text())["indices"]["t"] == decision
    exact = opened("exact", None)
    exact.upsert(list(store.products()), {"t": store.vectors(sorted(store.digests()), "t")})
    for where in (None, Where.parse("price = 7")):
        found, expected = (one.search(units(50, 6), k=10, where=where) for one in (store, exact))
        shares = [len(set(ids_of(a)) & set(ids_of(b))) / 10 for a, b in zip(found, expected, strict=True)]
        assert np.mean(shares) >= (0.97 if where is None else 0.95)
    assert store.compact().endswith(", as before")
    store.upsert([StoredProduct("later")], {"t": rows[:1]})
    assert "later" in ids_of(store.search(rows[:1], k=2)[0])
    assert store.delete(["later", "00000"]) == 2
    assert not {"later", "00000"} & set(ids_of(store.search(rows[:1], k=5)[0]))


def test_the_index_is_measured_again_after_many_writes_and_dropped_below_the_size(clustered):
    store, rows = clustered
    store.compact()
    store.delete([f"{number:05}" for number in range(700)])
    assert "over 2300 vectors" in store.compact()
    store.delete([f"{number:05}" for number in range(700, 2500)])
    said = store.compact()
    assert "form t: exact search over 500 vectors (an index is built above 1000 vectors)" in said
    assert not any(index.columns == ["vector_t"] for index in store._table().list_indices())


def test_an_index_without_the_recall_is_not_used_and_the_store_says_so(clustered, monkeypatch):
    store, rows = clustered
    monkeypatch.setattr("retrieval.stores.tuning.LEAST_RECALL", 1.01)
    monkeypatch.setattr("retrieval.stores.tuning.CANDIDATES", (Index("ivf_flat", 1, 1),))
    said = store.compact()
    assert "form t: exact search over 3000 vectors (no index reaches 1.01 and 0.95), recall@10 " in said
    assert store.indices["t"]["index"] is None
    assert not any(index.columns == ["vector_t"] for index in store._table().list_indices())


def test_the_first_candidate_with_both_recalls_is_taken_and_each_kind_is_built_once():
    class Measured:
        dimension = 4
        recalls = {1: (0.5, 1.0), 2: (0.98, 0.5), 3: (1.0, 1.0)}

        def sample(self, form, number):
            return ["q"], units(1, dimension=4)

        def nearest_of_form(self, query_D, k, form, condition, index):
            from retrieval.stores.ranking import Candidate

            right = k if index is None else round(self.recalls[index.nprobes][condition is not None] * 10)
            return [Candidate(f"{number}" if number < right else f"wrong {number}", 1.0) for number in range(k - 1)]

    built = []
    candidates = [Index("ivf_flat", 1, 1), Index("ivf_flat", 2, 1), Index("hnsw_sq", 3, 1), Index("hnsw_sq", 3, 2)]
    decision = decide(Measured(), "t", 10**9, built.append, candidates)
    assert decision.index == candidates[2]
    assert (decision.recall, decision.filtered_recall) == (1.0, 1.0)
    assert [type(one).__name__ for one in built] == ["IvfFlat", "HnswSq"]
    worst = decide(Measured(), "t", 10**9, built.append, candidates[:2])
    assert worst.index is None
    assert (worst.recall, worst.filtered_recall) == (1.0, 0.5)


def test_a_product_that_a_writer_removes_during_a_search_leaves_no_gap(tmp_path, monkeypatch):
    store = opened("embedded", tmp_path)
    store.upsert(shop(20), {"t": units(20, 1)})
    (first,) = store.search(units(1, 5), k=5)
    get, gone = store.get, first[2].product.product_id

    def remove_and_get(product_ids):
        store.delete([gone])
        return get(product_ids)

    monkeypatch.setattr(store, "get", remove_and_get)
    (found,) = store.search(units(1, 5), k=5)
    assert len(found) == 5
    assert [hit.product.product_id for hit in found][:2] == [hit.product.product_id for hit in first][:2]
    assert gone not in [hit.product.product_id for hit in found]
    store.close()
