"""MoonConfig refuses early and says what it accepts."""

import pytest
from transformers import AutoConfig, CLIPConfig

from modeling_moon import MoonConfig


@pytest.fixture
def vlm_config(tiny_base):
    return AutoConfig.from_pretrained(tiny_base("qwen3_vl"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"redout": "mean"}, "no argument 'redout'; did you mean 'readout'"),
        ({"readout": "max"}, "readout='max' is not known; accepted: mean, emb, last"),
        ({"readout": "emb"}, "needs emb_token_id"),
        ({"expert_routing": "switch"}, "accepted: none, guided, modality"),
        ({"embedding_dim": 65}, "1 to the base's width 64"),
        ({"embedding_dim": 0}, "embedding_dim=0"),
        ({"embedding_dim": "32"}, "embedding_dim='32'; accepted: a whole number"),
        ({"num_experts": True}, "num_experts=True; accepted: a whole number"),
        ({"moe_layers": [True]}, "whole numbers from 0 to 1"),
        ({"objectives": "tim"}, "accepted: different names"),
        ({"emb_token_id": 10**6}, "emb_token_id=1000000; accepted: an id below"),
        ({"fire_vision_blocks": [0]}, "details for fire_layers, and there are none"),
        ({"num_experts": 2}, "leaves no free expert"),
        ({"num_experts_per_token": 0}, "accepted: 1 to 2"),
        ({"num_experts": 6, "num_experts_per_token": 5}, "accepted: 1 to 4"),
        ({"expert_routing": "modality", "num_experts": 3, "num_experts_per_token": 4}, "accepted: 1 to 3"),
        ({"expert_routing": "modality", "objectives": ["t", "t"]}, "accepted: different names"),
        ({"expert_routing": "modality", "objectives": []}, "accepted: different names"),
        ({"moe_layers": [2]}, "whole numbers from 0 to 1"),
        ({"moe_layers": [0.5]}, "whole numbers from 0 to 1"),
        (
            {"matryoshka_dims": [16, 33]},
            r"matryoshka_dims=\[16, 33\]; accepted: None or a list of whole numbers from 1 to 32",
        ),
        ({"fire_layers": [-1]}, "fire_layers.*from 0 to 1"),
        ({"fire_layers": [0], "fire_rank": 0}, "fire_rank=0; accepted: 1 or more"),
        ({"fire_layers": [0], "fire_vision_blocks": [2]}, "fire_vision_blocks.*from 0 to 1"),
        ({"fusion": True}, "needs title_start_token_id"),
        ({"fusion": "maybe"}, "fusion='maybe'; accepted: True or False"),
        ({"fusion": True, "fusion_heads": 7}, "a divisor of the base's width 64"),
        ({"title_start_token_id": 3}, "title_start_token_id and title_end_token_id go together"),
        ({"max_reasoning_tokens": 0}, "max_reasoning_tokens=0; accepted: 1 or more, or None"),
        ({"max_reasoning_tokens": 8}, "found readout='mean', accepted: 'emb'"),
        ({"max_reasoning_tokens": 8, "readout": "emb", "emb_token_id": 9}, "needs think_start_token_id"),
        ({"category_start_token_id": 3}, "go together"),
        ({"vlm_config": CLIPConfig()}, "model type 'clip'; accepted: qwen3_vl, qwen2_5_vl"),
        ({"vlm_config": {"hidden_size": 3}}, "model type None"),
    ],
)
def test_a_wrong_argument_is_refused_with_what_is_accepted(vlm_config, arguments, message):
    with pytest.raises(ValueError, match=message):
        MoonConfig.moon1(**({"vlm_config": vlm_config, "embedding_dim": 32} | arguments))


def test_a_saved_configuration_loads_equal(vlm_config, tmp_path):
    config = MoonConfig.moon1(vlm_config, embedding_dim=16, moe_layers=[1], emb_token_id=7, readout="emb")
    config.save_pretrained(tmp_path)
    again = AutoConfig.from_pretrained(tmp_path)
    again._name_or_path = ""
    assert again.to_dict() == config.to_dict()
    assert again.mixture_layers == (1,)
    assert again.vlm_config.text_config.hidden_size == 64


def test_the_base_configuration_is_copied_not_shared(vlm_config):
    config = MoonConfig.moon1(vlm_config, embedding_dim=16)
    config.vlm_config.text_config.vocab_size = 1
    assert vlm_config.text_config.vocab_size > 1


def test_the_preset_turns_every_layer_into_a_mixture_unless_told_otherwise(vlm_config):
    assert MoonConfig.moon1(vlm_config, embedding_dim=16).mixture_layers == (0, 1)
    assert MoonConfig.moon1(vlm_config, embedding_dim=16, expert_routing="none").mixture_layers == ()


def test_without_a_projection_the_vector_has_the_width_of_the_base(vlm_config):
    assert MoonConfig.moon1(vlm_config, embedding_dim=None).vector_size == 64
    assert MoonConfig.moon1(vlm_config, embedding_dim=16).vector_size == 16


def test_the_three_presets_are_the_three_systems(vlm_config):
    ids = {"emb_token_id": 9, "title_start_token_id": 5, "title_end_token_id": 6}
    ids |= {"think_start_token_id": 7, "think_end_token_id": 8}
    moon1 = MoonConfig.moon1(vlm_config, embedding_dim=16)
    moon2 = MoonConfig.moon2(vlm_config, embedding_dim=16)
    moon3 = MoonConfig.moon3(vlm_config, embedding_dim=16, **ids)
    assert [c.expert_routing for c in (moon1, moon2, moon3)] == ["guided", "modality", "guided"]
    assert [c.num_free_experts for c in (moon1, moon2, moon3)] == [2, 4, 2]
    assert [c.readout for c in (moon1, moon2, moon3)] == ["mean", "mean", "emb"]
    assert [bool(c.fusion and c.fire_layers and c.max_reasoning_tokens) for c in (moon1, moon2, moon3)] == [
        False,
        False,
        True,
    ]
    assert moon2.objectives == ["t", "i", "mm"]
    plain = MoonConfig.moon3(vlm_config, embedding_dim=16, fusion=False, fire_layers=None, **ids)
    assert (plain.fusion, plain.fire_layers, plain.max_reasoning_tokens) == (False, None, 32)


def test_heads_of_the_fusion_are_of_a_size_that_every_kernel_takes(vlm_config):
    def heads(width):
        vlm_config.text_config.hidden_size = width
        ids = {"title_start_token_id": 5, "title_end_token_id": 6}
        return MoonConfig.moon1(vlm_config, embedding_dim=16, fusion=True, **ids).fusion_heads

    assert [heads(width) for width in (64, 1024, 2048, 2560, 3584, 4096)] == [8, 8, 16, 20, 28, 32]


def test_details_of_pictures_come_from_deepstack_full_attention_or_named_blocks(tiny_base):
    def blocks(backbone, **moon):
        base = AutoConfig.from_pretrained(tiny_base(backbone))
        return MoonConfig.moon1(base, embedding_dim=16, **({"fire_layers": [0]} | moon)).detail_blocks

    assert blocks("qwen3_vl") == ()  # it has deep-stack features
    assert blocks("qwen3_vl", fire_vision_blocks=[1, 0]) == (0, 1)
    assert blocks("qwen2_5_vl") == tuple(
        AutoConfig.from_pretrained(tiny_base("qwen2_5_vl")).vision_config.fullatt_block_indexes
    )
    assert blocks("qwen2_5_vl", fire_vision_blocks=[0]) == (0,)
    assert blocks("qwen2_5_vl", fire_layers=None) == ()
