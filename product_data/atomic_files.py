"""Write files and folders so that neither a reader nor the next attempt ever sees an incomplete one."""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PARTIAL = ".partial"
"""The suffix of a file or folder that is not complete yet."""


def write_atomically(path: Path, text: str) -> None:
    """Write a text file so that a reader sees either the old contents or the new contents, never a part."""
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
def file_written_whole(path: Path) -> Iterator[Path]:
    """Yield a temporary name for a file, and rename the file once it is complete and on the disk.

    After an error the temporary file is removed. A killed process leaves it behind under a name with `PARTIAL`.

    Args:
        path: the final name; an existing file of that name is replaced.
    """
    partial = path.with_name(path.name + PARTIAL)
    try:
        yield partial
        with partial.open("rb+") as stream:
            os.fsync(stream.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def written_whole(folder: Path) -> Iterator[Path]:
    """Yield a temporary name for a folder, and rename the folder once it is complete.

    After an error the temporary folder is removed. A killed process leaves it behind, and the next attempt removes it.

    Args:
        folder: the final name; an existing folder of that name is replaced.
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


def append_line(path: Path, value: dict[str, Any]) -> None:
    """Append one JSON object as a line; if that fails, as on a full disk, no part of the line is left."""
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
    """Return the JSON objects of a file of lines, without a last line that was not written completely."""
    if not path.is_file():
        return []
    whole = path.read_bytes()
    whole = whole[: whole.rfind(b"\n") + 1]
    return [json.loads(line) for line in whole.split(b"\n") if line.strip()]


def cut_lines_after(path: Path, step: int) -> None:
    """Remove the lines of later steps, which a resumed run writes again."""
    if path.is_file():
        kept = [line for line in read_lines(path) if line.get("step", 0) <= step]
        write_atomically(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in kept))


def mend_lines(path: Path) -> None:
    """Remove a last line that was not written completely; lines can then be appended again."""
    if path.is_file():
        os.truncate(path, path.read_bytes().rfind(b"\n") + 1)


def size_of(folder: Path) -> int:
    """Return the total size of a folder's files in bytes."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
