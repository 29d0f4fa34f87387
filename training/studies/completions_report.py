"""What a GRPO stage writes, as one HTML page that a person can read: curves, and the attributes tried for each item.

moon3 completions RUN [--output RUN/completions.html] [--step last] [--items 40] [--order change]

The page is one file without scripts and without addresses; whatever a model wrote is shown as text, its control characters as
visible signs. Of the tables only the chosen step's is read; the curves are those of `metrics.jsonl`.
"""

import contextlib
import itertools
import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
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
    ordered,
    read_series,
    read_step,
)
from training.studies.completions_page import page

LAST = "last"
_THUMBNAIL_PIXELS, _JPEG_QUALITY = 144, 82
_NAMED_STEPS = 12


# ---------------------------------------------------------------------------------------------------------------------
# What is known of the items
# ---------------------------------------------------------------------------------------------------------------------


class ItemIndex:
    """Products and queries of a run's tables by the names that the completions bear.

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
        """Return what is known of a pair's items, by (pair number, side).

        A query is looked up in the data set of its product, because two data sets may use the same query id.
        """
        data_set = next((self.products[one.item][0] for one in pair.groups if one.item in self.products), "")
        return {
            (pair.number, group.side): self._product(group.item)
            if group.side == "product"
            else self._query(data_set, group.item)
            for group in pair.groups
        }

    def _product(self, name: str) -> ItemFacts:
        if name not in self.products:
            return ItemFacts(note="The recipe's tables, as they are now, have no such product.")
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
            return ItemFacts(note="The training made it of this product: words about it, an altered picture, or both.")
        return ItemFacts(note="The recipe's tables, as they are now, have no such query.")

    def _picture(self, source: ImageSource | None, item: str, name: str) -> tuple[str | None, str]:
        """A thumbnail, or why there is none."""
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
    """The data sets of a run, or a sentence that says why there are none. What their reader prints goes to stderr."""
    without = "No titles and no pictures"
    if values is None:
        return [], [f"{without}: without {RunFolder(run).recipe.name} the tables are not known."]
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
    """Read a run, finished or not.

    Args:
        run: its folder.
        step: which step's completions; None: the last that can be read.
        items: the largest number of pairs that are shown.
        order: see `ordered`.
        pictures: whether to show pictures; titles are shown in any case.

    Raises:
        ReportError: no folder, no completions, a step that is not there, an order by rewards whose weights are not known.
    """
    steps = completion_steps(run)
    values, notes = _recipe(run)
    weights = None if values is None else dict(values.get("rewards") or {})
    if order == "reward" and weights is None:
        raise ReportError(f"--order: found 'reward' without {RunFolder(run).recipe}; expected change, step")
    chosen, pairs, unread = _chosen(steps, step, weights)
    series, missing = read_series(RunFolder(run).metrics)
    tables, untold = _tables(run, values)
    shown = ItemIndex(tables, pictures)
    facts_of: dict[tuple[int, str], ItemFacts] = {}
    in_order = ordered(pairs, order)
    for pair in itertools.chain(*halves(in_order, items, order)) if tables else ():
        facts_of |= shown.facts(pair)
    notes = [*notes, *unread, *missing, *untold]
    facts = _run_facts(run, values, series)
    return Report(
        run.resolve().name, facts, notes, series, chosen, list(steps), in_order, facts_of, weights, order, items
    )


def _chosen(
    steps: Mapping[int, Path], step: int | None, weights: Mapping[str, float] | None
) -> tuple[int, list[PairOfGroups], list[str]]:
    """The step asked for; or the last whose table was written whole, and what stands behind it."""
    if step is not None:
        if step not in steps:
            raise ReportError(f"--step: found {step}; expected {LAST}, or one of {_named(list(steps))}")
        return step, read_step(steps[step], weights), []
    notes: list[str] = []
    for number in reversed(steps):
        try:
            return number, read_step(steps[number], weights), notes
        except ReportError as error:
            if number == next(iter(steps)):
                raise
            notes.append(f"Step {number} is left out: {error}.")
    raise AssertionError("completion_steps gives at least one")


def _named(steps: Sequence[int]) -> str:
    if len(steps) <= _NAMED_STEPS:
        return ", ".join(map(str, steps))
    return f"{', '.join(map(str, steps[:_NAMED_STEPS]))} … {steps[-1]} ({len(steps)} steps)"


def _recipe(run: Path) -> tuple[dict[str, Any] | None, list[str]]:
    path = RunFolder(run).recipe
    if not path.is_file():
        return None, [f"No weights of the rewards: {path.name} is not there."]
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        return None, [f"No weights of the rewards: {path.name} cannot be read: {error}"]
    if not isinstance(values, dict):
        return None, [f"No weights of the rewards: {path.name} holds no keys."]
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
        run: output_dir of a training with `stage: grpo`, finished or not.
        output: the page. Default: completions.html in the run.
        step (`str`): a step's number, or "last". Default "last".
        items (`int`): at most this many pairs of query and product. Default 40.
        order (`str`): one of `ORDERS`. Default "change".
        pictures (`bool`): show pictures. Default True.

    Returns:
        The page, and what could not be shown.

    Raises:
        ReportError: a run of which no report can be made, or an option that does not fit it.
        OutputError: a page that cannot be written.
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
