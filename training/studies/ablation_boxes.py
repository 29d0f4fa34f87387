"""Write the tables of a suite's data sets with detected core boxes, once for each detector.

MOON (arXiv 2508.11999 §3.1) detects the core with a grounding model. Our design: a suite or a cell names a detector of
`product_data.core_boxes.detectors`, trains and is evaluated on tables with its boxes.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from product_data.core_boxes.detectors import DETECTORS, open_detector
from product_data.core_boxes.writing import RECORD, BoxOptions, write_core_boxes
from training.errors import RecipeError

_NEEDED = {"saliency": "weights", "grounding": "model"}
_CACHE = "core_boxes.jsonl"
_UNNAMED = "tables"  # as load_tables names tables without a folder
_WITH_BOX, _WITHOUT_PICTURE = ("kept", "detected"), "without a picture"


def detector_settings(boxes: Any, where: str) -> dict[str, str] | None:
    """Return the keywords of `open_detector` for a value of the key `boxes`, or None without boxes.

    Args:
        boxes: null, the name of a detector, or a mapping such as {detector: saliency, weights: u2netp.onnx}.
        where: the place of the value, for the message.

    Raises:
        RecipeError: an unknown detector or key, or a detector without what it needs.
    """
    if boxes is None:
        return None
    found = {"detector": boxes} if isinstance(boxes, str) else dict(boxes) if isinstance(boxes, Mapping) else {}
    name = str(found.pop("detector", "")).replace("_", "-")  # largest_region, as recipes wrote it
    if name not in DETECTORS:
        raise RecipeError(
            f"{where}: found {boxes!r}; expected one of {', '.join(DETECTORS)}, a mapping with one of them as detector, "
            "or null"
        )
    needed = {_NEEDED[name]} if name in _NEEDED else set()
    if found.keys() != needed or not all(isinstance(value, str) for value in found.values()):
        accepted = f"detector: {name} and {needed.pop()}: a path" if needed else f"detector: {name} alone"
        raise RecipeError(f"{where}: found {boxes!r}; expected {accepted}")
    return {"name": name, **found}


def name_of_data_set(entry: Any) -> str:
    """Return the name of a data set in results, without reading it, see `product_data.tables.load_tables`.

    Args:
        entry: an entry of the recipe keys `data` and `evaluate_data`.
    """
    keys = entry if isinstance(entry, Mapping) else {"path": entry}
    if "name" in keys:
        return str(keys["name"])
    if "path" in keys:
        path = Path(keys["path"])
        return path.stem if path.is_file() else path.resolve().name
    return Path(keys["products"]).parent.name or _UNNAMED if "products" in keys else _UNNAMED


def data_with_boxes(
    entries: Sequence[Any], settings: Mapping[str, str], output: Path, *, write: bool = True, progress: bool = True
) -> tuple[list[Any], dict[str, dict[str, Any]]]:
    """Return the entries of a recipe's `data` or `evaluate_data` with their tables replaced by tables with boxes.

    A box that a table has stays. The drawn catalogue keeps its own boxes. Complete tables are not written again, and an
    interrupted call goes on with the pictures that are missing.

    Args:
        entries: "catalogue", folders or files, or mappings with `path`.
        settings: from `detector_settings`.
        output: folder of the suite; the tables are written in its folder boxes.
        write: whether to write tables that are not complete. If not, their entries are left out. Default True.
        progress: whether to show progress bars. Default True.

    Returns:
        The entries, and for each data set with boxes the numbers "products" and "photos" with a picture, and
        "products_with_box" and "queries_with_box".

    Raises:
        RecipeError: an entry without `path`.
    """
    made: list[Any] = []
    facts: dict[str, dict[str, Any]] = {}
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
    for entry in entries:
        keys = dict(entry) if isinstance(entry, Mapping) else {"path": entry}
        if keys.get("path") == "catalogue":
            made.append(entry)
            continue
        if "path" not in keys:
            raise RecipeError(f"data: cannot detect boxes in {keys}; expected path: a folder or file of tables")
        source = Path(keys["path"])
        of_path = hashlib.sha256(str(source.resolve()).encode()).hexdigest()[:8]
        folder = output / "boxes" / f"{settings['name']}-{digest}" / f"{source.stem}-{of_path}"
        if not _is_complete(folder) and write:
            options: dict[str, Any] = {name: value for name, value in settings.items() if name != "name"}
            if "weights" in options:
                options["weights"] = Path(options["weights"])
            detector = open_detector(settings["name"], **options)
            cache = output / "boxes" / _CACHE
            write_core_boxes(source, folder, detector, BoxOptions(cache=cache, progress=progress))
        if _is_complete(folder):
            name = name_of_data_set(keys)
            made.append({"name": name, **keys, "path": str(folder)})
            facts[name] = _counts(folder)
    return made, facts


def _record(folder: Path) -> dict[str, Any]:
    path = folder / RECORD
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return found


def _is_complete(folder: Path) -> bool:
    return bool(_record(folder).get("complete"))


def _counts(folder: Path) -> dict[str, Any]:
    tables = _record(folder)["tables"]
    found: dict[str, Any] = {"by": _record(folder)["detector"]["name"]}
    for part, pictured, boxed in (
        ("products", "products", "products_with_box"),
        ("queries", "photos", "queries_with_box"),
    ):
        counts = tables.get(part, {})
        found[pictured] = sum(counts.values()) - counts.get(_WITHOUT_PICTURE, 0)
        found[boxed] = sum(counts.get(outcome, 0) for outcome in _WITH_BOX)
    return found
