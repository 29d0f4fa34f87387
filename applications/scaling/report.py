"""Print and draw power laws."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator, NullLocator
from tabulate import tabulate

from applications.results_files import write_results
from applications.scaling.power_law import PowerLaw
from evaluation.charts import BLUE, FAINT, INK, panels


def table(results: Mapping[str, Any], *, style: str = "github") -> str:
    """Return a table of the fits: axis, loss, law, exponent and floor with intervals.

    Args:
        results: from `applications.scaling.study.run_scale`.
        style (`str`): a tabulate format. Default "github".
    """
    rows = []
    for line in results["fits"]:
        fit = line["fit"]
        at = ", ".join(f"{value} {name}" for name, value in line["at"].items())
        ends = f"{line['x'][0]:,.0f} – {line['x'][-1]:,.0f}" if line["x"] else "–"
        losses = [float(np.mean(own)) for own in line["losses"]]
        change = f"{losses[0]:.3f} → {losses[-1]:.3f}" if losses else "–"
        if fit is None:
            rows.append([line["axis"], line["loss"], at, ends, change, line["not_fitted"], "–", "–"])
        else:
            rows.append(
                [line["axis"], line["loss"], at, ends, change, fit["law"], _number(fit["b"]), _number(fit.get("c"))]
            )
    heads = ["axis", "loss", "at", "from – to", "loss, first → last", "law", "exponent b", "floor c"]
    return tabulate(rows, headers=heads, tablefmt=style, disable_numparse=True)


def _number(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return "–"
    bounds = "" if found["interval"] is None else " ({:.3f} to {:.3f})".format(*found["interval"])
    return f"{found['value']:.3f}{bounds}".replace("-", "−")


def draw_chart(results: Mapping[str, Any], path: Path) -> None:
    """Draw a panel for each fit with logarithmic axes: a dot for each seed, and the law.

    Args:
        results: from `applications.scaling.study.run_scale`.
        path: PNG file to write.
    """
    lines = results["fits"]
    titles = [f"{line['axis']}: {line['loss']}" for line in lines]
    simulated = any(log["simulated"] for log in results["history"].get("log", {}).values())
    note = f"dots: seeds · line: least squares of the logarithm{' · clicks are SIMULATED' if simulated else ''}"
    with panels(path, f"Scaling study {results['suite']}", note, titles) as chart:
        for axes, line in zip(chart.axes, lines, strict=True):
            for x, own in zip(line["x"], line["losses"], strict=True):
                axes.plot([x] * len(own), own, ".", color=BLUE, markersize=6)
            axes.set(xscale="log", yscale="log")
            axes.set_xticks(line["x"], [f"{x:,.0f}" for x in line["x"]], fontsize=8)
            axes.yaxis.set_major_locator(MaxNLocator(4))
            axes.yaxis.set_major_formatter("{x:.3f}")
            axes.xaxis.set_minor_locator(NullLocator())
            axes.yaxis.set_minor_locator(NullLocator())
            if line["fit"] is None:
                axes.text(0.5, 0.5, line["not_fitted"], transform=axes.transAxes, fontsize=8, color=FAINT, ha="center")
                continue
            values = {name: line["fit"][name]["value"] for name in ("a", "b", "c") if name in line["fit"]}
            law = PowerLaw(values["a"], values["b"], values.get("c", 0.0), line["fit"]["aic"], "c" in values)
            x_X = np.geomspace(min(line["x"]), max(line["x"]), 60)
            axes.plot(x_X, law(x_X), color=INK, linewidth=1)


def write(results: Mapping[str, Any], output: Path) -> None:
    """Write the results file, the table as Markdown and the chart beside it.

    Args:
        results: from `applications.scaling.study.run_scale`.
        output: the .json file; the others have its name.
    """
    parts = [f"# Scaling study: {results['suite']}", table(results)]
    write_results(results, output, parts=parts, draw=draw_chart)
