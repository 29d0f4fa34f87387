"""An upgrade of a folder of vectors: fitted on a sample, searched, backfilled, interrupted, and refused."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from small_feeds import feed
from words import words

import retrieval.embedding.job
from modeling_moon import MoonForConditionalGeneration
from moon3.__main__ import main
from processing_moon import MoonProcessor
from product_data.table_files import TableError
from retrieval.centring import Centring
from retrieval.embedding.embedding_options import EmbeddingOptions
from retrieval.embedding.job import embed_feed
from retrieval.encode import encode, load_for_evaluation
from retrieval.queries import Query, SearchError
from retrieval.query_encoder import QueryEncoder
from retrieval.search import Searcher, open_searcher
from retrieval.stores.interface import StoreError
from retrieval.stores.opening import create_store, exact_store, open_store, sync
from retrieval.stores.where import Where
from retrieval.upgrade import fitting
from retrieval.upgrade.fitting import ADAPTED, NEW_TO_NEW, OLD_TO_OLD, UNADAPTED
from retrieval.upgrade.mixed_store import MixedStore
from retrieval.upgrade.opening import new_group, open_upgraded, with_adapter
from retrieval.upgrade.recipes import linear_recipes
from retrieval.upgrade.sampling import UpgradeError
from retrieval.upgrade.upgrade_folder import UpgradeFolder
from retrieval.upgrade.upgrading import UpgradeOptions, backfill, facts_as_products, read_traffic, upgrade_folder
from retrieval.vectors.fingerprint import model_fingerprint
from retrieval.vectors.vector_files import VectorFolder

pytestmark = pytest.mark.usefixtures("one_thread")
PRODUCTS, SAMPLE = 90, 60


def quiet(*_):
    return None


def copy_of(folder, place, change):
    """A checkpoint whose projection is another."""
    model = MoonForConditionalGeneration.from_pretrained(folder)
    with torch.no_grad():
        weight = model.model.projection.weight
        weight.copy_(change(weight))
    model.save_pretrained(place)
    MoonProcessor.from_pretrained(folder).save_pretrained(place)
    return str(place)


@pytest.fixture(scope="module", autouse=True)
def only_procrustes():
    """Try the orthogonal map alone, which is exact here; others may beat the old model on the few titles that choose."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fitting, "linear_recipes", lambda material: islice(linear_recipes(material), 1))
        patch.setattr(fitting, "network_recipes", lambda *_: iter(()))
        yield patch


@pytest.fixture(scope="module")
def models(tiny_moon, tmp_path_factory):
    """An old model, a new one that is its rotated copy, and a third one."""
    old, folder = str(tiny_moon("qwen3_vl", trained=True)), tmp_path_factory.mktemp("models")
    turn = torch.linalg.qr(torch.randn(32, 32, generator=torch.Generator().manual_seed(0)))[0]
    return old, copy_of(old, folder / "new", lambda weight: turn @ weight), copy_of(old, folder / "third", torch.flipud)


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    products = feed(folder, range(PRODUCTS))
    # Titles of many words, so that a random model tells the products apart.
    return [
        dataclasses.replace(
            product,
            price=float(number),
            row=dataclasses.replace(product.row, title=words(number, 6), category=("shoes" if number % 3 else "hats",)),
        )
        for number, product in enumerate(products)
    ]


@pytest.fixture(scope="module")
def embedded(models, catalogue, tmp_path_factory):
    folder = tmp_path_factory.mktemp("vectors") / "old"
    embed_feed(catalogue, folder, EmbeddingOptions(models[0], ("mm", "t")), report=quiet)
    return folder


@pytest.fixture(scope="module")
def fitted(models, embedded, tmp_path_factory):
    """The folder with an adapter. Tests that change it take a copy."""
    folder = tmp_path_factory.mktemp("upgraded") / "old"
    shutil.copytree(embedded, folder)
    upgrade_folder(folder, UpgradeOptions(models[1], SAMPLE), report=quiet)
    return folder


@pytest.fixture
def upgraded(fitted, tmp_path):
    return shutil.copytree(fitted, tmp_path / "old")


@pytest.fixture(scope="module")
def queries(models, catalogue):
    """The vectors of all titles as queries, by the old and by the new model."""
    records = [{"text": product.row.title} for product in catalogue]
    return [encode(*load_for_evaluation(model), records, kind="query", progress=False).vectors for model in models[:2]]


