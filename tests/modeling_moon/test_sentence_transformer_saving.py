"""Saving through sentence-transformers: adapters are never lost, and nothing is read from where the model came from."""

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model, inject_adapter_in_model
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoModelForImageTextToText, GenerationConfig

import processing_moon  # noqa: F401 - registers the processor
from modeling_moon import MoonForConditionalGeneration
from training.model.checkpoint import save_moon

pytestmark = pytest.mark.lowest

WORDS = ["red running shoes", "a blue mug"]
MODELS = [("qwen3_vl", True, "moon1"), ("qwen2_5_vl", False, "moon3")]


def lora(**settings: Any) -> LoraConfig:
    return LoraConfig(r=4, target_modules=["q_proj", "v_proj"], **settings)


def add(encoder: SentenceTransformer) -> None:
    encoder.add_adapter(lora())


def add_named(encoder: SentenceTransformer) -> None:
    encoder.add_adapter(lora(), adapter_name="shop")


def add_to_experts(encoder: SentenceTransformer) -> None:
    encoder.add_adapter(lora(target_parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]))


def peft_model(encoder: SentenceTransformer) -> None:
    encoder[0].model = get_peft_model(encoder[0].model, lora())


def as_tutorials_write(encoder: SentenceTransformer) -> None:
    encoder[0].auto_model = get_peft_model(encoder[0].auto_model, lora())
    assert isinstance(encoder[0].model, PeftModel)
    assert set(encoder[0]._modules) == {"model"}


def in_place(encoder: SentenceTransformer) -> None:
    get_peft_model(encoder[0].model, lora())


def injected(encoder: SentenceTransformer) -> None:
    inject_adapter_in_model(lora(), encoder[0].model)


def teach(encoder: SentenceTransformer) -> np.ndarray:
    """Move the adapter; the vectors with it."""
    before = encoder.encode(WORDS)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    after = encoder.encode(WORDS)
    assert np.abs(after - before).max() > 0.05
    return after


def vectors(model: Any, encoder: SentenceTransformer) -> np.ndarray:
    with torch.no_grad():
        return getattr(model, "model", model)(
            **encoder[0].processor(records=[{"text": one} for one in WORDS])
        ).embeddings


@pytest.mark.parametrize("put_in", [add, add_named, add_to_experts, peft_model, as_tutorials_write, in_place, injected])
@pytest.mark.parametrize(("backbone", "tied", "preset"), MODELS)
def test_a_saved_adapter_comes_back_in_every_library(tiny_moon, tmp_path, backbone, tied, preset, put_in):
    source, out = tiny_moon(backbone, tie_word_embeddings=tied, preset=preset), tmp_path / "out"
    encoder = SentenceTransformer(str(source))
    put_in(encoder)
    expected = teach(encoder)
    encoder.save_pretrained(str(out))
    again = SentenceTransformer(str(out))
    np.testing.assert_allclose(again.encode(WORDS), expected, rtol=1e-5, atol=1e-6)
    for kind in (AutoModel, AutoModelForImageTextToText):
        np.testing.assert_allclose(vectors(kind.from_pretrained(out), encoder), expected, rtol=1e-5, atol=1e-6)
    alone = PeftModel.from_pretrained(AutoModel.from_pretrained(source), out)
    np.testing.assert_allclose(vectors(alone.get_base_model(), encoder), expected, rtol=1e-5, atol=1e-6)
    again.save(str(tmp_path / "twice"))
    twice = SentenceTransformer(str(tmp_path / "twice"))
    np.testing.assert_allclose(twice.encode(WORDS), expected, rtol=1e-5, atol=1e-6)
    assert set(twice.state_dict()) == set(again.state_dict())
    np.testing.assert_allclose(encoder.encode(WORDS), expected, rtol=1e-6, atol=1e-6)  # saving changed nothing


def test_the_weights_under_an_adapter_are_written_as_they_were(tiny_moon, tmp_path):
    source = tiny_moon("qwen3_vl", preset="moon3")
    encoder = SentenceTransformer(str(source))
    encoder.add_adapter(lora())
    teach(encoder)
    encoder.save_pretrained(str(tmp_path))
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (tmp_path / name).unlink()
    expected = MoonForConditionalGeneration.from_pretrained(source).state_dict()
    found = MoonForConditionalGeneration.from_pretrained(tmp_path).state_dict()
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def test_modules_saved_beside_an_adapter_come_back(tiny_moon, tmp_path):
    encoder = SentenceTransformer(str(tiny_moon("qwen3_vl")))
    encoder[0].model = get_peft_model(encoder[0].model, lora(modules_to_save=["projection"]))
    expected = teach(encoder)
    encoder.save_pretrained(str(tmp_path))
    np.testing.assert_allclose(SentenceTransformer(str(tmp_path)).encode(WORDS), expected, rtol=1e-5, atol=1e-6)


