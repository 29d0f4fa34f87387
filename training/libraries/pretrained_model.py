"""Read and call what transformers' PreTrainedModel keeps to itself.

The names are those of transformers 5.18 to 5.23; `tests/training/libraries/test_pretrained_model.py` compares them with the
installed version.
"""

from typing import Any

from torch import nn


def layers_in_one_piece(model: nn.Module) -> list[str]:
    """Return the class names of the layers that a model wants on one device, which are also FSDP's units; else none."""
    return list(getattr(model, "_no_split_modules", None) or ())


def initialize(part: nn.Module, model: Any) -> None:
    """Fill a part of a model with fresh weights by the model's own rule; draws from torch's global generator."""
    part.apply(model._init_weights)
