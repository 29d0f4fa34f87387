"""Find picture files in a folder `images` beside the table, and explain when all of them are missing.

Our design; precedent: `imagefolder` of datasets, which looks beside the metadata file.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from product_data.table_files import ImageSource, is_address

SIBLING = "images"
Row = TypeVar("Row", bound=Any)


def table_folders(parts: Iterable[Any]) -> list[Path]:
    """Return the folders of the tables that are files, each once."""
    return list(dict.fromkeys(Path(part).parent for part in parts if isinstance(part, str | Path)))


def is_missing(source: ImageSource | None) -> bool:
    """Return whether a picture is a file that does not exist."""
    return isinstance(source, str) and not is_address(source) and not os.path.isfile(source)


def find_beside(rows: Sequence[Row], field: str, folders: Sequence[Path]) -> tuple[list[Row], set[str]]:
    """Replace missing picture files by those of the folder `images` beside the table, if it has them.

    Args:
        rows: products or queries.
        field (`str`): the field of their pictures: "images", a tuple, or "image", one picture or None.
        folders: the folders of the tables; paths are relative to them.

    Returns: the rows, and the missing files that were replaced.
    """
    siblings = [folder for folder in folders if (folder / SIBLING).is_dir()]
    if not siblings:
        return list(rows), set()
    replaced: dict[str, str] = {}

    def replacement(source: ImageSource) -> ImageSource:
        if not isinstance(source, str) or not is_missing(source):
            return source
        for folder in siblings:
            if Path(source).is_relative_to(folder):
                beside = folder / SIBLING / Path(source).relative_to(folder)
                if os.path.isfile(beside):
                    replaced[source] = str(beside)
                    return str(beside)
        return source

    changed = []
    for row in rows:
        value = getattr(row, field)
        if value is None or value == ():
            changed.append(row)
            continue
        new = tuple(map(replacement, value)) if isinstance(value, tuple) else replacement(value)
        changed.append(row if new == value else replace(row, **{field: new}))
    return changed, set(replaced)


def all_missing(products: Sequence[Any]) -> str:
    """Return an error if no product can be read because all pictures are missing, or ""."""
    with_pictures = [row for row in products if row.images]
    readable = any(not any(is_missing(image) for image in row.images) for row in products if row.images or row.has_text)
    if not with_pictures or readable:
        return ""
    first = next(image for row in with_pictures for image in row.images if is_missing(image))
    return (
        f"all {len(with_pictures)} products with pictures: found no picture file, the first missing one is {first}; "
        f"expected paths relative to the table or to a folder {SIBLING!r} beside it, or the name of their folder: "
        "--images-root FOLDER on the command line, images: FOLDER in a recipe"
    )
