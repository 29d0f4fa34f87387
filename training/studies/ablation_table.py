"""The table of an ablation: means over seeds with intervals, paired differences to the cell before, and what they say."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from scipy import stats
from tabulate import tabulate

from evaluation.fonts import Font, font_for, readable

METRICS = ("R@10", "R@1")
LEVEL = 0.95
ALL_ROWS = "mean of all rows"
INTERVAL = (
    f"{LEVEL:.0%} t-intervals over seeds: mean ± t(n−1) · s / √n. A difference is that of the two cells with the same seed, "
    "hence the same starting weights and queries, then its mean over seeds. The test queries are the same in all cells, so "
    "that the intervals are about the training's chance, not about other queries"
)
_ABSENT = "–"
_WORSE, _UNCLEAR, _BETTER = "worse", "unclear", "better"

Interval = tuple[float, float]
SeedScores = Mapping[str, Mapping[str, Mapping[str, float]]]


def t_interval(values: Sequence[float]) -> Interval | None:
    """Return mean ± t_{0.975}(n − 1) · s / √n, or None for fewer than two values (Student 1908).

    Args:
        values: one number a seed.
    """
    count = len(values)
    if count < 2:
        return None
    half = float(stats.t.ppf((1 + LEVEL) / 2, count - 1)) * float(np.std(values, ddof=1)) / math.sqrt(count)
    mean = float(np.mean(values))
    return mean - half, mean + half


def verdict(interval: Interval | None) -> str:
    """Return "better" or "worse" where the interval of a difference leaves out 0, "unclear" otherwise."""
    if interval is None or interval[0] <= 0 <= interval[1]:
        return _UNCLEAR
    return _BETTER if interval[0] > 0 else _WORSE


def ablation_rows(cells: Mapping[str, SeedScores]) -> list[dict[str, Any]]:
    """Return one row a metric, data set and direction, and one a metric for the mean of all its rows.

    Args:
        cells: cell → seed → row ("fashion t→mm") → metric → value, in the order of the suite; a
            cell without seeds is not run yet.

    Returns:
        metric, row and, by cell, mean, interval, seeds, and `difference` to the cell before (mean, interval, seeds,
        verdict; None for the first cell and where no seed is in both).
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
                before = values
            found.append({"metric": metric, "row": name, "cells": by_cell})
    return found


def _values(seeds: SeedScores, name: str, metric: str, names: Sequence[str]) -> dict[str, float]:
    """The metric by seed; the mean of all rows only of seeds that have them all."""
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
    rows: Sequence[Mapping[str, Any]], chance: Mapping[str, Mapping[str, float]] | None = None, metric: str = "R@10"
) -> list[str]:
    """Say of each cell, from the intervals alone, whether what it adds helps.

    A cell whose interval of the mean of all rows does not lie above chance has learned nothing that this shows; what is
    added to such a cell is judged on nothing, and its sentence says so.

    Args:
        rows: from `ablation_rows`.
        chance: row → metric → what a random order gives; None: not compared.
        metric: which of the metrics.
    """
    chosen = [row for row in rows if row["metric"] == metric]
    if not chosen:
        return []
    whole = next(row for row in chosen if row["row"] == ALL_ROWS)["cells"]
    names = [row["row"] for row in chosen if row["row"] != ALL_ROWS]
    by_chance = float(np.mean([chance[name][metric] for name in names])) if chance and names else None
    cells = list(whole)
    return [
        f"{label(cell)}: {_sentence(chosen, cell, metric)}{_at_chance(whole[before], whole[cell], by_chance)}."
        for before, cell in zip(cells, cells[1:], strict=False)
    ]


def _sentence(chosen: Sequence[Mapping[str, Any]], cell: str, metric: str) -> str:
    change = next(row for row in chosen if row["row"] == ALL_ROWS)["cells"][cell]["difference"]
    if change is None:
        return "nothing can be said yet, no seed is finished here and in the cell before"
    if change["interval"] is None:
        return f"{_points(change['mean'])} points with one seed, which has no interval: nothing can be said yet"
    low, high = change["interval"]
    amount = f"{metric} {_points(change['mean'])} points ({_points(low)} to {_points(high)}, {change['seeds']} seeds)"
    said = {
        _BETTER: "helps",
        _WORSE: "hurts",
        _UNCLEAR: "does not help here as far as these seeds can tell: the interval includes 0",
    }[change["verdict"]]
    return f"{amount} in the {ALL_ROWS}: {said}{_by_row(chosen, cell)}"


def _at_chance(before: Mapping[str, Any], after: Mapping[str, Any], by_chance: float | None) -> str:
    """What to say where the models that are compared find no more than a random order does."""
    if by_chance is None or before["interval"] is None or after["interval"] is None:
        return ""
    if before["interval"][0] <= by_chance:
        return (
            f"; but the cell before is not above chance ({100 * by_chance:.1f} %), so that this says nothing about what it "
            "adds to a model that has learned"
        )
    if after["interval"][0] <= by_chance:
        return f"; it falls to chance ({100 * by_chance:.1f} %): with it, this training learns nothing"
    return ""


def _by_row(chosen: Sequence[Mapping[str, Any]], cell: str) -> str:
    """Which single rows are better or worse beyond their intervals."""
    rows = {row["row"]: row["cells"][cell]["difference"] for row in chosen if row["row"] != ALL_ROWS}
    parts = []
    for kind in (_BETTER, _WORSE):
        names = [name for name, change in rows.items() if change is not None and change["verdict"] == kind]
        parts.append(f"{kind} in {', '.join(names) if names else 'none'}")
    return f"; of {len(rows)} single rows {', '.join(parts)}"


def label(cell: str) -> str:
    """Return how a cell is called in tables: "in_batch_only" → "in batch only"."""
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
    """Return the results of an ablation as Markdown: what was run, a table of values and one of differences a metric.

    Args:
        results: as `moon3 ablate` writes them.
    """
    rows = results["table"]
    parts = [
        f"# Ablation: {results['suite']}",
        _head(results),
        "What each step brings, R@10:\n\n" + "\n".join(f"- {sentence}" for sentence in results["words"]),
    ]
    for metric in METRICS:
        chosen = [row for row in rows if row["metric"] == metric]
        if not chosen:
            continue
        heads = ["", *(label(cell) for cell in chosen[0]["cells"])]
        chance = results["chance"]
        values = [
            [row["row"], *map(_percent, row["cells"].values()), _chance(chance.get(row["row"], {}).get(metric))]
            for row in chosen
        ]
        changes = [[row["row"], *(_difference(one["difference"]) for one in row["cells"].values())] for row in chosen]
        parts.append(f"## {metric}, %\n\n{_table(values, [*heads, 'chance'])}")
        without_first = [[line[0], *line[2:]] for line in changes]
        title = f"### {metric}: paired difference to the cell before, points; bold where the interval leaves out 0"
        parts.append(f"{title}\n\n{_table(without_first, [heads[0], *('+ ' + head for head in heads[2:])])}")
    return "\n\n".join(parts) + "\n"


def _chance(value: float | None) -> str:
    return _ABSENT if value is None else f"{100 * value:.1f}"


def _table(rows: Sequence[Sequence[str]], heads: Sequence[str]) -> str:
    align = ("left", *["right"] * (len(heads) - 1))
    return tabulate(rows, headers=heads, tablefmt="github", disable_numparse=True, colalign=align)


def _head(results: Mapping[str, Any]) -> str:
    lines = [
        f"{results['finished']} of {results['planned']} cells × seeds are finished"
        + (f"; missing: {', '.join(results['missing'])}." if results["missing"] else "."),
        f"Every cell keeps the changes of the cells before it and takes {results['steps']} steps.",
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
    lines.append(f"Trained at commit {commits}; versions, seeds and steps of each cell stand in the JSON file.")
    return "\n".join(f"- {line}" for line in lines)


# ---------------------------------------------------------------------------------------------------------------------
# The chart
# ---------------------------------------------------------------------------------------------------------------------
_COLUMNS, _WIDE, _HIGH, _GAP, _MARGIN, _HEAD, _PLOT_TOP, _PLOT_FOOT = 3, 400, 300, 18, 28, 84, 44, 74
_INK, _FAINT, _GROUND, _CARD = (32, 36, 44), (120, 126, 138), (244, 245, 248), (255, 255, 255)
_LINE, _BAR, _GOOD, _BAD = (226, 229, 235), (150, 178, 214), (34, 160, 84), (204, 68, 60)


def draw_chart(results: Mapping[str, Any], path: str | Path, metric: str = "R@10") -> Path:
    """Draw one panel a row: a bar a cell, its interval, a dot a seed; green or red where the difference leaves out 0.

    Args:
        results: as `moon3 ablate` writes them.
        path: where the PNG is written.
        metric: which of the metrics.
    """
    rows = [row for row in results["table"] if row["metric"] == metric]
    lines = max(1, math.ceil(len(rows) / _COLUMNS))
    width = 2 * _MARGIN + _COLUMNS * _WIDE + (_COLUMNS - 1) * _GAP
    chart = Image.new("RGB", (width, _HEAD + lines * (_HIGH + _GAP) + _MARGIN), _GROUND)
    draw = ImageDraw.Draw(chart)
    heading = f"Ablation {results['suite']}: {metric}, %, mean over seeds"
    named = [heading, *(row["row"].replace("→", " to ") + "".join(map(label, row["cells"])) for row in rows)]
    pen = _Pen(draw, *font_for("".join(named)))
    pen.text((_MARGIN, 18), heading, 22, fill=_INK)
    note = "whiskers: 95 % over seeds · dots: seeds · green, red: the paired difference to the bar before leaves out 0"
    state = f" · {results['finished']} of {results['planned']} runs"
    pen.text((_MARGIN, 52), note + state, 13, fill=_FAINT)
    for number, row in enumerate(rows):
        left = _MARGIN + (number % _COLUMNS) * (_WIDE + _GAP)
        top = _HEAD + (number // _COLUMNS) * (_HIGH + _GAP)
        seeds = {cell: _seed_values(results, cell, row["row"], metric) for cell in row["cells"]}
        _draw_panel(pen, row, seeds, results["chance"].get(row["row"], {}).get(metric), (left, top))
    path = Path(path)
    chart.save(path, "PNG", optimize=True)
    return path


def _seed_values(results: Mapping[str, Any], cell: str, row: str, metric: str) -> list[float]:
    return [run["scores"][row][metric] for run in results["runs"].get(cell, {}).values() if row in run["scores"]]


@dataclass(frozen=True)
class _Pen:
    """Draws, and writes in a font that has the chart's characters; what is lacking is put into words."""

    draw: ImageDraw.ImageDraw
    font: Font
    lacking: frozenset[str]

    def text(self, place: tuple[float, float], words: str, size: int, **how: Any) -> None:
        self.draw.multiline_text(place, readable(words, self.lacking), font=self.font(size), **how)


def _draw_panel(
    pen: _Pen,
    row: Mapping[str, Any],
    seeds: Mapping[str, Sequence[float]],
    chance: float | None,
    corner: tuple[int, int],
) -> None:
    left, top = corner
    draw = pen.draw
    draw.rounded_rectangle((left, top, left + _WIDE, top + _HIGH), radius=10, fill=_CARD, outline=_LINE)
    name = row["row"].replace("→", " to ")  # Pillow's own font has no arrow
    pen.text((left + 16, top + 12), name, 15, fill=_INK)
    cells = row["cells"]
    ends = [one["interval"][1] for one in cells.values() if one["interval"]] + [
        value for own in seeds.values() for value in own
    ]
    ends += [one["mean"] for one in cells.values() if one["mean"] is not None]
    most = min(1.0, 1.1 * max(ends, default=1.0)) or 1.0
    floor, height = top + _HIGH - _PLOT_FOOT, _HIGH - _PLOT_FOOT - _PLOT_TOP

    def y_of(value: float) -> float:
        return floor - height * min(max(value, 0.0), most) / most

    for share in (0.0, 0.5, 1.0):
        level = y_of(share * most)
        draw.line((left + 44, level, left + _WIDE - 14, level), fill=_LINE)
        pen.text((left + 38, level), f"{100 * share * most:.0f}", 11, fill=_FAINT, anchor="rm")
    step = (_WIDE - 66) / max(1, len(cells))
    for place, (cell, one) in enumerate(cells.items()):
        middle = left + 50 + step * (place + 0.5)
        _draw_bar(pen, one, (middle, step, floor), y_of)
        for number, value in enumerate(seeds[cell]):
            at = middle + 5 * (number - (len(seeds[cell]) - 1) / 2)
            draw.ellipse((at - 2, y_of(value) - 2, at + 2, y_of(value) + 2), fill=_INK)
        words = label(cell) if place == 0 else f"+ {label(cell)}"
        lines = words.replace(" ", "\n").replace("+\n", "+ ")
        pen.text((middle, floor + 8), lines, 10, fill=_FAINT, anchor="ma")
    if chance is not None:
        draw.line((left + 44, y_of(chance), left + _WIDE - 14, y_of(chance)), fill=_FAINT)
        pen.text((left + _WIDE - 14, y_of(chance) - 2), "chance", 10, fill=_FAINT, anchor="rs")


def _draw_bar(pen: _Pen, one: Mapping[str, Any], place: tuple[float, float, float], y_of: Any) -> None:
    (middle, step, floor), draw = place, pen.draw
    if one["mean"] is None:
        pen.text((middle, floor - 8), "missing", 10, fill=_FAINT, anchor="ms")
        return
    said = (one["difference"] or {}).get("verdict", _UNCLEAR)
    colour = {_BETTER: _GOOD, _WORSE: _BAD, _UNCLEAR: _BAR}[said]
    draw.rectangle((middle - 0.33 * step, y_of(one["mean"]), middle + 0.33 * step, floor), fill=colour)
    if one["interval"]:
        low, high = (y_of(value) for value in one["interval"])
        draw.line((middle, low, middle, high), fill=_INK)
        for level in (low, high):
            draw.line((middle - 5, level, middle + 5, level), fill=_INK)
