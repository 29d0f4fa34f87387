"""A place is opened as the store it is, and a store is brought up to date with a folder of vectors."""

from dataclasses import replace

import numpy as np
import pytest
from stored_products import FINGERPRINT, opened, shop, units, vector_folder

from moon3.__main__ import main
from retrieval.stores.interface import CLIENT_DIGEST, StoredProduct, StoreError
from retrieval.stores.opening import create_store, exact_store, open_store, sync

VECTORS = {"t": units(40, 1), "i": units(40, 2)}


@pytest.fixture
def folder(tmp_path):
    return vector_folder(tmp_path / "vectors", shop(), VECTORS)


def answers(store):
    found = store.search(units(3, 5), words=["red", "mug", "boots"], k=9)
    return [[(hit.product, hit.score, hit.form) for hit in hits] for hits in found]


def test_a_folder_without_a_store_is_searched_exactly_and_with_one_by_it(folder, capsys):
    exact = open_store(folder.path)
    assert exact.about == f"exact search in memory over the 40 products of {folder.path}"
    assert main(["index", str(folder.path)]) == 0
    said = capsys.readouterr().out
    assert f"LanceDB store in {folder.path / 'store'}: 40 products added, 0 replaced, 0 removed, 0 unchanged;" in said
    assert "form t: exact search over 40 vectors (an index is built above 2000000 vectors)" in said
    for place in (folder.path, folder.path / "store"):
        store = open_store(place)
        assert store.about == f"LanceDB store in {folder.path / 'store'}"
        assert answers(store) == answers(exact)


def test_index_writes_to_another_place_and_a_second_time_changes_nothing(folder, tmp_path, capsys):
    for place in (str(tmp_path / "elsewhere"), f"qdrant={tmp_path / 'q'}/shop"):
        assert main(["index", str(folder.path), "--store", place]) == 0
        assert "40 products added" in capsys.readouterr().out
        assert main(["index", str(folder.path), "--store", place]) == 0
        assert "0 products added, 0 replaced, 0 removed, 40 unchanged" in capsys.readouterr().out
        store = open_store(place)
        assert answers(store) == answers(open_store(folder.path))
        store.close()


@pytest.mark.parametrize("kind", ["exact", "embedded", "served"])
def test_only_what_differs_is_written(kind, folder, tmp_path, monkeypatch):
    store = opened(kind, None if kind == "served" else tmp_path)
    assert sync(store, folder).added == 40
    products = [replace(one, title="changed", digest="v2") if one.product_id < "p003" else one for one in shop()][:-5]
    products.append(replace(shop()[0], product_id="new", digest="n"))
    vectors = {form: np.vstack([rows[:-5], units(1, 8)]) for form, rows in VECTORS.items()}
    folder = vector_folder(folder.path, products, vectors)
    written = []
    upsert = store.upsert
    monkeypatch.setattr(store, "upsert", lambda some, rows: (written.extend(some), upsert(some, rows)))
    counts = sync(store, folder)
    assert (counts.added, counts.replaced, counts.removed, counts.unchanged) == (1, 3, 5, 32)
    assert sorted(one.product_id for one in written) == ["new", "p000", "p001", "p002"]
    assert list(store.products()) == sorted(products, key=lambda one: one.product_id)
    assert answers(store) == answers(exact_store(folder))
    store.close()


@pytest.mark.parametrize("kind", ["embedded", "served"])
def test_products_of_clients_stay_unless_the_folder_has_their_id(folder, tmp_path, kind):
    store = opened(kind, tmp_path)
    sync(store, folder)
    written = [StoredProduct("of-client", "lamp", digest=f"{CLIENT_DIGEST}1"), shop()[3]]
    written[1] = replace(written[1], title="changed by a client", digest=f"{CLIENT_DIGEST}2")
    store.upsert(written, {"t": units(2, 9)})
    assert "of clients" not in str(sync(exact_store(folder), folder))
    counts = sync(store, folder)
    assert (counts.added, counts.replaced, counts.removed, counts.of_clients) == (0, 1, 0, 1)
    assert "1 of clients kept" in str(counts)
    assert [one.title for one in store.get(["of-client", "p003"]) if one] == ["lamp", shop()[3].title]
    store.close()


def test_products_without_a_vector_are_left_out_and_leave_the_store(folder, tmp_path):
    store = opened("embedded", tmp_path)
    sync(store, folder)
    vectors = {form: rows.copy() for form, rows in VECTORS.items()}
    vectors["t"][:3] = vectors["i"][:2] = np.nan
    products = [replace(one, digest="v2") if one.product_id < "p003" else one for one in shop()]
    folder = vector_folder(folder.path, products, vectors)
    counts = sync(store, folder)
    assert (counts.replaced, counts.removed, counts.without_vector) == (1, 2, 2)
    assert "2 without a vector left out" in str(counts)
    exact = exact_store(folder)
    assert exact.about.endswith("over the 38 products of " + f"{folder.path}; 2 products without a vector are left out")
    assert answers(store) == answers(exact)


