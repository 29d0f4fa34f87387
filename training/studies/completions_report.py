"""What a joint stage writes, as one HTML page that a person can read: curves, and the attributes tried for each item.

moon3 completions RUN [--output RUN/completions.html] [--step last] [--items 40] [--order change]

The page is one file without scripts and without addresses; whatever a model wrote is shown as text, its control characters as
visible signs. Of the tables only the chosen step's is read; the curves are those of `metrics.jsonl`.
"""

import base64
import contextlib
import dataclasses
import io
import itertools
import json
import math
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import yaml

from processing_moon.product_moon import ProductError, open_image
from product_data.outputs import require_writable_file
from product_data.tables import ImageSource, ProductRow, ProductTables, QueryRow, TableError
from training.assembly.sources import read_data
from training.recipe.arguments import (
    DataArguments,
    LossArguments,
    ModelArguments,
    MoonTrainingArguments,
    Recipe,
    RecipeError,
)
from training.recipe.reasoning import ReasoningArguments
from training.runs.exact_resumption import METRICS_FILE
from training.runs.resume import write_atomically
from training.studies.completions_page import halves, page

COMPLETIONS_FOLDER, RECIPE_FILE, PROVENANCE_FILE = "completions", "resolved_recipe.yaml", "provenance.json"
FINISHED_FILE, OUTPUT_FILE = "finished.json", "completions.html"
ORDERS = ("change", "reward", "step")
LAST = "last"
_REWARD = "_reward"
_COLUMNS = ("item", "side", "text", "well_formed", "rank_without", "rank", "candidates", "advantage")
_STEP_FILE = re.compile(r"step-(\d+)\.parquet")
_THUMBNAIL_PIXELS, _JPEG_QUALITY = 144, 82
_NAMED_STEPS = 12
# TRL calls a group's spread 0 up to 1e-8, and adds 1e-4 to the spread by which it divides: see `Group.degenerate`.
_SPREAD, _ADDED = 1e-8, 1e-4


class ReportError(ValueError):
    """A run of which no report can be made, in a sentence that says what was found and what is accepted."""

    exit_status = 2


@dataclass(frozen=True)
class Rollout:
    """One reasoning that was tried.

    Args:
        text: what was written between the tags.
        well_formed: see `processing_moon.reasoning_moon.Reasoning.well_formed`.
        rank_without: rank of the pair's vectors without reasoning, from 1.
        rank: rank of this rollout's vector, from 1.
        candidates: number of candidates, the right one included.
        rewards: name → value before weighting; None: the reward does not apply.
        advantage: as TRL computed it, with the sign of what is reinforced.
        total: Σ weight · value over the rewards that apply; None: the weights are not known.
    """

    text: str
    well_formed: bool
    rank_without: float
    rank: float
    candidates: int
    rewards: Mapping[str, float | None]
    advantage: float | None
    total: float | None

    @property
    def gain(self) -> float:
        """`log2(rank_without / rank)`: how often reasoning halved the rank; below 0 it hurt.

        The retrieval reward's own measure (LREM, arXiv 2510.14321), so that 400 → 200 counts as much as 2 → 1.
        """
        return math.log2(self.rank_without / self.rank)


@dataclass(frozen=True)
class Group:
    """The rollouts of one side of a pair, which GRPO compares with each other.

    Args:
        item: name of the query or product.
        side: "query" or "product".
        rollouts: in the order of the table.
    """

    item: str
    side: str
    rollouts: tuple[Rollout, ...]

    @property
    def degenerate(self) -> bool:
        """Whether all rollouts had the same reward, so that GRPO learned nothing from them.

        Read back from advantages, (r - mean) / (s + 1e-4): with s up to 1e-8 none is beyond √G · 1e-4.
        """
        largest = math.sqrt(len(self.rollouts)) * _SPREAD / _ADDED
        return all(one.advantage is None or abs(one.advantage) <= largest for one in self.rollouts)


@dataclass(frozen=True)
class PairOfGroups:
    """A query and the product that answers it, each with its rollouts.

    Args:
        number: place in the step, from 0.
        groups: the query's, the product's, or both.
    """

    number: int
    groups: tuple[Group, ...]

    @property
    def rollouts(self) -> list[Rollout]:
        """Those of both sides."""
        return [one for group in self.groups for one in group.rollouts]

    @property
    def gain(self) -> float:
        """Mean of `Rollout.gain`."""
        return mean([one.gain for one in self.rollouts])

    @property
    def total(self) -> float:
        """Mean of `Rollout.total`; the weights must be known."""
        return mean([one.total for one in self.rollouts if one.total is not None])


