"""Read `--key value …` of a recipe. A value is YAML, or plain text for a key whose type is text."""

from collections.abc import Mapping, Sequence
from typing import Any, get_args

import yaml

from training.errors import RecipeError
from training.recipe.checking import alternatives, check_keys
from training.recipe.files import Replaced, read_yaml
from training.recipe.old_names import OLD_KEYS, REMOVED, with_new_names

_NULLS = ("null", "Null", "NULL", "~")
"""The words that YAML reads as null."""
_WHERE = "command line"


def with_arguments(
    values: Mapping[str, Any], arguments: Sequence[str], hints: Mapping[str, Any], defaults: Mapping[str, Any]
) -> dict[str, Any]:
    """Return recipe keys, replaced by those of the command line.

    `--key value` and `--key=value` replace a key, and `--key.part value` one part of a mapping. A list is written
    `--key a b` or `--key '[a, b]'`, and null `--key null`. `--key` alone is true; `--no_key` is false for a key whose
    default is true. A hyphen in a key is read as an underscore. If a key is given twice, the last value counts.

    Args:
        values: the keys of the recipe file.
        arguments: `--key value …`.
        hints: every key with its type.
        defaults: every key with its default, in which `--key.part` replaces a part if `values` does not have the key.

    Raises:
        RecipeError: a key is unknown or without a value, a value is without a key, or a value is not valid YAML.
    """
    keys = dict(values)
    for key, part, words in _split(arguments, hints, defaults):
        hint = hints.get(OLD_KEYS.get(key, key), Any)
        if not part:
            keys |= with_new_names({key: _value(key, words, hint)}, _WHERE)
            continue
        for name, parts in with_new_names({key: {part: _value(f"{key}.{part}", words, Any)}}, _WHERE).items():
            whole = keys.get(name, defaults[name])
            keys[name] = {**whole, **parts} if isinstance(whole, dict) else parts
    return keys


def _split(
    arguments: Sequence[str], hints: Mapping[str, Any], defaults: Mapping[str, Any]
) -> list[tuple[str, str, list[str]]]:
    """Return every key of the command line with its part ("" for the whole key) and its words."""
    known = [*hints, *OLD_KEYS, *REMOVED]
    split: list[tuple[str, str, list[str]]] = []
    for word in arguments:
        if not word.startswith("--"):
            if not split or _is_complete(split[-1], hints):
                raise RecipeError(f"{_WHERE}: found {word!r} without its --key; expected --key value")
            split[-1][2].append(word)
            continue
        name, equals, text = word[2:].partition("=")
        key, _, part = name.partition(".")
        key = key.replace("-", "_")
        words = [text] if equals else []
        off = key.removeprefix("no_")
        if key not in known and off in hints:
            if defaults.get(off) is not True or part or equals:
                value = "false" if bool in alternatives(hints[off]) else "value"
                raise RecipeError(f"{_WHERE}: found --{key}; expected --{off} {value}")
            key, words = off, ["false"]
        check_keys([key], known, where=_WHERE)
        if part and not _is_mapping(hints.get(OLD_KEYS.get(key, key))):
            raise RecipeError(f"{_WHERE}: found --{key}.{part}, but {key} is not a mapping; expected --{key} value")
        split.append((key, part, words))
    return split


def _is_mapping(hint: Any) -> bool:
    """Return whether parts of a key can be replaced. TrainingArguments parses its own mappings, which may be text."""
    kinds = alternatives(hint)
    return str not in kinds and any(isinstance(kind, type) and issubclass(kind, dict) for kind in kinds)


def _is_complete(argument: tuple[str, str, list[str]], hints: Mapping[str, Any]) -> bool:
    """Return whether a key of the command line does not take another word."""
    key, part, words = argument
    return len(words) > 0 and (bool(part) or list not in alternatives(hints.get(OLD_KEYS.get(key, key))))


def _value(name: str, words: list[str], hint: Any) -> Any:
    """Return the value that the words after a key spell."""
    kinds = alternatives(hint)
    if not words and bool in kinds:
        return True
    if not words or not (words[0] or str in kinds):
        raise RecipeError(f"{_WHERE}: found --{name} without a value; expected --{name} value")
    first = words[0]
    if first in _NULLS and len(words) == 1:
        return None
    if list in kinds and (len(words) > 1 or str not in kinds):
        return _list(name, words, hint)
    if str in kinds:
        return first
    value = _yaml(name, first, "a mapping such as '{a: 1, b: 2}'" if _is_mapping(hint) else "a YAML value")
    return dict(value) if isinstance(value, Replaced) else value


def _list(name: str, words: list[str], hint: Any) -> Any:
    """Return a list from a YAML list or from words, which are read as YAML unless the list contains text."""
    if words[0].startswith("["):
        if len(words) > 1:
            raise RecipeError(f"{_WHERE}: --{name}: found values after {words[0]!r}; expected a single list")
        return _yaml(name, words[0], "a list such as '[a, b]'")
    parts = {kind for option in (hint, *get_args(hint)) for part in get_args(option) for kind in alternatives(part)}
    return list(words) if str in parts else [_yaml(name, word, "a YAML value") for word in words]


def _yaml(name: str, text: str, accepted: str) -> Any:
    try:
        return read_yaml(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"{_WHERE}: --{name}: found {text!r}; expected {accepted}") from error
