"""Replace old names of recipe keys and values, which are accepted for one version, with a warning."""

import warnings
from collections.abc import Mapping
from typing import Any

from training.errors import RecipeError

_FORMS = {"image": "i", "text": "t", "both": "mm"}
OLD_KEYS = {"target_mix": "product_mix"}
OLD_VALUES: dict[str, dict[Any, Any]] = {"stage": {"reasoning": "grpo"}}
OLD_PARTS = {"query_mix": _FORMS, "product_mix": _FORMS}
REMOVED: dict[str, tuple[Any, str]] = {
    "filter_kappa": (20.0, "kappa of training.losses.sample_filter.SampleFilter"),
    "filter_margin_start": (0.1, "start of training.losses.sample_filter.SampleFilter"),
    "filter_margin_end": (0.0, "end of training.losses.sample_filter.SampleFilter"),
    "filter_schedule": ("cosine", "schedule of training.losses.sample_filter.SampleFilter"),
    "filter_weight": (None, "weight of training.losses.sample_filter.SampleFilter"),
    "matryoshka_weights": ([], "weights of training.losses.matryoshka.MatryoshkaLoss"),
    "rollout_top_p": (1.0, "top_p of trl.GRPOConfig"),
}
"""Removed key → (the only value that is still accepted, the argument in code that replaces the key)."""


def with_new_names(values: Mapping[str, Any], where: str | None = None) -> dict[str, Any]:
    """Return recipe keys under their new names, in the same order. The keys of `cold_start` are renamed, too.

    Args:
        values: recipe keys, such as those of a file.
        where: the place of the keys in a FutureWarning about old names. None: do not warn, for the stored recipe of a
            run.

    Raises:
        RecipeError: a key occurs under both names, or a removed key has a value that is no longer supported. In a
            stored recipe (`where` is None) such a key is kept, so it differs from every new recipe.
    """
    renamed: dict[str, Any] = {}
    for key, value in values.items():
        if key in REMOVED and not _keeps_removed(key, value, where):
            continue
        name = OLD_KEYS.get(key, key)
        if name in renamed or (name != key and name in values):
            raise RecipeError(f"{name}: also set under its old name; expected {name} alone")
        renamed[name] = _new_value(name, value, where)
        if name != key:
            _warn(where, key, name)
    return renamed


def _keeps_removed(key: str, value: Any, where: str | None) -> bool:
    """Return whether a removed key is kept, as in a stored recipe; otherwise raise RecipeError for unsupported values."""
    default, now = REMOVED[key]
    if where is None:
        return value != default
    if value != default:
        raise RecipeError(
            f"{key}: found {value!r}; expected the key to be left out: it is no longer a recipe key, but {now}"
        )
    warnings.warn(f"{where}: {key} is no longer a recipe key, but {now}; leave it out", FutureWarning, stacklevel=4)
    return False


def _new_value(key: str, value: Any, where: str | None) -> Any:
    if key == "cold_start" and isinstance(value, dict):
        return type(value)(with_new_names(value, where and f"{where}: cold_start"))
    if isinstance(value, str) and value in OLD_VALUES.get(key, ()):
        _warn(where, f"{key}: {value}", f"{key}: {OLD_VALUES[key][value]}")
        return OLD_VALUES[key][value]
    if not isinstance(value, dict) or not any(part in OLD_PARTS.get(key, ()) for part in value):
        return value
    parts = [OLD_PARTS[key].get(part, part) for part in value]
    if len(set(parts)) < len(parts):
        raise RecipeError(f"{key}: found parts under their old and new names in {dict(value)}; expected the new ones")
    _warn(where, f"{key}: {dict(value)}", f"{key}: {dict(zip(parts, value.values(), strict=True))}")
    return type(value)(zip(parts, value.values(), strict=True))


def _warn(where: str | None, old: str, new: str) -> None:
    if where is not None:
        warnings.warn(
            f"{where}: {old} is now {new}; the next version removes the old name", FutureWarning, stacklevel=5
        )
