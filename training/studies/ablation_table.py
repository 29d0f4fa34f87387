"""Compute the table of an ablation: means over seeds with intervals, paired differences to the cell before, and verdicts."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from scipy import stats
from tabulate import tabulate

from evaluation.charts import FAINT, GREEN, INK, RED, panels

METRICS = ("R@10", "R@1")
LEVEL = 0.95
ALL_ROWS = "mean of all rows"
INTERVAL = (
    f"{LEVEL:.0%} t-intervals over seeds: mean ± t(n−1) · s / √n. Differences are between two cells with the same seed, hence "
    "the same starting weights and queries, averaged over seeds. The test queries are the same in all cells, so the intervals "
    "express the variation of the training, not of the queries"
)
_RULE = {True: "keeps the changes of the cells before it", False: "changes one part of the first one"}
_ABSENT = "–"
_WORSE, _UNCLEAR, _BETTER = "worse", "unclear", "better"

Interval = tuple[float, float]
SeedScores = Mapping[str, Mapping[str, Mapping[str, float]]]


def row_scores(result: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return "data set direction" → scores of a results file from `moon3 evaluate`, including image-only directions."""
    rows = {}
    for group in ("image_only", "scores"):
        for direction, scores in result[group].items():
            if scores is not None:
                own = ", own parts" if scores["source"] == "products" else ""
                reasoned = ", reasoned" if (result.get("reasoning") or {}).get("query") == "generate" else ""
                name = f"{result['benchmark']} {direction.replace('2', '→')}{own}{reasoned}"
                kept = ("R@1", "R@10", "R@1_chance", "R@10_chance", "MRR", "rank_score", "queries", "gallery")
                rows[name] = {key: scores[key] for key in kept if key in scores}
    return dict(sorted(rows.items()))


def t_interval(values: Sequence[float]) -> Interval | None:
    """Return mean ± t_{0.975}(n − 1) · s / √n, or None for fewer than two values (Student 1908).

    Args:
        values: one number for each seed.
    """
    count = len(values)
    if count < 2:
        return None
    half = float(stats.t.ppf((1 + LEVEL) / 2, count - 1)) * float(np.std(values, ddof=1)) / math.sqrt(count)
    mean = float(np.mean(values))
    return mean - half, mean + half


def verdict(interval: Interval | None) -> str:
    """Return "better" or "worse" if the interval of a difference excludes 0, otherwise "unclear"."""
    if interval is None or interval[0] <= 0 <= interval[1]:
        return _UNCLEAR
    return _BETTER if interval[0] > 0 else _WORSE


def ablation_rows(cells: Mapping[str, SeedScores], *, cumulative: bool = True) -> list[dict[str, Any]]:
    """Return a row for each metric, data set and direction, and for each metric the mean of all its rows.

    Args:
        cells: cell → seed → row ("fashion t→mm") → metric → value, in the order of the suite; a cell without seeds has
            not been run yet.
        cumulative: whether a cell is compared with the cell before it. If not, all are compared with the first one.

    Returns:
        Rows with metric, row and, for each cell, mean, interval, seeds, and `difference` to the cell before, or to the first
        one (mean, interval, seeds, verdict), which is None for the first cell, and if the two cells have no seed in common.
    """
    names = list(dict.fromkeys(name for seeds in cells.values() for scores in seeds.values() for name in scores))
    found = []
    for metric in METRICS:
        for name in [*names, ALL_ROWS]:
            by_cell: dict[str, Any] = {}
            before: dict[str, float] | None = None
            for cell, seeds in cells.items():
                values = _values(seeds, name, metric, names)
                by_cell[cell] = _cell(values, before)
                before = values if cumulative or before is None else before
            found.append({"metric": metric, "row": name, "cells": by_cell})
    return found


