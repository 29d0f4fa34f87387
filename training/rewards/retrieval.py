"""Reward a rollout whose vector ranks the other side of its pair high.

Shape suffixes: L rollouts, G rollouts of the other side of a pair, K valid negatives of one rollout.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

TIE = 1e-6
"""Cosines of float32 vectors that differ by at most this much are equal up to rounding."""


def retrieval_reward(
    prompts: Sequence[Any],
    completions: Sequence[Any],
    completion_ids: Sequence[Any],
    *,
    positive_similarities: Sequence[Tensor],
    negative_similarities: Sequence[Tensor],
    **columns: Any,
) -> list[float | None]:
    """Reward a good rank: `1 - log(rank) / log(N)`, N = K + 1 candidates; see `ranks`.

    Source: LREM, arXiv 2510.14321: the rank of the true positive among the candidates, which here are those of the
    batch and the queue. Each halving of the rank adds the same reward: from 1000 to 500 as much as from 2 to 1.

    Args:
        prompts, completions, completion_ids: not read; TRL passes them to every reward.
        positive_similarities, negative_similarities: see `ranks`.

    Returns:
        For each rollout, a number in [0, 1], or None without negatives (N = 1): such a rank is always 1, and a reward
        for it would raise the logged mean. The rollouts of a group share N, so either all or none of them have a
        reward.

    Raises:
        ValueError: see `ranks`.
    """
    rank_of_rollout = ranks(positive_similarities, negative_similarities)
    counts = [len(negative_K) + 1 for negative_K in negative_similarities]
    return [
        1.0 - math.log(rank) / math.log(count) if count > 1 else None
        for rank, count in zip(rank_of_rollout, counts, strict=True)
    ]


def ranks(positive_similarities: Sequence[Tensor], negative_similarities: Sequence[Tensor]) -> list[float]:
    """Return the expected rank of each rollout's positive: `1 + #(n > p) + ½ #(n = p)`, p = mean of its similarities.

    Ties count half, as if they were broken at random, so a model whose vectors have collapsed ranks its positives in
    the middle and not first. Similarities that differ by at most `TIE` are ties. Our design (precedent: the mid-ranks
    of Wilcoxon's test).

    Args:
        positive_similarities: cosine of each rollout with the G rollouts of its pair's other side, at least one.
        negative_similarities: cosine of each rollout with its K valid negatives; K may be 0.

    Shapes:
        L tensors (G,) and L tensors (K,), float, on one device → L numbers in [1, K + 1].

    Raises:
        ValueError: the lists differ in length, a tensor is not one-dimensional, a rollout has no positive, or a
            similarity is NaN or infinite.
    """
    check_similarities(positive_similarities, negative_similarities)
    if not positive_similarities:
        return []
    rows = []
    for positive_G, negative_K in zip(positive_similarities, negative_similarities, strict=True):
        gap_K = negative_K.float() - positive_G.float().mean()
        rows.append(1 + (gap_K > TIE).sum() + 0.5 * (gap_K.abs() <= TIE).sum())
    return torch.stack(rows).tolist()


def check_similarities(positive_similarities: Sequence[Tensor], negative_similarities: Sequence[Tensor]) -> None:
    """Raise ValueError for similarities that cannot be compared; see `ranks`."""
    if len(positive_similarities) != len(negative_similarities):
        raise ValueError(
            f"negative_similarities: found {len(negative_similarities)} rows; "
            f"expected {len(positive_similarities)}, as in positive_similarities"
        )
    columns = {"positive_similarities": positive_similarities, "negative_similarities": negative_similarities}
    for name, rows in columns.items():
        for row, values in enumerate(rows):
            if values.dim() != 1:
                raise ValueError(f"{name}[{row}]: found shape {tuple(values.shape)}; expected one dimension")
            if name == "positive_similarities" and not len(values):
                raise ValueError(f"{name}[{row}]: found no similarity; expected at least one")
        # One check for all rows: on a GPU, each transfer to the CPU waits for the device.
        finite = torch.stack([torch.isfinite(values).all() for values in rows]) if len(rows) else torch.ones(1)
        if not finite.all():
            row = int(finite.logical_not().nonzero()[0])
            raise ValueError(f"{name}[{row}]: found NaN or an infinite number; expected cosines")
