"""Prompts of rollouts: their order, their pictures, what stands in for a pair that cannot be read, and the ending."""

import os
from types import SimpleNamespace

import pytest
import torch
from pictures import noise

from processing_moon import MoonProcessor
from training.batches.collate import UnreadableBatchError
from training.batches.negatives import NO_ID, stable_id
from training.batches.pairs import Pair
from training.reasoning.rollouts import PromptCollator, Prompts, PromptsAhead, rollout_dataset, sequences, with_ending

CLOSE, READ, PAD = 7, 8, 0
CONFIG = SimpleNamespace(think_end_token_id=CLOSE, emb_token_id=READ)
PROMPTS = [[21, 22, 23], [31], [41, 42]]
WRITTEN = [[51, CLOSE], [61, 62, 63], [CLOSE]]  # early, never, at once


def test_the_ending_follows_each_continuation_at_once():
    ids, mask = sequences(PROMPTS, WRITTEN, PAD, CONFIG)
    assert ids.shape == mask.shape == (3, 3 + 3 + 2)
    texts = [row[kept.bool()].tolist() for row, kept in zip(ids, mask, strict=True)]
    assert texts == [[21, 22, 23, 51, CLOSE, READ], [31, 61, 62, 63, CLOSE, READ], [41, 42, CLOSE, READ]]
    for row in mask.tolist():
        assert "01" not in "".join(map(str, row)).strip("0")  # nothing masked in between
    for row, (prompt, written) in enumerate(zip(PROMPTS, WRITTEN, strict=True)):
        assert ids[row, 3 - len(prompt) : 3 + len(written)].tolist() == [*prompt, *written]


def test_a_closing_token_of_the_prompt_or_of_padding_closes_nothing():
    ids = torch.tensor([[CLOSE, 21, 51, CLOSE], [22, 23, 51, 52]])
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]])
    found, kept = with_ending(ids, mask, 2, CONFIG)
    assert found[0][kept[0].bool()].tolist() == [CLOSE, 21, 51, CLOSE, READ]
    assert found[1][kept[1].bool()].tolist() == [22, 23, 51, 52, CLOSE, READ]


def pair(name, query, images):
    product = {"id": f"p{name}", "title": f"title {name}"} | ({"images": images} if images else {})
    number = stable_id(product["id"])
    return Pair({"id": f"q{name}", **query}, [product], [product["id"]], [number], [NO_ID], NO_ID, [], [])


@pytest.fixture(scope="module")
def processor(tiny_moon):
    folder = tiny_moon("qwen3_vl", preset="moon3", max_reasoning_tokens=8)
    return MoonProcessor.from_pretrained(folder, max_image_tokens=4)


class Pairs(list):
    """Pairs with one substitute, tried first."""

    def draw(self, position, attempt):
        return pair("substitute", {"text": "red mug"}, None) if attempt == 2 else pair("no", {"image": b"no"}, None)


def mixed():
    return [
        pair("a", {"text": "red shoes"}, [noise(seed=1), noise(seed=2)]),
        pair("b", {"image": noise(seed=3), "text": "in blue"}, None),
        pair("c", {"text": "brown bag"}, None),
    ]


def rows_of(numbers, rollouts):
    dataset = rollout_dataset(3)
    return [dataset[2 * number + side] for number in numbers for side in (0, 1) for _ in range(rollouts)]


def test_rollouts_stand_in_the_order_pair_side_rollout_with_their_own_pictures(processor):
    found = PromptCollator(processor, mixed(), 2).prompts(rows_of([0, 1, 2], 2))
    assert [len(grid) for grid in found.grids] == [0, 0, 2, 2, 1, 1, 0, 0, 0, 0, 0, 0]
    assert [len(patches) for patches in found.patches] == [int(grid.prod(dim=1).sum()) for grid in found.grids]
    texts = [processor.tokenizer.decode(row) for row in found.ids]
    for place, words in enumerate(("red shoes", "title a", "in blue", "title b", "brown bag", "title c")):
        assert texts[2 * place] == texts[2 * place + 1]
        assert words in texts[2 * place]
        assert texts[2 * place].endswith("<think>")
    alone = PromptCollator(processor, mixed(), 2).prompts(rows_of([1], 2))
    assert torch.equal(alone.patches[0], found.patches[4])
    assert alone.ids[0] == found.ids[4]
    whole = found.pictures()
    assert whole["num_images"] == [len(grid) for grid in found.grids]
    assert torch.equal(found.pictures(4, 5)["pixel_values"], found.patches[4])
    assert found.pictures(0, 2) == found.pictures(6) == {}
    assert found.batch["items"] == [["qa", "pa"], ["qb", "pb"], ["qc", "pc"]]
    assert int(found.batch["queries"]["input_ids"][0, -1]) == processor.tokenizer.convert_tokens_to_ids("<emb>")


