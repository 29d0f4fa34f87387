"""Hard negatives from a model: the guards against a slow reference, the job from the command line, and going on."""

import dataclasses
import io
import json

import numpy as np
import pytest
import torch
from pictures import file_of, noise
from PIL import Image

from moon3.__main__ import main
from product_data.catalogue.making import write_catalogue
from product_data.tables import ProductRow, ProductTables, QueryRow, ValidationReport, load_tables
from training.batches.pairs import PairDataset, PairSource
from training.mining import mine as mining
from training.mining.hard_negatives import (
    MiningOptions,
    ProductIndex,
    best_candidates,
    choose_negatives,
    similarity_limit,
)
from training.mining.mine import MiningError, MiningJob, mine, report_text, write_queries
from training.recipe.pairs import PairArguments


def gallery(rng, count):
    leaves = ["Shirts", "Shoes", "Hats"]
    return [
        ProductRow(
            f"p{n}",
            title=f"thing {n}",
            category=("Clothes", leaves[int(rng.integers(3))]) if rng.random() < 0.9 else (),
            group=f"g{int(rng.integers(8))}" if rng.random() < 0.5 else None,
        )
        for n in range(count)
    ]


def unit(rng, rows, width=6):
    vectors = rng.normal(size=(rows, width))
    return torch.tensor(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


def slow_negatives(query, vector, products, vectors, options):
    """Every guard written out, one product at a time."""
    by_id = {row.product_id: (row, vectors[n]) for n, row in enumerate(products)}
    answers = [by_id[name] for name in query.positives if name in by_id]
    levels = options.category_levels

    def path(row):
        return row.category if levels is None else row.category[:levels]

    limits = []
    for _, answer in answers:
        similarity = float(vector @ answer)
        limits.append((similarity - options.margin, similarity - (1 - options.ratio) * abs(similarity)))
    lowest = min(min(pair) for pair in limits)
    candidates = []
    for row, other in by_id.values():
        any_category = any(not path(answer) for answer, _ in answers)
        if not any_category and path(row) not in [path(answer) for answer, _ in answers]:
            continue
        if row.product_id in query.positives or row.product_id == query.reference_product_id:
            continue
        if options.mask_groups and row.group and row.group in [answer.group for answer, _ in answers]:
            continue
        if torch.isnan(other).any():
            continue
        candidates.append((float(vector @ other), row.product_id))
    candidates.sort(key=lambda pair: -pair[0])
    window = candidates[options.first_rank - 1 : options.last_rank]
    return [name for similarity, name in window if similarity <= lowest + 1e-12][: options.per_query]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"first_rank": 3, "last_rank": 9},
        {"margin": 0.2, "ratio": 1.0},
        {"ratio": 0.7, "category_levels": 1},
        {"category_levels": 0, "mask_groups": False, "ratio": 1.0},
    ],
)
def test_what_is_chosen_equals_the_guards_written_out_one_product_at_a_time(settings):
    rng = np.random.default_rng(4)
    products = gallery(rng, 60)
    options = MiningOptions(per_query=3, **settings)
    index, vectors = ProductIndex(products, options), unit(rng, 60)
    vectors[7] = torch.nan
    queries = [
        QueryRow(
            f"q{n}",
            "text",
            "x",
            positives=tuple(f"p{int(m)}" for m in rng.integers(8, 60, size=1 + n % 3)),
            reference_product_id="p2",
        )
        for n in range(20)
    ]
    query_vectors = unit(rng, 20)
    shards = [(0, vectors[:25]), (25, vectors[25:26]), (26, vectors[26:])]
    similarity, rows = best_candidates(
        query_vectors, shards, lambda rows: index.allowed(queries, rows), options.last_rank
    )
    found = 0
    for n, query in enumerate(queries):
        limit = similarity_limit(
            [float(query_vectors[n] @ vectors[row]) for row in index.rows(query.positives)], options
        )
        chosen = choose_negatives(index, similarity[n], rows[n], limit, np.random.default_rng(0))
        assert list(chosen.negatives) == slow_negatives(query, query_vectors[n], products, vectors, options)
        assert bool(chosen.reason) == (len(chosen.negatives) < 3)
        found += len(chosen.negatives)
    assert found >= 10