def test_a_rotated_copy_of_the_model_loses_nothing(fitted, models):
    upgrade = UpgradeFolder(fitted).read()
    assert upgrade.name == "procrustes"
    assert upgrade.ranks[ADAPTED] == upgrade.ranks[OLD_TO_OLD] == upgrade.ranks[NEW_TO_NEW]
    assert len(upgrade.ranks[ADAPTED]) == SAMPLE * 0.2
    assert np.mean(upgrade.ranks[UNADAPTED]) > np.mean(upgrade.ranks[ADAPTED])
    assert (upgrade.old.fingerprint, upgrade.new.fingerprint) == tuple(map(model_fingerprint, models[:2]))
    vectors = UpgradeFolder(fitted).vectors()
    assert (vectors.fingerprint, vectors.state.products) == (upgrade.new.fingerprint, SAMPLE)
    strata = [product.category[0] for product in vectors.products()]
    assert (strata.count("hats"), strata.count("shoes")) == (20, 40)


def test_texts_of_products_take_part_in_the_choice(models, embedded, tmp_path, monkeypatch):
    monkeypatch.setattr(fitting, "linear_recipes", linear_recipes)
    folder = shutil.copytree(embedded, tmp_path / "old")
    upgrade = upgrade_folder(folder, UpgradeOptions(models[1], SAMPLE), report=quiet)
    tried = {name.split(", weight")[0] for name in upgrade.chosen_by}
    assert {"procrustes", "affine, texts to products", "affine, texts to queries"} <= tried
    best = max(upgrade.chosen_by.values())
    assert upgrade.chosen_by[upgrade.name] == best >= upgrade.chosen_by["procrustes"]
    assert UpgradeFolder(folder).read().name == upgrade.name


def test_queries_of_the_new_model_find_what_those_of_the_old_one_find(fitted, queries):
    plain, mixed = open_store(fitted), open_upgraded(fitted, UpgradeFolder(fitted).read().new.fingerprint)
    assert isinstance(mixed, MixedStore)
    assert len(mixed.moved) == SAMPLE
    wanted, found = plain.search(queries[0], k=5), mixed.search(queries[1], k=5)
    for one, other in zip(wanted, found, strict=True):
        assert [hit.product for hit in one] == [hit.product for hit in other]
        assert [hit.score for hit in one] == pytest.approx([hit.score for hit in other], abs=2e-3)


def test_filters_words_forms_exclusions_and_facts_hold_for_both_groups(fitted, queries, models):
    plain, mixed = open_store(fitted), open_upgraded(fitted, model_fingerprint(models[1]))
    where = Where.parse("price < 40 and category = 'shoes'")
    left_out = {hits[0].product.product_id for hits in plain.search(queries[0][:20], k=1)}
    for options in (
        {"where": where},
        {"forms": ["t"]},
        {"exclude": left_out},
        {"words": [words(number, 6) for number in range(20)], "k": 3},
    ):
        one, other = plain.search(queries[0][:20], **options), mixed.search(queries[1][:20], **options)
        assert [[hit.product for hit in hits] for hits in one] == [[hit.product for hit in hits] for hits in other]
    by_words = [store.search(None, words=[words(7, 6)]) for store in (plain, mixed)]
    assert by_words[0] == by_words[1]
    assert mixed.count(where) == plain.count(where) > 0
    assert list(mixed.products(where)) == list(plain.products(where))
    assert mixed.facets(where) == plain.facets(where)
    assert mixed.digests() == plain.digests()
    assert f"{SAMPLE} of {PRODUCTS} products" in mixed.about


def test_products_as_queries_have_vectors_in_the_new_space(fitted, models):
    mixed = open_upgraded(fitted, model_fingerprint(models[1]))
    ids = [product.product_id for product in mixed.products()]
    vectors = mixed.vectors([*ids, "unknown"], "mm")
    assert np.isnan(vectors[-1]).all()
    loaded = load_for_evaluation(models[1])
    records = [product.row.record("mm") for product in facts_as_products(VectorFolder(fitted))]
    assert np.allclose(vectors[:-1], encode(*loaded, records, progress=False).vectors, atol=5e-3)
    assert len(mixed.moved) not in (0, len(ids))


