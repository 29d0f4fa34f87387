"""Read recipe files: strict YAML, what a recipe inherits by `extends`, and how mappings merge."""

import re
from pathlib import Path
from typing import Any

import yaml

from training.errors import RecipeError
from training.recipe.old_names import with_new_names

REPLACE_TAG = "!replace"


class Replaced(dict):
    """A mapping that replaces an inherited one whole: `query_mix: !replace {both: 1}` in a recipe file."""


class Loader(yaml.SafeLoader):
    """Safe YAML that refuses a key given twice (plain YAML silently keeps the last) and knows `!replace`.

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
                f"expected {REPLACE_TAG} {{part: value}}, and other values without it, which always replace"
            )
        return Replaced(self.construct_mapping(node, deep=True))


Loader.add_constructor(REPLACE_TAG, Loader.construct_replaced)
_EXPONENT = re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$")
Loader.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+0123456789"))


def read_yaml(text: str) -> Any:
    """Return the value of a YAML text.

    Raises:
        yaml.YAMLError: no valid YAML.
        RecipeError: a key given twice, or `!replace` before what is not a mapping.
    """
    return yaml.load(text, Loader=Loader)


def read_recipe_file(path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Read a YAML recipe and those it `extends`.

    `extends: other.yaml` (beside this file) takes over the other recipe; keys given here replace its keys. Mappings are
    merged key by key, except one that is marked `!replace`, which takes the place of the inherited mapping whole (our
    design; precedent: `!override` in Docker Compose files). Old names of keys become the new ones, with a warning.

    Args:
        path: the file.
        seen: the files that led here, to refuse a circle.

    Raises:
        RecipeError: no such file, no valid YAML, a key given twice, a circle, or `!replace` before what is not a mapping.
    """
    path = path.resolve()
    if path in seen:
        raise RecipeError(f"extends: {path} extends itself")
    if not path.is_file():
        raise RecipeError(f"recipe: found no file {path}; expected a YAML file")
    try:
        with path.open(encoding="utf-8") as stream:
            values = yaml.load(stream, Loader=Loader)
    except yaml.YAMLError as error:
        raise RecipeError(f"{path}: no valid YAML: {error}") from error
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
    """Return inherited keys with others in their place; two mappings of one key are merged unless marked `!replace`."""
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
    """Refuse `!replace` below a key of the recipe, where nothing would read it.

    Args:
        values: the recipe's keys, after `read_recipe_file`.
        where: the keys that lead there.

    Raises:
        RecipeError: names the keys.
    """
    if isinstance(values, Replaced):
        raise RecipeError(
            f"{where}: found {REPLACE_TAG} below another key; expected {REPLACE_TAG} at a key of the recipe itself, and here "
            "every part of the mapping by name"
        )
    entries = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    for key, value in entries:
        refuse_nested_replace(value, f"{where}.{key}" if where else str(key))