@dataclass(frozen=True)
class ItemFacts:
    """What is known of an item beside what was written about it.

    Args:
        text: a query's words or a product's title.
        attributes: key → values, of a product's table row.
        picture: a data URI; None where there is none to show.
        note: why there is no picture, or whatever else must be said.
    """

    text: str = ""
    attributes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    picture: str | None = None
    note: str = ""


@dataclass(frozen=True)
class Report:
    """Everything that the page says.

    Args:
        name: the run's folder.
        facts: what the run is, key → text.
        notes: what is missing, one sentence each.
        series: logged name → step → value.
        step: the step that is shown; steps: those that could be.
        pairs: of that step, in the order of `ordered`.
        facts_of: (pair number, side) → what is known of the item.
        weights: reward → weight; None: not known.
        order: one of `ORDERS`.
        items: the largest number of pairs that are shown.
    """

    name: str
    facts: Mapping[str, str]
    notes: Sequence[str]
    series: Mapping[str, Mapping[int, float]]
    step: int
    steps: Sequence[int]
    pairs: Sequence[PairOfGroups]
    facts_of: Mapping[tuple[int, str], ItemFacts]
    weights: Mapping[str, float] | None
    order: str
    items: int


def mean(values: Sequence[float]) -> float:
    """Return the mean; NaN of nothing."""
    return math.fsum(values) / len(values) if values else math.nan


# ---------------------------------------------------------------------------------------------------------------------
# Reading a run
# ---------------------------------------------------------------------------------------------------------------------


def completion_steps(run: Path) -> dict[int, Path]:
    """Return step → table, in the order of steps.

    Args:
        run: a run's folder.

    Raises:
        ReportError: no such folder, or no table of completions in it.
    """
    if not run.is_dir():
        raise ReportError(f"RUN: found no folder {run}; accepted: the output_dir of a training")
    found = {}
    for path in (run / COMPLETIONS_FOLDER).glob("step-*.parquet"):
        if match := _STEP_FILE.fullmatch(path.name):
            found[int(match[1])] = path
    if not found:
        raise ReportError(
            f"RUN: found no {COMPLETIONS_FOLDER}/step-NUMBER.parquet in {run}; accepted: a run with stage: reasoning and "
            "completions_steps above 0 that has made as many steps"
        )
    return dict(sorted(found.items()))


