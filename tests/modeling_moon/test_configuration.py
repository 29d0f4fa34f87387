"""MoonConfig refuses early and says what it accepts."""

import json

import pytest
from transformers import AutoConfig, CLIPConfig
from transformers.testing_utils import CaptureLogger
from transformers.utils import logging

from modeling_moon import MoonConfig

LOGGER = logging.get_logger("modeling_moon.configuration_moon")


@pytest.fixture
def vlm_config(tiny_base):
    return AutoConfig.from_pretrained(tiny_base("qwen3_vl"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"redout": "mean"}, "no argument 'redout'; did you mean 'readout'"),
        ({"readout": "max"}, "readout='max' is not known; expected one of mean, emb, last"),
        ({"readout": "emb"}, "needs emb_token_id"),
        ({"expert_routing": "switch"}, "expected one of none, guided, modality"),
        ({"embedding_dim": 65}, "1 to the base's width 64"),
        ({"embedding_dim": 0}, "embedding_dim=0"),
        ({"embedding_dim": "32"}, "embedding_dim='32'; expected a whole number"),
        ({"num_experts": True}, "num_experts=True; expected a whole number"),
        ({"moe_layers": [True]}, "whole numbers from 0 to 1"),
        ({"objectives": "tim"}, "expected different names"),
        ({"emb_token_id": 10**6}, "emb_token_id=1000000; expected an id below"),
        ({"fire_vision_blocks": [0]}, "fire_vision_blocks without fire_layers"),
        ({"num_experts": 2}, "leaves no free expert"),
        ({"num_experts_per_token": 0}, "expected 1 to 2"),
        ({"num_experts": 6, "num_experts_per_token": 5}, "expected 1 to 4"),
        ({"expert_routing": "modality", "num_experts": 3, "num_experts_per_token": 4}, "expected 1 to 3"),
        ({"expert_routing": "modality", "objectives": ["t", "t"]}, "expected different names"),
        ({"expert_routing": "modality", "objectives": []}, "expected different names"),
        ({"moe_layers": [2]}, "whole numbers from 0 to 1"),
        ({"moe_layers": [0.5]}, "whole numbers from 0 to 1"),
        (
            {"matryoshka_dims": [16, 33]},
            r"matryoshka_dims=\[16, 33\]; expected None or a list of whole numbers from 1 to 32",
        ),
        ({"fire_layers": [-1]}, "fire_layers.*from 0 to 1"),
        ({"fire_layers": [0], "fire_rank": 0}, "fire_rank=0; expected 1 or more"),
        ({"fire_layers": [0], "fire_vision_blocks": [2]}, "fire_vision_blocks.*from 0 to 1"),
        ({"fusion": True}, "needs title_start_token_id"),
        ({"fusion": "maybe"}, "fusion='maybe'; expected True or False"),
        ({"fusion_source": "vision"}, "fusion_source='vision' is not known; expected one of states, raw"),
        ({"fusion_source": "raw"}, "fusion_source='raw' without fusion; expected fusion=True"),
        ({"fusion": True, "fusion_heads": 7}, "a divisor of the base's width 64"),
        ({"title_start_token_id": 3}, "title_start_token_id and title_end_token_id go together"),
        ({"max_reasoning_tokens": 0}, "max_reasoning_tokens=0; expected 1 or more, or None"),
        ({"max_reasoning_tokens": 8}, "found readout='mean'; expected 'emb'"),
        ({"max_reasoning_tokens": 8, "readout": "emb", "emb_token_id": 9}, "needs think_start_token_id"),
        ({"category_start_token_id": 3}, "go together"),
        ({"vlm_config": CLIPConfig()}, "model type 'clip'; expected one of qwen3_vl, qwen2_5_vl"),
        ({"vlm_config": {"hidden_size": 3}}, "model type None"),
        ({"unsloth_version": "1"}, "no argument 'unsloth_version'$"),
        ({"hidden_size": 65}, "hidden_size=65; expected 64, which follows from the other arguments"),
        ({"text_config": {"vocab_size": 7}}, "text_config differs from that of vlm_config"),
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


def written(config, folder, **more):
    """A folder whose config.json another tool has added keys to."""
    config.save_pretrained(folder)
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | more))
    return folder


