"""Check groups of recipe keys with pydantic, with messages of the form `key: found X; expected Y`.

A group is a frozen pydantic dataclass. Its annotations state types, ranges and choices; its validators check the rest.
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
"""The configuration of every group and of its mappings: values are not converted, except integers to floats."""
Count = Annotated[int, Field(ge=1)]
NotNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
FORMS = ("t", "i", "mm")
"""The forms of a query or product: text, image, or both."""

Group = TypeVar("Group")
_KIND_NAMES = {
    int: "an integer",
    float: "a number",
    bool: "true or false",
    str: "text",
    list: "a list",
    dict: "a mapping",
}
_TYPE_ERRORS = {f"{kind.__name__}_type": name for kind, name in _KIND_NAMES.items()} | {"string_type": "text"}
_RANGE_ERRORS = {
    "greater_than": "a number above {gt}",
    "greater_than_equal": "a number of at least {ge}",
    "less_than": "a number below {lt}",
    "less_than_equal": "a number of at most {le}",
    "finite_number": "a finite number",
}
_NO_EPOCHS = "training pairs are drawn without epochs; set max_steps or train_minutes"
# Names of keys in other programs, and keys of other programs that recipes do not have.
_SHORT_NAMES = {"lr": "learning_rate", "wd": "weight_decay", "steps": "max_steps", "model": "base", "dataset": "data"}
_SHORT_NAMES |= dict.fromkeys(("bs", "batch_size"), "per_device_train_batch_size")
_SHORT_NAMES |= {"warmup_ratio": "warmup_steps"}  # values below 1 are a share of all steps
_MISSING_KEYS = dict.fromkeys(("epochs", "num_epochs", "max_epochs"), _NO_EPOCHS)
_SHARDED = "the launcher shards a model over GPUs: accelerate launch --config_file training/launch/fsdp2.yaml"
_ALWAYS_TRAINS = (
    "a recipe always trains, and training is not interrupted for evaluation; use evaluate_before and evaluate_after"
)
NOT_FOR_RECIPES = {
    "num_train_epochs": _NO_EPOCHS,
    "resume_from_checkpoint": "run the same command again to resume from the last valid checkpoint in output_dir",
    "ignore_data_skip": "a resumed run continues with the next pair of the data",
    "data_seed": "seed decides which pairs are drawn",
    "train_sampling_strategy": "query_mix decides which pairs are drawn, as a function of (seed, position)",
    "remove_unused_columns": "the collator makes the inputs of the model",
    "auto_find_batch_size": "the batch size decides which pairs are drawn; set per_device_train_batch_size",
    "load_best_model_at_end": "nothing is evaluated during training; evaluate the checkpoints with moon3 evaluate",
    "eval_strategy": "use evaluate_before and evaluate_after, or moon3 evaluate on a checkpoint",
    "save_only_model": "a run cannot resume from a checkpoint without the state of the optimizer",
    "label_smoothing_factor": "InfoNCE does not have labels to smooth",
    "accelerator_config": "the distribution of batches over processes decides which pairs each process draws",
}
NOT_FOR_RECIPES |= dict.fromkeys(("fsdp", "fsdp_config", "deepspeed", "parallelism_config"), _SHARDED)
NOT_FOR_RECIPES |= dict.fromkeys(("do_train", "do_eval", "do_predict", "prediction_loss_only"), _ALWAYS_TRAINS)
NOT_FOR_RECIPES |= dict.fromkeys(("eval_steps", "eval_delay", "eval_on_start"), _ALWAYS_TRAINS)
NOT_FOR_RECIPES |= dict.fromkeys(("metric_for_best_model", "greater_is_better"), _ALWAYS_TRAINS)
"""Keys of TrainingArguments that a recipe cannot set, each with the reason or the alternative."""


def make_group(group: Callable[..., Group], values: Mapping[str, Any]) -> Group:
    """Check the keys of a group and return the group.

    Args:
        group: a pydantic dataclass.
        values: its keys. Missing keys have their defaults.

    Raises:
        RecipeError: at least one key is wrong; the message has a line for each.
    """
    try:
        return group(**values)
    except ValidationError as error:
        raise RecipeError(error_message(error, values)) from error


def check_value(kind: Any, value: Any, key: str) -> None:
    """Raise RecipeError for a value of the wrong type.

    Args:
        kind: a type, as in an annotation.
        value: the value in a recipe.
        key: the name of the key in the message.

    Raises:
        RecipeError: the value or a part of it has the wrong type; the message names the key and the part.
    """
    try:
        TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        raise RecipeError(error_message(error, value, key)) from error


def error_message(error: ValidationError, values: Any, key: str = "") -> str:
    """Return the errors of pydantic in the form of recipe errors, one per line.

    Messages of the project's validators are not changed, except that the key is put before a message that begins with
    "found" or "unknown key".

    Args:
        error: the error of pydantic.
        values: the validated values.
        key: the key of the recipe that holds the values.
    """
    messages: dict[str, tuple[str, list[str]]] = {}
    for detail in error.errors(include_url=False):
        where = _path(detail["loc"], values, key)
        if detail["type"] == "value_error":
            sentence = str(detail["ctx"]["error"])
            message = f"{where}: {sentence}" if sentence.startswith(("found ", "unknown key ")) else sentence
            messages[message] = (message, [])
            continue
        kind = f" ({kind_name(type(detail['input']))})" if detail["type"] in _TYPE_ERRORS else ""
        messages.setdefault(where, (f"{where}: found {detail['input']!r}{kind}", []))[1].append(_expected(detail))
    return "\n".join(
        start + (f"; expected {' or '.join(dict.fromkeys(accepted))}" if accepted else "")
        for start, accepted in messages.values()
    )


def _path(loc: Iterable[int | str], values: Any, key: str) -> str:
    """Return the key and its parts, without pydantic's names for the alternatives of a union."""
    path = key
    for part in loc:
        if isinstance(values, dict) and part in values:
            path, values = f"{path}.{part}" if path else str(part), values[part]
        elif isinstance(values, list) and isinstance(part, int):
            path, values = f"{path}[{part}]", values[part]
    return path


