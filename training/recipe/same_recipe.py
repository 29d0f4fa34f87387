"""Decide whether two recipes describe the same run, and list the keys in which they differ."""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from training.recipe.arguments import default_values
from training.recipe.data import AUTO_VARIANTS, TABLE_KEYS, CoAugmentation
from training.recipe.old_names import with_new_names
from training.recipe.training import training_defaults

MAY_DIFFER_ON_RESUME = frozenset(
    ("output_dir", "overwrite", "save_steps", "save_total_limit", "report_to", "disable_tqdm", "log_level", "run_name")
    + ("dataloader_num_workers", "dataloader_pin_memory", "dataloader_persistent_workers", "dataloader_prefetch_factor")
    + (
        "evaluate_before",
        "evaluate_after",
        "evaluate_split",
        "evaluate_products",
        "evaluate_reasoning",
        "evaluate_data",
    )
    + ("completions_steps",)
)
"""Keys that may change when a run is resumed, because they do not change what is computed."""
_PATH_KEYS = ("path", "parquet", *TABLE_KEYS)
_CATALOGUE = "catalogue"


def differing_keys(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return the keys that define what is computed and differ between two resolved recipes.

    A missing key has its default. Paths are compared as absolute paths, relative to the working directory. A run with
    train_minutes keeps the max_steps that was measured at its start; a value below 1 has not been measured yet. Keys
    that are stored under old names are compared under the new ones.

    Args:
        old: the recipe that a run has stored.
        new: the recipe of the command that resumes the run.
    """
    old, new = with_new_names(old), with_new_names(new)
    unmeasured = min(old.get("max_steps", -1), new.get("max_steps", -1)) < 1
    skip_steps = new.get("train_minutes") is not None and unmeasured
    keys = sorted((set(old) | set(new)) - MAY_DIFFER_ON_RESUME)
    return [
        key
        for key in keys
        if _comparable(key, old) != _comparable(key, new) and not (skip_steps and key == "max_steps")
    ]


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Return the differences of two resolved recipes as "key: old → new; …". A missing key has its default.

    Args:
        old, new: see `differing_keys`.
    """
    old, new = with_new_names(old), with_new_names(new)
    return "; ".join(f"{key}: {_value(key, old)!r} → {_value(key, new)!r}" for key in differing_keys(old, new))


def _value(key: str, recipe: Mapping[str, Any]) -> Any:
    return recipe[key] if key in recipe else _defaults().get(key)


@functools.cache
def _defaults() -> dict[str, Any]:
    """Return the values of the keys that a resolved recipe leaves out.

    A resolved recipe contains every key of the project, and those keys of TrainingArguments that differ from the
    default of transformers. If it lacks a key of the project, it was written before that key existed.
    """
    return {**default_values(), **training_defaults(TrainingArguments)}


def _comparable(key: str, recipe: Mapping[str, Any]) -> Any:
    """Return the value of a key, with absolute paths."""
    value = _value(key, recipe)
    if key == "data" and isinstance(value, list):
        return [_entry(entry) for entry in value]
    if key in ("base", "compatible_with"):
        return _path(value)
    if key == "co_augmentation" and value is not None:
        return _co_augmentation(value)
    if key == "teachers" and isinstance(value, list):
        return [_teacher(entry) for entry in value]
    if key == "cold_start" and isinstance(value, dict):
        return {name: _number(_comparable(name, value)) for name in value}
    return value


def _teacher(entry: Any) -> Any:
    """Return an entry of `teachers` with its defaults, and its folders as a list of absolute paths."""
    if not isinstance(entry, dict):
        return entry
    if "vectors" not in entry:
        return {"weight": 1.0, "kind": "direct"} | entry
    folders = entry["vectors"] if isinstance(entry["vectors"], list) else [entry["vectors"]]
    return {"weight": 1.0, "kind": "direct"} | entry | {"vectors": [_path(folder) for folder in folders]}


def _co_augmentation(value: Any) -> Any:
    """Return `co_augmentation` with its defaults, and its folders as a list of absolute paths."""
    if not isinstance(value, dict):
        return value
    places = value.get("variants", AUTO_VARIANTS)
    listed = places if isinstance(places, list) else [places]
    paths = AUTO_VARIANTS if places == AUTO_VARIANTS else [_path(place) for place in listed]
    return dataclasses.asdict(CoAugmentation()) | value | {"variants": paths}


def _number(value: Any) -> Any:
    """Return a number that an older version stored as text, as PyYAML reads `1e-4`; other values are unchanged."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _entry(entry: Any) -> Any:
    """Return an entry of `data` as a mapping, without its licence, which does not change what is computed."""
    if isinstance(entry, str):
        entry = {"path": entry}
    if not isinstance(entry, dict):
        return entry
    return {key: _path(value) if key in _PATH_KEYS else value for key, value in entry.items() if key != "licence"}


def _path(value: Any) -> Any:
    if isinstance(value, list):
        return [_path(part) for part in value]
    return str(Path(value).resolve()) if isinstance(value, str) and value != _CATALOGUE else value
