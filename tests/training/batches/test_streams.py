"""Tables of triplets read row by row: shared out among processes, shuffled in blocks, and resumed at any batch."""

import io
import json
from collections import Counter

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
import yaml
from pictures import file_of, noise
from PIL import Image
from torch.utils.data import DataLoader

from processing_moon import MoonProcessor
from training.assembly.stream_sources import open_streams, parquet_files, sample_tables, stream_batches
from training.batches.collate import UnreadableBatchError
from training.batches.pairs import Pair
from training.batches.streams import (
    BadRow,
    RowPairs,
    RowStream,
    StreamBatches,
    StreamCollator,
    StreamError,
    StreamRow,
    sample_of,
)
from training.recipe.arguments import RecipeError, parse_recipe
from training.recipe.pairs import PairArguments

pytestmark = pytest.mark.lowest


def triplet(number, **more):
    return {
        "id": f"row{number}",
        "query": f"wish {number}",
        "query_image": file_of(noise(seed=number)) if number % 3 == 0 else None,
        "doc_id": f"d{number}",
        "doc_title": f"thing {number} " + "x" * (number % 7),
        "doc_image": file_of(noise(seed=number)),
        "doc_cate1_name": "Clothes",
        "doc_attributes": "colour:red,,size:S!!!M",
        "neg_doc_id": f"d{(number + 1) % 40}",
        "neg_doc_title": f"thing {(number + 1) % 40}",
        "neg_doc_image": file_of(noise(seed=number + 1)),
    } | more


def write_shards(folder, rows, shards):
    folder.mkdir(exist_ok=True)
    for number, part in enumerate(np.array_split(np.arange(len(rows)), shards)):
        table = pyarrow.Table.from_pylist([rows[index] for index in part])
        pyarrow.parquet.write_table(table, folder / f"part-{number:03d}.parquet", row_group_size=3)
    return folder


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return write_shards(tmp_path_factory.mktemp("data") / "mbe", [triplet(number) for number in range(40)], 4)


def rows_of(folder):
    return datasets.load_dataset("parquet", data_files=parquet_files(folder), split="train", streaming=True)


def recipe(tmp_path, place, **values):
    values = {"small_base": {"hidden_size": 32}, "max_steps": 3, "data": [place], "streaming": True, **values}
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    return parse_recipe([str(path)])


def opened(tmp_path, place, **values):
    return open_streams(recipe(tmp_path, str(place) if not isinstance(place, dict) else place, **values))


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 5])
def test_every_row_is_read_once_an_epoch_by_one_process(shards, world_size):
    rows = rows_of(shards)
    seen = Counter()
    for rank in range(world_size):
        stream = RowStream(rows, 7, rank, world_size)
        own = Counter()
        for _ in range(60):
            ((epoch, shard, row), found) = stream.read(1)[0]
            own[epoch, found["id"]] += 1
            if epoch == 0:
                seen[found["id"]] += 1
                assert found["id"] == f"row{shard * 10 + row}"
        assert max(own.values()) == 1
        assert max(epoch for epoch, _ in own) >= 1
    assert seen == {f"row{number}": 1 for number in range(40)}


def test_each_epoch_and_each_seed_has_its_own_order_of_shards(shards):
    rows = rows_of(shards)
    orders = []
    for seed in (0, 1, 2):
        read = RowStream(rows, seed).read(120)
        for epoch in range(3):
            orders.append(tuple(dict.fromkeys(shard for (number, shard, _), _ in read if number == epoch)))
    assert all(sorted(order) == [0, 1, 2, 3] for order in orders)
    assert len(set(orders)) > 4


@pytest.mark.parametrize("world_size", [1, 3])
def test_a_stream_goes_on_exactly_from_its_state_at_any_row(shards, world_size):
    rows = rows_of(shards)
    for taken in (0, 1, 5, 10, 13, 39, 40, 41, 60):
        stream = RowStream(rows, 3, world_size - 1, world_size)
        stream.read(taken)
        state = json.loads(json.dumps(stream.state_dict()))
        other = RowStream(rows, 3, world_size - 1, world_size)
        other.load_state_dict(state)
        assert json.loads(json.dumps(other.state_dict())) == state
        assert other.read(50) == stream.read(50)


