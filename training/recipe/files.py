"""Read recipe files: strict YAML, inheritance by `extends`, and merging of mappings."""

import re
from pathlib import Path
from typing import Any

import yaml

from training.errors import RecipeError
from training.recipe.old_names import with_new_names

REPLACE_TAG = "!replace"


class Replaced(dict):
    """A mapping that replaces an inherited one instead of merging with it: `query_mix: !replace {mm: 1}`."""


class Loader(yaml.SafeLoader):
    """Safe YAML loader that rejects duplicate keys, of which PyYAML keeps the last, and supports `!replace`.

    `1e-4` is a number, as in YAML 1.2; PyYAML reads it as text.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [key.value for key, _ in node.value]
        twice = sorted({key for key in keys if keys.count(key) > 1})
        if twice:
            raise RecipeError(f"{node.start_mark.name}: key {twice[0]!r} found twice; expected once")
        return super().construct_mapping(node, deep)

    def construct_replaced(self, node: yaml.Node) -> Replaced:
        if not isinstance(node, yaml.MappingNode):
            where = f"{node.start_mark.name}, line {node.start_mark.line + 1}"
            raise RecipeError(
                f"{where}: found {REPLACE_TAG} before a value that is not a mapping; "
                f"expected {REPLACE_TAG} {{part: value}}, or the value alone, which always replaces the inherited one"
            )
        return Replaced(self.construct_mapping(node, deep=True))


Loader.add_constructor(REPLACE_TAG, Loader.construct_replaced)
_EXPONENT = re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$")
Loader.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+0123456789"))


def read_yaml(text: str) -> Any:
    """Return the value of a YAML text.

    Raises:
        yaml.YAMLError: the text is not valid YAML.
        RecipeError: a key occurs twice, or `!replace` precedes a value that is not a mapping.
    """
    return yaml.load(text, Loader=Loader)


def read_recipe_file(path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Read a YAML recipe and the recipes that it `extends`.

    `extends: other.yaml` refers to a file in the same folder. The recipe inherits its keys and replaces those that it
    sets. Mappings are merged key by key, except a mapping with the tag `!replace`, which replaces the inherited one
    (our design; precedent: `!override` in Docker Compose files). Old names of keys are replaced by the new ones, with a
    warning.

    Args:
        path: the file.
        seen: the files that extend this one, to detect a cycle.

    Raises:
        RecipeError: the file is missing or not valid YAML, a key occurs twice, a recipe extends itself, or `!replace`
            precedes a value that is not a mapping.
    """
    path = path.resolve()
    if path in seen:
        raise RecipeError(f"extends: found {path}, which extends itself; expected recipes without a cycle")
    if not path.is_file():
        raise RecipeError(f"recipe: found no file {path}; expected a YAML file")
    try:
        with path.open(encoding="utf-8") as stream:
            values = yaml.load(stream, Loader=Loader)
    except yaml.YAMLError as error:
        raise RecipeError(f"{path}: found invalid YAML ({error}); expected valid YAML") from error
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise RecipeError(f"{path}: found {type(values).__name__}; expected a mapping of keys to values")
    values = with_new_names(values, str(path))
    parent = values.pop("extends", None)
    if parent is None:
        return merged({}, values)
    if not isinstance(parent, str):
        raise RecipeError(f"extends: found {parent!r}; expected the name of one YAML file")
    return merged(read_recipe_file(path.parent / parent, (*seen, path)), values)


def merged(inherited: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """Return inherited keys, replaced by `values`. Mappings of the same key are merged unless tagged `!replace`."""
    result = dict(inherited)
    for key, value in values.items():
        known = result.get(key)
        if isinstance(value, Replaced):
            result[key] = dict(value)
        elif isinstance(value, dict) and isinstance(known, dict):
            result[key] = {**known, **value}
        else:
            result[key] = value
    return result


def refuse_nested_replace(values: Any, where: str = "") -> None:
    """Raise RecipeError for `!replace` inside a value, where it has no effect.

    Args:
        values: the recipe's keys, from `read_recipe_file`.
        where: the path of keys to `values`.

    Raises:
        RecipeError: `!replace` occurs inside a value; the message names the path of keys.
    """
    if isinstance(values, Replaced):
        raise RecipeError(
            f"{where}: found {REPLACE_TAG} below another key; expected {REPLACE_TAG} only at a top-level key of the "
            "recipe, and here every part of the mapping by name"
        )
    entries = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    for key, value in entries:
        refuse_nested_replace(value, f"{where}.{key}" if where else str(key))
