"""Lock a folder against other processes, with a file that identifies the owning process.

The lock contains the host and the process id of its owner. On the same host, the lock of a process that has ended
without removing it, such as a killed one, is taken over. Whether a process on another host still runs is unknown, so
its lock is respected.
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
from typing import IO


class FolderInUseError(ValueError):
    """Raised for a folder that another process uses or may use; names the owner and what to do."""

    exit_status = 2


_BOOT = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True)
class Owner:
    """A process that owns a lock.

    Args:
        host: the name of the machine.
        process: the process id.
        boot: the boot id of the machine; "" if it is not available.
        started: the start of the process, in ticks since the machine was booted; 0 if it is not available. Process ids
            are reused, but not together with the same start.
        since: the time at which the lock was taken, for messages.
    """

    host: str
    process: int
    boot: str = ""
    started: int = 0
    since: str = ""

    @classmethod
    def this_process(cls) -> "Owner":
        """Return the calling process as an owner."""
        boot = _BOOT.read_text().strip() if _BOOT.is_file() else ""
        now = time.strftime("%Y-%m-%d %H:%M:%S")
        return cls(socket.gethostname(), os.getpid(), boot, (_state_of(os.getpid()) or ("", 0))[1], now)

    def is_same(self, other: "Owner") -> bool:
        """Return whether both owners are the same process, regardless of the time of the lock."""
        own, others = asdict(self), asdict(other)
        return all(own[name] == others[name] for name in own if name != "since")

    def may_run(self, here: "Owner") -> bool:
        """Return whether the process may still run, as far as another process can tell."""
        if self.host != here.host:
            return True
        if self.boot != here.boot:
            return False
        state = _state_of(self.process)
        if state is not None:
            return state[0] not in "ZX" and self.started in (0, state[1])
        return _exists(self.process)


def _state_of(process: int) -> tuple[str, int] | None:
    """Return the state and the start of a process from /proc; None if it does not list the process."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        return fields[0], int(fields[19])
    except (OSError, ValueError, IndexError):
        return None


def _exists(process: int) -> bool:
    """Return whether a process exists, without /proc."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


@contextlib.contextmanager
def locked(folder: Path, name: str) -> Iterator[None]:
    """Hold the lock of a folder for the duration of a context.

    Args:
        folder: it is created if necessary.
        name (`str`): the name of the lock's file.

    Raises:
        FolderInUseError: another process owns the lock or may own it.
    """
    take(folder, name)
    try:
        yield
    finally:
        release(folder, name)


def take(folder: Path, name: str) -> None:
    """Take the lock of a folder for this process.

    Raises:
        FolderInUseError: another process owns the lock or may own it.
        OSError: the folder cannot be created or written.
    """
    here = Owner.this_process()
    folder.mkdir(parents=True, exist_ok=True)
    with _opened(folder / name) as stream:
        owner = _read(stream)
        if owner is None or not owner.may_run(here):
            _write(stream, here)
            return
    since = f" since {owner.since}" if owner.since else ""
    if owner.host == here.host:
        raise FolderInUseError(
            f"{folder} is in use by process {owner.process} of this machine{since}; expected another folder, or the same "
            "command after that process has ended, which then resumes"
        )
    raise FolderInUseError(
        f"{folder} is in use by process {owner.process} of the machine {owner.host}{since}, which {here.host} cannot check; "
        f"expected another folder. If that process has ended, delete {folder / name} and run the same command again"
    )


def release(folder: Path, name: str) -> None:
    """Remove the lock of this process, if it still exists."""
    path = folder / name
    if not path.is_file():
        return
    with contextlib.suppress(OSError), _opened(path) as stream:
        owner = _read(stream)
        if owner is not None and owner.is_same(Owner.this_process()):
            path.unlink()


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[IO[str]]:
    """Open the file of a lock, so that no other process of this machine reads or writes it."""
    while True:
        with path.open("a+", encoding="utf-8") as stream:
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(stream, fcntl.LOCK_EX)
            try:
                is_there = os.path.samestat(os.fstat(stream.fileno()), path.stat())
            except FileNotFoundError:
                is_there = False
            if is_there:  # the owner may have removed the file in the meantime
                yield stream
                return


def _read(stream: IO[str]) -> Owner | None:
    """Return the owner, or None for a new or incomplete file."""
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
