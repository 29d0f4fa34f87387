"""Write results files as one HTML page: `results_page.html.jinja` holds the markup, this file the contents.

moon3 report results.json [more.json] --output report.html [--model DIR --data SOURCE]
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from markupsafe import Markup

from evaluation.against_reference import against_reference, significance_rows, significance_sentences
from evaluation.charts import drawing, inline_svg
from evaluation.compare import compare_tables, notes_of
from evaluation.metrics import CUTOFFS
from evaluation.pages import inline_picture, render
from evaluation.per_query import unpack
from evaluation.query_sheets import OF_QUERIES, Sheet, worst_queries
from evaluation.reasonings import reasoning_note
from evaluation.report import (
    ARROWS,
    equal_lines,
    named_results,
    result_tables,
    shown_cutoff,
    side_by_side,
    warning_lines,
)
from processing_moon import ProductError, open_image

_TEMPLATE = Path(__file__).with_suffix(".html.jinja")
_ABSENT = "–"
_WIDE, _HIGH = 400, 210
_PICTURE_SIDE = 150
# Colours of drawings → the template's, which differ on a dark page.
_BARS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#8a6d00", "#56508c", "#a3a9b3", "#7fb800", "#00a6d6", "#b22222")
_SCALES = ((25, 5), (50, 10), (100, 25))  # the largest value of a chart, and the distance of its lines
_FAINT, _LINE, _INK = "#6b7280", "#dfe3ea", "#20242c"
_COLOURS = {colour: f"var(--c{number})" for number, colour in enumerate(_BARS)}
_COLOURS |= {_FAINT: "var(--faint)", "#787e8a": "var(--faint)", _LINE: "var(--line)", "#e2e5eb": "var(--line)"}
_COLOURS |= {_INK: "var(--ink)"}
_LEFT_COLUMNS = {"model", "benchmark", "direction", "task", "input", "attribute", "written from", "metric", "ahead"}
_KINDS = {
    "worst": "Worst queries",
    "misses": "Other misses, drawn at random",
    "hits": "Hits at rank 1, drawn at random",
}


@dataclass(frozen=True)
class Table:
    """A table of the page.

    Args:
        columns: headings.
        rows: cells, one list per row.
        left: for each column, whether it holds words.
        strong: for each row, whether it is emphasised. Default: none is.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    left: Sequence[bool]
    strong: Sequence[bool] = ()


@dataclass(frozen=True)
class Figure:
    """A bar chart.

    Args:
        title: the measure and the benchmark.
        svg: the drawing.
        models: number of the colour and name of each model that has bars.
        left_out: number of models without bars, because there are more than colours.
    """

    title: str
    svg: Markup
    models: Sequence[tuple[int, str]]
    left_out: int = 0


@dataclass(frozen=True)
class Scores:
    """Everything that one results file holds.

    Args:
        title: the model and the benchmark.
        tables: its scores.
        worst: its worst queries, by id.
        notes: sentences.
    """

    title: str
    tables: Sequence[Table]
    worst: Table | None
    notes: Sequence[str]


@dataclass(frozen=True)
class Comparison:
    """Models compared query by query.

    Args:
        title: the benchmark, or the model that all others are compared with.
        tables: one for each model that is compared with the first.
        notes: sentences.
    """

    title: str
    tables: Sequence[Table]
    notes: Sequence[str]


def page(
    names: Sequence[str],
    results: Sequence[Mapping[str, Any]],
    sheets: Sequence[Sheet] = (),
    significance: Mapping[str, Any] | None = None,
) -> str:
    """Return results as one HTML document that fetches nothing.

    Args:
        names: names of the models, one per result.
        results: contents of results files.
        sheets: queries with the products that the first result's model found, see `evaluation.query_sheets.make_sheets`.
        significance: from `evaluation.against_reference`. Default: the other models against the first.
    """
    named = [dict(result) | {"model": name} for name, result in zip(names, results, strict=True)]
    full = [_full_name(result) for result in named]
    benchmarks = list(dict.fromkeys(result["benchmark"] for result in named))
    if significance is None and len(named) > 1:
        significance = against_reference(named, names=names)
    return render(
        _TEMPLATE,
        title=f"Results on {', '.join(benchmarks)}",
        models=list(dict.fromkeys(full)),
        benchmarks=benchmarks,
        warnings=warning_lines(named),
        figures=list(_figures(full, named, benchmarks)),
        columns=_side_by_side(names, named),
        differences=_differences(significance, named),
        comparisons=list(_comparisons(significance)),
        scores=[_scores(name, result) for name, result in zip(full, named, strict=True)],
        sheets=sheets,
        sheet_model=full[0],
        other_ranks=sum(one.rank != one.rank_now for sheet in sheets for one in sheet.queries),
        origins=[(name, _origin(result)) for name, result in zip(full, named, strict=True)],
        # What the template calls:
        arrow=lambda direction: ARROWS.get(direction, direction),
        kind=_KINDS.__getitem__,
        picture=_picture,
    )


