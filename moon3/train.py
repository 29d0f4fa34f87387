"""Train a model from a recipe (several processes: accelerate launch training/train.py)."""

from __future__ import annotations

ORDER = 50


def run(words: list[str]) -> None:
    """Train, or print the keys of recipes.

    Args:
        words: `RECIPE.yaml --key value …`.
    """
    from training.recipe.arguments import parse_recipe, usage

    if {"-h", "--help"} & set(words):
        print(usage())
        return
    from training.runs.run import Run
    from training.train import train

    train(Run(parse_recipe(words)))
