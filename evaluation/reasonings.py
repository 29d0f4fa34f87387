"""What a model wrote in an evaluation: counted, kept as a table, and named wherever its scores are shown."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from processing_moon import Reasoning
from retrieval.encode import WrittenReasoning

# A reasoning is well formed, or has one or more of the other marks.
MARKS: dict[str, Callable[[Reasoning], bool]] = {
    "well_formed": lambda reasoning: reasoning.well_formed,
    "unparsed": lambda reasoning: bool(reasoning.unparsed),
    "not_closed": lambda reasoning: not reasoning.closed,
    "empty": lambda reasoning: not reasoning.text.strip(),
}
_SCHEMA = pyarrow.schema(
    [
        ("side", pyarrow.string()),
        ("input", pyarrow.string()),
        ("id", pyarrow.string()),
        ("text", pyarrow.string()),
        ("attributes", pyarrow.list_(pyarrow.struct([("key", pyarrow.string()), ("value", pyarrow.string())]))),
        ("unparsed", pyarrow.list_(pyarrow.string())),
        ("closed", pyarrow.bool_()),
        ("well_formed", pyarrow.bool_()),
    ]
)


def count_reasonings(written: Iterable[WrittenReasoning]) -> dict[str, dict[str, Any]]:
    """How many reasonings of each side were well formed, had parts that could not be read, were not closed, were empty.

    Args:
        written: from `retrieval.encode.VectorCache.reasonings`.

    Returns: side → "written" (all), "well_formed", "unparsed", "not_closed", "empty", and "inputs": what they were written
    from → the same numbers. A side that wrote nothing is not there. All but "well_formed" may overlap.
    """
    groups: dict[str, dict[str, list[Reasoning]]] = {}
    for one in written:
        groups.setdefault(one.side, {}).setdefault(one.input, []).append(one.reasoning)
    return {
        side: _counts([one for found in inputs.values() for one in found])
        | {"inputs": {name: _counts(found) for name, found in inputs.items()}}
        for side, inputs in groups.items()
    }


def _counts(found: Sequence[Reasoning]) -> dict[str, Any]:
    return {"written": len(found)} | {name: sum(map(has, found)) for name, has in MARKS.items()}


def write_reasonings(path: str | Path, written: Iterable[WrittenReasoning]) -> Path:
    """Write reasonings as a parquet table, one row each.

    Columns: side ("query" or "product"), input (what it was written from: "query", or a gallery's name such as "mm"), id,
    text, attributes (a list of {key, value}, an entry for each value, as in the products table), unparsed (a list of
    sentences), closed, well_formed.

    Args:
        path: of the file; its folder is made.
        written: from `retrieval.encode.VectorCache.reasonings`.
    """
    rows = [_row(one) for one in written]
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, schema=_SCHEMA), path)
    return path


def _row(one: WrittenReasoning) -> dict[str, Any]:
    reasoning = one.reasoning
    pairs = [{"key": key, "value": value} for key, values in reasoning.attributes.items() for value in values]
    return {
        "side": one.side,
        "input": one.input,
        "id": one.item,
        "text": reasoning.text,
        "attributes": pairs,
        "unparsed": list(reasoning.unparsed),
        "closed": reasoning.closed,
        "well_formed": reasoning.well_formed,
    }


def reasoning_note(settings: Mapping[str, Any] | None) -> str:
    """What to put behind a model's name, so that scores with and without reasoning are never taken for one another.

    Args:
        settings: "reasoning" of a results file; `None` in a file that has none.

    Returns: " (reasoning ≤ 32)", " (queries reason ≤ 32)", " (products reason ≤ 32)" with the most tokens that a reasoning
    had, or nothing where neither side reasons; of queries that reason when unsure " (queries reason below a margin of 0.05,
    ≤ 32)" or " (products reason, queries below a margin of 0.05, ≤ 32)".
    """
    settings = settings or {}
    sides = [side for side in ("query", "product") if settings.get(side, "none") != "none"]
    if not sides:
        return ""
    if settings.get("query") == "auto":
        who_else = "products reason, queries" if len(sides) == 2 else "queries reason"
        return f" ({who_else} below a margin of {settings['gate_threshold']:g}, ≤ {settings['max_reasoning_tokens']})"
    who = {"query": "queries reason", "product": "products reason"}
    return f" ({'reasoning' if len(sides) == 2 else who[sides[0]]} ≤ {settings['max_reasoning_tokens']})"
