"""Shorten results files for a card: as rows of tables, as a model-index, and as community results on the hub."""

from __future__ import annotations

import datetime
import re
from collections.abc import Sequence
from typing import Any

from huggingface_hub import EvalResult, EvalResultEntry

from model_cards.facts import CardError

SIDES = ("before", "after")
DIRECTIONS = {
    "t2mm": "t→mm",
    "i2mm": "i→mm",
    "mm2mm": "mm→mm",
    "t2i": "t→i",
    "i2t": "i→t",
    "i2i": "i→i",
    "mm2i": "mm→i",
}
RETRIEVAL_TASK, LABEL_TASK = "information-retrieval", "zero-shot-classification"
_ABSENT = "–"
_SCORES = ("R@1", "R@5", "R@10", "R@10_interval", "R@10_chance", "queries", "gallery", "source")
_LABEL_SCORES = ("top1", "top1_interval", "top1_chance", "majority", "labels", "items", "keys")
_FACTS = ("split", "limit", "products", "queries", "time", "commit", "bootstrap_resamples", "training_seed", "steps")


def summary(result: dict[str, Any], file: str, side: str = "after") -> dict[str, Any]:
    """Return the parts of a result that a card keeps.

    Args:
        result: the content of a results file of `moon3 evaluate`, or its part "before" or "after".
        file: name of the file, without folders.
        side: "after" for a result of these weights, "before" for a result of the weights that training started from.

    Returns:
        file, side, benchmark, hub_dataset (`None`), retrieval and labels (rows with the scores of the file), absent,
        dimensions, reasoning, warnings, facts.

    Raises:
        CardError: the result has no scores, or cannot be read.
    """
    if not isinstance(result.get("scores"), dict) or not isinstance(result.get("benchmark"), str):
        raise CardError(f"{file}: found no 'scores' and 'benchmark'; expected a file that moon3 evaluate wrote")
    try:
        return {
            "file": file,
            "side": side,
            "benchmark": result["benchmark"],
            "hub_dataset": None,
            "retrieval": _retrieval(result),
            "labels": _labels(result),
            "absent": dict(result.get("absent") or {}),
            "dimensions": {
                str(width): _retrieval({"scores": narrow["scores"]})
                for width, narrow in (result.get("dimensions") or {}).items()
            },
            "reasoning": dict(result.get("reasoning") or {}),
            "warnings": list(result.get("warnings") or []),
            "facts": {name: value for name, value in result.get("provenance", {}).items() if name in _FACTS},
        }
    except (KeyError, TypeError, AttributeError) as error:
        raise CardError(f"{file}: cannot be read ({error!r}); expected a file that moon3 evaluate wrote") from error


def _retrieval(result: dict[str, Any]) -> list[dict[str, Any]]:
    groups = [(name, scores, False) for name, scores in result["scores"].items()]
    own = set(result["scores"])
    groups += [(name, found, True) for name, found in (result.get("image_only") or {}).items() if name not in own]
    return [
        {"direction": name, "image_only": image_only} | {key: scores[key] for key in _SCORES if key in scores}
        for name, scores, image_only in groups
        if scores
    ]