def test_random_choice_draws_within_the_window_and_repeats_for_its_seed():
    products = [ProductRow(f"p{n}", title="x") for n in range(30)]
    options = MiningOptions(per_query=4, choose="random", first_rank=2, last_rank=20)
    similarity, rows = torch.linspace(1, 0, 30), torch.arange(30)
    index = ProductIndex(products, options)
    drawn = {
        choose_negatives(index, similarity, rows, 0.9, np.random.default_rng(seed)).negatives for seed in range(20)
    }
    again = {
        choose_negatives(index, similarity, rows, 0.9, np.random.default_rng(seed)).negatives for seed in range(20)
    }
    assert drawn == again
    assert len(drawn) > 10
    assert {name for names in drawn for name in names} <= {f"p{n}" for n in range(3, 20)}


def test_the_limit_keeps_its_distance_below_positive_and_negative_similarities():
    assert similarity_limit([0.8, 0.5], MiningOptions(ratio=0.9)) == pytest.approx(0.45)
    assert similarity_limit([-0.5], MiningOptions(ratio=0.9)) == pytest.approx(-0.55)
    assert similarity_limit([0.5], MiningOptions(ratio=1, margin=0.1)) == pytest.approx(0.4)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"per_query": 0}, "per_query: found 0"),
        ({"first_rank": 5, "last_rank": 4}, "found 5 and 4; expected 1 ≤ first ≤ last"),
        ({"margin": -1}, "margin: found -1"),
        ({"ratio": 0}, "ratio: found 0"),
        ({"category_levels": -1}, "category_levels: found -1"),
        ({"choose": "any"}, "choose: found 'any'; expected one of hardest, random"),
    ],
)
def test_guards_that_make_no_sense_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        MiningOptions(**values)


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory):
    folder = tmp_path_factory.mktemp("catalogue")
    write_catalogue(folder, products=60, image_size=64, progress=False)
    return folder


def test_the_command_writes_a_queries_table_that_training_reads(tiny_moon, catalogue, tmp_path, capsys):
    command = [
        "--model",
        str(tiny_moon("qwen3_vl")),
        "--data",
        str(catalogue),
        "--output",
        str(tmp_path),
        "--ratio",
        "1",
    ]
    assert main(["mine", *command, "--shard-rows", "16", "--per-query", "2", "--category-levels", "1"]) == 0
    printed = capsys.readouterr().out
    before = load_tables(catalogue)
    after = load_tables({"products": catalogue / "products.parquet", "queries": tmp_path / "queries.parquet"})
    assert not after.report.issues
    assert [row.query_id for row in after.queries] == [row.query_id for row in before.queries]
    by_id = {row.product_id: row for row in before.products}
    mined = 0
    for old, new in zip(before.queries, after.queries, strict=True):
        assert (new.text, new.image, new.box, new.positives) == (old.text, old.image, old.box, old.positives)
        assert (new.split, new.type, new.answers) == (old.split, old.type, old.answers)
        assert new.reference_product_id == old.reference_product_id
        assert new.negatives[: len(old.negatives)] == old.negatives
        added = new.negatives[len(old.negatives) :]
        if old.split != "train":
            assert not added
        answers = [by_id[name] for name in old.positives]
        for name in added:
            mined += 1
            assert by_id[name].split == "train"
            assert by_id[name].category[0] in [row.category[0] for row in answers]
            assert name not in old.positives
            assert not by_id[name].group or by_id[name].group not in [row.group for row in answers]
    assert mined > 20
    report = json.loads((tmp_path / "report.json").read_text())
    train = [row for row in before.queries if row.split == "train"]
    assert sum(report["negatives"].values()) == report["queries"] == len(train)
    assert sum(int(count) * queries for count, queries in report["negatives"].items()) >= mined
    assert f"{report['negatives']['2']} queries have 2 negatives" in printed
    dataset = PairDataset([PairSource(after.select("train"))], PairArguments(query_mix={"t": 1}), 0, 50)
    assert all(len(dataset[position].products) == 2 for position in range(50))


