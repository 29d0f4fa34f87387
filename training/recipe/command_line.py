"""Read from the command line what argparse cannot: YAML's null, and a word beside numbers."""

from argparse import ArgumentTypeError
from collections.abc import Mapping
from typing import Any

from training.batches.negatives import AUTO
from training.recipe.values import check_value

_NULLS = ("null", "Null", "NULL", "~")
"""What YAML reads as nothing."""


def take_nulls(arguments: list[str], values: dict[str, Any], hints: Mapping[str, Any]) -> list[str]:
    """Put every `--key null` into the recipe, where it means what it means in a recipe file.

    argparse reads one type per key, so that it takes the null of `--train_minutes null` for a number that it cannot read.

    Args:
        arguments: `--key value …`.
        values: the recipe's keys, which are changed.
        hints: key → type, from `training.recipe.arguments.known_keys`.

    Returns:
        The other arguments.

    Raises:
        RecipeError: null for a key that does not accept it.
    """
    rest: list[str] = []
    position = 0
    while position < len(arguments):
        name, equals, text = arguments[position].partition("=")
        key, used = name.removeprefix("--").replace("-", "_"), 1
        if not equals and position + 1 < len(arguments):
            text, used = arguments[position + 1], 2
        if name.startswith("--") and key in hints and text in _NULLS:
            values[key] = check_value(key, None, hints[key])
            position += used
        else:
            rest.append(arguments[position])
            position += 1
    return rest


def steps_or_auto(text: str) -> int | str:
    """Return the value of `--queue_steps`: argparse reads one type per key.

    Raises:
        ArgumentTypeError: neither a whole number nor "auto".
    """
    try:
        return text if text == AUTO else int(text)
    except ValueError as error:
        raise ArgumentTypeError(f"found {text!r}; expected {AUTO}, or a whole number of at least 0") from error
