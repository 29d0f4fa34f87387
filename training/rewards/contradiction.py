"""Punish written attributes that contradict the title."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from processing_moon.reasoning_moon import Reasoning
from product_data.synonyms import (
    ValueIndex,
    canonical_attributes,
    canonical_key,
    canonical_value,
    common_words,
    mentions,
    spellings,
    states,
)

_latest: list[tuple[Mapping[str, frozenset[str]], ValueIndex]] = []


def contradiction_reward(
    prompts: Sequence[Any],
    completions: Sequence[Any],
    completion_ids: Sequence[Any],
    *,
    reasonings: Sequence[Reasoning],
    titles: Sequence[str | None],
    known_values: Sequence[Mapping[str, frozenset[str]]],
    labels: Sequence[Mapping[str, tuple[str, ...]] | None],
    **columns: Any,
) -> list[float]:
    """Punish attributes that the title contradicts: `-|contradicted keys| / |checkable keys|`.

    A written key is checkable if the title states one of its known values, by the same rule as for labels
    (`product_data.synonyms`): synonyms count, a part of a longer known value does not. A single letter or digit makes a
    key checkable only next to the key's name: "size M" does, "the M shirt" and "pack of 5" do not. The key is
    contradicted unless one of its written values

    - is a value that the title states, or ends in its words ("dark blue" if the title says "blue"),
    - occurs anywhere in the title ("blue" if the title says "navy blue", "M" if the title has the word "M"),
    - or is a label of the product: a title may name the colour of a sole.

    Our design (precedent: CHAIR, arXiv 1809.02156, the share of named objects that an image does not show).

    Args:
        prompts, completions, completion_ids: not read; TRL passes them to every reward.
        reasonings: the parsed reasoning of each rollout.
        titles: the text of each rollout's product or query; None: no text.
        known_values: key → all values in the training data; the same unchanged object for all rollouts and steps.
        labels: key → known values of each rollout's product or query; None: not labelled.

    Returns:
        For each rollout, a number in [-1, 0]; 0 without a title or a checkable key.
    """
    rows = zip(reasonings, titles, known_values, labels, strict=True)
    return [
        _penalty(reasoning, title, _index(known), canonical_attributes(labelled or {})) if title else 0.0
        for reasoning, title, known, labelled in rows
    ]


def _index(known_values: Mapping[str, frozenset[str]]) -> ValueIndex:
    """Return the index of the known values, built once for the object that all steps share."""
    if not _latest or _latest[0][0] is not known_values:
        _latest[:] = [(known_values, ValueIndex(known_values))]
    return _latest[0][1]


def _penalty(reasoning: Reasoning, title: str, index: ValueIndex, labels: Mapping[str, frozenset[str]]) -> float:
    stated = index.stated(title)
    written: dict[str, list[str]] = defaultdict(list)
    for key, values in reasoning.attributes.items():
        written[canonical_key(key)] += values
    checkable = [key for key in written if key in stated]
    contradicted = sum(
        not any(_agrees(title, key, value, stated[key], labels.get(key, frozenset())) for value in written[key])
        for key in checkable
    )
    return -contradicted / len(checkable) if contradicted else 0.0


def _agrees(title: str, key: str, value: str, stated: frozenset[str], labelled: frozenset[str]) -> bool:
    """Return whether a written value agrees with the title or is a label."""
    if canonical_value(key, value) in stated | labelled or mentions(title, key, value) or states(title, key, value):
        return True
    words = common_words(value)
    return any(words[-len(end) :] == end for stated_value in stated for end in spellings(key, stated_value))