def _values(seeds: SeedScores, name: str, metric: str, names: Sequence[str]) -> dict[str, float]:
    """Return the metric by seed; the mean of all rows only for seeds with all rows."""
    if name != ALL_ROWS:
        return {seed: scores[name][metric] for seed, scores in seeds.items() if name in scores}
    whole = {seed: scores for seed, scores in seeds.items() if all(row in scores for row in names)}
    return {seed: float(np.mean([scores[row][metric] for row in names])) for seed, scores in whole.items()}


def _cell(values: Mapping[str, float], before: Mapping[str, float] | None) -> dict[str, Any]:
    summary = _summary(list(values.values())) if values else {"mean": None, "interval": None, "seeds": 0}
    common = [] if before is None else [seed for seed in values if seed in before]
    difference = None
    if before is not None and common:
        difference = _summary([values[seed] - before[seed] for seed in common])
        difference["verdict"] = verdict(difference["interval"])
    return {**summary, "difference": difference}


def _summary(values: Sequence[float]) -> dict[str, Any]:
    return {"mean": float(np.mean(values)), "interval": t_interval(values), "seeds": len(values)}


def in_words(
    rows: Sequence[Mapping[str, Any]],
    chance: Mapping[str, Mapping[str, float]] | None = None,
    metric: str = "R@10",
    *,
    cumulative: bool = True,
) -> list[str]:
    """Return for each cell a sentence on whether its change helps, based on the intervals only.

    If the interval of a cell's mean of all rows is not above chance, the table does not show that the cell learned anything.
    The sentence on the next cell then says that its change cannot be judged.

    Args:
        rows: from `ablation_rows`.
        chance: row → metric → score of a random order; None: no comparison with chance.
        metric: the metric to describe, one of `METRICS`.
        cumulative: as in `ablation_rows`.
    """
    chosen = [row for row in rows if row["metric"] == metric]
    if not chosen:
        return []
    whole = next(row for row in chosen if row["row"] == ALL_ROWS)["cells"]
    names = [row["row"] for row in chosen if row["row"] != ALL_ROWS]
    by_chance = float(np.mean([chance[name][metric] for name in names])) if chance and names else None
    cells = list(whole)
    references = cells if cumulative else cells[:1] * len(cells)
    return [
        f"{label(cell)}: {_sentence(chosen, cell, metric)}{_at_chance(whole[before], whole[cell], by_chance)}."
        for before, cell in zip(references, cells[1:], strict=False)
    ]


def _sentence(chosen: Sequence[Mapping[str, Any]], cell: str, metric: str) -> str:
    change = next(row for row in chosen if row["row"] == ALL_ROWS)["cells"][cell]["difference"]
    if change is None:
        return "no verdict yet, because this cell and the one that it is compared with have no finished seed in common"
    if change["interval"] is None:
        return f"{_points(change['mean'])} points with one seed, which has no interval: no verdict yet"
    low, high = change["interval"]
    amount = f"{metric} {_points(change['mean'])} points ({_points(low)} to {_points(high)}, {change['seeds']} seeds)"
    effect = {
        _BETTER: "helps",
        _WORSE: "hurts",
        _UNCLEAR: "these seeds do not show an effect: the interval includes 0",
    }[change["verdict"]]
    return f"{amount} in the {ALL_ROWS}: {effect}{_by_row(chosen, cell)}"


def _at_chance(before: Mapping[str, Any], after: Mapping[str, Any], by_chance: float | None) -> str:
    """Return a remark if one of the compared cells is not better than a random order, otherwise an empty string."""
    if by_chance is None or before["interval"] is None or after["interval"] is None:
        return ""
    if before["interval"][0] <= by_chance:
        return (
            f"; but the cell that it is compared with is not above chance ({100 * by_chance:.1f} %), so this does not show the "
            "effect on a trained model"
        )
    if after["interval"][0] <= by_chance:
        return f"; this cell falls to chance ({100 * by_chance:.1f} %): its training learns nothing"
    return ""


