"""Whether the written attributes are those that are known of the item."""

from collections.abc import Mapping, Sequence
from typing import Any

from processing_moon.reasoning_moon import Reasoning
from product_data.synonyms import canonical_attributes


def attributes_reward(
    prompts: Sequence[Any],
    completions: Sequence[Any],
    completion_ids: Sequence[Any],
    *,
    reasonings: Sequence[Reasoning],
    labels: Sequence[Mapping[str, tuple[str, ...]] | None],
    **columns: Any,
) -> list[float | None]:
    """Reward right attributes: F1 of the (key, value) pairs, `2 |W ∩ T| / (|W| + |T|)`.

    T are the labelled pairs, W the written ones whose key has a label. A key with several values is several pairs; case, spaces,
    plurals and synonyms do not matter, see `product_data.synonyms`. What was read counts, even of a reasoning that is not
    well-formed: `format_reward` judges the form.

    Source: MOON3.0, arXiv 2604.00513, skips attributes that are missing from an item when it judges predictions; so a written
    key that the labels lack is neither right nor wrong (shops label little of what a picture shows), and `length_reward`
    bounds how many there are. F1 over pairs as a reward is our design (precedent: attribute extraction is judged by it, OpenTag,
    arXiv 1806.01264).

    Args:
        prompts, completions, completion_ids: not read; TRL gives them to every reward.
        reasonings: what each rollout wrote.
        labels: key → values known of each rollout's item; None: none.

    Returns:
        for each rollout a number in [0, 1], 0 where labels are known and no labelled key was written; None where no label is
        known. Rollouts of one item share its labels, so that a group has either rewards or none.
    """
    return [_f1(reasoning, known) for reasoning, known in zip(reasonings, labels, strict=True)]


def _f1(reasoning: Reasoning, labels: Mapping[str, tuple[str, ...]] | None) -> float | None:
    known = canonical_attributes(labels or {})
    if not known:
        return None
    written = canonical_attributes(reasoning.attributes)
    true_pairs = {(key, value) for key, values in known.items() for value in values}
    written_pairs = {(key, value) for key in known for value in written.get(key, ())}
    return 2 * len(true_pairs & written_pairs) / (len(true_pairs) + len(written_pairs))
