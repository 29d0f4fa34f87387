"""Compute the table of an ablation: means over seeds with intervals, paired differences to the cell before, and verdicts."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats
from tabulate import tabulate

METRICS = ("R@10", "R@1")
LEVEL = 0.95
LABEL_METRICS = {"top1": "right label", "top10": "right label among the ten best"}
ALL_ROWS, LEFT_OUT_ROWS = "mean of all rows", "mean of left-out shops"
REASONED = ", reasoned"
"""End of the name of a row whose queries and products write attributes before they are embedded."""
OWN_PARTS = ", own parts"
"""End of the name of a row whose queries are the parts of the products themselves."""
SIGNS = ("+", "-", "0")
INTERVAL = (
    f"{LEVEL:.0%} t-intervals over seeds: mean ± t(n−1) · s / √n. Differences are between two cells with the same seed, hence "
    "the same queries (and starting weights, where both have the same parts), averaged over seeds. The test queries are the same "
    "in all cells, so the intervals express the variation of the training, not of the queries"
)
_RULE = {True: "keeps the changes of the cells before it", False: "changes one part of the first one"}
_ABSENT = "–"
SIGN_MARKS = {"+": "+", "-": "−", "0": "0", None: _ABSENT}
_SIGN_WORDS = {"+": "a gain", "-": "a loss", "0": "neither gain nor loss"}
WORSE, UNCLEAR, BETTER = "worse", "unclear", "better"

Interval = tuple[float, float]
Published = Mapping[str, Mapping[str, str]]
SeedScores = Mapping[str, Mapping[str, Mapping[str, float]]]


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
        return UNCLEAR
    return BETTER if interval[0] > 0 else WORSE


def reference_cells(
    cells: Sequence[str], *, cumulative: bool = True, compared_with: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Return for each cell after the first the one that it is compared with.

    Args:
        cells: all cells of a suite, in order.
        cumulative: whether a cell is compared with the cell before it. If not, with the first one.
        compared_with: cell → the cell to compare it with in place of the first one. Default: none.
    """
    names = list(cells)
    before = names if cumulative else names[:1] * len(names)
    return dict(zip(names[1:], before, strict=False)) | dict(compared_with or {})


def ablation_rows(
    cells: Mapping[str, SeedScores],
    *,
    cumulative: bool = True,
    compared_with: Mapping[str, str] | None = None,
    means: Mapping[str, Sequence[str]] | None = None,
    metrics: Sequence[str] = METRICS,
) -> list[dict[str, Any]]:
    """Return a row for each metric, data set and direction, and for each metric the means of several rows.

    Args:
        cells: cell → seed → row ("fashion t→mm") → metric → value, in the order of the suite; a cell without seeds has
            not been run yet.
        cumulative, compared_with: as in `reference_cells`.
        means: name of a mean → its rows, see `means_of`. Default: that of all rows.
        metrics: the metrics of the rows. Default: `METRICS`.

    Returns:
        Rows with metric, row, of (the rows of a mean, otherwise None) and, for each cell, mean, interval, seeds, and
        `difference` to the cell of `reference_cells` (mean, interval, seeds, verdict), which is None for the first cell, and if
        the two cells have no seed in common. A reasoned row is compared with the same row without reasoning if the other
        cell does not reason.
    """
    names = list(dict.fromkeys(name for seeds in cells.values() for scores in seeds.values() for name in scores))
    groups = means_of(names) if means is None else means
    reference_of = reference_cells(list(cells), cumulative=cumulative, compared_with=compared_with)
    found = []
    for metric in metrics:
        for row, of in [*((name, [name]) for name in names), *groups.items()]:
            by_cell: dict[str, Any] = {}
            for cell, seeds in cells.items():
                other = reference_of.get(cell)
                before = None if other is None else _values(cells[other], of, metric, as_reference=True)
                by_cell[cell] = _cell(_values(seeds, of, metric), before)
            found.append({"metric": metric, "row": row, "of": None if of == [row] else list(of), "cells": by_cell})
    return found


