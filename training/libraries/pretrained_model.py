"""Read and call private names of transformers' PreTrainedModel.

transformers 5.18 to 5.23 use these names; `tests/training/libraries/test_pretrained_model.py` checks them against the
installed version.
"""

from typing import Any

from torch import nn


def no_split_layers(model: nn.Module) -> list[str]:
    """Return the class names of the layers that must stay on one device, FSDP's units; empty if unknown."""
    return list(getattr(model, "_no_split_modules", None) or ())


def initialize(part: nn.Module, model: Any) -> None:
    """Initialize a part of a model by the model's own rule, with torch's global generator."""
    part.apply(model._init_weights)