def test_what_is_pushed_to_the_hub_holds_the_adapter(tiny_moon, monkeypatch):
    pushed = []

    class Hub:
        def __init__(self, *args: Any, **kwargs: Any) -> None: ...

        def create_repo(self, **kwargs: Any) -> Any:
            return type("Repo", (), {"repo_id": "me/moon"})

        def upload_folder(self, folder_path: str, **kwargs: Any) -> Any:
            pushed.extend(os.listdir(folder_path))
            return type("Pushed", (), {"commit_url": "", "pr_url": ""})

        def create_branch(self, **kwargs: Any) -> None: ...

    monkeypatch.setattr("sentence_transformers.base.model.HfApi", Hub)
    encoder = SentenceTransformer(str(tiny_moon("qwen3_vl")))
    encoder.add_adapter(lora())
    encoder.push_to_hub("me/moon")
    assert {"adapter_config.json", "adapter_model.safetensors", "model.safetensors", "modules.json"} <= set(pushed)


def test_a_folder_keeps_no_adapter_of_an_earlier_save(tiny_moon, tmp_path):
    encoder = SentenceTransformer(str(tiny_moon("qwen3_vl")))
    plain = encoder.encode(WORDS)
    encoder[0].model = get_peft_model(encoder[0].model, lora())
    expected = teach(encoder)
    encoder.save_pretrained(str(tmp_path))
    encoder[0].model = encoder[0].model.merge_and_unload()
    encoder.save_pretrained(str(tmp_path))
    assert not list(tmp_path.glob("adapter*"))
    np.testing.assert_allclose(SentenceTransformer(str(tmp_path)).encode(WORDS), expected, rtol=1e-4, atol=1e-5)
    assert np.abs(expected - plain).max() > 0.05


def test_after_an_adapter_was_deleted_the_weights_under_it_are_saved(tiny_moon, tmp_path):
    encoder = SentenceTransformer(str(tiny_moon("qwen3_vl")))
    plain = encoder.encode(WORDS)
    encoder.add_adapter(lora())
    teach(encoder)
    encoder.delete_adapter("default")
    encoder.save_pretrained(str(tmp_path))
    np.testing.assert_allclose(SentenceTransformer(str(tmp_path)).encode(WORDS), plain, rtol=1e-5, atol=1e-6)


def test_adapters_that_a_checkpoint_cannot_hold_are_refused_before_anything_is_written(tiny_moon, tmp_path):
    source = str(tiny_moon("qwen3_vl"))
    several, merged, prompt = SentenceTransformer(source), SentenceTransformer(source), SentenceTransformer(source)
    several.add_adapter(lora(), adapter_name="a")
    several.add_adapter(lora(), adapter_name="b")
    merged[0].model = get_peft_model(merged[0].model, lora())
    merged[0].model.merge_adapter()
    tuning = PromptTuningConfig(num_virtual_tokens=2, num_layers=2, token_dim=64, num_attention_heads=4)
    tuning.num_transformer_submodules = 1
    prompt[0].model.peft_config = {"default": tuning}
    for encoder, message in (
        (several, r"2 adapters \(a, b\).*expected one"),
        (merged, "'default' is merged"),
        (prompt, "'default' is PROMPT_TUNING.*expected an adapter inside the layers"),
    ):
        with pytest.raises(ValueError, match=message):
            encoder.save_pretrained(str(tmp_path / "out"))
        assert not list((tmp_path / "out").glob("*.safetensors"))


