"""Read the states of a model that a teacher pulls: of products' pictures from the vision tower, and of their words.

Shape suffixes: N products, T tokens, M merged patches of all pictures, G pictures, H hidden.
"""

from collections.abc import Mapping
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from training.encoding.chunked_encoding import images_per_row

PICTURES, WORDS = "products/pictures", "products/words"
STATES = {"i": PICTURES, "t": WORDS, "mm": "products"}
"""Form that a teacher reads → name of the student's states among the vectors of a batch."""


class TowerOutput:
    """Context that keeps the vision tower's output of the first forward pass in it.

    Args:
        tower: the vision tower, see `training.encoding.shared_pictures.vision_tower`; its output has `pooler_output`.

    Shapes: `.merged` (M, H), with its graph; None if no picture was encoded.
    """

    def __init__(self, tower: nn.Module) -> None:
        self.tower, self.merged = tower, None

    def __enter__(self) -> "TowerOutput":
        self._handle = self.tower.register_forward_hook(self._see)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._handle.remove()

    def _see(self, module: nn.Module, inputs: Any, output: Any) -> None:
        if self.merged is None:
            self.merged = output.pooler_output


def picture_states(merged_MH: Tensor | None, inputs: Mapping[str, Tensor], width: int) -> Tensor:
    """Return the mean state of each product's pictures; 0 for a product without a picture.

    Args:
        merged_MH: the vision tower's output; None if no product has a picture.
        inputs: the processor's tensors of the products.
        width: H.

    Shapes: (N, H), with gradient.
    """
    image_N = images_per_row(inputs)
    if merged_MH is None:
        return torch.zeros(len(image_N), width, device=image_N.device)
    patch_G = inputs["image_grid_thw"].prod(dim=1)
    row_G = torch.repeat_interleave(torch.arange(len(image_N), device=image_N.device), image_N)
    row_M = torch.repeat_interleave(row_G, patch_G * len(merged_MH) // patch_G.sum())
    sum_NH = merged_MH.new_zeros(len(image_N), merged_MH.shape[1]).index_add(0, row_M, merged_MH)
    return sum_NH / torch.bincount(row_M, minlength=len(image_N)).clamp(min=1)[:, None]


def word_states(last_BTH: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
    """Return the mean of each product's last hidden states over the tokens that are not of pictures, (N, H) with gradient.

    Written reasoning, which has labels, is left out: a teacher did not read it."""
    is_word_BT = inputs["attention_mask"].bool() & (inputs["mm_token_type_ids"] == 0)
    if "labels" in inputs:
        is_word_BT = is_word_BT & (inputs["labels"] < 0)  # ids are at least 0; other tokens have a negative label
    weight_BT = is_word_BT / is_word_BT.sum(dim=1, keepdim=True).clamp(min=1)
    return torch.einsum("bt,bth->bh", weight_BT.to(last_BTH.dtype), last_BTH)
