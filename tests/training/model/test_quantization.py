"""A base in 4 or 8 bits under adapters, as far as it goes without a GPU: what is refused, and how the base is asked for."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from peft import PeftModel
from safetensors.torch import load_file

from modeling_moon import MoonModel
from processing_moon import MoonProcessor
from training.assembly import starting_model
from training.assembly.starting_model import load_start, make_trainable
from training.assembly.trained_model import save_trained, whole_trained
from training.model import quantization
from training.model.quantization import WHOLE_MODULES, check_quantization, quantization_config
from training.recipe.arguments import RecipeError, parse_recipe
from training.runs.run import Run


@pytest.fixture
def on_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(quantization, "is_bitsandbytes_available", lambda: True)


def asked(**changes):
    return SimpleNamespace(**{"quantization": "4bit", "lora": {"r": 2}, "architecture": "moon"} | changes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lora": None}, "quantization: found 4bit without lora; expected lora"),
        ({"architecture": "dual_tower"}, "quantization: found 4bit with architecture dual_tower; expected moon"),
    ],
)
def test_what_cannot_be_trained_quantised_is_refused(on_gpu, change, message):
    check_quantization(asked())
    check_quantization(asked(quantization="none", **change))
    with pytest.raises(ValueError, match=message):
        check_quantization(asked(**change))


def test_a_machine_without_a_gpu_or_without_bitsandbytes_is_told_so(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(
        ValueError, match="quantization: found 8bit on a machine without a CUDA GPU; expected a CUDA GPU"
    ):
        check_quantization(asked(quantization="8bit"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(quantization, "is_bitsandbytes_available", lambda: False)
    with pytest.raises(ValueError, match="found 4bit without the package bitsandbytes; run pip install bitsandbytes"):
        check_quantization(asked())


def test_four_bits_are_nf4_with_double_quantisation_computing_in_bfloat16():
    found = quantization_config("4bit")
    assert (found.load_in_4bit, found.bnb_4bit_quant_type, found.bnb_4bit_use_double_quant) == (True, "nf4", True)
    assert found.bnb_4bit_compute_dtype == torch.bfloat16
    assert found.llm_int8_skip_modules == list(WHOLE_MODULES)
    eight = quantization_config("8bit")
    assert (eight.load_in_8bit, eight.load_in_4bit) == (True, False)
    assert eight.llm_int8_skip_modules == list(WHOLE_MODULES)
    assert quantization_config("none") is None


def recipe_of(folder, tmp_path, **values):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({"base": str(folder), "lora": {"r": 2}, "max_steps": 1, **values}))
    return parse_recipe([str(path), "--output_dir", str(tmp_path / "run")])


def test_a_recipe_reports_the_refusal(tiny_moon, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RecipeError, match="quantization: found 4bit on a machine without a CUDA GPU"):
        recipe_of(tiny_moon("qwen3_vl"), tmp_path, quantization="4bit")
    with pytest.raises(RecipeError, match="quantization: found '2bit'; expected none, 8bit or 4bit"):
        recipe_of(tiny_moon("qwen3_vl"), tmp_path, quantization="2bit")


def test_the_base_is_loaded_quantised_and_what_was_learned_is_saved_over_the_whole_one(
    tiny_moon, tmp_path, monkeypatch
):
    folder, loaded = tiny_moon("qwen3_vl"), []
    recipe = recipe_of(folder, tmp_path)
    object.__setattr__(recipe.model, "quantization", "4bit")  # which the recipe refuses on a machine without a GPU
    load = MoonModel.from_pretrained

    def without_bitsandbytes(path, **options):
        loaded.append(options)
        return load(path, attn_implementation=options["attn_implementation"], dtype=torch.float32)

    monkeypatch.setattr(starting_model.MoonModel, "from_pretrained", without_bitsandbytes)
    model, _ = load_start(Run(recipe), Path(folder), on_gpu=False)
    assert loaded[0]["quantization_config"].load_in_4bit
    assert loaded[0]["device_map"] == {"": recipe.training.device}
    assert loaded[0]["dtype"] == torch.bfloat16
    learner = make_trainable(model, recipe.model)
    for name, parameter in learner.named_parameters():
        if "lora_B" in name:
            torch.nn.init.ones_(parameter)
    accelerator = SimpleNamespace(unwrap_model=lambda model, keep_fp32_wrapper: model)
    whole = whole_trained(Run(recipe), SimpleNamespace(model=learner, accelerator=accelerator), Path(folder))
    assert isinstance(whole, PeftModel)
    assert whole is not learner
    assert "quantization_config" not in loaded[1]
    for name, parameter in learner.named_parameters():
        assert torch.equal(parameter, whole.get_parameter(name)), name
    save_trained(whole, MoonProcessor.from_pretrained(folder), tmp_path / "final", Path(folder))
    saved, before = (load_file(place / "model.safetensors") for place in (tmp_path / "final", Path(folder)))
    changed = {name.split(".")[-2] for name in saved if name in before and not torch.equal(saved[name], before[name])}
    assert changed == {"q_proj", "k_proj", "v_proj", "o_proj"}
