"""Reward reasoning that stays within its token budget."""

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
    """Reward reasoning within the budget: 1 for n ≤ M, `max(0, 1 - (n - M) / M)` above.

    n is the number of written tokens, `</think>` included, and M the budget. Empty reasoning gets 0, and so does
    unclosed reasoning: generation stopped at its limit, and the full length is unknown.

    Source: LREM, arXiv 2510.14321, rewards the length; 16 to 32 tokens worked best there. The linear decrease is our
    design (precedent: the soft overlong punishment of DAPO, arXiv 2503.14476). We set no minimum: an image may show
    only two attributes, and a minimum would encourage invented ones.

    Args:
        prompts, completions: not read; TRL passes them to every reward.
        completion_ids: token ids of each completion, without padding.
        reasonings: the parsed reasoning of each rollout.
        max_reasoning_tokens: M of each rollout, in tokens, at least 1.

    Returns:
        A number in [0, 1] for each rollout.

    Raises:
        ValueError: a budget below 1.
    """
    rows = zip(completion_ids, reasonings, max_reasoning_tokens, strict=True)
    return [_within(len(ids), reasoning, budget, row) for row, (ids, reasoning, budget) in enumerate(rows)]


def _within(tokens: int, reasoning: Reasoning, budget: int, row: int) -> float:
    if budget < 1:
        raise ValueError(f"max_reasoning_tokens[{row}]: found {budget}; expected an integer of at least 1")
    if not (reasoning.closed and reasoning.text.strip()):
        return 0.0
    return min(1.0, max(0.0, 1.0 - (tokens - budget) / budget))
