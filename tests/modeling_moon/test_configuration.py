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
        ({"expert_routing": "switch"}, "accepted: none, guided"),
        ({"embedding_dim": 65}, "1 to the base's width 64"),
        ({"embedding_dim": 0}, "embedding_dim=0"),
        ({"num_experts": 2}, "leaves no free expert"),
        ({"num_experts_per_token": 1}, "accepted: 2 to 2"),
        ({"num_experts": 6, "num_experts_per_token": 5}, "accepted: 2 to 4"),
        ({"moe_layers": [2]}, "layers from 0 to 1"),
        ({"moe_layers": [0.5]}, "layers from 0 to 1"),
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
    assert again.guided_layers == (1,)
    assert again.vlm_config.text_config.hidden_size == 64


def test_the_base_configuration_is_copied_not_shared(vlm_config):
    config = MoonConfig.moon1(vlm_config, embedding_dim=16)
    config.vlm_config.text_config.vocab_size = 1
    assert vlm_config.text_config.vocab_size > 1


def test_the_preset_turns_every_layer_into_a_mixture_unless_told_otherwise(vlm_config):
    assert MoonConfig.moon1(vlm_config, embedding_dim=16).guided_layers == (0, 1)
    assert MoonConfig.moon1(vlm_config, embedding_dim=16, expert_routing="none").guided_layers == ()


def test_without_a_projection_the_vector_has_the_width_of_the_base(vlm_config):
    assert MoonConfig.moon1(vlm_config, embedding_dim=None).vector_size == 64
    assert MoonConfig.moon1(vlm_config, embedding_dim=16).vector_size == 16
