"""Routing of tokens, and its statistics: loads, gates, the load-balancing loss, weights of objectives.

Shape suffixes: B batch rows, T tokens of a row, N tokens of the whole batch, E experts, F free experts, K free experts of a
token, G guided tokens, L layers that are mixtures, M objectives.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from .configuration_moon import ASPECTS

# For each aspect the indices (G,) of its tokens among the N, and None. In a compiled decoding step, whose graph cannot depend on
# their number: the indices of all tokens, and 1 for a token of the aspect, 0 for any other.
Guided = tuple[tuple[torch.Tensor, torch.Tensor | None], ...]


def find_guided(aspect_ids: torch.Tensor | None, packed_mask_BT: torch.Tensor | None = None) -> Guided | None:
    """Return the tokens of a pass that have an aspect.

    Args:
        aspect_ids: (B, T) int64: 0 for a token without an aspect, else the number of the aspect.
        packed_mask_BT: if the tokens are packed, the mask of the attended ones.

    Returns:
        The tokens of each aspect; None if no token has an aspect.
    """
    if aspect_ids is None:
        return None
    aspect_N = aspect_ids.reshape(-1) if packed_mask_BT is None else aspect_ids[packed_mask_BT.bool()]
    numbers = range(1, len(ASPECTS) + 1)
    if torch.compiler.is_compiling() and aspect_ids.shape[-1] == 1:
        every_N = torch.arange(aspect_N.shape[0], device=aspect_N.device)
        return tuple((every_N, (aspect_N == number).float()) for number in numbers)
    tokens = tuple((aspect_N == number).nonzero()[:, 0] for number in numbers)
    return tuple((token_G, None) for token_G in tokens) if any(len(token_G) for token_G in tokens) else None


class Routing(NamedTuple):
    """Routing of the tokens in one mixture: chosen free experts (N, K) int64 and their weights (N, K) float32, the gate
    (N, E) float32 before the choice, and for each aspect its expert, tokens (G,) and weights (G,)."""

    index_NK: torch.Tensor
    weight_NK: torch.Tensor
    gate_NE: torch.Tensor
    of_aspects: list[tuple[int, torch.Tensor, torch.Tensor]]


def routing_statistics(
    trace: list[Routing], attended_BT: torch.Tensor, packed: bool, num_free: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return loads, gates and the load-balancing loss of a forward pass.

    Args:
        trace: the routing of each mixture layer.
        attended_BT: bool, the tokens that count.
        packed: whether the trace contains the attended tokens only.
        num_free: F, the number of free experts, which come first.

    Returns:
        expert_load (L, E), expert_gates (B, L, E) and router_loss, as in `MoonOutput`.
    """
    row_N = attended_BT.nonzero()[:, 0]
    chosen_N = torch.ones_like(row_N, dtype=torch.bool) if packed else attended_BT.reshape(-1)
    tokens_B1 = attended_BT.sum(dim=1, keepdim=True).clamp(min=1)
    loads, gates, losses = [], [], []
    for routing in trace:
        used_NE = torch.zeros_like(routing.gate_NE).scatter(1, routing.index_NK, 1.0)
        kept_NE = torch.zeros_like(routing.gate_NE).scatter(1, routing.index_NK, routing.weight_NK)
        for expert, token_G, weight_G in routing.of_aspects:
            places = token_G, torch.full_like(token_G, expert)
            used_NE = used_NE.index_put(places, (weight_G > 0).to(used_NE.dtype))
            kept_NE = kept_NE.index_put(places, weight_G.to(kept_NE.dtype))
        used_NE, kept_NE, gate_NE = used_NE[chosen_N], kept_NE[chosen_N], routing.gate_NE[chosen_N]
        loads.append(used_NE.mean(dim=0))
        gates.append(kept_NE.new_zeros(len(attended_BT), kept_NE.shape[1]).index_add(0, row_N, kept_NE) / tokens_B1)
        losses.append(load_balancing_loss(gate_NE, used_NE, num_free))
    return torch.stack(loads), torch.stack(gates, dim=1), torch.stack(losses).mean()


def load_balancing_loss(gate_NE: torch.Tensor, used_NE: torch.Tensor, num_free: int) -> torch.Tensor:
    r"""Return L_aux of one mixture, as in Switch Transformers (arXiv 2101.03961, equation 4): `F Σ_e f_e P_e`, where f_e is the
    share of the chosen slots that went to expert e, and P_e its mean gate. Guided experts are left out, and the gate is
    renormalised over the F free ones. The loss is 1 when all experts are used equally, F when one takes every token.

    Args:
        gate_NE: the gate of each attended token.
        used_NE: 1 where a token uses an expert.
        num_free: F, the number of free experts, in the first columns.
    """
    free_NF = gate_NE[:, :num_free]
    share_F = used_NE[:, :num_free].sum(dim=0) / used_NE[:, :num_free].sum()
    mean_F = (free_NF / free_NF.sum(dim=1, keepdim=True)).mean(dim=0)
    return num_free * (share_F * mean_F).sum()


def objective_weights(
    preference_LEM: torch.Tensor, expert_gates_BLE: torch.Tensor, objective_B: torch.Tensor
) -> torch.Tensor:
    r"""Return ω_m: how strongly the experts that the samples of objective m use prefer m.

    `ω_m = mean over samples b of objective m of Σ_z p_{z,m}·G̃_{z,b}`, `p_{z,m} = softmax_m(W*_z)` (MOON2.0,
    arXiv 2511.12449). G̃ of a sample is the mean over its tokens, and ω the mean over the mixture layers (our design).

    Args:
        preference_LEM: p.
        expert_gates_BLE: G̃.
        objective_B: int64, each sample's objective.

    Returns:
        (M,) float32; 0 for an objective without samples. Fresh preferences give 1/M.
    """
    share_BM = torch.einsum("ble,lem->bm", expert_gates_BLE, preference_LEM) / len(preference_LEM)
    own_B = share_BM.gather(1, objective_B[:, None])[:, 0]
    count_M = torch.bincount(objective_B, minlength=share_BM.shape[1]).clamp(min=1)
    return own_B.new_zeros(share_BM.shape[1]).index_add(0, objective_B, own_B) / count_M
