"""Read a suite of an ablation: its cells, their changed keys, and what the papers report of each part."""

import functools
import operator
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from training.recipe.arguments import Recipe, RecipeError, known_keys, parse_recipe
from training.recipe.checking import check_keys
from training.recipe.files import merged, read_recipe_file
from training.recipe.old_names import with_new_names
from training.studies.ablation_boxes import detector_settings, name_of_data_set
from training.studies.ablation_table import SIGNS, reference_cells

SUITE_KEYS = ("base", "seeds", "boxes", "cumulative", "compared_with", "keys", "cells", "published", "references")
BOXES = "boxes"
_STAGE, _STEPS = "stage", "max_steps"
_PART_OF = {BOXES: "core", "router": "moon", "sparsity": "moon"}
"""Boxes are for the crop, and these losses are of experts."""
_RECIPE_FILE = "recipe.yaml"


@dataclass(frozen=True)
class Suite:
    """The cells and seeds of an ablation.

    Args:
        path (`Path`): the suite's file.
        recipe (`dict`): the keys of every cell: those of the base recipe, overridden by the keys of the suite.
        cells (`dict`): name → changed keys, in order.
        seeds (`list[int]`): seeds of the runs of each cell.
        boxes: detector of core boxes for data without boxes, see `ablation_boxes.detector_settings`; a cell can set another.
            Default None.
        cumulative (`bool`): whether a cell keeps the changes of the cells before it. If not, each cell changes the first one.
            Default True.
        published (`dict`): cell → what a paper reports of its part: "sign", the direction in which the part moves the scores
            ("+", "-" or "0"), and "source". Default: nothing.
        compared_with (`dict`): cell → the cell to compare it with in place of the first one; it changes one part of that cell.
            Default: none.
        references (`tuple[str, ...]`): models without training to evaluate on the same data, such as "bm25". Default: none.
    """

    path: Path
    recipe: dict[str, Any]
    cells: dict[str, dict[str, Any]]
    seeds: list[int]
    boxes: Any = None
    cumulative: bool = True
    published: dict[str, dict[str, str]] = field(default_factory=dict)
    references: tuple[str, ...] = ()
    compared_with: dict[str, str] = field(default_factory=dict)

    def keys_of(self, cell: str) -> dict[str, Any]:
        """Return the whole recipe of a cell, without its seed and its boxes."""
        keys = self._changed(cell, dict(self.recipe))
        keys.pop(BOXES, None)
        return keys

    def boxes_of(self, cell: str) -> Any:
        """Return the value of `boxes` for a cell."""
        return self._changed(cell, {BOXES: self.boxes})[BOXES]

    def _changed(self, cell: str, keys: dict[str, Any]) -> dict[str, Any]:
        names = list(self.cells)
        changed = names[: names.index(cell) + 1] if self.cumulative else [cell]
        return functools.reduce(operator.or_, (self.cells[name] for name in changed), keys)

    def own_keys(self, cell: str) -> dict[str, Any]:
        """Return the keys in which a cell differs from the cell of `compared_with`, otherwise those that it changes."""
        own, shared = self.cells[cell], self.cells.get(self.compared_with.get(cell, ""), {})
        return {
            key: own.get(key) for key in own.keys() | shared.keys() if key not in own or own[key] != shared.get(key, ())
        }

    def data_sets(self) -> tuple[list[str], list[str]]:
        """Return the names of the data sets that are evaluated, and of those among them that no cell is trained on."""
        trained = [name_of_data_set(entry) for entry in self.recipe.get("data", [])]
        evaluated = [name_of_data_set(entry) for entry in self.recipe.get("evaluate_data") or []] or trained
        return evaluated, [name for name in evaluated if name not in trained]


