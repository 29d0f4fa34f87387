"""The architecture of Moon, top to bottom: experts, mixtures, FIRE, decoder layers, text models, fusion, MoonModel, generation.

A Moon model *contains* a vision-language base (Qwen3-VL or Qwen2.5-VL) and replaces its text model with one whose decoder
layers call our mixtures of experts. The vision tower, the attention layers and the position encoding are the base's own code.

Shape suffixes: B batch rows, T tokens of a row, N tokens of the whole batch (B·T), H hidden width, I width of one expert,
D size of the vector, E experts, F free experts, K active slots of a token, L layers that are mixtures, M objectives,
P image tokens of the whole batch, V levels of visual detail, R width of a low-rank network, A fusion heads.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from transformers import AutoModel, Cache, PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.integrations.moe import use_experts_implementation
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import (
    Qwen2_5_VLDecoderLayer,
    Qwen2_5_VLTextModel,
    Qwen2_5_VLVisionBlock,
)
from transformers.models.qwen3_vl.modeling_qwen3_vl import (
    Qwen3VLTextDecoderLayer,
    Qwen3VLTextModel,
    Qwen3VLVisionBlock,
)
from transformers.utils import can_return_tuple

from .configuration_moon import MoonConfig
from .copying_moon import MoonCopyingMixin
from .embedding_moon import embed_records
from .fire_moon import Details, KeptBlock, MoonDetailMerger, MoonFire, block_levels
from .fusion_moon import MoonFusion, MoonZeroLinear
from .generation_moon import MoonGenerationMixin
from .origin_moon import load_output_layer
from .outputs_moon import BY_LAYER, MoonCausalLMOutput, MoonEmbedding, MoonOutput, ask_for_layers
from .packing_moon import Inputs, in_rows, pack, packed_positions
from .positions_moon import find_positions, store_offset
from .routing_moon import Guided, Routing, find_guided, objective_weights, routing_statistics
from .saving_moon import MoonSaving
from .tokens_moon import (
    RawTokens,
    aspect_ids_from_markers,
    find_raw_tokens,
    input_dtype,
    mean_of,
    readable_tokens,
    refuse_unread_arguments,
    refuse_unseen_images,
    require_raw_tokens,
    token_mask,
)


# ---------------------------------------------------------------------------------------------------------------------
# Mixtures of experts: guided (MOON §3.1) and modality-driven (MOON2.0)
# ---------------------------------------------------------------------------------------------------------------------
@use_experts_implementation
class _RoutedExperts(nn.Module):
    """E gated feed-forward networks with their weights in three-dimensional tensors.

    The decorator dispatches to the implementation that `experts_implementation=` names ("grouped_mm" by default); the
    loop below is "eager".

    Args:
        config: the text model's configuration (widths, activation).
        num_experts: E.

    Shapes: gate_up_proj (E, 2·I, H), down_proj (E, H, I); hidden_NH, index_NK int64 in [0, E), weight_NK -> (N, H).
    """

    def __init__(self, config: Any, num_experts: int) -> None:
        super().__init__()
        self.num_experts = num_experts
        self.gate_up_proj = nn.Parameter(torch.empty(num_experts, 2 * config.intermediate_size, config.hidden_size))
        self.down_proj = nn.Parameter(torch.empty(num_experts, config.hidden_size, config.intermediate_size))
        self.act_fn = ACT2FN[config.hidden_act]

    def forward(self, hidden_NH: torch.Tensor, index_NK: torch.Tensor, weight_NK: torch.Tensor) -> torch.Tensor:
        output_NH = torch.zeros_like(hidden_NH)
        for expert in range(self.num_experts):
            token, slot = torch.where(index_NK == expert)
            if token.numel() == 0:
                continue
            gate, up = functional.linear(hidden_NH[token], self.gate_up_proj[expert]).chunk(2, dim=-1)
            expert_output = functional.linear(self.act_fn(gate) * up, self.down_proj[expert])
            weighted = expert_output * weight_NK[token, slot, None]
            output_NH = output_NH.index_add(0, token, weighted.to(output_NH.dtype))
        return output_NH


class MoonExperts(_RoutedExperts):
    """Experts that serve every token, the tokens that choose them, or the tokens of an aspect.

    The first and the last are plain matrix products, as fast as a dense layer ("eager" loops over all experts, for
    comparison): an expert that serves every token needs no gathering, and an aspect's tokens are found once per pass
    for all layers. Only experts that tokens choose among are dispatched. Our design.

    Args:
        config, num_experts: see `_RoutedExperts`.

    Shapes: see `_RoutedExperts`; the first `num_shared` slots of every token are the experts 0 … num_shared - 1, in this
        order; guided: for each aspect its expert, tokens (G,) and weights (G,).
    """

    def forward(
        self,
        hidden_NH: torch.Tensor,
        index_NK: torch.Tensor,
        weight_NK: torch.Tensor,
        num_shared: int = 0,
        guided: list[tuple[int, torch.Tensor, torch.Tensor]] | None = None,
    ) -> torch.Tensor:
        gate_ups, downs = self.gate_up_proj.unbind(), self.down_proj.unbind()

        def apply(expert: int, chosen_GH: torch.Tensor, weight_G: torch.Tensor) -> torch.Tensor:
            gate, up = functional.linear(chosen_GH, gate_ups[expert]).chunk(2, dim=-1)
            return functional.linear(self.act_fn(gate) * up, downs[expert]) * weight_G[:, None]

        if num_shared == 0 or self.config._experts_implementation == "eager":
            output_NH = super().forward(hidden_NH, index_NK, weight_NK)
        else:
            parts = [apply(expert, hidden_NH, weight_NK[:, expert]) for expert in range(num_shared)]
            output_NH = sum(parts[1:], start=parts[0])
        for expert, token_G, weight_G in guided or ():
            guided_GH = apply(expert, hidden_NH[token_G], weight_G)
            output_NH = output_NH.index_add(0, token_G, guided_GH.to(output_NH.dtype))
        return output_NH


class MoonRouter(nn.Linear):
    """W_g of the gate `softmax(W_g x)`: one score per expert."""


class MoonMixture(nn.Module):
    r"""A feed-forward layer as a mixture of experts: `y = Σ_n G̃_n(x)·f_n(x)`; G̃ is the kept part of `G = softmax(W_g x)`.

    Kept weights are renormalised over the active experts (our design; precedent: sparse upcycling, arXiv 2212.05055), so
    that experts that are copies of the base's layer compute the base's output. The weight of a single expert is then the
    constant 1, from which the router would not learn. If one expert of several is chosen, the gradient therefore treats the
    sum as a constant: with this straight-through estimate the router learns as in Switch Transformers (arXiv 2101.03961),
    whose weight is the gate itself.

    Args:
        config: MoonConfig.

    Shapes: hidden (B, T, H), guided: each aspect's tokens among the B·T (`find_guided`), or None -> (B, T, H).

    Relations: `MoonGuidedMoE` adds the experts of aspects, `MoonModalityMoE` the preferences for objectives.
    """

    def __init__(self, config: MoonConfig) -> None:
        super().__init__()
        self.num_experts = config.num_experts
        self.num_free = config.num_free_experts
        self.top_k = config.num_experts_per_token
        self.router = MoonRouter(config.hidden_size, config.num_experts, bias=False)
        self.experts = MoonExperts(config.text_config, config.num_experts)

    def keep(self, gate_NE: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the k best free experts (N, K) of each token and their part (N, K) of the gate."""
        free_NF = gate_NE[:, : self.num_free]
        if self.top_k == self.num_free:
            return torch.arange(self.num_free, device=gate_NE.device).expand_as(free_NF), free_NF
        kept_NK, index_NK = free_NF.topk(self.top_k, dim=-1)
        return index_NK, kept_NK

    def forward(
        self,
        hidden_BTH: torch.Tensor,
        guided: Guided | None = None,
        routing_trace: list | None = None,
    ) -> torch.Tensor:
        hidden_NH = hidden_BTH.reshape(-1, hidden_BTH.shape[-1])
        gate_NE = self.router(hidden_NH).float().softmax(dim=-1)
        index_NK, kept_NK = self.keep(gate_NE)
        total_N = kept_NK.sum(dim=-1)
        if self.top_k == 1 < self.num_free:
            total_N = total_N.detach()  # the straight-through estimate; exact if a guided expert joins
        of_aspects = []
        for expert, (token_G, share_G) in enumerate(guided or (), start=self.num_free):
            kept_G = gate_NE[token_G, expert] if share_G is None else gate_NE[token_G, expert] * share_G
            total_G = kept_NK[token_G].sum(dim=-1) + kept_G
            total_N = total_N.index_copy(0, token_G, total_G)
            of_aspects.append((expert, token_G, (kept_G / total_G).to(hidden_NH.dtype)))
        weight_NK = kept_NK / total_N[:, None]
        if routing_trace is not None:
            routing_trace.append(Routing(index_NK, weight_NK, gate_NE, of_aspects))
        num_shared = self.num_free if self.top_k == self.num_free else 0
        output_NH = self.experts(hidden_NH, index_NK, weight_NK.to(hidden_NH.dtype), num_shared, of_aspects)
        return output_NH.view_as(hidden_BTH)