def test_a_searcher_with_the_new_model_searches_both_groups(fitted, models, catalogue):
    def searcher(model):
        fingerprint = model_fingerprint(model)
        return Searcher(open_upgraded(fitted, fingerprint), QueryEncoder(*load_for_evaluation(model), fingerprint))

    old, new = searcher(models[0]), searcher(models[1])
    for query in (catalogue[3].row.title, Query(image=catalogue[4].row.images[0]), Query(like="p0005")):
        wanted, found = ([hit.product.product_id for hit in one.search(query, k=4).hits] for one in (old, new))
        assert found == wanted
    store = open_store(fitted)
    assert with_adapter(store, fitted, new.store.fingerprint).fingerprint == new.store.fingerprint
    assert with_adapter(store, fitted, model_fingerprint(models[2])) is store
    assert with_adapter(store, "qdrant=http://localhost/shop", new.store.fingerprint) is store


def test_vectors_of_two_models_are_refused_without_an_adapter(embedded, fitted, models):
    old, new, third = map(model_fingerprint, models)
    assert open_upgraded(embedded, old).fingerprint == old
    with pytest.raises(UpgradeError, match=f"found vectors of the model '{old}' and no adapter; .* moon3 upgrade"):
        open_upgraded(embedded, new)
    with pytest.raises(UpgradeError, match=f"an adapter for {models[1]}; expected vectors of the model '{third}'"):
        open_upgraded(fitted, third)
    store = exact_store(VectorFolder(fitted))
    upgrade = UpgradeFolder(fitted).read()
    with pytest.raises(UpgradeError, match=f"new vectors: found fingerprint '{old}' and width 32; expected '{new}'"):
        MixedStore(store, store, upgrade)
    other = dataclasses.replace(upgrade, old=upgrade.new)
    with pytest.raises(UpgradeError, match=f"old vectors: found fingerprint '{old}'"):
        MixedStore(store, store, other)


def test_a_searcher_of_the_new_model_uses_the_adapter_and_other_models_are_refused(fitted, embedded, models, catalogue):
    query = Query(catalogue[7].row.title)
    with open_searcher(fitted) as old, open_searcher(fitted, model=models[1]) as new:
        assert isinstance(new.store, MixedStore)
        answers = [searcher.search(query, k=4) for searcher in (old, new)]
    assert [hit.product for hit in answers[0].hits] == [hit.product for hit in answers[1].hits]
    assert "through the adapter procrustes" in answers[1].store
    for folder, model in ((embedded, models[1]), (fitted, models[2])):
        sentence = f"or a model with an adapter for them: run moon3 upgrade {folder} {model}"
        with pytest.raises(SearchError, match=re.escape(sentence)), open_searcher(folder, model=model):
            pass


def test_a_centred_store_has_no_adapter(upgraded, models):
    folder = VectorFolder(upgraded)
    centring = Centring({"t": np.zeros(32, dtype=np.float32)}, {"t": 20})
    store = create_store(folder.store_folder, folder.dimension, folder.fingerprint, centring)
    sync(store, folder)
    store.close()
    with (
        pytest.raises(StoreError, match="old vectors: found a store that is centred by form"),
        open_searcher(upgraded, model=models[1]),
    ):
        pass


def test_the_command_searches_with_the_new_model(fitted, models, catalogue, capsys):
    words_of = ["search", str(fitted), catalogue[7].row.title, "--k", "3", "--json"]
    answers = []
    for model in ([], ["--model", models[1]]):
        assert main([*words_of, *model]) == 0
        answers.append(json.loads(capsys.readouterr().out))
    assert [hit["product_id"] for hit in answers[0]["hits"]] == [hit["product_id"] for hit in answers[1]["hits"]]
    assert main([*words_of, "--model", models[2]]) == 2
    assert f"run moon3 upgrade {fitted} {models[2]}" in capsys.readouterr().err


def test_a_mixed_store_is_not_written(fitted, models):
    mixed = open_upgraded(fitted, model_fingerprint(models[1]))
    for call in (lambda: mixed.upsert([], {}), lambda: mixed.delete(["p0001"])):
        with pytest.raises(
            StoreError, match="found a store with vectors of two models; expected the store of one model"
        ):
            call()


