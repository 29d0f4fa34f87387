"""Thinking only when unsure: the margin gate, and rows with and without a reasoning from one pass over their prompts."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from records import RECORDS
from sentence_transformers import SentenceTransformer

from modeling_moon import MoonModel
from modeling_moon.gate_moon import MarginGate
from modeling_moon.thinking_moon import Thinking
from processing_moon import MoonProcessor

GALLERY = torch.randn(20, 32, generator=torch.Generator().manual_seed(0)) * torch.arange(1, 21)[:, None]


@pytest.fixture(scope="module", params=["qwen3_vl", "qwen2_5_vl"])
def moon3(request, tiny_moon):
    folder = tiny_moon(request.param, preset="moon3", trained=True, matryoshka_dims=[8])
    return folder, MoonModel.from_pretrained(folder).eval(), MoonProcessor.from_pretrained(folder)


def slow_margin(vector, gallery, left_out=()):
    cosines = []
    for row, item in enumerate(gallery):
        if row not in left_out:
            part = vector[: len(item)]
            cosines.append(float(part @ item / (part.norm() * item.norm())))
    best = sorted(cosines, reverse=True)
    return best[0] - best[1] if len(best) > 1 else math.inf


@pytest.mark.parametrize("width", [32, 8])
def test_the_margin_is_the_difference_of_the_two_largest_cosines(width):
    gallery = GALLERY[:, :width]
    vectors = torch.randn(1500, 32, generator=torch.Generator().manual_seed(1))
    exclude = [[row % 20, (row * 7) % 20] if row % 3 else [] for row in range(1500)]
    expected = [slow_margin(vector, gallery) for vector in vectors[:60]]
    found = MarginGate(gallery.numpy()).margins(vectors)
    torch.testing.assert_close(found[:60], torch.tensor(expected), rtol=1e-4, atol=1e-5)
    for start in (0, 1000):  # the second lies in two blocks
        rows = range(start, start + 60)
        expected = [slow_margin(vectors[row], gallery, exclude[row]) for row in rows]
        found = MarginGate(gallery).margins(vectors, exclude)[start : start + 60]
        torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-4, atol=1e-5)


def test_twins_have_no_margin_opposites_the_largest_and_a_single_answer_an_infinite_one():
    twins = MarginGate(torch.tensor([[1.0, 0.0], [3.0, 0.0], [0.0, 1.0]]))
    assert twins.margins(torch.tensor([[1.0, 0.0]])).tolist() == [0.0]
    opposites = MarginGate(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), 2)
    margin = opposites.margins(torch.tensor([[1.0, 0.0]]))
    assert margin.tolist() == [2.0]
    assert opposites.margins(torch.tensor([[1.0, 0.0]] * 2), [[1], [0, 1]]).tolist() == [math.inf, math.inf]
    assert MarginGate(GALLERY).margins(torch.zeros(0, 32)).shape == (0,)
    assert MarginGate(GALLERY, 0).unsure(torch.tensor([0.0, 1.0])).tolist() == [False, False]


def check(found, thought, plain, reasoned):
    """Rows of `found` are those of `thought` where a row reasoned, else those of `plain`."""
    assert found.reasoned.tolist() == reasoned
    for row, did in enumerate(reasoned):
        one = thought if did else plain
        torch.testing.assert_close(found.embeddings[row], one.embeddings[row], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(found.modality_gates[row], one.modality_gates[row], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(
            found.matryoshka_embeddings[0][row], one.matryoshka_embeddings[0][row], rtol=1e-4, atol=1e-4
        )
        assert found.reasoning[row] == (thought.reasoning[row] if did else None)


@pytest.mark.parametrize("gallery", [GALLERY, GALLERY[:, :8]], ids=["whole", "prefix"])
@pytest.mark.parametrize("count", [0, 1, 2, 4, 5])
def test_the_unsure_rows_are_those_of_generate_and_the_others_those_of_none(moon3, gallery, count):
    _, model, processor = moon3
    with torch.no_grad():
        plain = model.embed(RECORDS, processor=processor)
    thought = model.embed(RECORDS, reasoning="generate", processor=processor)
    margin = MarginGate(gallery).margins(plain.embeddings)
    levels = [0.0, *((margin.sort().values[1:] + margin.sort().values[:-1]) / 2).tolist(), 2.0]
    threshold = levels[count]
    found = model.embed(RECORDS, reasoning="auto", gallery=gallery, threshold=threshold, processor=processor)
    torch.testing.assert_close(found.margins, margin, rtol=1e-3, atol=1e-5)
    reasoned = (margin < threshold).tolist()
    assert sum(reasoned) == count
    check(found, thought, plain, reasoned)
    assert thought.reasoned.tolist() == [True] * 5
    assert plain.reasoned.tolist() == [False] * 5
    pictures = {
        name: tensor
        for name, tensor in processor(records=RECORDS, reasoning="generate").items()
        if name in ("pixel_values", "image_grid_thw")
    }
    with torch.no_grad():
        whole = model(input_ids=found.input_ids, attention_mask=found.attention_mask, **pictures)
    torch.testing.assert_close(found.embeddings, whole.embeddings, rtol=1e-4, atol=1e-4)
    for row, did in enumerate(reasoned):
        written = found.reasoning_ids[row]
        if did:
            assert torch.equal(written, thought.reasoning_ids[row][: len(written)])
        else:
            assert bool((written == processor.tokenizer.pad_token_id).all())


def test_a_prepared_batch_and_a_batch_that_follows_are_as_good(moon3):
    _, model, processor = moon3
    options = {"reasoning": "auto", "gallery": GALLERY.tolist(), "processor": processor}
    threshold = float(model.embed(RECORDS, **options).margins.median()) + 1e-4
    found = model.embed(RECORDS, threshold=threshold, **options)
    assert 0 < int(found.reasoned.sum()) < 5
    batch = processor(records=RECORDS, reasoning="generate")
    again = model.embed(batch, threshold=threshold, **options)
    torch.testing.assert_close(again.embeddings, found.embeddings)
    assert again.reasoning == found.reasoning
    texts = model.embed(RECORDS[2:4], reasoning="generate", processor=processor)
    fresh = model.embed(RECORDS[2:4], threshold=2.0, **options)
    torch.testing.assert_close(fresh.embeddings, texts.embeddings, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="prompts must end in <think>"):
        model.embed(processor(records=RECORDS), **options)


def test_the_default_threshold_is_five_hundredths(moon3):
    _, model, processor = moon3
    found = model.embed(RECORDS, reasoning="auto", gallery=GALLERY, processor=processor)
    named = model.embed(RECORDS, reasoning="auto", gallery=GALLERY, threshold=0.05, processor=processor)
    assert torch.equal(found.reasoned, named.reasoned)
    assert found.reasoned.tolist() == (found.margins < 0.05).tolist()


def test_a_training_model_thinks_as_in_evaluation_without_gradient_and_goes_on_training(moon3):
    folder, model, processor = moon3
    options = {"reasoning": "auto", "gallery": GALLERY, "threshold": 0.1, "processor": processor}
    expected = model.embed(RECORDS, **options)
    learner = MoonModel.from_pretrained(folder).train()
    for layer in learner.vlm.language_model.layers:
        layer.self_attn.attention_dropout = 0.9
    with torch.no_grad():
        assert (learner.embed(RECORDS, processor=processor).embeddings - expected.embeddings).abs().max() > 1e-2
    found = learner.embed(RECORDS, **options)
    assert learner.training
    assert not found.embeddings.requires_grad
    torch.testing.assert_close(found.embeddings, expected.embeddings, rtol=1e-4, atol=1e-4)


def test_a_skipped_record_is_reported_and_nothing_left_is_nothing(moon3):
    _, model, processor = moon3
    broken = [RECORDS[0], {"id": "bad", "images": [b"no picture"]}, RECORDS[3]]
    options = {"reasoning": "auto", "gallery": GALLERY, "processor": processor, "on_error": "skip"}
    found = model.embed(broken, threshold=2.0, **options)
    assert (found.kept, [one.index for one in found.skipped]) == ([0, 2], [1])
    assert found.reasoned.tolist() == [True, True]
    nothing = model.embed(broken[1:2], **options)
    assert (nothing.embeddings.shape, nothing.reasoning, nothing.margins.shape) == ((0, 32), [], (0,))
    assert nothing.reasoned.shape == (0,)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"reasoning": "auto"}, "reasoning='auto' without gallery=; expected the vectors"),
        ({"reasoning": "auto", "gallery": GALLERY[:, :9]}, "size 9; expected 32 or 8"),
        ({"reasoning": "auto", "gallery": GALLERY[:1]}, r"shape \(1, 32\) .* at least 2 products"),
        ({"reasoning": "auto", "gallery": GALLERY[0]}, r"shape \(32,\)"),
        ({"reasoning": "auto", "gallery": "red"}, "gallery: found str; expected vectors"),
        ({"reasoning": "auto", "gallery": GALLERY * torch.tensor([math.nan] + [1] * 31)}, r"rows \[0, 1, 2, 3, 4\]"),
        ({"reasoning": "auto", "gallery": GALLERY * (torch.arange(20) != 7)[:, None]}, r"rows \[7\] are 0 or not"),
        (
            {"reasoning": "auto", "gallery": GALLERY, "threshold": -0.1},
            r"threshold=-0.1; expected a number in \[0, 2\]",
        ),
        ({"reasoning": "auto", "gallery": GALLERY, "threshold": 2.1}, "threshold=2.1"),
        ({"reasoning": "auto", "gallery": GALLERY, "threshold": "low"}, "threshold='low'"),
        ({"reasoning": "auto", "gallery": GALLERY, "threshold": math.nan}, "threshold=nan"),
        ({"reasoning": "generate", "gallery": GALLERY}, "gallery= was given with reasoning='generate'"),
        ({"threshold": 0.1}, "threshold= was given with reasoning='none'; expected with reasoning='auto'"),
    ],
)
def test_what_the_gate_cannot_use_is_refused(moon3, arguments, message):
    _, model, processor = moon3
    with pytest.raises(ValueError, match=message):
        model.embed(RECORDS, processor=processor, **arguments)


def test_a_model_that_does_not_reason_and_vectors_narrower_than_the_gallery_are_refused(tiny_moon):
    folder = tiny_moon()
    with pytest.raises(ValueError, match="reasoning='auto': this model does not reason"):
        MoonModel.from_pretrained(folder).embed(RECORDS, reasoning="auto", gallery=GALLERY)
    with pytest.raises(ValueError, match="vectors of size 31; expected at least 32"):
        MarginGate(GALLERY).margins(torch.zeros(1, 31))


@pytest.mark.parametrize("count", [1, 7])
def test_a_least_number_of_tokens_is_written_however_soon_the_model_would_end(moon3, monkeypatch, count):
    _, model, processor = moon3
    writer = model.writer()
    end = model.config.think_end_token_id

    class Ends(torch.nn.Module):
        def forward(self, hidden):
            logits = torch.zeros(*hidden.shape[:2], model.config.vocab_size)
            logits[..., end] = 10.0
            logits[..., 50] = 1.0
            return logits

    writer.lm_head = Ends()
    monkeypatch.setattr(type(model), "writer", lambda self: writer)
    found = model.embed(
        RECORDS, reasoning="generate", processor=processor, thinking={"max_tokens": 9, "min_tokens": count}
    )
    assert found.reasoning_ids.tolist() == [[50] * count + [end]] * 5


def test_a_least_number_of_tokens_out_of_range_is_refused():
    with pytest.raises(ValueError, match="min_tokens=-1; expected 0 or more"):
        Thinking(min_tokens=-1)
    with pytest.raises(ValueError, match="min_tokens=5; expected 0 or more, and at most max_tokens=4"):
        Thinking(max_tokens=4, min_tokens=5)


def test_sentence_transformers_thinks_when_unsure_and_says_of_which(tiny_moon):
    folder = tiny_moon("qwen3_vl", preset="moon3", trained=True, matryoshka_dims=[8])
    encoder = SentenceTransformer(str(folder), trust_remote_code=True)
    model, processor = encoder[0].model, encoder[0].processor
    gallery = GALLERY.numpy()
    every = model.embed(RECORDS, reasoning="auto", gallery=gallery, processor=processor).margins
    threshold = float(every.sort().values[1:3].mean())
    expected = model.embed(RECORDS, reasoning="auto", gallery=gallery, threshold=threshold, processor=processor)
    found = encoder.encode(RECORDS, reasoning="auto", gallery=gallery, threshold=threshold, batch_size=2)
    np.testing.assert_allclose(found, expected.embeddings.numpy(), atol=1e-4)
    rows = encoder.encode(RECORDS, reasoning="auto", gallery=gallery, threshold=threshold, output_value=None)
    assert [bool(row["reasoned"]) for row in rows] == expected.reasoned.tolist()
    assert 0 < sum(expected.reasoned.tolist()) < 5
    for reasoning in ("none", "generate"):
        with pytest.raises(ValueError, match=f"gallery= was given with reasoning='{reasoning}'"):
            encoder.encode(RECORDS[3:4], reasoning=reasoning, gallery=gallery)
    with pytest.raises(ValueError, match="reasoning='auto' without gallery="):
        encoder.encode(RECORDS[3:4], reasoning="auto")