def test_a_stream_does_not_go_on_in_a_table_of_other_shards(tmp_path, shards):
    stream = RowStream(rows_of(shards), 3)
    stream.read(7)
    more = write_shards(tmp_path / "more", [triplet(number) for number in range(40)], 5)
    with pytest.raises(StreamError, match="shards: found 5, but 4 in the checkpoint; expected the same"):
        RowStream(rows_of(more), 3).load_state_dict(stream.state_dict())
    older = {name: value for name, value in stream.state_dict().items() if name != "shards"}
    again = RowStream(rows_of(shards), 3)
    again.load_state_dict(older)
    assert again.read(5) == stream.read(5)


def test_rows_of_other_splits_are_passed_over_and_resumption_stays_exact(tmp_path, capsys):
    splits = ["train", "test", "all", None]
    rows = [triplet(n, split=splits[n % 4]) for n in range(20)]
    folder = write_shards(tmp_path / "parted", rows, 2)
    (source,) = opened(tmp_path, folder)
    assert "rows of split 'train' and 'all'" in capsys.readouterr().out
    kept = {f"row{n}" for n in range(20) if n % 4 != 1}
    stream = RowStream(source.rows, 3, split=source.split)
    first = stream.read(7)
    other = RowStream(source.rows, 3, split=source.split)
    other.load_state_dict(json.loads(json.dumps(stream.state_dict())))
    second = stream.read(8)
    assert other.read(8) == second
    assert {row["id"] for _, row in first + second} == kept
    positives = {row.title for row in sample_of(source).products[::2]}
    assert positives == {row["doc_title"].strip() for row in rows if row["split"] != "test"}
    (whole,) = opened(tmp_path, folder, split="all")
    assert {row["id"] for _, row in RowStream(whole.rows, 3, split=whole.split).read(20)} == {row["id"] for row in rows}
    unseen = write_shards(tmp_path / "unseen", [triplet(0, split="test")] * 2, 2)
    with pytest.raises(RecipeError, match="unseen: found no rows of split 'train'"):
        opened(tmp_path, unseen)


def test_a_process_without_rows_is_an_error(tmp_path):
    folder = write_shards(tmp_path / "few", [triplet(number) for number in range(2)], 1)
    with pytest.raises(StreamError, match="process 2 of 3: found no rows"):
        RowStream(rows_of(folder), 0, 2, 3).read(1)


def batches_of(tmp_path, shards, *, batches=30, batch_size=3, block_rows=12, bucket_batches=0, rank=0, world_size=1):
    sources = opened(tmp_path, shards)
    pairs = RowPairs(sources, PairArguments(), 11, batches * batch_size)
    streams = [RowStream(source.rows, 11, rank, world_size) for source in sources]
    return StreamBatches(
        streams,
        pairs,
        batch_size=batch_size,
        batches=batches,
        block_rows=block_rows,
        bucket_batches=bucket_batches,
    )


def plain(batches):
    return [[(row.key, row.spare, row.row["id"]) for row in batch] for batch in batches]


@pytest.mark.parametrize("bucket_batches", [0, 2])
def test_batches_go_on_exactly_from_the_state_after_any_batch(tmp_path, shards, bucket_batches):
    whole = batches_of(tmp_path, shards, bucket_batches=bucket_batches)
    expected = plain(whole)
    assert len(expected) == len(whole) == 30
    for consumed in (0, 1, 3, 4, 5, 15, 29, 30):
        state = json.loads(json.dumps(whole.state_dict(consumed)))
        resumed = batches_of(tmp_path, shards, bucket_batches=bucket_batches)
        resumed.load_state_dict(state)
        again = plain(resumed)
        assert again[:consumed] == [[]] * consumed  # for accelerate's skip_first_batches to skip
        assert again[consumed:] == expected[consumed:]
    with pytest.raises(StreamError, match="consumed: found 31; expected 0 to 30"):
        whole.state_dict(31)


