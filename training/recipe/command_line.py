"""Read `--key value …` of a recipe: each value is YAML, or the text as it stands where the key is text."""

from collections.abc import Mapping, Sequence
from typing import Any, get_args

import yaml

from training.errors import RecipeError
from training.recipe.checking import alternatives, check_keys
from training.recipe.files import Replaced, read_yaml
from training.recipe.old_names import OLD_KEYS, REMOVED, with_new_names

_NULLS = ("null", "Null", "NULL", "~")
"""What YAML reads as nothing."""
_WHERE = "command line"


def with_arguments(
    values: Mapping[str, Any], arguments: Sequence[str], hints: Mapping[str, Any], defaults: Mapping[str, Any]
) -> dict[str, Any]:
    """Return recipe keys with those of the command line in their place.

    `--key value` and `--key=value` replace a key, `--key.part value` one part of a mapping; a list is written `--key a b` or
    `--key '[a, b]'`, nothing `--key null`, true `--key` alone, and false also `--no_key` where true is the default. Hyphens in a
    key stand for underscores. Of a key that is given twice the last counts.

    Args:
        values: the keys of the recipe file.
        arguments: `--key value …`.
        hints: every key with its type.
        defaults: every key with its default, into which the first part of a mapping is put.

    Raises:
        RecipeError: an unknown key, a key without a value, a value without a key, a value that is no YAML.
    """
    found = dict(values)
    for key, part, words in _split(arguments, hints, defaults):
        hint = hints.get(OLD_KEYS.get(key, key), Any)
        if not part:
            found |= with_new_names({key: _value(key, words, hint)}, _WHERE)
            continue
        for name, parts in with_new_names({key: {part: _value(f"{key}.{part}", words, Any)}}, _WHERE).items():
            whole = found.get(name, defaults[name])
            found[name] = {**whole, **parts} if isinstance(whole, dict) else parts
    return found


def _split(
    arguments: Sequence[str], hints: Mapping[str, Any], defaults: Mapping[str, Any]
) -> list[tuple[str, str, list[str]]]:
    """Every key of the command line with its part ("" for all of it) and its words."""
    known = [*hints, *OLD_KEYS, *REMOVED]
    found: list[tuple[str, str, list[str]]] = []
    for word in arguments:
        if not word.startswith("--"):
            if not found or _is_whole(found[-1], hints):
                raise RecipeError(f"{_WHERE}: found {word!r} without its --key; expected --key value")
            found[-1][2].append(word)
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
            raise RecipeError(f"{_WHERE}: {key} is no mapping; found --{key}.{part}; expected --{key} value")
        found.append((key, part, words))
    return found


def _is_mapping(hint: Any) -> bool:
    """Whether parts of a key can be replaced; TrainingArguments reads its mappings, which may be text, itself."""
    kinds = alternatives(hint)
    return str not in kinds and any(isinstance(kind, type) and issubclass(kind, dict) for kind in kinds)


def _is_whole(argument: tuple[str, str, list[str]], hints: Mapping[str, Any]) -> bool:
    """Whether a key has all words that it may have."""
    key, part, words = argument
    return len(words) > 0 and (bool(part) or list not in alternatives(hints.get(OLD_KEYS.get(key, key))))


def _value(name: str, words: list[str], hint: Any) -> Any:
    kinds = alternatives(hint)
    if not words and bool in kinds:
        return True
    if not words or not (words[0] or str in kinds):
        raise RecipeError(f"{_WHERE}: --{name} has no value")
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
    """A list from one YAML text or from words, which are YAML, too, where they cannot be text."""
    if words[0].startswith("["):
        if len(words) > 1:
            raise RecipeError(f"{_WHERE}: --{name}: found more after {words[0]!r}; expected one list")
        return _yaml(name, words[0], "a list such as '[a, b]'")
    parts = {kind for one in (hint, *get_args(hint)) for part in get_args(one) for kind in alternatives(part)}
    return list(words) if str in parts else [_yaml(name, word, "a YAML value") for word in words]


def _yaml(name: str, text: str, accepted: str) -> Any:
    try:
        return read_yaml(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"{_WHERE}: --{name}: found {text!r}; expected {accepted}") from error
