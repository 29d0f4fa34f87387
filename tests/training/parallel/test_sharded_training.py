"""A training of two processes that hold a model in parts, through the script: killed, resumed, saved whole."""

import shutil
import sys

import pytest
import torch
import yaml
from launched import ROOT
from safetensors.torch import load_file
from sharded import NEEDS_FSDP, sharding_environment
from transformers import AutoModel

from product_data.catalogue.making import write_catalogue
from training.runs.resume import last_good_checkpoint
from training.studies.soak import Processes, differing_losses, differing_weights, logged_step

EXPERTS = {"r": 2, "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]}


def command(tmp_path, run, **values):
    recipe = {
        "data": [str(tmp_path / "shop")],
        # One pair a process, of a picture or of words alone: often only one of the two sees the vision tower.
        "query_mix": {"image": 1, "text": 1, "both": 1},
        "target_mix": {"both": 1, "text": 2},
        "per_device_train_batch_size": 1,
        "queue_steps": 2,
        "max_image_tokens": 4,
        "max_steps": 4,
        "learning_rate": 0.001,
        "logging_steps": 1,
        "save_steps": 2,
        "save_total_limit": 4,
        "disable_tqdm": True,
        "gradient_checkpointing": True,
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe | values))
    return [sys.executable, str(ROOT / "training" / "train.py"), str(path), "--output_dir", str(run)]


def finish(words, log):
    with Processes(words, 2, log) as training:
        assert training.finish() == [0, 0], training.last_words()


@NEEDS_FSDP
@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("FULL_STATE_DICT", {"dual_alignment": True, "gradient_accumulation_steps": 2}),
        ("SHARDED_STATE_DICT", {"lora": EXPERTS, "encode_chunk_size": 1}),
    ],
)
def test_a_killed_training_goes_on_exactly_and_its_model_is_saved_whole(tiny_moon, tmp_path, monkeypatch, kind, values):
    write_catalogue(tmp_path / "shop", products=60, image_size=64, progress=False)
    for name, value in sharding_environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("FSDP_STATE_DICT_TYPE", kind)
    folder = tiny_moon("qwen3_vl", trained=True)
    whole, killed, log = tmp_path / "whole", tmp_path / "killed", tmp_path / "log"
    finish(command(tmp_path, whole, base=str(folder), **values), log)
    words = command(tmp_path, killed, base=str(folder), **values)
    with Processes(words, 2, log) as training:
        training.wait_for(lambda: logged_step(killed) >= 3)
        training.kill()
    shutil.rmtree(killed / "checkpoint-4", ignore_errors=True)  # where the kill came late
    assert last_good_checkpoint(killed) == killed / "checkpoint-2"
    (killed / "finished.json").unlink(missing_ok=True)
    finish(words, log)
    assert f"resuming from {killed / 'checkpoint-2'}" in log.read_text()
    assert differing_losses(whole, killed) == []
    tensors, differences = differing_weights(whole / "final", killed / "final")
    assert (differences, tensors > 10) == ([], True)
    trained, before = load_file(killed / "final" / "model.safetensors"), load_file(folder / "model.safetensors")
    assert any(not torch.equal(trained[name], before[name]) for name in trained if name in before)
    loaded = AutoModel.from_pretrained(killed / "final")
    assert all(torch.equal(value, trained[f"model.{name}"]) for name, value in loaded.state_dict().items())
    if kind == "FULL_STATE_DICT":  # such a checkpoint is a model too, with its own code and name
        config = (killed / "checkpoint-4" / "config.json").read_text()
        assert '"MoonModel"' in config
        assert (killed / "checkpoint-4" / "modeling_moon.py").is_file()
        assert not list((killed / "checkpoint-4").glob("_fsdp*"))
        AutoModel.from_pretrained(killed / "checkpoint-4")
