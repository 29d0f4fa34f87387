"""Read the files of a GRPO run: the completions of its steps in groups and pairs, and its logged numbers."""

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
# TRL treats a group's spread up to 1e-8 as 0, and adds 1e-4 to the spread before it divides: see `Group.degenerate`.
_SPREAD, _ADDED = 1e-8, 1e-4


class ReportError(ValueError):
    """Raised if a report on a run cannot be made."""

    exit_status = 2


@dataclass(frozen=True)
class Rollout:
    """One sampled reasoning text, with its ranks and rewards.

    Args:
        text: the text between the tags.
        well_formed: see `processing_moon.reasoning_moon.Reasoning.well_formed`.
        rank_without: rank with the pair's vectors without reasoning, from 1.
        rank: rank with this rollout's vector, from 1.
        candidates: number of candidates, including the right one.
        rewards: name → value before weighting; None: the reward does not apply.
        advantage: the advantage that TRL computed; positive values are reinforced.
        total: Σ weight · value over the rewards that apply; None: the weights are unknown.
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
        """`log2(rank_without / rank)`: the number of times that reasoning halved the rank; negative if the rank got worse.

        The measure of the retrieval reward (LREM, arXiv 2510.14321): 400 → 200 counts as much as 2 → 1.
        """
        return math.log2(self.rank_without / self.rank)


@dataclass(frozen=True)
class Group:
    """The rollouts of one side of a pair, which GRPO compares with each other.

    Args:
        item: name of the query or product.
        side: "query" or "product".
        rollouts: the rollouts, in the order of the table.
    """

    item: str
    side: str
    rollouts: tuple[Rollout, ...]

    @property
    def degenerate(self) -> bool:
        """Whether all rollouts had the same reward, so GRPO learned nothing from them.

        Derived from the advantages, (r - mean) / (s + 1e-4): with s up to 1e-8 they do not exceed √G · 1e-4.
        """
        largest = math.sqrt(len(self.rollouts)) * _SPREAD / _ADDED
        return all(rollout.advantage is None or abs(rollout.advantage) <= largest for rollout in self.rollouts)


@dataclass(frozen=True)
class PairOfGroups:
    """A query and the product that answers it, each with its rollouts.

    Args:
        number: position in the step, from 0.
        groups: the group of the query, of the product, or both.
    """

    number: int
    groups: tuple[Group, ...]

    @property
    def rollouts(self) -> list[Rollout]:
        """The rollouts of both sides."""
        return [rollout for group in self.groups for rollout in group.rollouts]

    @property
    def gain(self) -> float:
        """The mean of `Rollout.gain`."""
        return mean([rollout.gain for rollout in self.rollouts])

    @property
    def total(self) -> float:
        """The mean of `Rollout.total`; the weights must be known."""
        return mean([rollout.total for rollout in self.rollouts if rollout.total is not None])


@dataclass(frozen=True)
class ItemFacts:
    """The facts about a query or product in the data.

    Args:
        text: words of a query, or title of a product.
        attributes: key → values, from the table of products.
        picture: a data URI; None without a picture.
        note: a remark, such as why the picture is not shown.
    """

    text: str = ""
    attributes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    picture: str | None = None
    note: str = ""


@dataclass(frozen=True)
class Report:
    """The content of the page.

    Args:
        name: name of the run's folder.
        facts: facts about the run, key → text.
        notes: one sentence for each missing part.
        series: logged name → step → value.
        step: the step that is shown.
        steps: the steps with completions.
        pairs: the pairs of that step, in the order of `sort_pairs`.
        facts_of: (pair number, side) → facts about the query or product.
        weights: reward → weight; None: unknown.
        order: one of `ORDERS`.
        items: maximum number of pairs that are shown.
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
    """Return the mean of the values, or NaN without values."""
    return math.fsum(values) / len(values) if values else math.nan


# ---------------------------------------------------------------------------------------------------------------------
# Reading a run
# ---------------------------------------------------------------------------------------------------------------------


def completion_steps(run: Path) -> dict[int, Path]:
    """Return step → table of completions, in the order of steps.

    Args:
        run: folder of a run.

    Raises:
        ReportError: the folder does not exist, or contains no completions.
    """
    if not run.is_dir():
        raise ReportError(f"RUN: found no folder {run}; expected the output_dir of a training run")
    found = RunFolder(run).completion_steps()
    if not found:
        raise ReportError(
            f"RUN: found no completions in {RunFolder(run).completions}; expected a run with stage: grpo, completions_steps "
            "above 0 and at least as many steps"
        )
    return found


def read_step(path: Path, weights: Mapping[str, float] | None) -> list[PairOfGroups]:
    """Return the pairs of a table of completions, in the order of the table.

    Consecutive rows with the same item and side form a group; the group of a product belongs to the group of the query
    before it.

    Args:
        path: a parquet table that `training.reasoning.grpo_trainer` wrote.
        weights: reward → weight; None: unknown.

    Raises:
        ReportError: the file is not a parquet table, lacks a column, a value or rows, or has an impossible rank.
    """
    try:
        table = pyarrow.parquet.read_table(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise ReportError(f"{path}: cannot be read as parquet ({error}); expected a complete table") from error
    missing = [name for name in _COLUMNS if name not in table.column_names]
    if missing:
        expected = f"expected the columns {', '.join(_COLUMNS)}, and NAME{_REWARD}"
        raise ReportError(f"{path}: found no column {missing[0]!r}; {expected}")
    rows = table.to_pylist()
    if not rows:
        raise ReportError(f"{path}: found no rows; expected at least one")
    for number, row in enumerate(rows):
        empty = [name for name in _COLUMNS[:-1] if row[name] is None]
        if empty:
            raise ReportError(f"{path}: row {number}, column {empty[0]!r}: found nothing; expected a value")
        if not (row["rank"] >= 1 and row["rank_without"] >= 1):
            raise ReportError(
                f"{path}: row {number}: found rank_without {row['rank_without']} and rank {row['rank']}; "
                "expected at least 1"
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
    """Return None for NaN, which TRL stores if a reward does not apply."""
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
    """Return logged name → step → value of a run's `metrics.jsonl`, and a note on unreadable lines.

    If a step was logged twice, around a resumption, the later line counts.

    Args:
        path: the file; for a missing file, no values and a note are returned.
    """
    series: dict[str, dict[int, float]] = {}
    unread = []
    if not path.is_file():
        return series, [f"No curves: {path.name} does not exist."]
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
        notes.append(f"{path.name}: {which} could not be read; the curves lack their values.")
    return series, notes


def sort_pairs(pairs: Sequence[PairOfGroups], order: str) -> list[PairOfGroups]:
    """Return pairs from best to worst, or unsorted.

    Args:
        pairs: the pairs of one step.
        order: "change": by the improvement of the rank through reasoning; "reward": by the mean weighted reward; "step":
            unsorted.
    """
    if order == "step":
        return list(pairs)
    return sorted(pairs, key=lambda pair: pair.gain if order == "change" else pair.total, reverse=True)


def halves(
    pairs: Sequence[PairOfGroups], items: int, order: str
) -> tuple[Sequence[PairOfGroups], Sequence[PairOfGroups]]:
    """Return the pairs that a page shows: the best and the worst, the most extreme first, or the first pairs.

    Args:
        pairs: from best to worst, or unsorted.
        items: maximum number of pairs.
        order: one of `ORDERS`; with "step", only the first pairs are shown.
    """
    count = min(items, len(pairs))
    best = count if order == "step" else (count + 1) // 2
    return pairs[:best], pairs[::-1][: count - best]