def means_of(names: Sequence[str], data_sets: Sequence[str] = (), left_out: Sequence[str] = ()) -> dict[str, list[str]]:
    """Return the means of a table: name → its rows. A mean contains either reasoned rows or the others.

    Args:
        names: all rows.
        data_sets: the data sets that have a mean of their own. Default: none.
        left_out: the data sets that no cell is trained on, which have a common mean. Default: none.
    """
    groups: dict[str, list[str]] = {ALL_ROWS: list(names)}
    groups[LEFT_OUT_ROWS] = [name for name in names if _is_of(name, left_out)]
    groups |= {f"mean of {data_set}": [name for name in names if _is_of(name, [data_set])] for data_set in data_sets}
    plain = {group: [name for name in of if not name.endswith(REASONED)] for group, of in groups.items()}
    reasoned = {group + REASONED: [name for name in of if name.endswith(REASONED)] for group, of in groups.items()}
    return {group: of for group, of in (plain | reasoned).items() if of or group == ALL_ROWS}


def _is_of(row: str, data_sets: Sequence[str]) -> bool:
    return row.removesuffix(REASONED).removesuffix(OWN_PARTS).rpartition(" ")[0] in data_sets


def label_rows(
    cells: Mapping[str, SeedScores], *, cumulative: bool = True, compared_with: Mapping[str, str] | None = None
) -> list[dict[str, Any]]:
    """Return rows as `ablation_rows` for categories and attributes, without means: their numbers of labels differ."""
    return ablation_rows(
        cells, cumulative=cumulative, compared_with=compared_with, means={}, metrics=tuple(LABEL_METRICS)
    )


def _values(seeds: SeedScores, rows: Sequence[str], metric: str, *, as_reference: bool = False) -> dict[str, float]:
    """Return the mean of the metric over rows by seed, only for seeds with all of them.

    As the reference of another cell, a row without reasoning stands for the reasoned one that is missing.
    """
    found: dict[str, float] = {}
    for seed, scores in seeds.items():
        own = [scores.get(row) or (scores.get(row.removesuffix(REASONED)) if as_reference else None) for row in rows]
        values = [one[metric] for one in own if one is not None and metric in one]
        if values and len(values) == len(rows):
            found[seed] = float(np.mean(values))
    return found


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
    compared_with: Mapping[str, str] | None = None,
    published: Published | None = None,
) -> list[str]:
    """Return for each cell a sentence on whether its change helps, based on the intervals only.

    If the interval of a cell's mean of all rows is not above chance, the table does not show that the cell learned anything.
    The sentence on the next cell then says that its change cannot be judged.

    Args:
        rows: from `ablation_rows`.
        chance: row → metric → score of a random order; None: no comparison with chance.
        metric: the metric to describe, one of `METRICS`.
        cumulative, compared_with: as in `reference_cells`.
        published: cell → sign and source, what the papers report. Default: nothing.
    """
    chosen = [row for row in rows if row["metric"] == metric]
    if not chosen:
        return []
    whole = next(row for row in chosen if row["row"] == ALL_ROWS)["cells"]
    names = next(row for row in chosen if row["row"] == ALL_ROWS).get("of") or [
        row["row"] for row in chosen if row["row"] != ALL_ROWS
    ]
    by_chance = float(np.mean([chance[name][metric] for name in names])) if chance and names else None
    reference_of = reference_cells(list(whole), cumulative=cumulative, compared_with=compared_with)
    compared = {found["cell"]: found for found in against_papers(rows, published or {}, metric)}
    sentences = []
    for cell, before in reference_of.items():
        parts = [_sentence(chosen, cell, metric), _at_chance(whole[before], whole[cell], by_chance)]
        parts += [_other_mean(chosen, cell, name) for name in (LEFT_OUT_ROWS, ALL_ROWS + REASONED)]
        if cell in (published or {}):
            found = compared[cell]
            parts.append(f"; the papers report {_SIGN_WORDS[found['sign']]}: {found['agreement']} ({found['source']})")
        beside = f" (compared with {label(before)})" if cell in (compared_with or {}) else ""
        sentences.append(f"{label(cell)}{beside}: {''.join(parts)}.")
    return sentences