@pytest.mark.parametrize("kind", [AutoModel, AutoModelForImageTextToText])
def test_a_model_is_not_saved_with_the_names_that_an_adapter_gave_its_weights(tiny_moon, tmp_path, kind):
    source = tiny_moon("qwen3_vl")
    adapted = get_peft_model(kind.from_pretrained(source), lora())
    with pytest.raises(
        ValueError, match=r"adapters wrap \d+ weights .*base_layer.* random after loading; expected save_pret"
    ):
        adapted.get_base_model().save_pretrained(tmp_path / "out")
    with pytest.raises(ValueError, match=r"adapters wrap \d+ weights.*expected the model that merge_and_unload"):
        save_moon(adapted, SentenceTransformer(str(source))[0].processor, tmp_path / "out", lm_head_from=source)
    assert not (tmp_path / "out").exists()
    adapted.save_pretrained(tmp_path / "adapter")
    assert {path.name for path in (tmp_path / "adapter").glob("adapter*")} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    adapted.merge_and_unload().save_pretrained(tmp_path / "whole")
    assert (tmp_path / "whole" / "model.safetensors").exists()


@pytest.mark.parametrize("kind", [AutoModel, AutoModelForImageTextToText])
def test_an_adapter_that_transformers_put_in_is_saved_by_itself(tiny_moon, tmp_path, kind):
    source = tiny_moon("qwen3_vl")
    encoder, model = SentenceTransformer(str(source)), kind.from_pretrained(source)
    model.add_adapter(lora())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter += 0.3
    model.save_pretrained(tmp_path)
    assert not list(tmp_path.glob("model*.safetensors"))
    np.testing.assert_allclose(
        vectors(kind.from_pretrained(tmp_path), encoder), vectors(model, encoder), rtol=1e-5, atol=1e-6
    )


def test_an_adapter_is_not_left_out_where_peft_is_missing(tiny_moon, tmp_path, monkeypatch):
    encoder = SentenceTransformer(str(tiny_moon("qwen3_vl")))
    encoder.add_adapter(lora())
    encoder.save_pretrained(str(tmp_path))
    monkeypatch.setattr(sys.modules[type(encoder[0]).__module__], "is_peft_available", lambda: False)
    with pytest.raises(ValueError, match="holds an adapter, which needs peft; install peft"):
        SentenceTransformer(str(tmp_path))


@pytest.mark.parametrize("shards", [False, True])
@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize(("backbone", "tied", "preset"), MODELS)
def test_an_encoder_is_saved_whole_after_its_source_has_gone(
    tiny_moon, tmp_path, monkeypatch, backbone, tied, preset, adapted, shards
):
    source = tmp_path / "source"
    shutil.copytree(tiny_moon(backbone, tie_word_embeddings=tied, preset=preset), source)
    whole = MoonForConditionalGeneration.from_pretrained(source)
    if not tied:
        whole.lm_head.weight.data += 1.0
    whole.generation_config = GenerationConfig(max_new_tokens=7, do_sample=True, top_k=3)
    (source / "model.safetensors").unlink()
    whole.save_pretrained(source, max_shard_size="100KB" if shards else "5GB")
    assert (source / "model.safetensors.index.json").exists() == shards
    monkeypatch.chdir(tmp_path)
    encoder = SentenceTransformer("source")
    if adapted:
        encoder.add_adapter(lora())
        teach(encoder)
    expected = encoder.encode(WORDS)
    shutil.rmtree(source)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    encoder.save_pretrained("saved")
    if preset == "moon3":
        assert encoder.encode(WORDS, reasoning="generate", thinking={"max_tokens": 3}).shape == (2, 32)
    np.testing.assert_allclose(SentenceTransformer("saved").encode(WORDS), expected, rtol=1e-5, atol=1e-6)
    writer = AutoModelForImageTextToText.from_pretrained("saved")
    assert torch.equal(writer.lm_head.weight, whole.lm_head.weight)
    assert (writer.generation_config.max_new_tokens, writer.generation_config.top_k) == (7, 3)
    assert json.loads(Path("saved/config.json").read_text())["architectures"] == ["MoonForConditionalGeneration"]


def test_tools_that_read_a_checkpoint_without_loading_it_see_that_it_takes_pictures(tiny_moon, tmp_path):
    """mteb takes the kinds among text, image, audio and video that `sentence_bert_config.json` names, else text alone."""
    source = tiny_moon("qwen3_vl")
    encoder = SentenceTransformer(str(source))
    encoder.save_pretrained(str(tmp_path))
    for folder in (source, tmp_path):
        stored = json.loads((folder / "sentence_bert_config.json").read_text())
        assert {"text", "image", "audio", "video"} & set(stored["modality_config"]) == {"text", "image"}
        assert {tuple(key.split("+")) if "+" in key else key for key in stored["modality_config"]} == {
            *encoder.modalities
        }
