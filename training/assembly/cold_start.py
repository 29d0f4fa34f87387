"""Run a cold start before a stage of GRPO, and begin that stage with its model."""

import gc
from collections.abc import Callable

import yaml

from product_data.atomic_files import write_atomically
from training.recipe.arguments import RecipeError, make_recipe
from training.recipe.reasoning import cold_start_values
from training.runs.run import Run


def cold_start_of(run: Run) -> Run | None:
    """Return the run of the cold start that a recipe asks for, checked before anything is written, or None.

    Raises:
        RecipeError: what the recipe's `cold_start` names cannot be run.
    """
    if run.recipe.reasoning.cold_start is None:
        return None
    try:
        values = cold_start_values(run.recipe.resolved, str(run.folder.cold_start.path))
        return Run(make_recipe(run.folder.cold_start_recipe, values, []), is_cold_start=True)
    except ValueError as error:
        raise RecipeError(f"cold_start: {error}") from error


def cold_started(run: Run, cold_start: Run, train: Callable[[Run], None]) -> None:
    """Train the cold start, or find it finished, and let the stage begin with its model.

    Args:
        run: of the stage.
        cold_start: from `cold_start_of`.
        train: `training.train.train`.
    """
    if run.is_first:
        keys = yaml.safe_dump(cold_start.resolved, sort_keys=False, allow_unicode=True)
        write_atomically(run.folder.cold_start_recipe, keys)
    train(cold_start)
    gc.collect()  # its trainer and its callbacks hold each other, and with them its model and the optimizer's state
    run.cold_start_model = cold_start.folder.final
