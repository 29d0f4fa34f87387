"""Count and name what was made smaller to keep the token budget: texts that were cut, pictures that were resized."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

FIRST = 10
"""Items that a summary names."""
_LONGEST_NAME = 60


def shortened_items(kind: str, shortened: Iterable[Any], names: Sequence[str]) -> list[dict[str, Any]]:
    """Return what the processor shortened, by name.

    Args:
        kind (`str`): what the records are: "product", "query" or "label".
        shortened: of a batch: entries with `index`, `field`, `tokens_before` and `tokens_after`.
        names: what each record is called, by index.

    Returns: for each entry kind, item, field ("images", "description", …), tokens_before, tokens_after.
    """
    return [
        {
            "kind": kind,
            "item": names[one.index],
            "field": one.field,
            "tokens_before": one.tokens_before,
            "tokens_after": one.tokens_after,
        }
        for one in shortened
    ]


def part_of(one: Mapping[str, Any]) -> tuple[str, str, str]:
    """What an entry is about: kind, item, field."""
    return one["kind"], one["item"], one["field"]


def shortened_summary(found: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Count entries of `shortened_items`; what is said twice of one part of one item counts once.

    Returns: items (how many), fields (field → items), first (the first ten entries).
    """
    parts: dict[tuple[str, str, str], dict[str, Any]] = {}
    for one in found:
        parts.setdefault(part_of(one), dict(one))
    return {
        "items": len({(kind, item) for kind, item, _ in parts}),
        "fields": dict(Counter(field for _, _, field in parts)),
        "first": list(parts.values())[:FIRST],
    }


def shortened_sentence(summary: Mapping[str, Any], max_tokens: int | None, total: int | None = None) -> str:
    """Say how many items were shortened, which parts of them, and the first.

    Args:
        summary: of `shortened_summary`, of at least one item.
        max_tokens (`int` or `None`): the processor's; `None` where it is not known.
        total (`int` or `None`): how many items there were, for the share; `None` where it is not known.
    """
    budget = "the token budget" if max_tokens is None else f"max_tokens={max_tokens}"
    fields = ", ".join(
        f"pictures made smaller in {count}" if field == "images" else f"{field} cut in {count}"
        for field, count in summary["fields"].items()
    )
    items = _how_many(summary["items"], total)
    return f"{items} over {budget}: {fields}; first: {told(summary['first'][0])}"


def _how_many(items: int, total: int | None) -> str:
    """A number of items with its verb, and its share where the total is known."""
    if total is None:
        return "1 item is" if items == 1 else f"{items} items are"
    return f"{items:,} of {total:,} items ({100 * items / total:.2g} %) {'is' if items == 1 else 'are'}"


def told(one: Mapping[str, Any]) -> str:
    """Say what became of one part of an item; a long name, such as that of a label text, is shown by its beginning."""
    name = one["item"] if len(one["item"]) <= _LONGEST_NAME else one["item"][: _LONGEST_NAME - 1] + "…"
    if not one["tokens_after"]:
        return f"{one['kind']} {name!r}, {one['field']}: left out ({one['tokens_before']} tokens)"
    return f"{one['kind']} {name!r}, {one['field']}: {one['tokens_before']} → {one['tokens_after']} tokens"
