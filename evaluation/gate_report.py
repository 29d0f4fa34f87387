"""The gate's results in sentences, as tables and as curves."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw
from tabulate import tabulate

from evaluation.fonts import Font, font_for, readable
from evaluation.shortened import shortened_sentence

ALL = "all"
_TITLES = {"none": "un-reasoned products", "generate": "reasoned products"}
_SHOWN = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)
_ABSENT = "–"
_CHARACTERS = "%,;:0123456789."  # of the charts' own words


def in_words(results: Mapping[str, Any]) -> list[str]:
    """What came out, over the queries of all directions together, from the numbers alone.

    Args:
        results: as `evaluation.gate.measure_gate` makes them; "words" is not read.

    Returns: for each kind of products what reasoning, the gate and a coin give; then how far apart the spaces are, and in which
    single directions un-reasoned queries are more than 2 points behind.
    """
    whole = results["directions"][ALL]
    sentences = []
    for way, curve in whole["curves"].items():
        by_quantile = {point["quantile"]: point for point in curve}
        first, last = curve[0], curve[-1]
        parts = [
            f"where the least sure {_percent(point['share'])} % reason {_percent(point['R@10'])} % "
            f"(a coin of that share: {_percent(point['R@10_coin'])} %)"
            for point in (by_quantile[0.25], by_quantile[0.5])
        ]
        sentences.append(
            f"{_TITLES[way]}: R@10 is {_percent(first['R@10'])} % without reasoning queries and {_percent(last['R@10'])} % when "
            f"all reason; {'; '.join(parts)}."
        )
    return [*sentences, *_aligned_words(results["directions"])]


def _aligned_words(directions: Mapping[str, Any]) -> list[str]:
    aligned = directions[ALL]["aligned"]
    plain, thought = (aligned["ways"][f"{way}→generate"]["R@10"] for way in ("none", "generate"))
    low, high = aligned["difference"]["interval"]
    said = "not more than 2 points behind" if aligned["within"] else "more than 2 points behind"
    outside = [_arrow(name) for name, one in directions.items() if name != ALL and not one["aligned"]["within"]]
    more = f"more than 2 points behind in: {', '.join(outside)}" if outside else "nor in any single direction"
    return [
        f"Before reasoned products un-reasoned queries find {_percent(plain)} % at R@10 and reasoned ones {_percent(thought)} %: "
        f"{_points(aligned['difference']['difference'])} points ({_points(low)} to {_points(high)}), {said}"
        f"{', ' if aligned['within'] and not outside else '; '}{more}."
    ]


def markdown(results: Mapping[str, Any]) -> str:
    """The results as Markdown: sentences, the four ways to search, the cost of a query, and a curve a direction.

    Args:
        results: as `evaluation.gate.measure_gate` makes them.
    """
    name = Path(results["model"]).name or results["model"]
    parts = [
        f"# Thinking when unsure: {name} on {results['benchmark']}",
        "\n".join(f"- {sentence}" for sentence in results["words"]),
        f"Reasoning of at most {results['max_reasoning_tokens']} tokens; R@10 in per cent with 95 % bootstrap intervals over "
        "queries. A coin: the same share reasons, drawn without looking.",
        "## One space: queries → products",
        _aligned_table(results["directions"]),
        "## What a query costs",
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
_COLUMNS, _WIDE, _HIGH, _GAP, _MARGIN, _HEAD = 3, 400, 300, 18, 28, 84
_LEFT, _RIGHT, _TOP, _FOOT = 48, 18, 44, 46  # of a panel, around its plot
_INK, _FAINT, _GROUND, _CARD, _LINE = (32, 36, 44), (120, 126, 138), (244, 245, 248), (255, 255, 255), (226, 229, 235)
_COLOURS = {"none": (66, 110, 180), "generate": (34, 160, 84)}
_DASH = 5


def draw_curves(results: Mapping[str, Any], path: str | Path) -> Path:
    """Draw R@10 against the share of queries that reasons, one panel a direction, with the coin's line dashed.

    Args:
        results: as `evaluation.gate.measure_gate` makes them.
        path: where the PNG is written.
    """
    directions = results["directions"]
    lines = math.ceil(len(directions) / _COLUMNS)
    width = 2 * _MARGIN + _COLUMNS * _WIDE + (_COLUMNS - 1) * _GAP
    chart = Image.new("RGB", (width, _HEAD + lines * (_HIGH + _GAP) + _MARGIN), _GROUND)
    draw = ImageDraw.Draw(chart)
    name = Path(results["model"]).name or results["model"]
    heading = f"Thinking when unsure: {name} on {results['benchmark']}"
    font, lacking = font_for(heading + _CHARACTERS)
    draw.text((_MARGIN, 18), readable(heading, lacking), fill=_INK, font=font(22))
    note = "R@10, %, against the share of queries that reasons, the least sure first; dashed: a coin of that share"
    draw.text((_MARGIN, 52), note, fill=_FAINT, font=font(13))
    for place, way in enumerate(_TITLES):
        left = width - _MARGIN - 190 * (len(_TITLES) - place)
        draw.line((left, 28, left + 22, 28), fill=_COLOURS[way], width=3)
        draw.text((left + 30, 28), _TITLES[way], fill=_INK, font=font(13), anchor="lm")
    for number, (direction, found) in enumerate(directions.items()):
        corner = (_MARGIN + (number % _COLUMNS) * (_WIDE + _GAP), _HEAD + (number // _COLUMNS) * (_HIGH + _GAP))
        title = (
            f"{_arrow(direction).replace('→', ' to ')}, {found['queries']} queries"  # Pillow's own font has no arrow
        )
        _draw_panel(draw, title, found["curves"], corner, font)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    chart.save(path, "PNG", optimize=True)
    return path


def _draw_panel(
    draw: ImageDraw.ImageDraw, title: str, curves: Mapping[str, Any], corner: tuple[int, int], font: Font
) -> None:
    left, top = corner
    draw.rounded_rectangle((left, top, left + _WIDE, top + _HIGH), radius=10, fill=_CARD, outline=_LINE)
    draw.text((left + 16, top + 12), title, fill=_INK, font=font(15))
    values = [point[name] for curve in curves.values() for point in curve for name in ("R@10", "R@10_coin")]
    least, most = _limits(values)
    floor, height, wide = top + _HIGH - _FOOT, _HIGH - _FOOT - _TOP, _WIDE - _LEFT - _RIGHT

    def place(share: float, value: float) -> tuple[float, float]:
        return left + _LEFT + wide * share, floor - height * (value - least) / (most - least)

    for part in (0.0, 0.5, 1.0):
        value = least + part * (most - least)
        draw.line((*place(0, value), *place(1, value)), fill=_LINE)
        start = place(0, value)
        draw.text((start[0] - 6, start[1]), _percent(value), fill=_FAINT, font=font(11), anchor="rm")
        draw.text((place(part, least)[0], floor + 8), f"{100 * part:.0f} %", fill=_FAINT, font=font(11), anchor="ma")
    for way, curve in curves.items():
        line = [place(point["share"], point["R@10"]) for point in curve]
        coin = [place(point["share"], point["R@10_coin"]) for point in (curve[0], curve[-1])]
        _dashed(draw, coin[0], coin[1], _COLOURS[way])
        draw.line(line, fill=_COLOURS[way], width=2, joint="curve")
        for x, y in line:
            draw.ellipse((x - 2, y - 2, x + 2, y + 2), fill=_COLOURS[way])


def _limits(values: Sequence[float]) -> tuple[float, float]:
    """The part of 0 … 1 that the curves take, at least 5 points high."""
    least, most = min(values), max(values)
    room = max(0.1 * (most - least), 0.5 * (0.05 - (most - least)), 0.005)
    return max(0.0, least - room), min(1.0, most + room)


def _dashed(
    draw: ImageDraw.ImageDraw, start: tuple[float, float], end: tuple[float, float], colour: tuple[int, int, int]
) -> None:
    steps = max(1, int(math.dist(start, end) / _DASH))
    ways = [
        (start[0] + (end[0] - start[0]) * k / steps, start[1] + (end[1] - start[1]) * k / steps)
        for k in range(steps + 1)
    ]
    for one, other in zip(ways[::2], ways[1::2], strict=False):
        draw.line((*one, *other), fill=colour)
