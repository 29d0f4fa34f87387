"""The output of the processor: tensors, and the records that were skipped or shortened."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import BatchFeature


@dataclass(frozen=True)
class Skipped:
    """A product or query that was left out of the batch.

    Args:
        index: its index in the call.
        item: its name, as in the error.
        field: the part of it that cannot be used.
        reason: what was found and what is expected.
    """

    index: int
    item: str
    field: str
    reason: str


@dataclass(frozen=True)
class Shortened:
    """A part of a product or query that was reduced to keep the token budget: a text that was cut, images that were resized.

    Args:
        index: index of the product or query in the call.
        field: "images" (all of them, including the core crop), "description", "attributes", "title", "category",
            "reasoning" or, for a query, "text".
        tokens_before: number of tokens of that part before; for images, within `max_image_tokens`.
        tokens_after: number of tokens of that part after; 0 if it was left out, which images never are.
    """

    index: int
    field: str
    tokens_before: int
    tokens_after: int


class MoonBatch(BatchFeature):
    """The tensors of a batch, with attributes (not keys) that list which records were kept, skipped and shortened.

    Args:
        data: the tensors by name.
        tensor_type: "pt", "np" or None, as in `BatchFeature`.
        kept: indices in the call of the records in the batch, in order.
        skipped: the records that were left out.
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
