"""Decide whether two recipes are the same run, and say in which keys they differ."""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from training.recipe.arguments import default_values
from training.recipe.data import TABLE_KEYS
from training.recipe.old_names import with_new_names
from training.recipe.training import training_defaults

MAY_DIFFER_ON_RESUME = frozenset(
    ("output_dir", "overwrite", "save_steps", "save_total_limit", "report_to", "disable_tqdm", "log_level", "run_name")
    + ("dataloader_num_workers", "dataloader_pin_memory", "dataloader_persistent_workers", "dataloader_prefetch_factor")
    + ("evaluate_before", "evaluate_after", "evaluate_split", "evaluate_products", "evaluate_reasoning")
    + ("completions_steps",)
)
"""Keys that may change between a run and its continuation, because they do not change what is computed."""
_PATH_KEYS = ("path", "parquet", *TABLE_KEYS)
_NO_PATH = "catalogue"


def differing_keys(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return the keys that define what is computed and differ between two resolved recipes.

    A key that a recipe does not hold has its default. Two spellings of one path are one: relative ones start in the working
    directory. A run with train_minutes keeps the max_steps that was measured at its start; one below 1 was not measured yet. What
    a run stored under old names is compared under the new ones.

    Args:
        old: of a run that was begun.
        new: of the command that goes on.
    """
    old, new = with_new_names(old), with_new_names(new)
    unsettled = min(old.get("max_steps", -1), new.get("max_steps", -1)) < 1
    measured = new.get("train_minutes") is not None and unsettled
    keys = sorted((set(old) | set(new)) - MAY_DIFFER_ON_RESUME)
    return [key for key in keys if _meant(key, old) != _meant(key, new) and not (measured and key == "max_steps")]


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Say how two resolved recipes differ, "key: old → new; …", each with the value that it has by default where it names none.

    Args:
        old, new: as in `differing_keys`.
    """
    old, new = with_new_names(old), with_new_names(new)
    return "; ".join(f"{key}: {_value(key, old)!r} → {_value(key, new)!r}" for key in differing_keys(old, new))


def _value(key: str, recipe: Mapping[str, Any]) -> Any:
    return recipe[key] if key in recipe else _defaults().get(key)


@functools.cache
def _defaults() -> dict[str, Any]:
    """What a key means that a resolved recipe leaves out: of TrainingArguments the library's own defaults.

    A resolved recipe holds each of our keys, and those of the library that differ from the library's default. One that lacks a
    key of ours was written before there was such a key.
    """
    return {**default_values(), **training_defaults(TrainingArguments)}


def _meant(key: str, recipe: Mapping[str, Any]) -> Any:
    """The value of a key, with every path in one spelling."""
    value = _value(key, recipe)
    if key == "data" and isinstance(value, list):
        return [_entry(one) for one in value]
    if key == "base":
        return _path(value)
    if key == "cold_start" and isinstance(value, dict):
        return {name: _number(_meant(name, value)) for name in value}
    return value


def _number(value: Any) -> Any:
    """A number that the version before stored as text, as PyYAML reads `1e-4`; anything else as it is."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _entry(entry: Any) -> Any:
    """An entry of `data`; a bare path is a mapping with nothing but the path. Its licence changes nothing that is computed."""
    if isinstance(entry, str):
        entry = {"path": entry}
    if not isinstance(entry, dict):
        return entry
    return {key: _path(value) if key in _PATH_KEYS else value for key, value in entry.items() if key != "licence"}


def _path(value: Any) -> Any:
    if isinstance(value, list):
        return [_path(one) for one in value]
    return str(Path(value).resolve()) if isinstance(value, str) and value != _NO_PATH else value
