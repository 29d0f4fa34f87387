"""Old names of recipe keys and of their values: understood for one version, with a warning that names the new one."""

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
"""Keys that are arguments in code now: the only value that a recipe may still give, and of what they are an argument."""


def with_new_names(values: Mapping[str, Any], where: str | None = None) -> dict[str, Any]:
    """Return recipe keys under their new names; a mapping keeps its order, and `cold_start` is renamed like the recipe.

    Args:
        values: recipe keys, such as those of a file.
        where: what a FutureWarning about old names calls their place; None: without warning, for recipes that a run stored.

    Raises:
        RecipeError: a key under both names, or a removed key with a value that nothing reads any more; of a stored recipe,
            that key stays as it is, so that it differs from every new one.
    """
    found: dict[str, Any] = {}
    for key, value in values.items():
        if key in REMOVED and not _stays(key, value, where):
            continue
        name = OLD_KEYS.get(key, key)
        if name in found or (name != key and name in values):
            raise RecipeError(f"{name}: found it also under its old name; expected {name} alone")
        found[name] = _new_value(name, value, where)
        if name != key:
            _warn(where, key, name)
    return found


def _stays(key: str, value: Any, where: str | None) -> bool:
    """Whether a removed key is kept: in a stored recipe, with a value that counted; elsewhere such a value is refused."""
    default, now = REMOVED[key]
    if where is None:
        return value != default
    if value != default:
        raise RecipeError(f"{key}: found {value!r}; expected leaving it out: it is no key of recipes now, but {now}")
    warnings.warn(f"{where}: {key} is no key of recipes now, but {now}; leave it out", FutureWarning, stacklevel=4)
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
            f"{where}: {old} is now {new}; the old name goes with the next version", FutureWarning, stacklevel=5
        )