def read_step(path: Path, weights: Mapping[str, float] | None) -> list[PairOfGroups]:
    """Return the pairs of a table of completions, in its order.

    Rows of one item and side that follow each other are a group; a product's group belongs to the query's before it.

    Args:
        path: a parquet table that `training.reasoning.grpo_trainer` wrote.
        weights: reward → weight; None: not known.

    Raises:
        ReportError: a file that is no parquet table, that lacks a column or a value, or has no row or an impossible rank.
    """
    try:
        table = pyarrow.parquet.read_table(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise ReportError(f"{path}: cannot be read as parquet ({error}); accepted: a table written whole") from error
    missing = [name for name in _COLUMNS if name not in table.column_names]
    if missing:
        raise ReportError(f"{path}: found no column {missing[0]!r}; accepted: {', '.join(_COLUMNS)}, and NAME{_REWARD}")
    rows = table.to_pylist()
    if not rows:
        raise ReportError(f"{path}: found no rows; accepted: at least one")
    for number, row in enumerate(rows):
        empty = [name for name in _COLUMNS[:-1] if row[name] is None]
        if empty:
            raise ReportError(f"{path}: row {number}, column {empty[0]!r}: found nothing; accepted: a value")
        if not (row["rank"] >= 1 and row["rank_without"] >= 1):
            raise ReportError(
                f"{path}: row {number}: found rank_without {row['rank_without']} and rank {row['rank']}; accepted: from 1"
            )
    return _pairs(_groups(rows, weights))


def _groups(rows: Iterable[Mapping[str, Any]], weights: Mapping[str, float] | None) -> list[Group]:
    found: list[tuple[str, str, list[Rollout]]] = []
    for row in rows:
        if not found or found[-1][:2] != (row["item"], row["side"]):
            found.append((row["item"], row["side"], []))
        found[-1][2].append(_rollout(row, weights))
    return [Group(item, side, tuple(rollouts)) for item, side, rollouts in found]


def _rollout(row: Mapping[str, Any], weights: Mapping[str, float] | None) -> Rollout:
    rewards = {name.removesuffix(_REWARD): _number(row[name]) for name in row if name.endswith(_REWARD)}
    total = None
    if weights is not None:
        total = math.fsum(weights.get(name, 0.0) * value for name, value in rewards.items() if value is not None)
    own = {name: row[name] for name in ("text", "well_formed", "rank_without", "rank", "candidates")}
    return Rollout(**own, rewards=rewards, advantage=_number(row["advantage"]), total=total)


def _number(value: float | None) -> float | None:
    """TRL keeps NaN where a reward does not apply."""
    return None if value is None or math.isnan(value) else value


def _pairs(groups: Iterable[Group]) -> list[PairOfGroups]:
    found: list[list[Group]] = []
    for group in groups:
        if group.side == "product" and found and len(found[-1]) == 1 and found[-1][0].side == "query":
            found[-1].append(group)
        else:
            found.append([group])
    return [PairOfGroups(number, tuple(pair)) for number, pair in enumerate(found)]


def read_series(path: Path) -> tuple[dict[str, dict[int, float]], list[str]]:
    """Return logged name → step → value of a run's `metrics.jsonl`, and what could not be read.

    Of a step that was logged twice, around a resumption, the later line counts.

    Args:
        path: the file; one that is not there gives no values and says so.
    """
    series: dict[str, dict[int, float]] = {}
    unread = []
    if not path.is_file():
        return series, [f"No curves: {path.name} is not there."]
    with path.open(encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                entry = json.loads(line)
                step = int(entry.pop("step"))
            except (ValueError, KeyError, TypeError, AttributeError):
                unread.append(number)
                continue
            for name, value in entry.items():
                if isinstance(value, int | float):
                    series.setdefault(name, {})[step] = float(value)
    notes = []
    if unread:
        which = f"line {unread[0]}" if len(unread) == 1 else f"{len(unread)} lines, the first of them {unread[0]},"
        notes.append(f"{path.name}: {which} could not be read; the curves lack what stands there.")
    return series, notes


def ordered(pairs: Sequence[PairOfGroups], order: str) -> list[PairOfGroups]:
    """Return pairs from best to worst, or as they are.

    Args:
        pairs: of one step.
        order: "change": by how much reasoning improved the rank; "reward": by the mean weighted reward; "step": as they are.
    """
    if order == "step":
        return list(pairs)
    return sorted(pairs, key=lambda pair: pair.gain if order == "change" else pair.total, reverse=True)


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
        picture.thumbnail((_THUMBNAIL_PIXELS, _THUMBNAIL_PIXELS))
        stream = io.BytesIO()
        picture.save(stream, "JPEG", quality=_JPEG_QUALITY)
        return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}", ""


def _tables(run: Path, values: Mapping[str, Any] | None) -> tuple[list[ProductTables], list[str]]:
    """The data sets of a run, or a sentence that says why there are none. What their reader prints goes to stderr."""
    without = "No titles and no pictures"
    if values is None:
        return [], [f"{without}: without {RECIPE_FILE} the tables are not known."]
    names = {entry.name for entry in dataclasses.fields(DataArguments)}
    try:
        recipe = Recipe(
            run / RECIPE_FILE,
            ModelArguments(),
            DataArguments(**{name: value for name, value in values.items() if name in names}),
            LossArguments(),
            ReasoningArguments(),
            MoonTrainingArguments(output_dir=str(run), use_cpu=True),
            resolved=dict(values),
        )
        with contextlib.redirect_stdout(sys.stderr):
            return read_data(recipe), []
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
        raise ReportError(f"--order: found 'reward' without {run / RECIPE_FILE}; accepted: change, step")
    chosen, pairs, unread = _chosen(steps, step, weights)
    series, missing = read_series(run / METRICS_FILE)
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
            raise ReportError(f"--step: found {step}; accepted: {LAST}, or one of {_named(list(steps))}")
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
    path = run / RECIPE_FILE
    if not path.is_file():
        return None, [f"No weights of the rewards: {RECIPE_FILE} is not there."]
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        return None, [f"No weights of the rewards: {RECIPE_FILE} cannot be read: {error}"]
    if not isinstance(values, dict):
        return None, [f"No weights of the rewards: {RECIPE_FILE} holds no keys."]
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
    state = "finished" if (run / FINISHED_FILE).is_file() else "not finished"
    if logged is not None:
        state += f", logged up to step {logged}"
    if values.get("max_steps"):
        state += f" of {values['max_steps']}"
    facts["state"] = state
    try:
        known = json.loads((run / PROVENANCE_FILE).read_text(encoding="utf-8"))
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
        run: output_dir of a training with `stage: reasoning`, finished or not.
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
        raise ReportError(f"--items: found {items}; accepted: 1 or more")
    if step != LAST and not re.fullmatch(r"\d+", step):
        raise ReportError(f"--step: found {step!r}; accepted: {LAST}, or the number of a step")
    path = output or run / OUTPUT_FILE
    if output is not None or run.is_dir():
        require_writable_file("--output", path)
    number = None if step == LAST else int(step)
    report = make_report(run, step=number, items=items, order=order, pictures=pictures)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, page(report))
    return path, list(report.notes)
