"""What a call of the processor gives back: the tensors, and what became of each item."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import BatchFeature


@dataclass(frozen=True)
class Skipped:
    """An item that was left out of the batch.

    Args:
        index: its place in the call.
        item: its name, as in the error.
        field: which part of it could not be used.
        reason: why.
    """

    index: int
    item: str
    field: str
    reason: str


@dataclass(frozen=True)
class Shortened:
    """A part of an item that was made smaller to keep the token budget: a text that was cut, images that were resized.

    Args:
        index: the item's place in the call.
        field: "images" (all of them, the core crop too), "description", "attributes", "title", "category", "reasoning" or,
            of a query, "text".
        tokens_before: tokens of that part before; of images: within `max_image_tokens`.
        tokens_after: tokens of that part after; 0 where it was left out, which images never are.
    """

    index: int
    field: str
    tokens_before: int
    tokens_after: int


class MoonBatch(BatchFeature):
    """The tensors of a batch, and beside them (not among its keys) what became of each item.

    Args:
        data: the tensors by name.
        tensor_type: "pt", "np" or None, as in `BatchFeature`.
        kept: places in the call of the items in the batch, in order.
        skipped: the items that were left out.
        shortened: the texts that were cut and the images that were resized to keep the token budget.
    """

    def __init__(
        self,
        data: dict[str, Any] | None = None,
        tensor_type: str | None = None,
        *,
        kept: Sequence[int] = (),
        skipped: Sequence[Skipped] = (),
        shortened: Sequence[Shortened] = (),
    ) -> None:
        super().__init__(data, tensor_type=tensor_type)
        self.kept, self.skipped, self.shortened = list(kept), list(skipped), list(shortened)

    def __getstate__(self) -> dict[str, Any]:
        return {"data": self.data, "kept": self.kept, "skipped": self.skipped, "shortened": self.shortened}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.skip_tensor_conversion = None
        self.kept, self.skipped, self.shortened = state["kept"], state["skipped"], state["shortened"]