def test_a_block_is_shuffled_and_every_batch_is_whole(tmp_path, shards):
    found = plain(batches_of(tmp_path, shards, batches=40))
    rows = [[entry for entry in batch if not entry[1]] for batch in found]
    assert {len(batch) for batch in rows} == {3}  # epochs run on: no batch is short
    ids = [name for batch in rows for _, _, name in batch]
    stream = RowStream(rows_of(shards), 11)
    for start in range(0, 36, 12):
        block = [row["id"] for _, row in stream.read(12)]
        assert ids[start : start + 12] != block
        assert sorted(ids[start : start + 12]) == sorted(block)
    for epoch in range(3):
        counts = Counter(name for batch in rows for (number, _, _), _, name in batch if number == epoch)
        assert set(counts.values()) == {1}
        assert len(counts) == 40
    spares = [[entry for entry in batch if entry[1]] for batch in found]
    assert all(len(batch) == 3 for batch in spares)


def test_two_processes_share_the_rows_without_repeating_any(tmp_path, shards):
    seen = Counter()
    for rank in (0, 1):
        for batch in plain(batches_of(tmp_path, shards, batches=10, rank=rank, world_size=2)):
            seen.update(name for (epoch, _, _), spare, name in batch if not spare and epoch == 0)
    assert set(seen.values()) == {1}
    assert len(seen) == 40


def test_bucketed_batches_are_alike(tmp_path, shards):
    def kinds(bucket_batches):
        sampler = batches_of(tmp_path, shards, batches=12, block_rows=36, bucket_batches=bucket_batches)
        outlines = [[sampler.pairs.outline(row) for row in batch if not row.spare] for batch in sampler]
        return sum(len({outline.modality for outline in batch}) for batch in outlines)

    assert kinds(12) < kinds(0)


def test_several_streams_are_drawn_by_weight(tmp_path, shards):
    other = write_shards(tmp_path / "other", [triplet(100 + number) for number in range(10)], 1)
    sources = [*opened(tmp_path, {"parquet": str(shards), "weight": 3}), *opened(tmp_path, other)]
    pairs = RowPairs(sources, PairArguments(), 0, 400)
    streams = [RowStream(source.rows, number) for number, source in enumerate(sources)]
    rows = [
        row
        for batch in StreamBatches(streams, pairs, batch_size=4, batches=100, block_rows=40)
        for row in batch
        if not row.spare
    ]
    assert sum(row.source == 0 for row in rows) == pytest.approx(300, abs=40)
    names = {pairs.pair(row).names[0].split("/")[0] for row in rows[:40]}
    assert names == {"mbe", "other"}


@pytest.fixture(scope="module")
def processor(tiny_moon):
    return MoonProcessor.from_pretrained(tiny_moon("qwen3_vl"), max_image_tokens=4)


def row(number=0, **more):
    return StreamRow(0, (0, 0, number), triplet(number, **more))


def pairs_of(tmp_path, shards, **options):
    return RowPairs(opened(tmp_path, shards), PairArguments(**options), 5, 10)


def test_a_row_becomes_a_query_its_product_and_its_hard_negative(tmp_path, shards):
    pairs = pairs_of(tmp_path, shards)
    pair = pairs.pair(row(4))
    assert pair.query == {"id": "query of mbe/row4", "text": "wish 4"}
    assert pair.names == ["mbe/d4", "mbe/d5"]
    product, negative = pair.products
    assert product["category"] == ["Clothes"]
    assert product["attributes"] == {"colour": ["red"], "size": ["S", "M"]}
    assert (product["images"], negative["images"]) == ([file_of(noise(seed=4))], [file_of(noise(seed=5))])
    assert negative["title"] == "thing 5"
    assert len(pair.negative_ids) == 1


