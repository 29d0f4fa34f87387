"""What Moon's models return.

Shape suffixes in the descriptions: B batch rows, T tokens of a row, H hidden width, D size of the vector, d of a prefix,
A fusion heads, L layers that are mixtures, E experts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import Cache
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils import ModelOutput


@dataclass
class MoonOutput(ModelOutput):
    """Output of `MoonModel`.

    Shapes:
        last_hidden_state: (B, T, H).
        embeddings: (B, D) float32, each row of length 1; None where not asked for.
        matryoshka_embeddings: for each of `matryoshka_dims` (B, d) float32, each row of length 1; None without them.
        modality_gates: (B, A, 3) float32, how much each head of the fusion took from (itself, image, title); None without.
        expert_load: (L, E) float32, the share of attended tokens that used each expert in each mixture layer (a row sums to
            the mean number of active experts); None unless `output_router_stats=True`, as the two that follow.
        expert_gates: (B, L, E) float32 with gradient, the mean of G̃ over the attended tokens of a row; sums to 1.
        router_loss: scalar float32 with gradient, L_aux, see `load_balancing_loss`.
        past_key_values, hidden_states, attentions: as in the base.
    """

    last_hidden_state: torch.FloatTensor | None = None
    embeddings: torch.FloatTensor | None = None
    matryoshka_embeddings: tuple[torch.FloatTensor, ...] | None = None
    modality_gates: torch.FloatTensor | None = None
    expert_load: torch.FloatTensor | None = None
    expert_gates: torch.FloatTensor | None = None
    router_loss: torch.FloatTensor | None = None
    past_key_values: Cache | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None


@dataclass
class MoonCausalLMOutput(CausalLMOutputWithPast):
    """As the library's, with `expert_load` and `router_loss` where `output_router_stats=True`, and `embeddings` and
    `matryoshka_embeddings` where `output_embeddings=True`; see `MoonOutput`."""

    expert_load: torch.FloatTensor | None = None
    router_loss: torch.FloatTensor | None = None
    embeddings: torch.FloatTensor | None = None
    matryoshka_embeddings: tuple[torch.FloatTensor, ...] | None = None


# Outputs of single layers.
BY_LAYER = ("output_hidden_states", "output_attentions")


def ask_for_layers(config: Any, arguments: dict[str, Any]) -> None:
    """Let the configuration say which outputs of single layers a forward pass gives, where its arguments do not.

    Args:
        config: MoonConfig, with `output_hidden_states`, `output_attentions`, and the attention that the text model uses.
        arguments: of the forward pass; changed.

    Raises:
        ValueError: attentions of a kernel that computes none; the library would return an empty tuple.
    """
    for name in BY_LAYER:
        if arguments.get(name) is None and getattr(config, name):
            arguments[name] = True
    kernel = config.text_config._attn_implementation
    if arguments.get("output_attentions") and kernel not in (None, "eager"):
        raise ValueError(
            f"output_attentions=True: attention {kernel!r} gives none; expected attn_implementation='eager'"
        )
