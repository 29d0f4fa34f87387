"""The folder of vectors: what a reader gets back, and which files it refuses, by name."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from retrieval.stores.interface import StoredProduct
from retrieval.vectors.product_facts import SortedProducts, read_products, write_products
from retrieval.vectors.shard_files import ShardRows, VectorFileError, write_shard
from retrieval.vectors.vector_files import Embedding, State, VectorFolder, is_vector_folder, open_or_create

EMBEDDING = Embedding("model", "f" * 32, {"reasoning": "none"}, ("mm", "t"), "float32", 8)


def unit(count, dimension=8, seed=0):
    vectors = np.random.default_rng(seed).standard_normal((count, dimension)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def complete_folder(path, dtype="float32"):
    """Return a folder of two products in two forms, of which one vector has an error."""
    folder = open_or_create(path, replace(EMBEDDING, dtype=dtype))
    folder.write_job(folder.embedding)
    vectors = unit(4)
    rows = ShardRows(
        ["a", "b", "a", "b"], ["mm", "mm", "t", "t"], ["0" * 32] * 4, "f", vectors, [None, "torn", None, None]
    )
    write_shard(folder.shard(0), rows.table(dtype))
    count = write_products(folder.products_file, [StoredProduct("a", title="A", price=1.5), StoredProduct("b")])
    shards = {folder.shard(0).name: (4, folder.shard(0).stat().st_size)}
    size = folder.products_file.stat().st_size
    folder.write_state(State(folder.embedding, shards, 1, count, size, {"mm": 1, "t": 2}, 1))
    return vectors


def test_a_reader_gets_back_what_was_written(tmp_path):
    vectors = complete_folder(tmp_path / "v")
    folder = VectorFolder(tmp_path / "v")
    assert (folder.fingerprint, folder.dimension, folder.forms, folder.complete) == ("f" * 32, 8, ("mm", "t"), True)
    [(ids, found)] = folder.vectors("mm")
    assert ids == ["a"]
    np.testing.assert_array_equal(found, vectors[:1])
    [(ids, found)] = folder.vectors("t")
    assert ids == ["a", "b"]
    np.testing.assert_array_equal(found, vectors[2:])
    assert list(folder.errors()) == [("b", "mm", "torn")]
    assert [product.product_id for product in folder.products()] == ["a", "b"]
    assert folder.state == VectorFolder(str(tmp_path / "v")).state
    with pytest.raises(VectorFileError, match="found no form 'i'; expected one of mm, t"):
        next(folder.vectors("i"))


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_smaller_types_are_read_as_float32_unit_vectors(tmp_path, dtype):
    vectors = complete_folder(tmp_path / "v", dtype)
    [(_, found)] = VectorFolder(tmp_path / "v").vectors("t")
    assert found.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(found, vectors[2:], atol=0.01)


def test_every_field_of_a_product_comes_back(tmp_path):
    full = StoredProduct(
        "ü-1",
        "Title",
        "two\nlines",
        ("Shoes", "Boots"),
        {"colour": ("red", "blue"), "size": ()},
        "Brand",
        12.25,
        "EUR",
        "in_stock",
        "https://shop/ü",
        ("a.jpg", "https://x/b.png"),
        "digest",
    )
    assert write_products(tmp_path / "p.parquet", [full, StoredProduct("v")]) == 2
    assert list(read_products(tmp_path / "p.parquet")) == [full, StoredProduct("v")]


def test_products_are_sorted_on_the_disk(tmp_path, monkeypatch):
    monkeypatch.setattr("retrieval.vectors.product_facts._ROWS_IN_MEMORY", 7)
    ids = [f"p{number}" for number in np.random.default_rng(0).permutation(50)]
    products = SortedProducts(tmp_path / "facts")
    for product_id in ids:
        products.add(StoredProduct(product_id))
    assert products.write(tmp_path / "p.parquet", lambda product: replace(product, digest="d")) == 50
    found = list(read_products(tmp_path / "p.parquet"))
    assert [product.product_id for product in found] == sorted(ids)
    assert {product.digest for product in found} == {"d"}


def test_a_folder_without_a_complete_state_is_refused_until_it_has_one(tmp_path):
    folder = open_or_create(tmp_path / "v", EMBEDDING)
    assert not folder.complete
    for read in (folder.products, folder.errors, lambda: folder.vectors("mm")):
        with pytest.raises(
            VectorFileError, match=r"complete\.json is missing.*run the same moon3 embed again, which goes on"
        ):
            list(read())


def cut(path):
    path.write_bytes(path.read_bytes()[:-20])


def replace_with_noise(path):
    path.write_bytes(b"PAR1" + bytes(path.stat().st_size - 8) + b"PAR1")


@pytest.mark.parametrize(
    ("name", "damage", "why"),
    [
        ("shards/000000.parquet", cut, r"000000\.parquet: found \d+ bytes; expected the \d+ bytes"),
        (
            "shards/000000.parquet",
            lambda path: path.unlink(),
            r"000000\.parquet: found no file; expected the \d+ bytes",
        ),
        ("shards/000000.parquet", replace_with_noise, r"000000\.parquet: found a file that is not complete parquet"),
        ("products.parquet", cut, r"products\.parquet: found \d+ bytes; expected the \d+ bytes"),
        ("products.parquet", replace_with_noise, r"products\.parquet: cannot be read"),
        ("complete.json", cut, r"complete\.json: cannot be read"),
        ("complete.json", lambda path: path.write_text('{"format": 1}'), r"complete\.json: cannot be read \(KeyError"),
        ("complete.json", lambda path: path.write_text("[]"), r"complete\.json: cannot be read"),
    ],
)
def test_a_damaged_file_is_refused_by_name(tmp_path, name, damage, why):
    complete_folder(tmp_path / "v")
    damage(tmp_path / "v" / name)

    def read():
        folder = VectorFolder(tmp_path / "v")
        return list(folder.products()), list(folder.vectors("mm"))

    with pytest.raises(VectorFileError, match=why):
        read()


@pytest.mark.parametrize(
    ("version", "what"),
    [(2, "Use the moon3 that wrote it, or a newer one"), (0, "Embed into a new folder"), ("x", "cannot be read")],
)
def test_a_folder_of_another_format_is_refused(tmp_path, version, what):
    complete_folder(tmp_path / "v")
    path = tmp_path / "v" / "complete.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": version}))
    with pytest.raises(VectorFileError, match=f"complete.json: .*{what}"):
        VectorFolder(tmp_path / "v")


def test_a_file_that_is_not_a_shard_is_named(tmp_path):
    complete_folder(tmp_path / "v")
    folder = VectorFolder(tmp_path / "v")
    (folder.shards_folder / "notes.txt").write_text("mine")
    with pytest.raises(VectorFileError, match=r"notes\.txt: found a file that is not a shard"):
        folder.all_shards()


def test_vectors_of_another_dimension_are_refused(tmp_path):
    complete_folder(tmp_path / "v")
    folder = VectorFolder(tmp_path / "v")
    write_shard(folder.shard(0), ShardRows(["a"], ["mm"], ["0"], "f", unit(1, 4), [None]).table("float32"))
    sizes = {"000000.parquet": (1, folder.shard(0).stat().st_size)}
    folder.write_state(replace(folder.state, shards=sizes))
    with pytest.raises(VectorFileError, match=r"found vectors of the type .*\[4\]; expected .*\[8\]"):
        list(folder.vectors("mm"))


@pytest.mark.parametrize("kind", ["file", "other folder"])
def test_what_is_not_a_folder_of_vectors_is_refused(tmp_path, kind):
    place = tmp_path / "place"
    if kind == "file":
        place.write_text("mine")
    else:
        place.mkdir()
        (place / "mine.txt").write_text("mine")
    assert not is_vector_folder(place)
    with pytest.raises(VectorFileError, match=r"found neither complete\.json nor job\.json"):
        VectorFolder(place)
    with pytest.raises(VectorFileError, match="expected a new or empty folder, or one that moon3 embed wrote"):
        open_or_create(place, EMBEDDING)


def test_leftovers_of_a_killed_job_are_removed_and_its_shards_are_kept(tmp_path):
    complete_folder(tmp_path / "v")
    folder = VectorFolder(tmp_path / "v")
    folder.write_state(replace(folder.state, next_shard=3))
    rows = ShardRows(["a"], ["mm"], ["0"], "f", unit(1), [None]).table("float32")
    write_shard(folder.shard(2), rows)  # replaced by the state
    write_shard(folder.shard(3), rows)  # of the job that was killed
    (folder.shards_folder / "000004.parquet.partial").write_bytes(b"PAR1")
    (folder.path / "products.parquet.partial").write_bytes(b"PAR1")
    folder.work_folder.mkdir()
    folder.remove_leftovers()
    assert sorted(path.name for path in folder.shards_folder.iterdir()) == ["000000.parquet", "000003.parquet"]
    assert sorted(path.name for path in folder.path.iterdir()) == [
        "complete.json",
        "job.json",
        "products.parquet",
        "shards",
    ]
