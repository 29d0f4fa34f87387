"""A training of two processes that hold a model in parts, through the script: killed, resumed, saved whole."""

import shutil

import pytest
import torch
from launched import ROOT, Launched, run
from safetensors.torch import load_file
from sharded import NEEDS_FSDP, sharding_environment
from tiny_runs import write_recipe
from transformers import AutoModel

from product_data.catalogue.making import write_catalogue
from training.runs.folder import RunFolder
from training.studies.soak import differing_losses, differing_weights, logged_step

EXPERTS = {"r": 2, "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]}


def write(path, folder, **values):
    # One pair a process, of a picture or of words alone: often only one of the two sees the vision tower.
    mixes = {"query_mix": {"i": 1, "t": 1, "mm": 1}, "product_mix": {"mm": 1, "t": 2}}
    tables = {"data": [str(path.parent / "shop")], "catalogue": None, "per_device_train_batch_size": 1}
    more = {"queue_steps": 2, "save_total_limit": 4, "gradient_checkpointing": True}
    return write_recipe(path, base=str(folder), **mixes, **tables, **more, **values)


@NEEDS_FSDP
@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("FULL_STATE_DICT", {"dual_alignment": True, "gradient_accumulation_steps": 2}),
        ("SHARDED_STATE_DICT", {"lora": EXPERTS, "encode_chunk_size": 1}),
    ],
)
def test_a_killed_training_goes_on_exactly_and_its_model_is_saved_whole(tiny_moon, tmp_path, kind, values):
    write_catalogue(tmp_path / "shop", products=60, image_size=64, progress=False)
    sharding = sharding_environment() | {"FSDP_STATE_DICT_TYPE": kind}
    folder = tiny_moon("qwen3_vl", trained=True)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    command = [ROOT / "training" / "train.py", write(tmp_path / "recipe.yaml", folder, **values), "--output_dir"]
    run(*command, whole, processes=2, environment=sharding)
    with Launched(*command, killed, processes=2, environment=sharding) as training:
        training.wait_for(lambda: logged_step(killed) >= 3)
        training.kill()
    shutil.rmtree(killed / "checkpoint-4", ignore_errors=True)  # where the kill came late
    assert RunFolder(killed).last_good_checkpoint() == killed / "checkpoint-2"
    (killed / "finished.json").unlink(missing_ok=True)
    said = run(*command, killed, processes=2, environment=sharding)
    assert f"resuming from {killed / 'checkpoint-2'}" in said
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
