"""A cold start on streams: what its rows are to write, and a run that is stopped in the middle of an epoch."""

import shutil

import datasets
import pyarrow
import pyarrow.parquet
import pytest
import torch
from pictures import file_of, noise
from tiny_runs import assert_same_run, forget_after, losses, write_recipe

from processing_moon import MoonProcessor
from product_data.columns import find_columns
from training.batches.collate import PairCollator
from training.batches.pairs import FORM_OF_TYPE, PairDataset, PairSource
from training.batches.streams import BadRow, RowPairs, StreamCollator, StreamRow, StreamSource
from training.labels.reasoning import ReasonedPairs, ReasonedRows, ReasoningTargets
from training.recipe.pairs import PairArguments
from training.train import main

COLOURS = ("red", "blue", "green", "white", "black")


def row(number):
    colour = COLOURS[number % 5]
    return {
        "query": f"a {colour} thing" if number % 2 else None,
        "query_image": None if number % 2 else file_of(noise(seed=number)),
        "doc_title": f"{colour} thing {number}",
        "doc_image": b"no picture" if number == 5 else file_of(noise(seed=100 + number)),
        "doc_attributes": f"color:{colour},,material:wood,,sku:{number}",
        "neg_title": f"thing {number + 1}",
    }


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """26 triplets in two shards: an epoch ends in the middle of a block, and of a run."""
    folder = tmp_path_factory.mktemp("data") / "triplets"
    folder.mkdir()
    for shard in range(2):
        rows = [row(number) for number in range(13 * shard, 13 * shard + 13)]
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / f"{shard}.parquet", row_group_size=4)
    return folder


@pytest.fixture(scope="module")
def base(tiny_moon):
    return tiny_moon("qwen3_vl", preset="moon3", max_reasoning_tokens=12)


@pytest.fixture(scope="module")
def processor(base):
    return MoonProcessor.from_pretrained(base)


@pytest.fixture(scope="module")
def source():
    rows = datasets.Dataset.from_list([row(number) for number in range(4)]).to_iterable_dataset()
    return StreamSource("shop", rows, find_columns(list(row(0))))


def reasoned(source, processor, share, seed=3):
    targets = ReasoningTargets([], processor)
    return ReasonedRows([source], PairArguments(), seed, 100, targets=targets, unreasoned_share=share)


def test_a_row_s_records_get_what_the_rule_of_tables_says_of_the_row(source, processor):
    found = reasoned(source, processor, 0.0)
    for number in (0, 1, 2, 3):
        one = StreamRow(0, (0, 0, number), row(number))
        pair, colour = found.pair(one), COLOURS[number % 5]
        tables = found.tables(one)
        options = PairArguments(query_mix={FORM_OF_TYPE[tables.queries[0].type]: 1.0})
        wanted = ReasonedPairs(
            PairDataset([PairSource(tables, 1.0)], options, 0, 1), ReasoningTargets([tables], processor), 0.0, 0
        )[0]
        assert (pair.query_labels, pair.product_labels) == (wanted.query_labels, wanted.product_labels)
        assert pair.product_labels == {"colour": (colour,), "material": ("wood",)}
        # A text supports what it names, an image what can be seen.
        assert pair.query_labels == ({"colour": (colour,)} if number % 2 else pair.product_labels)
        assert [record.get("reasoning") for record in (pair.query, *pair.products)] == [
            {key: list(values) for key, values in pair.query_labels.items()},
            {"colour": [colour], "material": ["wood"]},
            None,  # nothing is known of the hard negative
        ]


def test_a_pair_is_a_function_of_seed_and_place_and_a_share_goes_without(source, processor):
    rows = [StreamRow(0, (epoch, 0, 1), row(1)) for epoch in range(200)]
    found = [reasoned(source, processor, 0.3).pair(one) for one in rows]
    assert found == [reasoned(source, processor, 0.3).pair(one) for one in rows]
    written = ["reasoning" in pair.query for pair in found]
    assert written != ["reasoning" in reasoned(source, processor, 0.3, seed=4).pair(one).query for one in rows]
    assert written != ["reasoning" in pair.products[0] for pair in found]
    assert 0.6 < sum(written) / len(written) < 0.8
    assert not any("reasoning" in reasoned(source, processor, 1.0).pair(one).query for one in rows)
    plain = RowPairs([source], PairArguments(), 3, 100).pair(rows[0])
    assert {name: value for name, value in found[0].query.items() if name != "reasoning"} == plain.query
    with pytest.raises(ValueError, match="unreasoned_share: found 1.5; expected a number from 0 to 1"):
        reasoned(source, processor, 1.5)


def test_a_row_of_which_no_pair_can_be_made_stays_one_and_a_reasoned_spare_stands_in(source, processor):
    found = reasoned(source, processor, 0.0)
    bad = StreamRow(0, (0, 0, 0), row(0) | {"doc_title": None, "doc_image": None})
    assert isinstance(found[bad], BadRow)
    spare = StreamRow(0, (0, 0, 1), row(1), spare=True)
    batch = StreamCollator(processor, found, reasoning="mixed")([found[bad], found[spare]])
    alone = PairCollator(processor, reasoning="mixed")([found.pair(StreamRow(0, (0, 0, 1), row(1)))])
    for side in ("queries", "products"):
        assert torch.equal(batch[side]["labels"], alone[side]["labels"])
        assert (batch[side]["labels"] >= 0).any()
    assert len(batch["skipped"]) == 1


@pytest.mark.usefixtures("one_thread")
def test_a_streamed_cold_start_stopped_in_the_middle_of_an_epoch_goes_on_exactly(base, shards, tmp_path, capsys):
    values = {"base": str(base), "data": [str(shards)], "catalogue": None, "query_mix": None, "streaming": True}
    values |= {"stage": "cold_start", "shuffle_rows": 8, "bucket_batches": 2, "queue_steps": 2, "max_steps": 8}
    values |= {"gradient_accumulation_steps": 2, "dataloader_num_workers": 0, "save_total_limit": 9}
    recipe = write_recipe(tmp_path / "recipe.yaml", use_cpu=True, report_to="none", **values)
    whole, again = tmp_path / "whole", tmp_path / "again"
    assert main([str(recipe), "--output_dir", str(whole)]) == 0
    said = capsys.readouterr().out
    assert "of the first 200 rows of each stream: reasoning: 26 of" in said
    assert "'sku' (26)" in said
    shutil.copytree(whole, again)
    forget_after(again, 4)  # 16 rows of 26
    assert main([str(recipe), "--output_dir", str(again)]) == 0
    assert "resuming from" in capsys.readouterr().out
    assert_same_run(whole, again)
    assert len(losses(whole)) == 8
    assert all(line["loss_ce"] > 0 and 0 < line["reasoned_share"] < 1 for line in losses(whole)[:3])
