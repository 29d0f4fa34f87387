"""A disk that fills up while a training writes: it stops in a sentence, keeps the last good checkpoint, and goes on exactly."""

import errno
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from launched import ROOT, Launched
from safetensors.torch import save_file
from tiny_runs import assert_same_run, losses, write_recipe

from product_data.atomic_files import append_line, mend_lines, read_lines, written_whole
from training.runs.folder import RunFolder, is_complete, mark_complete
from training.runs.full_disk import DiskFullError, DiskWatch, check_space, is_disk_full
from training.train import main

pytestmark = pytest.mark.usefixtures("one_thread")
STEPS = 4
# What writes during a run, and the file whose writing is to fail; the names of files are arguments of what is called.
MOMENTS = {
    "the model": ("transformers.modeling_utils.safe_save_file", "model.safetensors"),
    "the processor": ("processing_moon.processing_moon.MoonProcessor.save_pretrained", ""),
    "the optimizer": ("torch.save", "optimizer.pt"),
    "the state of random numbers": ("torch.save", "rng_state.pth"),
    "the trainer's state": ("transformers.trainer_callback.TrainerState.save_to_json", ""),
    "the queue": ("torch.save", "contrastive_state_0.pt"),
    "the recipe": ("training.runs.run.Run.write_records", "checkpoint-4"),
    "the marker": ("training.runs.exact_resumption.mark_complete", ""),
    "a line of metrics": ("training.runs.exact_resumption.append_line", "metrics.jsonl"),
    "the trained model": ("training.assembly.finishing.save_trained", ""),
}
FEW = (
    "the optimizer",
    "a line of metrics",
    "the trained model",
)  # a checkpoint's file, one of the run's, and the end's
# Fills a disk of its own before a resumed run, leaves some room on it, frees it after the run has stopped, and runs again.
REAL_DISK = """
import contextlib, io, os, shutil, sys
from pathlib import Path
import torch
from safetensors.torch import load_file
from training.runs import exact_resumption
from product_data.atomic_files import size_of
from training.runs.folder import RunFolder, is_complete
from training.train import main

torch.set_num_threads(1)
recipe, disk = sys.argv[1], Path(sys.argv[2])
run, ballast = disk / "run", disk / "ballast"
assert main([recipe, "--output_dir", str(run)]) == 0
whole = load_file(run / "final" / "model.safetensors")
checkpoint, final = size_of(run / "checkpoint-4"), size_of(run / "final")

def stopped_and_gone_on(room, last):
    for folder in [run / "final", *(run / "checkpoint-4" for _ in range(last == 2))]:
        shutil.rmtree(folder)
    (run / "finished.json").unlink()
    with ballast.open("wb") as stream:
        os.posix_fallocate(stream.fileno(), 0, shutil.disk_usage(disk).free - room)
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        assert main([recipe, "--output_dir", str(run)]) == 3, room
    said = said.getvalue()
    assert f"checkpoint-{last} is complete" in said and "could not be written" in said, said
    assert [path.name for path in RunFolder(run).checkpoints()] == ["checkpoint-2", "checkpoint-4"][: last // 2], room
    assert all(is_complete(path) for path in RunFolder(run).checkpoints()) and not list(run.glob("final*")), room
    ballast.unlink()
    assert main([recipe, "--output_dir", str(run)]) == 0
    again = load_file(run / "final" / "model.safetensors")
    assert all(torch.equal(whole[name], again[name]) for name in whole), room
    return said

assert "checked before writing" in stopped_and_gone_on(checkpoint // 2, last=2)
exact_resumption.check_space = lambda folder: None
reasons = [stopped_and_gone_on(int(share * checkpoint), last=2) for share in (0, 0.3, 0.8)]
reasons.append(stopped_and_gone_on(final // 2, last=4))
print(*reasons, sep="")
"""
# Runs a training in which one process, from its second checkpoint on, cannot write one file.
ONE_PROCESS_LACKS_ROOM = """
import os, resource, sys
from pathlib import Path
import torch
rank, name = sys.argv.pop(1), sys.argv.pop(1)
save, (soft, hard) = torch.save, resource.getrlimit(resource.RLIMIT_FSIZE)
def save_here(value, path, **options):
    if os.environ["RANK"] == rank and Path(path).name == name and "checkpoint-4" in str(path):
        resource.setrlimit(resource.RLIMIT_FSIZE, (16, hard))
    try:
        save(value, path, **options)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
torch.save = save_here
from training.train import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def recipe(tiny_moon, tmp_path_factory):
    path = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    return write_recipe(path, base=str(tiny_moon("qwen3_vl")), max_steps=STEPS, queue_steps=2)


@pytest.fixture(scope="module")
def uninterrupted(recipe, tmp_path_factory):
    output_dir = tmp_path_factory.mktemp("runs") / "uninterrupted"
    assert main([str(recipe), "--output_dir", str(output_dir)]) == 0
    return output_dir


@pytest.fixture
def limit_files():
    """Sets the largest size of a file that this process can write, in bytes; the kernel refuses more, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(size=None):
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft if size is None else size, hard))

    yield limit
    limit()