def _other_mean(chosen: Sequence[Mapping[str, Any]], cell: str, name: str) -> str:
    """Return the difference in another mean, as text; an empty string without such a mean or difference."""
    changes = [row["cells"][cell]["difference"] for row in chosen if row["row"] == name]
    return f"; {name} {_difference(changes[0], bold=False)}" if changes and changes[0] is not None else ""


def against_papers(
    rows: Sequence[Mapping[str, Any]], published: Published, metric: str = "R@10"
) -> list[dict[str, Any]]:
    """Compare the sign of each cell's difference with the sign that a paper reports.

    Our rule: the signs agree if the interval excludes 0 on the paper's side, or, for a paper that reports no change, if it
    includes 0. If it includes 0 although a paper reports a change, the seeds do not show it, which is not a contradiction.

    Args:
        rows: from `ablation_rows`.
        published: cell → sign and source.
        metric: the metric to compare.

    Returns:
        For each cell after the first: cell, sign and source (None if no paper reports the part), difference (of the mean of all
        reasoned rows if the cell reasons, otherwise of all rows), reasoned, left_out (the difference in left-out shops, or
        None) and agreement.
    """
    by_row = {row["row"]: row["cells"] for row in rows if row["metric"] == metric}
    found = []
    for cell in list(by_row.get(ALL_ROWS, ()))[1:]:
        reasoned = (by_row.get(ALL_ROWS + REASONED) or {}).get(cell, {}).get("difference")
        ending = "" if reasoned is None else REASONED
        change = by_row[ALL_ROWS + ending][cell]["difference"]
        left_out = (by_row.get(LEFT_OUT_ROWS + ending) or {}).get(cell, {}).get("difference")
        sign = published[cell]["sign"] if cell in published else None
        found.append(
            {
                "cell": cell,
                "sign": sign,
                "source": published[cell]["source"] if cell in published else None,
                "difference": change,
                "reasoned": bool(ending),
                "left_out": left_out,
                "agreement": _agreement(sign, change),
            }
        )
    return found


def _agreement(sign: str | None, change: Mapping[str, Any] | None) -> str:
    if sign is None:
        return "not reported"
    if change is None or change["interval"] is None:
        return "no verdict yet"
    ours = {BETTER: "+", WORSE: "-", UNCLEAR: "0"}[change["verdict"]]
    if ours == sign:
        return "agrees"
    return "these seeds do not show it" if ours == "0" else "disagrees"


def _sentence(chosen: Sequence[Mapping[str, Any]], cell: str, metric: str) -> str:
    change = next(row for row in chosen if row["row"] == ALL_ROWS)["cells"][cell]["difference"]
    if change is None:
        return "no verdict yet, because this cell and the one that it is compared with have no finished seed in common"
    if change["interval"] is None:
        return f"{_points(change['mean'])} points with one seed, which has no interval: no verdict yet"
    low, high = change["interval"]
    amount = f"{metric} {_points(change['mean'])} points ({_points(low)} to {_points(high)}, {change['seeds']} seeds)"
    effect = {
        BETTER: "helps",
        WORSE: "hurts",
        UNCLEAR: "these seeds do not show an effect: the interval includes 0",
    }[change["verdict"]]
    return f"{amount} in the {ALL_ROWS}: {effect}{_by_row(chosen, cell)}"


