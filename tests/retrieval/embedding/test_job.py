"""The embedding job: what it embeds, keeps, removes and refuses, and what the folder then holds."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from pictures import noise
from small_feeds import feed, feed_product

from product_data.table_files import TableError
from retrieval.embedding.embedding_options import EmbeddingOptions
from retrieval.embedding.job import EmbeddingJobError, embed_feed
from retrieval.encode import encode, load_for_evaluation
from retrieval.vectors.shard_files import VectorFileError
from retrieval.vectors.vector_files import VectorFolder

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def options(tiny_moon):
    return EmbeddingOptions(
        str(tiny_moon("qwen3_vl", trained=True)), batch_size=4, rows_per_shard=8, reduced_decoding=False
    )


def vectors_of(folder, form="mm"):
    return {
        id_: vector for ids, rows in VectorFolder(folder).vectors(form) for id_, vector in zip(ids, rows, strict=True)
    }


def job(products, folder, options):
    said = []
    done = embed_feed(products, folder, options, report=said.append)
    assert not (folder / "work").exists()
    return done, said


def test_every_product_gets_the_vector_that_encode_makes_and_its_facts(tmp_path, options):
    products = feed(tmp_path, range(21))
    done, said = job(products, tmp_path / "v", options)
    assert (done.embedded, done.kept, done.removed, done.failed) == (21, 0, 0, 0)
    assert said[0] == "21 products: 21 to embed (21 vectors, 21 pictures), 0 to keep, 0 to remove"
    assert said[1].startswith("8 products took ")
    vectors = vectors_of(tmp_path / "v")
    model, processor = load_for_evaluation(options.model)
    expected = encode(model, processor, [product.row.record() for product in products], progress=False).vectors
    found = np.stack([vectors[product.row.product_id] for product in products])
    np.testing.assert_allclose(found, expected, atol=1e-6)
    folder = VectorFolder(tmp_path / "v")
    facts = list(folder.products())
    assert [product.product_id for product in facts] == [f"p{number:04}" for number in range(21)]
    assert (facts[3].title, facts[3].price, facts[3].brand) == ("red shoe number 3", 9.5, "Moon")
    assert facts[3].images == products[3].row.images
    assert (folder.dimension, folder.forms, folder.complete) == (32, ("mm",), True)
    assert all(rows <= 8 for rows, _ in folder.state.shards.values())


def test_the_same_command_again_embeds_only_what_is_new_or_changed(tmp_path, options):
    old = feed(tmp_path, range(30))
    job(old, tmp_path / "v", options)
    before, files = (
        vectors_of(tmp_path / "v"),
        {p.name: p.stat().st_mtime_ns for p in (tmp_path / "v" / "shards").iterdir()},
    )
    done, _ = job(old, tmp_path / "v", options)
    assert (done.embedded, done.kept, done.updated) == (0, 30, 0)
    assert {p.name: p.stat().st_mtime_ns for p in (tmp_path / "v" / "shards").iterdir()} == files

    new = old[2:-1] + feed(tmp_path, [50, 51])  # p0000, p0001 and p0029 leave, two come
    new[0] = feed_product(tmp_path, 2, title="blue boots")
    noise(32, 32, 999).save(tmp_path / "5-0.png")
    new[6] = replace(new[6], row=replace(new[6].row, attributes={"colour": ("blue",)}))
    new[8] = replace(new[8], price=1.0, availability="out_of_stock")
    done, said = job(new, tmp_path / "v", options)
    assert (done.embedded, done.kept, done.removed, done.updated) == (5, 24, 3, 1)
    assert said[0] == "29 products: 5 to embed (5 vectors, 5 pictures), 24 to keep, 3 to remove"
    after = vectors_of(tmp_path / "v")
    assert after.keys() == {product.row.product_id for product in new}
    changed = {"p0002", "p0005", "p0008"}
    assert {id_ for id_ in after if id_ in before and (after[id_] != before[id_]).any()} == changed
    facts = {product.product_id: product for product in VectorFolder(tmp_path / "v").products()}
    assert (facts["p0010"].price, facts["p0010"].availability) == (1.0, "out_of_stock")
    assert facts["p0002"].title == "blue boots"


def test_a_changed_price_alone_embeds_nothing_and_changes_the_digest(tmp_path, options):
    old = feed(tmp_path, range(6))
    job(old, tmp_path / "v", options)
    before = [product.digest for product in VectorFolder(tmp_path / "v").products()]
    done, _ = job([replace(old[0], price=3.0), *old[1:]], tmp_path / "v", options)
    assert (done.embedded, done.kept, done.updated) == (0, 6, 1)
    after = [product.digest for product in VectorFolder(tmp_path / "v").products()]
    assert [one != two for one, two in zip(before, after, strict=True)] == [True] + [False] * 5


def test_an_unreadable_picture_is_an_error_that_names_it_and_the_mended_one_is_embedded_alone(tmp_path, options):
    products = feed(tmp_path, range(12))
    (tmp_path / "4-0.png").write_bytes((tmp_path / "4-0.png").read_bytes()[:60])
    done, _ = job(products, tmp_path / "v", options)
    assert (done.embedded, done.failed) == (11, 1)
    [(product_id, form, reason)] = VectorFolder(tmp_path / "v").errors()
    assert (product_id, form) == ("p0004", "mm")
    assert str(tmp_path / "4-0.png") in reason
    assert "p0004" not in vectors_of(tmp_path / "v")
    assert len(list(VectorFolder(tmp_path / "v").products())) == 12
    before = {product.product_id: product.digest for product in VectorFolder(tmp_path / "v").products()}

    files = {path.name for path in (tmp_path / "v" / "shards").iterdir()}
    done, said = job(products, tmp_path / "v", options)  # tried again, in vain: nothing changes
    assert (done.embedded, done.kept, done.failed) == (0, 11, 1)
    assert {path.name for path in (tmp_path / "v" / "shards").iterdir()} == files

    noise(32, 32, 40).save(tmp_path / "4-0.png")
    done, said = job(products, tmp_path / "v", options)
    assert (done.embedded, done.kept, done.failed) == (1, 11, 0)
    assert said[0].startswith("12 products: 1 to embed")
    assert "p0004" in vectors_of(tmp_path / "v")
    after = {product.product_id: product.digest for product in VectorFolder(tmp_path / "v").products()}
    assert [id_ for id_ in after if after[id_] != before[id_]] == ["p0004"]


def test_a_missing_picture_is_an_error_too_and_replaces_an_older_vector(tmp_path, options):
    products = feed(tmp_path, range(6))
    job(products, tmp_path / "v", options)
    (tmp_path / "2-0.png").unlink()
    done, _ = job(products, tmp_path / "v", options)
    assert (done.embedded, done.kept, done.failed) == (0, 5, 1)
    assert "p0002" not in vectors_of(tmp_path / "v")


def test_forms_keep_several_vectors_and_a_product_is_left_out_of_those_that_show_nothing_of_it(tmp_path, options):
    products = [*feed(tmp_path, range(5)), feed_product(tmp_path, 5, pictures=0)]
    done, said = job(products, tmp_path / "v", replace(options, forms=("mm", "t", "i")))
    assert (done.embedded, done.failed) == (6, 0)
    assert said[0].startswith("6 products: 6 to embed (17 vectors, 5 pictures)")
    assert [len(vectors_of(tmp_path / "v", form)) for form in ("mm", "t", "i")] == [6, 6, 5]
    model, processor = load_for_evaluation(options.model)
    text = encode(model, processor, [products[5].row.record("t")], form="t", progress=False).vectors[0]
    np.testing.assert_allclose(vectors_of(tmp_path / "v", "t")["p0005"], text, atol=1e-6)
    done, said = job(products, tmp_path / "v", replace(options, forms=("mm", "t")))  # a form less: its vectors go
    assert done.embedded == 0
    assert VectorFolder(tmp_path / "v").state.vectors == {"mm": 6, "t": 6}
    done, said = job(products, tmp_path / "v", replace(options, forms=("i",)))
    assert (done.embedded, done.failed) == (5, 1)
    [(product_id, _, reason)] = VectorFolder(tmp_path / "v").errors()
    assert (product_id, reason) == ("p0005", "the product has no pictures; expected some for the form 'i'")


def test_a_changed_model_or_setting_embeds_everything_again_and_says_so_before(tmp_path, options, tiny_moon):
    products = feed(tmp_path, range(6))
    job(products, tmp_path / "v", options)
    done, said = job(products, tmp_path / "v", replace(options, dtype="float16"))
    assert done.embedded == 6
    assert said[0].endswith("all products are embedded again, because this has changed: dtype float32 → float16")
    other = str(tiny_moon("qwen3_vl"))
    done, said = job(products, tmp_path / "v", replace(options, model=other))
    assert done.embedded == 6
    assert f"because this has changed: the model {options.model} (" in said[0]
    assert VectorFolder(tmp_path / "v").embedding.model == other


def test_a_feed_that_shrank_by_more_than_half_is_refused_and_removes_nothing(tmp_path, options):
    products = feed(tmp_path, range(10))
    job(products, tmp_path / "v", options)
    for left in (0, 4):
        with pytest.raises(
            EmbeddingJobError, match=rf"found {left} products, and {10 - left} of the 10 in .* --allow-removal"
        ):
            job(products[:left], tmp_path / "v", options)
        assert not (tmp_path / "v" / "work").exists()
        assert len(vectors_of(tmp_path / "v")) == 10
    done, _ = job(products[:5], tmp_path / "v", options)
    assert (done.kept, done.removed) == (5, 5)
    done, _ = job([], tmp_path / "v", replace(options, allow_removal=True))
    assert (done.removed, list(VectorFolder(tmp_path / "v").products())) == (5, [])
    with pytest.raises(EmbeddingJobError, match="found no products"):
        job([], tmp_path / "w", options)


@pytest.mark.parametrize("step", ["merge_shards", "choose_rows", "VectorFolder.write_state"])
def test_a_job_that_stops_at_its_end_is_finished_by_the_same_command_without_embedding(
    tmp_path, options, monkeypatch, step
):
    products = feed(tmp_path, range(20))

    def stop(*given):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(f"retrieval.embedding.finishing.{step}", stop)
        with pytest.raises(KeyboardInterrupt):
            embed_feed(products, tmp_path / "v", options, report=str)
    with pytest.raises(VectorFileError, match="the embedding job has not finished"):
        VectorFolder(tmp_path / "v").shards()
    done, _ = job(products, tmp_path / "v", options)
    assert (done.embedded, done.kept, VectorFolder(tmp_path / "v").dimension) == (0, 20, 32)
    assert len(vectors_of(tmp_path / "v")) == 20


def test_an_id_that_occurs_twice_is_refused(tmp_path, options):
    products = feed(tmp_path, [1, 2, 1])
    with pytest.raises(TableError, match="found product_id 'p0001' twice; expected each id once"):
        embed_feed(products, tmp_path / "v", options)


def test_the_store_of_a_folder_is_brought_up_to_date(tmp_path, options):
    pytest.importorskip("lancedb")
    from retrieval.stores.opening import create_store, open_store, sync

    products = feed(tmp_path, range(6))
    job(products, tmp_path / "v", options)
    folder = VectorFolder(tmp_path / "v")
    store = create_store(folder.store_folder, folder.dimension, folder.fingerprint)
    sync(store, folder)
    store.close()
    done, _ = job([replace(products[0], price=1.0), *products[1:5]], tmp_path / "v", options)
    assert done.synced.startswith("its store: 0 products added, 1 replaced, 1 removed, 4 unchanged")
    store = open_store(tmp_path / "v")
    assert (store.count(), store.get(["p0000"])[0].price) == (5, 1.0)
    store.close()


def test_the_store_of_another_model_is_named_and_the_vectors_are_complete(tmp_path, options, tiny_moon):
    pytest.importorskip("lancedb")
    from retrieval.stores.opening import create_store

    products = feed(tmp_path, range(3))
    job(products, tmp_path / "v", options)
    create_store(tmp_path / "v" / "store", 32, "of another model").close()
    done, _ = job(products, tmp_path / "v", options)
    assert done.synced.startswith("its store is NOT up to date: ")
    assert VectorFolder(tmp_path / "v").complete