def test_the_form_of_a_query_is_drawn_among_those_that_the_row_offers(tmp_path, shards):
    pairs = pairs_of(tmp_path, shards, query_mix={"i": 1, "mm": 1})
    forms = Counter()
    for number in range(0, 60, 3):  # rows with words and a picture
        query = pairs.pair(StreamRow(0, (0, 0, number), triplet(3))).query
        forms["text" in query, "image" in query] += 1
        outline = pairs.outline(StreamRow(0, (0, 0, number), triplet(3)))
        assert outline.modality == {(False, True): "image", (True, True): "both"}["text" in query, "image" in query]
    assert set(forms) == {(False, True), (True, True)}
    assert "text" in pairs.pair(row(1)).query  # the row has words alone, which the mix does not name


def test_rows_without_a_query_get_one_derived_from_their_product(tmp_path):
    rows = [{key: value for key, value in triplet(n).items() if "query" not in key} for n in range(6)]
    folder = write_shards(tmp_path / "products", rows, 1)
    pairs = RowPairs(opened(tmp_path, folder), PairArguments(query_mix={"i": 1, "t": 1}), 5, 10)
    forms = set()
    for number in range(20):
        pair = pairs.pair(StreamRow(0, (0, 0, number), rows[2]))
        assert pair.names == ["products/d2", "products/d3"]
        forms.add("image" in pair.query)
    assert forms == {True, False}
    refused = RowPairs(opened(tmp_path, folder), PairArguments(derived_queries=False), 5, 10)
    assert refused.pair(row(2)).reason == "found no query; expected a query, or derived_queries: true"


def test_a_product_without_an_id_is_known_by_its_contents(tmp_path):
    rows = [{key: value for key, value in triplet(n).items() if "doc_id" not in key} for n in range(3)]
    pairs = RowPairs(opened(tmp_path, write_shards(tmp_path / "nameless", rows, 1)), PairArguments(), 5, 10)
    one, again, other = (pairs.pair(StreamRow(0, (0, 0, n), rows[r])) for n, r in ((0, 1), (7, 1), (0, 2)))
    assert one.product_ids[0] == again.product_ids[0] != other.product_ids[0]
    same = dict(rows[1]) | {"neg_doc_title": rows[1]["doc_title"], "neg_doc_image": rows[1]["doc_image"]}
    assert len(pairs.pair(StreamRow(0, (0, 0, 0), same)).products) == 1  # its own negative is none


def test_answers_of_one_query_in_a_batch_are_no_negatives_of_each_other(tmp_path, shards, processor):
    pairs = pairs_of(tmp_path, shards)
    twice = [row(1, query="Red  hat"), row(2, query="red hat"), row(4)]
    batch = StreamCollator(processor, pairs)([pairs[entry] for entry in twice])
    first, second, third = (batch["product"][place].item() for place in batch["target"])
    assert batch["known_positive"].tolist() == [[first, second], [second, first], [third, -1]]
    assert batch["other"].tolist() == [[second], [first], [-1]]
    assert batch["known_weight"].tolist() == [[1.0, 1.0], [1.0, 1.0], [1.0, 0.0]]
    photo = row(3, query="red hat")  # says more than the words alone
    assert pairs.pair(photo).query_key not in {pairs.pair(entry).query_key for entry in twice}


def test_spare_rows_stand_in_for_what_cannot_be_read(tmp_path, shards, processor):
    pairs = pairs_of(tmp_path, shards)
    collator = StreamCollator(processor, pairs)
    spare = [StreamRow(0, (0, 0, 50 + number), triplet(number), spare=True) for number in (7, 8)]
    bad_cell, broken = row(1, doc_attributes="red,,blue"), row(2, doc_image=b"no picture")
    batch = collator([pairs[entry] for entry in (row(4), bad_cell, broken, *spare)])
    assert [items[1] for items in batch["items"]] == ["mbe/d4", "mbe/d8", "mbe/d7"] or [
        items[1] for items in batch["items"]
    ] == ["mbe/d4", "mbe/d7", "mbe/d8"]
    reasons = {skip["item"]: skip["reason"] for skip in batch["skipped"]}
    assert "column 'doc_attributes': found 'red' without a colon" in reasons["mbe/row1"]
    assert "not an image" in reasons["mbe/d2"]
    fewer = collator([pairs[entry] for entry in (row(4), bad_cell, broken)])
    assert [items[1] for items in fewer["items"]] == ["mbe/d4"]
    assert len(fewer["skipped"]) == 2
    with pytest.raises(
        UnreadableBatchError, match="batch: found no readable pair; expected at least one: mbe/row1: column"
    ):
        collator([pairs[bad_cell]])
    assert isinstance(pairs[bad_cell], BadRow)
    assert isinstance(pairs[row(4)], Pair)


