"""Open the rows of a public data set: JSON lines, JSON, parquet or CSV files, a folder of them, or a hub data set."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from product_data.columns import names_a_part
from product_data.table_files import SUFFIXES, TableError, read_rows

_SUFFIXES = (*SUFFIXES, ".json", ".ndjson")
Rows = Sequence[Mapping[str, Any]]


def open_rows(place: str | Path, *, split: str | None = None, config: str | None = None) -> Rows:
    """Return the rows of files or of a data set on the hub, with pictures as they are stored.

    Args:
        place: a file, a folder whose files are read in the order of their names, or a hub id such as "owner/name".
        split (`str` or `None`): split of a data set on the hub. In a folder, only files with the split in their path
            are read, if there are any.
        config (`str` or `None`): configuration of a data set on the hub.

    Raises:
        TableError: a missing file, a folder without files, a file that cannot be read, or a data set that cannot be
            opened.
    """
    path = Path(place)
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file() and file.suffix.lower() in _SUFFIXES)
        chosen = [file for file in files if split and split in file.relative_to(path).as_posix()] or files
        if not chosen:
            raise TableError(f"{path}: found no data file; expected one of {', '.join(_SUFFIXES)} in that folder")
        return [row for file in chosen for row in _read(file)]
    if path.is_file():
        return _read(path)
    if path.suffix.lower() in _SUFFIXES or len(path.parts) != 2:
        raise TableError(
            f"{place}: no such file or folder; expected one of these, or the id of a data set on the hub, owner/name"
        )
    return _of_hub(str(place), split, config)


def _read(path: Path) -> list[dict[str, Any]]:
    if path.suffix.lower() == ".json":
        text = path.read_text(encoding="utf-8-sig")
        if text.lstrip()[:1] == "[":
            try:
                return [_mapping(row, path) for row in json.loads(text)]
            except json.JSONDecodeError as error:
                raise TableError(f"{path}, line {error.lineno}: not JSON ({error.msg})") from error
    if path.suffix.lower() in (".json", ".ndjson"):
        return _json_lines(path)
    return read_rows(path)


def _json_lines(path: Path) -> list[dict[str, Any]]:
    rows = []
    with path.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                rows += [_mapping(json.loads(line), path)] if line.strip() else []
            except json.JSONDecodeError as error:
                raise TableError(f"{path}, line {number}: not JSON ({error.msg})") from error
    return rows


def _mapping(row: Any, path: Path) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise TableError(f"{path}: found a row of type {type(row).__name__}; expected a JSON object")
    return row


def _of_hub(name: str, split: str | None, config: str | None) -> Rows:
    import datasets

    try:
        rows = datasets.load_dataset(name, config, split=split or "test")
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        where = f"{name}{f', {config}' if config else ''}, split {split or 'test'!r}"
        raise TableError(f"{where}: cannot be opened ({type(error).__name__}: {error})") from error
    for column, feature in rows.features.items():
        if isinstance(feature, datasets.Image):
            rows = rows.cast_column(column, datasets.Image(decode=False))
        elif isinstance(getattr(feature, "feature", None), datasets.Image):
            rows = rows.cast_column(column, datasets.List(datasets.Image(decode=False)))
    return rows


def column_names(rows: Rows) -> list[str]:
    """Return all columns in order of first appearance; fields of a mapping with a query or product as "outer.inner"."""
    features = getattr(rows, "features", None)
    seen = [features] if features is not None else rows
    names: dict[str, None] = {}
    for row in seen:
        for name, cell in row.items():
            inner = list(cell) if isinstance(cell, Mapping) and names_a_part(name) else []
            names |= dict.fromkeys(
                [name] if not inner or {"bytes", "path"} >= set(inner) else [f"{name}.{field}" for field in inner]
            )
    return [name for name in names if not any(other.startswith(f"{name}.") for other in names)]


def sampled(count: int, sample: int | None, seed: int) -> list[int]:
    """Return the indices of `sample` of `count` rows, drawn by `seed`, in ascending order; all of them for None.

    Raises:
        TableError: a sample below 1.
    """
    if sample is not None and sample < 1:
        raise TableError(f"sample: found {sample}; expected 1 or more")
    if sample is None or sample >= count:
        return list(range(count))
    return sorted(np.random.default_rng(seed).permutation(count)[:sample].tolist())
