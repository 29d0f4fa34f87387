"""Compare results files query by query: paired differences with intervals, and p-values with Holm's correction.

moon3 compare before.json after.json [--output compare.json]
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate

from evaluation.metrics import CUTOFFS
from evaluation.paired_rows import Row, compare_rows
from evaluation.per_query import QueryValues, unpack
from evaluation.provenance import provenance
from evaluation.reasonings import reasoning_note
from evaluation.report import ARROWS, named_results, shown_cutoff
from evaluation.significance import LEVEL, holm
from product_data.errors import OptionError
from product_data.outputs import require_writable_file

_ABSENT = "–"
_EXAMPLES = 3
HOW_IT_IS_TESTED = (
    "Each difference is the mean over the queries that both models ranked, with its 95 % bootstrap interval; p is that of a "
    "paired sign-flip test, which for R@k is McNemar's exact test. p, Holm is corrected for all {rows} rows, and a model is "
    "ahead if that is below {level:g}. All of this is about queries of this kind: a new training run may differ by more."
)


class NotComparableError(OptionError):
    """Raised for results that cannot be paired; says which results, and how they differ."""


@dataclass(frozen=True)
class Measured:
    """The results of one model, ready to be paired.

    Args:
        name (`str`): what the model is called.
        result: the content of its results file.
        directions: direction → the ranks of its queries.
    """

    name: str
    result: Mapping[str, Any]
    directions: Mapping[str, QueryValues]

    @property
    def cutoffs(self) -> list[int]:
        """The k of R@k and nDCG@k that were measured."""
        return list(self.result.get("cutoffs", CUTOFFS))

    def chance(self, direction: str, metric: str) -> float | None:
        """Return the R@k of a random order."""
        asked, _, form = direction.partition("2")
        groups = (
            self.result["scores"],
            self.result.get("image_only", {}),
            self.result.get("matrix", {}).get(asked, {}),
        )
        places = zip(groups, (direction, direction, form), strict=True)
        scores: Mapping[str, Any] = next((found for own, name in places if (found := own.get(name))), {})
        value: float | None = scores.get(f"{metric}_chance")
        return value


def measured(name: str, result: Mapping[str, Any]) -> Measured:
    """Return results ready to be paired.

    Args:
        name (`str`): name of the model.
        result: the content of a results file.

    Raises:
        NotComparableError: a file without the ranks of its queries, or with damaged ones.
    """
    if "per_query" not in result:
        raise NotComparableError(
            f"{name}: found no 'per_query' in its results file, which is of an earlier version or has no retrieval; expected "
            "the rank of each query: evaluate the model again"
        )
    try:
        return Measured(name, result, unpack(result["per_query"], result.get("cutoffs", CUTOFFS)))
    except (KeyError, TypeError, ValueError) as error:
        raise NotComparableError(f"{name}: 'per_query' cannot be read ({error}); evaluate the model again") from error


def compare_files(
    paths: Sequence[str | Path],
    *,
    metrics: Sequence[str] | None = None,
    output: Path | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Compare the results in the first file with those in each of the others, and write the comparison.

    Args:
        paths: results files of `moon3 evaluate`; one with "before" and "after" counts as two results.
        metrics: such as "R@1", "MRR", "nDCG@10". Default: see `compare_results`.
        output: a .json file. Default: none is written.
        resamples, seed (`int`): of the bootstrap, and the seed of drawn sign patterns too.

    Raises:
        NotComparableError: fewer than two results, or results that cannot be paired.
        OptionError: a file that cannot be read, an unknown metric, or an `output` that is not a .json file.
        OutputError: an output that cannot be written.
    """
    if output is not None and output.suffix != ".json":
        raise OptionError(f"--output {output}; expected a .json file")
    require_writable_file("--output", output)
    names, results = named_results(paths)
    found = compare_results(names, results, metrics=metrics, resamples=resamples, seed=seed)
    found |= {"files": [str(path) for path in paths], "provenance": provenance(seed, bootstrap_resamples=resamples)}
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(found, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
    return found


def compare_results(
    names: Sequence[str],
    results: Sequence[Mapping[str, Any]],
    *,
    metrics: Sequence[str] | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Compare the first results with each of the others, query by query.

    Args:
        names: names of the models, one per result; a note on the reasoning is added to them.
        results: contents of results files of one benchmark.
        metrics: such as "R@1", "MRR", "nDCG@10". Default: MRR, and R@k and nDCG@k with k = 10, or else with the largest k that
            all results have.
        resamples, seed (`int`): of the bootstrap, and the seed of drawn sign patterns too.

    Returns: baseline (the first model), benchmark, split, metrics, level, words (sentences), and comparisons: for each other
    model its name, notes (what was not compared) and rows, as `evaluation.paired_rows.compare_rows` returns them, with p_holm
    (corrected for all rows of all comparisons, `tested`) and ahead_after_holm, the model that is ahead if p_holm is below the
    level.

    Raises:
        NotComparableError: fewer than two results, or two that cannot be paired; the message says how they differ.
        OptionError: an unknown metric.
    """
    if len(results) < 2:
        raise NotComparableError(f"found {len(results)} result; expected two or more of one benchmark")
    full = [name + reasoning_note(result.get("reasoning")) for name, result in zip(names, results, strict=True)]
    if repeated := sorted({name for name in full if full.count(name) > 1}):
        raise NotComparableError(f"several results are called {', '.join(repeated)}; expected each results file once")
    models = [measured(name, result) for name, result in zip(full, results, strict=True)]
    chosen = _metrics(models, metrics)
    baseline, *others = models
    comparisons: list[dict[str, Any]] = []
    for other in others:
        _require_same_task(baseline, other)
        notes: list[str] = []
        pairs = list(_pairs(baseline, other, notes))
        rows = [(_row(own, metric), _row(base, metric)) for base, own in pairs for metric in chosen]
        compared = compare_rows(
            [own for own, _ in rows],
            [base for _, base in rows],
            (other.name, baseline.name),
            resamples=resamples,
            seed=seed,
        )
        comparisons.append({"model": other.name, "notes": notes, "rows": compared})
    correct([(baseline.name, one) for one in comparisons])
    return {
        "baseline": baseline.name,
        "benchmark": baseline.result["benchmark"],
        "split": _split(baseline.result),
        "metrics": chosen,
        "level": LEVEL,
        "tested": sum(len(one["rows"]) for one in comparisons),
        "words": [sentence_of(one, baseline.name) for one in comparisons],
        "comparisons": comparisons,
    }


def _metrics(models: Sequence[Measured], wanted: Sequence[str] | None) -> list[str]:
    cutoffs = [k for k in models[0].cutoffs if all(k in model.cutoffs for model in models)]
    if not cutoffs:
        raise NotComparableError("the results have no cut-off k in common; expected the same --cutoffs")
    last = shown_cutoff(cutoffs)
    known = [*(f"R@{k}" for k in cutoffs), "MRR", *(f"nDCG@{k}" for k in cutoffs)]
    chosen = [f"R@{last}", "MRR", f"nDCG@{last}"] if wanted is None else list(dict.fromkeys(wanted))
    if unknown := [metric for metric in chosen if metric not in known]:
        raise OptionError(f"metrics={', '.join(unknown)!r}; expected some of {', '.join(known)}")
    return chosen


def _split(result: Mapping[str, Any]) -> str:
    return result.get("provenance", {}).get("split") or "all"


def _require_same_task(first: Measured, second: Measured) -> None:
    """Check that two results have the same data set, split and rule, and the same gallery in each common direction.

    Raises:
        NotComparableError: they differ; the message lists all differences.
    """
    facts = [
        {
            "benchmark": one.result["benchmark"],
            "split": _split(one.result),
            "variants of an answer": (one.result.get("equal_products") or {}).get("variants"),
        }
        for one in (first, second)
    ]
    differ = [
        f"{name}: {facts[0][name]!r} and {facts[1][name]!r}" for name in facts[0] if facts[0][name] != facts[1][name]
    ]
    for direction in first.directions.keys() & second.directions.keys():
        ours, other = first.directions[direction], second.directions[direction]
        arrow = ARROWS.get(direction, direction)
        if ours.products != other.products:
            differ.append(f"{arrow}: a gallery of {ours.products} and one of {other.products} products")
        elif ours.gallery != other.gallery:
            differ.append(f"{arrow}: {ours.products} products each, but not the same ones or not with the same texts")
        if ours.asked != other.asked:
            differ.append(f"{arrow}: asked by {ours.asked!r} and by {other.asked!r}")
        else:
            common = [one for one in ours.digests if one in other.digests]
            changed = [one for one in common if ours.digests[one] != other.digests[one]]
            if changed:
                named = ", ".join(map(repr, changed[:_EXAMPLES])) + (" …" if len(changed) > _EXAMPLES else "")
                differ.append(
                    f"{arrow}: another text or other answers of {len(changed)} of {len(common)} queries ({named})"
                )
            elif not common:
                differ.append(f"{arrow}: no query is in both")
    if differ:
        raise NotComparableError(
            f"{first.name} and {second.name} cannot be paired; found {'; '.join(sorted(differ))}; expected the same data"
        )


@dataclass(frozen=True)
class _Side:
    """One direction of one model, restricted to the queries that both models ranked."""

    direction: str
    values: QueryValues
    place_N: np.ndarray
    names: tuple[str, ...]
    whole: bool
    model: Measured


def _pairs(first: Measured, second: Measured, notes: list[str]) -> Iterator[tuple[_Side, _Side]]:
    """Return both sides of each common direction; add what is left out of the comparison to `notes`.

    Raises:
        NotComparableError: no common direction.
    """
    shared = [name for name in first.directions if name in second.directions]
    for model, other in ((first, second), (second, first)):
        if alone := [ARROWS.get(name, name) for name in model.directions if name not in other.directions]:
            notes.append(f"{', '.join(alone)}: only {model.name} was measured, so there is nothing to compare.")
    if not shared:
        raise NotComparableError(f"{first.name} and {second.name} have no direction in common; expected at least one")
    for name in shared:
        both = (first.directions[name], second.directions[name])
        common = tuple(one for one in both[0].digests if one in both[1].digests)
        whole = len(common) == len(both[0].digests) == len(both[1].digests)
        if not whole:
            notes.append(
                f"{ARROWS.get(name, name)}: compared on the {len(common)} queries that both ranked, of "
                f"{len(both[0].digests)} of {first.name} and {len(both[1].digests)} of {second.name}."
            )
        sides = []
        for model, values in zip((first, second), both, strict=True):
            place_of = {one: place for place, one in enumerate(values.digests)}
            place_N = np.array([place_of[one] for one in common])
            sides.append(_Side(name, values, place_N, common, whole, model))
        yield sides[0], sides[1]


def _row(side: _Side, metric: str) -> Row:
    value_N = side.values.values(metric)[side.place_N]
    chance = side.model.chance(side.direction, metric) if side.whole else None
    form = side.direction.rpartition("2")[2]
    return Row("retrieval", side.direction, form, metric, value_N, side.names, side.values.products, chance)


def correct(comparisons: Sequence[tuple[str, dict[str, Any]]]) -> None:
    """Add p_holm and ahead_after_holm to every row, corrected for the number of rows of all comparisons.

    Args:
        comparisons: each with the name of its baseline, as `compare_results` returns it, of one or several benchmarks.
    """
    rows = [(row, one["model"], baseline) for baseline, one in comparisons for row in one["rows"]]
    for (row, model, baseline), corrected in zip(rows, holm([row["difference"]["p"] for row, *_ in rows]), strict=True):
        row["p_holm"] = corrected
        leader = model if row["difference"]["difference"] > 0 else baseline
        row["ahead_after_holm"] = leader if corrected < LEVEL else None


# ---------------------------------------------------------------------------------------------------------------------
# In words and as tables


def sentence_of(comparison: Mapping[str, Any], baseline: str) -> str:
    """Return which of two models is ahead in how many rows, after Holm's correction."""
    rows = comparison["rows"]
    counts = {
        name: [_what(row) for row in rows if row["ahead_after_holm"] == name]
        for name in (comparison["model"], baseline)
    }
    said = [
        f"{name} is ahead in {len(found)}" + (f" ({', '.join(found)})" if found else "")
        for name, found in counts.items()
    ]
    left = len(rows) - sum(map(len, counts.values()))
    return f"Of {len(rows)} rows {said[0]}, {said[1]}; in {left} the difference is not beyond chance after Holm's correction."


def _what(row: Mapping[str, Any]) -> str:
    return f"{ARROWS.get(row['what'], row['what'])} {row['metric']}"


def compare_tables(found: Mapping[str, Any]) -> list[tuple[list[str], list[list[str]]]]:
    """Return the columns and rows of a table for each comparison.

    Args:
        found: as `compare_results` returns it.
    """
    tables = []
    baseline = found["baseline"]
    for comparison in found["comparisons"]:
        model = comparison["model"]
        names = [baseline, model, "difference, points", "p", "p, Holm", "ahead"]
        columns = ["direction", "metric", *names, "chance", "queries"]
        tables.append((columns, [_cells(row, baseline, model) for row in comparison["rows"]]))
    return tables


def _cells(row: Mapping[str, Any], baseline: str, model: str) -> list[str]:
    difference = row["difference"]
    low, high = difference["interval"]
    return [
        ARROWS.get(row["what"], row["what"]),
        row["metric"],
        *(_percent(row["models"][name]) for name in (baseline, model)),
        f"{_points(difference['difference'])} ({_points(low)} to {_points(high)})",
        *(_p(value) for value in (difference["p"], row["p_holm"])),
        row["ahead_after_holm"] or _ABSENT,
        _ABSENT if row["chance"] is None else f"{100 * row['chance']:.1f}",
        str(row["queries"]),
    ]


def _percent(score: Mapping[str, Any]) -> str:
    low, high = score["interval"]
    return f"{100 * score['value']:.1f} ({100 * low:.1f}–{100 * high:.1f})"


def _points(value: float) -> str:
    return f"{round(100 * value, 1) + 0.0:+.1f}".replace("-", "−")  # never "−0.0"


def _p(value: float) -> str:
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def notes_of(found: Mapping[str, Any]) -> list[str]:
    """Return the sentences around the tables: which model is ahead, what was not compared, and how it was tested."""
    notes = [note for comparison in found["comparisons"] for note in comparison["notes"]]
    how = HOW_IT_IS_TESTED.format(rows=found["tested"], level=found["level"])
    return [*found["words"], *dict.fromkeys(notes), how]


def comparison_text(found: Mapping[str, Any], *, style: str = "simple") -> str:
    """Return a comparison as text: a heading, a table for each other model, and a summary in sentences.

    Args:
        found: as `compare_results` returns it.
        style (`str`): a tabulate format; "github" is Markdown. Default "simple".
    """
    heading = (
        f"{found['benchmark']}, split {found['split']}, per cent with 95 % intervals; compared with {found['baseline']}"
    )
    align = ("left", "left", *["right"] * 5, "left", "right", "right")
    tables = [
        tabulate(rows, headers=columns, tablefmt=style, disable_numparse=True, colalign=align)
        for columns, rows in compare_tables(found)
    ]
    mark = "- " if style == "github" else ""
    return "\n\n".join([heading, *tables, "\n".join(mark + note for note in notes_of(found))])
