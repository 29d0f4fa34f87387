"""Which checkpoints are whole, and what a run has left in its folder.

A checkpoint is good only when its completion marker is there, which is written last and in one move, and when every file
that the marker lists has its size. Everything else is the remains of a save that was interrupted.
"""

import contextlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MARKER = "complete.json"
PARTIAL = ".partial"
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")


def write_atomically(path: Path, text: str) -> None:
    """Write a text file so that a reader finds the old contents or the new, never a part."""
    partial = path.with_name(path.name + PARTIAL)
    try:
        with partial.open("w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(partial, path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def written_whole(folder: Path) -> Iterator[Path]:
    """Give the name under which a folder is to be written, and give it its own name once all of it is there.

    An error leaves nothing; a killed process leaves the other name, which the next attempt clears away.

    Args:
        folder: what shall appear whole; what is there under its name is replaced.
    """
    partial = folder.with_name(folder.name + PARTIAL)
    shutil.rmtree(partial, ignore_errors=True)
    try:
        yield partial
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    if folder.exists():
        shutil.rmtree(folder)
    partial.rename(folder)


def size_of(folder: Path) -> int:
    """Return how many bytes the files of a folder hold together."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def mark_complete(folder: Path) -> None:
    """Declare a folder whole: list its files with their sizes, once all of them are on the disk.

    Args:
        folder: a checkpoint or a finished model.
    """
    sizes: dict[str, int] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != MARKER:
            with path.open("rb") as stream:
                os.fsync(stream.fileno())
            sizes[str(path.relative_to(folder))] = path.stat().st_size
    write_atomically(folder / MARKER, json.dumps({"files": sizes}, indent=1))


def is_complete(folder: Path) -> bool:
    """Return whether the marker is there and every file that it lists has the listed size."""
    try:
        sizes = json.loads((folder / MARKER).read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError):
        return False
    return all((folder / name).is_file() and (folder / name).stat().st_size == size for name, size in sizes.items())


def checkpoints(output_dir: Path) -> list[Path]:
    """Return the checkpoint folders of a run, whole or not, by step."""
    if not output_dir.is_dir():
        return []
    found = [(int(match[1]), path) for path in output_dir.iterdir() if (match := _CHECKPOINT.fullmatch(path.name))]
    return [path for _, path in sorted(found) if path.is_dir()]


def last_good_checkpoint(output_dir: Path) -> Path | None:
    """Return the whole checkpoint with the highest step, or None."""
    return next((path for path in reversed(checkpoints(output_dir)) if is_complete(path)), None)


def remove_incomplete(output_dir: Path) -> list[Path]:
    """Delete the remains of interrupted saves and return what was deleted."""
    broken = [path for path in checkpoints(output_dir) if not is_complete(path)]
    for path in broken:
        shutil.rmtree(path)
    return broken


def prune(output_dir: Path, limit: int | None) -> None:
    """Delete the oldest checkpoints beyond a limit; the last good one always stays.

    Args:
        output_dir: the run's folder.
        limit: number of checkpoints to keep, at least one; None or less than 1 keeps all.
    """
    if limit is None or limit < 1:
        return
    good = [path for path in checkpoints(output_dir) if is_complete(path)]
    for path in good[:-limit]:
        (path / MARKER).unlink()  # so that an interrupted deletion does not leave a folder that looks whole
        shutil.rmtree(path)


def append_line(path: Path, value: dict[str, Any]) -> None:
    """Append one JSON object as a line; where that fails, as on a full disk, no part of the line stays."""
    line = (json.dumps(value, ensure_ascii=False) + "\n").encode()
    with path.open("ab", buffering=0) as stream:
        before = os.fstat(stream.fileno()).st_size
        try:
            while line:
                line = line[stream.write(line) :]
        except OSError:
            stream.truncate(before)
            raise


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the JSON objects of a file of lines; a last line that was cut off in writing is left out."""
    if not path.is_file():
        return []
    whole = path.read_bytes()
    whole = whole[: whole.rfind(b"\n") + 1]
    return [json.loads(line) for line in whole.split(b"\n") if line.strip()]


def cut_lines_after(path: Path, step: int) -> None:
    """Drop the lines of later steps, which a resumed run writes again."""
    if path.is_file():
        kept = [line for line in read_lines(path) if line.get("step", 0) <= step]
        write_atomically(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in kept))


def mend_lines(path: Path) -> None:
    """Drop a last line that was cut off in writing, so that lines can be appended again."""
    if path.is_file():
        os.truncate(path, path.read_bytes().rfind(b"\n") + 1)
