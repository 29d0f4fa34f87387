"""Read a scaling suite: which training tokens, negatives and lengths of behaviour are measured, with which seeds."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from applications.ctr.model import VARIANTS
from applications.scaling.power_law import LEAST_POINTS, ScalingError
from training.recipe.arguments import RecipeError
from training.recipe.checking import check_keys
from training.recipe.files import merged, read_recipe_file
from training.recipe.old_names import with_new_names
from training.studies.ablation_suite import Suite, resolved_cell

SUITE_KEYS = ("base", "seeds", "keys", "design", "steps", "negatives", "history")
HISTORY_KEYS = ("log", "vectors", "lengths", "variant")
STAR, GRID = "star", "grid"


@dataclass(frozen=True, eq=False)
class History:
    """The axis of behaviour length: click models with different numbers of clicks in the history.

    Args:
        log (`str`): log of showings, see `applications.ctr.study`.
        vectors (`str`): folder of `moon3 embed` with the log's products.
        lengths: numbers of clicks, ascending.
        variant (`str`): what the click model uses. Default "ids_vectors_histogram".
    """

    log: str
    vectors: str
    lengths: list[int]
    variant: str = "ids_vectors_histogram"


@dataclass(frozen=True, eq=False)
class ScaleSuite:
    """A scaling suite.

    Args:
        path: the suite's file.
        seeds: seeds of all trainings.
        steps, negatives: values of the axes of training, ascending; empty: no training.
        cells: cell → (steps, negatives).
        trainings: the same cells as a suite of `training.studies.ablate`.
        history: the axis of behaviour length, or `None`.
        facts: the design and the recipe, for the results file.
    """

    path: Path
    seeds: list[int]
    steps: list[int]
    negatives: list[int]
    cells: dict[str, tuple[int, int]]
    trainings: Suite
    history: History | None = None
    facts: dict[str, Any] = field(default_factory=dict)


def read_scale_suite(path: Path) -> ScaleSuite:
    """Read and check a suite; every training must be a recipe that can be run, and every axis long enough for a fit.

    Args:
        path: flat YAML: base (path of a recipe, relative to the suite's folder), seeds, keys (of every training), steps and
            negatives (lists of whole numbers), design ("star": each axis at the largest value of the other; "grid": all
            combinations; default "star"), and optionally history (log, vectors, lengths, variant; paths relative to the
            working folder). Without steps and negatives, only history is measured.

    Raises:
        RecipeError: a missing or unknown key, a wrong type, or a recipe that cannot be run.
        ScalingError: an axis with fewer than four values.
    """
    values = read_recipe_file(path)
    check_keys(values, SUITE_KEYS, where=str(path))
    seeds = _numbers(values, "seeds", path, least=0)
    history = _history(values.get("history"), path)
    steps, negatives = (_axis(values, name, path) for name in ("steps", "negatives"))
    if bool(steps) != bool(negatives) or not (steps or history):
        raise RecipeError(f"{path}: found steps {steps} and negatives {negatives}; expected both, or history alone")
    design = values.get("design", STAR)
    if design not in (STAR, GRID):
        raise RecipeError(f"{path}: design: found {design!r}; expected {STAR} or {GRID}")
    cells = {
        f"steps{count}_negatives{number}": (count, number)
        for count in steps
        for number in negatives
        if design == GRID or count == steps[-1] or number == negatives[-1]
    }
    recipe = _recipe(values, path) if cells else {}
    changed = {name: _keys(*cell, most=negatives[-1]) for name, cell in cells.items()}
    trainings = Suite(path, recipe, changed, seeds, cumulative=False)
    for cell in cells:
        resolved_cell(trainings, cell)
    return ScaleSuite(path, seeds, steps, negatives, cells, trainings, history, {"design": design, "base": recipe})


def _keys(steps: int, negatives: int, most: int) -> dict[str, Any]:
    """Return the keys of one training: `negatives` other products for each query, and as many pairs a step in all cells."""
    return {
        "max_steps": steps,
        "per_device_train_batch_size": negatives + 1,
        "gradient_accumulation_steps": (most + 1) // (negatives + 1),
    }


def _recipe(values: dict[str, Any], path: Path) -> dict[str, Any]:
    if not isinstance(values.get("base"), str):
        raise RecipeError(f"{path}: base: found {values.get('base')!r}; expected the path of a recipe")
    recipe = merged(
        read_recipe_file(path.parent / values["base"]), with_new_names(values.get("keys") or {}, f"{path}: keys")
    )
    if recipe.get("queue_steps", 0) or recipe.get("hard_negatives", 0):
        raise RecipeError(
            f"{path}: found queue_steps {recipe.get('queue_steps')} and hard_negatives {recipe.get('hard_negatives')}; "
            "expected 0: the negatives of the suite are those in the batch"
        )
    return recipe


def _axis(values: dict[str, Any], name: str, path: Path) -> list[int]:
    """Return the values of an axis, checked.

    Raises:
        RecipeError: not whole numbers above 0 in ascending order, or batches that do not divide the largest one.
        ScalingError: fewer than four.
    """
    if name not in values:
        return []
    found = _numbers(values, name, path, least=1)
    if found != sorted(found):
        raise RecipeError(f"{path}: {name}: found {found}; expected ascending numbers")
    if len(found) < LEAST_POINTS:
        raise ScalingError(
            f"{path}: {name}: found {len(found)} values; expected at least {LEAST_POINTS} for a power law"
        )
    if name == "negatives" and any((found[-1] + 1) % (number + 1) for number in found):
        raise RecipeError(
            f"{path}: negatives: found {found}; expected numbers n whose batch n + 1 divides the largest batch {found[-1] + 1}, "
            "so that every step has as many pairs"
        )
    return found


def _numbers(values: dict[str, Any], name: str, path: Path, *, least: int) -> list[int]:
    found = values.get(name)
    whole = isinstance(found, list) and found and all(type(number) is int and number >= least for number in found)
    if not whole or len(set(found)) < len(found):  # type: ignore[arg-type]
        raise RecipeError(
            f"{path}: {name}: found {found!r}; expected a list of different whole numbers of at least {least}"
        )
    return list(found)  # type: ignore[arg-type]


def _history(values: Any, path: Path) -> History | None:
    if values is None:
        return None
    if not isinstance(values, dict) or not {"log", "vectors", "lengths"} <= values.keys():
        raise RecipeError(f"{path}: history: found {values!r}; expected a mapping with log, vectors and lengths")
    check_keys(values, HISTORY_KEYS, where=f"{path}: history")
    history = History(**values | {"lengths": _axis(values, "lengths", path)})
    if history.variant not in VARIANTS or not VARIANTS[history.variant].vectors:
        accepted = ", ".join(name for name, parts in VARIANTS.items() if parts.vectors)
        raise RecipeError(f"{path}: history: variant: found {history.variant!r}; expected one of {accepted}")
    return history
