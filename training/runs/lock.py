"""Keep two runs out of one folder: a lock that names the process that owns it.

The lock is a small file with the owner's host and process. A process that ended without removing it, as a killed one does,
is recognised on its own host, and its lock is taken over. Whether a process of another host still runs cannot be seen, so
that its lock is refused.
"""

import contextlib
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import torch.distributed

from training.errors import RecipeError

LOCK_FILE = "run.lock"
_BOOT = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True)
class Owner:
    """A process that holds a lock.

    Args:
        host: the machine's name.
        process: the process id there.
        boot: names the machine's run since it was started; "" where it has no such name.
        started: when the process was started, in ticks since the machine was; 0 where that cannot be read. A process id is
            used again after its process has ended, the two together are not.
        since: when the lock was taken, for messages.
    """

    host: str
    process: int
    boot: str = ""
    started: int = 0
    since: str = ""

    @classmethod
    def this_process(cls) -> "Owner":
        """Return the process that asks."""
        boot = _BOOT.read_text().strip() if _BOOT.is_file() else ""
        now = time.strftime("%Y-%m-%d %H:%M:%S")
        return cls(socket.gethostname(), os.getpid(), boot, (_state_of(os.getpid()) or ("", 0))[1], now)

    def is_same(self, other: "Owner") -> bool:
        """Return whether this is the other process, whenever each took its lock."""
        own, its = asdict(self), asdict(other)
        return all(own[name] == its[name] for name in own if name != "since")

    def may_run(self, here: "Owner") -> bool:
        """Return whether the process still runs, as far as can be seen from here."""
        if self.host != here.host:
            return True
        if self.boot != here.boot:
            return False
        state = _state_of(self.process)
        if state is not None:
            return state[0] not in "ZX" and self.started in (0, state[1])
        return _answers(self.process)


def _state_of(process: int) -> tuple[str, int] | None:
    """The state and the starting time of a process, where Linux says so; None where there is no such process."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        return fields[0], int(fields[19])
    except (OSError, ValueError, IndexError):
        return None


def _answers(process: int) -> bool:
    """Whether a process is there, where /proc does not show it."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


@contextlib.contextmanager
def alone_in(folder: Path, training: Any = None) -> Iterator[None]:
    """Hold the lock of a folder in the first process of a run, and let no process go on where another run holds it.

    Args:
        folder: the run's; made where it is not there.
        training: the recipe's TrainingArguments, for the number of processes; None: one.

    Raises:
        RecipeError: in every process: another run is at work in the folder, or may be, or no file can be written there.
    """
    problem: Exception | None = None
    first = training is None or training.process_index == 0
    is_new = not folder.exists()
    if first:
        try:
            take(folder)
        except (RecipeError, OSError) as error:
            problem = error
    reasons: list[Any] = [None if problem is None else str(problem)]
    if training is not None and training.world_size > 1:
        torch.distributed.broadcast_object_list(reasons, src=0, device=training.device)
    if problem is not None:
        raise problem
    if reasons[0] is not None:
        raise RecipeError(f"process {training.process_index} stops with the first: {reasons[0]}")
    try:
        yield
    finally:
        if first:
            release(folder)
            if is_new:  # a run that was refused at its start leaves nothing behind
                with contextlib.suppress(OSError):  # it holds something
                    folder.rmdir()


def take(folder: Path) -> None:
    """Take the lock of a folder for this process.

    Raises:
        RecipeError: another process holds it, or may; or the folder cannot be made or written.
    """
    here = Owner.this_process()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _opened(folder / LOCK_FILE) as stream:
            owner = _read(stream)
            if owner is None or not owner.may_run(here):
                _write(stream, here)
                return
    except (FileExistsError, NotADirectoryError, PermissionError) as error:
        raise RecipeError(f"output_dir: {error}; expected a folder that can be made and written") from error
    since = f" since {owner.since}" if owner.since else ""
    if owner.host == here.host:
        raise RecipeError(
            f"{folder} is in use by process {owner.process} of this machine{since}; expected another folder; or the same "
            "command when that process has ended, which then goes on where it stopped"
        )
    raise RecipeError(
        f"{folder} is in use by process {owner.process} of the machine {owner.host}{since}, as far as can be seen "
        f"from {here.host}; expected another folder; or, once that process has ended, delete {folder / LOCK_FILE} and give "
        "the same command again"
    )


def release(folder: Path) -> None:
    """Remove this process's lock; where the folder or the lock is gone, there is nothing to remove."""
    path = folder / LOCK_FILE
    if not path.is_file():
        return
    with contextlib.suppress(OSError), _opened(path) as stream:
        owner = _read(stream)
        if owner is not None and owner.is_same(Owner.this_process()):
            path.unlink()


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[IO[str]]:
    """The lock's file, which no other process of this machine reads or writes meanwhile."""
    while True:
        with path.open("a+", encoding="utf-8") as stream:
            with contextlib.suppress(OSError):  # a file system without locks: the two steps may then be interrupted
                fcntl.flock(stream, fcntl.LOCK_EX)
            try:
                is_there = os.path.samestat(os.fstat(stream.fileno()), path.stat())
            except FileNotFoundError:
                is_there = False
            if is_there:  # its owner may have removed it while we waited
                yield stream
                return


def _read(stream: IO[str]) -> Owner | None:
    """The owner; None in a new file, and in one that was cut off in writing."""
    stream.seek(0)
    try:
        return Owner(**json.loads(stream.read()))
    except (ValueError, TypeError):
        return None


def _write(stream: IO[str], owner: Owner) -> None:
    stream.seek(0)
    stream.truncate()
    stream.write(json.dumps(asdict(owner)) + "\n")
    stream.flush()
