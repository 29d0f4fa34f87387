"""InfoNCE: one query against its own product and every other candidate.

Shape suffixes: B queries, C candidates, D embedding width.
"""

import math

import torch
from torch import Tensor, nn

REDUCTIONS = ("mean", "sum", "none")


def info_nce(
    query_BD: Tensor,
    candidate_CD: Tensor,
    target_B: Tensor,
    temperature: float,
    excluded_BC: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Contrastive loss of each query against all candidates that are not excluded.

    `L_b = -q_b·c_t/τ + log Σ_{j not excluded} exp(q_b·c_j/τ)`, with `t = target_B[b]`.

    Source: MOON, arXiv 2508.11999, the training objective; in float32 with a log-sum-exp, so that τ = 0.01 does
    not overflow. Masked false negatives are our design (precedent: Qwen3-VL-Embedding, arXiv 2601.04720).

    Args:
        query_BD: query vectors, usually of length one.
        candidate_CD: the positives, hard negatives, other ranks' items and queued items, usually of length one.
        target_B: the row of `candidate_CD` that answers each query.
        temperature: τ, a positive number without unit.
        excluded_BC: True where a candidate is no valid negative of that query; the target is never excluded.
        reduction: "mean" or "sum" over the queries, or "none".

    Shapes:
        query_BD (B, D) and candidate_CD (C, D), any float dtype; target_B (B,) int64; excluded_BC (B, C) bool.
        Returns a float32 scalar, or (B,) for "none".

    Raises:
        ValueError: the shapes do not fit, there is no query, the temperature is not a positive finite number, a
            target lies outside the candidates, or the reduction is unknown.

    Relations:
        Use `InfoNCELoss` where a trainer wants an object that carries the temperature.
    """
    _check_info_nce(query_BD, candidate_CD, target_B, temperature, excluded_BC)
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction: found {reduction!r}; accepted: {', '.join(REDUCTIONS)}")
    target_B = target_B.to(candidate_CD.device)
    with torch.autocast(device_type=query_BD.device.type, enabled=False):
        logits_BC = query_BD.float() @ candidate_CD.float().T / temperature
        if excluded_BC is not None:
            target_BC = torch.zeros_like(excluded_BC).scatter_(1, target_B[:, None], True)
            logits_BC = logits_BC.masked_fill(excluded_BC & ~target_BC, -math.inf)
        loss_B = torch.logsumexp(logits_BC, dim=1) - logits_BC.gather(1, target_B[:, None]).squeeze(1)
    if reduction == "none":
        return loss_B
    return loss_B.mean() if reduction == "mean" else loss_B.sum()


def _check_info_nce(
    query_BD: Tensor, candidate_CD: Tensor, target_B: Tensor, temperature: float, excluded_BC: Tensor | None
) -> None:
    """Refuse arguments that do not fit together, naming the one that is wrong."""
    if not (isinstance(temperature, int | float) and math.isfinite(temperature) and temperature > 0):
        raise ValueError(f"temperature: found {temperature!r}; accepted: a finite number greater than 0")
    if query_BD.dim() != 2 or candidate_CD.dim() != 2 or query_BD.shape[1] != candidate_CD.shape[1]:
        raise ValueError(
            f"query_BD and candidate_CD: found shapes {tuple(query_BD.shape)} and {tuple(candidate_CD.shape)}; "
            "accepted: (B, D) and (C, D) of one width D"
        )
    if query_BD.shape[0] == 0:
        raise ValueError("query_BD: found no rows; accepted: at least one query")
    if target_B.shape != query_BD.shape[:1] or target_B.dtype != torch.int64:
        raise ValueError(
            f"target_B: found shape {tuple(target_B.shape)}, {target_B.dtype}; accepted: ({query_BD.shape[0]},), int64"
        )
    if int(target_B.min()) < 0 or int(target_B.max()) >= candidate_CD.shape[0]:
        raise ValueError(
            f"target_B: found values from {int(target_B.min())} to {int(target_B.max())}; "
            f"accepted: 0 to {candidate_CD.shape[0] - 1}, rows of candidate_CD"
        )
    expected = (query_BD.shape[0], candidate_CD.shape[0])
    if excluded_BC is not None and (excluded_BC.shape != expected or excluded_BC.dtype != torch.bool):
        raise ValueError(
            f"excluded_BC: found shape {tuple(excluded_BC.shape)}, {excluded_BC.dtype}; accepted: {expected}, bool"
        )


class InfoNCELoss(nn.Module):
    """`info_nce` with its temperature: what a trainer is handed.

    Args:
        temperature: τ of `info_nce`; 0.05 is our choice, the paper gives none.

    Raises:
        ValueError: the temperature is not a positive finite number.

    Relations:
        `info_nce` is the function underneath.
    """

    def __init__(self, temperature: float = 0.05) -> None:
        super().__init__()
        if not (isinstance(temperature, int | float) and math.isfinite(temperature) and temperature > 0):
            raise ValueError(f"temperature: found {temperature!r}; accepted: a finite number greater than 0")
        self.temperature = float(temperature)

    def forward(
        self, query_BD: Tensor, candidate_CD: Tensor, target_B: Tensor, excluded_BC: Tensor | None = None
    ) -> Tensor:
        """Return the mean loss; see `info_nce` for shapes."""
        return info_nce(query_BD, candidate_CD, target_B, self.temperature, excluded_BC)