def read_suite(path: Path) -> Suite:
    """Read and check a suite: every cell must be a recipe that can be run.

    Args:
        path: flat YAML: base (path of a recipe, relative to the suite's folder), seeds, cells (name → changed keys), and
            optionally boxes, cumulative, published, references and keys (of every cell; mappings are merged with those of
            the base key by key).

    Raises:
        RecipeError: a key is missing, unknown, of the wrong type or changes nothing, a cell changes several parts, or the
            cells take different numbers of steps.
    """
    values = read_recipe_file(path)
    check_keys(values, SUITE_KEYS, where=str(path))
    for key, kind, accepted in (
        ("base", str, "the path of a recipe"),
        ("seeds", list, "a list of whole numbers"),
        ("cells", dict, "a mapping of names to changed keys"),
    ):
        if not isinstance(values.get(key), kind) or not values[key]:
            raise RecipeError(f"{path}: {key}: found {values.get(key)!r}; expected {accepted}")
    seeds = values["seeds"]
    check_seeds(f"{path}: seeds", seeds)
    detector_settings(values.get(BOXES), f"{path}: boxes")
    if not isinstance(values.get("cumulative", True), bool):
        raise RecipeError(f"{path}: cumulative: found {values['cumulative']!r}; expected true or false")
    recipe = read_recipe_file(path.parent / values["base"])
    recipe = merged(recipe, with_new_names(values.get("keys") or {}, f"{path}: keys"))
    cells = {
        name: with_new_names(changed, f"{path}: cells: {name}") if isinstance(changed, dict) else changed
        for name, changed in values["cells"].items()
    }
    published, references = values.get("published") or {}, values.get("references") or []
    _check_published(path, published, cells)
    if not isinstance(references, list) or not all(isinstance(name, str) for name in references):
        raise RecipeError(f"{path}: references: found {references!r}; expected a list of models, such as [bm25]")
    cumulative, compared_with = values.get("cumulative", True), values.get("compared_with") or {}
    _check_compared_with(path, compared_with, list(cells), cumulative=cumulative)
    suite = Suite(
        path, recipe, cells, seeds, values.get(BOXES), cumulative, published, tuple(references), compared_with
    )
    _check_cells(suite)
    return suite


def _check_published(path: Path, published: Any, cells: Mapping[str, Any]) -> None:
    """Refuse what a paper reports of an unknown cell, or without a sign and a source."""
    for cell, found in published.items() if isinstance(published, dict) else [("", published)]:
        where = f"{path}: published: {cell}"
        if cell not in list(cells)[1:]:
            raise RecipeError(f"{where}: found {published!r}; expected one of {', '.join(list(cells)[1:])}")
        if not isinstance(found, dict) or found.keys() != {"sign", "source"} or found["sign"] not in SIGNS:
            raise RecipeError(f"{where}: found {found!r}; expected sign: one of {', '.join(SIGNS)}, and source: a text")


def _check_compared_with(path: Path, compared_with: Any, cells: list[str], *, cumulative: bool) -> None:
    """Refuse unknown cells, the first cell, and a cell that is compared with itself or in a cumulative suite."""
    if compared_with and cumulative:
        raise RecipeError(
            f"{path}: compared_with: expected cumulative: false; otherwise, the cell before is the reference"
        )
    for cell, other in compared_with.items() if isinstance(compared_with, dict) else [("", compared_with)]:
        others = [name for name in cells if name != cell]
        if cell not in cells[1:] or other not in others:
            raise RecipeError(
                f"{path}: compared_with: found {cell or None!r}: {other!r}; expected one of {', '.join(cells[1:])}, and "
                f"another cell to compare it with: one of {', '.join(others)}"
            )


def check_seeds(where: str, seeds: Sequence[Any]) -> None:
    """Raise RecipeError for a seed that is not a number of at least 0, or stands twice and would count twice.

    Args:
        where: what the seeds were read from, such as "--seeds".
        seeds: the seeds.
    """
    if not all(type(seed) is int and seed >= 0 for seed in seeds) or len(set(seeds)) < len(seeds):
        raise RecipeError(f"{where}: found {list(seeds)}; expected different whole numbers of at least 0")


