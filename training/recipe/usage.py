"""Write the text of `--help`: the command, the recipes of the project, and every key of a recipe with its default."""

import dataclasses
import inspect
import json
import re
import textwrap
from collections.abc import Iterable, Mapping
from typing import Any

from transformers import TrainingArguments

from training.places import RECIPES
from training.recipe.checking import NOT_FOR_RECIPES

_CALL = (
    "usage: python training/train.py RECIPE.yaml [--key value …]\n"
    "       accelerate launch training/train.py RECIPE.yaml [--key value …]\n"
    "Recipes in training/recipes: {recipes}\n"
    "Values on the command line replace those of the recipe. Replace one part of a mapping with --key.part value,\n"
    "a whole mapping with --key '{{part: value}}', and a list with --key a b or --key '[a, b]'. --key null is YAML's null.\n\n"
    "The keys of a recipe, by group:"
)


def usage_of(groups: Iterable[type], defaults: Mapping[str, Any]) -> str:
    """Return the help text.

    Args:
        groups: the groups of keys, whose docstrings describe them.
        defaults: every key with its default.
    """
    recipes = ", ".join(sorted(path.name for path in RECIPES.glob("*.yaml")))
    topics = [inspect.cleandoc(group.__doc__ or "").replace("\nArgs:", "") for group in groups]
    key = re.compile(r"^    (\w+): (.*(?:\n {8}.*)*)", flags=re.MULTILINE)
    topics = [key.sub(lambda match: _described(match[1], match[2], defaults[match[1]]), topic) for topic in topics]
    library = (entry.name for entry in dataclasses.fields(TrainingArguments) if entry.name not in NOT_FOR_RECIPES)
    names = textwrap.fill(" ".join(f"--{name}" for name in library), 120, break_on_hyphens=False)
    return "\n\n".join([_CALL.format(recipes=recipes), *topics, f"Keys of TrainingArguments:\n{names}"])


def _described(key: str, text: str, default: Any) -> str:
    """Return the entry of a key: its description, wrapped, and its default."""
    entry = f"--{key}: {' '.join(text.split())} Default: {json.dumps(default, ensure_ascii=False)}."
    return textwrap.fill(
        entry, 120, initial_indent=" " * 4, subsequent_indent=" " * 8, break_on_hyphens=False, break_long_words=False
    )
