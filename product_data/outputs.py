"""Check that an output can be written before the work that fills it begins."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


class OutputError(ValueError):
    """Raised for a file or folder that cannot be written; the message has the option and the path."""

    exit_status = 2


def require_writable_file(option: str, path: str | Path | None) -> None:
    """Check that a file can be written, by opening it; an existing file keeps its contents.

    Args:
        option (`str`): the option, for error messages, such as "--output".
        path: the file; `None` is not checked.

    Raises:
        OutputError: the path is a folder, or the file cannot be opened for writing.
    """
    if path is None:
        return
    path = Path(path)
    try:
        if path.is_dir():
            raise OutputError(f"{option} {path}: found a folder; expected the name of a file")
        if path.exists():
            with path.open("ab"):
                return
        folder = _nearest_folder(path.parent)
        if folder == path.parent:
            descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
            os.close(descriptor)
            path.unlink()
        else:
            _try_folder(folder, path)
    except OSError as error:
        raise OutputError(
            f"{option} {path}: cannot be written ({error.strerror or error}); expected a file in a folder of yours"
        ) from error


def require_writable_folder(option: str, path: str | Path | None) -> None:
    """Check that a folder exists or can be made, and that files can be written into it.

    Args:
        option (`str`): the option, for error messages.
        path: the folder; `None` is not checked.

    Raises:
        OutputError: the path is a file or a link to nothing, or nothing can be written there.
    """
    if path is None:
        return
    path = Path(path)
    if os.path.islink(path) and not os.path.exists(path):  # neither raises an error for a name that is too long
        raise OutputError(f"{option} {path}: found a link to nothing; expected a folder")
    try:
        _try_folder(_nearest_folder(path), path)
    except OSError as error:
        raise OutputError(
            f"{option} {path}: cannot be written ({error.strerror or error}); expected a folder of yours"
        ) from error


def _nearest_folder(path: Path) -> Path:
    """Return the path, or the nearest of its parents that exists.

    Raises:
        OSError: it is not a folder.
    """
    for folder in (path, *path.parents):
        if folder.exists():
            if not folder.is_dir():
                raise NotADirectoryError(20, f"{folder} is a file")
            return folder
    return Path()


def _try_folder(folder: Path, wanted: Path) -> None:
    for part in wanted.parts:
        if len(os.fsencode(part)) > 255:
            raise OSError(36, f"the name {part[:20]}… is too long")
    with tempfile.TemporaryFile(dir=folder):
        pass
