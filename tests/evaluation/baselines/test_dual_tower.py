"""The dual tower keeps Moon's interface: same batches in, vectors out, nothing seen of neighbours or padding."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pictures import file_of, plain
from PIL import Image
from transformers import AutoConfig, AutoModel

from evaluation.baselines.dual_tower import DualTower, DualTowerConfig
from modeling_moon.tokens_moon import user_tokens
from processing_moon import MoonProcessor
from retrieval.encode import encode, load_for_evaluation

BACKBONES = ("qwen3_vl", "qwen2_5_vl")


def picture(colour: str, size: int = 64) -> Image.Image:
    image = plain(colour, size)
    image.paste("white", (4, 4, size // 2, size // 3))
    return image


PRODUCTS = [
    {"title": "red running shoes", "images": picture("red"), "category": ["Home", "Shoes"]},
    {"title": "brown leather tote bag, gold buckle, autumn, for women with a white sole"},
    {"images": [picture("blue", 96), picture("green")]},
]

Make = Callable[..., tuple[DualTower, Any]]


@pytest.fixture(scope="module")
def make(tiny_base: Callable[..., Path], tiny_moon: Callable[..., Path]) -> Make:
    def get(backbone: str = "qwen3_vl", **options: Any) -> tuple[DualTower, Any]:
        processor = MoonProcessor.from_pretrained(tiny_moon(backbone))
        return DualTower.from_base(tiny_base(backbone), processor, **({"embedding_dim": 32} | options)), processor

    return get


@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_row_ignores_its_neighbours_and_the_side_of_its_padding(make: Make, backbone: str) -> None:
    model, processor = make(backbone)
    vectors = {}
    for side in ("left", "right"):
        processor.tokenizer.padding_side = side
        batch = processor(products=PRODUCTS, return_tensors="pt")
        assert (batch["attention_mask"][:, -1].min() == 0) == (side == "right")
        vectors[side] = model(**batch).embeddings
    alone = torch.cat([model(**processor(products=[product], return_tensors="pt")).embeddings for product in PRODUCTS])
    assert alone.shape == (3, 32)
    torch.testing.assert_close(vectors["left"], vectors["right"], atol=1e-5, rtol=0)
    torch.testing.assert_close(vectors["left"], alone, atol=1e-5, rtol=0)
    torch.testing.assert_close(alone.norm(dim=1), torch.ones(3), atol=1e-5, rtol=0)
    assert (alone[0] - alone[1]).abs().max() > 1e-2


@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_product_with_both_is_the_sum_of_its_two_parts(make: Make, backbone: str) -> None:
    model, processor = make(backbone)
    vector = {
        form: model(**processor(products=PRODUCTS[:1], form=form, return_tensors="pt")).embeddings for form in "ti"
    }
    both = model(**processor(products=PRODUCTS[:1], return_tensors="pt")).embeddings
    torch.testing.assert_close(
        both, torch.nn.functional.normalize(vector["t"] + vector["i"], dim=-1), atol=1e-5, rtol=0
    )


def test_the_text_tower_pools_the_users_tokens_and_reads_the_instruction_as_context(make: Make) -> None:
    model, processor = make()
    batch = processor(products=[{"title": "red"}, {"title": "brown leather tote bag"}], return_tensors="pt")
    for row, title in enumerate(("red", "brown leather tote bag")):
        ids = batch["input_ids"][row][batch["attention_mask"][row].bool()]
        inside = user_tokens(ids[None], model.config.user_prefix_ids, model.config.turn_end_id)[0]
        assert processor.tokenizer.decode(ids[inside]).strip() == title
    plain = torch.tensor([[50, 51, 52, 53, 54, 55, 56, 57, 58]])
    assert user_tokens(plain, model.config.user_prefix_ids, model.config.turn_end_id).all()


def test_pixels_change_an_image_vector_and_words_do_not(make: Make) -> None:
    model, processor = make()
    images = [
        {"images": picture(colour), "title": word} for colour, word in (("red", "a"), ("red", "b"), ("blue", "a"))
    ]
    first, second, third = model(**processor(products=images, form="i", return_tensors="pt")).embeddings
    torch.testing.assert_close(first, second)
    assert (first - third).abs().max() > 1e-4


@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_parameter_learns(make: Make, backbone: str) -> None:
    model, processor = make(backbone)
    vectors = model(**processor(products=PRODUCTS, return_tensors="pt")).embeddings
    (vectors @ torch.randn(32, 3, generator=torch.Generator().manual_seed(0))).square().sum().backward()
    silent = [
        name for name, parameter in model.named_parameters() if parameter.grad is None or not parameter.grad.any()
    ]
    # A key's bias shifts all scores of a query alike, so that its gradient vanishes.
    assert [name for name in silent if not name.endswith("k_proj.bias")] == []


@pytest.mark.parametrize("backbone", BACKBONES)
def test_saved_and_loaded_through_the_auto_classes_it_is_the_same(make: Make, tmp_path: Path, backbone: str) -> None:
    model, processor = make(backbone)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded, same_processor = load_for_evaluation(tmp_path, device="cpu")
    assert isinstance(loaded, DualTower)
    assert loaded.config.user_prefix_ids == model.config.user_prefix_ids
    records = [{"id": str(number)} | product for number, product in enumerate(PRODUCTS)]
    before = encode(model, processor, records, progress=False).vectors
    after = encode(loaded, same_processor, records, progress=False).vectors
    np.testing.assert_allclose(before, after, atol=1e-6)
    again = tmp_path / "again"
    loaded.save_pretrained(again)
    assert set(loaded.state_dict()) == set(AutoModel.from_pretrained(again).state_dict())


def test_weights_come_from_the_base_or_are_drawn_by_seed(make: Make, tiny_base: Callable[..., Path]) -> None:
    model, _ = make()
    base = AutoModel.from_pretrained(tiny_base())
    name = "language_model.layers.0.self_attn.q_proj.weight"
    assert torch.equal(model.vlm.state_dict()[name], base.state_dict()[name])
    drawn, other = (make(seed=seed)[0].vlm.state_dict()[name] for seed in (1, 2))
    assert not torch.equal(drawn, base.state_dict()[name])
    assert not torch.equal(drawn, other)
    assert torch.equal(drawn, make(seed=1)[0].vlm.state_dict()[name])
    assert not any("deepstack" in key for key in model.state_dict())


def test_wrong_batches_and_configurations_are_refused(make: Make, tiny_base: Callable[..., Path]) -> None:
    model, processor = make()
    batch = dict(processor(products=PRODUCTS[:1], return_tensors="pt"))
    with pytest.raises(ValueError, match="no pixel_values"):
        model(**{name: batch[name] for name in ("input_ids", "attention_mask")})
    doubled = torch.cat([batch["pixel_values"]] * 2), torch.cat([batch["image_grid_thw"]] * 2)
    with pytest.raises(ValueError, match="placeholders in input_ids"):
        model(**batch | {"pixel_values": doubled[0], "image_grid_thw": doubled[1]})
    empty = processor.tokenizer("<|im_start|>user\n<|im_end|>", return_tensors="pt", add_special_tokens=False)
    with pytest.raises(ValueError, match=r"rows \[0\] have neither"):
        model(input_ids=empty["input_ids"])
    vlm_config = AutoConfig.from_pretrained(tiny_base())
    for arguments, message in (
        ({"vlm_config": {"model_type": "bert"}}, "expected one of qwen3_vl, qwen2_5_vl"),
        ({"vlm_config": vlm_config, "embedding_dim": 0}, "embedding_dim=0"),
        ({"vlm_config": vlm_config, "turn_end_id": 3}, "go together"),
    ):
        with pytest.raises(ValueError, match=message):
            DualTowerConfig(**arguments)


def test_bytes_encode_like_opened_pictures(make: Make) -> None:
    model, processor = make()
    records = [{"images": picture("red")}, {"images": file_of(picture("red"))}]
    first, second = encode(model, processor, records, form="i", progress=False).vectors
    np.testing.assert_allclose(first, second, atol=1e-6)
