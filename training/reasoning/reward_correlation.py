"""Measure how well each reward agrees with recall over the rollouts of a step.

Shape suffixes: L rollouts.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

RETRIEVAL = "retrieval"


def reward_correlations(
    rewards: Mapping[str, Sequence[float | None]], facts: Sequence[Mapping[str, Any]]
) -> dict[str, float]:
    """Return Pearson's correlation of each reward with recall: a reward that does not follow it teaches something else.

    Recall is the score of the retrieval reward, `1 - log(rank) / log(N)`, which tells more ranks apart than a hit does. The
    retrieval reward itself is compared with whether the positive ranks first. Our design (precedent: the correlation of
    a learned reward with the gold reward, arXiv 2210.10760).

    Args:
        rewards: name of a reward, or TRL's `<name>_reward`, → a number for each rollout; None or NaN: not rewarded, left out.
        facts: "rank" and "candidates" (N, with the positive) of each rollout, in the same order.

    Shapes: L numbers and L facts.

    Returns: name → a number in [-1, 1]; without a reward that is constant, or whose rollouts all have the same recall.
    """
    rank_L = np.array([fact["rank"] for fact in facts], dtype=np.float64)
    count_L = np.array([fact["candidates"] for fact in facts], dtype=np.float64)
    score_L = np.array(
        [
            1 - math.log(rank) / math.log(count) if count > 1 else math.nan
            for rank, count in zip(rank_L, count_L, strict=True)
        ]
    )
    first_L = np.where(count_L > 1, (rank_L <= 1).astype(np.float64), math.nan)
    found = {}
    for name, values in rewards.items():
        name = name.removesuffix("_reward")
        reward_L = np.array([math.nan if value is None else value for value in values], dtype=np.float64)
        recall_L = first_L if name == RETRIEVAL else score_L
        known_L = np.isfinite(reward_L) & np.isfinite(recall_L)
        pair = np.stack([reward_L[known_L], recall_L[known_L]])
        if pair.shape[1] > 1 and (np.ptp(pair, axis=1) > 1e-9).all():
            found[name] = float(np.corrcoef(pair)[0, 1])
    return found
