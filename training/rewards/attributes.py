"""Reward written attributes that match the product's labels."""

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
    """Reward correct attributes: F1 of the (key, value) pairs, `2 |W ∩ T| / (|W| + |T|)`.

    T are the labelled pairs, W the written pairs whose key has a label. A key with several values counts as several
    pairs. Case, spaces, plurals and synonyms do not matter; see `product_data.synonyms`. Every parsed attribute counts,
    even in malformed reasoning: `format_reward` judges the format.

    Source: MOON3.0, arXiv 2604.00513, skips attributes that an item does not have when it judges predictions. Here,
    too, a written key without a label is neither right nor wrong (shops label little of what a picture shows), and
    `length_reward` limits the number of keys. F1 over pairs as a reward is our design (precedent: OpenTag,
    arXiv 1806.01264, evaluates attribute extraction by it).

    Args:
        prompts, completions, completion_ids: not read; TRL passes them to every reward.
        reasonings: the parsed reasoning of each rollout.
        labels: key → known values of each rollout's product or query; None: not labelled.

    Returns:
        For each rollout, a number in [0, 1], which is 0 if it writes none of the labelled keys; None without labels.
        The rollouts of a group share their labels, so either all or none of them have a reward.
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
