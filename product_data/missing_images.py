"""Find picture files that lie in a folder `images` beside the table, and say what it means when none is there.

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
    """The folders of those tables that are files, each once."""
    return list(dict.fromkeys(Path(part).parent for part in parts if isinstance(part, str | Path)))


def is_missing(source: ImageSource | None) -> bool:
    """Whether a picture is a file that is not there."""
    return isinstance(source, str) and not is_address(source) and not os.path.isfile(source)


def found_beside(rows: Sequence[Row], field: str, folders: Sequence[Path]) -> tuple[list[Row], set[str]]:
    """Rows whose missing files are taken from the folder `images` beside their table, where they are there.

    Args:
        rows: products or queries.
        field (`str`): where their pictures stand: "images", a tuple, or "image", one or none.
        folders: the folders of the tables, that paths are relative to.

    Returns: the rows, and the files that were found.
    """
    siblings = [folder for folder in folders if (folder / SIBLING).is_dir()]
    if not siblings:
        return list(rows), set()
    found: dict[str, str] = {}

    def look(source: ImageSource) -> ImageSource:
        if not isinstance(source, str) or not is_missing(source):
            return source
        for folder in siblings:
            if Path(source).is_relative_to(folder):
                beside = folder / SIBLING / Path(source).relative_to(folder)
                if os.path.isfile(beside):
                    found[source] = str(beside)
                    return str(beside)
        return source

    changed = []
    for row in rows:
        value = getattr(row, field)
        if value is None or value == ():
            changed.append(row)
            continue
        new = tuple(map(look, value)) if isinstance(value, tuple) else look(value)
        changed.append(row if new == value else replace(row, **{field: new}))
    return changed, set(found)


def all_missing(products: Sequence[Any]) -> str:
    """What is wrong where not one product can be read because all of its pictures are missing; "" where that is not so."""
    with_pictures = [row for row in products if row.images]
    readable = any(not any(is_missing(image) for image in row.images) for row in products if row.images or row.has_text)
    if not with_pictures or readable:
        return ""
    first = next(image for row in with_pictures for image in row.images if is_missing(image))
    return (
        f"all {len(with_pictures)} products that name pictures name files that are not there, the first {first}; expected paths "
        f"relative to the table or to a folder {SIBLING!r} beside it, or the folder named: --images-root FOLDER on the command "
        "line, images: FOLDER in a recipe"
    )