def test_a_stream_prepares_its_products_for_an_earlier_model_too(tmp_path, shards, processor):
    pairs = pairs_of(tmp_path, shards)
    broken, spare = row(2, doc_image=b"no picture"), StreamRow(0, (0, 0, 57), triplet(7), spare=True)
    batch = StreamCollator(processor, pairs, earlier=processor)([pairs[entry] for entry in (row(4), broken, spare)])
    assert [items[1] for items in batch["items"]] == ["mbe/d4", "mbe/d7"]
    assert all(torch.equal(batch["earlier_products"][name], batch["products"][name]) for name in batch["products"])
    assert [skip["item"] for skip in batch["skipped"]] == ["mbe/d2"]


def test_the_loader_gives_the_same_batches_whatever_the_number_of_workers(tmp_path, shards, processor):
    def load(workers):
        sampler = batches_of(tmp_path, shards, batches=4)
        collator = StreamCollator(processor, sampler.pairs)
        loader = DataLoader(sampler.pairs, batch_sampler=sampler, collate_fn=collator, num_workers=workers)
        assert len(loader) == 4
        return list(loader), sampler

    (alone, one), (shared, two) = load(0), load(2)
    for left, right in zip(alone, shared, strict=True):
        assert left["items"] == right["items"]
        assert torch.equal(left["products"]["pixel_values"], right["products"]["pixel_values"])
        assert torch.equal(left["queries"]["input_ids"], right["queries"]["input_ids"])
    assert one.state_dict(2) == two.state_dict(2)


def test_streams_are_opened_and_their_columns_said(tmp_path, shards, capsys):
    (source,) = opened(tmp_path, shards)
    printed = capsys.readouterr().out
    assert "mbe: streamed in 4 shards" in printed
    assert "query.title ← query" in printed
    assert "negative.image ← neg_doc_image" in printed
    (table,) = sample_tables([source])
    assert len(table.products) == 80
    assert len(table.queries) == 40
    assert opened(tmp_path, f"{shards}/*.parquet")[0].rows.num_shards == 4
    named = opened(
        tmp_path, {"parquet": [str(shards / "part-000.parquet")], "name": "one", "columns": {"query.image": None}}
    )
    assert "query_image" in named[0].columns.unread


