"""Compare all models of a table with one of them, query by query, with one Holm correction for the whole table.

moon3 evaluate --model A B C --benchmark X Y --reference A --output peers/
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from evaluation.compare import NotComparableError, compare_results, correct, sentence_of
from evaluation.report import ARROWS, short_name
from evaluation.significance import LEVEL
from product_data.errors import OptionError

_ABSENT = "–"
AHEAD = "*"
"""The mark of a difference that is beyond chance after Holm's correction."""


def against_reference(
    results: Sequence[Mapping[str, Any]],
    *,
    names: Sequence[str] | None = None,
    reference: str | None = None,
    metrics: Sequence[str] | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Compare each model with the reference on each benchmark that both were measured on.

    Holm's correction (Holm 1979, see `evaluation.significance.holm`) counts all rows of all models and benchmarks, because one
    table shows them together.

    Args:
        results: contents of results files, of several models on one or several benchmarks.
        names: names of the models, one per result. Default: their short names.
        reference: the name of a model. Default: the first.
        metrics: see `evaluation.compare.compare_results`.
        resamples, seed (`int`): of the bootstrap, and the seed of drawn sign patterns too.

    Returns: reference, level, tested (the number of rows of the correction), and benchmarks, each as `compare_results` returns
    it, with not_compared: a sentence for each model that cannot be paired.

    Raises:
        OptionError: a reference that is no model of the results.
    """
    names = [short_name(result["model"]) for result in results] if names is None else list(names)
    reference = names[0] if reference is None else reference
    if reference not in names:
        raise OptionError(f"reference {reference!r}; expected one of {', '.join(dict.fromkeys(names))}")
    benchmarks = []
    for benchmark in dict.fromkeys(result["benchmark"] for result in results):
        own = [(name, one) for name, one in zip(names, results, strict=True) if one["benchmark"] == benchmark]
        of_reference = [pair for pair in own if pair[0] == reference]
        others = [pair for pair in own if pair[0] != reference]
        options: dict[str, Any] = {"metrics": metrics, "resamples": resamples, "seed": seed}
        benchmarks.append(_on_benchmark(benchmark, reference, of_reference, others, options))
    everything = [one for found in benchmarks for one in found["comparisons"]]
    tested = sum(len(one["rows"]) for one in everything)
    for found in benchmarks:
        found["tested"] = tested
    correct([(found["baseline"], one) for found in benchmarks for one in found["comparisons"]])
    for found in benchmarks:
        found["words"] = [f"{one['model']}: {sentence_of(one, found['baseline'])}" for one in found["comparisons"]]
    return {"reference": reference, "level": LEVEL, "tested": tested, "benchmarks": benchmarks}


def _on_benchmark(
    benchmark: str,
    reference: str,
    of_reference: Sequence[tuple[str, Mapping[str, Any]]],
    others: Sequence[tuple[str, Mapping[str, Any]]],
    options: Mapping[str, Any],
) -> dict[str, Any]:
    """Pair each model with the reference; what cannot be paired is said in `not_compared`."""
    found: dict[str, Any] = {"baseline": reference, "benchmark": benchmark, "split": None, "level": LEVEL}
    found |= {"metrics": [], "comparisons": [], "not_compared": []}
    if not of_reference:
        found["not_compared"].append(f"{reference} has no results on {benchmark}")
        return found
    for name, result in others:
        try:
            pair = compare_results([reference, name], [of_reference[0][1], result], **options)
        except NotComparableError as error:
            found["not_compared"].append(str(error))
            continue
        found["comparisons"] += pair["comparisons"]
        found |= {key: pair[key] for key in ("baseline", "split", "metrics")}
    return found


def significance_rows(found: Mapping[str, Any], metric: str) -> tuple[list[str], list[list[str]]]:
    """Return the columns and rows of a table of differences to the reference: one row for each benchmark and direction.

    Args:
        found: as `against_reference` returns it.
        metric: such as "R@10".
    """
    models = list(dict.fromkeys(one["model"] for on in found["benchmarks"] for one in on["comparisons"]))
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for on in found["benchmarks"]:
        for one in on["comparisons"]:
            for row in one["rows"]:
                if row["metric"] == metric:
                    place = (on["benchmark"], ARROWS.get(row["what"], row["what"]))
                    rows.setdefault(place, {})[one["model"]] = _cell(row)
    columns = ["benchmark", f"{metric}, points", *models]
    return columns, [[*place, *(cells.get(model, _ABSENT) for model in models)] for place, cells in rows.items()]


def _cell(row: Mapping[str, Any]) -> str:
    points = f"{round(100 * row['difference']['difference'], 1) + 0.0:+.1f}".replace("-", "−")
    return points + (f" {AHEAD}" if row["ahead_after_holm"] is not None else "")


def significance_sentences(found: Mapping[str, Any], metric: str) -> list[str]:
    """Say what the table of `significance_rows` shows, how it was tested, and which models are not in it."""
    stars = sum(
        row["ahead_after_holm"] is not None
        for on in found["benchmarks"]
        for one in on["comparisons"]
        for row in one["rows"]
        if row["metric"] == metric
    )
    metrics = list(dict.fromkeys(metric for on in found["benchmarks"] for metric in on["metrics"]))
    return [
        f"Differences to {found['reference']} in points of {metric}, paired by query. {AHEAD}: the p-value of a paired sign-flip "
        f"test (of R@k McNemar's exact test) is below {found['level']:g} after Holm's correction for all {found['tested']} rows "
        f"({', '.join(metrics)} of all models, directions and benchmarks); {stars} cells. {_ABSENT}: nothing to pair.",
        "The test is about other queries of this kind. It says nothing of another training run.",
        *(f"Not compared: {why}." for on in found["benchmarks"] for why in on["not_compared"]),
    ]