def test_the_most_viewed_products_are_embedded_first(upgraded, models, tmp_path, queries):
    log = tmp_path / "log.csv"
    before = {product.product_id for product in UpgradeFolder(upgraded).vectors().products()}
    waiting = sorted({f"p{number:04}" for number in range(PRODUCTS)} - before)
    rows = [f"{waiting[20]},5", f"{waiting[3]},", f"{waiting[3]},2", "gone,9", f"{waiting[8]},1"]
    log.write_text("\n".join(["product_id,count", *rows]) + "\n")
    traffic = read_traffic(log)
    assert traffic == {waiting[20]: 5, waiting[3]: 3, "gone": 9, waiting[8]: 1}
    options = UpgradeOptions(models[1], SAMPLE)
    done = backfill(upgraded, options, 2, traffic, report=quiet)
    assert (done.embedded, done.kept, done.removed) == (2, SAMPLE, 0)
    after = {product.product_id for product in UpgradeFolder(upgraded).vectors().products()}
    assert after - before == {waiting[20], waiting[3]}
    backfill(upgraded, options, 10_000, traffic, report=quiet)
    mixed = open_upgraded(upgraded, model_fingerprint(models[1]))
    assert len(mixed.moved) == PRODUCTS
    wanted = open_store(upgraded).search(queries[0], k=5)
    found = mixed.search(queries[1], k=5)
    assert [[hit.product for hit in hits] for hits in found] == [[hit.product for hit in hits] for hits in wanted]


def test_an_interrupted_backfill_goes_on(upgraded, models, monkeypatch, catalogue):
    options = UpgradeOptions(models[1], SAMPLE)
    write, written = retrieval.embedding.job.write_shard, []

    def stop_at_second(path, rows):
        if written:
            raise KeyboardInterrupt
        written.append(path)
        write(path, rows)

    monkeypatch.setattr(retrieval.embedding.job, "write_shard", stop_at_second)
    with monkeypatch.context() as small:
        small.setattr(
            "retrieval.upgrade.upgrading.EmbeddingOptions", lambda *a, **k: EmbeddingOptions(*a, **k, rows_per_shard=8)
        )
        with pytest.raises(KeyboardInterrupt):
            backfill(upgraded, options, PRODUCTS, report=quiet)
        assert UpgradeFolder(upgraded).vectors().state.products == SAMPLE  # the state before it is still searched
        assert len(open_upgraded(upgraded, model_fingerprint(models[1])).moved) == SAMPLE
        monkeypatch.setattr(retrieval.embedding.job, "write_shard", write)
        said = []
        done = backfill(upgraded, options, PRODUCTS, report=said.append)
    assert 0 < done.embedded < PRODUCTS - SAMPLE
    assert done.embedded + done.kept == PRODUCTS
    assert UpgradeFolder(upgraded).vectors().state.products == PRODUCTS


def test_the_same_upgrade_again_keeps_its_adapter(upgraded, models):
    before, said = UpgradeFolder(upgraded).facts_file.stat().st_mtime_ns, []
    again = upgrade_folder(upgraded, UpgradeOptions(models[1], 70, seed=3), report=said.append)
    assert again.sample == SAMPLE
    assert UpgradeFolder(upgraded).facts_file.stat().st_mtime_ns == before
    assert f"the adapter that was fitted on {SAMPLE} products, seed 0, is kept" in said[0]


def test_a_product_whose_contents_changed_counts_as_old(upgraded, models, catalogue):
    changed = [
        dataclasses.replace(product, row=dataclasses.replace(product.row, title="another title"), price=1000.0)
        if number < 30
        else dataclasses.replace(product, price=1000.0)
        for number, product in enumerate(catalogue)
    ]
    embed_feed(changed, upgraded, EmbeddingOptions(models[0], ("mm", "t")), report=quiet)
    vectors = UpgradeFolder(upgraded).vectors()
    early = sum(product.product_id < "p0030" for product in vectors.products())
    mixed = open_upgraded(upgraded, model_fingerprint(models[1]))
    assert len(mixed.moved) == SAMPLE - early < SAMPLE
    assert mixed.count(Where.parse("price >= 1000")) == PRODUCTS
    hits = mixed.search(np.eye(32, dtype=np.float32)[:1], k=PRODUCTS, where=Where.parse("price >= 1000"))[0]
    assert len(hits) == PRODUCTS  # facts of both groups are those of today
    said = []
    backfill(upgraded, UpgradeOptions(models[1], SAMPLE), PRODUCTS, report=said.append)
    assert len(open_upgraded(upgraded, model_fingerprint(models[1])).moved) == PRODUCTS


def test_pictures_that_the_facts_do_not_name_need_the_feed(models, catalogue, tmp_path):
    held = [
        dataclasses.replace(
            product, row=dataclasses.replace(product.row, images=(Path(product.row.images[0]).read_bytes(),))
        )
        for product in catalogue
    ]
    embed_feed(held, tmp_path / "v", EmbeddingOptions(models[0]), report=quiet)
    options, said = UpgradeOptions(models[1], SAMPLE), []
    with pytest.raises(UpgradeError, match="contents that the old model read for 0 of 60; .* give the feed .--feed."):
        upgrade_folder(tmp_path / "v", options, report=said.append)
    assert "60 of 60 products are left out" in said[0]
    assert upgrade_folder(tmp_path / "v", options, lambda: held, report=quiet).name == "procrustes"


