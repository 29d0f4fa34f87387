"""Two runs in one folder: the second is refused while the first lives, and takes its place when it is gone."""

import json
import multiprocessing
import os
import signal
import socket
import time
from types import SimpleNamespace

import pytest
from folder_holder import holding
from launched import ROOT, Launched, run
from tiny_runs import write_recipe

from moon3.__main__ import main as moon3
from product_data.folder_lock import Owner
from training.recipe.files import RecipeError
from training.runs.lock import LOCK_FILE, alone_in
from training.train import main

ONE = SimpleNamespace(process_index=0, world_size=1, device="cpu")
FORK = multiprocessing.get_context("fork")


@pytest.fixture
def holder(tmp_path):
    with holding(tmp_path / "run", LOCK_FILE) as process:
        yield process


@pytest.fixture
def recipe(tiny_moon, tmp_path):
    values = {"catalogue": {"products": 24, "image_size": 64, "progress": False}, "query_mix": {"t": 1}}
    values |= {"base": str(tiny_moon("qwen3_vl")), "product_mix": {"t": 1}, "max_steps": 1}
    return str(write_recipe(tmp_path / "recipe.yaml", **values))


def lock_of(folder, **changes):
    folder.mkdir(exist_ok=True)
    owner = {**vars(Owner.this_process()), **changes}
    (folder / LOCK_FILE).write_text(json.dumps(owner))


def test_a_second_run_is_refused_while_the_first_lives_and_goes_on_once_it_is_gone(holder, recipe, tmp_path, capsys):
    run = tmp_path / "run"
    assert main([recipe, "--output_dir", str(run)]) == 2
    said = capsys.readouterr().err
    assert f"{run} is in use by process {holder.pid} of this machine since " in said
    assert "expected another folder, or the same command after that process has ended, which then resumes" in said
    assert [path.name for path in run.iterdir()] == [LOCK_FILE]
    os.kill(holder.pid, signal.SIGKILL)
    while Owner(**json.loads((run / LOCK_FILE).read_text())).may_run(
        Owner.this_process()
    ):  # dead, and not yet waited for
        time.sleep(0.02)
    assert main([recipe, "--output_dir", str(run)]) == 0
    assert not (run / LOCK_FILE).exists()
    assert (run / "finished.json").is_file()


def test_a_lock_of_another_machine_is_refused_with_what_to_do(tmp_path):
    lock_of(tmp_path, host="gpu7", process=4242)
    here = socket.gethostname()
    with (
        pytest.raises(
            RecipeError,
            match=rf"in use by process 4242 of the machine gpu7 since .*, which {here} cannot check; expected another "
            rf"folder. If that process has ended, delete {tmp_path}/{LOCK_FILE} and run the same command again",
        ),
        alone_in(tmp_path, ONE),
    ):
        pass
    (tmp_path / LOCK_FILE).unlink()
    with alone_in(tmp_path, ONE):
        assert json.loads((tmp_path / LOCK_FILE).read_text())["process"] == os.getpid()
    assert not (tmp_path / LOCK_FILE).exists()


def test_one_process_does_not_run_twice_in_one_folder_either(tmp_path):
    with (
        alone_in(tmp_path, ONE),
        pytest.raises(RecipeError, match=f"in use by process {os.getpid()} of this machine"),
        alone_in(tmp_path, ONE),
    ):
        pass
    with alone_in(tmp_path, ONE):
        pass


TWO = """
import json, os, pathlib, sys
import torch.distributed as dist
from types import SimpleNamespace
from training.recipe.files import RecipeError
from training.runs.lock import alone_in

dist.init_process_group("gloo")
folder, rank = pathlib.Path(sys.argv[1]), dist.get_rank()
processes = [None, None]
dist.all_gather_object(processes, os.getpid())
try:
    with alone_in(folder, SimpleNamespace(process_index=rank, world_size=2, device="cpu")):
        owner = json.loads((folder / "run.lock").read_text())["process"]
        dist.barrier()
    said = "first" if owner == processes[0] else f"{owner} of {processes}"
except RecipeError as error:
    said = str(error)
(pathlib.Path(sys.argv[2]) / f"{rank}.txt").write_text(said)
dist.destroy_process_group()
"""


def test_of_two_processes_that_train_together_the_first_holds_the_lock(tmp_path):
    (tmp_path / "script.py").write_text(TWO)
    run(tmp_path / "script.py", tmp_path / "run", tmp_path, processes=2)
    assert [(tmp_path / f"{rank}.txt").read_text() for rank in (0, 1)] == ["first", "first"]
    assert not (tmp_path / "run" / LOCK_FILE).exists()


def test_two_processes_that_train_together_are_refused_together(holder, recipe, tmp_path):
    with Launched(ROOT / "training" / "train.py", recipe, "--output_dir", tmp_path / "run", processes=2) as training:
        assert all(training.finish())
        assert f"train: {tmp_path / 'run'} is in use by process {holder.pid}" in training.said()
    assert [path.name for path in (tmp_path / "run").iterdir()] == [LOCK_FILE]


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("mine")
    with (
        pytest.raises(
            RecipeError, match="output_dir: .*Not a directory.*; expected a folder that can be created and written"
        ),
        alone_in(tmp_path / "file" / "run", ONE),
    ):
        pass


def test_a_second_mining_of_one_folder_is_refused(holder, tmp_path, capsys):
    arguments = ["--model", "nowhere", "--data", "nowhere", "--output", str(tmp_path / "run")]
    assert moon3(["mine", *arguments]) == 2
    assert f"moon3 mine: {tmp_path / 'run'} is in use by process {holder.pid}" in capsys.readouterr().err


def test_a_second_shop_of_one_folder_is_refused(holder, tmp_path, capsys):
    assert moon3(["shop", "--products", str(tmp_path / "products.csv"), "--output", str(tmp_path / "run")]) == 2
    assert f"moon3 shop: {tmp_path / 'run'} is in use by process {holder.pid}" in capsys.readouterr().err
