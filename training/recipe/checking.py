"""Check groups of recipe keys with pydantic, and say what is wrong as recipes do: `key: found X; expected Y`.

A group is a frozen pydantic dataclass: its annotations state types, ranges and choices, its validators what they cannot state.
"""

import difflib
import functools
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from training.errors import RecipeError

CONFIG = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
"""Of every group and of the mappings in it: no value is converted, except a whole number where a number is expected."""
Count = Annotated[int, Field(ge=1)]
NotNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
FORMS = ("t", "i", "mm")
"""What a query or product consists of: text, image, or both."""

Group = TypeVar("Group")
_KINDS = {int: "an integer", float: "a number", bool: "true or false", str: "text", list: "a list", dict: "a mapping"}
_OF_TYPE = {f"{kind.__name__}_type": name for kind, name in _KINDS.items()} | {"string_type": "text"}
_OF_RANGE = {
    "greater_than": "a number above {gt}",
    "greater_than_equal": "a number of at least {ge}",
    "less_than": "a number below {lt}",
    "less_than_equal": "a number of at most {le}",
    "finite_number": "a finite number",
}
_NO_EPOCHS = "training pairs are drawn without epochs; set max_steps or train_minutes"
# What other programs call a key, and what they have and recipes have not.
_SHORT_NAMES = {"lr": "learning_rate", "wd": "weight_decay", "steps": "max_steps", "model": "base", "dataset": "data"}
_SHORT_NAMES |= dict.fromkeys(("bs", "batch_size"), "per_device_train_batch_size")
_SHORT_NAMES |= {"warmup_ratio": "warmup_steps"}  # which below 1 is a share of all steps
_NO_SUCH_THING = dict.fromkeys(("epochs", "num_epochs", "max_epochs"), _NO_EPOCHS)
_SHARDED = "the launcher spreads a model over GPUs: accelerate launch --config_file training/launch/fsdp2.yaml"
_NOT_ON_THE_WAY = "a recipe always trains, and nothing is evaluated on the way; use evaluate_before and evaluate_after"
NOT_FOR_RECIPES = {
    "num_train_epochs": _NO_EPOCHS,
    "resume_from_checkpoint": "run the same command again and it resumes from the last good checkpoint in output_dir",
    "ignore_data_skip": "a resumed run continues exactly where the data stopped",
    "data_seed": "seed decides which pairs are drawn",
    "train_sampling_strategy": "pairs are drawn by query_mix, one pure function of (seed, position)",
    "remove_unused_columns": "the collator makes the model's columns",
    "auto_find_batch_size": "the batch size decides which pairs are drawn; set per_device_train_batch_size",
    "load_best_model_at_end": "nothing is evaluated during training; evaluate the checkpoints with moon3 evaluate",
    "eval_strategy": "use evaluate_before and evaluate_after, or moon3 evaluate on a checkpoint",
    "save_only_model": "a checkpoint without its optimizer cannot be resumed from",
    "label_smoothing_factor": "InfoNCE has no labels to smooth",
    "accelerator_config": "how batches are spread over processes decides which pairs each of them draws",
}
NOT_FOR_RECIPES |= dict.fromkeys(("fsdp", "fsdp_config", "deepspeed", "parallelism_config"), _SHARDED)
NOT_FOR_RECIPES |= dict.fromkeys(("do_train", "do_eval", "do_predict", "prediction_loss_only"), _NOT_ON_THE_WAY)
NOT_FOR_RECIPES |= dict.fromkeys(("eval_steps", "eval_delay", "eval_on_start"), _NOT_ON_THE_WAY)
NOT_FOR_RECIPES |= dict.fromkeys(("metric_for_best_model", "greater_is_better"), _NOT_ON_THE_WAY)
"""Settings of TrainingArguments that mean nothing here, each with what to use instead."""


def make_group(group: Callable[..., Group], values: Mapping[str, Any]) -> Group:
    """Return a group of recipe keys, checked.

    Args:
        group: a pydantic dataclass.
        values: its keys; those left out have their defaults.

    Raises:
        RecipeError: one sentence for each key that is wrong.
    """
    try:
        return group(**values)
    except ValidationError as error:
        raise RecipeError(refusal(error, values)) from error


def check_value(kind: Any, value: Any, key: str) -> None:
    """Refuse a value of another type.

    Args:
        kind: a type, as in an annotation.
        value: what a recipe says.
        key: for the message.

    Raises:
        RecipeError: names the key, or the part of it that is wrong.
    """
    try:
        TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        raise RecipeError(refusal(error, value, key)) from error


