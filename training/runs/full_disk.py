"""Detect a full disk, say what is needed, and stop all processes together."""

import contextlib
import errno
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from tqdm.auto import tqdm

from product_data.atomic_files import size_of
from training.parallel.distributed import rank, world_size
from training.runs.folder import RunFolder

_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_RUST_ERRNO = re.compile(r"\(os error (\d+)\)")  # safetensors and tokenizers raise errors of their own, without errno
_TORCH_WRITER = ("PytorchStreamWriter failed", "unexpected pos ")  # torch.save raises RuntimeError, without errno


class DiskFullError(RuntimeError):
    """A file that could not be written: the disk is full, or a quota or a limit on file sizes is reached."""

    exit_status = 3


def is_disk_full(error: BaseException | None) -> bool:
    """Return whether an error, or one that it came from, says that a file could not be written for lack of space.

    Args:
        error: OSError (ENOSPC, EDQUOT, EFBIG), the errors of safetensors and tokenizers that name one of these numbers,
            the RuntimeError of torch.save's writer (which does not say why), or a CheckpointException that holds one of
            these for any process.
    """
    while error is not None:
        of_processes = getattr(error, "failures", None) or {}  # of torch's sharded save: process → (error, traceback)
        if _says_full(error) or any(is_disk_full(one) for one, _ in of_processes.values()):
            return True
        error = error.__cause__ or error.__context__
    return False


def _says_full(error: BaseException) -> bool:
    if isinstance(error, DiskFullError) or (isinstance(error, OSError) and error.errno in _ERRNOS):
        return True
    number = _RUST_ERRNO.search(str(error))
    if number is not None and int(number[1]) in _ERRNOS:
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _TORCH_WRITER)


def full_disk_sentence(output_dir: Path, unwritten: str, reason: str, written: int = 0) -> str:
    """Return what a user has to know: what was found, what is needed, what is whole, how to go on.

    Args:
        output_dir: the run's folder.
        unwritten: what could not be written.
        reason: the error's own words.
        written: how much of it was there before it was removed, in bytes.
    """
    usage = shutil.disk_usage(next(place for place in (output_dir, *output_dir.resolve().parents) if place.exists()))
    found = f"found {_size(usage.free)} free of {_size(usage.total)}"
    good = RunFolder(output_dir).last_good_checkpoint()
    if good is not None:
        needed = f"about {_size(size_of(good))}, the size of a checkpoint"
        left = f"{good.name} is whole: make room and give the same command again, it resumes from {good.name}"
    else:
        needed = f"more than {_size(written)}, the part that had been written"
        left = "no checkpoint was whole yet: make room and give the same command again, it starts from the first step"
    return (
        f"{output_dir}: {unwritten} could not be written, because the disk is full or a quota or a limit on file sizes "
        f"is reached ({reason}): {found}; needed: {needed}; {left}"
    )


def _size(number_of_bytes: int) -> str:
    return tqdm.format_sizeof(number_of_bytes, "B", 1000)


def check_space(output_dir: Path) -> None:
    """Refuse to begin a checkpoint where the disk has less room than the last good one takes.

    Quotas are not seen here, and a file system that does not tell its size is not judged.

    Raises:
        DiskFullError: there is not enough room.
    """
    good, usage = RunFolder(output_dir).last_good_checkpoint(), shutil.disk_usage(output_dir)
    if good is not None and usage.total and usage.free < size_of(good):
        raise DiskFullError("checked before anything of it was written")


class DiskWatch:
    """Lets all processes of a training stop together when one of them finds the disk full. Our design.

    A process that raised alone would leave the others waiting for it in the next exchange. So its error is kept, what
    follows is done as far as it goes, and `stop_together`, which all processes call, ends all of them.

    Args:
        output_dir: the run's folder, on a disk that all processes share.
    """

    def __init__(self, output_dir: str | Path) -> None:
        self.output_dir = Path(output_dir)
        self._error: BaseException | None = None

    @contextlib.contextmanager
    def keeping(self) -> Iterator[None]:
        """Keep the error of a full disk for `stop_together`, and with it what fails afterwards because of it."""
        try:
            yield
        except Exception as error:
            if self._error is None and not is_disk_full(error):
                raise
            self._error = self._error or error

    def stop_together(self, unwritten: str, unfinished: Path | None = None) -> None:
        """Go on where no process has kept an error; otherwise end all of them.

        Args:
            unwritten: what was being written.
            unfinished: its folder, removed by the first process once no process writes to it any more.

        Raises:
            DiskFullError: in every process; the first one's names what was found, needed and left.
        """
        own = None if self._error is None else str(self._error).splitlines()[0]
        reasons = [own]
        if world_size() > 1:
            reasons = [None] * world_size()
            torch.distributed.all_gather_object(reasons, own)
        reason = next((one for one in reasons if one is not None), None)
        if reason is None:
            return
        if rank():
            raise DiskFullError(f"process {rank()} stops with the first: the disk is full") from self._error
        written = 0
        if unfinished is not None and unfinished.is_dir():
            written = size_of(unfinished)
            shutil.rmtree(unfinished, ignore_errors=True)  # what stays has no marker, and is never taken for whole
        raise DiskFullError(full_disk_sentence(self.output_dir, unwritten, reason, written)) from self._error


@contextlib.contextmanager
def full_disk_named(output_dir: Path) -> Iterator[None]:
    """Turn a full disk into a DiskFullError, wherever in a run it was met.

    Args:
        output_dir: the run's folder.

    Raises:
        DiskFullError: names what was found, needed and left.
    """
    try:
        yield
    except DiskFullError:
        raise
    except Exception as error:
        if not is_disk_full(error):
            raise
        reason = str(error).splitlines()[0]
        raise DiskFullError(full_disk_sentence(output_dir, "a file of the run", reason)) from error
