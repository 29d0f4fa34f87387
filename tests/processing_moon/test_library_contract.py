"""What transformers asks of every processor: arguments flat and in groups, each kind of tensor, offsets, chats, decoding."""

import numpy as np
import pytest
import torch
from pictures import noise

from processing_moon import MoonProcessor

pytestmark = pytest.mark.lowest

VISION = "<|vision_start|><|image_pad|><|vision_end|>"


@pytest.fixture(scope="module")
def whole(tiny_moon):
    return MoonProcessor.from_pretrained(tiny_moon("qwen3_vl", preset="moon3"))


@pytest.fixture(scope="module")
def picture():
    return noise(96, 64)


def test_arguments_in_groups_equal_flat_ones_and_none_is_given_twice(whole, picture):
    batch = {"text": [f"{VISION}red mug", "blue shoes"], "images": [[picture], []]}
    padding = {"padding": "max_length", "max_length": 40, "padding_side": "left"}
    flat = whole(**batch, **padding, return_tensors="pt")
    grouped = whole(**batch, text_kwargs=padding, common_kwargs={"return_tensors": "pt"})
    assert flat.keys() == grouped.keys() == set(whole.model_input_names)
    assert all(torch.equal(flat[name], grouped[name]) for name in flat)
    assert flat["input_ids"].shape == (2, 40)
    assert not flat["attention_mask"][:, 0].any()
    with pytest.raises(ValueError, match="padding was passed two times"):
        whole(text=["mug"], padding=True, text_kwargs={"padding": False})


def test_tensors_are_of_the_kind_that_is_asked_for(whole, picture):
    batch = {"text": [f"{VISION}red mug"], "images": [picture]}
    torch_batch, numpy_batch, lists = (whole(**batch, return_tensors=kind) for kind in ("pt", "np", None))
    for name in ("input_ids", "attention_mask", "mm_token_type_ids"):
        assert isinstance(numpy_batch[name], np.ndarray)
        assert torch_batch[name].tolist() == numpy_batch[name].tolist() == [list(row) for row in lists[name]]
    np.testing.assert_array_equal(torch_batch["pixel_values"].numpy(), numpy_batch["pixel_values"])


def test_the_tokenizers_own_outputs_are_passed_on(whole):
    told = whole(text=["red mug"], return_offsets_mapping=True, return_special_tokens_mask=True, return_length=True)
    own = whole.tokenizer(["red mug"], return_offsets_mapping=True, return_special_tokens_mask=True, return_length=True)
    for name in ("offset_mapping", "special_tokens_mask", "length"):
        assert told[name] == own[name]


def test_a_text_is_cut_and_a_picture_never(whole, picture):
    assert whole(text=["red mug blue shoes"], truncation=True, max_length=3, return_tensors="pt")[
        "input_ids"
    ].shape == (1, 3)
    with pytest.raises(ValueError, match="Mismatch in `image` token count"):
        whole(text=[f"{VISION}red"], images=[picture], truncation=True, max_length=3, return_tensors="pt")


def test_chats_of_different_lengths_make_one_batch_and_are_read_back(whole, picture):
    seen = [{"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": "a mug"}]}]
    heard = [{"role": "user", "content": [{"type": "text", "text": "shoes"}]}]
    options = {"tokenize": True, "return_dict": True, "add_generation_prompt": True, "return_tensors": "pt"}
    alone = whole.apply_chat_template(seen, **options)
    both = whole.apply_chat_template([seen, heard], **options, processor_kwargs={"padding": True})
    assert torch.equal(both["input_ids"][0][both["attention_mask"][0].bool()], alone["input_ids"][0])
    assert torch.equal(both["pixel_values"], alone["pixel_values"])
    assert whole.post_process_image_text_to_text(both["input_ids"])[1].endswith("shoes\nassistant\n")


def test_parts_are_set_while_loading(tiny_moon):
    folder = tiny_moon("qwen3_vl", preset="moon3")
    assert MoonProcessor.from_pretrained(folder, padding_side="left").tokenizer.padding_side == "left"
    assert MoonProcessor.from_pretrained(folder, do_normalize=False).image_processor.do_normalize is False