class MoonGuidedMoE(MoonMixture):
    r"""A guided mixture of experts.

    `y = Σ_{n ≤ E-2} g_n(x)·f_n(x) + g_{E-1}(x^c)·f_{E-1}(x^c) + g_E(x^a)·f_E(x^a)`, `g = softmax(W_g x)` (MOON §3.1).
    Expert E-1 sees category tokens only, expert E attribute tokens only. A token uses its k best free experts and, inside
    a span, that span's expert. Top-k is our design.

    Args:
        config: MoonConfig.

    Relations: `find_guided` finds the guided tokens, once for all layers.
    """


class MoonModalityMoE(MoonMixture):
    r"""A modality-driven mixture of experts (MOON2.0, arXiv 2511.12449).

    Tokens keep their k best experts. A learnable matrix W* (Z experts × M objectives) holds the preferences of the experts:
    `p_{z,m} = softmax_m(W*_z)`; `MoonModel.objective_weights` and `MoonModel.preference_entropy` are computed from it. A
    matrix for each mixture layer that starts at zero (equal preferences) is our design.

    Args:
        config: MoonConfig; `objectives` lists the M columns of `preference` (E, M).
    """

    def __init__(self, config: MoonConfig) -> None:
        super().__init__(config)
        self.preference = nn.Parameter(torch.empty(config.num_experts, len(config.objectives)))


