"""Define the dual-tower baseline: Moon's vision and text layers without a transformer that reads both.

Importing this file registers `DualTowerConfig` and `DualTower` with the Auto classes.

Shape suffixes: B batch, T tokens, H hidden, D embedding, N image tokens of the batch, P tokens of a pattern.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn import functional
from transformers import CONFIG_MAPPING, AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput

from modeling_moon.tokens_moon import user_tokens
from retrieval.encode import MODEL_TYPES

BACKBONES = ("qwen3_vl", "qwen2_5_vl")


class DualTowerConfig(PreTrainedConfig):
    r"""Configuration of `DualTower`.

    Args:
        vlm_config (`PreTrainedConfig` or `dict`): the base's configuration, of model type `qwen3_vl` or `qwen2_5_vl`. It is
            copied without DeepStack features: they feed a joint transformer, which a dual tower does not have.
        embedding_dim (`int` or `None`): size of the vector; `None` is the base's width. Default 256.
        user_prefix_ids (`list[int]` or `None`): tokens that open the user's turn of a prompt. Default `None`: the text
            tower pools all text tokens.
        turn_end_id (`int` or `None`): token that closes a turn; required by `user_prefix_ids`.

    Raises:
        ValueError: an unsupported backbone, a vector size below 1, or only one of the two turn settings.
    """

    model_type = "moon_dual_tower"
    sub_configs: ClassVar = {"vlm_config": AutoConfig}
    has_no_defaults_at_init = False

    vlm_config: Any = None
    embedding_dim: int | None = 256
    user_prefix_ids: list[int] | None = None
    turn_end_id: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        self.vlm_config = _read_vlm_config(self.vlm_config)
        super().__post_init__(**kwargs)
        if self.embedding_dim is not None and self.embedding_dim < 1:
            raise ValueError(f"DualTowerConfig: embedding_dim={self.embedding_dim}; expected 1 or more, or None")
        if (self.user_prefix_ids is None) != (self.turn_end_id is None):
            raise ValueError("DualTowerConfig: user_prefix_ids and turn_end_id go together; one is None")

    @property
    def hidden_size(self) -> int:
        """Width of both towers' states."""
        return self.vlm_config.text_config.hidden_size

    @property
    def vector_size(self) -> int:
        """Size of `embeddings`."""
        return self.embedding_dim or self.hidden_size


def _read_vlm_config(vlm_config: Any) -> PreTrainedConfig:
    if vlm_config is None:
        vlm_config = {"model_type": BACKBONES[0]}
    found = vlm_config.get("model_type") if isinstance(vlm_config, dict) else getattr(vlm_config, "model_type", None)
    if found not in BACKBONES:
        raise ValueError(
            f"DualTowerConfig: vlm_config has model type {found!r}; expected one of {', '.join(BACKBONES)}"
        )
    vlm_config = copy.deepcopy(vlm_config)
    if isinstance(vlm_config, dict):
        vlm_config = CONFIG_MAPPING[found](
            **{name: value for name, value in vlm_config.items() if name != "model_type"}
        )
    vlm_config._name_or_path = ""
    if hasattr(vlm_config.vision_config, "deepstack_visual_indexes"):
        vlm_config.vision_config.deepstack_visual_indexes = []
    return vlm_config


@dataclass
class DualTowerOutput(ModelOutput):
    """`embeddings` (B, D) float32, of unit length."""

    embeddings: torch.Tensor | None = None


class TowerProjection(nn.Linear):
    """Linear map to the vector's size; like Moon's it starts as the identity on the first dimensions."""


