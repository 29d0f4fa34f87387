"""Reward the lead of a rollout's positives over its negatives.

Shape suffixes: L rollouts, G rollouts of the other side of a pair, K valid negatives of one rollout, U = G + K.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from training.rewards.retrieval import TIE, check_similarities


def margin_reward(
    prompts: Sequence[Any],
    completions: Sequence[Any],
    completion_ids: Sequence[Any],
    *,
    positive_similarities: Sequence[Tensor],
    negative_similarities: Sequence[Tensor],
    **columns: Any,
) -> list[float | None]:
    """Reward the gap: `|P ∩ top_G(P ∪ N)| / G · (mean P - mean N)`, P the G positives, N the K negatives.

    Unlike the rank, the gap still differs between rollouts whose rank is 1. Ties at the edge of the top G count by
    their expected share, as if they were broken at random; similarities that differ by at most `TIE` are ties.

    Source: UME-R1, arXiv 2511.00405, the product of ranking and similarity gap; the treatment of ties is our design. As
    published, a rollout with no positive in the top G gets 0, while one with some of them and a negative gap gets less.

    Args:
        prompts, completions, completion_ids: not read; TRL passes them to every reward.
        positive_similarities: cosine of each rollout with the G rollouts of its pair's other side, at least one.
        negative_similarities: cosine of each rollout with its K valid negatives.

    Returns:
        For each rollout, a number in [-2, 2], or None without negatives; see `retrieval_reward`.

    Shapes:
        L tensors (G,) and L tensors (K,), float, on one device → L numbers.

    Raises:
        ValueError: see `training.rewards.retrieval.ranks`.
    """
    check_similarities(positive_similarities, negative_similarities)
    pairs = list(zip(positive_similarities, negative_similarities, strict=True))
    rows = [_margin(positive_G.float(), negative_K.float()) for positive_G, negative_K in pairs if len(negative_K)]
    values = iter(torch.stack(rows).tolist() if rows else [])
    return [next(values) if len(negative_K) else None for _, negative_K in pairs]


def _margin(positive_G: Tensor, negative_K: Tensor) -> Tensor:
    count = len(positive_G)
    all_U = torch.cat([positive_G, negative_K])
    edge = all_U.topk(count).values[-1]
    above_U, tied_U = all_U > edge + TIE, (all_U - edge).abs() <= TIE
    places = count - above_U.sum()  # places in the top G that remain for the ties at its edge
    expected = above_U[:count].sum() + places * tied_U[:count].sum() / tied_U.sum()
    gap = (positive_G.mean() - negative_K.mean()).clamp(-2, 2)  # cosines may leave [-1, 1] by rounding
    return expected / count * gap