def write_page(
    paths: Sequence[str | Path], output: Path, sheets: Sequence[Sheet] = (), reference: str | None = None
) -> Path:
    """Write the page of results files.

    Args:
        paths: results files.
        output: the page; its folder is made.
        sheets: see `page`.
        reference: the name of the model that the others are compared with. Default: the first file's.

    Raises:
        OptionError: a file that cannot be read or holds no scores, or a reference that is no model of the files.
    """
    names, results = named_results(paths)
    significance = against_reference(results, names=names, reference=reference) if len(results) > 1 else None
    text = page(names, results, sheets, significance)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(text, encoding="utf-8")
    return output


def _full_name(result: Mapping[str, Any]) -> str:
    return str(result["model"]) + reasoning_note(result.get("reasoning"))


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]], drop: Sequence[str] = ()) -> Table:
    kept = [place for place, column in enumerate(columns) if column not in drop]
    shown = [columns[place] for place in kept]
    return Table(shown, [[row[place] for place in kept] for row in rows], [one in _LEFT_COLUMNS for one in shown])


def _common_cutoff(results: Sequence[Mapping[str, Any]]) -> int | None:
    cutoffs = [result.get("cutoffs", CUTOFFS) for result in results]
    common = [k for k in cutoffs[0] if all(k in own for own in cutoffs)]
    return shown_cutoff(common) if common else None


def _side_by_side(names: Sequence[str], results: Sequence[dict[str, Any]]) -> Table | None:
    """Return R@k of all models in columns, for the k in the charts; None for one model, or without a common k."""
    cutoff = _common_cutoff(results)
    if len(results) < 2 or cutoff is None:
        return None
    columns, rows = side_by_side(results, names=names, metric=f"R@{cutoff}")
    rows = [row for row in rows if set(row[2:]) != {_ABSENT}]  # a direction without a score of any model
    drop = ("benchmark",) if len({row[0] for row in rows}) == 1 else ()
    table = _table(columns, rows, drop)
    return replace(table, left=[place < 2 - len(drop) for place in range(len(table.columns))])


def _scores(name: str, result: dict[str, Any]) -> Scores:
    tables = [_table(columns, rows, drop=("model", "benchmark")) for columns, rows in result_tables([result])]
    absent = [f"No score for {ARROWS.get(what, what)}: {why}." for what, why in result.get("absent", {}).items()]
    return Scores(f"{name} on {result['benchmark']}", tables, _worst(result), [*equal_lines([result]), *absent])


# ---------------------------------------------------------------------------------------------------------------------
# Charts


def _figures(names: Sequence[str], results: Sequence[Mapping[str, Any]], benchmarks: Sequence[str]) -> Iterator[Figure]:
    for benchmark in benchmarks:
        own = [(name, result) for name, result in zip(names, results, strict=True) if result["benchmark"] == benchmark]
        left_out, own = len(own[len(_BARS) :]), own[: len(_BARS)]
        common = [
            k for k in own[0][1].get("cutoffs", CUTOFFS) if all(k in one.get("cutoffs", CUTOFFS) for _, one in own)
        ]
        for k in dict.fromkeys((common[0], shown_cutoff(common))) if common else ():
            scores = [result["scores"] | result.get("image_only", {}) for _, result in own]
            directions = list(dict.fromkeys(name for found in scores for name, one in found.items() if one is not None))
            if directions:
                number = f"chart{benchmarks.index(benchmark)}-{k}"
                svg = _bars(directions, scores, k, number)
                drawn = [(place, name) for place, (name, _) in enumerate(own) if any(scores[place].values())]
                yield Figure(f"R@{k} on {benchmark}, %", svg, drawn, left_out)