def test_a_substitute_stands_in_for_both_sides_of_an_unreadable_pair(processor):
    pairs = Pairs(mixed())
    pairs[1].query["image"] = b"no picture"
    found = PromptCollator(processor, pairs, 1).prompts(rows_of([0, 1], 1))
    assert [one.names[0] for one in found.pairs] == ["pa", "psubstitute"]
    assert "red mug" in processor.tokenizer.decode(found.ids[2])
    assert "title substitute" in processor.tokenizer.decode(found.ids[3])
    assert [skip["item"] for skip in found.batch["skipped"]] == ["qb", "qno"]


def test_a_pair_without_a_substitute_is_refused_by_name(processor):
    pairs = mixed()
    pairs[0].products[0]["images"] = [b"no picture"]
    with pytest.raises(
        UnreadableBatchError, match="found 1 pairs without a readable substitute; expected one for each: pa: images"
    ):
        PromptCollator(processor, pairs, 1).prompts(rows_of([0, 1], 1))


def same(one, other):
    assert one.ids == other.ids
    assert one.batch["items"] == other.batch["items"]
    assert [pair.names for pair in one.pairs] == [pair.names for pair in other.pairs]
    for name in ("grids", "patches"):
        assert all(torch.equal(*both) for both in zip(getattr(one, name), getattr(other, name), strict=True))
    for side in ("queries", "products"):
        assert one.batch[side].keys() == other.batch[side].keys()
        assert all(torch.equal(value, other.batch[side][name]) for name, value in one.batch[side].items())


class Signing(PromptCollator):
    """Says which process made a batch."""

    def prompts(self, rows):
        made = super().prompts(rows)
        made.batch["process"] = os.getpid()
        return made


def test_prompts_made_ahead_by_workers_are_those_made_when_asked_for(processor):
    pairs = mixed() * 3
    ahead = PromptsAhead(Signing(processor, pairs, 2), stride=4, workers=2)
    here = PromptsAhead(Signing(processor, pairs, 2), stride=4)
    state = torch.random.get_rng_state()
    # Of the second of two processes; then as after a resumption; then pairs that nobody could guess; then the last ones.
    asked = [[2, 3], [6, 7], [2, 3], [6, 7], [0, 5], [4], [8]]
    loaders = []
    for numbers in asked:
        rows = [row | {"pair": number} for number in numbers for row in rows_of([0], 2)]
        made, wanted = ahead.prompts(rows), here.prompts(rows)
        loaders.append(ahead._iterator)
        assert wanted.batch["process"] == os.getpid() != made.batch["process"]
        same(made, wanted)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert [one is other for one, other in zip(loaders, loaders[1:], strict=False)] == [
        True,
        False,
        True,
        False,
        False,
        True,
    ]


def test_what_a_worker_hands_over_holds_no_picture_twice(processor):
    found = PromptCollator(processor, mixed(), 2).prompts(rows_of([0, 1], 2))
    assert found.pairs[0].query == {"id": "qa", "text": "red shoes"}
    assert found.pairs[0].products == [{"id": "pa", "title": "title a"}]
    assert found.pairs[1].query == {"id": "qb", "text": "in blue"}


def test_a_pair_that_a_worker_cannot_read_is_named(processor):
    pairs = mixed()
    pairs[1].products[0]["images"] = [b"no picture"]
    ahead = PromptsAhead(PromptCollator(processor, pairs, 1), stride=1, workers=1)
    same(ahead.prompts(rows_of([0], 1)), PromptCollator(processor, pairs, 1).prompts(rows_of([0], 1)))
    with pytest.raises(UnreadableBatchError, match="batch: found no readable pair; expected at least one: pb: images"):
        ahead.prompts(rows_of([1], 1))


def test_rows_in_another_order_are_refused(processor):
    with pytest.raises(ValueError, match="each pair's query 2 times, then its product as often"):
        PromptCollator(processor, mixed(), 2).prompts(rows_of([0], 2)[::-1])
    with pytest.raises(ValueError, match="each pair's query 2 times"):
        PromptCollator(processor, mixed(), 2).prompts(rows_of([0, 1], 1))


def test_pictures_of_one_side_alone_keep_their_width():
    none, grid = torch.zeros(0, 3, dtype=torch.int64), torch.tensor([[1, 2, 2]])
    prompts = Prompts([[1]] * 4, [none, none, grid, grid], [torch.zeros(0, 1)] * 2 + [torch.ones(4, 24)] * 2, [], {}, 2)
    found = prompts.pictures()
    assert (found["pixel_values"].shape, found["num_images"]) == ((8, 24), [0, 0, 1, 1])
    assert prompts.pictures(0, 2) == {}