def _by_row(chosen: Sequence[Mapping[str, Any]], cell: str) -> str:
    """Return the single rows whose intervals exclude 0, as text."""
    rows = {row["row"]: row["cells"][cell]["difference"] for row in chosen if row["row"] != ALL_ROWS}
    parts = []
    for kind in (_BETTER, _WORSE):
        names = [name for name, change in rows.items() if change is not None and change["verdict"] == kind]
        parts.append(f"{kind} in {', '.join(names) if names else 'none'}")
    return f"; of {len(rows)} single rows {', '.join(parts)}"


def label(cell: str) -> str:
    """Return the name of a cell in tables: "in_batch_only" → "in batch only"."""
    return cell.replace("_", " ")


def _points(value: float) -> str:
    return f"{100 * value:+.1f}".replace("-", "−")


def _percent(cell: Mapping[str, Any]) -> str:
    if cell["mean"] is None:
        return _ABSENT
    text = f"{100 * cell['mean']:.1f}"
    if cell["interval"] is None:
        return f"{text} ({cell['seeds']} seed)"
    return f"{text} ± {50 * (cell['interval'][1] - cell['interval'][0]):.1f}"


def _difference(change: Mapping[str, Any] | None) -> str:
    if change is None:
        return _ABSENT
    if change["interval"] is None:
        return _points(change["mean"])
    low, high = change["interval"]
    text = f"{_points(change['mean'])} ({_points(low)} to {_points(high)})"
    return text if change["verdict"] == _UNCLEAR else f"**{text}**"


def markdown(results: Mapping[str, Any]) -> str:
    """Return the results of an ablation as Markdown: the runs, and for each metric a table of values and one of differences.

    Args:
        results: as `moon3 ablate` writes them.
    """
    rows, cumulative = results["table"], results.get("cumulative", True)
    parts = [
        f"# Ablation: {results['suite']}",
        _head(results),
        "Effect of each cell, R@10:\n\n" + "\n".join(f"- {sentence}" for sentence in results["words"]),
    ]
    for metric in METRICS:
        chosen = [row for row in rows if row["metric"] == metric]
        if not chosen:
            continue
        heads = ["", *(label(cell) for cell in chosen[0]["cells"])]
        chance = [results["chance"].get(row["row"], {}).get(metric) for row in chosen]
        values = [
            [row["row"], *map(_percent, row["cells"].values()), _ABSENT if share is None else f"{100 * share:.1f}"]
            for row, share in zip(chosen, chance, strict=True)
        ]
        changes = [[row["row"], *(_difference(cell["difference"]) for cell in row["cells"].values())] for row in chosen]
        parts.append(f"## {metric}, %\n\n{_table(values, [*heads, 'chance'])}")
        without_first = [[line[0], *line[2:]] for line in changes]
        reference = "the cell before" if cumulative else heads[1]
        title = f"### {metric}: paired difference to {reference}, points; bold if the interval excludes 0"
        parts.append(f"{title}\n\n{_table(without_first, [heads[0], *('+ ' + head for head in heads[2:])])}")
    return "\n\n".join(parts) + "\n"


def _table(rows: Sequence[Sequence[str]], heads: Sequence[str]) -> str:
    align = ("left", *["right"] * (len(heads) - 1))
    return tabulate(rows, headers=heads, tablefmt="github", disable_numparse=True, colalign=align)


def _head(results: Mapping[str, Any]) -> str:
    lines = [
        f"{results['finished']} of {results['planned']} cells × seeds are finished"
        + (f"; missing: {', '.join(results['missing'])}." if results["missing"] else "."),
        f"Every cell {_RULE[results.get('cumulative', True)]} and takes {results['steps']} steps.",
        f"{results['interval']}.",
        f"With {results['comparisons']} differences at {LEVEL:.0%} each, about {results['comparisons'] * (1 - LEVEL):.0f} would "
        "leave out 0 by chance alone; the intervals are not corrected for it.",
    ]
    for name, facts in results["boxes"].items():
        lines.append(
            f"Core boxes of {name}, by {results['boxes_by']}: {facts['products_with_box']} of {facts['products']} products "
            f"and {facts['queries_with_box']} of {facts['photos']} query photos have one; without a box there is no crop."
        )
    lines.append(
        "Changed keys: "
        + "; ".join(f"{label(cell)}: {keys or 'none'}" for cell, keys in results["cells"].items())
        + "."
    )
    commits = ", ".join(results["provenance"]["commits"]) or "none yet"
    lines.append(f"Trained at commit {commits}; the JSON file lists versions, seeds and steps of each cell.")
    return "\n".join(f"- {line}" for line in lines)


