"""The small random base: what its tokenizer and its picture settings spare."""

import json

import pytest

from processing_moon import MoonProcessor
from training.assembly.starting_model import texts_of
from training.model.small_base import make_base
from training.model.upcycle import upcycle


def test_a_picture_that_is_smaller_than_the_least_is_enlarged_and_a_large_one_keeps_the_most(tmp_path):
    from PIL import Image

    base = make_base(tmp_path / "base", texts=["a red shoe"], vocab_size=400, min_image_tokens=9, max_image_tokens=9)
    upcycle(base, tmp_path / "moon", preset="moon1")
    processor = MoonProcessor.from_pretrained(tmp_path / "moon")
    for size in ((20, 20), (96, 96), (300, 300), (40, 90)):
        batch = processor(products=[{"images": Image.new("RGB", size)}], max_image_tokens=9)
        assert batch["mm_token_type_ids"].sum() in (8, 9)


@pytest.mark.parametrize("least", [0, 5])
def test_a_least_number_of_image_tokens_below_1_or_above_the_most_is_refused(tmp_path, least):
    with pytest.raises(ValueError, match=f"min_image_tokens: found {least}; expected 1 to max_image_tokens=4"):
        make_base(tmp_path / "base", texts=["a"], min_image_tokens=least, max_image_tokens=4)


def test_the_roles_and_instructions_of_every_prompt_are_single_tokens(tmp_path):
    base = make_base(tmp_path / "base", texts=texts_of([], {"product": "product", "query": "query"}), vocab_size=600)
    known = json.loads((base / "tokenizer.json").read_text())["model"]["vocab"]
    assert {"system", "user", "assistant", "product", "query"} <= known.keys()