def test_an_old_model_that_is_gone_is_not_measured(models, embedded, tmp_path):
    folder = shutil.copytree(embedded, tmp_path / "old")
    for name in ("complete.json", "job.json"):
        path = folder / name
        path.write_text(path.read_text().replace(json.dumps(models[0]), '"./nowhere"'))
    said = []
    upgrade = upgrade_folder(folder, UpgradeOptions(models[1], SAMPLE), report=said.append)
    assert OLD_TO_OLD not in upgrade.ranks
    assert upgrade.ranks[ADAPTED] == upgrade.ranks[NEW_TO_NEW]
    assert "old query, old vectors: not measured" in upgrade.notes[0]
    assert upgrade.notes[0] in said


@pytest.mark.parametrize(
    ("place", "change", "message"),
    [
        ("embedded", {"model": 0}, "new model: found .* which made the vectors of .*; expected another model"),
        ("embedded", {"sample": 49}, "sample: found 49 of 90 products; expected at least 50"),
        ("embedded", {"sample": 91}, "sample: found 91 of 90 products"),
        ("fitted", {"model": 2}, "found an upgrade from .* whose new model has the fingerprint .* Remove this folder"),
    ],
)
def test_an_upgrade_that_cannot_be_made_is_refused(place, change, message, models, request):
    options = UpgradeOptions(**{"model": models[change.get("model", 1)], "sample": change.get("sample", SAMPLE)})
    folder = request.getfixturevalue(place)
    with pytest.raises(UpgradeError, match=message):
        upgrade_folder(folder, options, report=quiet)


def test_a_backfill_that_cannot_be_made_is_refused(models, embedded, fitted):
    with pytest.raises(UpgradeError, match="found no adapter; expected one before the backfill"):
        backfill(embedded, UpgradeOptions(models[1]), 5, report=quiet)
    with pytest.raises(UpgradeError, match="backfill: found 0; expected 1 or more"):
        backfill(fitted, UpgradeOptions(models[1]), 0, report=quiet)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("product,count\np1,2\n", "row 2: found no product_id"),
        ("product_id,count\np1,2\np2,some\n", "row 3, column 'count': could not convert"),
        ("product_id,count\np1,0\n", "row 2, column 'count': found '0'; expected a whole number of at least 1"),
    ],
)
def test_a_log_that_cannot_be_read_is_refused(text, message, tmp_path):
    (tmp_path / "log.csv").write_text(text)
    with pytest.raises(TableError, match=message):
        read_traffic(tmp_path / "log.csv")


def test_an_upgrade_that_cannot_be_read_is_refused(upgraded):
    UpgradeFolder(upgraded).adapter_file.write_bytes(b"torn")
    with pytest.raises(UpgradeError, match="upgrade.json: cannot be read .* remove .* to fit again"):
        UpgradeFolder(upgraded).read()
    UpgradeFolder(upgraded).facts_file.write_text('{"format": 2}')
    with pytest.raises(UpgradeError, match="not format 1"):
        UpgradeFolder(upgraded).read()


def test_before_the_first_job_ends_all_products_are_old(fitted):
    upgrade = UpgradeFolder(fitted).read()
    assert new_group(open_store(fitted), VectorFolder(fitted), None, upgrade).count() == 0


def test_the_command_prints_what_the_adapter_recovers(upgraded, models, tmp_path, capsys):
    (tmp_path / "log.jsonl").write_text('{"product_id": "p0002"}\n')
    words_of = ["upgrade", str(upgraded), models[1], "--sample", str(SAMPLE)]
    assert main([*words_of, "--backfill", "3", "--traffic", str(tmp_path / "log.jsonl")]) == 0
    said = capsys.readouterr().out
    assert "new query, old vectors, adapted" in said
    assert "Adapter: procrustes. R@10" in said
    assert "is 100.0 % of the old model's and 100.0 % of the new model's." in said
    assert "embedded " in said
    assert main([*words_of, "--traffic", str(tmp_path / "log.jsonl")]) == 2
    assert "--traffic: found no --backfill; expected both" in capsys.readouterr().err
    assert main(["upgrade", str(upgraded), models[0]]) == 2
    assert "expected another model than the old one" in capsys.readouterr().err
