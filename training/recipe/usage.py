"""What `--help` of a training prints: how to call it, the recipes that ship, and every key of a recipe by topic."""

import dataclasses
import inspect
import re
import textwrap
from collections.abc import Iterable

from transformers import TrainingArguments

from training.places import RECIPES
from training.recipe.checking import NOT_FOR_RECIPES

_CALL = (
    "usage: python training/train.py RECIPE.yaml [--key value …]\n"
    "       accelerate launch training/train.py RECIPE.yaml [--key value …]\n"
    "Recipes in training/recipes: {recipes}\n"
    "A part of a mapping is replaced by --key.part value, a mapping whole by --key '{{part: value}}', a list by --key a b or "
    "--key '[a, b]'; --key null is YAML's null. Every key, by topic:"
)


def usage_of(groups: Iterable[type]) -> str:
    """Return the help text.

    Args:
        groups: whose docstrings describe the keys.
    """
    recipes = ", ".join(sorted(path.name for path in RECIPES.glob("*.yaml")))
    topics = [inspect.cleandoc(group.__doc__ or "").replace("\nArgs:", "") for group in groups]
    topics = [re.sub(r"^    (?=\w+: )", "    --", topic, flags=re.MULTILINE) for topic in topics]
    known = (entry.name for entry in dataclasses.fields(TrainingArguments) if entry.name not in NOT_FOR_RECIPES)
    theirs = textwrap.fill(" ".join(f"--{name}" for name in known), 120, break_on_hyphens=False)
    return "\n\n".join([_CALL.format(recipes=recipes), *topics, f"Those of TrainingArguments:\n{theirs}"])