def test_products_without_a_digest_are_always_written(tmp_path):
    folder = vector_folder(tmp_path / "v", [replace(one, digest="") for one in shop(5)], {"t": units(5)})
    store = opened("exact", None)
    assert sync(store, folder).added == 5
    assert sync(store, folder).replaced == 5


def test_vectors_of_another_model_are_refused(folder, tmp_path, capsys):
    assert main(["index", str(folder.path)]) == 0
    vector_folder(folder.path, shop(), VECTORS, fingerprint="model-2")
    with pytest.raises(StoreError, match="found vectors of the model 'model-1' .* expected those of .*'model-2'"):
        open_store(folder.path)
    assert main(["index", str(folder.path)]) == 2
    assert "found a store of the model 'model-1' with 8 dimensions; expected 'model-2'" in capsys.readouterr().err
    other = opened("exact", None, fingerprint="model-3")
    with pytest.raises(StoreError, match="remove the store, and run moon3 index again"):
        sync(other, folder)
    wide = opened("exact", None, dimension=9)
    with pytest.raises(StoreError, match="with 9 dimensions"):
        sync(wide, folder)
    place = f"qdrant={tmp_path / 'q'}/shop"
    create_store(place, 8, FINGERPRINT).close()
    with pytest.raises(StoreError, match="found vectors of the model 'model-1' with 8 dimensions; expected 'model-2'"):
        create_store(place, 8, "model-2")


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("nowhere", "found no moon_store.json; expected a store that moon3 index made"),
        ("qdrant=shop", "expected qdrant=URL/COLLECTION"),
        ("qdrant=http://localhost:1/shop", "cannot be opened .*; expected a running server or a folder"),
        ("qdrant=:memory:/shop", "found no such collection"),
    ],
)
def test_a_place_without_a_store_is_refused(place, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StoreError, match=message):
        open_store(place)
    assert list(tmp_path.iterdir()) == []


def test_a_first_pass_is_chosen_at_opening(folder):
    plain = open_store(folder.path)
    assert open_store(folder.path, first_pass="int8").memory_bytes > plain.memory_bytes
    assert answers(open_store(folder.path, first_pass=4)) == answers(plain)
    with pytest.raises(
        StoreError, match="first_pass: found 8; expected 'none', 'int8' or a number of dimensions below 8"
    ):
        open_store(folder.path, first_pass=8)


def test_an_interrupted_sync_goes_on(folder, tmp_path, monkeypatch):
    store = opened("embedded", tmp_path)
    monkeypatch.setattr("retrieval.stores.opening.BATCH_BYTES", 4 * 8 * 2 * 10)
    upsert, calls = store.upsert, []

    def stop_at_the_third(products, vectors):
        calls.append(len(products))
        if len(calls) == 3:
            raise KeyboardInterrupt
        upsert(products, vectors)

    monkeypatch.setattr(store, "upsert", stop_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        sync(store, folder)
    assert calls == [10, 10, 10]
    assert store.count() == 20
    counts = sync(store, folder)
    assert (counts.added, counts.unchanged) == (20, 20)
    assert answers(store) == answers(exact_store(folder))


def test_a_store_is_never_made_over_something_else(folder, tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "plan.txt").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    places = {
        tmp_path / "notes": "found plan.txt and no moon_store.json; expected a store, or a new or empty folder",
        folder.path: "found complete.json and no moon_store.json",
        folder.path / "shards": "found .*parquet and no moon_store.json",
        folder.products_file: "found a file; expected the folder of a store",
        tmp_path / "link": "found a link to nothing; expected a folder",
    }
    for place, message in places.items():
        with pytest.raises(StoreError, match=message):
            create_store(place, folder.dimension, folder.fingerprint)
    assert [file.name for file in (tmp_path / "notes").iterdir()] == ["plan.txt"]


def test_a_store_that_lost_its_settings_is_not_written_over(folder, tmp_path):
    with_settings = create_store(tmp_path / "s", folder.dimension, folder.fingerprint)
    sync(with_settings, folder)
    with_settings.close()
    (tmp_path / "s" / "moon_store.json").unlink()
    with pytest.raises(StoreError, match="If this was a store, remove it and run moon3 index again"):
        create_store(tmp_path / "s", folder.dimension, folder.fingerprint)


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("qdrant=http://localhost:6333", "expected qdrant=URL/COLLECTION"),
        ("qdrant=localhost:6333/shop", "found no http://; expected qdrant=http://localhost:6333/shop"),
        ("qdrant=q/a:b", "cannot be (made|opened) .*; expected another name"),
    ],
)
def test_a_place_of_qdrant_that_cannot_be_used_is_refused(place, message, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StoreError, match=message):
        create_store(place, folder.dimension, folder.fingerprint)
