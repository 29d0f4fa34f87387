"""Make the relative paths of pictures in cells absolute, for a copy of their table in another folder."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from product_data.table_files import is_absent, is_address


def with_absolute_paths(cell: Any, folders: tuple[Path, ...]) -> Any:
    """Return a cell of pictures whose paths are absolute; the cell itself if it has no relative path.

    Args:
        cell: as for `product_data.table_files.parse_images`.
        folders: the folders that paths may be relative to; the first that has the file counts, otherwise the first one.
    """
    if isinstance(cell, Mapping):
        path = cell.get("path")
        if not is_absent(cell.get("bytes")) or not isinstance(path, str):
            return cell
        found = _absolute(path, folders)
        return cell if found == path else {**cell, "path": found}
    if isinstance(cell, list):
        made = [with_absolute_paths(part, folders) for part in cell]
        return cell if all(new is old for new, old in zip(made, cell, strict=True)) else made
    if not isinstance(cell, str):
        return cell
    if cell.lstrip().startswith("["):
        try:
            parts = json.loads(cell)
        except json.JSONDecodeError:
            return cell  # the reader of tables reports it
        made = with_absolute_paths(parts, folders)
        return cell if made is parts else json.dumps(made, ensure_ascii=False)
    found = "|".join(_absolute(part, folders) for part in cell.split("|"))
    return cell if found == cell else found


def _absolute(path: str, folders: tuple[Path, ...]) -> str:
    name = path.strip()
    if is_absent(name) or is_address(name) or os.path.isabs(name):
        return path
    places = [os.path.abspath(folder / name) for folder in folders]
    return next((place for place in places if os.path.isfile(place)), places[0])