def _expected(detail: Any) -> str:
    """Return the accepted values of an error of pydantic."""
    context = detail.get("ctx", {})
    if detail["type"] in _RANGE_ERRORS:
        bounds = {name: int(bound) if bound == int(bound) else bound for name, bound in context.items()}
        return _RANGE_ERRORS[detail["type"]].format(**bounds)
    if detail["type"] == "literal_error":
        return context["expected"].replace("'", "")
    return _TYPE_ERRORS.get(detail["type"]) or detail["msg"]


def kind_name(kind: type) -> str:
    """Return the name of a type in messages."""
    return "nothing" if kind is type(None) else _KIND_NAMES.get(kind, kind.__name__)


def check_keys(keys: Iterable[str], known: Iterable[str], where: str) -> None:
    """Raise RecipeError for a key that does not exist (with the nearest known key) or that a recipe cannot set."""
    known = list(known)
    for key in keys:
        if key not in known:
            raise RecipeError(f"{where}: {_unknown(key, known)}")
        if key in NOT_FOR_RECIPES:
            raise RecipeError(f"{where}: key {key!r} cannot be set; {NOT_FOR_RECIPES[key]}")


def _unknown(key: str, known: list[str]) -> str:
    if key in _MISSING_KEYS and "max_steps" in known:
        return f"unknown key {key!r}; {_MISSING_KEYS[key]}"
    short = _SHORT_NAMES.get(key)
    near = [short] if short in known else difflib.get_close_matches(str(key), known, n=1, cutoff=0.0)
    return f"unknown key {key!r}; the nearest known key is {near[0]!r}"


def mapping_of(kinds: Mapping[str, Any]) -> Any:
    """Return the type of a mapping that may have any of these parts, each with its own type."""
    typed_dict: Any = TypedDict
    mapping = typed_dict("mapping", dict(kinds), total=False)
    mapping.__pydantic_config__ = CONFIG
    return Annotated[mapping, BeforeValidator(functools.partial(_check_parts, list(kinds)))]


def _check_parts(known: list[str], value: Any) -> Any:
    for part in value if isinstance(value, dict) else ():
        if part not in known:
            raise ValueError(_unknown(part, known))
    return value


def _check_sum(mix: dict[str, float]) -> dict[str, float]:
    if not sum(mix.values()) > 0:
        raise ValueError(f"found {mix}; expected at least one share greater than 0")
    return mix


Weights = Annotated[dict[str, NotNegative], BeforeValidator(functools.partial(_check_parts, list(FORMS)))]
"""A number for each form. Forms can be left out."""
Mix = Annotated[Weights, AfterValidator(_check_sum)]
"""Relative frequencies of forms, at least one of them above 0."""


def alternatives(hint: Any) -> list[Any]:
    """Return the classes of a type hint. A Literal is returned as `Literal`."""
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return [kind for part in typing.get_args(hint) for kind in alternatives(part)]
    if origin is Annotated:
        return alternatives(typing.get_args(hint)[0])
    return [origin or hint]
