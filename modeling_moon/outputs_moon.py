"""Outputs of Moon's models.

Shape suffixes in the descriptions: B batch rows, T tokens of a row, R reasoning tokens, H hidden width, D size of the
vector, d of a prefix, A fusion heads, L layers that are mixtures, E experts.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import Cache
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils import ModelOutput

from .tokens_moon import RawTokens


@dataclass
class MoonOutput(ModelOutput):
    """Output of `MoonModel`.

    Shapes:
        last_hidden_state: (B, T, H).
        embeddings: (B, D) float32, each row of length 1; None if `output_embeddings` is off.
        matryoshka_embeddings: for each of `matryoshka_dims` (B, d) float32, each row of length 1; None without these sizes.
        modality_gates: (B, A, 3) float32, the weight that each head of the fusion gives to (state, image, title); None
            without fusion.
        expert_load: (L, E) float32, the share of attended tokens that used each expert in each mixture layer (a row sums to
            the mean number of active experts); None unless `output_router_stats=True`, like the next two.
        expert_gates: (B, L, E) float32 with gradient, the mean of G̃ over the attended tokens of a row; sums to 1.
        router_loss: scalar float32 with gradient, L_aux, see `load_balancing_loss`.
        past_key_values, hidden_states, attentions: as in the base.
        raw_tokens: the inputs of the fusion, for a later decoding step (`RawTokens`); None without fusion or a cache, and in a
            decoding step.
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
    raw_tokens: RawTokens | None = None


@dataclass
class MoonEmbedding:
    """Output of `MoonModel.embed`; row b belongs to record `kept[b]`.

    Shapes:
        embeddings: (B, D) float32, each row of length 1.
        matryoshka_embeddings: for each of `config.matryoshka_dims` (B, d) float32 of length 1; None without these sizes.
        modality_gates: (B, A, 3) float32, the weight that each head of the fusion gives to (state, image, title); None
            without fusion.
        reasoning: the `Reasoning` that the processor reads in each row, None for a row without one; None with
            reasoning="none".
        reasoning_ids: (B, R) int64, the tokens generated after `<think>`, including `</think>` where it was generated, then
            padding; None unless "generate" or "auto".
        reasoned: (B,) bool, whether reasoning precedes the vector.
        margins: (B,) float32, the margins of the vectors without reasoning (`MarginGate`); None unless "auto".
        input_ids, attention_mask: (B, T'), the whole text that the vector was read from, padded on the left.
        kept, skipped, shortened: as in the processor's batch.
    """

    embeddings: torch.Tensor
    matryoshka_embeddings: tuple[torch.Tensor, ...] | None = None
    modality_gates: torch.Tensor | None = None
    reasoning: list[Any] | None = None
    reasoning_ids: torch.Tensor | None = None
    reasoned: torch.Tensor | None = None
    margins: torch.Tensor | None = None
    input_ids: torch.Tensor | None = None
    attention_mask: torch.Tensor | None = None
    kept: list[int] = field(default_factory=list)
    skipped: list[Any] = field(default_factory=list)
    shortened: list[Any] = field(default_factory=list)


@dataclass
class MoonCausalLMOutput(CausalLMOutputWithPast):
    """Output of `MoonForConditionalGeneration`: as in transformers, with `expert_load`, `expert_gates` and `router_loss` if
    `output_router_stats=True`, and `last_hidden_state`, `embeddings` and `matryoshka_embeddings` if `output_embeddings=True`;
    see `MoonOutput`."""

    expert_load: torch.FloatTensor | None = None
    expert_gates: torch.FloatTensor | None = None
    router_loss: torch.FloatTensor | None = None
    embeddings: torch.FloatTensor | None = None
    matryoshka_embeddings: tuple[torch.FloatTensor, ...] | None = None
    last_hidden_state: torch.FloatTensor | None = None


# Outputs of single layers.
BY_LAYER = ("output_hidden_states", "output_attentions")


def ask_for_layers(config: Any, arguments: dict[str, Any]) -> None:
    """Add the outputs of single layers that the configuration asks for to the arguments of a forward pass.

    Args:
        config: MoonConfig, with `output_hidden_states`, `output_attentions`, and the attention that the text model uses.
        arguments: of the forward pass; changed in place. What they say takes precedence.

    Raises:
        ValueError: attentions of a kernel that does not return them; transformers would return an empty tuple.
    """
    for name in BY_LAYER:
        if arguments.get(name) is None and getattr(config, name):
            arguments[name] = True
    kernel = config.text_config._attn_implementation
    if arguments.get("output_attentions") and kernel not in (None, "eager"):
        raise ValueError(
            f"output_attentions=True: attention {kernel!r} does not return them; expected attn_implementation='eager'"
        )
