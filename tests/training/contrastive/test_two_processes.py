"""A training by two processes through the script itself: mixed batches, the queue, and a resumption."""

import shutil
from pathlib import Path

import torch
import yaml
from launched import run_twice
from safetensors.torch import load_file

from product_data.atomic_files import read_lines
from product_data.catalogue.making import write_catalogue

ROOT = Path(__file__).resolve().parents[3]


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


def train(*arguments: str) -> str:
    return run_twice(ROOT / "training" / "train.py", *arguments)


def without_speed(output_dir: Path) -> list[dict]:
    lines = read_lines(output_dir / "metrics.jsonl")
    return [{key: value for key, value in line.items() if key != "items_per_second"} for line in lines]


def test_two_processes_train_and_resume_exactly(tiny_moon, tmp_path):
    write_catalogue(tmp_path / "shop", products=60, image_size=64, progress=False)
    recipe, run = tmp_path / "recipe.yaml", tmp_path / "run"
    values = {
        "base": str(tiny_moon("qwen3_vl")),
        "data": [str(tmp_path / "shop")],
        # One pair a process, of a picture or of words alone: often only one of the two sees the vision tower.
        "query_mix": {"i": 1, "t": 1},
        "product_mix": {"mm": 1, "t": 2},
        "per_device_train_batch_size": 1,
        "queue_steps": 2,
        "max_image_tokens": 4,
        "max_steps": 4,
        "learning_rate": 0.001,
        "logging_steps": 1,
        "save_steps": 2,
        "save_total_limit": 4,
        "disable_tqdm": True,
    }
    recipe.write_text(yaml.safe_dump(values))
    train(str(recipe), "--output_dir", str(run))
    whole, first = load_file(run / "final" / "model.safetensors"), without_speed(run)
    assert [line["step"] for line in first] == [1, 2, 3, 4]
    states = [torch.load(run / "checkpoint-4" / f"contrastive_state_{rank}.pt", weights_only=True) for rank in (0, 1)]
    for mine, other in zip(*(state["queue"]["steps"] for state in states), strict=True):
        assert torch.equal(mine["product_C"], other["product_C"])
        assert torch.equal(mine["vector_CD"], other["vector_CD"])
        assert len(mine["product_C"]) == 4  # a positive and a hard negative from each process
    for leftover in (run / "final", run / "checkpoint-4"):
        shutil.rmtree(leftover)
    (run / "finished.json").unlink()
    assert f"resuming from {run / 'checkpoint-2'}" in train(str(recipe), "--output_dir", str(run))
    again = load_file(run / "final" / "model.safetensors")
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    assert without_speed(run) == first


def test_the_clock_of_the_first_process_ends_the_measurement_for_both(tmp_path):
    script = tmp_path / "clocks.py"
    script.write_text(CLOCKS)
    run_twice(script, str(tmp_path))
    first, second = (int((tmp_path / f"{rank}.txt").read_text()) for rank in (0, 1))
    assert first == second > 8
