"""Whether a reasoning stays within its budget of tokens."""

from collections.abc import Sequence
from typing import Any

from processing_moon.reasoning_moon import Reasoning


def length_reward(
    prompts: Sequence[Any],
    completions: Sequence[Any],
    completion_ids: Sequence[Sequence[int]],
    *,
    reasonings: Sequence[Reasoning],
    max_reasoning_tokens: Sequence[int],
    **columns: Any,
) -> list[float]:
    """Reward reasonings that end in time: 1 for n ≤ M, `max(0, 1 - (n - M) / M)` above.

    n is the number of tokens written, `</think>` included, and M the budget. 0 for a reasoning that says nothing, and for one
    that is not closed: it ran into the limit of the generation, and how long it would have become is unknown.

    Source: LREM, arXiv 2510.14321, rewards the length; 16 to 32 tokens were best there and more was worse. The linear fall is
    our design (precedent: the soft overlong punishment of DAPO, arXiv 2503.14476). There is no lower bound: an image may
    show two attributes, and a minimum would ask for invented ones.

    Args:
        prompts, completions: not read; TRL gives them to every reward.
        completion_ids: ids of what each rollout wrote, without padding.
        reasonings: the same, read.
        max_reasoning_tokens: M of each rollout, tokens, at least 1.

    Returns:
        one number in [0, 1] for each rollout.

    Raises:
        ValueError: a budget below 1.
    """
    rows = zip(completion_ids, reasonings, max_reasoning_tokens, strict=True)
    return [_within(len(ids), reasoning, budget, row) for row, (ids, reasoning, budget) in enumerate(rows)]


def _within(tokens: int, reasoning: Reasoning, budget: int, row: int) -> float:
    if budget < 1:
        raise ValueError(f"max_reasoning_tokens[{row}]: found {budget}; expected whole numbers of at least 1")
    if not (reasoning.closed and reasoning.text.strip()):
        return 0.0
    return min(1.0, max(0.0, 1.0 - (tokens - budget) / budget))
