"""The architecture of Moon, top to bottom: experts, guided mixture, decoder layers, text models, MoonModel, generation.

A Moon model *holds* a vision-language base (Qwen3-VL or Qwen2.5-VL) and swaps its text model for one whose decoder layers
call our mixture of experts. The vision tower, the attention layers and the position encoding are the base's own code.

Shape suffixes: B batch rows, T tokens of a row, N tokens of the whole batch (B·T), H hidden width, I width of one expert,
D size of the vector, E experts, F free experts (E - 2), K active slots of a token, L layers that are mixtures.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import AutoModel, Cache, GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.integrations.moe import use_experts_implementation
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLDecoderLayer, Qwen2_5_VLTextModel
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextDecoderLayer, Qwen3VLTextModel
from transformers.utils import ModelOutput

from .configuration_moon import ASPECTS, MoonConfig


# ---------------------------------------------------------------------------------------------------------------------
# Guided mixture of experts (MOON §3)
# ---------------------------------------------------------------------------------------------------------------------
def aspect_ids_from_markers(input_ids_BT: torch.Tensor, config: MoonConfig) -> torch.Tensor:
    """The aspect of each token, read from the marker tokens: 0 none, 1 category, 2 attribute.

    A token belongs to an aspect when the last marker at or before it opens that aspect; the markers themselves belong to
    none. Only what stands before a token decides, so that a decoding step with a cache and a pass over the whole text
    agree. Our design; MOON §3 speaks of the category and attribute substrings of the title.

    Args:
        input_ids_BT: int64 (B, T).
        config: holds the ids of the markers.

    Returns:
        int64 (B, T) of 0, 1, 2.
    """
    opened_BT = torch.zeros_like(input_ids_BT)
    is_marker_BT = torch.zeros_like(input_ids_BT, dtype=torch.bool)
    for number, aspect in enumerate(ASPECTS, start=1):
        start, end = getattr(config, f"{aspect}_start_token_id"), getattr(config, f"{aspect}_end_token_id")
        if start is None:
            continue
        opened_BT = torch.where(input_ids_BT == start, number, opened_BT)
        is_marker_BT = is_marker_BT | (input_ids_BT == start) | (input_ids_BT == end)
    positions_T = torch.arange(input_ids_BT.shape[1], device=input_ids_BT.device)
    last_marker_BT = torch.where(is_marker_BT, positions_T, -1).cummax(dim=1).values
    aspect_BT = opened_BT.gather(1, last_marker_BT.clamp(min=0))
    return torch.where(is_marker_BT | (last_marker_BT < 0), 0, aspect_BT)


@use_experts_implementation
class MoonExperts(nn.Module):
    """E gated feed-forward networks with their weights in three-dimensional tensors.

    The decorator dispatches to the implementation that `experts_implementation=` names ("grouped_mm" by default); the
    loop below is "eager". A slot whose index is E is empty: it costs nothing and adds nothing.

    Args:
        config: the text model's configuration (widths, activation).
        num_experts: E.

    Shapes: gate_up_proj (E, 2·I, H), down_proj (E, H, I); hidden_NH, index_NK int64 in [0, E], weight_NK -> (N, H).
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


class MoonRouter(nn.Linear):
    """W_g of the gate `softmax(W_g x)`: one score per expert."""


