"""Count and list the texts that were cut and the pictures that were resized to keep the token budget."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

FIRST = 10
"""Number of entries that a summary lists."""
_LONGEST_NAME = 60


def shortened_items(kind: str, shortened: Iterable[Any], names: Sequence[str]) -> list[dict[str, Any]]:
    """Return what the processor shortened, with the name of each record.

    Args:
        kind (`str`): kind of the records: "product", "query" or "label".
        shortened: entries of a batch, with `index`, `field`, `tokens_before` and `tokens_after`.
        names: name of each record, by index.

    Returns: for each entry kind, item, field ("images", "description", …), tokens_before, tokens_after.
    """
    return [
        {
            "kind": kind,
            "item": names[entry.index],
            "field": entry.field,
            "tokens_before": entry.tokens_before,
            "tokens_after": entry.tokens_after,
        }
        for entry in shortened
    ]


def part_of(entry: Mapping[str, Any]) -> tuple[str, str, str]:
    """Return the part of a record that an entry describes: kind, name, field."""
    return entry["kind"], entry["item"], entry["field"]


def shortened_summary(entries: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Count entries of `shortened_items`; several entries for one part of a record count once.

    Returns: items (number of records), fields (field → number of records), first (the first ten entries).
    """
    parts: dict[tuple[str, str, str], dict[str, Any]] = {}
    for entry in entries:
        parts.setdefault(part_of(entry), dict(entry))
    return {
        "items": len({(kind, name) for kind, name, _ in parts}),
        "fields": dict(Counter(field for _, _, field in parts)),
        "first": list(parts.values())[:FIRST],
    }


def shortened_sentence(summary: Mapping[str, Any], max_tokens: int | None, total: int | None = None) -> str:
    """Return a sentence with the number of shortened records, the shortened parts, and the first records.

    Args:
        summary: result of `shortened_summary` with at least one record.
        max_tokens (`int` or `None`): the processor's `max_tokens`; `None` if unknown.
        total (`int` or `None`): number of all records, for the share; `None` if unknown.
    """
    budget = "the token budget" if max_tokens is None else f"max_tokens={max_tokens}"
    fields = ", ".join(
        f"pictures made smaller in {count}" if field == "images" else f"{field} cut in {count}"
        for field, count in summary["fields"].items()
    )
    count = summary["items"]
    verb = "is" if count == 1 else "are"
    if total is None:
        subject = f"{count} {'item' if count == 1 else 'items'} {verb}"
    else:
        subject = f"{count:,} of {total:,} items ({100 * count / total:.2g} %) {verb}"
    return f"{subject} over {budget}: {fields}; first: {describe_part(summary['first'][0])}"


def describe_part(entry: Mapping[str, Any]) -> str:
    """Return a phrase that describes a shortened part of a record; a long name is abbreviated."""
    name = entry["item"] if len(entry["item"]) <= _LONGEST_NAME else entry["item"][: _LONGEST_NAME - 1] + "…"
    if not entry["tokens_after"]:
        return f"{entry['kind']} {name!r}, {entry['field']}: left out ({entry['tokens_before']} tokens)"
    return f"{entry['kind']} {name!r}, {entry['field']}: {entry['tokens_before']} → {entry['tokens_after']} tokens"
