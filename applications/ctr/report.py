"""Print and draw the results of click models."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tabulate import tabulate

from applications.ctr.study import IDS, SUBSETS
from applications.results_files import write_results
from evaluation.charts import BLUE, FAINT, GREEN, INK, panels

_ABSENT = "–"


def words(results: Mapping[str, Any]) -> list[str]:
    """Return sentences on what the vectors change for new products, from the intervals and seeds alone."""
    lines = []
    for name, model in results["models"].items():
        for other, subsets in model["against"].items():
            change = subsets["new"]
            if change is None or change["interval"] is None:
                continue
            low, high = change["interval"]
            verdict = "higher" if low > 0 else "lower" if high < 0 else "not clearly different"
            above = sum(value > 0 for value in change["seeds"])
            lines.append(
                f"New products, AUC: {name} against {other}: {_points(change['mean'])} points ({_points(low)} to "
                f"{_points(high)}), {verdict}; higher in {above} of {len(change['seeds'])} seeds."
            )
    return lines


def table(results: Mapping[str, Any], *, style: str = "github") -> str:
    """Return the table of a study: for each model and subset the metrics, and the difference of AUC to ids alone.

    Args:
        results: from `applications.ctr.study.run_study`.
        style (`str`): a tabulate format. Default "github".
    """
    rows = []
    for subset in SUBSETS:
        for name, model in results["models"].items():
            mean = model["mean"][subset]
            if mean is None:
                rows.append([subset, name, *[_ABSENT] * 6])
                continue
            change = (model["against"].get(IDS) or {}).get(subset)
            rows.append(
                [
                    subset,
                    name,
                    f"{100 * mean['AUC']:.2f}",
                    _change(change),
                    f"{100 * mean['GAUC']:.2f}" if "GAUC" in mean else _ABSENT,
                    *(f"{mean[metric]:.4f}" for metric in ("log_loss", "ECE")),
                    f"{mean['predicted_to_actual']:.3f}",
                ]
            )
    heads = ["products", "model", "AUC, %", "against ids, points", "GAUC, %", "log loss", "ECE", "predicted / actual"]
    align = ("left", "left", *["right"] * 6)
    return tabulate(rows, headers=heads, tablefmt=style, disable_numparse=True, colalign=align)


def _change(change: Mapping[str, Any] | None) -> str:
    if change is None:
        return _ABSENT
    interval = "" if change["interval"] is None else " ({} to {})".format(*map(_points, change["interval"]))
    return f"{_points(change['mean'])}{interval}"


def _points(value: float) -> str:
    return f"{100 * value:+.2f}".replace("-", "−")


def what_log(results: Mapping[str, Any]) -> str:
    """Return a sentence about the logs; it says if they are simulated."""
    logs = list(results["log"].values())
    kind = "SIMULATED behaviour" if any(log["simulated"] for log in logs) else "logged behaviour"
    rows = " / ".join(f"{count:,}" for count in dict.fromkeys(log["rows"] for log in logs))
    new = " / ".join(f"{count:,}" for count in dict.fromkeys(log["new_products"] for log in logs))
    return f"{kind}: {rows} showings; {new} products are new in the test period; {len(logs)} seeds"


def draw_chart(results: Mapping[str, Any], path: Path) -> None:
    """Draw AUC for all, known and new products: a line for the mean of each model, a dot for each seed.

    Args:
        results: from `applications.ctr.study.run_study`.
        path: PNG file to write.
    """
    models = results["models"]
    titles = [f"{subset} products" for subset in SUBSETS]
    lines = [name.replace(": ", "\n").replace(" + ", "\n+ ") for name in models]
    heading = "Click prediction: AUC, %, mean over seeds"
    with panels(
        path, heading, f"{what_log(results)} · line: mean · dots: seeds", titles, labels="".join(models), foot=0.8
    ) as chart:
        values = [
            100 * score["AUC"]
            for model in models.values()
            for cell in model["seeds"].values()
            for score in cell["scores"].values()
            if score is not None
        ]
        low, high = min(values), max(values)
        margin = 0.1 * (high - low) + 0.1
        for axes, subset in zip(chart.axes, SUBSETS, strict=True):
            for place, model in enumerate(models.values()):
                own = [cell["scores"][subset] for cell in model["seeds"].values()]
                if any(score is None for score in own):
                    axes.text(place, low, "none", fontsize=7, color=FAINT, ha="center")
                    continue
                mean, colour = 100 * model["mean"][subset]["AUC"], BLUE if model["vectors"] else GREEN
                axes.plot([place - 0.33, place + 0.33], [mean, mean], color=colour, linewidth=4, solid_capstyle="butt")
                beside = [place + 0.12 * (number - (len(own) - 1) / 2) for number in range(len(own))]
                axes.plot(beside, [100 * score["AUC"] for score in own], ".", color=INK, markersize=5)
            axes.set_xticks(range(len(models)), [chart.readable(line) for line in lines], fontsize=6)
            axes.set(xlim=(-0.6, len(models) - 0.4), ylim=(low - margin, high + margin))


def write(results: Mapping[str, Any], output: Path) -> dict[str, Any]:
    """Write the results file, the table as Markdown and the chart beside it, and return what the file holds.

    Args:
        results: from `applications.ctr.study.run_study`.
        output: the .json file; the others have its name.
    """
    whole = {"words": words(results), **results}
    write_results(whole, output, parts=["# Click prediction", f"{what_log(whole)}.", table(whole)], draw=draw_chart)
    return whole
