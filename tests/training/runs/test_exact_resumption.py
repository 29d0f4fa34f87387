"""A training killed with SIGKILL and started again equals the uninterrupted one, bit by bit."""

import json
import random
import signal
from pathlib import Path

import pytest
import torch
import yaml
from launched import Launched
from tiny_runs import assert_same_weights, losses, write_recipe

from training.runs.folder import RunFolder, is_complete
from training.train import main

pytestmark = [pytest.mark.lowest, pytest.mark.usefixtures("one_thread")]
STEPS = 9
# Runs the training with every file of a checkpoint written slowly, so that a kill can fall into a save.
SLOW_SAVES = """
import sys, time
import torch
save = torch.save
def slow_save(*arguments, **options):
    save(*arguments, **options)
    time.sleep(0.5)
torch.save = slow_save
torch.set_num_threads(1)
from training.train import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def recipe(tiny_moon, tmp_path_factory):
    return write_recipe(
        tmp_path_factory.mktemp("recipe") / "tiny.yaml",
        base=str(tiny_moon("qwen3_vl")),
        query_mix={"i": 1, "t": 1, "mm": 1},
        queue_steps=3,
        max_tokens=80,
        max_steps=STEPS,
        per_device_train_batch_size=3,
        gradient_accumulation_steps=2,
        logging_steps=2,
        save_steps=3,
        save_total_limit=2,
    )


def run_here(recipe: Path, output_dir: Path) -> int:
    return main([str(recipe), "--output_dir", str(output_dir)])


@pytest.fixture(scope="module")
def uninterrupted(recipe, tmp_path_factory):
    output_dir = tmp_path_factory.mktemp("runs") / "uninterrupted"
    assert run_here(recipe, output_dir) == 0
    return output_dir


def killed(recipe: Path, output_dir: Path, when) -> None:
    """Start the training in a process of its own and send SIGKILL as soon as `when()` holds."""
    script = output_dir.with_suffix(".py")
    script.write_text(SLOW_SAVES)
    with Launched(script, recipe, "--output_dir", output_dir) as training:
        training.wait_for(when)
        training.kill()
        assert training.finish() == [-signal.SIGKILL]


def assert_same_run(one: Path, two: Path) -> None:
    assert losses(one) == losses(two)
    assert [line["step"] for line in losses(one)] == [2, 4, 6, 8]
    assert_same_weights(one, two)
    shortened = [(run / "shortened.jsonl").read_text() for run in (one, two)]
    assert shortened[0] == shortened[1] != ""
    last = f"checkpoint-{STEPS}"
    states = [torch.load(run / last / "contrastive_state_0.pt", weights_only=True) for run in (one, two)]
    assert len(states[0]["queue"]["steps"]) == 3
    for left, right in zip(states[0]["queue"]["steps"], states[1]["queue"]["steps"], strict=True):
        assert all(torch.equal(left[name], right[name]) for name in left)
    watched = [state["drift"]["watched"] for state in states]
    assert watched[0]["age"] == watched[1]["age"]
    assert torch.equal(watched[0]["vector_MD"], watched[1]["vector_MD"])
    assert all(torch.equal(watched[0]["inputs"][name], watched[1]["inputs"][name]) for name in watched[0]["inputs"])
    apart = {"queue": None, "drift": None}
    assert {**states[0], **apart} == {**states[1], **apart}
    moments = [torch.load(run / last / "optimizer.pt", weights_only=True)["state"] for run in (one, two)]
    assert all(torch.equal(moments[0][key]["exp_avg_sq"], moments[1][key]["exp_avg_sq"]) for key in moments[0])


@pytest.mark.slow
def test_killed_between_saves_and_resumed_equals_uninterrupted(recipe, uninterrupted, tmp_path, capsys):
    output_dir = tmp_path / "run"
    metrics = output_dir / "metrics.jsonl"
    killed(recipe, output_dir, lambda: metrics.is_file() and '"step": 4' in metrics.read_text())
    assert RunFolder(output_dir).last_good_checkpoint() == output_dir / "checkpoint-3"
    assert run_here(recipe, output_dir) == 0
    assert "resuming from" in capsys.readouterr().out
    assert_same_run(uninterrupted, output_dir)


@pytest.mark.slow
def test_killed_at_a_random_step_and_resumed_equals_uninterrupted(recipe, uninterrupted, tmp_path):
    output_dir = tmp_path / "run"
    metrics = output_dir / "metrics.jsonl"
    step = random.SystemRandom().choice((2, 4, 6))
    print(f"killed as soon as step {step} is logged")  # shown where the test fails
    killed(recipe, output_dir, lambda: metrics.is_file() and f'"step": {step}' in metrics.read_text())
    assert run_here(recipe, output_dir) == 0
    assert_same_run(uninterrupted, output_dir)


def test_killed_during_a_save_and_resumed_equals_uninterrupted(recipe, uninterrupted, tmp_path, capsys):
    output_dir = tmp_path / "run"
    half = output_dir / "checkpoint-6"
    killed(recipe, output_dir, lambda: (half / "optimizer.pt").is_file())
    assert half.is_dir()
    assert not is_complete(half)
    assert run_here(recipe, output_dir) == 0
    printed = capsys.readouterr().out
    assert f"{half}: removed, because its save was interrupted" in printed
    assert f"resuming from {output_dir / 'checkpoint-3'}" in printed
    assert_same_run(uninterrupted, output_dir)


def test_old_checkpoints_leave_and_the_last_good_one_stays(uninterrupted):
    assert [path.name for path in RunFolder(uninterrupted).checkpoints()] == ["checkpoint-6", "checkpoint-9"]
    assert all(is_complete(path) for path in RunFolder(uninterrupted).checkpoints())


def test_recipe_and_provenance_lie_beside_the_weights(uninterrupted):
    for folder in (uninterrupted, uninterrupted / "final", uninterrupted / "checkpoint-9"):
        stored = yaml.safe_load((folder / "resolved_recipe.yaml").read_text())
        assert (stored["seed"], stored["max_steps"], stored["temperature"]) == (42, STEPS, 0.05)
        facts = json.loads((folder / "provenance.json").read_text())
        assert facts["seed"] == 42
        assert {"torch", "transformers", "accelerate"} <= set(facts["versions"])
        assert "commit" in facts
        assert "command" in facts


def test_a_finished_run_says_so_and_changes_nothing(recipe, uninterrupted, capsys):
    before = (uninterrupted / "final" / "model.safetensors").stat().st_mtime_ns
    assert run_here(recipe, uninterrupted) == 0
    assert "this run is finished" in capsys.readouterr().out
    assert (uninterrupted / "final" / "model.safetensors").stat().st_mtime_ns == before


def test_another_recipe_in_the_same_folder_is_refused_by_its_keys(recipe, uninterrupted, capsys):
    assert main([str(recipe), "--output_dir", str(uninterrupted), "--learning_rate", "0.5", "--save_steps", "4"]) == 2
    message = capsys.readouterr().err
    assert "learning_rate: 0.001 → 0.5" in message
    assert "--overwrite" in message
    assert "save_steps" not in message
