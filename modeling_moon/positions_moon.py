"""Compute token positions for Qwen's multimodal rotary encoding, only from the inputs of a call.

The base stores on its module how far pictures shift the text after them (`rope_deltas`), so two concurrent calls read
each other's value. Here nothing is stored on a module: what a later call needs is stored on the cache of keys and values, which
belongs to one conversation.

Shape suffixes: B batch rows, T tokens of a row, H hidden width, I pictures of the whole batch.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch


class Positions(NamedTuple):
    """Positions of the tokens of a pass.

    Shapes: all_4BT int64 (4, B, T), the index among the attended tokens of the row, then time, height and width;
        offset_B1 int64 (B, 1), how far the pictures so far shift the text after them.
    """

    all_4BT: torch.Tensor
    offset_B1: torch.Tensor


def find_positions(
    vlm: Any,
    is_image_BT: torch.Tensor,
    attention_mask: torch.Tensor | None,
    image_grid_thw: torch.Tensor | None,
    cache: Any = None,
) -> Positions:
    """Return the positions of the new tokens, which follow those in the cache.

    A cache without a stored offset (see `store_offset`) was filled without pictures, and padding was not considered, as the base
    does for text; the new tokens continue in the same way.

    Args:
        vlm: the base's model, asked for the positions inside pictures (a pure function of it).
        is_image_BT: 1 or True at image tokens, for the new tokens.
        attention_mask: (B, past + T), 1 for attended tokens; None or another shape: all are attended.
        image_grid_thw: of the new pictures; None: there are no new pictures.
        cache: keys and values of earlier tokens.

    Raises:
        ValueError: a cache with a different number of rows.
    """
    rows, length = is_image_BT.shape
    past = 0 if cache is None else cache.get_seq_length()
    known_B1 = _stored_offset(cache, rows) if past else None
    is_of_tokens = isinstance(attention_mask, torch.Tensor) and attention_mask.ndim == 2
    if attention_mask is None or not is_of_tokens or (past and known_B1 is None):
        mask_BT = None
        text_BT = torch.arange(length, device=is_image_BT.device).expand(rows, length) + past
        before_B1: Any = past
    else:
        mask_BT = attention_mask[:, -length:]
        counted_BT = (attention_mask.long().cumsum(dim=1) - 1).masked_fill(attention_mask == 0, 0)
        text_BT, before_B1 = counted_BT[:, -length:], attention_mask[:, :-length].sum(dim=1, keepdim=True)
    offset_B1 = text_BT.new_zeros(rows, 1) if known_B1 is None else known_B1.to(text_BT.device)
    if image_grid_thw is None or not bool(is_image_BT.any()):
        return Positions(torch.cat([text_BT[None], (text_BT + offset_B1).expand(3, -1, -1)]), offset_B1)
    types_BT = is_image_BT.long()
    inside_3BT, moved_B1 = vlm.get_rope_index(types_BT, types_BT, image_grid_thw=image_grid_thw, attention_mask=mask_BT)
    return Positions(torch.cat([text_BT[None], inside_3BT + before_B1 + offset_B1]), offset_B1 + moved_B1)


def store_offset(
    cache: Any,
    position_ids: torch.Tensor | None,
    attention_mask: torch.Tensor | None,
    past: Any,
    rows: int,
    has_pictures: bool,
) -> None:
    """Store on a cache how far pictures shift the text, computed from the positions of the tokens that were just added.

    A step with only text does not change the offset: it is stored in the first step and with new pictures.

    Args:
        cache: the cache; None: nothing is stored.
        position_ids: (3 or 4, B, T) of the tokens just added, or (B, T) for only text; None: nothing is stored.
        attention_mask: (B, past + T), 1 for attended tokens; None or another shape: all are attended.
        past: number of tokens in the cache before.
        rows: B.
        has_pictures: whether pictures were added.
    """
    if cache is None or position_ids is None:
        return
    begins = not torch.compiler.is_compiling() and not past  # a static cache counts in a tensor, which stops a compiler
    if hasattr(cache, "picture_offset_B1") and not begins and not has_pictures:
        return
    if position_ids.ndim == 2:
        cache.picture_offset_B1 = position_ids.new_zeros(rows, 1)
        return
    next_B1 = position_ids[-3:].amax(dim=(0, 2))[:, None] + 1
    counted_B1: Any = past + position_ids.shape[-1]
    if isinstance(attention_mask, torch.Tensor) and attention_mask.ndim == 2:
        counted_B1 = attention_mask.sum(dim=1, keepdim=True)
    cache.picture_offset_B1 = (next_B1 - counted_B1).expand(rows, 1)


def _stored_offset(cache: Any, rows: int) -> torch.Tensor | None:
    """Return the stored offset (B, 1), repeated for rows that were expanded since (beams, samples); None if there is none."""
    offset_B1 = getattr(cache, "picture_offset_B1", None)
    if offset_B1 is None:
        return None
    times, rest = divmod(rows, len(offset_B1))
    if rest or not times:
        raise ValueError(
            f"past_key_values: found {rows} rows; expected a multiple of {len(offset_B1)}, the rows of the cache, or position_ids"
        )
    return offset_B1.repeat_interleave(times, dim=0)


def pictures_of_rows(is_image_BT: torch.Tensor, image_grid_thw: torch.Tensor, merge_size: int) -> list[int]:
    """Return the number of pictures in each row, from the number of image tokens.

    Args:
        is_image_BT: bool, True at image tokens.
        image_grid_thw: (I, 3) patches of each picture, in the order of rows.
        merge_size: patches of a token along each side.

    Raises:
        ValueError: the number of image tokens in the rows differs from that of the pictures.
    """
    end_I = (image_grid_thw.prod(dim=-1) // merge_size**2).cumsum(dim=0)
    end_B = is_image_BT.sum(dim=1).cumsum(dim=0)
    if not len(end_I) or end_I[-1] != end_B[-1]:
        expected = int(end_I[-1]) if len(end_I) else 0
        raise ValueError(
            f"found {int(end_B[-1])} image tokens in the rows; expected {expected}, those of image_grid_thw"
        )
    return torch.bincount(torch.searchsorted(end_B, end_I), minlength=len(is_image_BT)).tolist()
