"""Write the gate's results as sentences, tables and curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from tabulate import tabulate

from evaluation.charts import BLUE, GREEN, panels
from retrieval.shortened import shortened_sentence

ALL = "all"
_TITLES = {"none": "products without reasoning", "generate": "products with reasoning"}
_SHOWN = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)
_ABSENT = "–"


def summary_sentences(results: Mapping[str, Any]) -> list[str]:
    """Summarise in sentences the results over the queries of all directions.

    Args:
        results: from `evaluation.gate.measure_gate`; "words" is not read.

    Returns: for products without and with reasoning the recall with reasoning, with the gate and with a coin; then the
    difference between the spaces, and the directions in which queries without reasoning are more than 2 points behind.
    """
    whole = results["directions"][ALL]
    sentences = []
    for way, curve in whole["curves"].items():
        by_quantile = {point["quantile"]: point for point in curve}
        first, last = curve[0], curve[-1]
        parts = [
            f"{_percent(point['R@10'])} % if the least sure {_percent(point['share'])} % reason "
            f"(a coin with that share: {_percent(point['R@10_coin'])} %)"
            for point in (by_quantile[0.25], by_quantile[0.5])
        ]
        sentences.append(
            f"{_TITLES[way]}: R@10 is {_percent(first['R@10'])} % if no query reasons and "
            f"{_percent(last['R@10'])} % if all do; {'; '.join(parts)}."
        )
    return [*sentences, _alignment_sentence(results["directions"])]


def _alignment_sentence(directions: Mapping[str, Any]) -> str:
    aligned = directions[ALL]["aligned"]
    plain, thought = (aligned["ways"][f"{way}→generate"]["R@10"] for way in ("none", "generate"))
    low, high = aligned["difference"]["interval"]
    distance = "not more than 2 points behind" if aligned["within"] else "more than 2 points behind"
    outside = [_arrow(name) for name, found in directions.items() if name != ALL and not found["aligned"]["within"]]
    more = f"more than 2 points behind in: {', '.join(outside)}" if outside else "nor in any single direction"
    return (
        f"If products reason, R@10 is {_percent(plain)} % for queries without reasoning and {_percent(thought)} % for "
        f"queries with it: {_points(aligned['difference']['difference'])} points "
        f"({_points(low)} to {_points(high)}), {distance}"
        f"{', ' if aligned['within'] and not outside else '; '}{more}."
    )


def markdown(results: Mapping[str, Any]) -> str:
    """Return the results as Markdown: sentences, the four ways to search, the cost of a query, and curves.

    Args:
        results: from `evaluation.gate.measure_gate`.
    """
    name = Path(results["model"]).name or results["model"]
    parts = [
        f"# Thinking when unsure: {name} on {results['benchmark']}",
        "\n".join(f"- {sentence}" for sentence in results["words"]),
        f"Reasoning of at most {results['max_reasoning_tokens']} tokens; R@10 in per cent with 95 % bootstrap "
        "intervals over queries. A coin: the same share of queries reasons, drawn at random.",
        "## One space: queries → products",
        _aligned_table(results["directions"]),
        "## Cost of a query",
        _cost_table(results["cost"]),
    ]
    for direction, found in results["directions"].items():
        sizes = f"{found['queries']} queries" + ("" if direction == ALL else f", {found['gallery']} products")
        parts.append(f"## {_arrow(direction)} ({sizes})")
        parts += [f"{_TITLES[way].capitalize()}:\n\n{_curve_table(curve)}" for way, curve in found["curves"].items()]
    parts += [f"No curve for {_arrow(direction)}: {why}." for direction, why in results["absent"].items()]
    if results["skipped"]:
        parts.append(f"{len(results['skipped'])} records could not be encoded; the JSON file lists them.")
    if results.get("shortened", {}).get("items"):
        parts.append(f"{shortened_sentence(results['shortened'], None)}.")
    return "\n\n".join(parts) + "\n"


def _aligned_table(directions: Mapping[str, Any]) -> str:
    ways = list(directions[ALL]["aligned"]["ways"])
    rows = []
    for name, found in directions.items():
        aligned = found["aligned"]
        cells = [_with_interval(aligned["ways"][way]) for way in ways]
        low, high = aligned["difference"]["interval"]
        difference = f"{_points(aligned['difference']['difference'])} ({_points(low)} to {_points(high)})"
        rows.append([_arrow(name), *cells, difference, "yes" if aligned["within"] else "no"])
    return _table(rows, ["R@10", *ways, "none→generate − generate→generate", "within 2 points"])


def _cost_table(cost: Mapping[str, Any]) -> str:
    rows = []
    for kind, found in cost.items():
        rates = [_number(found[way]["items_per_second"]) for way in ("none", "generate")]
        tokens = _number(found["generate"].get("tokens_per_item"))
        rows.append([kind, str(found["timed"]), *rates, tokens])
    return _table(rows, ["query", "timed", "items/s, none", "items/s, generate", "tokens written"])


def _curve_table(curve: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        [
            f"{_percent(point['share'])} %",
            f"{point['threshold']:.4f}",
            _percent(point["R@1"]),
            _with_interval(point),
            _percent(point["R@10_coin"]),
            _number(point["tokens_per_query"]),
            _number(point["items_per_second"]),
        ]
        for point in curve
        if point["quantile"] in _SHOWN
    ]
    return _table(rows, ["reason", "threshold", "R@1", "R@10", "R@10, coin", "tokens/query", "items/s"])


def _table(rows: Sequence[Sequence[str]], heads: Sequence[str]) -> str:
    align = ("left", *["right"] * (len(heads) - 1))
    return tabulate(rows, headers=heads, tablefmt="github", disable_numparse=True, colalign=align)


def _arrow(direction: str) -> str:
    return "all directions" if direction == ALL else direction.replace("2", "→")


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _with_interval(scores: Mapping[str, Any]) -> str:
    low, high = scores["R@10_interval"]
    return f"{_percent(scores['R@10'])} ({_percent(low)}–{_percent(high)})"


def _points(value: float) -> str:
    return f"{100 * value:+.1f}".replace("-", "−")


def _number(value: float | None) -> str:
    return _ABSENT if value is None else f"{value:.1f}"


# ---------------------------------------------------------------------------------------------------------------------
# The chart
# ---------------------------------------------------------------------------------------------------------------------
_COLOURS = {"none": BLUE, "generate": GREEN}


def draw_curves(results: Mapping[str, Any], path: str | Path) -> Path:
    """Draw R@10 against the share of queries that reason, one panel per direction, with the coin's line dashed.

    Args:
        results: from `evaluation.gate.measure_gate`.
        path: the PNG file to write.
    """
    directions = results["directions"]
    name = Path(results["model"]).name or results["model"]
    heading = f"Thinking when unsure: {name} on {results['benchmark']}"
    note = "R@10, %, against the share of queries that reason, the least sure first; dashed: a coin of that share"
    titles = [f"{_arrow(direction)}, {found['queries']} queries" for direction, found in directions.items()]
    with panels(path, heading, note, titles) as chart:
        for axes, found in zip(chart.axes, directions.values(), strict=True):
            _draw_panel(axes, found["curves"])
        keys = [Line2D([], [], color=_COLOURS[way], label=title, linewidth=2) for way, title in _TITLES.items()]
        chart.figure.legend(handles=keys, loc="upper right", ncols=len(keys), borderaxespad=1.5)
    return Path(path)


def _draw_panel(axes: Axes, curves: Mapping[str, Any]) -> None:
    for way, curve in curves.items():
        shares = [100 * point["share"] for point in curve]
        axes.plot(shares, [100 * point["R@10"] for point in curve], color=_COLOURS[way], marker=".", clip_on=False)
        coin = [100 * curve[place]["R@10_coin"] for place in (0, -1)]
        axes.plot([shares[0], shares[-1]], coin, color=_COLOURS[way], linewidth=0.8, linestyle="--", clip_on=False)
    least, most = _limits(
        [point[name] for curve in curves.values() for point in curve for name in ("R@10", "R@10_coin")]
    )
    axes.set(xlim=(0, 100), ylim=(100 * least, 100 * most), xticks=(0, 25, 50, 75, 100))
    axes.xaxis.set_major_formatter("{x:.0f} %")


def _limits(values: Sequence[float]) -> tuple[float, float]:
    """Return the part of 0 … 1 that the curves cover, at least 5 points high."""
    least, most = min(values), max(values)
    room = max(0.1 * (most - least), 0.5 * (0.05 - (most - least)), 0.005)
    return max(0.0, least - room), min(1.0, most + room)
