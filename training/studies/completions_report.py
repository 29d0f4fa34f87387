"""Report the completions of a GRPO run on one HTML page: curves, and the attributes sampled for each pair.

moon3 completions RUN [--output RUN/completions.html] [--step last] [--items 40] [--order change]

The page has no scripts or external URLs. Generated text is shown as plain text, with control characters made visible.
Only the table of the chosen step is read; the curves come from `metrics.jsonl`.
"""

import contextlib
import itertools
import json
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from evaluation.pages import inline_picture
from processing_moon import ProductError, open_image
from product_data.atomic_files import write_atomically
from product_data.outputs import require_writable_file
from product_data.tables import ImageSource, ProductRow, ProductTables, QueryRow, TableError
from training.assembly.sources import read_data
from training.recipe.arguments import Recipe, RecipeError, keys_of
from training.recipe.checking import make_group
from training.recipe.data import DataArguments
from training.recipe.loss import LossArguments
from training.recipe.model import ModelArguments
from training.recipe.old_names import with_new_names
from training.recipe.pairs import PairArguments
from training.recipe.reasoning import ReasoningArguments
from training.recipe.training import MoonTrainingArguments
from training.runs.folder import RunFolder
from training.runs.run import Run
from training.studies.completions import (
    ORDERS,
    ItemFacts,
    PairOfGroups,
    Report,
    ReportError,
    completion_steps,
    halves,
    read_series,
    read_step,
    sort_pairs,
)
from training.studies.completions_page import page

LAST = "last"
_THUMBNAIL_PIXELS, _JPEG_QUALITY = 144, 82
_NAMED_STEPS = 12


# ---------------------------------------------------------------------------------------------------------------------
# Facts about queries and products
# ---------------------------------------------------------------------------------------------------------------------


class ItemIndex:
    """Products and queries of a run's tables, by their names in the completions.

    Args:
        tables: the data sets of the run's recipe.
        pictures: whether to make thumbnails.
    """

    def __init__(self, tables: Iterable[ProductTables], pictures: bool = True) -> None:
        self.pictures = pictures
        self.products: dict[str, tuple[str, ProductRow]] = {}
        self.queries: dict[tuple[str, str], QueryRow] = {}
        for table in tables:
            self.products |= {f"{table.name}/{row.product_id}": (table.name, row) for row in table.products}
            self.queries |= {(table.name, row.query_id): row for row in table.queries}

    def facts(self, pair: PairOfGroups) -> dict[tuple[int, str], ItemFacts]:
        """Return the facts about the query and the product of a pair, by (pair number, side).

        A query is looked up in the data set of its product, because two data sets may use the same query id.
        """
        data_set = next((self.products[group.item][0] for group in pair.groups if group.item in self.products), "")
        return {
            (pair.number, group.side): self._product(group.item)
            if group.side == "product"
            else self._query(data_set, group.item)
            for group in pair.groups
        }

    def _product(self, name: str) -> ItemFacts:
        if name not in self.products:
            return ItemFacts(note="The tables of the recipe do not contain this product.")
        row = self.products[name][1]
        picture, note = self._picture(row.images[0] if row.images else None, name, "images[0]")
        return ItemFacts(row.title, row.attributes, picture, note)

    def _query(self, data_set: str, name: str) -> ItemFacts:
        row = self.queries.get((data_set, name))
        if row is not None:
            record = row.record()
            picture, note = self._picture(record.get("image"), name, "image")
            return ItemFacts(record.get("text", ""), {}, picture, note)
        if name.startswith("derived from "):
            return ItemFacts(
                note="The training derived this query from the product: its words, an altered picture, or both."
            )
        return ItemFacts(note="The tables of the recipe do not contain this query.")

    def _picture(self, source: ImageSource | None, item: str, name: str) -> tuple[str | None, str]:
        """Return a thumbnail, or None and the reason."""
        if not self.pictures:
            return None, ""
        if source is None:
            return None, "no picture"
        try:
            picture = open_image(source, item=item, field=name)
        except ProductError as error:
            return None, f"not shown: {error}"
        return inline_picture(picture, _THUMBNAIL_PIXELS, quality=_JPEG_QUALITY), ""


def _tables(run: Path, values: Mapping[str, Any] | None) -> tuple[list[ProductTables], list[str]]:
    """Return the data sets of a run, or a note on why they cannot be read. Their reader prints to stderr."""
    without = "No titles or pictures"
    if values is None:
        return [], [f"{without}: without {RunFolder(run).recipe.name} the tables are unknown."]
    try:
        values = with_new_names(values)
        recipe = Recipe(
            RunFolder(run).recipe,
            ModelArguments(),
            PairArguments(),
            make_group(DataArguments, {key: values[key] for key in keys_of(DataArguments) if key in values}),
            LossArguments(),
            ReasoningArguments(),
            MoonTrainingArguments(output_dir=str(run), use_cpu=True),
            resolved=values,
        )
        with contextlib.redirect_stdout(sys.stderr):
            return read_data(Run(recipe)), []
    except (RecipeError, TableError, OSError) as error:
        return [], [f"{without}: {error}"]


# ---------------------------------------------------------------------------------------------------------------------
# The command
# ---------------------------------------------------------------------------------------------------------------------