def refusal(error: ValidationError, values: Any, key: str = "") -> str:
    """Return pydantic's errors as sentences of ours, a line each.

    What a validator of ours says is taken as it is; the key is put before what begins with "found" or "unknown key".

    Args:
        error: what pydantic raised.
        values: what it was given.
        key: where in the recipe these values are.
    """
    said: dict[str, tuple[str, list[str]]] = {}
    for found in error.errors(include_url=False):
        where = _path(found["loc"], values, key)
        if found["type"] == "value_error":
            sentence = str(found["ctx"]["error"])
            whole = f"{where}: {sentence}" if sentence.startswith(("found ", "unknown key ")) else sentence
            said[whole] = (whole, [])
            continue
        kind = f" ({kind_name(type(found['input']))})" if found["type"] in _OF_TYPE else ""
        said.setdefault(where, (f"{where}: found {found['input']!r}{kind}", []))[1].append(_expected(found))
    return "\n".join(
        start + (f"; expected {' or '.join(dict.fromkeys(accepted))}" if accepted else "")
        for start, accepted in said.values()
    )


def _path(loc: Iterable[int | str], values: Any, key: str) -> str:
    """The key and its parts, without what pydantic calls the alternatives of a union."""
    path = key
    for part in loc:
        if isinstance(values, dict) and part in values:
            path, values = f"{path}.{part}" if path else str(part), values[part]
        elif isinstance(values, list) and isinstance(part, int):
            path, values = f"{path}[{part}]", values[part]
    return path


def _expected(found: Any) -> str:
    context = found.get("ctx", {})
    if found["type"] in _OF_RANGE:
        whole = {name: int(end) if end == int(end) else end for name, end in context.items()}
        return _OF_RANGE[found["type"]].format(**whole)
    if found["type"] == "literal_error":
        return context["expected"].replace("'", "")
    return _OF_TYPE.get(found["type"]) or found["msg"]


def kind_name(kind: type) -> str:
    """Return what messages call a type."""
    return "nothing" if kind is type(None) else _KINDS.get(kind, kind.__name__)


def check_keys(keys: Iterable[str], known: Iterable[str], where: str) -> None:
    """Refuse keys that do not exist, naming the nearest that does, and those that mean nothing in a recipe."""
    known = list(known)
    for key in keys:
        if key not in known:
            raise RecipeError(f"{where}: {_unknown(key, known)}")
        if key in NOT_FOR_RECIPES:
            raise RecipeError(f"{where}: key {key!r} cannot be set; {NOT_FOR_RECIPES[key]}")


def _unknown(key: str, known: list[str]) -> str:
    if key in _NO_SUCH_THING and "max_steps" in known:
        return f"unknown key {key!r}; {_NO_SUCH_THING[key]}"
    short = _SHORT_NAMES.get(key)
    near = [short] if short in known else difflib.get_close_matches(str(key), known, n=1, cutoff=0.0)
    return f"unknown key {key!r}; the nearest known key is {near[0]!r}"


def mapping_of(kinds: Mapping[str, Any]) -> Any:
    """Return the type of a mapping with some of these parts, each of its type."""
    typed: Any = TypedDict
    mapping = typed("mapping", dict(kinds), total=False)
    mapping.__pydantic_config__ = CONFIG
    return Annotated[mapping, BeforeValidator(functools.partial(_with_known_parts, list(kinds)))]


def _with_known_parts(known: list[str], value: Any) -> Any:
    for part in value if isinstance(value, dict) else ():
        if part not in known:
            raise ValueError(_unknown(part, known))
    return value


def _something_in_it(mix: dict[str, float]) -> dict[str, float]:
    if not sum(mix.values()) > 0:
        raise ValueError(f"found {mix}; expected at least one share greater than 0")
    return mix


Weights = Annotated[dict[str, NotNegative], BeforeValidator(functools.partial(_with_known_parts, list(FORMS)))]
"""A number for each form; a form that is left out has none."""
Mix = Annotated[Weights, AfterValidator(_something_in_it)]
"""Relative frequencies of forms."""


def alternatives(hint: Any) -> list[Any]:
    """Flatten a type hint into plain classes; any Literal becomes `Literal` itself."""
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return [kind for part in typing.get_args(hint) for kind in alternatives(part)]
    if origin is Annotated:
        return alternatives(typing.get_args(hint)[0])
    return [origin or hint]
