"""A loss or a gradient that is NaN or infinite ends a training before any weight is spoilt, and names the batch."""

import json
import math

import pytest
from safetensors.torch import load_file
from tiny_runs import assert_same_weights, write_recipe

from product_data.atomic_files import read_lines
from training.losses.dual_alignment import DualAlignmentLoss
from training.runs.folder import RunFolder, is_complete
from training.train import main

pytestmark = pytest.mark.usefixtures("one_thread")
FAULTS = {
    "a loss that is NaN": ("loss", "nan", lambda loss: loss * math.nan),
    "a loss that is infinite": ("loss", "inf", lambda loss: loss * math.inf),
    "a gradient that is NaN": ("gradient's norm", "nan", lambda loss: loss + (0 * loss).sqrt()),
}


@pytest.fixture(scope="module")
def recipe(tiny_moon, tmp_path_factory):
    values = {"gradient_accumulation_steps": 2, "queue_steps": 2, "save_steps": 1, "save_total_limit": 4}
    return write_recipe(tmp_path_factory.mktemp("recipe") / "tiny.yaml", base=str(tiny_moon("qwen3_vl")), **values)


@pytest.fixture(scope="module")
def uninterrupted(recipe, tmp_path_factory):
    output_dir = tmp_path_factory.mktemp("runs") / "uninterrupted"
    assert main([str(recipe), "--output_dir", str(output_dir)]) == 0
    return output_dir


def files_of(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "fault",
    ["a loss that is NaN", pytest.param("a loss that is infinite", marks=pytest.mark.slow), "a gradient that is NaN"],
)
def test_training_stops_names_the_batch_and_leaves_the_last_good_checkpoint(
    fault, recipe, uninterrupted, tmp_path, capsys, monkeypatch
):
    what, value, spoil = FAULTS[fault]
    run, calls, kept = tmp_path / "run", [], {}
    forward = DualAlignmentLoss.forward

    def faulty(self, *arguments, **options):
        parts = forward(self, *arguments, **options)
        calls.append(1)
        if len(calls) < 6:  # the second half of the third step
            return parts
        kept.update(files_of(run / "checkpoint-2"))
        return {**parts, "loss": spoil(parts["loss"])}

    with monkeypatch.context() as patch:
        patch.setattr(DualAlignmentLoss, "forward", faulty)
        assert main([str(recipe), "--output_dir", str(run)]) == 3
    file = run / "nonfinite_batch_0.json"
    message = capsys.readouterr().err
    assert f"the {what} is {value} at step 2; " in message
    assert str(file) in message
    found = json.loads(file.read_text())
    assert (found["step"], found[what]) == (2, value)
    assert len(found["items"]) == (2 if what == "loss" else 4)
    assert all(len(names) == 2 and all(names) for names in found["items"])
    assert [path.name for path in RunFolder(run).checkpoints()] == ["checkpoint-1", "checkpoint-2"]
    assert is_complete(run / "checkpoint-2")
    assert files_of(run / "checkpoint-2") == kept
    assert all(tensor.isfinite().all() for tensor in load_file(run / "checkpoint-2" / "model.safetensors").values())
    assert not (run / "final").exists()
    assert main([str(recipe), "--output_dir", str(run)]) == 0
    assert f"resuming from {run / 'checkpoint-2'}" in capsys.readouterr().out
    assert_same_weights(uninterrupted, run)
    assert [line["step"] for line in read_lines(run / "metrics.jsonl")] == [1, 2, 3, 4]
