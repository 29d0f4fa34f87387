"""Encode products with an earlier model that is not trained, for backward-compatible training."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from retrieval.encode import vectors_of
from training.encoding.chunked_encoding import number_of_rows, slice_rows


class EarlierModel:
    """A frozen model whose product vectors a new model's queries must be able to search.

    It stays in evaluation mode and has no random state, so that a resumed run sees the same vectors.

    Args:
        model: the earlier model. Its forward returns `.embeddings`. Its parameters are frozen.
        processor: its processor, which prepares the products in the collator.

    Relations:
        `training.contrastive.terms.compatible_term` compares queries with its vectors.
    """

    def __init__(self, model: nn.Module, processor: Any) -> None:
        self.model, self.processor = model.eval().requires_grad_(False), processor

    @torch.no_grad()
    def encode(self, inputs: Mapping[str, Any], chunk_size: int | None = None) -> Tensor:
        """Return the vectors of a batch of products, without gradient.

        Args:
            inputs: the tensors of its processor.
            chunk_size: the largest number of products that are encoded at once. None: all.

        Shapes:
            (N, D) float32.
        """
        parameter = next(self.model.parameters())
        with torch.autocast(device_type=parameter.device.type, enabled=False):
            rows = number_of_rows(inputs)
            size = rows if chunk_size is None else chunk_size
            parts = [slice_rows(inputs, start, min(start + size, rows)) for start in range(0, rows, size)]
            return torch.cat([vectors_of(self.model(**_cast(part, parameter.dtype))).float() for part in parts])


def _cast(inputs: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    return {name: value.to(dtype) if value.is_floating_point() else value for name, value in inputs.items()}
