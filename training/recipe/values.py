"""Check the value of a recipe key against the type that its dataclass declares."""

import enum
import types
import typing
from typing import Any, Literal

from training.recipe.files import RecipeError


def check_value(key: str, value: Any, hint: Any) -> Any:
    """Return the value if its type fits, numbers written as text ("1e-4", which YAML reads as text) converted.

    Args:
        key: the recipe key, for the message.
        value: as YAML gave it.
        hint: the type that the dataclass declares.
    """
    accepted = alternatives(hint)
    for kind in accepted:
        if isinstance(kind, tuple):
            if value in kind:
                return value
        elif kind is float and not isinstance(value, bool):
            try:
                return value if isinstance(value, int) else float(value)
            except (TypeError, ValueError):
                continue
        elif isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
            return value
    raise RecipeError(f"{key}: found {value!r} ({kind_name(type(value))}); expected {accepted_names(accepted)}")


def alternatives(hint: Any) -> list[Any]:
    """Flatten a type hint into plain classes; a Literal or an enumeration becomes the tuple of its values."""
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return [kind for part in typing.get_args(hint) for kind in alternatives(part)]
    if origin is Literal:
        return [typing.get_args(hint)]
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return [tuple(member.value for member in hint)]
    return [origin or hint]


def kind_name(kind: type) -> str:
    """Return what messages call a type."""
    names = {int: "an integer", float: "a number", bool: "true or false", str: "text", list: "a list"}
    return {**names, dict: "a mapping", types.NoneType: "nothing"}.get(kind, kind.__name__)


def accepted_names(accepted: list[Any]) -> str:
    """Return what messages call the types, or the values, that a key accepts."""
    return " or ".join(
        ", ".join(map(str, kind)) if isinstance(kind, tuple) else kind_name(kind) for kind in dict.fromkeys(accepted)
    )
