"""Print and draw exchange rates."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tabulate import tabulate

from applications.ctr.report import what_log
from applications.exchange_rate.study import IMAGE_SEARCH, SUBSETS
from applications.results_files import write_results
from evaluation.charts import BLUE, FAINT, INK, panels

_ABSENT, _PANELS = "–", 3


def words(results: Mapping[str, Any]) -> list[str]:
    """Return sentences on the exchange rate of image search and on the metric that predicts best."""
    lines = []
    count = len(results["steps"])
    for subset in SUBSETS:
        found = results[subset]
        image = found["metrics"][IMAGE_SEARCH]
        if image["rate"] is None:
            lines.append(
                f"{subset} products: {IMAGE_SEARCH} does not change beyond chance, so it has no exchange rate."
            )
        else:
            lines.append(
                f"{subset} products: one point of {IMAGE_SEARCH} goes with {_number(image['rate'])} points of AUC "
                f"(slope over {count} checkpoints)."
            )
        if found["ranking"]:
            best = found["ranking"][0]
            tied = [name for name in found["ranking"][1:] if _reaches(found["metrics"][name], found["metrics"][best])]
            lines.append(
                f"{subset} products: {best} predicts AUC best, leave-one-out R² "
                f"{_number(found['metrics'][best]['leave_one_out_R2'])}; the intervals of {len(tied)} other metrics reach its "
                f"value. {count} checkpoints of one run are few: do not choose a metric by this alone."
            )
    return lines


def _reaches(metric: Mapping[str, Any], best: Mapping[str, Any]) -> bool:
    interval = metric["leave_one_out_R2"]["interval"]
    return interval is not None and interval[1] >= best["leave_one_out_R2"]["value"]


def _number(found: Mapping[str, Any] | None, digits: int = 3) -> str:
    if found is None:
        return _ABSENT
    text = f"{found['value']:.{digits}f}"
    if found["interval"] is not None:
        text += f" ({found['interval'][0]:.{digits}f} to {found['interval'][1]:.{digits}f})"
    return text.replace("-", "−")


def table(results: Mapping[str, Any], subset: str, *, style: str = "github") -> str:
    """Return a table of the metrics, best predictor first.

    Args:
        results: from `applications.exchange_rate.study.run_study`.
        subset (`str`): "all" or "new" products.
        style (`str`): a tabulate format. Default "github".
    """
    found = results[subset]
    names = [*found["ranking"], *(name for name in found["metrics"] if name not in found["ranking"])]
    rows = []
    for name in names:
        one, values = found["metrics"][name], results["values"][name]
        rows.append(
            [
                name,
                f"{values[0]:.3f} → {values[-1]:.3f}",
                _number(one["rate"]),
                _number(one["rank_correlation"], 2),
                _number(one["leave_one_out_R2"], 2),
            ]
        )
    heads = ["metric", "first → last", "AUC per metric", "rank correlation", "leave-one-out R²"]
    return tabulate(rows, headers=heads, tablefmt=style, disable_numparse=True)


def auc_table(results: Mapping[str, Any], *, style: str = "github") -> str:
    """Return the AUC, the image search recall and the exchange rate of each checkpoint against the first one.

    Args:
        results: from `applications.exchange_rate.study.run_study`.
        style (`str`): a tabulate format. Default "github".
    """
    rates = {subset: [None, *results[subset]["metrics"][IMAGE_SEARCH]["rates"]] for subset in SUBSETS}
    rows = [
        [
            step,
            f"{100 * results['values'][IMAGE_SEARCH][place]:.1f}",
            *(f"{100 * results[subset]['AUC'][place]:.2f}" for subset in SUBSETS),
            *(_number(rates[subset][place]) for subset in SUBSETS),
        ]
        for place, step in enumerate(results["steps"])
    ]
    heads = ["step", f"{IMAGE_SEARCH}, %", *(f"AUC {subset}, %" for subset in SUBSETS)]
    heads += [f"exchange rate, {subset}" for subset in SUBSETS]
    return tabulate(rows, headers=heads, tablefmt=style, disable_numparse=True)


def draw_chart(results: Mapping[str, Any], path: Path) -> None:
    """Draw AUC over image search recall and over the best other metrics: a dot for each checkpoint, its step beside it.

    Args:
        results: from `applications.exchange_rate.study.run_study`.
        path: PNG file to write.
    """
    others = {subset: [name for name in results[subset]["ranking"] if name != IMAGE_SEARCH] for subset in SUBSETS}
    drawn = [(subset, name) for subset in SUBSETS for name in [IMAGE_SEARCH, *others[subset][: _PANELS - 1]]]
    titles = [f"{subset} products: {name}" for subset, name in drawn]
    note = f"{what_log(results)} · a dot is a checkpoint with its step · line: least squares"
    with panels(path, "Exchange rate: AUC of click prediction, %, over intermediate metrics", note, titles) as chart:
        for axes, (subset, name) in zip(chart.axes, drawn, strict=True):
            x_K, y_K = results["values"][name], [100 * value for value in results[subset]["AUC"]]
            rate = results[subset]["metrics"][name]["rate"]
            if rate is not None:
                middle_x, middle_y = sum(x_K) / len(x_K), sum(y_K) / len(y_K)
                ends = [min(x_K), max(x_K)]
                axes.plot(
                    ends, [middle_y + 100 * rate["value"] * (x - middle_x) for x in ends], color=FAINT, linewidth=1
                )
            axes.plot(x_K, y_K, ".", color=BLUE, markersize=8)
            for x, y, step in zip(x_K, y_K, results["steps"], strict=True):
                axes.annotate(str(step), (x, y), (4, 3), textcoords="offset points", fontsize=7, color=INK)
            axes.margins(0.12)


def write(results: Mapping[str, Any], output: Path) -> dict[str, Any]:
    """Write the results file, the tables as Markdown and the chart beside it, and return what the file holds.

    Args:
        results: from `applications.exchange_rate.study.run_study`.
        output: the .json file; the others have its name.
    """
    whole = {"words": words(results), **results}
    parts = ["# Exchange rate", f"{what_log(whole)}.", auc_table(whole)]
    parts += [f"## {subset} products\n\n{table(whole, subset)}" for subset in SUBSETS]
    write_results(whole, output, parts=parts, draw=draw_chart)
    return whole
