"""Read and call what transformers' PreTrainedModel and its configuration keep to themselves.

The names are those of transformers 5.17 to 5.23; `tests/training/libraries/test_pretrained_model.py` compares them with the
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


def commit_of(model: Any) -> str:
    """Return the commit of the hub's repository that a model was loaded from; "" for one from a folder."""
    return getattr(model.config, "_commit_hash", None) or ""