MIXTURES = {"guided": MoonGuidedMoE, "modality": MoonModalityMoE}


# ---------------------------------------------------------------------------------------------------------------------
# Decoder layers and text models: the base's, with another feed-forward layer and FIRE after it
# ---------------------------------------------------------------------------------------------------------------------
class _MoonLayer:
    """The layer of both backbones: attention as in the base, then the mixture, then FIRE, if the layer has them."""

    def _equip(self, config: MoonConfig, layer: int) -> None:
        self.is_mixture = layer in config.mixture_layers
        if self.is_mixture:
            self.mlp = MIXTURES[config.expert_routing](config)
        self.fire = MoonFire(config, _num_levels(config)) if layer in (config.fire_layers or ()) else None

    def forward(
        self,
        hidden_states: torch.Tensor,
        *,
        guided: Guided | None = None,
        routing_trace: list | None = None,
        details: Details | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        residual = hidden_states
        hidden_states, _ = self.self_attn(hidden_states=self.input_layernorm(hidden_states), **kwargs)
        hidden_states = residual + hidden_states
        normed = self.post_attention_layernorm(hidden_states)
        change = self.mlp(normed, guided, routing_trace) if self.is_mixture else self.mlp(normed)
        hidden_states = hidden_states + change
        return hidden_states if self.fire is None else self.fire(hidden_states, details)


class MoonQwen3VLDecoderLayer(_MoonLayer, Qwen3VLTextDecoderLayer):
    """A decoder layer of Qwen3-VL with a mixture of experts, FIRE, or both."""

    def __init__(self, config: Any, layer_idx: int, moon_config: MoonConfig) -> None:
        Qwen3VLTextDecoderLayer.__init__(self, config, layer_idx)
        self._equip(moon_config, layer_idx)


class MoonQwen2_5_VLDecoderLayer(_MoonLayer, Qwen2_5_VLDecoderLayer):  # noqa: N801 - as the library spells it
    """A decoder layer of Qwen2.5-VL with a mixture of experts, FIRE, or both."""

    def __init__(self, config: Any, layer_idx: int, moon_config: MoonConfig) -> None:
        Qwen2_5_VLDecoderLayer.__init__(self, config, layer_idx)
        self._equip(moon_config, layer_idx)


def _num_levels(config: MoonConfig) -> int:
    """Return V, the number of deep-stack features of the base, or of chosen blocks of its vision tower."""
    return len(config.detail_blocks) or len(getattr(config.vision_config, "deepstack_visual_indexes", None) or ())


def _init_moon_weights(module: nn.Module, std: float) -> bool:
    """Initialise a module of Moon; return False for any other module, which transformers initialises."""
    if isinstance(module, MoonExperts):
        init.normal_(module.gate_up_proj, mean=0.0, std=std)
        init.normal_(module.down_proj, mean=0.0, std=std)
    elif isinstance(module, MoonRouter):
        init.normal_(module.weight, mean=0.0, std=std)
    elif isinstance(module, MoonProjection):
        init.copy_(module.weight, torch.eye(module.out_features, module.in_features, device=module.weight.device))
    elif isinstance(module, MoonModalityMoE):
        init.zeros_(module.preference)
    elif isinstance(module, MoonFire):
        init.zeros_(module.scale)
        if module.level_scores is not None:
            init.zeros_(module.level_scores)
    elif isinstance(module, MoonZeroLinear):
        init.zeros_(module.weight)
    else:
        return False
    return True


class _MoonTextModel:
    """The text model of both backbones: our layers, their initialisation, and a choice of the experts' implementation.

    transformers searches a class's source file for experts and stores the answer on the class; a subclass would inherit the
    answer for the base's file, which has none.
    """

    def _swap_layers(self, layer_class: type, config: Any, moon_config: MoonConfig) -> None:
        for layer in sorted({*moon_config.mixture_layers, *(moon_config.fire_layers or ())}):
            self.layers[layer] = layer_class(config, layer, moon_config)

    @classmethod
    def _can_set_experts_implementation(cls) -> bool:
        return True

    def _init_weights(self, module: nn.Module) -> None:
        if not _init_moon_weights(module, self.moon_initializer_range):
            super()._init_weights(module)


class MoonQwen3VLTextModel(_MoonTextModel, Qwen3VLTextModel):
    """Qwen3-VL's text model with Moon's layers."""

    def __init__(self, config: Any, moon_config: MoonConfig) -> None:
        self.moon_initializer_range = moon_config.initializer_range
        super().__init__(config)
        self._swap_layers(MoonQwen3VLDecoderLayer, config, moon_config)


class MoonQwen2_5_VLTextModel(_MoonTextModel, Qwen2_5_VLTextModel):  # noqa: N801 - as the library spells it
    """Qwen2.5-VL's text model with Moon's layers."""

    def __init__(self, config: Any, moon_config: MoonConfig) -> None:
        self.moon_initializer_range = moon_config.initializer_range
        super().__init__(config)
        self._swap_layers(MoonQwen2_5_VLDecoderLayer, config, moon_config)


TEXT_MODELS = {"qwen3_vl": MoonQwen3VLTextModel, "qwen2_5_vl": MoonQwen2_5_VLTextModel}


class MoonQwen3VLVisionBlock(KeptBlock, Qwen3VLVisionBlock):
    """A block of Qwen3-VL's vision tower whose output is a level of detail."""


class MoonQwen2_5_VLVisionBlock(KeptBlock, Qwen2_5_VLVisionBlock):  # noqa: N801 - as the library spells it
    """A block of Qwen2.5-VL's vision tower whose output is a level of detail."""


VISION_BLOCKS = {"qwen3_vl": MoonQwen3VLVisionBlock, "qwen2_5_vl": MoonQwen2_5_VLVisionBlock}


# ---------------------------------------------------------------------------------------------------------------------
# From hidden states to a vector: read-out, fusion (MOON3.0), projection
# ---------------------------------------------------------------------------------------------------------------------
class MoonProjection(nn.Linear):
    """A linear map to the vector's size that starts as the identity on the first dimensions; a base with Matryoshka
    vectors (arXiv 2205.13147) keeps its prefixes."""


class MoonPreTrainedModel(MoonCopyingMixin, MoonSaving, PreTrainedModel):
    """The properties of every Moon model that transformers reads."""

    config: MoonConfig
    config_class = MoonConfig
    base_model_prefix = "model"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _no_split_modules = [
        "MoonQwen3VLDecoderLayer",
        "MoonQwen2_5_VLDecoderLayer",
        "Qwen3VLTextDecoderLayer",
        "Qwen2_5_VLDecoderLayer",
        "Qwen3VLVisionBlock",
        "Qwen2_5_VLVisionBlock",
        *(block.__name__ for block in VISION_BLOCKS.values()),
    ]
    _skip_keys_device_placement = ["past_key_values"]

    def _init_weights(self, module: nn.Module) -> None:
        if not _init_moon_weights(module, self.config.initializer_range):
            super()._init_weights(module)

    def _set_gradient_checkpointing(
        self, enable: bool = True, gradient_checkpointing_func: Any = checkpoint, **kwargs: Any
    ) -> None:
        if getattr(gradient_checkpointing_func, "keywords", {}).get("use_reentrant"):
            raise ValueError("use_reentrant=True loses gradients of experts and FIRE; expected use_reentrant=False")
        super()._set_gradient_checkpointing(enable, gradient_checkpointing_func, **kwargs)

    def set_attn_implementation(self, attn_implementation: str | dict, allow_all_kernels: bool = False) -> None:
        """Set the attention as transformers does, any number of times: 5.17 skips a nested configuration that it has already
        changed."""
        super().set_attn_implementation(attn_implementation, allow_all_kernels)
        for module in self.modules():
            vars(getattr(module, "config", self)).pop("_attn_was_changed", None)


class MoonModel(MoonPreTrainedModel):
    """The Moon encoder: token ids and pixels in, hidden states and one L2-normalised vector per row out.

    The hidden states of the base with experts and FIRE are read out, fused and projected: `r = z W / |z W|` (MOON §3.1 for
    guided experts and the mean; MOON2.0, MOON3.0 for the other parts). The projection W is our design (precedent: Matryoshka
    prefixes).

    Args:
        config: MoonConfig.

    Relations: `embed` takes product and query records; `MoonForConditionalGeneration` generates text from the same weights.
    """

    _keys_to_ignore_on_load_unexpected = [r"^lm_head\."]

    def __init__(self, config: MoonConfig) -> None:
        super().__init__(config)
        # The base's classes do not have experts and refuse a choice; Moon's choice applies to its text model.
        config.vlm_config._experts_implementation = None
        self.vlm = AutoModel.from_config(config.vlm_config, dtype=torch.get_default_dtype())
        config.text_config._experts_implementation = config._experts_implementation
        for block in config.detail_blocks:
            self.vlm.visual.blocks[block] = VISION_BLOCKS[config.vlm_config.model_type](config.vision_config)
        self.vlm.language_model = TEXT_MODELS[config.vlm_config.model_type](config.text_config, config)
        self.detail_mergers = nn.ModuleList(MoonDetailMerger(config) for _ in config.detail_blocks)
        self.fusion = MoonFusion(config) if config.fusion else None
        self.projection = (
            None
            if config.embedding_dim is None
            else MoonProjection(config.hidden_size, config.embedding_dim, bias=False)
        )
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.vlm.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.vlm.set_input_embeddings(value)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        pixel_values: torch.FloatTensor | None = None,
        image_grid_thw: torch.LongTensor | None = None,
        mm_token_type_ids: torch.LongTensor | None = None,
        aspect_ids: torch.LongTensor | None = None,
        raw_tokens: RawTokens | None = None,
        packed: bool | None = None,
        use_cache: bool | None = None,
        output_embeddings: bool | None = None,
        output_router_stats: bool = False,
        **kwargs: Any,
    ) -> MoonOutput:
        """Encode a batch.

        Args:
            input_ids: (B, T) int64 with `<|image_pad|>` once per image token.
            attention_mask: (B, T), 1 for attended tokens; padding may be on either side. None: all tokens are attended. With
                a mask of token pairs (B, 1, T, keys), as in the base, no vectors are computed.
            pixel_values: patches of all images of the batch, (patches, channels·patch·patch·2), from the processor.
            image_grid_thw: (images, 3) int64 patches per image along time, height and width.
            mm_token_type_ids: (B, T), 1 at image tokens, 0 at text regardless of its id; derived from `input_ids` by default.
            aspect_ids: (B, T) of 0, 1, 2; derived from the markers in `input_ids` by default.
            raw_tokens: for a decoding step: the inputs of the fusion, kept from the prefill pass.
            packed: whether to pack the rows into one, without padding or attention between them. None: if there is
                padding and the kernel supports packing without a mask (flash attention).
            use_cache: whether to keep keys and values. None: as configured if `output_embeddings=False`, else only with
                `past_key_values`.
            output_embeddings: whether to compute `embeddings`. None: if every row has a token to read them from (`<emb>`, or
                an attended token); otherwise `embeddings` is None.
            output_router_stats: whether to return `expert_load`, `expert_gates` and `router_loss`.
            **kwargs: as in the base (`output_hidden_states`, `output_attentions`, `return_dict`, …).

        Raises:
            ValueError: neither or both of `input_ids` and `inputs_embeds`; guided experts without `input_ids`; `packed=True`
                with a cache, positions or outputs of single layers, or without a mask (B, T); an argument of other models
                that Moon does not read; a row of only padding, unless `output_embeddings=False`. With
                `output_embeddings=True` also: a row without a token to read from, a mean from a decoding step, a mask that
                is not (B, T), fusion without `input_ids`.
        """
        refuse_unread_arguments(input_ids, inputs_embeds, kwargs)
        ask_for_layers(self.config, kwargs)
        if use_cache is None:
            use_cache = past_key_values is not None if output_embeddings is not False else self.config.keeps_cache
        mask_BK = attention_mask if isinstance(attention_mask, torch.Tensor) and attention_mask.ndim == 2 else None
        mask_BT = token_mask(input_ids if input_ids is not None else inputs_embeds, mask_BK)
        past = 0 if past_key_values is None else past_key_values.get_seq_length()
        by_token = attention_mask is mask_BK
        readable_BT = self._find_readable(output_embeddings, (input_ids, mask_BT, past), by_token, raw_tokens)
        by_row = [position_ids, past_key_values, use_cache, *(kwargs.get(name) for name in BY_LAYER)]
        packed = self._use_packing(packed, mask_BK, by_row)
        inputs = self._embed_inputs(input_ids, inputs_embeds, pixel_values, image_grid_thw, mm_token_type_ids)
        raw_BTH = inputs.embeds_BTH
        routing_trace: list[Routing] | None = [] if output_router_stats and self.config.mixture_layers else None
        if self.config.mixture_layers:
            aspect_ids = self.find_aspect_ids(input_ids, past) if aspect_ids is None else aspect_ids
            guided = find_guided(aspect_ids, mask_BT if packed else None)
            inputs.for_layers.update(guided=guided, routing_trace=routing_trace)
        if position_ids is None and (past or image_grid_thw is not None):  # else the base numbers the tokens
            position_ids = find_positions(
                self.vlm, inputs.is_image_BT, mask_BK, image_grid_thw, past_key_values
            ).all_4BT[1:]
        if packed:
            inputs, position_ids = pack(inputs, mask_BT.bool()), packed_positions(position_ids, mask_BT)
            attention_mask = None
        outputs = self.vlm.language_model(
            inputs_embeds=inputs.embeds_BTH,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=False if packed else use_cache,
            return_dict=True,
            **inputs.for_layers,
            **kwargs,
        )
        if attention_mask is mask_BK:  # any other mask hides the padding; `generate` has then stored the offset
            new_tokens = position_ids, mask_BK, past, len(mask_BT)
            store_offset(outputs.past_key_values, *new_tokens, has_pictures=pixel_values is not None)
        hidden_BTH = in_rows(outputs.last_hidden_state, mask_BT) if packed else outputs.last_hidden_state
        result = MoonOutput(
            last_hidden_state=hidden_BTH,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )
        read_now = readable_BT is not None or (input_ids is not None and input_ids.shape[1] > 1)  # not a decoding step
        if self.fusion is not None and raw_tokens is None and input_ids is not None and read_now and not past:
            states_BTH = raw_BTH if self.config.fusion_source == "raw" else hidden_BTH
            raw_tokens = find_raw_tokens(self.config, input_ids, mask_BT, states_BTH)
            result.raw_tokens = None if outputs.past_key_values is None else raw_tokens
        if readable_BT is not None:
            self._read_vectors(result, readable_BT, raw_tokens)
        if routing_trace is not None:
            result.expert_load, result.expert_gates, result.router_loss = routing_statistics(
                routing_trace, mask_BT.bool(), packed, self.config.num_free_experts
            )
        return result

    def _use_packing(self, packed: bool | None, attention_mask: torch.Tensor | None, by_row: list[Any]) -> bool:
        possible = attention_mask is not None and all(value is None or value is False for value in by_row)
        if packed and not possible:
            raise ValueError(
                "packed=True: expected a mask (B, T), and neither a cache, position_ids nor outputs of single layers"
            )
        if packed is not None or not possible:
            return bool(packed)
        return "flash" in self.config.text_config._attn_implementation and not bool(attention_mask.all())

    def _embed_inputs(
        self,
        input_ids: torch.Tensor | None,
        embeds_BTH: torch.Tensor | None,
        pixel_values: torch.Tensor | None,
        image_grid_thw: torch.Tensor | None,
        token_types: torch.Tensor | None,
    ) -> Inputs:
        """Embed tokens and pictures: image tokens get the output of the vision tower, as in the base; FIRE gets the details."""
        if embeds_BTH is None:
            embeds_BTH = self.get_input_embeddings()(input_ids)
        details = Details(embeds_BTH, torch.zeros_like(embeds_BTH[..., 0], dtype=torch.bool))
        for_layers: dict[str, Any] = {}
        if pixel_values is None:
            refuse_unseen_images(input_ids, self.config.image_token_id, token_types)
        else:
            blocks: list[torch.Tensor] = []
            keep: dict[str, Any] = {"kept_blocks": blocks} if self.config.detail_blocks else {}
            features = self.vlm.get_image_features(pixel_values, image_grid_thw, return_dict=True, **keep)
            image_PH = torch.cat(tuple(features.pooler_output)).to(embeds_BTH)
            ids = input_ids if token_types is None or input_ids is None else input_ids.masked_fill(token_types == 0, -1)
            is_image = self.vlm.get_placeholder_mask(ids, inputs_embeds=embeds_BTH, image_features=image_PH)[0]
            deepstack = getattr(features, "deepstack_features", None) or ()
            levels = [level if isinstance(level, torch.Tensor) else torch.cat(level) for level in deepstack]
            if levels:
                for_layers = {"visual_pos_masks": is_image[..., 0], "deepstack_visual_embeds": levels}
            if keep:
                levels = block_levels(self.detail_mergers, blocks, image_grid_thw, self.config.vision_config)
            levels = torch.stack(levels or [image_PH]).to(embeds_BTH)
            details = Details(embeds_BTH, is_image[..., 0], levels)
            embeds_BTH = embeds_BTH.masked_scatter(is_image, image_PH)
        if self.config.fire_layers:
            for_layers["details"] = details
        return Inputs(embeds_BTH, details.is_image_BT, for_layers)

    def find_aspect_ids(self, input_ids: torch.Tensor | None, past: int = 0) -> torch.Tensor | None:
        """Return the aspect (B, T) of each token, see `aspect_ids_from_markers`; None if the experts do not read aspects.

        Raises:
            ValueError: missing `input_ids`; `past` tokens in the cache, among which a marker may be.
        """
        markers = (self.config.category_start_token_id, self.config.attribute_start_token_id)
        if not self.config.reads_aspects or markers == (None, None):
            return None
        if input_ids is None:
            raise ValueError(
                "guided experts need input_ids, which contain the markers; expected aspect_ids with inputs_embeds"
            )
        if past:
            raise ValueError("guided experts in a decoding step need aspect_ids: a marker may be in the cache")
        return aspect_ids_from_markers(input_ids, self.config)

    def _find_readable(
        self, wanted: bool | None, new_tokens: tuple, by_token: bool, raw: RawTokens | None
    ) -> torch.Tensor | None:
        """Find the tokens (B, T) bool to read vectors from; None if `wanted` is False, or is None and they are not found."""
        if wanted is False:
            return None
        input_ids, mask_BT, past = new_tokens
        try:
            if not by_token:
                raise ValueError(
                    "vectors are read from attended tokens: found a mask of token pairs; expected a mask (B, T)"
                )
            if self.fusion is not None and raw is None:
                require_raw_tokens(input_ids, past)
            if self.config.readout == "mean" and past:
                raise ValueError("a mean read-out needs the whole text: found a decoding step with a cache")
            return readable_tokens(mask_BT, self.config, input_ids)
        except ValueError:
            if wanted or not bool(mask_BT.any(dim=1).all()):  # a row of padding alone does not have states either
                raise
            return None

    def _read_vectors(self, result: MoonOutput, readable_BT: torch.Tensor, raw: RawTokens | None) -> None:
        state_BH = mean_of(result.last_hidden_state, readable_BT)
        if self.fusion is not None:
            state_BH, result.modality_gates = self.fusion(state_BH, raw)
        if self.projection is not None:
            state_BH = self.projection(state_BH.to(input_dtype(self.projection, result.last_hidden_state)))
        result.embeddings = functional.normalize(state_BH.float(), dim=-1)
        if self.config.matryoshka_dims:
            result.matryoshka_embeddings = tuple(
                functional.normalize(result.embeddings[:, :dim], dim=-1) for dim in self.config.matryoshka_dims
            )

    def _preferences(self) -> torch.Tensor:
        """Return p (L, E, M) float32 of the mixture layers."""
        if self.config.expert_routing != "modality" or not self.config.mixture_layers:
            raise ValueError(
                f"expert_routing={self.config.expert_routing!r} in layers {list(self.config.mixture_layers)} has no "
                "preferences; expected 'modality' (moon2) in at least one layer"
            )
        layers = [self.vlm.language_model.layers[layer].mlp for layer in self.config.mixture_layers]
        return torch.stack([layer.preference for layer in layers]).float().softmax(dim=-1)

    def objective_weights(self, expert_gates_BLE: torch.Tensor, objective_B: torch.Tensor) -> torch.Tensor:
        """Return ω (M,) float32 of MOON2.0 for a batch, from `MoonOutput.expert_gates` and the index of each row's objective in
        `config.objectives` (int64); see `routing_moon.objective_weights`.

        Raises:
            ValueError: a model without modality-driven experts.
        """
        return objective_weights(self._preferences(), expert_gates_BLE, objective_B)

    def preference_entropy(self) -> torch.Tensor:
        """Return `L_sparsity = mean_z H(p_z)` in nats, over the experts of all mixture layers (MOON2.0, arXiv 2511.12449):
        small if each expert serves one objective.

        Raises:
            ValueError: a model without modality-driven experts.
        """
        preference_LEM = self._preferences()
        return -torch.xlogy(preference_LEM, preference_LEM).sum(dim=-1).mean()

    def embed(self, products: Any, **options: Any) -> MoonEmbedding:
        """Embed product and query records, with or without reasoning; see `embed_records` for the arguments.

        Raises:
            ValueError: see `embed_records`.
        """
        return embed_records(self, self.writer, products, **options)

    def writer(self) -> MoonForConditionalGeneration:
        """Return this encoder with the output layer, for generation. An untied output layer is read from the checkpoint that
        the encoder came from.

        Raises:
            ValueError: an untied output layer in a model that was not loaded from a checkpoint.
        """
        if self.config.tie_word_embeddings:
            return MoonForConditionalGeneration.around(self, self.get_input_embeddings().weight)
        kept = getattr(self, "_output_layer", None) or [load_output_layer(self)]
        self._output_layer = [kept[0].to(self.device, self.dtype)]  # in a list: not a parameter of the encoder
        return MoonForConditionalGeneration.around(self, self._output_layer[0])