# ---------------------------------------------------------------------------------------------------------------------
# The chart
# ---------------------------------------------------------------------------------------------------------------------
_COLOURS = {_BETTER: GREEN, _WORSE: RED, _UNCLEAR: "#96b2d6"}


def draw_chart(results: Mapping[str, Any], path: str | Path, metric: str = "R@10") -> Path:
    """Draw a panel for each row: a bar for each cell with its interval, and a dot for each seed.

    A bar is green or red if the interval of its difference excludes 0.

    Args:
        results: as `moon3 ablate` writes them.
        path: PNG file to write.
        metric: the metric to draw, one of `METRICS`.

    Returns:
        The path of the PNG.
    """
    rows = [row for row in results["table"] if row["metric"] == metric]
    heading = f"Ablation {results['suite']}: {metric}, %, mean over seeds"
    bar = "bar before" if results.get("cumulative", True) else "first bar"
    note = (
        f"whiskers: 95 % over seeds · dots: seeds · green, red: the paired difference to the {bar} excludes 0 · "
        f"grey line: chance · {results['finished']} of {results['planned']} runs"
    )
    labels = "".join(label(cell) for row in rows for cell in row["cells"])
    with panels(path, heading, note, [row["row"] for row in rows], labels=labels, foot=0.74) as chart:
        for axes, row in zip(chart.axes, rows, strict=True):
            cells, name = row["cells"], row["row"]
            seeds = [
                [run["scores"][name][metric] for run in results["runs"].get(cell, {}).values() if name in run["scores"]]
                for cell in cells
            ]
            _draw_panel(axes, list(cells.values()), seeds, results["chance"].get(name, {}).get(metric))
            named = [f"+ {label(cell)}" if place else label(cell) for place, cell in enumerate(cells)]
            lines = [chart.readable(name).replace(" ", "\n").replace("+\n", "+ ") for name in named]
            axes.set_xticks(range(len(cells)), lines, fontsize=7.5)
    return Path(path)


def _draw_panel(
    axes: Axes, cells: Sequence[Mapping[str, Any]], seeds: Sequence[Sequence[float]], chance: float | None
) -> None:
    most = max([0.0, *(value for own in seeds for value in own)])
    for place, (cell, own) in enumerate(zip(cells, seeds, strict=True)):
        if cell["mean"] is None:
            axes.text(place, 0, "missing", fontsize=8, color=FAINT, ha="center", va="bottom")
            continue
        low, high = cell["interval"] or (cell["mean"], cell["mean"])
        most = max(most, high)
        effect = (cell["difference"] or {}).get("verdict", _UNCLEAR)
        axes.bar(place, 100 * cell["mean"], width=0.66, color=_COLOURS[effect])
        if cell["interval"]:
            middle, half = 50 * (high + low), 50 * (high - low)
            axes.errorbar(place, middle, half, color=INK, linewidth=1, capsize=4, fmt="none")
        beside = [place + 0.09 * (number - (len(own) - 1) / 2) for number in range(len(own))]
        axes.plot(beside, [100 * value for value in own], ".", color=INK, markersize=6, clip_on=False)
    if chance is not None:
        axes.axhline(100 * chance, color=FAINT, linewidth=1)
    axes.set(xlim=(-0.6, len(cells) - 0.4), ylim=(0, min(100.0, 110 * most) or 100.0))
