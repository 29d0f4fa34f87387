"""`clip=random` and `siglip=random` are models of their shape that nobody trained, the same in every run."""

from __future__ import annotations

import pytest
import torch
from records import PRODUCTS

from evaluation.baselines.clip_towers import load_towers
from evaluation.baselines.random_towers import random_towers

pytestmark = pytest.mark.lowest


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_random_towers_embed_and_are_the_same_again(kind: str) -> None:
    state = torch.random.get_rng_state()
    model, processor = load_towers(kind, "random")
    again, _ = load_towers(kind, "random")
    other, _, _ = random_towers(kind, seed=1)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(one, two) for one, two in zip(model.parameters(), again.parameters(), strict=True))
    pairs = zip(model.model.parameters(), other.parameters(), strict=True)
    assert not all(torch.equal(one, two) for one, two in pairs)
    with torch.no_grad():
        for form in ("t", "i", "mm"):
            records = [record for record in PRODUCTS if form != "t" or record.get("title")]
            batch = processor(products=records, form=form, on_error="skip")
            vectors = model(**batch).embeddings
            assert vectors.shape == (len(batch.kept), 192)
            torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(len(batch.kept)))
            assert len(batch.kept) > 1
            assert (vectors[0] - vectors[1]).abs().max() > 1e-4  # not one vector for all


def test_a_text_in_any_script_has_its_bytes_as_tokens() -> None:
    _, tokenizer, _ = random_towers("clip")
    ids = tokenizer("a 鞋")["input_ids"]
    assert len(ids) == 2 + len("a 鞋".encode())
    assert tokenizer.unk_token_id is None
    assert tokenizer.decode(ids, skip_special_tokens=True) == "a 鞋"