class DualTower(PreTrainedModel):
    r"""A model with two towers that encodes the image and the text of a record separately and adds the two vectors.

    `v = normalise(W_v mean_n vision(image)_n)`, `t = normalise(W_t mean_{user tokens} text(tokens))`,
    `embedding = normalise(v + t)`; a part that the record does not have contributes nothing. Our design (precedent:
    CLIP, arXiv 2103.00020, with the score fusion of UniIR, arXiv 2311.17136).

    The text tower is the base's language model over the prompt's text tokens only: image placeholders and vision markers
    are removed, and positions are counted without them. The instruction and the chat markers are context; the mean is
    over the user's own tokens (`config.user_prefix_ids`). A row without a user's turn (a plain prompt without the chat
    template) is pooled over all its text tokens.

    Args:
        config: DualTowerConfig.

    Relations: Moon's joint transformer is compared with this baseline, on the same batches.
    """

    config_class = DualTowerConfig
    input_modalities = ["image", "text"]
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_attention_backend = True

    def __init__(self, config: DualTowerConfig) -> None:
        super().__init__(config)
        self.vlm = AutoModel.from_config(config.vlm_config)
        self.image_projection = TowerProjection(config.hidden_size, config.vector_size, bias=False)
        self.text_projection = TowerProjection(config.hidden_size, config.vector_size, bias=False)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, TowerProjection):
            init.copy_(module.weight, torch.eye(module.out_features, module.in_features, device=module.weight.device))

    @classmethod
    def from_base(
        cls, base: str | Path, processor: Any, *, embedding_dim: int | None = 256, seed: int | None = None
    ) -> DualTower:
        """Make a dual tower with a base's vision and text weights.

        Args:
            base: folder or hub id of a Qwen3-VL or Qwen2.5-VL checkpoint.
            processor: the processor that it will be used with (that of the Moon model upcycled from this base). If its
                tokenizer has tokens that the base lacks, the embedding matrix grows.
            embedding_dim (`int` or `None`): as in `DualTowerConfig`.
            seed (`int` or `None`): seed of random weights in the base's shape. Default `None`: the base's weights.

        Raises:
            ValueError: a checkpoint of a different architecture.
        """
        tokenizer = processor.tokenizer
        prefix, turn_end = processor.user_turn
        config = DualTowerConfig(
            vlm_config=AutoConfig.from_pretrained(base),
            embedding_dim=embedding_dim,
            user_prefix_ids=prefix,
            turn_end_id=turn_end,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0 if seed is None else seed)
            model = cls(config)
        if seed is None:
            model.vlm = AutoModel.from_pretrained(base, config=copy.deepcopy(config.vlm_config))
        if len(tokenizer) > model.config.vlm_config.text_config.vocab_size:
            model.resize_token_embeddings(len(tokenizer))
        return model.eval()

    def get_input_embeddings(self) -> nn.Module:
        return self.vlm.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.vlm.set_input_embeddings(value)

    def forward(
        self,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor | None = None,
        pixel_values: torch.FloatTensor | None = None,
        image_grid_thw: torch.LongTensor | None = None,
        mm_token_type_ids: torch.LongTensor | None = None,
        return_dict: bool | None = None,
    ) -> DualTowerOutput | tuple:
        """Encode a batch from the processor.

        Args:
            input_ids: (B, T) int64 with `<|image_pad|>` once per image token.
            attention_mask: (B, T), 1 for attended tokens; padding may be on either side. None: all are attended.
            pixel_values, image_grid_thw: the images of the batch in the order of the rows, as for MoonModel.
            mm_token_type_ids: accepted because batches for MoonModel have it, but not used: image tokens are found by id.

        Raises:
            ValueError: images that do not fit the placeholders, or a row with neither image nor text.
        """
        attended_BT = torch.ones_like(input_ids).bool() if attention_mask is None else attention_mask.bool()
        text_BD, has_text_B = self._encode_text(input_ids, attended_BT)
        image_BD, has_image_B = self._encode_images(input_ids, attended_BT, pixel_values, image_grid_thw)
        empty = ~(has_text_B | has_image_B)
        if empty.any():
            raise ValueError(f"rows {empty.nonzero().flatten().tolist()} have neither an image nor text of the user")
        fused_BD = _unit(text_BD) * has_text_B[:, None] + _unit(image_BD) * has_image_B[:, None]
        result = DualTowerOutput(embeddings=_unit(fused_BD))
        return result if return_dict is not False else result.to_tuple()

    def _encode_images(
        self,
        input_ids: torch.Tensor,
        attended_BT: torch.Tensor,
        pixel_values: torch.Tensor | None,
        image_grid_thw: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        count_B = ((input_ids == self.config.vlm_config.image_token_id) & attended_BT).sum(dim=1)
        if pixel_values is None:
            if count_B.any():
                raise ValueError("input_ids hold image placeholders, but there are no pixel_values")
            return torch.zeros(len(input_ids), self.config.vector_size, device=input_ids.device), count_B > 0
        visual = self.vlm.visual
        state_NH = visual(pixel_values.to(visual.dtype), grid_thw=image_grid_thw, return_dict=True).pooler_output
        if len(state_NH) != int(count_B.sum()):
            raise ValueError(
                f"{len(state_NH)} image tokens from the images, {int(count_B.sum())} placeholders in input_ids"
            )
        row_N = torch.repeat_interleave(torch.arange(len(input_ids), device=input_ids.device), count_B)
        sum_BH = torch.zeros(len(input_ids), state_NH.shape[1], device=state_NH.device)
        sum_BH = sum_BH.index_add(0, row_N, state_NH.float())
        mean_BH = sum_BH / count_B.clamp(min=1)[:, None]
        return self._project(self.image_projection, mean_BH), count_B > 0

    def _encode_text(self, input_ids: torch.Tensor, attended_BT: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        vlm_config = self.config.vlm_config
        vision_ids = [
            vlm_config.image_token_id,
            vlm_config.video_token_id,
            vlm_config.vision_start_token_id,
            vlm_config.vision_end_token_id,
        ]
        is_text_BT = attended_BT & ~torch.isin(input_ids, torch.tensor(vision_ids, device=input_ids.device))
        # The text tokens of each row, moved to its start: there is no placeholder or padding before or between them.
        order_BT = torch.argsort(~is_text_BT, dim=1, stable=True)[:, : max(1, int(is_text_BT.sum(dim=1).max()))]
        ids_BT, is_text_BT = input_ids.gather(1, order_BT), is_text_BT.gather(1, order_BT)
        own_ids_BT = ids_BT.masked_fill(~is_text_BT, -1)
        pooled_BT = is_text_BT & user_tokens(own_ids_BT, self.config.user_prefix_ids, self.config.turn_end_id)
        # Padding follows the text, and causal attention never reads it: no mask is needed.
        ids_BT = ids_BT.masked_fill(~is_text_BT, 0)
        state_BTH = self.vlm.language_model(input_ids=ids_BT, use_cache=False, return_dict=True).last_hidden_state
        weight_BT = pooled_BT.float()
        mean_BH = (state_BTH.float() * weight_BT[..., None]).sum(1) / weight_BT.sum(1, keepdim=True).clamp(min=1)
        return self._project(self.text_projection, mean_BH), pooled_BT.any(dim=1)

    @staticmethod
    def _project(projection: nn.Linear, state_BH: torch.Tensor) -> torch.Tensor:
        return projection(state_BH.to(projection.weight.dtype)).float()


def _unit(vector_BD: torch.Tensor) -> torch.Tensor:
    return functional.normalize(vector_BD, dim=-1)


AutoConfig.register(DualTowerConfig.model_type, DualTowerConfig, exist_ok=True)
AutoModel.register(DualTowerConfig, DualTower, exist_ok=True)
MODEL_TYPES.add(DualTowerConfig.model_type)