def test_a_data_set_of_the_hub_keeps_its_pictures_encoded(tmp_path, monkeypatch):
    """The hub's loader is called as documented; a local folder of shards stands for the data set."""
    pictures = [Image.open(io.BytesIO(file_of(noise(seed=number)))) for number in range(6)]
    features = datasets.Features(
        {
            "doc_title": datasets.Value("string"),
            "doc_image": datasets.Image(),
            "neg_img": datasets.List(datasets.Image()),
        }
    )
    columns = {
        "doc_title": [f"thing {n}" for n in range(6)],
        "doc_image": pictures,
        "neg_img": [[one] for one in pictures],
    }
    made = datasets.Dataset.from_dict(columns, features=features)
    made.to_parquet(tmp_path / "train-00000.parquet")
    calls = []
    load = datasets.load_dataset

    def from_hub(name, config=None, **options):
        calls.append((name, config, options))
        return load(str(tmp_path), split=options["split"], streaming=True)

    monkeypatch.setattr(datasets, "load_dataset", from_hub)
    entry = {"hub": "owner/shop", "config": "big", "revision": "main", "split": "train"}
    (source,) = opened(tmp_path, entry)
    assert calls == [("owner/shop", "big", {"split": "train", "revision": "main", "streaming": True})]
    first = next(iter(source.rows))
    assert isinstance(first["doc_image"]["bytes"], bytes)
    tables = sample_of(source)
    assert all(isinstance(image, bytes) for row in tables.products for image in row.images)
    assert source.name == "shop"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"data": ["catalogue"]}, "'catalogue' cannot be streamed"),
        ({"data": [{"parquet": "x", "hub": "a/b"}]}, "either parquet or hub"),
        ({"data": [{"parquet": 3}]}, r"data.parquet: found 3 \(an integer\); expected text or a list"),
        ({"data": [{"parquet": "x", "split": "train"}]}, "split: does not work with parquet"),
        ({"data": [{"parquets": "x"}]}, "unknown key 'parquets'; the nearest known key is 'parquet'"),
        ({"data": [{"hub": "a/b", "columns": "x"}]}, r"columns: found 'x' \(text\); expected a mapping"),
        ({"data": [{"hub": "a/b", "weight": 0}]}, "data.weight: found 0"),
        ({"evaluate_after": True}, "do not work with streaming, whose tables do not have a gallery"),
        ({"shuffle_rows": 0}, "shuffle_rows: found 0"),
        (
            {"hard_negatives": 2},
            "hard_negatives: 2 does not work with streaming; expected at most 1, because a row contains one",
        ),
        ({"positives_per_query": 3}, "positives_per_query: 3 does not work with streaming; expected at most 1"),
        (
            {"interaction_half_life_days": 30},
            "interaction_half_life_days: 30 does not work with streaming; expected null",
        ),
        ({"bucket_batches": 1}, "bucket_batches: found 1; expected 0, or at least 2"),
    ],
)
def test_recipes_that_cannot_be_streamed_are_refused_by_key(tmp_path, values, message):
    with pytest.raises(RecipeError, match=message):
        recipe(tmp_path, "x", **values)


def test_streams_that_cannot_be_used_are_refused_before_training(tmp_path, shards):
    with pytest.raises(RecipeError, match="data: none: parquet: found no file at"):
        opened(tmp_path, {"parquet": str(tmp_path / "none")})
    with pytest.raises(RecipeError, match="data: colours: columns: the product has neither a title nor an image"):
        opened(tmp_path, write_shards(tmp_path / "colours", [{"colour": "red"}], 1))
    with pytest.raises(RecipeError, match="data: mbe: columns: query.title: found no column 'kw'"):
        opened(tmp_path, {"parquet": str(shards), "columns": {"query.title": "kw"}})
    with pytest.raises(RecipeError, match="found two data sets named 'mbe'"):
        open_streams(recipe(tmp_path, "x", data=[str(shards), str(shards)]))
    addresses = write_shards(tmp_path / "web", [triplet(0, doc_image="https://shop.example/1.jpg")], 1)
    with pytest.raises(RecipeError, match="web: found pictures given as URLs; expected allow_urls: true"):
        opened(tmp_path, addresses)
    assert opened(tmp_path, addresses, allow_urls=True)
    empty = tmp_path / "empty"
    empty.mkdir()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([triplet(0)])[:0], empty / "0.parquet")
    with pytest.raises(RecipeError, match="empty: parquet: found no rows in 1 files"):
        opened(tmp_path, empty)
    (empty / "1.parquet").write_bytes(b"no parquet")
    with pytest.raises(RecipeError, match=r"data: empty: parquet: found .*1.parquet, which cannot be read"):
        opened(tmp_path, empty)


def test_a_shard_that_breaks_in_the_middle_is_named(tmp_path, shards):
    rows = rows_of(shards)
    stream = RowStream(rows, 0)
    stream.read(2)

    def broken():
        yield from ()
        raise OSError("gone")

    stream._iterator = broken()
    with pytest.raises(StreamError, match=r"shard \d cannot be read \(OSError: gone\)"):
        stream.read(1)


