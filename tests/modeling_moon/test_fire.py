"""Fine-grained residual enhancement against a slow reference written from its formula, token by token, and its details."""

import pytest
import torch
from closeness import assert_same_function
from pictures import noise
from torch.nn import functional
from transformers import AutoConfig

from modeling_moon import MoonConfig, MoonModel
from modeling_moon.fire_moon import Details, MoonFire
from processing_moon import MoonProcessor

PRODUCTS = [
    {"title": "red shoes", "images": [noise(96, 64), noise(64, 128, 1)]},
    {"title": "a mug without a picture"},
    {"title": "bag", "images": noise(128, 96, 2)},
]


def make_fire(tiny_base, levels):
    vlm_config = AutoConfig.from_pretrained(tiny_base("qwen3_vl"))
    fire = MoonFire(MoonConfig.moon1(vlm_config, embedding_dim=32, fire_rank=8), levels)
    torch.manual_seed(0)
    for parameter in fire.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return fire


def slow_fire(fire, h_H, s_H):
    def norm(layer, x_H):
        x_H = (x_H - x_H.mean()) / (x_H.var(unbiased=False) + 1e-5).sqrt()
        return x_H * layer.weight + layer.bias

    h, s = norm(fire.hidden_norm, h_H), norm(fire.detail_norm, s_H)
    gate = torch.sigmoid(fire.gate_out.weight[0] @ functional.gelu(fire.gate_in.weight @ torch.cat([h, s])))
    return h_H + fire.scale * gate * (fire.up.weight @ functional.gelu(fire.down.weight @ s))


@pytest.mark.parametrize("levels", [0, 1, 3])
def test_output_and_gradients_equal_the_formula(tiny_base, levels):
    fire = make_fire(tiny_base, levels)
    hidden = torch.randn(2, 4, 64, requires_grad=True)
    embeds = torch.randn(2, 4, 64, requires_grad=True)
    is_image = torch.tensor([[False, True, True, False], [False, False, False, True]])
    seen = torch.randn(max(levels, 1), 3, 64, requires_grad=True)
    details = Details(embeds, is_image, seen) if levels else Details(embeds)
    rows, place = [], 0
    share = fire.level_scores.softmax(0) if levels > 1 else torch.ones(1)
    for row in range(2):
        for token in range(4):
            detail = embeds[row, token]
            if levels and is_image[row, token]:
                detail = sum(share[level] * seen[level, place] for level in range(levels))
                place += 1
            rows.append(slow_fire(fire, hidden[row, token], detail))
    slow = torch.stack(rows).view_as(hidden)
    fast = fire(hidden, details)
    weights = [hidden, embeds, *fire.parameters(), *([seen] if levels else [])]
    assert_same_function(fast, slow, weights)


def capture_details(model, batch):
    """The details that the first FIRE layer is given."""
    found = []
    fire = next(module for module in model.modules() if isinstance(module, MoonFire))
    hook = fire.register_forward_pre_hook(lambda module, inputs: found.append(inputs[1]))
    with torch.no_grad():
        model(**batch)
    hook.remove()
    return found[0]


def load(tiny_moon, backbone, **moon):
    folder = tiny_moon(backbone, fire_layers=[0, 1], trained=True, **moon)
    model, processor = MoonModel.from_pretrained(folder).eval(), MoonProcessor.from_pretrained(folder)
    return model, processor, processor(products=PRODUCTS, return_tensors="pt")


def test_text_tokens_take_their_input_embedding(tiny_moon):
    model, _, batch = load(tiny_moon, "qwen3_vl")
    details = capture_details(model, batch)
    is_text = batch["input_ids"] != model.config.image_token_id
    assert torch.equal(details.embeds_BTH, model.get_input_embeddings()(batch["input_ids"]))
    assert torch.equal(details.is_image_BT, ~is_text)


def test_image_tokens_of_qwen3_take_its_deepstack_features(tiny_moon):
    model, _, batch = load(tiny_moon, "qwen3_vl")
    with torch.no_grad():
        seen = model.vlm.get_image_features(batch["pixel_values"], batch["image_grid_thw"], return_dict=True)
    levels = [x if isinstance(x, torch.Tensor) else torch.cat(x) for x in seen.deepstack_features]
    assert len(levels) == len(model.config.vision_config.deepstack_visual_indexes) > 0
    torch.testing.assert_close(capture_details(model, batch).levels_VPH, torch.stack(levels))


def test_image_tokens_of_qwen2_5_take_chosen_blocks_in_their_own_order(tiny_moon):
    """The blocks work in window order. One picture after the other through the tower, with windows as large as it."""
    model, processor, batch = load(tiny_moon, "qwen2_5_vl", fire_vision_blocks=[0, 1])
    levels = capture_details(model, batch).levels_VPH
    assert len(levels) == 2
    outputs = []
    hook = model.vlm.visual.blocks[-1].register_forward_hook(lambda module, inputs, output: outputs.append(output))
    with torch.no_grad():
        merged = model.vlm.get_image_features(batch["pixel_values"], batch["image_grid_thw"], return_dict=True)
    hook.remove()
    by_window = model.vlm.visual.merger(outputs[0])
    own_order = torch.cat(tuple(merged.pooler_output))
    order = [int((by_window == token).all(dim=1).nonzero()[0]) for token in own_order]
    assert order != sorted(order), "the pictures are too small to show a difference"
    torch.testing.assert_close(levels[1], model.detail_mergers[1](outputs[0])[order])


@pytest.mark.parametrize("backbone", ["qwen3_vl", "qwen2_5_vl"])
def test_fire_changes_nothing_at_first_and_only_from_its_layer_on_later(tiny_moon, backbone):
    plain = MoonModel.from_pretrained(tiny_moon(backbone)).eval()
    folder = tiny_moon(backbone, fire_layers=[1])
    model, processor = MoonModel.from_pretrained(folder).eval(), MoonProcessor.from_pretrained(folder)
    batch = processor(products=PRODUCTS, return_tensors="pt")
    attended = batch["attention_mask"].bool()
    with torch.no_grad():
        before = plain(**batch, output_hidden_states=True).hidden_states
        fresh = model(**batch, output_hidden_states=True).hidden_states
        for ours, theirs in zip(fresh, before, strict=True):
            torch.testing.assert_close(ours[attended], theirs[attended], rtol=1e-5, atol=1e-5)
        model.vlm.language_model.layers[1].fire.scale.fill_(1.0)
        after = model(**batch, output_hidden_states=True).hidden_states
    assert torch.equal(after[1], fresh[1])
    assert (after[2] - fresh[2])[attended].abs().amax(dim=-1).min() > 1e-6


def test_a_smaller_picture_detail_reaches_its_own_token_first(tiny_moon):
    """Only the image tokens' states change at FIRE's own layer when only the vision details change."""
    model, _, batch = load(tiny_moon, "qwen2_5_vl", fire_vision_blocks=[0])
    with torch.no_grad():
        before = model(**batch, output_hidden_states=True).hidden_states[1]
        model.detail_mergers[0].merge.weight.mul_(2.0)
        model.detail_mergers[0].norm.bias.add_(1.0)
        after = model(**batch, output_hidden_states=True).hidden_states[1]
    changed = (before - after).abs().amax(dim=-1) > 1e-6
    assert torch.equal(changed, batch["input_ids"] == model.config.image_token_id)
