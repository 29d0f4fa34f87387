"""Pack rows into one row without padding, and unpack the states of the text model.

Shape suffixes: B batch rows, T tokens of a row, N attended tokens of the whole batch, H hidden width.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from .fire_moon import Details


class Inputs(NamedTuple):
    """Inputs of the text model: embeddings (B, T, H) that contain the pictures, a mask (B, T) bool of the image tokens, and the
    further arguments of its layers."""

    embeds_BTH: torch.Tensor
    is_image_BT: torch.Tensor
    for_layers: dict[str, Any]


def pack(inputs: Inputs, mask_BT: torch.Tensor) -> Inputs:
    """Pack the attended tokens of all rows into one row (1, N)."""

    def one_row(value: Any) -> Any:
        if isinstance(value, Details):
            return value._replace(embeds_BTH=one_row(value.embeds_BTH), is_image_BT=one_row(value.is_image_BT))
        if isinstance(value, torch.Tensor) and value.shape[:2] == mask_BT.shape:
            return value[mask_BT][None]
        return value

    return Inputs(*map(one_row, inputs[:2]), {name: one_row(value) for name, value in inputs.for_layers.items()})


def packed_positions(position_3BT: torch.Tensor | None, mask_BT: torch.Tensor) -> torch.Tensor:
    """Return positions (4, 1, N): first the position in the text, which restarts at every row and thus shows the kernel where a
    row begins, then the three of the multimodal rotary encoding."""
    text_BT = mask_BT.long().cumsum(dim=1) - 1
    all_4BT = torch.cat([text_BT[None], text_BT.expand(3, -1, -1) if position_3BT is None else position_3BT])
    return all_4BT[:, mask_BT.bool()][:, None]


def in_rows(packed_1NH: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
    """Unpack the states of packed rows into (B, T, H), with zeros at padding."""
    rows_BTH = packed_1NH.new_zeros(*mask_BT.shape, packed_1NH.shape[-1])
    return rows_BTH.masked_scatter(mask_BT.bool()[..., None], packed_1NH)
