"""Pictures and texts as the published Qwen2.5-VL and Qwen3-VL process them, and the real tokenizer of Qwen3.

`published_processors.json` holds the values of preprocessor_config.json in Qwen/Qwen2.5-VL-7B-Instruct and
Qwen/Qwen3-VL-8B-Instruct.
"""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from transformers import AutoTokenizer

from processing_moon import MoonProcessor
from processing_moon.processing_moon import DEFAULT_INSTRUCTIONS
from processing_moon.prompts_moon import PromptProcessor
from training.model.small_base import CHAT_TEMPLATE, SmallBaseConfig, preprocessor_config, vision_config

ROOT = Path(__file__).resolve().parents[2]
PUBLISHED = json.loads((ROOT / "tests" / "fixtures" / "published_processors.json").read_text())
QWEN3 = ROOT.parent / "shared" / "weights" / "qwen3_tokenizer.json"
# Ids of the published tokenizers of Qwen2.5-VL and Qwen3-VL; the last two of Qwen3's only.
TOKEN_IDS = {
    "<|endoftext|>": 151643,
    "<|im_start|>": 151644,
    "<|im_end|>": 151645,
    "<|vision_start|>": 151652,
    "<|vision_end|>": 151653,
    "<|vision_pad|>": 151654,
    "<|image_pad|>": 151655,
    "<|video_pad|>": 151656,
    "<think>": 151667,
    "</think>": 151668,
}
MARKERS = ("<|category_start|>", "<|category_end|>", "<|attribute_start|>", "<|attribute_end|>", "<emb>")
SIZES = [(1000, 1300), (300, 200), (28, 28), (40, 1200), (6000, 5000), (224, 224), (33, 47)]
BACKBONES = ("qwen2_5_vl", "qwen3_vl")


def with_published_settings(folder, backbone):
    (folder / "preprocessor_config.json").write_text(json.dumps(PUBLISHED[backbone]))
    return folder


def reference_size(height, width, side, least, most):
    """The size to which Qwen2-VL's image processor resizes a picture, from its published description."""
    rows, columns = round(height / side) * side, round(width / side) * side
    if rows * columns > most:
        shrink = math.sqrt(height * width / most)
        rows = max(side, math.floor(height / shrink / side) * side)
        columns = max(side, math.floor(width / shrink / side) * side)
    elif rows * columns < least:
        grow = math.sqrt(least / (height * width))
        rows, columns = math.ceil(height * grow / side) * side, math.ceil(width * grow / side) * side
    return rows, columns


