"""The soak: moments are drawn in order, differences are found, and what cannot be run is refused. (The whole of it: streams.)"""

import random
import sys
import time
from pathlib import Path

import pyarrow.parquet
import pytest
import torch
from safetensors.torch import save_file
from table_files import write_table

from moon3.__main__ import main
from product_data.atomic_files import read_lines
from training.studies.soak import (
    Moment,
    Pace,
    Processes,
    SoakError,
    differing_losses,
    differing_weights,
    kill_once,
    logged_step,
    plan,
    write_shards,
)

PACE = Pace(5.0, 0.5, ("config.json", "optimizer.pt"), ("config.json", "model.safetensors"))


@pytest.mark.parametrize("seed", range(20))
def test_moments_follow_each_other_and_the_wanted_number_aims_at_saves(seed):
    moments = plan(10, 5, 2, PACE, random.Random(seed))
    assert moments == plan(10, 5, 2, PACE, random.Random(seed))
    kinds = [moment.kind for moment in moments]
    assert (len(kinds), kinds.count("save"), kinds.count("start"), kinds[-1]) == (10, 4, 1, "final")
    steps = [moment.step for moment in moments if moment.step]
    assert steps == sorted(set(steps))
    assert max(steps) <= 2 * 8
    assert all(
        moment.step % 2 == 0 and moment.file in PACE.checkpoint_files for moment in moments if moment.kind == "save"
    )
    assert {moment.kind for moment in plan(2, 1, 2, PACE, random.Random(seed))} == {"save", "step"}


def test_a_moment_has_come_when_its_file_is_there(tmp_path):
    saving, final, step = Moment("save", 2, "optimizer.pt"), Moment("final", file="a"), Moment("step", 3)
    assert not any(moment.is_reached(tmp_path) for moment in (saving, final, step))
    for folder, name in (("checkpoint-2", "optimizer.pt"), ("final.partial", "a")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).touch()
    (tmp_path / "metrics.jsonl").write_text('{"step": 2}\n{"step": 3}\n{"ste')
    assert logged_step(tmp_path) == 3
    assert all(moment.is_reached(tmp_path) for moment in (saving, final, step))


@pytest.fixture
def runs(tmp_path):
    for name in ("whole", "killed"):
        (tmp_path / name / "final").mkdir(parents=True)
        lines = [{"step": step, "loss": 1.0 / step, "items_per_second": random.random()} for step in (1, 2, 3)]
        write_table(tmp_path / name / "metrics.jsonl", lines)
        save_file({"a": torch.ones(3), "b": torch.zeros(2)}, tmp_path / name / "final" / "model.safetensors")
    return tmp_path / "whole", tmp_path / "killed"


def test_equal_runs_do_not_differ_whatever_their_speed(runs):
    whole, killed = runs
    assert differing_losses(whole, killed) == []
    assert differing_weights(whole / "final", killed / "final") == (2, [])


def test_one_bit_and_one_key_are_found(runs):
    whole, killed = runs
    text = (killed / "metrics.jsonl").read_text()
    (killed / "metrics.jsonl").write_text(text.replace('"loss": 0.5', '"loss": 0.5000000000000001'))
    (difference,) = differing_losses(whole, killed)
    assert difference == "step 2: loss 0.5000000000000001 ≠ 0.5"
    (killed / "metrics.jsonl").write_text(text + '{"step": 4, "loss": 1.0}\n')
    assert differing_losses(whole, killed)[0] == "step 4: loss 1.0 ≠ None"
    changed = torch.tensor([1.0, torch.nextafter(torch.tensor(1.0), torch.tensor(2.0)).item(), 1.0])
    for tensors, found in (
        ({"a": changed, "b": torch.zeros(2)}, "final: a: different values"),
        ({"a": torch.ones(3, dtype=torch.float64), "b": torch.zeros(2)}, "final: a: different values"),
        ({"a": torch.ones(3)}, "final: b: in only one of the runs"),
    ):
        save_file(tensors, killed / "final" / "model.safetensors")
        assert differing_weights(whole / "final", killed / "final")[1] == [found]
    (killed / "final" / "model.safetensors").unlink()
    assert differing_weights(whole / "final", killed / "final") == (
        0,
        ["final/model.safetensors: in only one of the runs"],
    )
    assert differing_weights(whole, killed) == (0, ["killed: no weights"])


def runs_still(pid):
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rsplit(")", 1)[1].split()[0] != "Z"


def test_killing_reaches_what_the_processes_started_and_a_training_that_ends_by_itself_is_told(tmp_path):
    program = (
        "import subprocess, time; print('started', subprocess.Popen(['sleep', '60']).pid, flush=True); time.sleep(60)"
    )
    log = tmp_path / "log.txt"
    with Processes([sys.executable, "-c", program], 2, log) as training:
        training.wait_for(lambda: log.read_text().count("\n") == 2)
        started = [int(line.split()[1]) for line in log.read_text().splitlines()]
        assert all(runs_still(pid) for pid in started)
    assert training.finish() == [-9, -9]
    time.sleep(0.2)
    assert not any(runs_still(pid) for pid in started)
    with pytest.raises(SoakError, match="ended before it could be killed:\n.*gone"):
        kill_once(Moment("step", 1), [sys.executable, "-c", "print('gone')"], 1, tmp_path, tmp_path / "other.txt")


def test_the_catalogue_becomes_shards_of_triplets(tmp_path):
    rows = pyarrow.parquet.read_table(write_shards(tmp_path / "shards", 30, 0)).to_pylist()
    assert len(rows) >= 80
    assert all(row["query"] or row["query_image"] for row in rows)
    assert all(row["doc_id"] != row["neg_id"] for row in rows)
    assert len(list((tmp_path / "shards").iterdir())) == 2


@pytest.mark.parametrize(("saves_again", "in_a_save"), [(False, False), (True, True)])
def test_what_an_earlier_kill_left_is_not_counted_as_this_kills_save(saves_again, in_a_save, tmp_path):
    half = tmp_path / "checkpoint-2"
    half.mkdir()
    (half / "config.json").touch()
    again = f"import shutil; shutil.rmtree({str(half)!r}); pathlib.Path({str(half)!r}).mkdir(); "
    program = "import pathlib, time; " + again * saves_again + "time.sleep(60)"
    command = [sys.executable, "-c", program]
    found = kill_once(Moment("start", seconds=1.5), command, 1, tmp_path, tmp_path / "log.txt")
    assert (found["in_a_save"], found["half_written"]) == (in_a_save, ["checkpoint-2"])
    assert found["last_good_checkpoint"] is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--kills", "2", "--saves", "2"], "expected 1 ≤ at-least-in-saves ≤ saves < kills"),
        (["--processes", "0"], "processes: found 0; expected at least 1"),
        (["--pause-seconds", "-1"], "pause-seconds: found -1.0; expected at least 0"),
    ],
)
def test_counts_that_cannot_be_are_refused(arguments, message, tmp_path, capsys):
    assert main(["soak", "nowhere.yaml", "--output", str(tmp_path / "out"), *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_recipe_that_cannot_be_run_and_a_folder_in_use_are_refused(tmp_path, capsys):
    assert main(["soak", "nowhere.yaml", "--output", str(tmp_path / "out")]) == 2
    assert "found no file" in capsys.readouterr().err
    (tmp_path / "out" / "notes.txt").write_text("mine")
    assert main(["soak", "nowhere.yaml", "--output", str(tmp_path / "out")]) == 2
    assert "expected a folder that is new or empty" in capsys.readouterr().err
    assert read_lines(tmp_path / "out" / "metrics.jsonl") == []