def _labels(result: dict[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for form, levels in (result.get("classification") or {}).items():
        last = [name for name in levels if name != "deepest"][-1:]
        for name, scores in levels.items():
            if name != "deepest" or not last or scores != levels[last[0]]:
                rows.append((f"category, {name.replace('_', ' ')}", form, scores))
    for form, attributes in (result.get("attributes") or {}).items():
        rows.append(("attributes, mean over their keys", form, attributes["mean"]))
    for kind, scores in (result.get("query_categories") or {}).items():
        rows.append(("category of queries", kind, scores))
    return [
        {"task": task, "input": form} | {key: scores[key] for key in _LABEL_SCORES if key in scores}
        for task, form, scores in rows
        if scores
    ]


def percent(value: float | None, interval: Sequence[float] | None = None) -> str:
    """Return a share in per cent with one decimal, followed by its interval in brackets if given."""
    if value is None:
        return _ABSENT
    around = f" ({100 * interval[0]:.1f}–{100 * interval[1]:.1f})" if interval else ""
    return f"{100 * value:.1f}{around}"


def direction(row: dict[str, Any]) -> str:
    """Return the name of a retrieval direction on a card."""
    name = DIRECTIONS.get(row["direction"], row["direction"])
    own = ", own parts" if row.get("source") == "products" else ""
    return name + (", image only" if row["image_only"] else "") + own


def search_of(result: dict[str, Any]) -> tuple[Any, ...]:
    """Return what identifies the search of a result: benchmark, split, limit, and the reasoning of both sides.

    Args:
        result: as `summary` returns it.
    """
    facts, reasoning = result["facts"], result["reasoning"]
    sides = (reasoning.get("query", "none"), reasoning.get("product", "none"))
    return result["benchmark"], facts.get("split"), facts.get("limit"), *sides


def check_apart(results: Sequence[dict[str, Any]]) -> tuple[dict[str, Any], ...]:
    """Return the results, after checking that each search occurs only once before and once after training.

    Args:
        results: as `summary` returns them.

    Raises:
        CardError: a search occurs twice; the message has the names of both files.
    """
    seen: dict[tuple[Any, ...], str] = {}
    for result in results:
        key = (result["side"], *search_of(result))
        if key in seen:
            files = f"{seen[key]} and {result['file']}"
            raise CardError(f"{files}: found two results of {result['benchmark']!r}; expected one of each search")
        seen[key] = result["file"]
    return tuple(results)


def pair_results(results: Sequence[dict[str, Any]]) -> list[tuple[dict[str, Any] | None, dict[str, Any]]]:
    """Return each result of these weights, together with the result before training on the same benchmark, or `None`.

    Args:
        results: as `summary` returns them.
    """

    before = {search_of(result): result for result in results if result["side"] == "before"}
    return [(before.get(search_of(result)), result) for result in results if result["side"] == "after"]


def retrieval_table(before: dict[str, Any] | None, after: dict[str, Any]) -> list[list[str]]:
    """Return head and rows of the retrieval table, with cells as text."""
    earlier = {(row["direction"], row["image_only"]): row for row in before["retrieval"]} if before else {}
    head = ["direction", "R@1", "R@5", "R@10 (interval)", "chance R@10", "queries", "products"]
    if earlier:
        head.insert(1, "R@10 before training")
    rows = []
    for row in after["retrieval"]:
        cells = [percent(row.get("R@1")), percent(row.get("R@5")), percent(row["R@10"], row.get("R@10_interval"))]
        cells += [percent(row.get("R@10_chance")), str(row.get("queries", _ABSENT)), str(row.get("gallery", _ABSENT))]
        if earlier:
            old = earlier.get((row["direction"], row["image_only"]), {})
            cells.insert(0, percent(old.get("R@10"), old.get("R@10_interval")))
        rows.append([direction(row), *cells])
    return [head, *rows]


def label_table(after: dict[str, Any]) -> list[list[str]]:
    """Return head and rows of the table of categories and attributes, with cells as text."""
    head = ["task", "input", "top-1 (interval)", "chance", "most common", "labels", "items"]
    return [
        head,
        *(
            [row["task"], row["input"], percent(row["top1"], row.get("top1_interval"))]
            + [percent(row.get(name)) for name in ("top1_chance", "majority")]
            + [str(row.get(name, _ABSENT)) for name in ("labels", "items")]
            for row in after["labels"]
        ),
    ]


def dimension_table(after: dict[str, Any], vector: int | None) -> list[list[str]]:
    """Return head and rows of the table of recall by width of the vector, the whole vector last.

    Args:
        after: a result of these weights.
        vector: the width of the whole vector.
    """
    by_width = sorted(((int(width), rows) for width, rows in after["dimensions"].items()), key=lambda pair: pair[0])
    if not by_width:
        return []
    names = list(dict.fromkeys(direction(row) for _, rows in by_width for row in rows))
    if vector is not None and vector not in dict(by_width):
        by_width.append((vector, after["retrieval"]))
    found = [{direction(row): percent(row["R@10"], row.get("R@10_interval")) for row in rows} for _, rows in by_width]
    return [
        ["numbers of the vector", *names],
        *(
            [str(width), *(cells.get(name, _ABSENT) for name in names)]
            for (width, _), cells in zip(by_width, found, strict=True)
        ),
    ]


def index_of(results: Sequence[dict[str, Any]]) -> list[EvalResult]:
    """Return R@10 of each direction and top-1 of each task in per cent, in the form of the hub's `model-index`.

    Args:
        results: as `summary` returns them; results before training are left out.
    """
    found = []
    for result in results:
        if result["side"] != "after":
            continue
        place: dict[str, Any] = {
            "dataset_type": result["hub_dataset"] or "unknown",
            "dataset_name": result["benchmark"],
            "dataset_config": _config(result),
            "dataset_split": result["facts"].get("split") or "all",
        }
        for row in result["retrieval"]:
            args = _args(row, "R@10_interval", ("queries", "gallery"))
            metric: dict[str, Any] = {
                "metric_type": "recall_at_10",
                "metric_name": f"R@10, {direction(row)}",
                "metric_args": args,
            }
            value = round(100 * row["R@10"], 1)
            found.append(EvalResult(RETRIEVAL_TASK, metric_value=value, task_name="Retrieval", **place, **metric))
        for row in result["labels"]:
            args = _args(row, "top1_interval", ("labels", "items"))
            name = f"Top-1, {row['task']}, {row['input']}"
            metric = {"metric_type": "accuracy", "metric_name": name, "metric_args": args}
            value = round(100 * row["top1"], 1)
            found.append(EvalResult(LABEL_TASK, metric_value=value, task_name="Labels", **place, **metric))
    return found


def _config(result: dict[str, Any]) -> str:
    """Return the configuration that distinguishes searches: the benchmark, and the reasoning of both sides."""
    modes = {side: result["reasoning"].get(side, "none") for side in ("query", "product")}
    reasoning = [f"{side}-{mode}" for side, mode in modes.items() if mode != "none"]
    return "-".join([result["benchmark"], *reasoning])


def _args(row: dict[str, Any], interval: str, counts: Sequence[str]) -> dict[str, Any]:
    args = {name: row[name] for name in counts if name in row}
    return args | ({"interval": [round(100 * end, 1) for end in row[interval]]} if row.get(interval) else {})


def community_results(results: Sequence[dict[str, Any]]) -> dict[str, list[EvalResultEntry]]:
    """Return R@10 by direction for `.eval_results/`, the hub's community results, by name of the file.

    The hub accepts them for its own benchmark data sets only, so results without a declared `hub_dataset` are left out. The
    direction is the `task_id`: the benchmark's eval.yaml must give its tasks the same names.

    Args:
        results: as `summary` returns them.
    """
    files: dict[str, list[EvalResultEntry]] = {}
    for result in results:
        if result["side"] != "after" or result["hub_dataset"] is None:
            continue
        stamp = result["facts"].get("time")
        time = None if stamp is None else datetime.datetime.fromisoformat(stamp).astimezone(datetime.UTC)
        for row in result["retrieval"]:
            interval = row.get("R@10_interval")
            around = f", interval {100 * interval[0]:.1f}–{100 * interval[1]:.1f}" if interval else ""
            notes = f"R@10 in per cent{around}, {row.get('queries')} queries among {row.get('gallery')} products"
            entry = EvalResultEntry(
                dataset_id=result["hub_dataset"],
                task_id=row["direction"],
                value=round(100 * row["R@10"], 1),
                date=None if time is None else time.strftime("%Y-%m-%dT%H:%M:%SZ"),
                notes=notes,
            )
            files.setdefault(re.sub(r"[^\w.-]", "_", _config(result)) + ".yaml", []).append(entry)
    return files