# ---------------------------------------------------------------------------------------------------------------------
# Generation from the same weights
# ---------------------------------------------------------------------------------------------------------------------
class MoonForConditionalGeneration(MoonPreTrainedModel, MoonGenerationMixin):
    """`MoonModel` with the base's output layer: generates text after images and text.

    Args:
        config: MoonConfig.

    Relations: `.model` is the `MoonModel`; both classes load the same weights file.
    """

    _tied_weights_keys = {"lm_head.weight": "model.vlm.language_model.embed_tokens.weight"}

    def __init__(self, config: MoonConfig) -> None:
        super().__init__(config)
        self.model = MoonModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @classmethod
    def around(cls, encoder: MoonModel, lm_head: nn.Module | torch.Tensor) -> MoonForConditionalGeneration:
        """Return a model that shares an encoder and has neutral generation settings of its own.

        Args:
            encoder: becomes `.model`, unchanged.
            lm_head: the output layer, or its weight (vocabulary, H).
        """
        writer = cls.__new__(cls)
        MoonPreTrainedModel.__init__(writer, encoder.config)
        writer.model = encoder
        if isinstance(lm_head, torch.Tensor):
            weight, lm_head = lm_head, nn.Linear(*lm_head.shape[::-1], bias=False, device="meta")
            lm_head.weight = nn.Parameter(weight.detach(), requires_grad=False)
        writer.lm_head, writer.training = lm_head, encoder.training
        return writer

    def embed(self, products: Any, **options: Any) -> MoonEmbedding:
        """Embed product and query records; see `MoonModel.embed`.

        Raises:
            ValueError: see `embed_records`.
        """
        return embed_records(self.model, lambda: self.around(self.model, self.lm_head), products, **options)

    def preference_entropy(self) -> torch.Tensor:
        """Return L_sparsity; see `MoonModel.preference_entropy`.

        Raises:
            ValueError: a model without modality-driven experts.
        """
        return self.model.preference_entropy()

    def objective_weights(self, expert_gates_BLE: torch.Tensor, objective_B: torch.Tensor) -> torch.Tensor:
        """Return ω; see `MoonModel.objective_weights`.

        Raises:
            ValueError: a model without modality-driven experts.
        """
        return self.model.objective_weights(expert_gates_BLE, objective_B)

    def get_input_embeddings(self) -> nn.Module:
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.model.set_input_embeddings(value)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        pixel_values: torch.FloatTensor | None = None,
        image_grid_thw: torch.LongTensor | None = None,
        mm_token_type_ids: torch.LongTensor | None = None,
        aspect_ids: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor | None = 0,
        output_embeddings: bool = False,
        **kwargs: Any,
    ) -> MoonCausalLMOutput:
        """Compute the logits of the next tokens; see `MoonModel.forward` for the other arguments.

        Args:
            labels: (B, T) int64, -100 at tokens without a loss: `loss` is the mean next-token cross-entropy.
            logits_to_keep: the number of last positions to compute (0: all), or the positions: (positions,), the same for
                every row, or (B, T) bool, which returns logits (tokens, vocabulary) in the order of rows. None: no logits.
            output_embeddings: whether to return `last_hidden_state`, `embeddings` and `matryoshka_embeddings` of the pass.

        Raises:
            ValueError: `labels` with `logits_to_keep=None` or a bool mask; see `MoonModel.forward`.
        """
        by_token = isinstance(logits_to_keep, torch.Tensor) and logits_to_keep.dtype == torch.bool
        if labels is not None and (by_token or logits_to_keep is None):
            raise ValueError("labels need the logits of whole rows; expected logits_to_keep=0")
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            pixel_values=pixel_values,
            image_grid_thw=image_grid_thw,
            mm_token_type_ids=mm_token_type_ids,
            aspect_ids=aspect_ids,
            use_cache=use_cache,
            output_embeddings=output_embeddings,
            return_dict=True,
            **kwargs,
        )
        logits = loss = None
        if logits_to_keep is not None:
            kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
            logits = self.lm_head(outputs.last_hidden_state[kept if by_token else (slice(None), kept)])
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return MoonCausalLMOutput(
            loss=loss,
            logits=logits,
            expert_load=outputs.expert_load,
            expert_gates=outputs.expert_gates,
            router_loss=outputs.router_loss,
            embeddings=outputs.embeddings,
            matryoshka_embeddings=outputs.matryoshka_embeddings,
            last_hidden_state=outputs.last_hidden_state if output_embeddings else None,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )
