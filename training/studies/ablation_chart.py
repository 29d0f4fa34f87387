"""Draw the table of an ablation: the values of cumulative cells, or the differences of the others to the first one."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from evaluation.charts import FAINT, GREEN, INK, RED, panels
from training.studies.ablation_table import BETTER, REASONED, SIGN_MARKS, UNCLEAR, WORSE, is_mean, label

_COLOURS = {BETTER: GREEN, WORSE: RED, UNCLEAR: "#96b2d6"}


def draw_chart(results: Mapping[str, Any], path: str | Path, metric: str = "R@10") -> Path:
    """Draw the table of an ablation.

    If cells are cumulative, a panel for each row has a bar for each cell with its interval, and a dot for each seed. Otherwise a
    panel for each mean has a horizontal bar for each cell's difference to its reference, in the order of the suite. A bar is
    green or red if the interval of its difference excludes 0.

    Args:
        results: as `moon3 ablate` writes them.
        path: PNG file to write.
        metric: the metric to draw, one of `METRICS`.

    Returns:
        The path of the PNG.
    """
    (_draw_values if results.get("cumulative", True) else _draw_differences)(results, Path(path), metric)
    return Path(path)


def _draw_values(results: Mapping[str, Any], path: Path, metric: str) -> None:
    rows = [row for row in results["table"] if row["metric"] == metric]
    heading = f"Ablation {results['suite']}: {metric}, %, mean over seeds"
    note = (
        f"whiskers: 95 % over seeds · dots: seeds · green, red: the paired difference to the bar before excludes 0 · "
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


def _draw_differences(results: Mapping[str, Any], path: Path, metric: str) -> None:
    """Draw the differences of each mean to the first cell; a mean of reasoned rows adds bars to the panel of the others."""
    rows = {row["row"]: row["cells"] for row in results["table"] if row["metric"] == metric and is_mean(row)}
    panels_of = [name for name in rows if not name.endswith(REASONED)]
    first, *cells = results["cells"]
    published = results.get("published", {})
    bars = {
        name: [
            (cell + ending, (rows[name + ending].get(cell) or {}).get("difference"))
            for cell in cells
            for ending in ("", REASONED)
            if name + ending in rows and (not ending or rows[name + ending][cell]["seeds"])
        ]
        for name in panels_of
    }
    signs = {cell: f"[{SIGN_MARKS[found['sign']]}]  " for cell, found in published.items()}
    others = {cell: f" − {label(other)}" for cell, other in results.get("compared_with", {}).items()}
    labels = [
        f"{signs.get(cell.removesuffix(REASONED), '')}{label(cell)}{others.get(cell.removesuffix(REASONED), '')}"
        for cell, _ in bars[panels_of[0]]
    ]
    heading = f"Ablation {results['suite']}: {metric}, difference to {label(first)}, points"
    note = (
        f"whiskers: 95 % over seeds · green, red: the interval excludes 0 · [+] [−] [0]: what a paper reports · "
        f"{results['finished']} of {results['planned']} runs"
    )
    size = {"left": 0.35 + 0.056 * max(map(len, labels)), "high": max(3.0, 1.0 + 0.19 * len(labels))}
    with panels(path, heading, note, panels_of, labels="".join(labels), **size) as chart:
        for axes, name in zip(chart.axes, panels_of, strict=True):
            _draw_bars(axes, [change for _, change in bars[name]])
            axes.set_yticks(range(len(labels)), [chart.readable(text) for text in labels], fontsize=8, color=INK)


def _draw_bars(axes: Axes, changes: Sequence[Mapping[str, Any] | None]) -> None:
    ends = [0.0]
    for place, change in enumerate(changes):
        if change is None:
            axes.text(0, place, " missing", fontsize=7.5, color=FAINT, va="center")
            continue
        mean = 100 * change["mean"]
        axes.barh(place, mean, height=0.66, color=_COLOURS[change["verdict"]])
        ends.append(mean)
        if change["interval"]:
            low, high = (100 * end for end in change["interval"])
            axes.plot([low, high], [place, place], color=INK, linewidth=1)
            ends += [low, high]
    span = max(ends) - min(ends) or 1.0
    axes.axvline(0, color=FAINT, linewidth=1)
    axes.grid(visible=True, axis="x")
    axes.grid(visible=False, axis="y")
    axes.set(xlim=(min(ends) - 0.06 * span, max(ends) + 0.06 * span), ylim=(len(changes) - 0.4, -0.6))


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
        effect = (cell["difference"] or {}).get("verdict", UNCLEAR)
        axes.bar(place, 100 * cell["mean"], width=0.66, color=_COLOURS[effect])
        if cell["interval"]:
            middle, half = 50 * (high + low), 50 * (high - low)
            axes.errorbar(place, middle, half, color=INK, linewidth=1, capsize=4, fmt="none")
        beside = [place + 0.09 * (number - (len(own) - 1) / 2) for number in range(len(own))]
        axes.plot(beside, [100 * value for value in own], ".", color=INK, markersize=6, clip_on=False)
    if chance is not None:
        axes.axhline(100 * chance, color=FAINT, linewidth=1)
    axes.set(xlim=(-0.6, len(cells) - 0.4), ylim=(0, min(100.0, 110 * most) or 100.0))
