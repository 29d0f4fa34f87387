"""A training by two processes through the script itself: mixed batches, the queue, and a resumption."""

import torch
from launched import ROOT, run, torchrun
from safetensors.torch import load_file
from tiny_runs import forget_after, losses, write_recipe

from product_data.catalogue.making import write_catalogue

TRAIN = ROOT / "training" / "train.py"
CLOCKS = """
import pathlib, sys, types
import torch.distributed as dist
from training.assembly.step_rate import StepClock

dist.init_process_group("gloo")
clock = StepClock(budget_seconds=0.0 if dist.get_rank() else 0.05)
args = types.SimpleNamespace(device="cpu", world_size=2)
control = types.SimpleNamespace(should_training_stop=False)
while not control.should_training_stop:
    clock.on_step_end(args, None, control)
pathlib.Path(sys.argv[1], f"{dist.get_rank()}.txt").write_text(str(len(clock.ends)))
dist.destroy_process_group()
"""


def test_two_processes_train_and_resume_exactly(tiny_moon, tmp_path):
    write_catalogue(tmp_path / "shop", products=60, image_size=64, progress=False)
    recipe, output = tmp_path / "recipe.yaml", tmp_path / "run"
    # One pair a process, of a picture or of words alone: often only one of the two sees the vision tower.
    mixes = {"query_mix": {"i": 1, "t": 1}, "product_mix": {"mm": 1, "t": 2}}
    tables = {"data": [str(tmp_path / "shop")], "catalogue": None, "per_device_train_batch_size": 1}
    write_recipe(recipe, base=str(tiny_moon("qwen3_vl")), queue_steps=2, save_total_limit=4, **tables, **mixes)
    torchrun(TRAIN, recipe, "--output_dir", output)
    whole, first = load_file(output / "final" / "model.safetensors"), losses(output)
    assert [line["step"] for line in first] == [1, 2, 3, 4]
    states = [
        torch.load(output / "checkpoint-4" / f"contrastive_state_{rank}.pt", weights_only=True) for rank in (0, 1)
    ]
    for mine, other in zip(*(state["queue"]["steps"] for state in states), strict=True):
        assert torch.equal(mine["product_C"], other["product_C"])
        assert torch.equal(mine["vector_CD"], other["vector_CD"])
        assert len(mine["product_C"]) == 4  # a positive and a hard negative from each process
    forget_after(output, 2)
    assert f"resuming from {output / 'checkpoint-2'}" in run(TRAIN, recipe, "--output_dir", output, processes=2)
    again = load_file(output / "final" / "model.safetensors")
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    assert losses(output) == first


def test_the_clock_of_the_first_process_ends_the_measurement_for_both(tmp_path):
    script = tmp_path / "clocks.py"
    script.write_text(CLOCKS)
    run(script, tmp_path, processes=2)
    first, second = (int((tmp_path / f"{rank}.txt").read_text()) for rank in (0, 1))
    assert first == second > 8