@pytest.mark.parametrize("read", [AutoConfig.from_pretrained, MoonConfig.from_pretrained])
def test_keys_of_other_tools_are_kept_and_saved_again(vlm_config, tmp_path, read):
    foreign = {"unsloth_version": "2", "pad_token_id": 3, "compression": {"bits": 4}, "eos_token_id": [1, 2]}
    config = read(written(MoonConfig.moon1(vlm_config, embedding_dim=16), tmp_path / "first", **foreign))
    config.save_pretrained(tmp_path / "second")
    again = json.loads((tmp_path / "second" / "config.json").read_text())
    assert {name: again[name] for name in foreign} == foreign
    assert read(tmp_path / "second").compression == {"bits": 4}
    assert MoonConfig.from_json_file(tmp_path / "second" / "config.json").unsloth_version == "2"


def test_foreign_keys_are_named_once_with_the_key_that_may_be_meant(vlm_config, tmp_path):
    folder = written(MoonConfig.moon1(vlm_config, embedding_dim=16), tmp_path, redout="emb", top_k=7)
    with CaptureLogger(LOGGER) as heard:
        config = MoonConfig.from_pretrained(folder)
        MoonConfig.from_pretrained(folder)
    assert heard.out.count("keys that Moon does not read: 'redout'; did you mean 'readout'?") == 1
    assert heard.out.count("settings of generation: 'top_k'") == 1
    assert (config.readout, config.redout, hasattr(config, "top_k")) == ("mean", "emb", False)
    config.save_pretrained(tmp_path)


def test_what_trainers_set_is_read_without_a_warning(vlm_config, tmp_path):
    config = MoonConfig.moon1(vlm_config, embedding_dim=16)
    assert config.keeps_cache is None
    config.use_cache = False
    config.get_text_config().pad_token_id = 3
    with CaptureLogger(LOGGER) as heard:
        config.save_pretrained(tmp_path)
        again = AutoConfig.from_pretrained(tmp_path)
    assert heard.out == ""
    assert (again.keeps_cache, again.text_config.pad_token_id) == (False, 3)
    assert MoonConfig.moon1(vlm_config, embedding_dim=16, use_cache=False).keeps_cache is False


def test_a_file_that_contradicts_its_base_is_refused(vlm_config, tmp_path):
    config = MoonConfig.moon1(vlm_config, embedding_dim=16)
    assert AutoConfig.from_pretrained(written(config, tmp_path / "same", hidden_size=64)).hidden_size == 64
    with pytest.raises(ValueError, match="hidden_size=65; expected 64"):
        AutoConfig.from_pretrained(written(config, tmp_path / "other", hidden_size=65))


def test_what_is_the_bases_can_be_set(tiny_base, tmp_path):
    for backbone in ("qwen3_vl", "qwen2_5_vl"):
        base = AutoConfig.from_pretrained(tiny_base(backbone))
        assert base.tie_word_embeddings
        MoonConfig.moon1(base, embedding_dim=16).save_pretrained(tmp_path / backbone)
        changed = {"tie_word_embeddings": False, "vocab_size": 500, "image_token_id": 7}
        config = MoonConfig.from_pretrained(tmp_path / backbone, **changed, vision_config={"depth": 3})
        config.text_config = config.text_config
        config.save_pretrained(tmp_path / "again")
        for one in (config, AutoConfig.from_pretrained(tmp_path / "again")):
            assert {name: getattr(one, name) for name in changed} == changed
            assert (one.vlm_config.text_config.vocab_size, one.vision_config.depth) == (500, 3)
        in_code = MoonConfig.moon1(base, embedding_dim=16, tie_word_embeddings=False, vocab_size=500)
        assert (in_code.tie_word_embeddings, in_code.vocab_size) == (False, 500)


def test_a_dictionary_says_what_other_libraries_look_for_and_reads_back(vlm_config, tmp_path):
    config = MoonConfig.moon1(vlm_config, embedding_dim=16)
    content = config.to_dict()
    assert content["tie_word_embeddings"] is True
    assert content["text_config"]["num_hidden_layers"] == config.num_hidden_layers == 2
    assert MoonConfig(**content).to_dict() == content == MoonConfig.from_dict(content).to_dict()
    config.to_json_file(tmp_path / "whole.json", use_diff=False)
    assert MoonConfig.from_json_file(tmp_path / "whole.json").to_dict() == content
    config.save_pretrained(tmp_path)
    assert not {"text_config", "tie_word_embeddings"} & set(json.loads((tmp_path / "config.json").read_text()))
