"""Name the kinds of models that are not checkpoints of ours, and say what a model does not read.

`clip=openai/clip-vit-base-patch32` is a model of the kind "clip"; the files of `evaluation/baselines/` add their kinds here.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


class CheckpointError(ValueError):
    """A checkpoint that cannot be read, or whose vectors cannot be used."""

    exit_status = 2


@dataclass(frozen=True)
class ModelKind:
    """A kind of model, and how one of it is loaded.

    Args:
        load: (place, dtype) → (model, processor), as `retrieval.encode.encode` takes them.
        package (`str` or `None`): a package that the kind needs and the project does not install, as it is imported.
        install (`str`): how that package is installed.
        has_place (`bool`): whether there is a folder or hub id to load from. Default True.
        places: for a place that names several folders, files or hub ids: place → (what else vectors depend on, these).
            Default: the place itself.
    """

    load: Callable[..., tuple[Any, Any]]
    package: str | None = None
    install: str = ""
    has_place: bool = True
    places: Callable[[str], tuple[str, list[str]]] = lambda place: ("", [place])


KINDS: dict[str, ModelKind] = {}
"""Kinds by name; a baseline adds its own when its file is imported."""


def named_kind(model: str | Path) -> tuple[str, str] | None:
    """Return (kind, place) of "clip=PLACE" or "bm25"; None for what has no kind's name.

    A file or folder that exists and has such a name is a file or folder.
    """
    if not isinstance(model, str) or Path(model).exists():
        return None
    kind, _, place = model.partition("=")
    return (kind, place) if kind in KINDS else None


def require_loadable(model: str | Path) -> None:
    """Check what can be known of a model before it is loaded: its package and its place.

    Raises:
        CheckpointError: a kind without a place, a place that the kind does not have, a package that is not installed, or a
            folder without a checkpoint.
    """
    named = named_kind(model)
    if named is None:
        require_checkpoint(model)
        return
    kind, place = named
    if KINDS[kind].has_place != bool(place):
        expected = f"{kind}=FOLDER or {kind}=HUB_ID" if KINDS[kind].has_place else kind
        raise CheckpointError(f"model {str(model)!r}; expected {expected}")
    package = KINDS[kind].package
    if package is not None and importlib.util.find_spec(package) is None:
        raise CheckpointError(
            f"model {str(model)!r} needs the package {package}, which is not installed; expected {KINDS[kind].install}"
        )
    if place and Path(place).is_dir() and not any(Path(place).iterdir()):
        raise CheckpointError(f"model {str(model)!r}: the folder is empty; expected a saved checkpoint")


def require_checkpoint(path: str | Path) -> None:
    """Check that a folder holds a checkpoint.

    Raises:
        CheckpointError: a folder without config.json.
    """
    if Path(path).is_dir() and not (Path(path) / "config.json").is_file():
        raise CheckpointError(f"{path}: found no config.json; expected the folder of a saved checkpoint")


def unread_records(processor: Any, records: Sequence[dict[str, Any]], what: str) -> str:
    """Return why a model cannot embed records of one form; "" where it reads them.

    A text model could embed the words of such records, but its vectors would stand for less than what is searched: the form
    has no score.

    Args:
        processor: has `reads_pictures` False where its model reads text alone, `needs` "picture" or "text" where it reads only
            that of any record, and a `kind` to name it by.
        records: product or query records of one form.
        what: what the records are, such as "products of the form 'mm'".
    """
    count = sum(_has_picture(record) for record in records)
    if count and not getattr(processor, "reads_pictures", True):
        return f"{processor.kind} reads no pictures, and {count} of {len(records)} {what} have one"
    if not records or not (needs := getattr(processor, "needs", "")):
        return ""
    having = count if needs == "picture" else sum(_has_text(record) for record in records)
    return (
        "" if having else f"{processor.kind} reads a record's {needs} alone, and none of {len(records)} {what} has one"
    )


def unrelated_forms(processor: Any, asked: str, searched: str) -> str:
    """Return why a model cannot compare records of two forms; "" if it can.

    Args:
        processor: has `separate_spaces` True where pictures and texts have separate vectors, and `needs` as in
            `unread_records`.
        asked: form of the queries, "t" for the texts of labels.
        searched: form of the products.
    """
    if not getattr(processor, "separate_spaces", False):
        return ""
    needs = getattr(processor, "needs", "")
    if {asked, searched} == {"t", "i"}:
        return f"{processor.kind} has separate vectors for pictures and texts, which cannot be compared"
    missing = {"picture": "t", "text": "i"}.get(needs)
    return f"{processor.kind} reads a record's {needs} alone" if missing in (asked, searched) else ""


def _has_picture(record: dict[str, Any]) -> bool:
    return "image" in record or "images" in record


def _has_text(record: dict[str, Any]) -> bool:
    return bool(record.keys() - {"id", "image", "images", "core_box", "reasoning"})