def _at_chance(before: Mapping[str, Any], after: Mapping[str, Any], by_chance: float | None) -> str:
    """Return a remark if the interval of one of the compared cells includes chance, otherwise an empty string."""
    if by_chance is None or before["interval"] is None or after["interval"] is None:
        return ""
    if before["interval"][0] <= by_chance:
        return (
            f"; but the interval of the cell that it is compared with includes chance ({100 * by_chance:.1f} %), so this does "
            "not show the effect on a trained model"
        )
    if after["interval"][0] <= by_chance:
        return f"; the interval of this cell includes chance ({100 * by_chance:.1f} %)"
    return ""


def _by_row(chosen: Sequence[Mapping[str, Any]], cell: str) -> str:
    """Return the single rows whose intervals exclude 0, as text."""
    rows = {row["row"]: row["cells"][cell]["difference"] for row in chosen if not is_mean(row)}
    rows = {name: change for name, change in rows.items() if change is not None}
    parts = []
    for kind in (BETTER, WORSE):
        names = [name for name, change in rows.items() if change["verdict"] == kind]
        parts.append(f"{kind} in {', '.join(names) if names else 'none'}")
    return f"; of {len(rows)} single rows {', '.join(parts)}"


def is_mean(row: Mapping[str, Any]) -> bool:
    """Return whether a row of `ablation_rows` is a mean of others."""
    return row["row"] == ALL_ROWS or bool(row.get("of"))


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


def _difference(change: Mapping[str, Any] | None, *, bold: bool = True) -> str:
    if change is None:
        return _ABSENT
    if change["interval"] is None:
        return _points(change["mean"])
    low, high = change["interval"]
    text = f"{_points(change['mean'])} ({_points(low)} to {_points(high)})"
    return f"**{text}**" if bold and change["verdict"] != UNCLEAR else text


def markdown(results: Mapping[str, Any]) -> str:
    """Return the results of an ablation as Markdown: the runs, and for each metric a table of values and one of differences.

    Args:
        results: as `moon3 ablate` writes them.
    """
    parts = [f"# Ablation: {results['suite']}", _head(results)]
    if results["words"]:
        parts.append("Effect of each cell, R@10:\n\n" + "\n".join(f"- {sentence}" for sentence in results["words"]))
    if results.get("published"):
        parts.append(_papers_section(results))
    for metric in METRICS:
        parts += _tables_of(results, "table", metric, metric)
    for metric, words in LABEL_METRICS.items():
        parts += _tables_of(results, "labels", metric, f"Categories and attributes, {words}")
    if results.get("facts"):
        parts.append(_facts_table(results["facts"]))
    return "\n\n".join(parts) + "\n"


def cells_table(results: Mapping[str, Any], rows: Sequence[str], metric: str = "R@10") -> str:
    """Return a Markdown table of the finished cells of a suite: one line for each cell, one column for each row of its table.

    Args:
        results: as `moon3 ablate` writes them.
        rows: the rows to show, such as "fashion t→mm".
        metric (`str`): default "R@10".
    """
    chosen = {row["row"]: row["cells"] for row in results["table"] if row["metric"] == metric}
    finished = [cell for cell in results["cells"] if chosen[rows[0]][cell]["seeds"]]
    lines = [[label(cell), *(_percent(chosen[row][cell]) for row in rows)] for cell in finished]
    if all(row in results["chance"] for row in rows):
        lines.append(["chance", *(f"{100 * results['chance'][row][metric]:.1f}" for row in rows)])
    return _table(lines, [f"{metric}, %", *rows])


