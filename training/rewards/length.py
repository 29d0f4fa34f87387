"""Reward reasoning whose length is within a target."""

from collections.abc import Sequence
from typing import Any

from processing_moon.reasoning_moon import Reasoning


def length_reward(
    prompts: Sequence[Any],
    completions: Sequence[Any],
    completion_ids: Sequence[Sequence[int]],
    *,
    reasonings: Sequence[Reasoning],
    target_tokens: Sequence[tuple[int, int]],
    **columns: Any,
) -> list[float]:
    """Reward a length from a to b: `n / a` for n < a, 1 for a ≤ n ≤ b, `max(0, 1 - (n - b) / b)` above.

    n is the number of written tokens, `</think>` included. Empty reasoning gets 0, and so does unclosed reasoning:
    generation stopped at its limit, and the full length is unknown. The target ends below that limit, because otherwise every
    closed reasoning would get 1 and the reward would only repeat whether the reasoning is closed.

    Source: LREM, arXiv 2510.14321, rewards the length; 16 to 32 tokens worked best there. The two lines are our design
    (precedent: the soft overlong punishment of DAPO, arXiv 2503.14476). A lower end favours complete reasoning; that it does
    not favour invented attributes is left to `attributes_reward` and `contradiction_reward`. a = 1 turns it off.

    Args:
        prompts, completions: not read; TRL passes them to every reward.
        completion_ids: token ids of each completion, without padding.
        reasonings: the parsed reasoning of each rollout.
        target_tokens: (a, b) of each rollout, in tokens, 1 ≤ a ≤ b.

    Returns:
        A number in [0, 1] for each rollout.

    Raises:
        ValueError: a target that is not 1 ≤ a ≤ b.
    """
    rows = zip(completion_ids, reasonings, target_tokens, strict=True)
    return [_within(len(ids), reasoning, target, row) for row, (ids, reasoning, target) in enumerate(rows)]


def _within(tokens: int, reasoning: Reasoning, target: tuple[int, int], row: int) -> float:
    low, high = target
    if not 1 <= low <= high:
        raise ValueError(f"target_tokens[{row}]: found {low} to {high}; expected 1 ≤ first ≤ second")
    if not (reasoning.closed and reasoning.text.strip()):
        return 0.0
    if tokens < low:
        return tokens / low
    return min(1.0, max(0.0, 1.0 - (tokens - high) / high))


def default_target(max_reasoning_tokens: int) -> tuple[int, int]:
    """Return the target for a limit of M tokens: from M / 2 to 3 M / 4, both rounded up.

    With the limit of 32 tokens, in which LREM's best lengths end, that is 16 to 24. Our design.

    Args:
        max_reasoning_tokens: M, at least 1.
    """
    return -(-max_reasoning_tokens // 2), -(-3 * max_reasoning_tokens // 4)
