"""Read what a GRPO stage writes: the completions of its steps in groups and pairs, and its logged numbers."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from training.runs.folder import RunFolder

ORDERS = ("change", "reward", "step")
_REWARD = "_reward"
_COLUMNS = ("item", "side", "text", "well_formed", "rank_without", "rank", "candidates", "advantage")
# TRL calls a group's spread 0 up to 1e-8, and adds 1e-4 to the spread by which it divides: see `Group.degenerate`.
_SPREAD, _ADDED = 1e-8, 1e-4


class ReportError(ValueError):
    """A run of which no report can be made, in a sentence that says what was found and what is expected."""

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
        raise ReportError(f"RUN: found no folder {run}; expected the output_dir of a training")
    found = RunFolder(run).completion_steps()
    if not found:
        raise ReportError(
            f"RUN: found no completions in {RunFolder(run).completions}; expected a run with stage: grpo and "
            "completions_steps above 0 that has made as many steps"
        )
    return found


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
        raise ReportError(f"{path}: cannot be read as parquet ({error}); expected a table written whole") from error
    missing = [name for name in _COLUMNS if name not in table.column_names]
    if missing:
        raise ReportError(f"{path}: found no column {missing[0]!r}; expected {', '.join(_COLUMNS)}, and NAME{_REWARD}")
    rows = table.to_pylist()
    if not rows:
        raise ReportError(f"{path}: found no rows; expected at least one")
    for number, row in enumerate(rows):
        empty = [name for name in _COLUMNS[:-1] if row[name] is None]
        if empty:
            raise ReportError(f"{path}: row {number}, column {empty[0]!r}: found nothing; expected a value")
        if not (row["rank"] >= 1 and row["rank_without"] >= 1):
            raise ReportError(
                f"{path}: row {number}: found rank_without {row['rank_without']} and rank {row['rank']}; expected from 1"
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


def halves(
    pairs: Sequence[PairOfGroups], items: int, order: str
) -> tuple[Sequence[PairOfGroups], Sequence[PairOfGroups]]:
    """Return the pairs that a page shows: the best and the worst, each from its end, or the first ones.

    Args:
        pairs: from best to worst, or as they came.
        items: how many at most.
        order: "step": the first ones alone.
    """
    count = min(items, len(pairs))
    best = count if order == "step" else (count + 1) // 2
    return pairs[:best], pairs[::-1][: count - best]