@pytest.fixture
def fill_at(monkeypatch, limit_files):
    """Replaces a function so that no file can grow beyond some bytes while it runs, once a checkpoint is whole."""

    def fill(target, named, output_dir):
        owner, attribute = target.rsplit(".", 1)
        real = getattr(resolve(owner), attribute)

        def on_a_full_disk(*arguments, **options):
            meant = any(named and Path(str(one)).name == named for one in arguments) or not named
            if meant and is_complete(output_dir / "checkpoint-2"):
                limit_files(16)
            try:
                return real(*arguments, **options)
            finally:
                limit_files()

        monkeypatch.setattr(target, on_a_full_disk)

    return fill


def resolve(name):
    found = sys.modules.get(name)
    return getattr(resolve(name.rsplit(".", 1)[0]), name.rsplit(".", 1)[1]) if found is None else found


@pytest.mark.parametrize(
    "moment", [moment if moment in FEW else pytest.param(moment, marks=pytest.mark.slow) for moment in MOMENTS]
)
def test_a_file_that_cannot_be_written_stops_the_run_which_then_goes_on_exactly(
    moment, recipe, uninterrupted, fill_at, tmp_path, capsys, monkeypatch
):
    run = tmp_path / "run"
    fill_at(*MOMENTS[moment], run)
    assert main([str(recipe), "--output_dir", str(run)]) == 3
    monkeypatch.undo()
    message = capsys.readouterr().err
    last = f"checkpoint-{4 if moment == 'the trained model' else 2}"
    for part in ("could not be written", " free of ", "needed: about ", f"{last} is complete", f"resumes from {last}"):
        assert part in message
    assert [path.name for path in RunFolder(run).checkpoints()] == ["checkpoint-2", "checkpoint-4"][
        : int(last[-1]) // 2
    ]
    assert all(is_complete(path) for path in RunFolder(run).checkpoints())
    assert not list(run.glob("final*"))
    assert not list(run.glob("*.partial"))
    assert main([str(recipe), "--output_dir", str(run)]) == 0
    assert f"resuming from {run / last}" in capsys.readouterr().out
    assert_same_run(uninterrupted, run)
    assert len(losses(run)) == STEPS


@pytest.mark.slow
def test_a_disk_that_really_is_full_stops_the_run_at_any_moment(recipe, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = ["unshare", "--mount", "--map-root-user", "sh", "-c"]
    mount = f"mount -t tmpfs -o size=48m tmpfs {disk}"
    if shutil.which("unshare") is None or subprocess.run([*mounted, mount], capture_output=True).returncode:
        pytest.skip("no disk of a chosen size can be mounted here: unshare and mount are not there or not allowed")
    (tmp_path / "real_disk.py").write_text(REAL_DISK)
    program = f'exec "{sys.executable}" "{tmp_path / "real_disk.py"}" "{recipe}" "{disk}"'
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [*mounted, f"{mount} && {program}"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("No space left on device") >= 2
    assert done.stdout.count("could not be written") == 4


@pytest.mark.slow
def test_two_processes_stop_together_whichever_of_them_finds_the_disk_full(recipe, tmp_path):
    run, script = tmp_path / "run", tmp_path / "one_process_lacks_room.py"
    script.write_text(ONE_PROCESS_LACKS_ROOM)

    def statuses(rank, name):
        with Launched(script, rank, name, recipe, "--output_dir", run, processes=2) as training:
            return training.finish(), training.said()

    logged = []
    for rank, name in (("0", "optimizer.pt"), ("1", "contrastive_state_1.pt")):
        ended, said = statuses(rank, name)
        assert ended == [3, 3], said[-3000:]
        assert f"train: {run}: checkpoint-4 could not be written" in said
        assert "train: process 1 stops with the first: the disk is full" in said
        assert [path.name for path in RunFolder(run).checkpoints()] == ["checkpoint-2"]
        assert is_complete(run / "checkpoint-2")
        logged.append(losses(run))
    ended, said = statuses("no process", "")
    assert ended == [0, 0], said[-3000:]
    assert f"resuming from {run / 'checkpoint-2'}" in said
    assert [line["step"] for line in losses(run)] == [1, 2, 3, 4]
    assert logged == [losses(run)] * 2


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), True),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), True),
        (OSError(errno.EFBIG, "File too large"), True),
        (OSError(errno.EACCES, "Permission denied"), False),
        (Exception("No space left on device (os error 28)"), True),
        (Exception("No such file or directory (os error 2)"), False),
        (RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"), True),
        (RuntimeError("PytorchStreamReader failed reading zip archive"), False),
        (ValueError("the disk of the user"), False),
        (DiskFullError("said before"), True),
    ],
)
def test_the_errors_of_a_full_disk_are_told_from_others(error, full):
    assert is_disk_full(error) is full
    later = ValueError("base: something went wrong")
    later.__cause__ = error
    assert is_disk_full(later) is full
    held = RuntimeError("sharded save")
    held.failures = {1: (error, None)}
    assert is_disk_full(held) is full


