"""Reward reasoning that follows the requested format."""

from collections.abc import Sequence
from typing import Any

from processing_moon.reasoning_moon import REASONING_KEYS, Reasoning
from product_data.attribute_keys import chinese_key


def format_reward(
    prompts: Sequence[Any],
    completions: Sequence[Any],
    completion_ids: Sequence[Any],
    *,
    reasonings: Sequence[Reasoning],
    **columns: Any,
) -> list[float]:
    """Reward attributes that can be parsed and have known keys: `[closed] · known / (parsed + unparsed)`.

    `known` counts the attributes whose key is exactly one of `REASONING_KEYS`, or a key that Chinese shops use for one
    of them (`product_data.attribute_keys.chinese_key`). `parsed` counts all attributes, and `unparsed` the parts that
    could not be parsed. The reward is 1 only for well-formed reasoning in which all keys are known. It is 0 for empty
    reasoning, and for unclosed reasoning, whose end was cut off.

    Source: LREM, arXiv 2510.14321, rewards the format. The grades between 0 and 1 are our design (precedent: TRL's
    `think_format_reward`, which is 0 or 1): a group without a perfect rollout would otherwise not learn.

    Args:
        prompts, completions, completion_ids: not read; TRL passes them to every reward.
        reasonings: the parsed reasoning of each rollout.

    Returns:
        A number in [0, 1] for each rollout.
    """
    return [_share(reasoning) for reasoning in reasonings]


def _share(reasoning: Reasoning) -> float:
    parts = len(reasoning.attributes) + len(reasoning.unparsed)
    if not (reasoning.closed and parts):
        return 0.0
    return sum(key in REASONING_KEYS or chinese_key(key) is not None for key in reasoning.attributes) / parts
