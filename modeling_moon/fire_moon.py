"""Fine-grained residual enhancement (MOON3.0): add local detail to the hidden states at chosen decoder layers.

Shape suffixes: B batch rows, T tokens of a row, H hidden width, P image tokens of the whole batch, V levels of visual detail.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional
from transformers.vision_utils import get_vision_window_index

from .configuration_moon import MoonConfig


class Details(NamedTuple):
    """The local detail of each token: input embeddings (B, T, H); a mask (B, T) bool of the image tokens; and levels
    (V, P, H) of visual detail, in the order of the image tokens. Without levels, the detail is the input embedding."""

    embeds_BTH: torch.Tensor
    is_image_BT: torch.Tensor | None = None
    levels_VPH: torch.Tensor | None = None


class MoonFire(nn.Module):
    r"""Fine-grained residual enhancement of one decoder layer.

    `h' = h + λ · σ(wᵀ GELU(W[LN h; LN s])) ⊙ F(LN s)`; F is a low-rank network. s is the token's local detail: for a text
    token its input embedding, for an image token the levels of the vision tower, mixed by learned weights of this layer
    (softmax, equal at first). λ starts at 0, so a fresh model computes the same as its base. MOON3.0
    (arXiv 2604.00513) gives the part and its aim; the form is our design (precedent: DeepStack, arXiv 2406.04334).

    Args:
        config: MoonConfig.
        num_levels: V, the levels of visual detail; 0 if image tokens have no such levels.

    Shapes: hidden (B, T, H), details -> (B, T, H).
    """

    def __init__(self, config: MoonConfig, num_levels: int) -> None:
        super().__init__()
        width, rank = config.hidden_size, config.fire_rank
        self.num_levels = num_levels
        self.hidden_norm, self.detail_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.gate_in = nn.Linear(2 * width, rank, bias=False)
        self.gate_out = nn.Linear(rank, 1, bias=False)
        self.down, self.up = nn.Linear(width, rank, bias=False), nn.Linear(rank, width, bias=False)
        self.scale = nn.Parameter(torch.empty(1))  # λ
        self.level_scores = nn.Parameter(torch.empty(num_levels)) if num_levels > 1 else None

    def detail(self, details: Details) -> torch.Tensor:
        """Return s (B, T, H), the detail of each token."""
        if details.levels_VPH is None:
            return details.embeds_BTH
        if self.level_scores is None:
            mixed_PH = details.levels_VPH[0]
        else:
            share_V = self.level_scores.softmax(dim=0).to(details.levels_VPH.dtype)
            mixed_PH = torch.einsum("v,vph->ph", share_V, details.levels_VPH)
        # Under autocast the mixture has the narrower dtype.
        return details.embeds_BTH.masked_scatter(details.is_image_BT[..., None], mixed_PH.to(details.embeds_BTH))

    def forward(self, hidden_BTH: torch.Tensor, details: Details) -> torch.Tensor:
        detail_BTH = self.detail_norm(self.detail(details))
        pair_BT2H = torch.cat([self.hidden_norm(hidden_BTH), detail_BTH], dim=-1)
        gate_BT1 = self.gate_out(functional.gelu(self.gate_in(pair_BT2H))).sigmoid()
        added_BTH = self.scale * gate_BT1 * self.up(functional.gelu(self.down(detail_BTH)))
        return hidden_BTH + added_BTH.to(hidden_BTH.dtype)


class KeptBlock:
    """A block of the vision tower that appends its output to the list that a call passes."""

    def forward(
        self, hidden_states: torch.Tensor, *args: Any, kept_blocks: list[torch.Tensor] | None = None, **kwargs: Any
    ) -> torch.Tensor:
        output = super().forward(hidden_states, *args, **kwargs)  # type: ignore[misc]
        if kept_blocks is not None:
            kept_blocks.append(output)
        return output


class MoonDetailMerger(nn.Module):
    """Merge the patches from one block of the vision tower into image tokens of the text model's width: layer norm, then a
    linear map of a token's concatenated patches. It is the base's patch merger without the hidden layer. Our design."""

    def __init__(self, config: MoonConfig) -> None:
        super().__init__()
        vision = config.vision_config
        self.patches_per_token = vision.spatial_merge_size**2
        self.norm = nn.LayerNorm(vision.hidden_size)
        self.merge = nn.Linear(self.patches_per_token * vision.hidden_size, config.hidden_size, bias=False)

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        return self.merge(self.norm(patches).reshape(-1, self.merge.in_features))


def block_levels(
    mergers: nn.ModuleList, blocks: list[torch.Tensor], image_grid_thw: torch.Tensor, vision: Any
) -> list[torch.Tensor]:
    """Return the outputs of the chosen blocks of the vision tower, (P, H) each, in the order of the image tokens.

    Args:
        mergers: a `MoonDetailMerger` for each block.
        blocks: their outputs, in the order of the tower; Qwen2.5-VL orders patches by window.
        image_grid_thw: (images, 3) patches of each picture.
        vision: configuration of the vision tower.
    """
    levels = [merger(block) for merger, block in zip(mergers, blocks, strict=True)]
    if not hasattr(vision, "window_size"):
        return levels
    by_window_P, _ = get_vision_window_index(
        image_grid_thw, vision.spatial_merge_size, vision.window_size, vision.patch_size
    )
    order_P = by_window_P.argsort().to(levels[0].device)
    return [level_PH[order_P] for level_PH in levels]