def make_report(
    run: Path, *, step: int | None = None, items: int = 40, order: str = "change", pictures: bool = True
) -> Report:
    """Return the report on a run, finished or not.

    Args:
        run: folder of the run.
        step: step whose completions are shown; None: the last readable step.
        items: maximum number of pairs that are shown.
        order: see `sort_pairs`.
        pictures: whether to show pictures; titles are always shown.

    Raises:
        ReportError: the folder does not exist, has no completions or lacks the step, or the order is "reward" and the
            weights of the rewards are unknown.
    """
    steps = completion_steps(run)
    values, notes = _recipe(run)
    weights = None if values is None else dict(values.get("rewards") or {})
    if order == "reward" and weights is None:
        raise ReportError(
            f"--order: found 'reward', but no {RunFolder(run).recipe} with weights; expected change or step"
        )
    chosen, pairs, unread = _read_chosen_step(steps, step, weights)
    series, missing = read_series(RunFolder(run).metrics)
    tables, without_tables = _tables(run, values)
    index = ItemIndex(tables, pictures)
    facts_of: dict[tuple[int, str], ItemFacts] = {}
    in_order = sort_pairs(pairs, order)
    for pair in itertools.chain(*halves(in_order, items, order)) if tables else ():
        facts_of |= index.facts(pair)
    notes = [*notes, *unread, *missing, *without_tables]
    facts = _run_facts(run, values, series)
    return Report(
        run.resolve().name, facts, notes, series, chosen, list(steps), in_order, facts_of, weights, order, items
    )


def _read_chosen_step(
    steps: Mapping[int, Path], step: int | None, weights: Mapping[str, float] | None
) -> tuple[int, list[PairOfGroups], list[str]]:
    """Return the requested or the last readable step, its pairs, and notes on unreadable later steps."""
    if step is not None:
        if step not in steps:
            known = list(map(str, steps))
            if len(known) > _NAMED_STEPS:
                known = [f"{', '.join(known[:_NAMED_STEPS])} … {known[-1]} ({len(known)} steps)"]
            raise ReportError(f"--step: found {step}; expected {LAST}, or one of {', '.join(known)}")
        return step, read_step(steps[step], weights), []
    notes: list[str] = []
    for number in reversed(steps):
        try:
            return number, read_step(steps[number], weights), notes
        except ReportError as error:
            if number == next(iter(steps)):
                raise
            notes.append(f"Step {number} is left out: {error}.")
    raise AssertionError("completion_steps returns at least one step")


def _recipe(run: Path) -> tuple[dict[str, Any] | None, list[str]]:
    path = RunFolder(run).recipe
    if not path.is_file():
        return None, [f"No weights of the rewards: {path.name} does not exist."]
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        return None, [f"No weights of the rewards: {path.name} cannot be read: {error}"]
    if not isinstance(values, dict):
        return None, [f"No weights of the rewards: {path.name} contains no keys."]
    return values, []


def _run_facts(
    run: Path, values: Mapping[str, Any] | None, series: Mapping[str, Mapping[int, float]]
) -> dict[str, str]:
    values = values or {}
    facts = {name: str(values[name]) for name in ("preset", "base", "rollouts", "seed") if values.get(name) is not None}
    if values.get("data"):
        facts["data"] = ", ".join(
            str(entry.get("name") or entry.get("path") or "tables") if isinstance(entry, dict) else str(entry)
            for entry in values["data"]
        )
    logged = max((step for steps in series.values() for step in steps), default=None)
    state = "finished" if RunFolder(run).finished.is_file() else "not finished"
    if logged is not None:
        state += f", logged up to step {logged}"
    if values.get("max_steps"):
        state += f" of {values['max_steps']}"
    facts["state"] = state
    try:
        known = json.loads(RunFolder(run).provenance.read_text(encoding="utf-8"))
        facts["commit"] = known["commit"][:12] + (" with changes" if known.get("uncommitted_changes") else "")
    except (OSError, ValueError, KeyError, TypeError):  # no file, not JSON, or trained outside a checkout
        facts["commit"] = "not known"
    return facts


def write_page(
    run: Path,
    output: Path | None = None,
    *,
    step: str = LAST,
    items: int = 40,
    order: str = ORDERS[0],
    pictures: bool = True,
) -> tuple[Path, list[str]]:
    """Write the page of a run.

    Args:
        run: output_dir of a training run with `stage: grpo`, finished or not.
        output: file of the page. Default: completions.html in the run.
        step (`str`): number of a step, or "last". Default "last".
        items (`int`): maximum number of pairs of query and product. Default 40.
        order (`str`): one of `ORDERS`. Default "change".
        pictures (`bool`): show pictures. Default True.

    Returns:
        The path of the page, and notes on what could not be shown.

    Raises:
        ReportError: the report cannot be made, or an option does not fit the run.
        OutputError: the page cannot be written.
    """
    if items < 1:
        raise ReportError(f"--items: found {items}; expected 1 or more")
    if step != LAST and not re.fullmatch(r"\d+", step):
        raise ReportError(f"--step: found {step!r}; expected {LAST}, or the number of a step")
    path = output or RunFolder(run).completions_page
    if output is not None or run.is_dir():
        require_writable_file("--output", path)
    number = None if step == LAST else int(step)
    report = make_report(run, step=number, items=items, order=order, pictures=pictures)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, page(report))
    return path, list(report.notes)
