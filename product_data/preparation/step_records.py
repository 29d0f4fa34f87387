"""Remember which steps of a preparation are finished, and for which inputs and options.

A step has a key: a digest of its inputs, its options and the keys of the steps that it reads. It is done if its record names this
key and its files have the recorded sizes. A record is written after the files of its step, so a process that is killed at any
moment repeats at most the step in work; changed options repeat that step and those that read it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from product_data.atomic_files import write_atomically

VERSION = 1
"""Part of every key. Raise it with a change of a step that changes what the step writes."""


class StepRecords:
    """The records of a folder.

    Args:
        folder: the folder of the step's files.
        records: the folder of the records; it is made if necessary.
    """

    def __init__(self, folder: Path, records: Path) -> None:
        self.folder, self.records = folder, records
        records.mkdir(parents=True, exist_ok=True)
        self.made: list[str] = []
        """The steps that this object has made; the others were done."""

    def run(self, name: str, key: str, make: Callable[[], tuple[Sequence[Path], dict[str, Any]]]) -> dict[str, Any]:
        """Make a step unless it is done, and return its counts.

        Args:
            name (`str`): the step.
            key (`str`): see `step_key`.
            make: makes the step, and returns its files and counts.
        """
        path = self.records / f"{name}.json"
        known = self._read(path)
        if known is not None and known["key"] == key and self._has(known["files"]):
            return dict(known["counts"])
        path.unlink(missing_ok=True)
        files, counts = make()
        sizes = {file.relative_to(self.folder).as_posix(): file.stat().st_size for file in files}
        record = {"key": key, "files": sizes, "counts": counts}
        write_atomically(path, json.dumps(record, indent=1, ensure_ascii=False) + "\n")
        self.made.append(name)
        return dict(json.loads(json.dumps(counts)))

    def _has(self, sizes: dict[str, int]) -> bool:
        files = {self.folder / name: size for name, size in sizes.items()}
        return all(file.is_file() and file.stat().st_size == size for file, size in files.items())

    @staticmethod
    def _read(path: Path) -> dict[str, Any] | None:
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            return found if {"key", "files", "counts"} <= found.keys() else None
        except (OSError, ValueError, AttributeError):
            return None


def step_key(*parts: Any) -> str:
    """Return a digest of JSON values: the inputs and options of a step, and the keys of steps that it reads."""
    return hashlib.sha256(json.dumps([VERSION, *parts], sort_keys=True).encode()).hexdigest()[:32]