def test_a_recipes_batches_are_its_own_processes_share(tmp_path, shards):
    made = recipe(tmp_path, str(shards), per_device_train_batch_size=2, gradient_accumulation_steps=3, shuffle_rows=7)
    batches = stream_batches(made, made.training, open_streams(made), PairArguments(), steps=5)
    assert (len(batches), batches.batch_size, batches.block_rows) == (15, 2, 8)
    assert len(batches.pairs) == 30


def invalid_shard(path, rows=3):
    """A shard whose second title is Latin-1."""
    raw = pyarrow.array([b"hat", b"caf\xe9", *[b"shoe"] * (rows - 2)])
    titles = pyarrow.Array.from_buffers(pyarrow.string(), rows, raw.buffers())
    columns = {
        "query": ["wish"] * rows,
        "doc_title": titles,
        "doc_image": [file_of(noise(seed=n)) for n in range(rows)],
    }
    pyarrow.parquet.write_table(pyarrow.table(columns), path)


def test_a_text_that_is_not_utf8_is_named_before_anything_starts(tmp_path):
    folder = write_shards(tmp_path / "rows", [triplet(number) for number in range(4)], 2)
    invalid_shard(folder / "part-001.parquet")
    with pytest.raises(
        RecipeError, match=r"part-001.parquet, row 1, column 'doc_title': not UTF-8; expected text saved as"
    ):
        opened(tmp_path, folder)


def test_a_text_of_a_remote_shard_that_is_not_utf8_is_named_where_it_is_read(tmp_path):
    invalid_shard(tmp_path / "part.parquet")
    stream = RowStream(rows_of(tmp_path), seed=0)
    with pytest.raises(
        StreamError, match=r"shard 0, row 1, column 'doc_title': found text that is not UTF-8 .*; expected UTF-8"
    ):
        stream.read(3)


def test_a_row_with_half_of_an_emoji_is_left_out_and_named(tmp_path, shards):
    (source,) = opened(tmp_path, shards)
    pairs = RowPairs([source], PairArguments(), seed=0, length=1)
    for column in ("doc_title", "query", "neg_doc_title"):
        bad = pairs[StreamRow(0, (0, 0, 7), triplet(7, **{column: "hat \ud83d"}))]
        assert isinstance(bad, BadRow)
        assert bad.item.endswith("/row7")
        assert f"column '{column}': found a lone surrogate" in bad.reason
    named = pairs[StreamRow(0, (0, 0, 7), triplet(7, id="row\ud83d", doc_id="\ud83d"))]
    assert isinstance(named, BadRow)
    named.item.encode()


def test_html_in_the_first_rows_of_a_stream_is_said_and_stripped_where_that_is_asked_for(tmp_path, capsys):
    rows = [triplet(number, doc_title=f"<b>thing</b> {number} &amp; more") for number in range(4)]
    folder = write_shards(tmp_path / "rows", rows, 1)
    (source,) = opened(tmp_path, folder)
    assert "in the first rows: warning: 4 × cells with HTML" in capsys.readouterr().out
    assert sample_of(source).products[0].title.startswith("<b>thing")
    (source,) = opened(tmp_path, {"parquet": str(folder), "strip_html": True, "category_separator": "/"})
    assert "HTML" not in capsys.readouterr().out
    assert sample_of(source).products[0].title == "thing 0 & more"
    with pytest.raises(RecipeError, match="category_separator: found ''; expected"):
        opened(tmp_path, {"parquet": str(folder), "category_separator": ""})


def test_the_core_box_of_a_row_is_that_of_its_query(tmp_path):
    rows = [triplet(number) | {"query bbox": "［1，2，20，25］"} for number in range(3)]
    (source,) = opened(tmp_path, write_shards(tmp_path / "rows", rows, 1))
    assert [query.box for query in sample_of(source).queries] == [(1.0, 2.0, 20.0, 25.0)] * 3
