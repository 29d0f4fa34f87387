"""The comparisons of training steps run on tiny sizes, agree before they are timed, and count memory to the byte."""

import json
import os
from dataclasses import replace

import pytest
import torch

from moon3.__main__ import main
from training.studies import speed
from training.studies.speed import COMPARISONS, OurStep, Sizes, TheirStep, peak_bytes, prepare, take_turns

TINY = {
    "batch_size": 4,
    "chunk_size": 2,
    "hidden_size": 64,
    "num_layers": 1,
    "queue_steps": 3,
    "loss_queries": 8,
}


@pytest.fixture
def in_this_process(monkeypatch):
    monkeypatch.setattr(speed, "_in_own_process", lambda function, *arguments: function(*arguments))


def test_every_comparison_writes_what_is_wanted_and_whether_it_is_met(tmp_path, in_this_process):
    output = tmp_path / "speed.json"
    options = [text for name, value in TINY.items() for text in (f"--{name}", str(value))]
    assert (
        main(["bench", "train", "--output", str(output), "--repeats", "1", *options, "--candidates", "256", "64"]) == 0
    )
    results = json.loads(output.read_text())
    assert set(results) == set(COMPARISONS)
    assert all("commit" in found["provenance"] and found["sizes"]["batch_size"] == 4 for found in results.values())
    cached = results["cached_loss"]
    assert cached["same"]["gradient_difference"] < 1e-4
    assert cached["items_per_second"]["met"] == (cached["items_per_second"]["ratio"] >= 1)
    memory = cached["peak_memory"]
    assert memory["ratio"] == memory["ours"]["tensor_bytes"] / memory["other"]["tensor_bytes"]
    assert results["queue_step"]["queued_per_query"] == TINY["queue_steps"]
    peaks = results["candidates_memory"]["peak_bytes"]
    assert peaks["streamed"]["256"] < peaks["plain"]["256"]


def test_both_steps_have_the_same_loss_and_gradient_and_one_that_differs_is_refused(tmp_path):
    sizes = replace(Sizes(), **TINY)
    prepare(tmp_path, sizes)
    ours, other = OurStep(tmp_path, sizes.chunk_size), TheirStep(tmp_path, sizes.chunk_size)
    before = [parameter.clone() for parameter in ours.model.parameters()]
    assert speed._agreement(ours, other)["loss_difference"] < 1e-5
    for step in (ours, other):
        step()
        changed = [not torch.equal(old, new) for old, new in zip(before, step.model.parameters(), strict=True)]
        assert sum(changed) > len(changed) / 2
    other.loss.scale = 10.0
    with pytest.raises(AssertionError, match="do not compute the same"):
        speed._agreement(ours, other)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU's allocator rounds sizes up")
def test_peak_memory_counts_what_is_alive_at_once_and_not_what_was_there_before():
    before = torch.ones(5000)

    def run():
        first = torch.empty(1000, dtype=torch.float32)
        del first
        second = torch.empty(3000, dtype=torch.float32)
        third = torch.empty(500, dtype=torch.float32)
        return len(second) + len(third) + len(before)

    assert peak_bytes(run) == 3500 * 4
    assert peak_bytes(run) == 3500 * 4


def test_sides_take_turns_in_going_first():
    calls = []
    found = take_turns(lambda: calls.append("ours"), lambda: calls.append("other"), 3)
    assert calls == ["ours", "other"] * 2 + ["other", "ours"] + ["ours", "other"]
    assert found["ratio_range"][0] <= found["ratio"] <= found["ratio_range"][1]
    with pytest.raises(ValueError, match="repeats: found 0"):
        take_turns(list, dict, 0)


def test_a_process_of_its_own_is_another_process():
    assert speed._in_own_process(os.getpid) != os.getpid()


def test_sizes_that_cannot_be_measured_are_refused(tmp_path, capsys):
    with pytest.raises(ValueError, match="batch_size: found 1"):
        Sizes(batch_size=1)
    assert main(["bench", "train", "--output", str(tmp_path / "speed.json"), "--candidates", "64", "256"]) == 2
    assert "each at least 1024" in capsys.readouterr().err
