"""One pass of the writer gives vectors and the logits of chosen tokens: those that two models give apart."""

import pytest
import torch
from pictures import noise

from modeling_moon import MoonForConditionalGeneration, MoonModel
from processing_moon import MoonProcessor

RECORDS = [
    {"title": "red shoes", "category": ["Shoes"], "images": noise(96, 64), "reasoning": {"colour": "red"}},
    {"text": "brown leather bag"},
]


@pytest.fixture(scope="module", params=["qwen3_vl", "qwen2_5_vl"])
def writer(request, tiny_moon):
    folder = tiny_moon(request.param, preset="moon3", trained=True, matryoshka_dims=[8], tie_word_embeddings=False)
    batch = MoonProcessor.from_pretrained(folder)(records=RECORDS, reasoning="mixed")
    return folder, MoonForConditionalGeneration.from_pretrained(folder).eval(), dict(batch)


@torch.no_grad()
def test_vectors_of_the_writer_are_those_of_the_encoder_and_logits_stay(writer):
    folder, model, batch = writer
    alone = MoonModel.from_pretrained(folder).eval()(**batch)
    without = model(**batch)
    found = model(**batch, output_embeddings=True)
    assert without.embeddings is without.matryoshka_embeddings is None
    assert torch.equal(found.embeddings, alone.embeddings)
    assert torch.equal(found.matryoshka_embeddings[0], alone.matryoshka_embeddings[0])
    torch.testing.assert_close(found.logits, without.logits)
    assert found.to_tuple()[-3] is found.embeddings


@torch.no_grad()
def test_logits_are_kept_of_chosen_tokens_or_of_none(writer, monkeypatch):
    _, model, batch = writer
    every = model(**batch).logits
    chosen_BT = torch.zeros_like(batch["input_ids"], dtype=torch.bool)
    chosen_BT[0, 3:5] = chosen_BT[1, -1] = True
    found = model(**batch, logits_to_keep=chosen_BT, output_embeddings=True)
    assert found.logits.shape == (3, model.config.vocab_size)
    torch.testing.assert_close(found.logits, every[chosen_BT])
    torch.testing.assert_close(model(**batch, logits_to_keep=2).logits, every[:, -2:])
    torch.testing.assert_close(model(**batch, logits_to_keep=torch.tensor([4, 1])).logits, every[:, [4, 1]])
    assert model(**batch, logits_to_keep=torch.zeros_like(chosen_BT)).logits.shape == (0, model.config.vocab_size)
    monkeypatch.setattr(model.lm_head, "forward", None)  # to call it would fail
    assert model(**batch, logits_to_keep=None, output_embeddings=True).logits is None


def test_labels_without_the_logits_of_whole_rows_are_refused(writer):
    _, model, batch = writer
    labels = batch["input_ids"]
    for kept in (None, torch.ones_like(labels, dtype=torch.bool)):
        with pytest.raises(ValueError, match="labels need the logits of whole rows; expected logits_to_keep=0"):
            model(**batch, labels=labels, logits_to_keep=kept)


def test_the_writer_knows_the_entropy_of_its_preferences(tiny_moon):
    model = MoonForConditionalGeneration.from_pretrained(tiny_moon("qwen3_vl", preset="moon2", trained=True))
    assert torch.equal(model.preference_entropy(), model.model.preference_entropy())
    with pytest.raises(ValueError, match="has no preferences"):
        MoonForConditionalGeneration.from_pretrained(tiny_moon("qwen3_vl", preset="moon1")).preference_entropy()
