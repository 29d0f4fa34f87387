"""Train a cold start before GRPO, and start GRPO from its model."""

import gc
from collections.abc import Callable

import yaml

from product_data.atomic_files import write_atomically
from training.recipe.arguments import RecipeError, make_recipe
from training.recipe.reasoning import cold_start_values
from training.runs.run import Run


def cold_start_of(run: Run) -> Run | None:
    """Return the run of a recipe's cold start, or None for a recipe without a cold start. No files are written.

    Raises:
        RecipeError: the recipe of the cold start cannot be run.
    """
    if run.recipe.reasoning.cold_start is None:
        return None
    try:
        values = cold_start_values(run.recipe.resolved, str(run.folder.cold_start.path))
        return Run(make_recipe(run.folder.cold_start_recipe, values, []), is_cold_start=True)
    except ValueError as error:
        raise RecipeError(f"cold_start: {error}") from error


def train_cold_start(run: Run, cold_start: Run, train: Callable[[Run], None]) -> None:
    """Train the cold start, unless it is finished, and set its model as the starting point of the run.

    Args:
        run: the run of GRPO.
        cold_start: the run from `cold_start_of`.
        train: `training.train.train`.
    """
    if run.is_first:
        keys = yaml.safe_dump(cold_start.resolved, sort_keys=False, allow_unicode=True)
        write_atomically(run.folder.cold_start_recipe, keys)
    train(cold_start)
    gc.collect()  # frees its model and optimizer, because its trainer and callbacks reference each other
    run.cold_start_model = cold_start.folder.final
