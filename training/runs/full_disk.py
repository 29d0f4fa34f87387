"""Detect a full disk, report how much space is needed, and stop all processes together."""

import contextlib
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from tqdm.auto import tqdm

from product_data.atomic_files import size_of
from product_data.full_disk import FULL
from training.parallel.distributed import rank, world_size
from training.runs.folder import RunFolder

_RUST_ERRNO = re.compile(r"\(os error (\d+)\)")  # errors of safetensors and tokenizers do not have errno
_TORCH_WRITER = ("PytorchStreamWriter failed", "unexpected pos ")  # torch.save raises RuntimeError, without errno


class DiskFullError(RuntimeError):
    """A file could not be written, because the disk is full or a quota or a limit on file sizes is reached."""

    exit_status = 3


def is_disk_full(error: BaseException | None) -> bool:
    """Return whether an error or one of its causes means that a file could not be written for lack of space.

    Args:
        error: an OSError (ENOSPC, EDQUOT, EFBIG), an error from safetensors or tokenizers with one of these numbers,
            the RuntimeError of torch.save's writer (which does not contain a reason), or a CheckpointException that
            contains one of these for any process.
    """
    while error is not None:
        failures = getattr(error, "failures", None) or {}  # of torch's sharded save: process → (error, traceback)
        if _is_full(error) or any(is_disk_full(failure) for failure, _ in failures.values()):
            return True
        error = error.__cause__ or error.__context__
    return False


def _is_full(error: BaseException) -> bool:
    if isinstance(error, DiskFullError) or (isinstance(error, OSError) and error.errno in FULL):
        return True
    number = _RUST_ERRNO.search(str(error))
    if number is not None and int(number[1]) in FULL:
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _TORCH_WRITER)


def full_disk_sentence(output_dir: Path, unwritten: str, reason: str, written: int = 0) -> str:
    """Return an error message with the free and the needed space, the last complete checkpoint, and what to do.

    Args:
        output_dir: the run's folder.
        unwritten: the name of the file or folder that could not be written.
        reason: the original error message.
        written: the number of bytes that had been written before it was removed.
    """
    usage = shutil.disk_usage(next(place for place in (output_dir, *output_dir.resolve().parents) if place.exists()))
    found = f"found {_size(usage.free)} free of {_size(usage.total)}"
    good = RunFolder(output_dir).last_good_checkpoint()
    if good is not None:
        needed = f"about {_size(size_of(good))}, the size of a checkpoint"
        left = f"{good.name} is complete: free some space and run the same command again to resume from {good.name}"
    else:
        needed = f"more than {_size(written)}, the part that had been written"
        left = "no checkpoint is complete yet: free some space and run the same command again to start from step 1"
    return (
        f"{output_dir}: {unwritten} could not be written, because the disk is full or a quota or a limit on file sizes "
        f"is reached ({reason}): {found}; needed: {needed}; {left}"
    )


def _size(number_of_bytes: int) -> str:
    return tqdm.format_sizeof(number_of_bytes, "B", 1000)


def check_space(output_dir: Path) -> None:
    """Raise DiskFullError before a checkpoint is written if the free space is below the size of the last one.

    Quotas are not checked, nor are file systems that do not report their size.

    Raises:
        DiskFullError: the free space is too small.
    """
    good, usage = RunFolder(output_dir).last_good_checkpoint(), shutil.disk_usage(output_dir)
    if good is not None and usage.total and usage.free < size_of(good):
        raise DiskFullError("checked before writing")


class DiskWatch:
    """Stop all training processes together if one of them finds the disk full. Our design.

    If a single process raised an error, the others would wait for it in the next collective. The error is therefore
    kept, the process continues as far as possible, and `stop_together`, which all processes call, raises it in all of
    them.

    Args:
        output_dir: the run's folder, on a disk that all processes share.
    """

    def __init__(self, output_dir: str | Path) -> None:
        self.output_dir = Path(output_dir)
        self._error: BaseException | None = None

    @contextlib.contextmanager
    def keeping(self) -> Iterator[None]:
        """Keep the error of a full disk in a context for `stop_together`, and the errors that follow from it."""
        try:
            yield
        except Exception as error:
            if self._error is None and not is_disk_full(error):
                raise
            self._error = self._error or error

    def stop_together(self, unwritten: str, unfinished: Path | None = None) -> None:
        """Raise DiskFullError in all processes if one of them has kept an error.

        Args:
            unwritten: the name of the file or folder that was written.
            unfinished: its folder, which the first process removes after all processes have stopped writing.

        Raises:
            DiskFullError: raised in every process; the message of the first one contains the details.
        """
        own = None if self._error is None else str(self._error).splitlines()[0]
        reasons = [own]
        if world_size() > 1:
            reasons = [None] * world_size()
            torch.distributed.all_gather_object(reasons, own)
        reason = next((known for known in reasons if known is not None), None)
        if reason is None:
            return
        if rank():
            raise DiskFullError(f"process {rank()} stops with the first: the disk is full") from self._error
        written = 0
        if unfinished is not None and unfinished.is_dir():
            written = size_of(unfinished)
            shutil.rmtree(unfinished, ignore_errors=True)  # files that remain do not have a marker
        raise DiskFullError(full_disk_sentence(self.output_dir, unwritten, reason, written)) from self._error


@contextlib.contextmanager
def report_full_disk(output_dir: Path) -> Iterator[None]:
    """Raise DiskFullError for any error of a full disk in a context.

    Args:
        output_dir: the run's folder.

    Raises:
        DiskFullError: the message contains the free and the needed space, and what to do.
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