class KilledError(Exception):
    """Stands for a kill."""


def test_an_interrupted_mining_goes_on_and_ends_the_same(tiny_moon, catalogue, tmp_path, monkeypatch):
    from retrieval.encode import load_for_evaluation

    path = str(tiny_moon("qwen3_vl"))
    model, processor = load_for_evaluation(path)
    tables = load_tables(catalogue)
    guards = MiningOptions(per_query=3, ratio=1.0, category_levels=1)
    whole = MiningJob(tmp_path / "whole", shard_rows=16, progress=False, options=guards)
    report = mine(model, processor, tables, whole, path)
    assert max(map(int, report["negatives"])) > 1
    calls = []

    def interrupted_after(limit, name, function):
        def call(*arguments, **options):
            calls.append(name)
            if len(calls) > limit:
                raise KilledError
            return function(*arguments, **options)

        return call

    job = MiningJob(tmp_path / "parts", shard_rows=16, progress=False, options=guards)
    encode, block = mining.encode, mining._mine_block
    for limit, name, function in ((3, "encode", encode), (4, "encode", encode), (1, "_mine_block", block)):
        calls.clear()
        with monkeypatch.context() as patch:
            patch.setattr(mining, name, interrupted_after(limit, name, function))
            with pytest.raises(KilledError):
                mine(model, processor, tables, job, path)
    (job.output / "vectors" / "product-000000000.npz.partial").write_bytes(b"half")
    calls.clear()
    with monkeypatch.context() as patch:
        patch.setattr(mining, "encode", interrupted_after(0, "encode", encode))  # every vector is there
        assert mine(model, processor, tables, job, path) == report
    for name in ("queries.parquet", "report.json"):
        assert (job.output / name).read_bytes() == (whole.output / name).read_bytes()
    fewer = dataclasses.replace(job, options=dataclasses.replace(guards, per_query=1))
    with monkeypatch.context() as patch:
        patch.setattr(mining, "encode", interrupted_after(0, "encode", encode))  # other guards keep the vectors
        assert set(mine(model, processor, tables, fewer, path)["negatives"]) == {"0", "1"}
    other = ProductTables(tables.name, tables.products[1:], tables.queries, tables.report)
    with pytest.raises(
        MiningError, match="the data of the stored vectors differs; expected another output, or --overwrite"
    ):
        mine(model, processor, other, job, path)
    again = MiningJob(job.output, shard_rows=16, progress=False, overwrite=True)
    assert mine(model, processor, other, again, path)["products"] < report["products"] + 1


def test_what_cannot_be_encoded_or_has_too_few_neighbours_is_said(tiny_moon, tmp_path):
    from retrieval.encode import load_for_evaluation

    model, processor = load_for_evaluation(tiny_moon("qwen3_vl"))
    products = [
        ProductRow("p0", title="red hat", category=("Hats",)),
        ProductRow("p1", images=(b"no picture",), category=("Hats",)),
        ProductRow("p2", title="lonely", category=("Bags",)),
        ProductRow("p3", title="blue hat " * 1500, category=("Hats",)),
    ]
    queries = [
        QueryRow("fine", "text", "red hat", positives=("p0",)),
        QueryRow("broken", "image", image=b"no picture", positives=("p0",)),
        QueryRow("unread", "text", "hat", positives=("p1",)),
        QueryRow("alone", "text", "bag", positives=("p2",)),
        QueryRow("lost", "text", "bag", positives=("gone",)),
    ]
    tables = ProductTables("shop", products, queries, ValidationReport("shop", 4, 5, {}))
    options = MiningOptions(per_query=1, margin=0, ratio=1.0)
    report = mine(model, processor, tables, MiningJob(tmp_path, split="all", options=options, progress=False))
    text = report_text(report)
    for sentence in (
        "the query cannot be encoded (broken)",
        "no answer can be encoded (unread)",
        "no other product in the category (alone)",
        "no answer among the products (lost)",
        "cannot be encoded: product p1, images[0]: the bytes: not an image",
        "cannot be encoded: query broken, image: the bytes: not an image",
        "1 item is over max_tokens=",
        "first: product 'p3', title: ",
    ):
        assert sentence in text
    (shard,) = (tmp_path / "vectors").glob("product-*.npz")
    with np.load(shard) as before:
        arrays = dict(before)
    np.savez(shard, **{name: array for name, array in arrays.items() if name != "shortened"})  # as they once were
    assert mine(model, processor, tables, MiningJob(tmp_path, split="all", options=options, progress=False)) == report
    source = {"products": [{"product_id": "p3", "title": "x"}], "queries": tmp_path / "queries.parquet"}
    (fine,) = [row for row in load_tables(source).queries if row.query_id == "fine"]
    assert set(fine.negatives) <= {"p3"}


