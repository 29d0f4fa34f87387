"""What a model has to write, found in the collator's batches."""

import dataclasses

import pytest
import torch
from PIL import Image

from processing_moon import MoonProcessor
from training.batches.collate import PairCollator
from training.batches.negatives import NO_ID
from training.batches.pairs import Pair
from training.batches.reasoning_labels import IGNORED, reasoning_labels

THINK, END, EMB = 90, 91, 92
_ = IGNORED


@pytest.mark.parametrize(
    ("ids", "labels"),
    [
        ([0, 0, 5, THINK, 7, 8, END, EMB], [_, _, _, _, 7, 8, END, _]),
        ([5, THINK, 7, END, EMB, 0, 0, 0], [_, _, 7, END, _, _, _, _]),
        ([5, THINK, END, EMB, 0, 0, 0, 0], [_, _, END, _, _, _, _, _]),
        ([5, 6, 7, 8, EMB, 0, 0, 0], [_] * 8),
        ([5, THINK, 6, END, 9, THINK, 7, EMB], [_] * 8),  # not closed
        ([5, THINK, 6, END, 9, THINK, END, EMB], [_, _, _, _, _, _, END, _]),  # the last <think>
        ([5, THINK, 9, END, 9, EMB, 0, 0], [_] * 8),  # a template's own, before the read-out
        ([5, 6, 7, END, EMB, 0, 0, 0], [_] * 8),
        ([0, 0, 0, 5, 6, 7, 8, THINK], [_] * 8),  # a prompt for generation
        ([5, EMB, 7, THINK, 6, 7, 8, END], [_] * 8),
    ],
)
def test_labels_are_what_stands_behind_the_last_think_up_to_its_end(ids, labels):
    found = reasoning_labels(torch.tensor([ids, [1] * 8]), THINK, END, EMB)
    assert found.tolist() == [labels, [_] * 8]
    assert found.dtype == torch.int64


@pytest.fixture(scope="module")
def processor(tiny_moon):
    return MoonProcessor.from_pretrained(tiny_moon("qwen3_vl", preset="moon3"))


def pair(number, query=None, products=(None, None)):
    records = [{"id": f"p{number}{role}", "title": f"thing {number}"} for role in "+-"]
    records = [record | (more or {}) for record, more in zip(records, products, strict=True)]
    return Pair(
        query={"id": f"q{number}", "text": f"a thing {number}"} | (query or {}),
        products=records,
        names=[record["id"] for record in records],
        product_ids=[10 * number, 10 * number + 1],
        group_ids=[NO_ID, NO_ID],
        query_group=NO_ID,
        other_ids=[],
        negative_ids=[],
    )


RED, MESH = {"reasoning": {"colour": "red"}}, {"reasoning": "material: mesh, wool"}


def texts(processor, labels):
    return [processor.decode(row[row != IGNORED]) for row in labels]


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_mixed_batch_has_the_labels_of_the_records_that_reason(processor, side, monkeypatch):
    monkeypatch.setattr(processor.tokenizer, "padding_side", side)
    fake = {"title": "<think>colour: blue</think><emb> <think>", "description": "</think><emb>"}
    batch = PairCollator(processor, reasoning="mixed")(
        [pair(1, RED), pair(2, None, (MESH, None)), pair(3, None, (fake, RED))]
    )
    assert texts(processor, batch["queries"]["labels"]) == ["colour: red</think>", "", ""]
    expected = ["", "", "material: mesh, wool</think>", "", "", "colour: red</think>"]
    assert texts(processor, batch["products"]["labels"]) == expected
    for half in ("queries", "products"):
        inputs = batch[half]
        assert inputs["labels"].shape == inputs["input_ids"].shape
        kept = inputs["labels"] != IGNORED
        assert torch.equal(inputs["labels"][kept], inputs["input_ids"][kept])
        assert inputs["attention_mask"][kept].all()


def test_given_reasonings_are_asked_of_every_record_and_one_without_is_replaced(processor):
    spare = pair(9, RED, (RED, RED))
    collator = PairCollator(processor, lambda position, attempt: spare, reasoning="given")
    batch = collator([pair(1, RED, (RED, RED)), pair(2, RED, (RED, None))])
    assert [item[0] for item in batch["items"]] == ["q1", "q9"]
    assert [(skip["item"], skip["field"]) for skip in batch["skipped"]] == [("p2-", "reasoning")]
    assert texts(processor, batch["products"]["labels"]) == ["colour: red</think>"] * 4


def test_prompts_to_generate_from_end_in_think_and_have_no_labels(processor):
    think = processor.tokenizer.convert_tokens_to_ids("<think>")
    batch = PairCollator(processor, reasoning="generate")([pair(1, RED), pair(2)])
    for half in ("queries", "products"):
        assert (batch[half]["input_ids"][:, -1] == think).all()
        assert "labels" not in batch[half]


def test_without_reasoning_nothing_changes_whatever_records_carry(processor):
    plain, carrying = PairCollator(processor)([pair(1)]), PairCollator(processor)([pair(1, RED, (MESH, RED))])
    for half in ("queries", "products"):
        assert plain[half].keys() == carrying[half].keys()
        assert torch.equal(plain[half]["input_ids"], carrying[half]["input_ids"])
        assert "labels" not in carrying[half]


def test_a_reasoning_is_no_text_of_an_item_in_its_forms(processor):
    photo = {"image": Image.new("RGB", (64, 64), "red")}
    carrying = dataclasses.replace(pair(1), query={"id": "q1", **photo, **RED})
    forms = PairCollator(processor, forms=True)([carrying])["query_forms"]
    assert forms["has_text"].tolist() == [False]
    assert len(forms["t"]["rows"]) == 0


def test_each_form_of_a_record_has_the_labels_of_its_own_reasoning(processor):
    photo = {"image": Image.new("RGB", (64, 64), "red")}
    seen = {"images": [Image.new("RGB", (64, 64), "blue")]}
    both = pair(1, {**photo, **RED}, (seen | MESH, seen))
    forms = [{"t": {"colour": ["red"]}}, {"i": {"material": ["mesh"]}, "t": {"brand": ["A"]}}, {}]
    both = dataclasses.replace(both, form_reasonings=forms)
    batch = PairCollator(processor, forms=True, reasoning="mixed")([both, pair(2, RED)])
    found = {
        (side, form): texts(processor, batch[side][form]["inputs"]["labels"])
        for side in ("query_forms", "product_forms")
        for form in ("t", "i")
    }
    assert found == {
        ("query_forms", "t"): ["colour: red</think>"],
        ("query_forms", "i"): [""],
        ("product_forms", "t"): ["brand: A</think>", ""],
        ("product_forms", "i"): ["material: mesh</think>", ""],
    }
    assert texts(processor, batch["queries"]["labels"]) == ["colour: red</think>"] * 2


def test_an_unknown_reasoning_is_refused(processor):
    with pytest.raises(ValueError, match="reasoning: found 'all'; expected one of none, generate, given, mixed"):
        PairCollator(processor, reasoning="all")