def test_what_libraries_raise_on_a_real_limit_is_known(limit_files, tmp_path):
    tensors = {"weight": torch.randn(500, 100)}
    writers = {
        "torch": lambda: torch.save(tensors, tmp_path / "a.pt"),
        "safetensors": lambda: save_file(tensors, tmp_path / "a.safetensors"),
        "text": lambda: (tmp_path / "a.txt").write_text("x" * 99_999),
    }
    for name, write in writers.items():
        for size in (0, 999, 65_536):
            limit_files(size)
            try:
                with pytest.raises(Exception) as found:
                    write()
            finally:
                limit_files()
            assert is_disk_full(found.value), (name, size, found.value)


def test_another_error_is_raised_where_it_happens_and_what_follows_a_full_disk_is_kept_back(tmp_path):
    watch = DiskWatch(tmp_path)
    with pytest.raises(KeyError, match="else"), watch.keeping():
        raise KeyError("else")
    watch.stop_together("nothing")
    (tmp_path / "checkpoint-2").mkdir()
    (tmp_path / "checkpoint-2" / "part").write_text("abc")
    with watch.keeping():
        raise OSError(errno.EDQUOT, "Disk quota exceeded")
    with watch.keeping():
        raise FileNotFoundError("the folder that was not made")
    with pytest.raises(DiskFullError, match="Disk quota exceeded.*more than 3.00B.*no checkpoint is complete yet"):
        watch.stop_together("checkpoint-2", tmp_path / "checkpoint-2")
    assert not (tmp_path / "checkpoint-2").exists()


def test_a_checkpoint_is_not_begun_where_there_is_less_room_than_the_last_one_took(tmp_path, monkeypatch):
    check_space(tmp_path)
    good = tmp_path / "checkpoint-2"
    good.mkdir()
    (good / "model").write_bytes(b"x" * 1000)
    mark_complete(good)
    check_space(tmp_path)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("training.runs.full_disk.shutil.disk_usage", lambda _: usage._replace(free=900))
    with pytest.raises(DiskFullError):
        check_space(tmp_path)
    monkeypatch.setattr("training.runs.full_disk.shutil.disk_usage", lambda _: usage._replace(free=0, total=0))
    check_space(tmp_path)  # a file system that does not tell its size


def test_no_part_of_a_line_stays_and_a_line_that_was_cut_off_is_mended(limit_files, tmp_path):
    path = tmp_path / "skipped.jsonl"
    append_line(path, {"item": "é1"})
    whole = path.read_bytes()
    limit_files(len(whole) + 5)
    with pytest.raises(OSError, match="too large"):
        append_line(path, {"item": "é2"})
    limit_files()
    assert path.read_bytes() == whole
    cut = '{"item": "é'.encode()[:-1]
    path.write_bytes(whole + cut)
    assert read_lines(path) == [{"item": "é1"}]
    mend_lines(path)
    append_line(path, {"item": "é3"})
    assert read_lines(path) == [{"item": "é1"}, {"item": "é3"}]


def write_half(folder):
    with written_whole(folder) as partial:
        partial.mkdir()
        raise OSError("full")


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    folder = tmp_path / "final"
    for text in ("old", "new"):
        (tmp_path / "final.partial").mkdir()
        (tmp_path / "final.partial" / "left").write_text("by a process that was killed")
        with written_whole(folder) as partial:
            partial.mkdir()
            (partial / "file").write_text(text)
            assert [path.name for path in folder.glob("*")] == ([] if text == "old" else ["file"])
        assert {path.name: path.read_text() for path in folder.iterdir()} == {"file": text}
    with pytest.raises(OSError, match="full"):
        write_half(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["final"]
    assert (folder / "file").read_text() == "new"