def changed_parts(changed: Mapping[str, Any]) -> set[str]:
    """Return the parts that a cell changes: keys of one part begin with the same word.

    A cell that sets another stage may change every key, because a stage has settings of its own.
    """
    words = {str(key).split("_")[0] for key in changed}
    return {_STAGE} if _STAGE in words else {_PART_OF.get(word, word) for word in words}


def _check_cells(suite: Suite) -> None:
    """Refuse cells that change several parts (keys of one part begin with the same word) or keys that the command sets."""
    for place, (cell, changed) in enumerate(suite.cells.items()):
        if not str(cell).isidentifier():
            raise RecipeError(f"{suite.path}: cells: found the name {cell!r}; expected letters, digits and _")
        parts = changed_parts(suite.own_keys(cell)) if isinstance(changed, dict) else set()
        if not isinstance(changed, dict) or len(parts) != (1 if place else 0):
            accepted = "one changed key, or several of one part (queue_steps, queue_warmup_steps)"
            accepted = accepted if place else "no changed key ({}) in the first cell"
            raise RecipeError(f"{suite.path}: cells: {cell}: found {changed!r}; expected {accepted}")
        check_keys(changed, (*known_keys(), BOXES), where=f"{suite.path}: cells: {cell}")
        detector_settings(suite.boxes_of(cell), f"{suite.path}: cells: {cell}: boxes")
        recipe = suite.keys_of(cell)
        fixed = {"data", "evaluate_data", "evaluate_split"} | ({_STEPS} - ({_STEPS} if _STAGE in changed else set()))
        for key in ({"seed", "output_dir"} & recipe.keys()) | (fixed & changed.keys()):
            raise RecipeError(
                f"{suite.path}: cells: {cell}: {key} cannot be set here; list the seeds under 'seeds', choose the folder "
                "with --output, and use the same data, evaluation and max_steps in all cells"
            )
    resolved = {cell: resolved_cell(suite, cell).resolved | {BOXES: suite.boxes_of(cell)} for cell in suite.cells}
    steps = _all_steps(next(iter(resolved.values())))
    reference_of = reference_cells(list(suite.cells), cumulative=suite.cumulative, compared_with=suite.compared_with)
    for cell, other in reference_of.items():
        if resolved[cell] == resolved[other]:
            raise RecipeError(f"{suite.path}: cells: {cell}: {suite.cells[cell]} changes nothing; expected a new value")
        if _all_steps(resolved[cell]) != steps:
            raise RecipeError(
                f"{suite.path}: cells: {cell}: found {_all_steps(resolved[cell])} steps, those of its cold start included; "
                f"expected {steps}, as in the first cell"
            )


def _all_steps(keys: Mapping[str, Any]) -> int | None:
    """Return the steps of a training and of its cold start; None for a cold start that does not set them."""
    cold = keys.get("cold_start") or {_STEPS: 0}
    return keys[_STEPS] + cold[_STEPS] if isinstance(cold.get(_STEPS), int) else None


def resolved_cell(suite: Suite, cell: str) -> Recipe:
    """Return the recipe of a cell as `train.py` resolves and checks it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / _RECIPE_FILE
        path.write_text(yaml.safe_dump(suite.keys_of(cell)), encoding="utf-8")
        try:
            recipe = parse_recipe([str(path), "--output_dir", "resolved"])
        except RecipeError as error:
            raise RecipeError(f"{suite.path}: cells: {cell}: {error}") from error
    if not recipe.training.evaluate_after or recipe.training.max_steps < 1 or recipe.training.train_minutes:
        raise RecipeError(
            f"{suite.path}: cells: {cell}: found evaluate_after {recipe.training.evaluate_after}, max_steps "
            f"{recipe.training.max_steps}, train_minutes {recipe.training.train_minutes}; expected evaluate_after: true and "
            "max_steps alone, so that all cells take the same steps"
        )
    return recipe
