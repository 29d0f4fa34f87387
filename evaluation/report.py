"""Write results as tables.

moon3 report results/shared_*.json [--compare R@10]
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate

from evaluation.metrics import CUTOFFS
from evaluation.reasonings import MARKS, reasoning_note
from product_data.errors import OptionError

_ABSENT = "–"
_RELAXED_AT = 11  # first column of the relaxed rule in a row of labels
_FOLDERS_OF_RUNS = ("final", "run")  # folders that every training run has
ARROWS = {
    "t2mm": "t→mm",
    "i2mm": "i→mm",
    "mm2mm": "mm→mm",
    "t2i": "t→i",
    "i2t": "i→t",
    "i2i": "i→i",
    "mm2i": "mm→i",
    "t2t": "t→t",
    "mm2t": "mm→t",
}


def _percent(value: float | None, interval: Sequence[float] | None = None) -> str:
    if value is None:
        return _ABSENT
    around = f" ({100 * interval[0]:.1f}–{100 * interval[1]:.1f})" if interval else ""
    return f"{100 * value:.1f}{around}"


def results_table(results: Sequence[dict[str, Any]], *, style: str = "github") -> str:
    """Return all scores as tables: retrieval, image-only retrieval, classification, attributes and reasoning.

    The name of a model that reasons has a note: "moon3 (reasoning ≤ 32)", "moon3 (queries reason ≤ 32)".

    Args:
        results: results as `moon3 evaluate` writes them.
        style (`str`): a tabulate format. Default "github", which is Markdown.

    Returns: percentages. R@10 (or the largest k), top-1, precision, recall and F1 have their 95 % interval in brackets.
        Chance is given for R@10 and top-1, and for top-1 also the score of always predicting the most common label. "in
        10" columns show the relaxed scores, see `evaluation.metrics.relaxed_scores`. Notes below the tables list products
        that are identical to an answer (counted as correct or left out) and any warnings.
    """
    parts = [_table(rows, columns, style) for columns, rows in result_tables(results)]
    return "\n\n".join([*(parts or ["no scores"]), *equal_lines(results), *warning_lines(results)])


def result_tables(results: Sequence[dict[str, Any]]) -> list[tuple[list[str], list[list[str]]]]:
    """Return the columns and rows of each table of `results_table`."""
    cutoffs, graded = _cutoffs(results), _is_graded(results)
    last = shown_cutoff(cutoffs)
    retrieval = [row for result in results for row in _retrieval_rows(result, cutoffs, graded)]
    labels = [row for result in results for row in _label_rows(result)]
    head = ["model", "benchmark"]
    parts: list[tuple[list[str], list[list[str]]]] = []
    if retrieval:
        columns = [*head, "direction", *(f"R@{k}" for k in cutoffs), f"chance R@{last}"]
        columns += [*([f"nDCG@{last}"] if graded else []), "queries", "gallery"]
        parts.append((columns, retrieval))
    if labels:
        columns = [*head, "task", "input", "top-1", "chance", "most common", "top-10", "precision", "recall", "F1"]
        columns += [f"{name}, in 10" for name in ("precision", "recall", "F1")] if _is_relaxed(labels) else []
        columns += ["labels", "items"]
        rows = labels if _is_relaxed(labels) else [row[:_RELAXED_AT] + row[_RELAXED_AT + 3 :] for row in labels]
        parts.append((columns, rows))
    if agreeing := [row for result in results for row in _agreement_rows(result, cutoffs)]:
        columns = [*head, "direction", "attribute"]
        columns += [f"{metric}@{k}" for metric in ("recall", "agreement") for k in cutoffs]
        parts.append(([*columns, f"chance recall@{last}", "queries"], agreeing))
    if written := [row for result in results for row in _written_rows(result)]:
        columns = [*head, "written from", "reasoning texts", *(name.replace("_", " ") for name in MARKS)]
        parts.append((columns, written))
    return parts


def equal_lines(results: Sequence[dict[str, Any]]) -> list[str]:
    """Return for each benchmark a line about the products that are equal to an answer."""
    lines = []
    for result in results:
        counts: Counter[str] = Counter()
        for scores in result.get("scores", {}).values():
            counts.update((scores or {}).get("equal", {}))
        sentences = [
            sentence.format(counts[name])
            for name, sentence in (
                ("identical_right", "identical products count as right in {} searches"),
                ("variants_left_out", "variants of the answer are left out of {} searches"),
                ("variants_right", "variants of the answer count as right in {} searches"),
            )
            if counts[name]
        ]
        if sentences:
            lines.append(f"{result['benchmark']}: {'; '.join(sentences)}.")
    return list(dict.fromkeys(lines))


def warning_lines(results: Sequence[dict[str, Any]]) -> list[str]:
    """Return the warnings of results, each once, with model and benchmark."""
    lines = [
        f"WARNING: {_name(result)} on {result['benchmark']}: {warning}"
        for result in results
        for warning in result.get("warnings", [])
    ]
    return list(dict.fromkeys(lines))


def _table(rows: Sequence[Sequence[Any]], columns: Sequence[str], style: str) -> str:
    align = ["left"] * (4 if "attribute" in columns else 3) + ["right"] * len(columns)
    align = align[: len(columns)]
    return tabulate(rows, headers=columns, tablefmt=style, disable_numparse=True, colalign=align)


def short_name(model: str) -> str:
    """Return a model's name for tables: that of its folder, or that of the run for `final` or `run/final`.

    The name of a peer, "clip=PLACE", is followed by its kind.
    """
    kind, equals, place = model.partition("=")
    if equals and place and kind.isidentifier():
        return f"{short_name(place)} ({kind})"
    parts = [part for part in Path(model).parts if part not in ("/", ".", "..")]
    while len(parts) > 1 and parts[-1] in _FOLDERS_OF_RUNS:
        parts.pop()
    return parts[-1] if parts else model


def _name(result: dict[str, Any]) -> str:
    return short_name(result["model"]) + reasoning_note(result.get("reasoning"))


def _written_rows(result: dict[str, Any]) -> list[list[str]]:
    sides = (result.get("reasoning") or {}).get("written", {})
    return [
        [_name(result), result["benchmark"], side if name == side else f"{side}, {name}"]
        + [str(counts[column]) for column in ("written", *MARKS)]
        for side, written in sides.items()
        for name, counts in written["inputs"].items()
    ]


def _cutoffs(results: Sequence[dict[str, Any]]) -> list[int]:
    """Return all k of R@k in results."""
    return sorted({k for result in results for k in result.get("cutoffs", CUTOFFS)}) or list(CUTOFFS)


def shown_cutoff(cutoffs: Sequence[int]) -> int:
    """Return the k whose interval and chance are shown: 10, or else the largest."""
    return 10 if 10 in cutoffs else max(cutoffs)


def _is_graded(results: Sequence[dict[str, Any]]) -> bool:
    return any((scores or {}).get("graded") for result in results for scores in result.get("scores", {}).values())


def _is_relaxed(rows: Sequence[Sequence[str]]) -> bool:
    return any(row[_RELAXED_AT] != _ABSENT for row in rows)


def _agreement_rows(result: dict[str, Any], cutoffs: Sequence[int]) -> list[list[str]]:
    """Return the rows of attribute-level recall: the mean over keys, then each key."""
    rows = []
    last = shown_cutoff(cutoffs)
    for name, recall in result.get("attribute_recall", {}).items():
        by_key = {f"mean of {recall['mean']['keys']} keys": recall["mean"]} | recall["keys"]
        for key, scores in by_key.items():
            cells = [_percent(scores.get(f"{metric}@{k}")) for metric in ("recall", "agreement") for k in cutoffs]
            cells += [_percent(scores.get(f"recall@{last}_chance")), str(scores.get("queries", _ABSENT))]
            rows.append([_name(result), result["benchmark"], ARROWS.get(name, name), key, *cells])
    return rows


def _groups(result: dict[str, Any]) -> list[tuple[str, Any, str]]:
    """Return (direction, scores, note) of all searches, each direction once."""
    own, image = result.get("scores", {}), result.get("image_only", {})
    groups = [(name, scores, "") for name, scores in own.items()]
    groups += [(name, scores, ", image only") for name, scores in image.items() if name not in own]
    for query_form, cells in result.get("matrix", {}).items():
        if query_form != "absent":
            names = {form: f"{query_form}2{form}" for form in cells}
            groups += [(names[form], cells[form], "") for form in cells if names[form] not in {*own, *image}]
    groups += [
        (name, scores, f", first {width} numbers")
        for width, narrow in result.get("dimensions", {}).items()
        for name, scores in narrow["scores"].items()
    ]
    return groups


def _retrieval_rows(result: dict[str, Any], cutoffs: Sequence[int], graded: bool) -> list[list[str]]:
    rows = []
    last = shown_cutoff(cutoffs)
    groups = _groups(result)
    for name, scores, note in groups:
        label = ARROWS.get(name, name) + note
        if scores is None:
            cells = [_ABSENT] * (len(cutoffs) + 3 + graded)
        else:
            label += ", own parts" if scores.get("source") == "products" else ""
            label += f", {_percent(scores['reasoned'])} % reasoned" if "reasoned" in scores else ""
            cells = [
                _percent(scores.get(f"R@{k}"), scores.get(f"R@{k}_interval") if k == last else None) for k in cutoffs
            ]
            cells += [_percent(scores.get(f"R@{last}_chance"))]
            cells += [_percent(scores.get(f"nDCG@{last}"))] if graded else []
            cells += [str(scores.get("queries", _ABSENT)), str(scores.get("gallery", _ABSENT))]
        rows.append([_name(result), result["benchmark"], label, *cells])
    return rows


def _mean_of(attributes: dict[str, Any]) -> dict[str, Any]:
    """Return the mean over attribute keys, with that of the relaxed rule."""
    return attributes["mean"] | {"relaxed": attributes.get("relaxed")}


def _label_rows(result: dict[str, Any]) -> list[list[str]]:
    found = []
    for form, levels in result.get("classification", {}).items():
        last = [name for name in levels if name != "deepest"][-1]
        for name, scores in levels.items():
            if (
                name != "deepest" or scores != levels[last]
            ):  # "deepest" repeats the last level if all paths have one length
                found.append((f"category, {name.replace('_', ' ')}", form, scores))
    for form, attributes in result.get("attributes", {}).items():
        found.append((f"attributes, mean of {attributes['mean']['keys']} keys", form, _mean_of(attributes)))
    for form, attributes in result.get("shown_attributes", {}).items():
        part = "picture" if form == "i" else "text"
        found.append(
            (f"attributes of the {part}, mean of {attributes['mean']['keys']} keys", form, _mean_of(attributes))
        )
    for kind, scores in result.get("query_categories", {}).items():
        found.append(("category of queries", kind, scores))
    with_interval = ("precision", "recall", "f1")
    return [
        [_name(result), result["benchmark"], task, form]
        + [_percent(scores["top1"], scores.get("top1_interval"))]
        + [_percent(scores.get(metric)) for metric in ("top1_chance", "majority", "top10")]
        + [_percent(scores[metric], scores.get(f"{metric}_interval")) for metric in with_interval]
        + [_percent((scores.get("relaxed") or {}).get(metric)) for metric in with_interval]
        + [str(scores.get(name, _ABSENT)) for name in ("labels", "items")]
        for task, form, scores in found
        if scores
    ]


def _compared(result: dict[str, Any]) -> list[tuple[str, Any]]:
    """Return (direction, scores) of the rows to compare: the five directions, and the other scores of the matrix."""
    own = result["scores"]
    more = {
        f"{asked}2{form}": cell
        for asked, row in result.get("matrix", {}).items()
        if asked != "absent"
        for form, cell in row.items()
    }
    return [*own.items(), *((name, cell) for name, cell in more.items() if cell and name not in own)]


def comparison_table(
    results: Sequence[dict[str, Any]],
    *,
    names: Sequence[str] | None = None,
    metric: str = "R@10",
    style: str = "github",
) -> str:
    """Return a table with one row for each benchmark and direction, and one column for each model.

    A model with a different reasoning has its own column: each name, given or not, gets a note on the reasoning.

    Args:
        results: results as `moon3 evaluate` writes them.
        names (`Sequence[str]` or `None`): names of the columns, one per result. Default: the models' names.
        metric (`str`): "MRR", or R@k or nDCG@k with a k that all results have, such as "R@1". Default "R@10".
        style (`str`): a tabulate format. Default "github".

    Raises:
        ValueError: an unknown metric, a wrong number of names, or two results with one name on one benchmark.
    """
    columns, rows = side_by_side(results, names=names, metric=metric)
    return _table(rows, columns, style)


def side_by_side(
    results: Sequence[dict[str, Any]], *, names: Sequence[str] | None = None, metric: str = "R@10"
) -> tuple[list[str], list[list[str]]]:
    """Return the columns and rows of `comparison_table`; the arguments are the same."""
    common = [k for k in _cutoffs(results) if all(k in result.get("cutoffs", CUTOFFS) for result in results)]
    known = [f"R@{k}" for k in common] + [f"nDCG@{k}" for k in common if all("cutoffs" in result for result in results)]
    if metric not in (*known, "MRR"):
        raise OptionError(f"metric={metric!r}; expected one of {', '.join((*known, 'MRR'))}")
    names = [short_name(result["model"]) for result in results] if names is None else list(names)
    if len(names) != len(results):
        raise ValueError(f"found {len(names)} names for {len(results)} results; expected one name per result")
    names = [name + reasoning_note(result.get("reasoning")) for name, result in zip(names, results, strict=True)]
    columns = list(dict.fromkeys(names))
    cells: dict[tuple[str, str], dict[str, str]] = {}
    chance: dict[tuple[str, str], str] = {}
    for name, result in zip(names, results, strict=True):
        for direction, scores in _compared(result):
            place = (result["benchmark"], ARROWS.get(direction, direction))
            if name in cells.get(place, {}):
                raise OptionError(
                    f"two results on {result['benchmark']} have the name {name!r}; expected different names"
                )
            value = _ABSENT if scores is None else _percent(scores[metric], scores.get(f"{metric}_interval"))
            cells.setdefault(place, {})[name] = value
            if scores is not None or place not in chance:  # a model without a score does not hide the chance
                chance[place] = _ABSENT if scores is None else _percent(scores.get(f"{metric}_chance"))
    rows = [[*place, *(row.get(name, _ABSENT) for name in columns), chance[place]] for place, row in cells.items()]
    return ["benchmark", f"{metric}, %", *columns, "chance"], rows


def read_results(path: str | Path) -> list[tuple[str, dict[str, Any]]]:
    """Return the (name, result) pairs of a results file: one pair, or one each for "before" and "after".

    Raises:
        OptionError: a file that cannot be read, or that lacks "scores".
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise OptionError(f"{path}: cannot be read ({error}); expected a file that moon3 evaluate wrote") from error
    parts = [(part, content[part]) for part in ("before", "after") if part in content] or [("", content)]
    pairs = []
    for part, result in parts:
        if "scores" not in result:
            raise OptionError(f"{path}: found no 'scores'; expected a file that moon3 evaluate wrote")
        result = {"model": content.get("model", Path(path).stem), "benchmark": content.get("benchmark", "")} | result
        name = f"{short_name(result['model'])} {part}".strip()
        pairs.append((name, result | {"model": name}))
    return pairs