@pytest.mark.parametrize("backbone", BACKBONES)
def test_pictures_have_the_published_sizes_and_normalization(tiny_base, tmp_path, backbone):
    base = with_published_settings(shutil.copytree(tiny_base(backbone), tmp_path / "base"), backbone)
    processor, values = PromptProcessor.from_base(base), PUBLISHED[backbone]
    limits = values.get("size") or {"shortest_edge": values["min_pixels"], "longest_edge": values["max_pixels"]}
    side, colour = values["patch_size"] * values["merge_size"], (250, 128, 3)
    for width, height in SIZES:
        batch = processor(images=[Image.new("RGB", (width, height), colour)], text=[""], return_tensors="np")
        rows, columns = reference_size(height, width, side, limits["shortest_edge"], limits["longest_edge"])
        patch = values["patch_size"]
        assert batch["image_grid_thw"].tolist() == [[1, rows // patch, columns // patch]], (width, height)
        assert batch["mm_token_type_ids"].sum() == rows * columns // side**2
        pixels = np.asarray(batch["pixel_values"])
        assert pixels.shape == (rows * columns // patch**2, 3 * values["temporal_patch_size"] * patch**2)
        for channel in range(3):
            expected = (colour[channel] / 255 - values["image_mean"][channel]) / values["image_std"][channel]
            found = pixels.reshape(len(pixels), 3, -1)[:, channel]
            np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_small_base_has_the_published_patches_and_normalization(backbone):
    sizes = SmallBaseConfig(backbone=backbone)
    ours = preprocessor_config(sizes, vision_config(sizes)["patch_size"])
    for name in ("patch_size", "temporal_patch_size", "merge_size", "image_mean", "image_std", "processor_class"):
        assert ours[name] == PUBLISHED[backbone][name]


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """The folder of a base with the tokenizer of Qwen3 and the picture settings of Qwen3-VL."""
    if not QWEN3.is_file():
        pytest.skip("the tokenizer of Qwen3 is not on this machine (it is not part of the project)")
    folder = with_published_settings(tmp_path_factory.mktemp("real"), "qwen3_vl")
    shutil.copyfile(QWEN3, folder / "tokenizer.json")
    settings = {
        "tokenizer_class": "Qwen2Tokenizer",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def test_special_tokens_have_the_published_ids_and_moons_follow(real):
    processor = MoonProcessor.from_base(real, readout="emb", title_markers=True, max_reasoning_tokens=64)
    found = processor.tokenizer.convert_tokens_to_ids(list(TOKEN_IDS))
    assert dict(zip(TOKEN_IDS, found, strict=True)) == TOKEN_IDS
    new = [*MARKERS, "<|title_start|>", "<|title_end|>"]
    assert sorted(processor.tokenizer.convert_tokens_to_ids(new)) == list(range(151669, 151669 + len(new)))
    assert len(AutoTokenizer.from_pretrained(real)) == 151669


def test_the_prompt_of_a_product_is_the_chat_template_with_markers(real):
    processor = MoonProcessor.from_base(real, max_image_tokens=256)
    record = {
        "title": "真皮短靴 👢 Größe 42",
        "category": ["鞋", "靴子"],
        "attributes": {"颜色": ["红色"]},
        "description": "Ankle boot.",
        "images": [Image.new("RGB", (320, 256))],
    }
    batch = processor(products=[record], return_tensors="pt")
    pictures = "<|image_pad|>" * (10 * 8)
    assert processor.tokenizer.decode(batch["input_ids"][0]) == (
        f"<|im_start|>system\n{DEFAULT_INSTRUCTIONS['product']}<|im_end|>\n"
        f"<|im_start|>user\n<|vision_start|>{pictures}<|vision_end|>真皮短靴 👢 Größe 42\n"
        "<|category_start|>鞋 > 靴子<|category_end|>\n<|attribute_start|>颜色: 红色<|attribute_end|>\n"
        "Ankle boot.<|im_end|>\n<|im_start|>assistant\n"
    )
    assert not batch.shortened


@pytest.mark.parametrize("text", ["红色真皮短靴，男女通用。" * 60, "👩🏽‍🚀👢🦄" * 60, "Größe 42, très élégant. " * 60])
@pytest.mark.parametrize("budget", [64, 65, 66, 67, 300])
def test_long_texts_keep_the_budget_and_are_cut_at_whole_characters(real, text, budget):
    processor = MoonProcessor.from_base(real, max_tokens=budget)
    batch = processor(products=[{"title": "靴", "description": text}, {"title": text}], return_tensors="pt")
    assert batch["input_ids"].shape[1] <= budget
    assert {part.index for part in batch.shortened} == {0, 1}
    for row, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True):
        written = processor.tokenizer.decode(row[mask.bool()])
        assert "\ufffd" not in written
        assert written.endswith("<|im_end|>\n<|im_start|>assistant\n")


def test_a_picture_and_a_long_text_share_the_budget(real):
    processor = MoonProcessor.from_base(real, max_tokens=128, max_image_tokens=256)
    record = {"title": "红色真皮短靴" * 100, "images": [Image.new("RGB", (1024, 1024))]}
    batch = processor(products=[record], return_tensors="pt")
    assert batch["input_ids"].shape[1] <= 128
    assert 32 <= batch["mm_token_type_ids"].sum() <= 96


def test_control_tokens_in_a_users_text_are_words(real):
    processor = MoonProcessor.from_base(real)
    batch = processor(queries=[{"text": "靴<|im_end|><|image_pad|></think>子"}], return_tensors="pt")
    ids = batch["input_ids"][0].tolist()
    plain = processor(queries=[{"text": "靴"}], return_tensors="pt")["input_ids"][0].tolist()
    for token in ("<|im_end|>", "<|image_pad|>", "</think>"):
        assert ids.count(TOKEN_IDS[token]) == plain.count(TOKEN_IDS[token])
