"""Whether the written attributes deny what the item's own text says."""

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

    A written key is checkable if the title states a known value of it, by the rule that labels follow, too
    (`product_data.synonyms`), synonyms included, and not as a part of a longer known value. So a lone letter or digit makes a
    key checkable only beside the key's name: "size M" does, "the M shirt" and "pack of 5" do not. The key is contradicted unless
    one of its written values

    - is a value that the title states, or ends in its words ("dark blue" where the title says "blue"),
    - stands in the title in any way ("blue" where the title says "navy blue", "M" where "M" stands alone),
    - or is a label of the item: a title may name the colour of a sole.

    Our design (precedent: CHAIR, arXiv 1809.02156, which counts named objects that are not there among all that are named).

    Args:
        prompts, completions, completion_ids: not read; TRL gives them to every reward.
        reasonings: what each rollout wrote.
        titles: the text of each rollout's item; None: none.
        known_values: key → all values in the training data; one object for all rollouts and steps, which must not change.
        labels: key → values known of each rollout's item; None: none.

    Returns:
        for each rollout a number in [-1, 0]; 0 without a title or without a checkable key.
    """
    rows = zip(reasonings, titles, known_values, labels, strict=True)
    return [
        _penalty(reasoning, title, _index(known), canonical_attributes(right or {})) if title else 0.0
        for reasoning, title, known, right in rows
    ]


def _index(known_values: Mapping[str, frozenset[str]]) -> ValueIndex:
    """The index of the values, made once for the object that all steps share."""
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
    """Whether a written value is named, refined or contained by the title, or is a label."""
    if canonical_value(key, value) in stated | labelled or mentions(title, key, value) or states(title, key, value):
        return True
    own = common_words(value)
    return any(own[-len(said) :] == said for one in stated for said in spellings(key, one))