class MoonGuidedMoE(nn.Module):
    r"""A feed-forward layer as a guided mixture of experts.

    `y = Σ_{n ≤ E-2} g_n(x)·f_n(x) + g_{E-1}(x^c)·f_{E-1}(x^c) + g_E(x^a)·f_E(x^a)`, `g = softmax(W_g x)` (MOON §3).
    Expert E-1 sees category tokens only, expert E attribute tokens only. A token uses its k best free experts and, inside
    a span, that span's expert; the weights are renormalised over the experts that are active. Top-k and the
    renormalisation are our design (precedent: sparse upcycling, arXiv 2212.05055): with experts that are copies of the
    base's layer the output is then the base's.

    Args:
        config: MoonConfig.

    Shapes: hidden (B, T, H), aspect_ids (B, T) of 0, 1, 2 or None -> (B, T, H).
    """

    def __init__(self, config: MoonConfig) -> None:
        super().__init__()
        self.num_experts = config.num_experts
        self.num_free = config.num_experts - len(ASPECTS)
        self.top_k = config.num_experts_per_token
        self.router = MoonRouter(config.hidden_size, config.num_experts, bias=False)
        self.experts = MoonExperts(config.text_config, config.num_experts)
        # transformers skips empty slots only where this flag is set (it was made for expert parallelism).
        self.experts._is_expert_parallel = True

    def route(self, hidden_NH: torch.Tensor, aspect_N: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Chosen experts (N, K) int64, E for an empty slot, and their weights (N, K) float32 which sum to 1."""
        gate_NE = self.router(hidden_NH).float().softmax(dim=-1)
        weight_NK, index_NK = gate_NE[:, : self.num_free].topk(self.top_k, dim=-1)
        if aspect_N is not None:
            guided_N = self.num_free - 1 + aspect_N
            has_aspect_N = aspect_N > 0
            guided_weight_N = gate_NE.gather(1, guided_N.clamp(min=0)[:, None])[:, 0] * has_aspect_N
            index_NK = torch.cat([index_NK, torch.where(has_aspect_N, guided_N, self.num_experts)[:, None]], dim=1)
            weight_NK = torch.cat([weight_NK, guided_weight_N[:, None]], dim=1)
        return index_NK, weight_NK / weight_NK.sum(dim=-1, keepdim=True)

    def forward(
        self, hidden_BTH: torch.Tensor, aspect_ids: torch.Tensor | None = None, routing_trace: list | None = None
    ) -> torch.Tensor:
        hidden_NH = hidden_BTH.reshape(-1, hidden_BTH.shape[-1])
        index_NK, weight_NK = self.route(hidden_NH, None if aspect_ids is None else aspect_ids.reshape(-1))
        if routing_trace is not None:
            routing_trace.append(index_NK.detach())
        return self.experts(hidden_NH, index_NK, weight_NK.to(hidden_NH.dtype)).view_as(hidden_BTH)


# ---------------------------------------------------------------------------------------------------------------------
# Decoder layers and text models: the base's, with the feed-forward layer swapped
# ---------------------------------------------------------------------------------------------------------------------
class _GuidedLayer:
    """What both backbones' layers share: attention as in the base, then the mixture, which is told the tokens' aspects."""

    def _swap_feed_forward(self, moon_config: MoonConfig) -> None:
        self.mlp = MoonGuidedMoE(moon_config)

    def forward(
        self,
        hidden_states: torch.Tensor,
        *,
        aspect_ids: torch.Tensor | None = None,
        routing_trace: list | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        residual = hidden_states
        hidden_states, _ = self.self_attn(hidden_states=self.input_layernorm(hidden_states), **kwargs)
        hidden_states = residual + hidden_states
        return hidden_states + self.mlp(self.post_attention_layernorm(hidden_states), aspect_ids, routing_trace)


class MoonQwen3VLDecoderLayer(_GuidedLayer, Qwen3VLTextDecoderLayer):
    """A decoder layer of Qwen3-VL with a guided mixture of experts."""

    def __init__(self, config: Any, layer_idx: int, moon_config: MoonConfig) -> None:
        Qwen3VLTextDecoderLayer.__init__(self, config, layer_idx)
        self._swap_feed_forward(moon_config)


class MoonQwen2_5_VLDecoderLayer(_GuidedLayer, Qwen2_5_VLDecoderLayer):  # noqa: N801 - as the library spells it
    """A decoder layer of Qwen2.5-VL with a guided mixture of experts."""

    def __init__(self, config: Any, layer_idx: int, moon_config: MoonConfig) -> None:
        Qwen2_5_VLDecoderLayer.__init__(self, config, layer_idx)
        self._swap_feed_forward(moon_config)


def _init_moon_weights(module: nn.Module, std: float) -> bool:
    """Fresh weights of Moon's own modules; False for every other module, which is left to the library's rules."""
    if isinstance(module, MoonExperts):
        init.normal_(module.gate_up_proj, mean=0.0, std=std)
        init.normal_(module.down_proj, mean=0.0, std=std)
    elif isinstance(module, MoonRouter):
        init.normal_(module.weight, mean=0.0, std=std)
    elif isinstance(module, MoonProjection):
        init.copy_(module.weight, torch.eye(module.out_features, module.in_features, device=module.weight.device))
    else:
        return False
    return True


class _GuidedTextModel:
    """What both text models share: fresh expert weights, and experts whose implementation can be chosen.

    transformers finds out whether a class has experts by searching its source file and remembers the answer on the class;
    a subclass would inherit the answer for the base's file, which is no.
    """

    @classmethod
    def _can_set_experts_implementation(cls) -> bool:
        return True

    def _init_weights(self, module: nn.Module) -> None:
        if not _init_moon_weights(module, self.moon_initializer_range):
            super()._init_weights(module)


class MoonQwen3VLTextModel(_GuidedTextModel, Qwen3VLTextModel):
    """Qwen3-VL's text model with guided mixtures in `moon_config.guided_layers`."""

    def __init__(self, config: Any, moon_config: MoonConfig) -> None:
        self.moon_initializer_range = moon_config.initializer_range
        super().__init__(config)
        for layer in moon_config.guided_layers:
            self.layers[layer] = MoonQwen3VLDecoderLayer(config, layer, moon_config)


class MoonQwen2_5_VLTextModel(_GuidedTextModel, Qwen2_5_VLTextModel):  # noqa: N801 - as the library spells it
    """Qwen2.5-VL's text model with guided mixtures in `moon_config.guided_layers`."""

    def __init__(self, config: Any, moon_config: MoonConfig) -> None:
        self.moon_initializer_range = moon_config.initializer_range
        super().__init__(config)
        for layer in moon_config.guided_layers:
            self.layers[layer] = MoonQwen2_5_VLDecoderLayer(config, layer, moon_config)


TEXT_MODELS = {"qwen3_vl": MoonQwen3VLTextModel, "qwen2_5_vl": MoonQwen2_5_VLTextModel}


# ---------------------------------------------------------------------------------------------------------------------
# From hidden states to a vector
# ---------------------------------------------------------------------------------------------------------------------
class MoonProjection(nn.Linear):
    """Linear map to the vector's size that starts as the identity on the first dimensions, so that a base whose vectors
    were trained as Matryoshka prefixes (arXiv 2205.13147) keeps them."""


def readable_tokens(
    attention_mask_BT: torch.Tensor, readout: str, is_emb_BT: torch.Tensor | None = None
) -> torch.Tensor:
    """The tokens that a vector is read from: every attended one, the last attended one, or the last `<emb>`.

    Args:
        attention_mask_BT: 1 where a token is attended.
        readout: "mean" (MOON §3), "last" or "emb".
        is_emb_BT: bool, where the `<emb>` tokens stand; needed by "emb".

    Returns:
        (B, T) bool, at least one per row.

    Raises:
        ValueError: a row without any token to read from, by its index.
    """
    chosen_BT = attention_mask_BT.bool()
    if readout == "emb":
        if is_emb_BT is None:
            raise ValueError("readout 'emb' needs input_ids: the <emb> token is found by its id")
        chosen_BT = chosen_BT & is_emb_BT
    if not torch.compiler.is_compiling() and not bool(chosen_BT.any(dim=1).all()):
        rows = (~chosen_BT.any(dim=1)).nonzero()[:, 0].tolist()
        wanted = "<emb> token" if readout == "emb" else "attended token"
        raise ValueError(f"rows {rows} of the batch have no {wanted} to read a vector from")
    if readout == "mean":
        return chosen_BT
    positions_T = torch.arange(chosen_BT.shape[1], device=chosen_BT.device)
    last_B = torch.where(chosen_BT, positions_T, -1).amax(dim=1)
    return positions_T == last_B[:, None]


def read_out(hidden_BTH: torch.Tensor, readable_BT: torch.Tensor) -> torch.Tensor:
    """Mean (B, H) in float32 of the states of the readable tokens; of a single one, that token's state."""
    weight_BT1 = readable_BT[:, :, None].float()
    return (hidden_BTH.float() * weight_BT1).sum(dim=1) / weight_BT1.sum(dim=1)


@dataclass
class MoonOutput(ModelOutput):
    """Output of `MoonModel`.

    Shapes:
        last_hidden_state: (B, T, H).
        embeddings: (B, D) float32, each row of length 1; None where not asked for.
        expert_load: (L, E) float32, the share of attended tokens that used each expert in each mixture layer (a row sums to
            the mean number of active experts); None unless `output_router_stats=True`.
        past_key_values, hidden_states, attentions: as in the base.
    """

    last_hidden_state: torch.FloatTensor | None = None
    embeddings: torch.FloatTensor | None = None
    expert_load: torch.FloatTensor | None = None
    past_key_values: Cache | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None


class MoonPreTrainedModel(PreTrainedModel):
    """What every Moon model tells the library about itself."""

    config: MoonConfig
    config_class = MoonConfig
    base_model_prefix = "model"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_attention_backend = True
    _no_split_modules = [
        "MoonQwen3VLDecoderLayer",
        "MoonQwen2_5_VLDecoderLayer",
        "Qwen3VLTextDecoderLayer",
        "Qwen2_5_VLDecoderLayer",
        "Qwen3VLVisionBlock",
        "Qwen2_5_VLVisionBlock",
    ]
    _skip_keys_device_placement = ["past_key_values"]

    def _init_weights(self, module: nn.Module) -> None:
        if not _init_moon_weights(module, self.config.initializer_range):
            super()._init_weights(module)

    def save_pretrained(self, save_directory: Any, **kwargs: Any) -> None:
        """As the library's, with all of Moon's classes named in `auto_map`, whichever class is saved."""
        self.config.auto_map = {
            "AutoConfig": "configuration_moon.MoonConfig",
            "AutoModel": "modeling_moon.MoonModel",
            "AutoModelForImageTextToText": "modeling_moon.MoonForConditionalGeneration",
        }
        super().save_pretrained(save_directory, **kwargs)


class MoonModel(MoonPreTrainedModel):
    """The Moon encoder: token ids and pixels in, hidden states and one L2-normalised vector per row out.

    MOON §3 (arXiv 2508.11999): the base's hidden states under guided experts, pooled; `r = h_pool W / |h_pool W|`. The
    projection W is our design (precedent: Matryoshka prefixes).

    Args:
        config: MoonConfig.

    Relations: use `MoonForConditionalGeneration` to generate text from the same weights.
    """

    _keys_to_ignore_on_load_unexpected = [r"^lm_head\."]

    def __init__(self, config: MoonConfig) -> None:
        super().__init__(config)
        # The base's own classes have no experts and refuse a choice; what was chosen for Moon holds for its text model.
        config.vlm_config._experts_implementation = None
        self.vlm = AutoModel.from_config(config.vlm_config)
        config.text_config._experts_implementation = config._experts_implementation
        self.vlm.language_model = TEXT_MODELS[config.vlm_config.model_type](config.text_config, config)
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

    def embed_states(self, hidden_BTH: torch.Tensor, readable_BT: torch.Tensor) -> torch.Tensor:
        """Vectors (B, D) float32 of unit length from the last hidden states (B, T, H)."""
        state_BH = read_out(hidden_BTH, readable_BT)
        if self.projection is not None:
            state_BH = self.projection(state_BH.to(self.projection.weight.dtype))
        return functional.normalize(state_BH.float(), dim=-1)

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
        use_cache: bool | None = None,
        output_embeddings: bool = True,
        output_router_stats: bool = False,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> MoonOutput | tuple:
        """Encode a batch.

        Args:
            input_ids: (B, T) int64 with `<|image_pad|>` once per image token.
            attention_mask: (B, T), 1 for attended tokens; padding may stand on either side. None: all attended.
            pixel_values: patches of all images of the batch, (patches, channels·patch·patch·2), as the processor gives.
            image_grid_thw: (images, 3) int64 patches per image along time, height and width.
            mm_token_type_ids: (B, T), 1 at image tokens; derived from `input_ids` when not given.
            aspect_ids: (B, T) of 0, 1, 2; derived from the markers in `input_ids` when not given.
            use_cache: keep keys and values; off unless asked for or no vector is asked for.
            output_embeddings: whether to compute `embeddings`.
            output_router_stats: whether to return `expert_load`.
            **kwargs: as in the base (`output_hidden_states`, `output_attentions`, …).

        Raises:
            ValueError: neither or both of `input_ids` and `inputs_embeds`; guided experts without `input_ids` and
                `aspect_ids`; a mean read-out from a decoding step; a row without a token to read from.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("exactly one of input_ids and inputs_embeds is needed")
        if aspect_ids is None and self.config.guided_layers:
            aspect_ids = self._aspect_ids(input_ids)
        if mm_token_type_ids is None and input_ids is not None and image_grid_thw is not None:
            mm_token_type_ids = (input_ids == self.config.image_token_id).long()
        if use_cache is None and output_embeddings:
            use_cache = past_key_values is not None
        mask_BT = self._token_mask(input_ids if input_ids is not None else inputs_embeds, attention_mask)
        readable_BT = self._readable(input_ids, mask_BT, attention_mask) if output_embeddings else None
        routing_trace: list[torch.Tensor] | None = [] if output_router_stats else None
        if self.config.guided_layers:
            kwargs |= {"aspect_ids": aspect_ids, "routing_trace": routing_trace}
        outputs = self.vlm(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            pixel_values=pixel_values,
            image_grid_thw=image_grid_thw,
            mm_token_type_ids=mm_token_type_ids,
            use_cache=use_cache,
            return_dict=True,
            **kwargs,
        )
        hidden_BTH = outputs.last_hidden_state
        result = MoonOutput(
            last_hidden_state=hidden_BTH,
            embeddings=None if readable_BT is None else self.embed_states(hidden_BTH, readable_BT),
            expert_load=self._expert_load(routing_trace, mask_BT) if routing_trace else None,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )
        return result if return_dict is not False else result.to_tuple()

    def _aspect_ids(self, input_ids: torch.Tensor | None) -> torch.Tensor | None:
        if self.config.category_start_token_id is None and self.config.attribute_start_token_id is None:
            return None
        if input_ids is None:
            raise ValueError(
                "guided experts need input_ids (the markers are in them) or aspect_ids beside inputs_embeds"
            )
        return aspect_ids_from_markers(input_ids, self.config)

    @staticmethod
    def _token_mask(inputs: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
        """The part (B, T) of the attention mask that belongs to the tokens given now."""
        if attention_mask is None or attention_mask.ndim != 2:
            return torch.ones(inputs.shape[:2], dtype=torch.long, device=inputs.device)
        return attention_mask[:, -inputs.shape[1] :]

    def _readable(
        self, input_ids: torch.Tensor | None, mask_BT: torch.Tensor, attention_mask: torch.Tensor | None
    ) -> torch.Tensor:
        if self.config.readout == "mean" and attention_mask is not None and attention_mask.shape[-1] > mask_BT.shape[1]:
            raise ValueError("a mean read-out needs the whole text, not a decoding step with a cache")
        is_emb_BT = None
        if self.config.readout == "emb" and input_ids is not None:
            is_emb_BT = input_ids == self.config.emb_token_id
        return readable_tokens(mask_BT, self.config.readout, is_emb_BT)

    def _expert_load(self, routing_trace: list[torch.Tensor], mask_BT: torch.Tensor) -> torch.Tensor:
        attended_N = mask_BT.reshape(-1).bool()
        empty = self.config.num_experts
        counts = [
            torch.bincount(index_NK[attended_N].reshape(-1), minlength=empty + 1)[:empty] for index_NK in routing_trace
        ]
        return torch.stack(counts).float() / attended_N.sum()


# ---------------------------------------------------------------------------------------------------------------------
# Generation from the same weights
# ---------------------------------------------------------------------------------------------------------------------
@dataclass
class MoonCausalLMOutput(CausalLMOutputWithPast):
    """As the library's, with `expert_load` (L, E) float32 where `output_router_stats=True`; see `MoonOutput`."""

    expert_load: torch.FloatTensor | None = None


class MoonForConditionalGeneration(MoonPreTrainedModel, GenerationMixin):
    """`MoonModel` with the base's output layer: writes text after images and text.

    Args:
        config: MoonConfig.

    Relations: `.model` is the `MoonModel`; both read one weights file.
    """

    _tied_weights_keys = {"lm_head.weight": "model.vlm.language_model.embed_tokens.weight"}

    def __init__(self, config: MoonConfig) -> None:
        super().__init__(config)
        self.model = MoonModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.model.set_input_embeddings(value)

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
        logits_to_keep: int | torch.Tensor = 0,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> MoonCausalLMOutput | tuple:
        """Logits of the next token; arguments as in `MoonModel.forward`.

        Args:
            labels: (B, T) int64, -100 where no loss is taken: the mean next-token cross-entropy is returned as `loss`.
            logits_to_keep: only the last so many positions (0: all), or the positions themselves.
        """
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
            output_embeddings=False,
            **kwargs,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, kept, :])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        result = MoonCausalLMOutput(
            loss=loss,
            logits=logits,
            expert_load=outputs.expert_load,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )
        return result if return_dict is not False else result.to_tuple()

    def prepare_inputs_for_generation(
        self, input_ids: torch.LongTensor, *args: Any, inputs_embeds: torch.Tensor | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """As the library's, with the aspects of the new tokens, which depend on the markers before them.

        Raises:
            ValueError: guided experts and `inputs_embeds`: the markers of the prompt are not known then.
        """
        if inputs_embeds is not None and self.config.guided_layers:
            raise ValueError("guided experts read markers from input_ids: generate from input_ids, not inputs_embeds")
        inputs = super().prepare_inputs_for_generation(input_ids, *args, inputs_embeds=inputs_embeds, **kwargs)
        fed = inputs.get("input_ids")
        if self.config.guided_layers and fed is not None and input_ids.shape[1] >= fed.shape[1]:
            aspect_BT = self.model._aspect_ids(input_ids)
            inputs["aspect_ids"] = None if aspect_BT is None else aspect_BT[:, -fed.shape[1] :]
        return inputs

    def _prepare_position_ids_for_generation(
        self, inputs_tensor: torch.Tensor, model_kwargs: dict[str, Any]
    ) -> torch.Tensor:
        """Positions (4, B, T): the text position, then time, height and width as Qwen's multimodal rotary encoding."""
        text_BT = super()._prepare_position_ids_for_generation(inputs_tensor, model_kwargs)
        vlm = self.model.vlm
        input_ids = model_kwargs.get("input_ids")
        if input_ids is None or input_ids.shape[1] == 0:
            input_ids = inputs_tensor
        cache = model_kwargs.get("past_key_values")
        past = 0 if cache is None else cache.get_seq_length()
        new_images = input_ids.ndim == 2 and bool((input_ids[:, past:] == self.config.image_token_id).any())
        if past > 0 and vlm.rope_deltas is not None and not new_images:
            return text_BT[None] + vlm.rope_deltas
        grid = model_kwargs.get("image_grid_thw")
        if grid is None or input_ids.ndim != 2:
            vlm.rope_deltas = torch.zeros(input_ids.shape[0], 1, dtype=torch.long, device=input_ids.device)
            return torch.cat([text_BT[None], text_BT[None].expand(3, -1, -1)])
        token_types = model_kwargs.get("mm_token_type_ids")
        if token_types is None:
            token_types = (input_ids == self.config.image_token_id).long()
        vision_3BT, vlm.rope_deltas = vlm.get_rope_index(
            input_ids, token_types, image_grid_thw=grid, attention_mask=model_kwargs.get("attention_mask")
        )
        return torch.cat([text_BT[None], vision_3BT])

    def _expand_inputs_for_generation(
        self,
        expand_size: int = 1,
        is_encoder_decoder: bool = False,
        input_ids: torch.LongTensor | None = None,
        **model_kwargs: Any,
    ) -> tuple[torch.LongTensor, dict[str, Any]]:
        """As the library's; images, which are not stored by row, are repeated with the row they belong to, and positions
        (4, B, T) along their second dimension."""
        images = {name: model_kwargs.pop(name, None) for name in ("pixel_values", "image_grid_thw")}
        if expand_size > 1 and images["image_grid_thw"] is not None:
            vlm_config = self.config.vlm_config
            starts_BT = (input_ids[:, :-1] == vlm_config.vision_start_token_id) & (
                input_ids[:, 1:] == vlm_config.image_token_id
            )
            grids = images["image_grid_thw"].split(starts_BT.sum(dim=1).tolist())
            patches = images["pixel_values"].split([int(grid.prod(dim=-1).sum()) for grid in grids])
            images["image_grid_thw"] = torch.cat([grid for grid in grids for _ in range(expand_size)])
            images["pixel_values"] = torch.cat([patch for patch in patches for _ in range(expand_size)])
        positions_4BT = model_kwargs.pop("position_ids", None)
        input_ids, model_kwargs = super()._expand_inputs_for_generation(
            expand_size, is_encoder_decoder, input_ids, **model_kwargs
        )
        if positions_4BT is not None:
            rows = 1 if positions_4BT.ndim == 3 else 0
            model_kwargs["position_ids"] = positions_4BT.repeat_interleave(expand_size, dim=rows)
        return input_ids, model_kwargs | {name: value for name, value in images.items() if value is not None}
