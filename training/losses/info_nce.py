"""InfoNCE: compare each query with its products and with all other candidates, at once or in blocks of candidates.

Shape suffixes: B queries, C candidates, D embedding width, P positives of a query (padded with -1), N (query, positive)
pairs, K candidates of one block.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

REDUCTIONS = ("mean", "sum", "none")
NO_TARGET = -1

Exclusion = Callable[[int, Tensor, Tensor], Tensor]
"""(first candidate of a block, similarity_BK, similarity_B of the positive) → (B, K) bool: True is not a negative."""


def info_nce(
    query_BD: Tensor,
    candidate_CD: Tensor,
    target_B: Tensor,
    temperature: float,
    excluded_BC: Tensor | Exclusion | None = None,
    reduction: str = "mean",
    weight_B: Tensor | None = None,
) -> Tensor:
    """Compute the contrastive loss of each query.

    Each positive is compared with all candidates that are neither positives of the query nor excluded:

    `L_b = mean_{p ∈ P_b} w_bp · ( -s_bp + log( e^{s_bp} + Σ_{n ∉ P_b, n not excluded} e^{s_bn} ) )`,
    `s_bj = q_b·c_j/τ`, computed as `softplus(log Σ_n e^{s_bn} - s_bp)`.

    Source: MOON, arXiv 2508.11999 §3.2, the training objective (one positive, w = 1); in float32 or wider with a
    log-sum-exp, so τ = 0.01 does not overflow. Several positives follow the "out" form of supervised contrastive
    learning, arXiv 2004.11362, but without the other positives in the denominator. Weights are our design: a click
    counts less than a purchase, and a triplet with little trust counts less. Excluded false negatives are our design
    (precedent: Qwen3-VL-Embedding, arXiv 2601.04720).

    Args:
        query_BD: query vectors, usually of length one.
        candidate_CD: vectors of the positives, the hard negatives, the products of other processes and those of the
            queue, usually of length one.
        target_B: the index in `candidate_CD` of each query's positive, or of all its positives, padded with -1; see
            `target_lists`.
        temperature: τ, a positive number without a unit.
        excluded_BC: True for a candidate that is not a valid negative of the query, or an `Exclusion` that computes
            this. A positive is never excluded.
        reduction: "mean" or "sum" over the queries, or "none".
        weight_B: w of each (query, positive) pair, with the shape of `target_B`, without a unit; None: 1.

    Shapes:
        query_BD (B, D) and candidate_CD (C, D), any float dtype; target_B (B,) or (B, P) int64; weight_B as target_B,
        float; excluded_BC (B, C) bool. Returns a scalar, or (B,) for "none", float32 (float64 where the inputs are).

    Raises:
        ValueError: the shapes do not match, the batch is empty, the temperature is not a positive finite number, a
            target is not the index of a candidate, a query has no target, or the reduction is unknown.

    Relations:
        Use `InfoNCELoss` for a module that holds the temperature, and `streamed_info_nce` if (B, C) does not fit into
        memory.
    """
    if isinstance(excluded_BC, Tensor):
        _check_excluded(excluded_BC, len(query_BD), len(candidate_CD))
    pairs = _Pairs(query_BD, candidate_CD, target_B, weight_B, temperature)
    with torch.autocast(device_type=query_BD.device.type, enabled=False):
        wide = _wide(query_BD)
        similarity_BC = query_BD.to(wide) @ candidate_CD.to(wide).T
        own_N = similarity_BC[pairs.row_N, pairs.column_N]
        no_negative_BC = pairs.no_negatives(0, similarity_BC.detach(), own_N.detach(), excluded_BC)
        rest_B = (similarity_BC / temperature).masked_fill(no_negative_BC, -math.inf).logsumexp(dim=1)
        return _reduced(pairs.losses(rest_B, own_N / temperature), reduction)


def streamed_info_nce(
    query_BD: Tensor,
    candidates: Tensor | Sequence[Tensor],
    target_B: Tensor,
    temperature: float,
    excluded: Tensor | Exclusion | None = None,
    reduction: str = "mean",
    weight_B: Tensor | None = None,
    block_size: int = 4096,
) -> Tensor:
    """Compute `info_nce` in blocks of candidates, so that its memory does not grow with B · C.

    The forward pass keeps a running log-sum-exp over the blocks. The backward pass computes the scores of each block
    again: `∂ log Σ_n e^{s_bn} / ∂s_bn = e^{s_bn - log Σ}`. The gradient is exact for queries and candidates.

    Source: the online softmax of FlashAttention, arXiv 2205.14135, applied to the loss as in Inf-CL, arXiv 2410.17243.

    Args:
        query_BD, target_B, temperature, reduction, weight_B: as in `info_nce`.
        candidates: as `candidate_CD`, or several such tensors, which are treated as their concatenation. A tensor
            without gradient (a queue) is then neither copied nor differentiated. All targets are in the first tensor.
        excluded: as in `info_nce`. An `Exclusion` is called for each block, so no (B, C) mask is stored.
        block_size: K, the number of candidates that are compared at a time.

    Raises:
        ValueError: as `info_nce`; block_size below 1; no candidates.
    """
    segments = [candidates] if isinstance(candidates, Tensor) else list(candidates)
    if not segments or block_size < 1:
        raise ValueError(f"candidates, block_size: found {len(segments)} tensors, {block_size}; expected 1 or more")
    for segment in segments[1:]:
        _check_widths(query_BD, segment)
    if isinstance(excluded, Tensor):
        _check_excluded(excluded, len(query_BD), sum(len(segment) for segment in segments))
    pairs = _Pairs(query_BD, segments[0], target_B, weight_B, temperature)
    with torch.autocast(device_type=query_BD.device.type, enabled=False):
        wide = _wide(query_BD)
        query_BD, segments = query_BD.to(wide), [segment.to(wide) for segment in segments]
        own_N = (query_BD[pairs.row_N] * segments[0][pairs.column_N]).sum(dim=1)
        blocks = _Blocks(pairs, own_N.detach(), excluded, temperature, block_size)
        rest_B = _StreamedLogSumExp.apply(blocks, query_BD, *segments)
        return _reduced(pairs.losses(rest_B, own_N / temperature), reduction)


def target_lists(positive_BC: Tensor) -> Tensor:
    """Return the indices of the positives of each query, from a mask.

    Args:
        positive_BC: True for a candidate that answers the query.

    Shapes:
        (B, C) bool → (B, P) int64, padded with -1, P the largest number of positives.
    """
    count_B = positive_BC.sum(dim=1)
    width = int(count_B.max()) if len(count_B) else 0
    first_BP = (~positive_BC).to(torch.uint8).argsort(dim=1, stable=True)[:, :width]
    return first_BP.masked_fill(torch.arange(width, device=first_BP.device) >= count_B[:, None], NO_TARGET)


class _Pairs:
    """The (query, positive) pairs of a batch, checked and flattened."""

    def __init__(
        self, query_BD: Tensor, candidate_CD: Tensor, target_B: Tensor, weight_B: Tensor | None, temperature: float
    ) -> None:
        _check_info_nce(query_BD, candidate_CD, target_B, weight_B, temperature)
        target_BP = target_B.to(query_BD.device).reshape(len(query_BD), -1)
        real_BP = target_BP != NO_TARGET
        self.rows = len(query_BD)
        if target_B.dim() == 1:
            self.row_N, self.column_N = torch.arange(self.rows, device=query_BD.device), target_BP[:, 0]
        else:
            self.row_N, column = real_BP.nonzero(as_tuple=True)
            self.column_N = target_BP[self.row_N, column]
        share_BP = real_BP / real_BP.sum(dim=1, keepdim=True)
        if weight_B is not None:
            share_BP = share_BP * weight_B.to(query_BD.device).reshape(self.rows, -1)
        self.weight_N = share_BP[real_BP].to(_wide(query_BD))

    def no_negatives(
        self, start: int, similarity_BK: Tensor, own_N: Tensor, excluded: Tensor | Exclusion | None
    ) -> Tensor:
        """Return for each candidate of a block whether it is a positive or excluded."""
        stop = start + similarity_BK.shape[1]
        here_N = (self.column_N >= start) & (self.column_N < stop)
        positive_BK = torch.zeros_like(similarity_BK, dtype=torch.bool)
        positive_BK[self.row_N[here_N], self.column_N[here_N] - start] = True
        if excluded is None:
            return positive_BK
        if isinstance(excluded, Tensor):
            return positive_BK | excluded[:, start:stop].to(positive_BK.device)
        best_B = own_N.new_full((self.rows,), -math.inf).scatter_reduce(0, self.row_N, own_N, "amax")
        return positive_BK | excluded(start, similarity_BK, best_B)

    def losses(self, rest_B: Tensor, score_N: Tensor) -> Tensor:
        """Return the weighted mean of softplus(log of the negatives' sum - score) over each query's positives."""
        loss_N = self.weight_N * functional.softplus(rest_B[self.row_N] - score_N)
        return rest_B.new_zeros(self.rows).index_add(0, self.row_N, loss_N)


class _Blocks:
    """The scores of the negatives, block by block. Positives and excluded candidates score -inf."""

    def __init__(
        self,
        pairs: _Pairs,
        own_N: Tensor,
        excluded: Tensor | Exclusion | None,
        temperature: float,
        block_size: int,
    ) -> None:
        self.pairs, self.own_N, self.excluded = pairs, own_N, excluded
        self.temperature, self.block_size = temperature, block_size

    def over(self, query_BD: Tensor, segments: Sequence[Tensor]) -> Any:
        """Yield (index of the segment, slice of the segment, score_BK) for each block."""
        start = 0
        for number, segment in enumerate(segments):
            for first in range(0, len(segment), self.block_size):
                part = slice(first, min(first + self.block_size, len(segment)))
                similarity_BK = query_BD @ segment[part].T
                no_negative_BK = self.pairs.no_negatives(start + first, similarity_BK, self.own_N, self.excluded)
                yield number, part, similarity_BK.div_(self.temperature).masked_fill_(no_negative_BK, -math.inf)
            start += len(segment)


class _StreamedLogSumExp(torch.autograd.Function):
    """log Σ e^{score} over all blocks, (B,). A query without negatives has -inf and no gradient."""

    @staticmethod
    def forward(ctx: Any, blocks: _Blocks, query_BD: Tensor, *segments: Tensor) -> Tensor:
        total_B = query_BD.new_full((len(query_BD),), -math.inf)
        for _, _, score_BK in blocks.over(query_BD, segments):
            total_B = torch.logaddexp(total_B, score_BK.logsumexp(dim=1))
        ctx.blocks = blocks
        ctx.save_for_backward(query_BD, total_B, *segments)
        return total_B

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_B: Tensor) -> tuple[Tensor | None, ...]:
        query_BD, total_B, *segments = ctx.saved_tensors
        wanted = ctx.needs_input_grad[2:]
        query_gradient_BD = torch.zeros_like(query_BD)
        gradients = [torch.zeros_like(part) if want else None for part, want in zip(segments, wanted, strict=True)]
        scale_B1 = (gradient_B / ctx.blocks.temperature)[:, None]
        total_B1 = total_B.masked_fill(total_B.isinf(), 0.0)[:, None]  # a row of -inf scores: its shares are 0
        with torch.autocast(device_type=query_BD.device.type, enabled=False):
            for number, part, score_BK in ctx.blocks.over(query_BD, segments):
                share_BK = score_BK.sub_(total_B1).exp_().mul_(scale_B1)
                query_gradient_BD += share_BK @ segments[number][part]
                if wanted[number]:
                    gradients[number][part] += share_BK.T @ query_BD
        return None, query_gradient_BD, *gradients


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def _reduced(loss_B: Tensor, reduction: str) -> Tensor:
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction: found {reduction!r}; expected one of {', '.join(REDUCTIONS)}")
    if reduction == "none":
        return loss_B
    return loss_B.mean() if reduction == "mean" else loss_B.sum()


def _check_widths(query_BD: Tensor, candidate_CD: Tensor) -> None:
    if query_BD.dim() != 2 or candidate_CD.dim() != 2 or query_BD.shape[1] != candidate_CD.shape[1]:
        raise ValueError(
            f"query_BD and candidate_CD: found shapes {tuple(query_BD.shape)} and {tuple(candidate_CD.shape)}; "
            "expected (B, D) and (C, D) with the same width D"
        )


def _check_info_nce(
    query_BD: Tensor, candidate_CD: Tensor, target_B: Tensor, weight_B: Tensor | None, temperature: float
) -> None:
    """Raise ValueError for arguments that do not fit together; the message names the wrong argument."""
    check_temperature(temperature)
    _check_widths(query_BD, candidate_CD)
    if query_BD.shape[0] == 0:
        raise ValueError("query_BD: found no rows; expected at least one query")
    fits = target_B.dim() in (1, 2) and target_B.shape[0] == query_BD.shape[0]
    if not fits or target_B.dtype != torch.int64:
        raise ValueError(
            f"target_B: found shape {tuple(target_B.shape)}, {target_B.dtype}; expected ({query_BD.shape[0]},) or "
            f"({query_BD.shape[0]}, P), int64"
        )
    least = NO_TARGET if target_B.dim() == 2 else 0
    low, high = (int(target_B.min()), int(target_B.max())) if target_B.numel() else (least, -1)
    if low < least or high >= candidate_CD.shape[0]:
        raise ValueError(
            f"target_B: found values from {low} to {high}; "
            f"expected 0 to {candidate_CD.shape[0] - 1}, rows of candidate_CD"
        )
    if target_B.dim() == 2 and not bool((target_B != NO_TARGET).any(dim=1).all()):
        lacking = (target_B == NO_TARGET).all(dim=1).nonzero()[:, 0].tolist()
        raise ValueError(f"target_B: found no positive for queries {lacking}; expected at least one for each query")
    if weight_B is not None and weight_B.shape != target_B.shape:
        raise ValueError(f"weight_B: found shape {tuple(weight_B.shape)}; expected {tuple(target_B.shape)}")


def _check_excluded(excluded_BC: Tensor, queries: int, candidates: int) -> None:
    expected = (queries, candidates)
    if excluded_BC.shape != expected or excluded_BC.dtype != torch.bool:
        raise ValueError(
            f"excluded_BC: found shape {tuple(excluded_BC.shape)}, {excluded_BC.dtype}; expected {expected}, bool"
        )


def check_temperature(temperature: float) -> None:
    """Raise ValueError for a temperature that is not a positive finite number."""
    if not (isinstance(temperature, int | float) and math.isfinite(temperature) and temperature > 0):
        raise ValueError(f"temperature: found {temperature!r}; expected a finite number greater than 0")


class InfoNCELoss(nn.Module):
    """`info_nce` as a module that holds the temperature.

    Args:
        temperature: τ of `info_nce`. 0.05 is our choice; the paper does not publish its value.
        block_size: the number of candidates that are compared at a time, as in `streamed_info_nce`. None: all at once.

    Raises:
        ValueError: the temperature is not a positive finite number, or the block size is below 1.

    Relations:
        It calls `info_nce` or `streamed_info_nce`. `MatryoshkaLoss` applies it at several widths.
    """

    def __init__(self, temperature: float = 0.05, block_size: int | None = None) -> None:
        super().__init__()
        check_temperature(temperature)
        if block_size is not None and block_size < 1:
            raise ValueError(f"block_size: found {block_size}; expected 1 or more, or None")
        self.temperature = float(temperature)
        self.block_size = block_size

    def forward(
        self,
        query_BD: Tensor,
        candidates: Tensor | Sequence[Tensor],
        target_B: Tensor,
        excluded: Tensor | Exclusion | None = None,
        weight_B: Tensor | None = None,
        reduction: str = "mean",
    ) -> Tensor:
        """Return the loss; see `streamed_info_nce` for arguments and shapes."""
        if self.block_size is not None:
            return streamed_info_nce(
                query_BD, candidates, target_B, self.temperature, excluded, reduction, weight_B, self.block_size
            )
        if not isinstance(candidates, Tensor):
            wide = _wide(query_BD)
            candidates = torch.cat([part.to(wide) for part in candidates]) if len(candidates) > 1 else candidates[0]
        return info_nce(query_BD, candidates, target_B, self.temperature, excluded, reduction, weight_B)
