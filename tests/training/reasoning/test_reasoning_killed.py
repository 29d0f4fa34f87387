"""A joint stage that is killed and started again ends as the one that was left alone."""

import signal

import pytest
import torch
import yaml
from launched import ROOT, Launched, run
from safetensors.torch import load_file

from product_data.atomic_files import read_lines

RECIPE = {
    "small_base": {"hidden_size": 64, "num_layers": 1, "vision_depth": 2, "vocab_size": 600},
    "preset": "moon3",
    "moon": {"embedding_dim": 32, "max_reasoning_tokens": 6},
    "stage": "grpo",
    "catalogue": {"products": 40, "image_size": 64},
    "max_image_tokens": 4,
    "rollouts": 2,
    "per_device_train_batch_size": 2,
    "queue_steps": 2,
    "max_steps": 9,
    "save_steps": 3,
    "logging_steps": 1,
    "completions_steps": 4,
    "learning_rate": 1.0e-3,
    "use_cpu": True,
    "disable_tqdm": True,
    "report_to": "none",
}
TRAIN = ROOT / "training" / "train.py"


def command(recipe, output, workers):
    count = ("--dataloader_num_workers", str(workers))
    return [TRAIN, recipe, "--output_dir", output, *count]


def steps(folder):
    lines = read_lines(folder / "metrics.jsonl") if (folder / "metrics.jsonl").is_file() else []
    return [{key: value for key, value in line.items() if key != "step_time"} for line in lines]


@pytest.mark.slow
def test_a_killed_joint_stage_with_workers_goes_on_exactly_and_as_one_without_them(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(RECIPE))
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run(*command(recipe, whole, 0))
    with Launched(*command(recipe, killed, 2)) as training:
        training.wait_for(lambda: len(steps(killed)) >= 5)
        training.kill()
        assert training.finish() == [-signal.SIGKILL]
    assert not (killed / "final").exists()
    run(*command(recipe, killed, 2))
    assert len(steps(whole)) == RECIPE["max_steps"]
    assert steps(killed) == steps(whole)
    ends = [load_file(folder / "final" / "model.safetensors") for folder in (whole, killed)]
    assert ends[0].keys() == ends[1].keys()
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())
    tables = [sorted((folder / "completions").iterdir()) for folder in (whole, killed)]
    assert [path.name for path in tables[0]] == ["step-000004.parquet", "step-000008.parquet"]
    assert [path.read_bytes() for path in tables[0]] == [path.read_bytes() for path in tables[1]]
