"""A folder's lock is taken over from a process that is gone, and respected while its owner may run."""

import json
import multiprocessing
import os

import pytest
from folder_holder import holding

from product_data.folder_lock import FolderInUseError, Owner, locked, release, take

LOCK_FILE = "work.lock"
FORK = multiprocessing.get_context("fork")


@pytest.fixture
def holder(tmp_path):
    with holding(tmp_path / "run", LOCK_FILE) as process:
        yield process


def lock_of(folder, **changes):
    folder.mkdir(exist_ok=True)
    owner = {**vars(Owner.this_process()), **changes}
    (folder / LOCK_FILE).write_text(json.dumps(owner))


def test_a_lock_is_released_after_an_error_and_refuses_a_second_owner_until_then(tmp_path):
    with pytest.raises(FolderInUseError, match=f"in use by process {os.getpid()} of this machine"):  # noqa: SIM117
        with locked(tmp_path, LOCK_FILE):
            take(tmp_path, LOCK_FILE)
    assert not (tmp_path / LOCK_FILE).exists()


@pytest.mark.parametrize(
    "changes",
    [{"process": 2**22 + 1}, {"started": 1}, {"boot": "before the machine was started again"}],
    ids=["no such process", "its number is another process's now", "the machine was started again"],
)
def test_a_lock_whose_process_is_gone_is_taken_over(tmp_path, changes):
    lock_of(tmp_path, **changes)
    take(tmp_path, LOCK_FILE)
    assert json.loads((tmp_path / LOCK_FILE).read_text())["process"] == os.getpid()


@pytest.mark.parametrize("text", ["", '{"host": "gp', "[]"])
def test_a_lock_that_was_cut_off_in_writing_is_taken_over(tmp_path, text):
    (tmp_path / LOCK_FILE).write_text(text)
    take(tmp_path, LOCK_FILE)
    assert json.loads((tmp_path / LOCK_FILE).read_text())["process"] == os.getpid()


def test_the_lock_of_another_process_is_not_released(holder, tmp_path):
    release(tmp_path / "run", LOCK_FILE)
    assert json.loads((tmp_path / "run" / LOCK_FILE).read_text())["process"] == holder.pid


def _try(folder, start, found):
    start.wait()
    try:
        take(folder, LOCK_FILE)
        found.put(os.getpid())
    except FolderInUseError:
        found.put(None)
    start.wait()  # the winner lives until all have tried


def test_of_many_processes_that_find_a_stale_lock_exactly_one_takes_it(tmp_path):
    for _ in range(5):
        lock_of(tmp_path, process=2**22 + 1)
        start, found = FORK.Barrier(6), FORK.Queue()
        processes = [FORK.Process(target=_try, args=(tmp_path, start, found)) for _ in range(6)]
        for process in processes:
            process.start()
        winners = [one for one in (found.get(timeout=60) for _ in processes) if one is not None]
        for process in processes:
            process.join()
        assert winners == [json.loads((tmp_path / LOCK_FILE).read_text())["process"]]
