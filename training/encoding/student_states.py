"""Read the states of a model that a teacher pulls: of pictures from the vision tower, and of words.

Shape suffixes: N queries or products, T tokens, M merged patches of all pictures, G pictures, H hidden.
"""

from collections.abc import Mapping
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from training.encoding.chunked_encoding import images_per_row

PICTURES, WORDS = "pictures", "words"
_STATES = {"i": f"/{PICTURES}", "t": f"/{WORDS}", "mm": ""}


def state_name(side: str, form: str) -> str:
    """Return the name of the student's states among the vectors of a batch.

    Args:
        side: "queries" or "products".
        form: the form that a teacher reads.
    """
    return side + _STATES[form]


def is_state(name: str) -> bool:
    """Return whether a name among the vectors of a batch is that of states, which are no vectors of rows of their own."""
    return name.endswith((_STATES["i"], _STATES["t"]))


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
    """Return the mean state of the pictures of each query or product; 0 for one without a picture.

    Args:
        merged_MH: the vision tower's output; None if none of them has a picture.
        inputs: the processor's tensors of the queries or products.
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
    """Return the mean last hidden state of each query or product over the tokens that are not of pictures, (N, H) with gradient.

    Written reasoning, which has labels, is left out: a teacher did not read it."""
    is_word_BT = inputs["attention_mask"].bool() & (inputs["mm_token_type_ids"] == 0)
    if "labels" in inputs:
        is_word_BT = is_word_BT & (inputs["labels"] < 0)  # ids are at least 0; other tokens have a negative label
    weight_BT = is_word_BT / is_word_BT.sum(dim=1, keepdim=True).clamp(min=1)
    return torch.einsum("bt,bth->bh", weight_BT.to(last_BTH.dtype), last_BTH)