def _tables_of(results: Mapping[str, Any], part: str, metric: str, title: str) -> list[str]:
    """Return the table of values and the table of differences for one metric; [] without rows."""
    chosen = [row for row in results.get(part, ()) if row["metric"] == metric]
    chosen = [row for row in chosen if any(cell["seeds"] for cell in row["cells"].values())]
    if not chosen:
        return []
    heads = ["", *(label(cell) for cell in chosen[0]["cells"])]
    others = {"chance": results["chance"], **results.get("references", {})} if part == "table" else {}
    values = [
        [
            row["row"],
            *map(_percent, row["cells"].values()),
            *(_share(own.get(row["row"]), metric) for own in others.values()),
        ]
        for row in chosen
    ]
    changes = [[row["row"], *(_difference(cell["difference"]) for cell in row["cells"].values())] for row in chosen]
    without_first = [[line[0], *line[2:]] for line in changes]
    reference = "the cell before" if results.get("cumulative", True) else heads[1]
    compared_with = results.get("compared_with", {})
    reference += "".join(f", {label(cell)} to {label(other)}" for cell, other in compared_with.items())
    paired = f"### {title}: paired difference to {reference}, points; bold if the interval excludes 0"
    return [
        f"## {title}, %\n\n{_table(values, [*heads, *others])}",
        f"{paired}\n\n{_table(without_first, [heads[0], *('+ ' + head for head in heads[2:])])}",
    ]


def _share(scores: Mapping[str, float] | None, metric: str) -> str:
    return _ABSENT if scores is None or metric not in scores else f"{100 * scores[metric]:.1f}"


def papers_table(results: Mapping[str, Any], *, sources: bool = True) -> str:
    """Return a Markdown table with a line for each cell: the sign that a paper reports, our differences, whether they agree.

    Args:
        results: as `moon3 ablate` writes them.
        sources: whether a column names the papers. Default True.
    """
    lines = [
        [
            label(found["cell"]) + REASONED * found["reasoned"] + _beside(results, found["cell"]),
            SIGN_MARKS[found["sign"]],
            _difference(found["difference"]),
            _difference(found["left_out"]),
            found["agreement"],
            *([found["source"] or _ABSENT] if sources else []),
        ]
        for found in results["against_papers"]
    ]
    heads = ["", "papers", f"R@10, {ALL_ROWS}", f"R@10, {LEFT_OUT_ROWS}", "agreement", *(["source"] if sources else [])]
    align = ("left", "center", "right", "right", *["left"] * (1 + sources))
    return tabulate(lines, headers=heads, tablefmt="github", disable_numparse=True, colalign=align)


def _papers_section(results: Mapping[str, Any]) -> str:
    return (
        "## Against the papers\n\nDifferences in points with intervals; bold if the interval excludes 0. The papers train large "
        f"models for long: a sign that these seeds do not show is not a contradiction.\n\n{papers_table(results)}"
    )


def _beside(results: Mapping[str, Any], cell: str) -> str:
    """Return the cell that a cell is compared with in place of the first one, as text; otherwise an empty string."""
    other = results.get("compared_with", {}).get(cell)
    return f" (against {label(other)})" if other else ""


def _facts_table(facts: Mapping[str, Mapping[str, Any]]) -> str:
    """Return a line for each cell: its seeds, the minutes of their trainings, and the commits that trained it."""
    lines = [
        [
            label(cell),
            ", ".join(own["seeds"]) or _ABSENT,
            ", ".join(f"{minutes:.1f}" for minutes in own["minutes"]) or _ABSENT,
            ", ".join(commit[:12] for commit in own["commits"]) or _ABSENT,
        ]
        for cell, own in facts.items()
    ]
    heads = ["", "seeds", "minutes of each, evaluation included", "commits"]
    return f"## Runs\n\n{_table(lines, heads)}"


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
    for cells, by_name in results["boxes"].items():
        lines += [
            f"Core boxes of {name} in {cells}, by {facts['by']}: {facts['products_with_box']} of {facts['products']} "
            f"pictured products and {facts['queries_with_box']} of {facts['photos']} query photos have one; a crop needs one."
            for name, facts in by_name.items()
        ]
    lines.append(
        "Changed keys: "
        + "; ".join(f"{label(cell)}: {keys or 'none'}" for cell, keys in results["cells"].items())
        + "."
    )
    commits = ", ".join(results["provenance"]["commits"]) or "none yet"
    lines.append(f"Trained at commit {commits}; the JSON file lists versions, seeds and steps of each cell.")
    return "\n".join(f"- {line}" for line in lines)