def _bars(directions: Sequence[str], scores: Sequence[Mapping[str, Any]], k: int, name: str) -> Markup:
    """Draw bars of R@k for each direction, one per model, with 95 % whiskers and chance as a line across them."""
    with drawing(_WIDE, _HIGH) as (figure, axes):
        width = 0.8 / len(scores)
        for model, found in enumerate(scores):
            for place, direction in enumerate(directions):
                one = found.get(direction)
                if one is None:
                    continue
                left = place - 0.4 + model * width
                axes.bar(left, 100 * one[f"R@{k}"], width=0.94 * width, align="edge", color=_BARS[model])
                low, high = one[f"R@{k}_interval"]
                middle = left + 0.47 * width
                axes.vlines(middle, 100 * low, 100 * high, color=_INK, linewidth=1.2)
        for place, direction in enumerate(directions):
            chances = [found[direction].get(f"R@{k}_chance") for found in scores if found.get(direction)]
            if chances and chances[0] is not None:
                axes.hlines(
                    100 * chances[0],
                    place - 0.44,
                    place + 0.44,
                    color=_INK,
                    linewidth=1.4,
                    linestyles="dotted",
                    zorder=3,
                )
        highest = max(100 * one[f"R@{k}_interval"][1] for found in scores for one in found.values() if one is not None)
        top, step = next(scale for scale in _SCALES if highest <= scale[0] or scale is _SCALES[-1])
        axes.set(xlim=(-0.6, len(directions) - 0.4), ylim=(0, 1.04 * top), yticks=range(0, top + 1, step))
        axes.set_xticks(range(len(directions)), [ARROWS.get(one, one) for one in directions])
        return Markup(inline_svg(figure, name, _COLOURS))


# ---------------------------------------------------------------------------------------------------------------------
# Query by query


def _differences(found: Mapping[str, Any] | None, results: Sequence[dict[str, Any]]) -> Comparison | None:
    """Return the differences of all models to the reference in one table, for the k in the charts."""
    cutoff = _common_cutoff(results)
    if found is None or cutoff is None:
        return None
    columns, rows = significance_rows(found, f"R@{cutoff}")
    if len(columns) < 4 or not rows:  # one other model: its own table has these differences
        return None
    drop = ("benchmark",) if len({row[0] for row in rows}) == 1 else ()
    table = _table(columns, rows, drop)
    table = replace(table, left=[place < 2 - len(drop) for place in range(len(table.columns))])
    return Comparison(found["reference"], [table], significance_sentences(found, f"R@{cutoff}"))


def _comparisons(significance: Mapping[str, Any] | None) -> Iterator[Comparison]:
    for found in significance["benchmarks"] if significance else ():
        tables = [
            replace(_table(columns, rows), strong=[row["ahead_after_holm"] is not None for row in one["rows"]])
            for (columns, rows), one in zip(compare_tables(found), found["comparisons"], strict=True)
        ]
        left_out = [f"Not compared query by query: {why}." for why in found["not_compared"]]
        if tables:
            title = f"{found['benchmark']}, compared with {found['baseline']}"
            yield Comparison(title, tables, [*notes_of(found), *left_out])
        elif left_out:
            yield Comparison(found["benchmark"], [], left_out)


def _worst(result: Mapping[str, Any]) -> Table | None:
    """Return the queries with the largest ranks, by id; nothing without ranks of single queries."""
    if "per_query" not in result:
        return None
    rows = []
    for direction, values in unpack(result["per_query"], ()).items():
        found = ", ".join(f"{name} ({rank})" for name, rank in worst_queries(values)) or "all at rank 1"
        asked = "queries" if values.asked in OF_QUERIES else "products"
        sizes = f"{len(values.digests)} {asked}", str(values.products)
        rows.append([ARROWS.get(direction, direction), found, *sizes])
    columns = ["direction", "worst queries, with the rank of the best right answer", "of", "gallery"]
    return Table(columns, rows, (True, True, False, False))


def _picture(source: Any) -> str | None:
    """Return the `src` of a small picture, or None if it cannot be opened."""
    try:
        return None if source is None else inline_picture(open_image(source), _PICTURE_SIDE)
    except ProductError:
        return None


def _origin(result: Mapping[str, Any]) -> dict[str, str]:
    """Return the origin of a result as pairs of name and value."""
    facts = dict(result.get("provenance", {}))
    command, versions = facts.pop("command", []), facts.pop("versions", {})
    issues = facts.pop("issues", {})
    found = {"benchmark": str(result["benchmark"])}
    found |= {name.replace("_", " "): _ABSENT if value is None else str(value) for name, value in facts.items()}
    found |= {"variants of an answer": str((result.get("equal_products") or {}).get("variants", _ABSENT))}
    if issues:
        found["issues of the data"] = ", ".join(f"{name.replace('_', ' ')}: {count}" for name, count in issues.items())
    if command:
        found["command"] = " ".join(map(str, command))
    return found | {"versions": ", ".join(f"{name} {version}" for name, version in versions.items()) or _ABSENT}
