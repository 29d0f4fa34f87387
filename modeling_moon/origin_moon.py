"""Load the processor and the output layer of a model from the checkpoint that the model came from."""

from __future__ import annotations

import re
from typing import Any

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

_COMMIT = re.compile(r"\.([0-9a-f]{40})\.")


def own_processor(model: Any) -> Any:
    """Return the processor of the checkpoint that a model came from; it is loaded once.

    Raises:
        ValueError: the model was not loaded from a checkpoint.
    """
    if getattr(model, "_processor", None) is None:
        model._processor = AutoProcessor.from_pretrained(_origin(model, "processor="), **_revision(model))
    return model._processor


def load_output_layer(model: Any) -> torch.Tensor:
    """Load the untied output layer (vocabulary, H) of the checkpoint that an encoder came from.

    The whole checkpoint is in memory while it is read.

    Raises:
        ValueError: the encoder was not loaded from a checkpoint.
    """
    origin = _origin(model, "AutoModelForImageTextToText, whose model has the output layer")
    whole = AutoModelForImageTextToText.from_pretrained(origin, dtype=model.dtype, **_revision(model))
    return whole.lm_head.weight.data


def _origin(model: Any, alternative: str) -> str:
    if not model.config._name_or_path:
        raise ValueError(f"this model was not loaded from a checkpoint; expected {alternative}")
    return model.config._name_or_path


def _revision(model: Any) -> dict[str, Any]:
    """Return the commit that the model came from; its code was trusted when the model was loaded."""
    code = _COMMIT.search(type(model).__module__)  # the configuration of transformers 5.18 does not name it
    commit = getattr(model.config, "_commit_hash", None) or (None if code is None else code[1])
    revision = {} if commit is None else {"revision": commit}
    if not type(model).__module__.startswith("transformers_modules"):
        return revision
    code_revision = {} if commit is None else {"code_revision": commit}
    return revision | code_revision | {"trust_remote_code": True}