def test_vectors_of_another_model_or_of_other_settings_are_not_taken_for_this_ones(tiny_moon, tmp_path):
    from retrieval.encode import load_for_evaluation

    model, processor = load_for_evaluation(tiny_moon("qwen3_vl"))
    tables = ProductTables(
        "shop",
        [ProductRow(f"p{n}", title=f"thing {n}") for n in range(4)],
        [QueryRow("q", "text", "thing", positives=("p0",))],
        ValidationReport("shop", 4, 1, {}),
    )
    job = MiningJob(tmp_path, split="all", progress=False)
    mine(model, processor, tables, job, str(tiny_moon("qwen3_vl")))
    mine(model, processor, tables, job, str(tiny_moon("qwen3_vl")))
    with pytest.raises(MiningError, match="the model of the stored vectors differs"):
        mine(model, processor, tables, job, str(tiny_moon("qwen3_vl", trained=True)))
    processor.max_tokens = 50
    with pytest.raises(MiningError, match="the model of the stored vectors differs"):
        mine(model, processor, tables, job, str(tiny_moon("qwen3_vl")))


def test_pictures_of_every_kind_survive_in_the_written_table(tmp_path):
    (tmp_path / "q.png").write_bytes(file_of(noise(seed=1)))
    images = [
        file_of(noise(seed=2)),
        str(tmp_path / "q.png"),
        Image.new("RGB", (4, 4), "red"),
        None,
        "https://shop.example/q.jpg",
    ]
    queries = [QueryRow(f"q{n}", "both", "x", image=image, positives=("p",)) for n, image in enumerate(images)]
    path = write_queries(queries, {}, tmp_path)
    read = load_tables({"products": [{"product_id": "p", "title": "x"}], "queries": path}).queries
    assert read[0].image == images[0]
    assert read[1].image == images[1]
    assert Image.open(io.BytesIO(read[2].image)).getpixel((0, 0)) == (255, 0, 0)
    assert (read[3].image, read[3].type) == (None, "text")
    assert read[4].image == images[4]


def test_what_cannot_be_mined_is_refused_in_a_sentence(tiny_moon, catalogue, tmp_path, capsys):
    command = ["--model", str(tiny_moon("qwen3_vl")), "--data", str(catalogue), "--output", str(tmp_path / "out")]
    for more, message in (
        (["--split", "holidays"], "no split 'holidays'"),
        (["--ratio", "2"], "ratio: found 2.0"),
        (["--shard-rows", "0"], "expected 1 or more"),
        (["--data", str(tmp_path / "none")], "no such file or folder"),
        (["--model", str(tmp_path)], "no config.json"),
    ):
        assert main(["mine", *command, *more]) == 2
        assert message in capsys.readouterr().err
    products = [ProductRow("p0", title="x")]
    for queries, message in (
        ([], "found 0 queries and 1 products"),
        ([QueryRow("q", "text", "x", positives=("p0",))] * 2, "found query_id 'q' twice"),
    ):
        tables = ProductTables("shop", products, queries, ValidationReport("shop", 1, 0, {}))
        with pytest.raises(MiningError, match=message):
            mine(None, None, tables, MiningJob(tmp_path, split="all"))
