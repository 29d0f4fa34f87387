"""What the router decided, and what is made of it: loads, gates, the load-balancing loss, weights of objectives.

Shape suffixes: B batch rows, T tokens of a row, N tokens of the whole batch, E experts, F free experts, K free experts of a
token, G guided tokens, L layers that are mixtures, M objectives.
"""

from __future__ import annotations

from typing import NamedTuple

import torch


class Guided(NamedTuple):
    """The tokens of a batch that have an aspect: their places (G,) among the N, and the expert (G,) of each."""

    token_G: torch.Tensor
    expert_G: torch.Tensor


def find_guided(aspect_ids: torch.Tensor | None, packed_mask_BT: torch.Tensor | None, num_free: int) -> Guided | None:
    """The guided tokens of a pass; None where there is none.

    Args:
        aspect_ids: (B, T) int64: 0 none, n > 0 the n-th expert after the free ones.
        packed_mask_BT: where the tokens are packed, those that remain.
        num_free: F.
    """
    if aspect_ids is None:
        return None
    aspect_N = aspect_ids.reshape(-1) if packed_mask_BT is None else aspect_ids[packed_mask_BT.bool()]
    token_G = aspect_N.nonzero()[:, 0]
    return Guided(token_G, num_free - 1 + aspect_N[token_G]) if len(token_G) else None


class Routing(NamedTuple):
    """Where the tokens of one mixture went: chosen free experts (N, K) int64 and their weights (N, K) float32, the gate
    (N, E) float32 before anything was chosen, and the guided tokens with their weights (G,)."""

    index_NK: torch.Tensor
    weight_NK: torch.Tensor
    gate_NE: torch.Tensor
    guided: Guided | None
    guided_weight_G: torch.Tensor | None


def routing_statistics(
    trace: list[Routing], attended_BT: torch.Tensor, packed: bool, num_free: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Loads, gates and loss of a forward pass.

    Args:
        trace: where the tokens went in each mixture layer.
        attended_BT: bool, the tokens that count.
        packed: whether the trace holds the attended tokens only.
        num_free: F, the first experts, which are not guided.

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
        if routing.guided is not None:
            places = routing.guided.token_G, routing.guided.expert_G
            used_NE = used_NE.index_put(places, torch.ones_like(used_NE[places]))
            kept_NE = kept_NE.index_put(places, routing.guided_weight_G.to(kept_NE.dtype))
        used_NE, kept_NE, gate_NE = used_NE[chosen_N], kept_NE[chosen_N], routing.gate_NE[chosen_N]
        loads.append(used_NE.mean(dim=0))
        gates.append(kept_NE.new_zeros(len(attended_BT), kept_NE.shape[1]).index_add(0, row_N, kept_NE) / tokens_B1)
        losses.append(load_balancing_loss(gate_NE, used_NE, num_free))
    return torch.stack(loads), torch.stack(gates, dim=1), torch.stack(losses).mean()


def load_balancing_loss(gate_NE: torch.Tensor, used_NE: torch.Tensor, num_free: int) -> torch.Tensor:
    r"""L_aux of one mixture, as in Switch Transformers (arXiv 2101.03961, equation 4): `F Σ_e f_e P_e`, f_e the share of
    the chosen slots that fell to expert e, P_e its mean gate. Guided experts are left out, and the gate is renormalised
    over the F free ones. 1 when all are used alike, F when one takes everything.

    Args:
        gate_NE: the gate of each attended token.
        used_NE: 1 where a token uses an expert.
        num_free: F, the first columns.
    """
    free_NF = gate_NE[:, :num_free]
    share_F = used_NE[:, :num_free].sum(dim=0) / used_NE[:, :num_free].sum()
    mean_F = (free_NF / free_NF.sum(dim=1, keepdim=True)).mean(dim=0)
    return num_free * (share_F * mean_F).sum()


def objective_weights(
    preference_LEM: torch.Tensor, expert_gates_BLE: torch.Tensor, objective_B: torch.Tensor
) -> torch.Tensor:
    r"""ω_m: how much of the experts that the samples of objective m used is meant for m.

    `ω_m = mean over samples b of objective m of Σ_z p_{z,m}·G̃_{z,b}`, `p_{z,m} = softmax_m(W*_z)` (MOON2.0,
    arXiv 2511.12449). G̃ of a sample is the mean over its tokens, and ω the mean over the mixture layers (our design).

    Args:
        preference_LEM: p.
        expert_gates_BLE: G̃.
        objective_B: int64, each sample's objective.

    Returns:
        (M,) float32; 0 for an objective without a sample. Fresh preferences give 1/M.
    """
    share_BM = torch.einsum("ble,lem->bm", expert_gates_BLE, preference_LEM) / len(preference_LEM)
    own_B = share_BM.gather(1, objective_B[:, None])[:, 0]
    count_M = torch.bincount(objective_B, minlength=share_BM.shape[1]).clamp(min=1)
    return own_B.new_zeros(share_BM.shape[1]).index_add(0, objective_B, own_B) / count_M
