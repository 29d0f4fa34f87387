"""Reward written attributes that match the product's labels, and punish invented keys."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from processing_moon.reasoning_moon import REASONING_KEYS, Reasoning
from product_data.synonyms import canonical_attributes, canonical_key


def attributes_reward(
    prompts: Sequence[Any],
    completions: Sequence[Any],
    completion_ids: Sequence[Any],
    *,
    reasonings: Sequence[Reasoning],
    labels: Sequence[Mapping[str, tuple[str, ...]] | None],
    known_values: Sequence[Mapping[str, frozenset[str]]],
    **columns: Any,
) -> list[float | None]:
    """Reward correct attributes: F1 of the (key, value) pairs, `2 |W ∩ T| / (|W| + |T|)`.

    T are the labelled pairs, W the written pairs whose key has a label, and those whose key is invented: neither one of
    `REASONING_KEYS` nor a key of the shop's data, under any name that shops use for it. An invented key is never right, so
    writing one lowers the reward. A key with several values counts as several pairs.

    Case, spaces, plurals and synonyms do not matter; see `product_data.synonyms`. Every parsed attribute counts, even in
    malformed reasoning: `format_reward` judges the format.

    Source: MOON3.0, arXiv 2604.00513, skips attributes that an item does not have when it judges predictions. Here, too,
    a known key without a label is neither right nor wrong (shops label little of what a picture shows), and
    `length_reward` limits the number of keys. The cost of invented keys, and F1 over pairs as a reward is our design
    (precedent: OpenTag, arXiv 1806.01264, evaluates attribute extraction by it).

    Args:
        prompts, completions, completion_ids: not read; TRL passes them to every reward.
        reasonings: the parsed reasoning of each rollout.
        labels: key → known values of each rollout's product or query; None: not labelled.
        known_values: key → all values in the training data, of which the keys are read.

    Returns:
        For each rollout, a number in [0, 1], which is 0 if it writes none of the labelled keys; None without labels.
        The rollouts of a group share their labels, so either all or none of them have a reward.
    """
    rows = zip(reasonings, labels, known_values, strict=True)
    return [_f1(reasoning, labelled, known) for reasoning, labelled, known in rows]


def _f1(reasoning: Reasoning, labels: Mapping[str, tuple[str, ...]] | None, known_keys: Iterable[str]) -> float | None:
    known = canonical_attributes(labels or {})
    if not known:
        return None
    written = canonical_attributes(reasoning.attributes)
    true_pairs = {(key, value) for key, values in known.items() for value in values}
    meant = {*known, *(canonical_key(key) for key in (*REASONING_KEYS, *known_keys))}
    counted = [key for key in written if key in known or key not in meant]
    written_pairs = {(key, value) for key in counted for value in written[key]}
    return 2 * len(true_pairs & written_pairs) / (len(true_pairs) + len(written_pairs))
