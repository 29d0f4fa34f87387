"""Whether a reasoning is written as it was asked for."""

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
    """Reward attributes that can be read, under keys that are known: `[closed] · known / (read + unread)`.

    `known` counts the attributes whose key is one of `REASONING_KEYS`, letter by letter, or one that Chinese shops use for one of
    them (`product_data.attribute_keys.chinese_key`), `read` all attributes and `unread` the parts that could not be read. 1
    exactly for a well-formed reasoning with known keys alone; 0 for an empty one, and for one that is not closed, because its end
    was cut off.

    Source: LREM, arXiv 2510.14321, rewards the format. Grading it is our design (precedent: TRL's `think_format_reward`, which
    is 0 or 1): where no rollout of a group is perfect yet, 0 or 1 would teach nothing.

    Args:
        prompts, completions, completion_ids: not read; TRL gives them to every reward.
        reasonings: what each rollout wrote.

    Returns:
        one number in [0, 1] for each rollout.
    """
    return [_share(reasoning) for reasoning in reasonings]


def _share(reasoning: Reasoning) -> float:
    parts = len(reasoning.attributes) + len(reasoning.unparsed)
    if not (reasoning.closed and parts):
        return 0.0
    return sum(key in REASONING_KEYS or chinese_key(key) is not None for key in reasoning.attributes) / parts