def _distinct_names(found: Sequence[tuple[str, str, dict[str, Any]]]) -> tuple[list[str], list[dict[str, Any]]]:
    """Return names and results of (file, name, result); a name with two results on a benchmark gets the file's name."""

    def key(name: str, result: dict[str, Any]) -> tuple[str, str]:
        return name + reasoning_note(result.get("reasoning")), result["benchmark"]

    uses = Counter(key(name, result) for _, name, result in found)
    names = []
    for file, name, result in found:
        place = " ".join(Path(file).parts[-2:])
        names.append(f"{name} [{place}]" if uses[key(name, result)] > 1 else name)
    return names, [result | {"model": name} for name, (_, _, result) in zip(names, found, strict=True)]


def named_results(paths: Sequence[str | Path]) -> tuple[list[str], list[dict[str, Any]]]:
    """Return names and results of files; a name that two results share gets the name of the file.

    Raises:
        OptionError: a file that cannot be read or holds no scores.
    """
    return _distinct_names([(str(path), *pair) for path in paths for pair in read_results(path)])


def report(paths: Sequence[str | Path], compare: str | None = None) -> str:
    """Return the contents of results files as Markdown tables.

    Args:
        paths: results files, as `moon3 evaluate` writes them.
        compare: a metric (R@1, R@5, R@10 or MRR) for one table with a column for each model. Default: tables with all
            metrics.

    Raises:
        OptionError: a file cannot be read or has no scores, or the metric is unknown.
    """
    names, results = named_results(paths)
    if compare is None:
        return results_table(results)
    return "\n\n".join([comparison_table(results, names=names, metric=compare), *warning_lines(results)])
