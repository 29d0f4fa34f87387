"""Count the reasoning texts of an evaluation, write them as a table, and note the reasoning beside a model's scores."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet

from evaluation.metrics import bootstrap_interval
from processing_moon import Reasoning
from product_data.attribute_keys import VISUAL_KEYS, as_attributes, facts_of
from product_data.synonyms import canonical_attributes
from product_data.tables import PRODUCT_FORMS, ProductRow
from retrieval.encode import WrittenReasoning

# A reasoning is well formed or has one or more of the other marks.
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
    """Count for each side the reasoning texts that are well formed, have unparsed parts, are not closed, or are empty.

    Args:
        written: from `retrieval.encode.VectorCache.reasonings`.

    Returns: side → counts: "written" (all), "well_formed", "unparsed", "not_closed" and "empty"; and "inputs", which maps
    each input of the model to the same counts. A side without reasoning is left out. A text can count as more than one of
    "unparsed", "not_closed" and "empty".
    """
    groups: dict[str, dict[str, list[Reasoning]]] = {}
    for entry in written:
        groups.setdefault(entry.side, {}).setdefault(entry.input, []).append(entry.reasoning)
    return {
        side: _counts([reasoning for group in inputs.values() for reasoning in group])
        | {"inputs": {name: _counts(group) for name, group in inputs.items()}}
        for side, inputs in groups.items()
    }


def _counts(reasonings: Sequence[Reasoning]) -> dict[str, Any]:
    return {"written": len(reasonings)} | {name: sum(map(has_mark, reasonings)) for name, has_mark in MARKS.items()}


def label_agreement(
    written: Iterable[WrittenReasoning], products: Sequence[ProductRow], *, resamples: int = 1000, seed: int = 0
) -> dict[str, dict[str, Any]]:
    """Compare what a model wrote about products with their labels: the mean F1 of (key, value) pairs.

    `F1 = 2 |W ∩ T| / (|W| + |T|)`, T the labels and W the written pairs whose key has a label, as in the attribute reward. The
    labels of a picture are attributes_image, or the attributes of keys that a picture shows (`VISUAL_KEYS`); those of a text
    attributes_text, or all attributes and the category. Our design, see `training.labels.reasoning`.

    Args:
        written: from `retrieval.encode.VectorCache.reasonings`.
        products: the products, with labels.
        resamples, seed: of the bootstrap over products.

    Returns: input ("mm", "t", "i") → "f1", "interval" (95 %) and "products" (those with labels), for inputs that
    have labels.
    """
    rows = {row.product_id: row for row in products}
    values: dict[str, list[float]] = {}
    for entry in written:
        if entry.side == "product" and entry.input in PRODUCT_FORMS:
            labels = canonical_attributes(_labels(rows[entry.record_id], entry.input))
            if labels:
                f1 = _pair_f1(canonical_attributes(entry.reasoning.attributes), labels)
                values.setdefault(entry.input, []).append(f1)
    found = {}
    for name, f1s in values.items():
        interval = bootstrap_interval(np.array(f1s), resamples=resamples, seed=seed)
        found[name] = {"f1": float(np.mean(f1s)), "interval": list(interval), "products": len(f1s)}
    return found


def _labels(row: ProductRow, form: str) -> dict[str, tuple[str, ...]]:
    stated = facts_of(row.attributes, row.category)[0]
    facts = {"i": [fact for fact in stated if fact.key in VISUAL_KEYS], "t": stated}
    for name, known in (("i", row.attributes_image), ("t", row.attributes_text)):
        facts[name] = facts[name] if known is None else facts_of(known)[0]
    shown = facts["t"] + facts["i"] if form == "mm" and row.images else facts["t" if form == "mm" else form]
    return as_attributes(shown)


def _pair_f1(written: Mapping[str, frozenset[str]], labels: Mapping[str, frozenset[str]]) -> float:
    right = sum(len(values & written.get(key, frozenset())) for key, values in labels.items())
    total = sum(map(len, labels.values())) + sum(len(written.get(key, ())) for key in labels)
    return 2 * right / total


def write_reasonings(path: str | Path, written: Iterable[WrittenReasoning]) -> Path:
    """Write reasoning texts as a parquet table, one per row.

    Columns: side ("query" or "product"), input (the model's input: "query", or a gallery's name such as "mm"), id,
    text, attributes (a list of {key, value}, an entry for each value, as in the products table), unparsed (a list of
    sentences), closed, well_formed.

    Args:
        path: the file; its folder is made.
        written: from `retrieval.encode.VectorCache.reasonings`.
    """
    rows = [_row(entry) for entry in written]
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, schema=_SCHEMA), path)
    return path


def _row(entry: WrittenReasoning) -> dict[str, Any]:
    reasoning = entry.reasoning
    pairs = [{"key": key, "value": value} for key, values in reasoning.attributes.items() for value in values]
    return {
        "side": entry.side,
        "input": entry.input,
        "id": entry.record_id,
        "text": reasoning.text,
        "attributes": pairs,
        "unparsed": list(reasoning.unparsed),
        "closed": reasoning.closed,
        "well_formed": reasoning.well_formed,
    }


def reasoning_note(settings: Mapping[str, Any] | None) -> str:
    """Return the note after a model's name that distinguishes scores with reasoning from scores without.

    Args:
        settings: "reasoning" of a results file; `None` for a file without it.

    Returns: " (reasoning ≤ 32)", " (queries reason ≤ 32)" or " (products reason ≤ 32)" with the maximum number of
    tokens, or "" without reasoning. If queries reason when unsure: " (queries reason below a margin of 0.05, ≤ 32)" or
    " (products reason, queries below a margin of 0.05, ≤ 32)".
    """
    settings = settings or {}
    sides = [side for side in ("query", "product") if settings.get(side, "none") != "none"]
    if not sides:
        return ""
    if settings.get("query") == "auto":
        subject = "products reason, queries" if len(sides) == 2 else "queries reason"
        return f" ({subject} below a margin of {settings['gate_threshold']:g}, ≤ {settings['max_reasoning_tokens']})"
    subjects = {"query": "queries reason", "product": "products reason"}
    return f" ({'reasoning' if len(sides) == 2 else subjects[sides[0]]} ≤ {settings['max_reasoning_tokens']})"
