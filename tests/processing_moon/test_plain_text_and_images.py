"""Plain text= and images=: what Qwen's own processor does."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pictures import noise
from transformers import AutoTokenizer, Qwen2VLImageProcessorPil

from processing_moon import MoonBatch, ProductError

IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"


def expanded(text, grids):
    """The prompt as Qwen's processor expands it."""
    for grid in grids.tolist():
        text = text.replace("<|image_pad|>", "<|mark|>" * (grid[0] * grid[1] * grid[2] // 4), 1)
    return text.replace("<|mark|>", "<|image_pad|>")


@pytest.fixture(scope="module")
def own(tiny_base):
    return AutoTokenizer.from_pretrained(tiny_base()), Qwen2VLImageProcessorPil.from_pretrained(tiny_base())


def test_placeholders_are_expanded_and_nothing_is_added(processor, own):
    tokenizer, image_processor = own
    images = [noise(96, 64, 1), noise(200, 150, 2), noise(64, 64, 3)]
    texts = [f"{IMAGE}{IMAGE}red<|im_end|>", f"a{IMAGE}b"]
    wanted = image_processor(images, return_tensors="pt")
    for given in (images, [images[:2], images[2:]]):
        batch = processor(text=texts, images=given, padding=True, return_tensors="pt")
        assert isinstance(batch, MoonBatch)
        assert batch.kept == [0, 1]
        assert torch.equal(batch["pixel_values"], wanted["pixel_values"])
        assert torch.equal(batch["image_grid_thw"], wanted["image_grid_thw"])
        for row, grids in ((0, wanted["image_grid_thw"][:2]), (1, wanted["image_grid_thw"][2:])):
            ids = batch["input_ids"][row][batch["attention_mask"][row].bool()].tolist()
            assert ids == tokenizer(expanded(texts[row], grids))["input_ids"]
        assert torch.equal(batch["mm_token_type_ids"], (batch["input_ids"] == processor.image_token_id).long())


def test_text_alone_equals_the_tokenizer(processor, own):
    texts = ["red shoes", "<|im_start|>user\nbag<|im_end|>"]
    assert processor(text=texts)["input_ids"] == own[0](texts)["input_ids"]
    for side in ("left", "right"):
        batch = processor(text=texts, padding=True, padding_side=side, return_tensors="np")
        wanted = own[0](texts, padding=True, padding_side=side, return_tensors="np")
        assert np.array_equal(batch["input_ids"], wanted["input_ids"])
        assert np.array_equal(batch["attention_mask"], wanted["attention_mask"])
    padded = processor(text=texts, padding="max_length", max_length=40, return_tensors="pt")
    assert padded["input_ids"].shape == (2, 40)


def test_an_image_without_placeholder_goes_before_the_text_of_its_index(processor):
    images = [noise(96, 64, 1), noise(96, 64, 2)]
    batch = processor(text=["red", "blue"], images=images, padding=True, return_tensors="pt")
    wanted = processor(text=[f"{IMAGE}red", f"{IMAGE}blue"], images=images, padding=True, return_tensors="pt")
    assert all(torch.equal(batch[name], wanted[name]) for name in wanted)
    batch = processor(text=["red", "blue"], images=[None, images], padding=True, return_tensors="pt")
    wanted = processor(text=["red", f"{IMAGE}{IMAGE}blue"], images=images, padding=True, return_tensors="pt")
    assert all(torch.equal(batch[name], wanted[name]) for name in wanted)
    batch = processor(text="red", images=images, return_tensors="pt")
    wanted = processor(text=f"{IMAGE}{IMAGE}red", images=images, return_tensors="pt")
    assert all(torch.equal(batch[name], wanted[name]) for name in wanted)


def test_images_alone_are_vision_blocks(processor):
    images = [noise(96, 64, 1), noise(96, 64, 2)]
    batch = processor(images=images, padding=True, return_tensors="pt")
    wanted = processor(text=[IMAGE, IMAGE], images=images, padding=True, return_tensors="pt")
    assert all(torch.equal(batch[name], wanted[name]) for name in wanted)


def test_images_and_placeholders_must_agree(processor):
    with pytest.raises(ValueError, match="3 image placeholders in 2 texts, but 2 images in 2 groups"):
        processor(text=[IMAGE * 2, IMAGE], images=[noise(96, 64), noise(96, 64)])
    with pytest.raises(ValueError, match="0 image placeholders in 3 texts, but 2 images"):
        processor(text=["a", "b", "c"], images=[noise(96, 64), noise(96, 64)])
    with pytest.raises(ValueError, match="image placeholders"):
        processor(text=IMAGE)
    with pytest.raises(TypeError, match="a string or a list of strings"):
        processor(text=[3])


def test_chat_templates_process_their_images(processor, own, tmp_path):
    path = tmp_path / "a.png"
    noise(96, 64).save(path)
    messages = [
        {"role": "user", "content": [{"type": "image", "image": noise(96, 64)}, {"type": "text", "text": "which?"}]}
    ]
    by_path = [{"role": "user", "content": [{"type": "image", "path": str(path)}, {"type": "text", "text": "which?"}]}]
    text = processor.apply_chat_template(messages, add_generation_prompt=True)
    assert text == f"<|im_start|>user\n{IMAGE}which?<|im_end|>\n<|im_start|>assistant\n"
    wanted = processor(text=text, images=noise(96, 64), return_tensors="pt")
    for given in (messages, by_path):
        batch = processor.apply_chat_template(
            given, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
        )
        assert all(torch.equal(batch[name], wanted[name]) for name in wanted)
    batch = processor.apply_chat_template(
        [messages, messages],
        tokenize=True,
        return_dict=True,
        processor_kwargs={"return_tensors": "pt", "padding": True},
    )
    assert batch["input_ids"].shape[0] == 2
    assert batch["image_grid_thw"].shape == (2, 3)


def test_arguments_in_groups_as_sentence_transformers_gives_them(processor):
    batch = processor(
        text=["red", "blue shoes"],
        images=[noise(96, 64), noise(96, 64)],
        text_kwargs={"padding": True, "truncation": "longest_first", "max_length": 64},
        images_kwargs={},
        audio_kwargs={"padding": True},
        videos_kwargs={},
        common_kwargs={"return_tensors": "pt"},
    )
    wanted = processor(
        text=["red", "blue shoes"], images=[noise(96, 64), noise(96, 64)], padding=True, return_tensors="pt"
    )
    assert all(torch.equal(batch[name], wanted[name]) for name in wanted)


def test_truncation_never_cuts_image_tokens(processor):
    with pytest.raises(ValueError, match="Mismatch in `image` token count"):
        processor(text=[f"{IMAGE}red"], images=[noise(200, 200)], truncation=True, max_length=10)


def test_the_image_budget_holds_for_plain_images_too(processor):
    batch = processor(text=[""] * 3, images=[noise(300, 300), noise(9, 500), noise(1, 1)], max_image_tokens=4, padding=True,
                      return_tensors="pt")  # fmt: skip
    assert (batch["image_grid_thw"].prod(1) // 4).max() <= 4
    same = processor(products=[{"images": noise(300, 300)}], max_image_tokens=4)
    assert torch.equal(batch["image_grid_thw"][:1], same["image_grid_thw"])
    assert torch.equal(batch["pixel_values"][: len(same["pixel_values"])], same["pixel_values"])


def test_what_is_not_supported_is_refused(processor):
    with pytest.raises(TypeError, match="videos and audio are not supported"):
        processor(text="a", videos=[1])
    with pytest.raises(TypeError, match="instruction= belongs to products= and queries="):
        processor(text="a", instruction="Find")
    with pytest.raises(ProductError, match="input, field 'images\\[1\\]': .*no such file"):
        processor(text=["a", "b"], images=[noise(96, 64), "missing.png"])
    with pytest.raises(ValueError, match="max_image_tokens=0"):
        processor(text="a", images=noise(96, 64), max_image_tokens=0)


def test_decoding_is_the_tokenizers(processor):
    ids = processor(text=["red shoes"])["input_ids"]
    assert processor.batch_decode(ids) == ["red shoes"]
    assert processor.decode(ids[0]) == "red shoes"
    assert processor.post_process_image_text_to_text(ids) == ["red shoes"]
