"""Multi-head modality fusion (MOON3.0): mix the state that is read with the image tokens and the title tokens.

Shape suffixes: B batch rows, T tokens of a row, H hidden width, A fusion heads.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .configuration_moon import MoonConfig
from .tokens_moon import RawTokens, input_dtype, mean_of


def eager_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    **unread: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the attention that the kernels of transformers compute, and its weights, as two matrix products.

    Shapes: query (B, A, 1, width of a head), key and value (B, A, T, width), mask (B, 1, 1, T), added to the scores ->
    (B, 1, A, width), (B, A, 1, T).
    """
    scores = query @ key.transpose(2, 3) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = scores.softmax(dim=-1, dtype=torch.float32).to(query.dtype)
    return (weights @ value).transpose(1, 2).contiguous(), weights


class MoonZeroLinear(nn.Linear):
    """A linear map that starts at zero and therefore adds nothing at first."""


class MoonFusion(nn.Module):
    r"""Multi-head modality fusion of the state that is read with the image and title tokens of the input.

    `c_{h,m} = Attn(q_h, K_m, V_m)` for the sets m of image and of title tokens; `c_{h,self}` is the value projection of the
    state; `g_{h,·} = softmax_m(MLP([state; mean image; mean title]))` with a missing modality masked out;
    `z = state + W_o · concat_h Σ_m g_{h,m} c_{h,m}`. W_o starts at zero, so z equals the state at first. MOON3.0
    (arXiv 2604.00513) gives the part; the form is our design (precedents: the gates of TGQ-Former, arXiv 2605.17366, and
    Q-Former). Keys and values are shared by the two sets.

    `config.fusion_source` chooses the tokens: "states", their last hidden states, in which a title has already read the
    picture before it; or "raw", the inputs of the text model: the vision tower's merged features and the embeddings of the
    title's tokens. Raw tokens pass through a layer norm first, because the two kinds differ in scale (our design; as FIRE does
    with its details).

    Args:
        config: MoonConfig.

    Shapes: state (B, H), raw tokens -> z (B, H), gates (B, A, 3) float32 for (self, image, title), which sum to 1.
    """

    def __init__(self, config: MoonConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.config = config.text_config
        self.num_heads, self.head_dim = config.fusion_heads, width // config.fusion_heads
        self.scaling = self.head_dim**-0.5
        # The attention kernels of transformers read these from a module.
        self.num_key_value_groups, self.is_causal = 1, False
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, width, bias=False)
        self.v_proj = nn.Linear(width, width, bias=False)
        self.o_proj = MoonZeroLinear(width, width, bias=False)
        self.raw_norm = nn.LayerNorm(width) if config.fusion_source == "raw" else None
        self.gate_in = nn.Linear(3 * width, width // 2, bias=False)
        self.gate_out = nn.Linear(width // 2, 3 * self.num_heads, bias=False)

    def _heads(self, projected: torch.Tensor) -> torch.Tensor:
        return projected.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)

    def _attend(
        self,
        query_BA1: torch.Tensor,
        key_BAT: torch.Tensor,
        value_BAT: torch.Tensor,
        raw: RawTokens,
        set_BT: torch.Tensor,
    ) -> torch.Tensor:
        """Return c (B, A, width of a head) over one set. A row without tokens of the set attends to its first token, to which
        the gate gives no weight."""
        empty_B1 = ~set_BT.any(dim=1, keepdim=True)
        first_T = torch.arange(set_BT.shape[1], device=set_BT.device) == 0
        set_BT = set_BT | (empty_B1 & first_T)
        mask = create_bidirectional_mask(
            config=self.config,
            inputs_embeds=raw.states_BTH[:, :1],
            attention_mask=set_BT,
            encoder_hidden_states=raw.states_BTH,
        )
        attention: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention)
        return attention(self, query_BA1, key_BAT, value_BAT, mask, dropout=0.0, scaling=self.scaling)[0][:, 0]

    def forward(self, state_BH: torch.Tensor, raw: RawTokens) -> tuple[torch.Tensor, torch.Tensor]:
        state_B1H = state_BH[:, None].to(input_dtype(self.q_proj, raw.states_BTH))
        tokens_BTH = raw.states_BTH.to(state_B1H.dtype)
        if self.raw_norm is not None:
            tokens_BTH = self.raw_norm(tokens_BTH)
        query_BA1, own_BA = self._heads(self.q_proj(state_B1H)), self._heads(self.v_proj(state_B1H))[:, :, 0]
        key_BAT, value_BAT = self._heads(self.k_proj(tokens_BTH)), self._heads(self.v_proj(tokens_BTH))
        contexts, means, present = [own_BA], [state_B1H[:, 0]], [torch.ones_like(raw.is_image_BT[:, 0])]
        for set_BT in (raw.is_image_BT, raw.is_title_BT):
            contexts.append(self._attend(query_BA1, key_BAT, value_BAT, raw, set_BT))
            means.append(mean_of(tokens_BTH, set_BT).to(state_B1H.dtype))
            present.append(set_BT.any(dim=1))
        scores = self.gate_out(functional.gelu(self.gate_in(torch.cat(means, dim=-1))))
        scores_BA3 = scores.unflatten(-1, (self.num_heads, 3)).float()
        absent_B13 = ~torch.stack(present, dim=-1)[:, None]
        gates_BA3 = scores_BA3.masked_fill(absent_B13, -torch.inf).softmax(dim=-1)
        mixed_BH = torch.einsum("bam,mbad->bad", gates_BA3.to(state_B1H.dtype), torch.stack(contexts)).flatten(1)
        return state_BH + self.o_proj(mixed_BH).to(state_BH.dtype), gates_BA3
