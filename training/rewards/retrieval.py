"""How near to the top a rollout's vector finds what it belongs to.

Shape suffixes: L rollouts, G rollouts of the other side of a pair, K valid negatives of one rollout.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

TIE = 1e-6
"""Cosines of float32 vectors that differ by no more than this are equal but for rounding."""


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

    Source: LREM, arXiv 2510.14321: the rank of the true positive among the candidates, here of batch and queue. Each halving
    of the rank is worth the same, so that the way from 1000 to 500 counts as much as that from 2 to 1.

    Args:
        prompts, completions, completion_ids: not read; TRL gives them to every reward.
        positive_similarities, negative_similarities: see `ranks`.

    Returns:
        for each rollout a number in [0, 1], or None where it had nothing to be compared with (N = 1): a rank of 1 among one is no
        merit, and counted as 1 it would lift the logged mean. All rollouts of a pair's side have the same N, so that a group has
        either rewards or none.

    Raises:
        ValueError: see `ranks`.
    """
    found = ranks(positive_similarities, negative_similarities)
    counts = [len(negative_K) + 1 for negative_K in negative_similarities]
    return [
        1.0 - math.log(rank) / math.log(count) if count > 1 else None for rank, count in zip(found, counts, strict=True)
    ]


def ranks(positive_similarities: Sequence[Tensor], negative_similarities: Sequence[Tensor]) -> list[float]:
    """Return the expected rank of each rollout's positive: `1 + #(n > p) + ½ #(n = p)`, p = mean of its similarities.

    Ties count by half, as if they were broken at random, so that a model whose vectors have all become the same ranks in the
    middle and not first. Differences up to `TIE` are ties. Our design (precedent: the mid-ranks of Wilcoxon's test).

    Args:
        positive_similarities: cosine of each rollout with the G rollouts of its pair's other side, at least one.
        negative_similarities: cosine of each rollout with its K valid negatives; K may be 0.

    Shapes:
        L tensors (G,) and L tensors (K,), float, on one device → L numbers in [1, K + 1].

    Raises:
        ValueError: lists of other lengths, a tensor that is not one row, no positive, a similarity that is NaN or infinite.
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
    """Refuse similarities that cannot be compared; see `ranks`."""
    if len(positive_similarities) != len(negative_similarities):
        raise ValueError(
            f"negative_similarities: found {len(negative_similarities)} rows; "
            f"expected {len(positive_similarities)}, as in positive_similarities"
        )
    columns = {"positive_similarities": positive_similarities, "negative_similarities": negative_similarities}
    for name, rows in columns.items():
        for row, values in enumerate(rows):
            if values.dim() != 1:
                raise ValueError(f"{name}[{row}]: found the shape {tuple(values.shape)}; expected one row of numbers")
            if name == "positive_similarities" and not len(values):
                raise ValueError(f"{name}[{row}]: found no similarity; expected at least one")
        # One answer for all rows: on a GPU each question to a tensor waits for the device.
        finite = torch.stack([torch.isfinite(values).all() for values in rows]) if len(rows) else torch.ones(1)
        if not finite.all():
            row = int(finite.logical_not().nonzero()[0])
            raise ValueError(f"{name}[{row}]: found NaN or an infinite number; expected cosines")
