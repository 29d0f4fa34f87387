"""Check that a recipe works with the launcher, which distributes the training over processes.

`accelerate launch --config_file training/launch/fsdp2.yaml` passes its settings in environment variables. DeepSpeed
requires a GPU, and we have not tested it; recipes that cannot work with it raise an error.
"""

import os
from typing import Any

import torch
from accelerate.utils import is_deepspeed_available
from torch.distributed.fsdp import FSDPModule

from training.libraries.accelerate_library import (
    DEEPSPEED_CONFIG_FILE,
    USE_PARALLELISM_CONFIG,
    is_enabled,
    sharding_backend,
    zero_stage,
)
from training.libraries.fsdp import SUMS_UNUSED


def check_launch(recipe: Any) -> None:
    """Raise ValueError for a recipe or a launch that sharded training does not support.

    Args:
        recipe: a `training.recipe.arguments.Recipe`.

    Raises:
        ValueError: the message names the key of the recipe or the variable of the launcher.
    """
    if is_enabled(USE_PARALLELISM_CONFIG):
        raise ValueError(
            f"accelerate: {USE_PARALLELISM_CONFIG} is not supported; launch with a file in training/launch"
        )
    backend = sharding_backend()
    if backend is None:
        return
    training = recipe.training
    unsupported = (
        (recipe.model.architecture != "moon", "architecture", recipe.model.architecture, "moon"),
        (recipe.model.quantization != "none", "quantization", recipe.model.quantization, "none"),
        (_stage(recipe) != "contrastive", "stage", _stage(recipe), "contrastive"),
        (training.train_minutes is not None, "train_minutes", training.train_minutes, "max_steps"),
        (recipe.loss.queue_momentum is not None, "queue_momentum", recipe.loss.queue_momentum, "null"),
        (bool(recipe.loss.teachers), "teachers", len(recipe.loss.teachers), "none"),
        (training.world_size < 2, "processes", training.world_size, "2 or more"),
    )
    for is_set, key, found, supported in unsupported:
        if is_set:
            raise ValueError(
                f"{key}: {backend} does not support {found}; expected {supported}, or a launch with "
                "training/launch/ddp.yaml"
            )
    if backend == "fsdp":
        _check_fsdp()
    else:
        _check_deepspeed(recipe)


_FSDP_SETTINGS = {
    "FSDP_VERSION": ("1", ("2",)),
    "FSDP_AUTO_WRAP_POLICY": ("NO_WRAP", ("TRANSFORMER_BASED_WRAP",)),
    "FSDP_STATE_DICT_TYPE": ("SHARDED_STATE_DICT", ("FULL_STATE_DICT", "SHARDED_STATE_DICT")),
    "FSDP_OFFLOAD_PARAMS": ("false", ("false",)),
    "FSDP_CPU_RAM_EFFICIENT_LOADING": ("false", ("false",)),
    "FSDP_ACTIVATION_CHECKPOINTING": ("false", ("false",)),
}
"""Variable → (the default of accelerate, the accepted values)."""


def _check_fsdp() -> None:
    if not hasattr(FSDPModule, SUMS_UNUSED):
        raise ValueError(
            f"FSDP: found torch {torch.__version__}, which cannot reduce the gradients of weights that a process "
            "does not use; expected torch 2.13, or training/launch/ddp.yaml"
        )
    for variable, (default, accepted) in _FSDP_SETTINGS.items():
        found = os.environ.get(variable, default)
        if found.lower() not in (value.lower() for value in accepted):
            key = f"{variable.lower()}: found {found}"
            raise ValueError(f"{key}; expected {' or '.join(accepted)}, as in training/launch/fsdp2.yaml")


def _check_deepspeed(recipe: Any) -> None:
    if not torch.cuda.is_available():
        raise ValueError(
            "DeepSpeed: found no GPU; expected GPUs (we have not tested it), or training/launch/fsdp2.yaml, which also "
            "runs on a CPU"
        )
    if not is_deepspeed_available():
        raise ValueError(
            "DeepSpeed: the package deepspeed is not installed; run pip install deepspeed, or use fsdp2.yaml"
        )
    found = os.environ.get(DEEPSPEED_CONFIG_FILE, "none")
    if found != "none":
        raise ValueError(
            f"deepspeed_config_file: found {found}; expected the keys of training/launch/deepspeed_zero2.yaml"
        )
    if recipe.loss.encode_chunk_size is not None:
        raise ValueError(
            f"encode_chunk_size: {recipe.loss.encode_chunk_size} does not work with DeepSpeed, which runs the "
            "backward pass itself; expected null, or training/launch/fsdp2.yaml"
        )
    if zero_stage() not in (2, 3):
        raise ValueError(
            f"zero_stage: found {zero_stage()}; expected 2 or 3, as in training/launch/deepspeed_zero3.yaml"
        )
    if zero_stage() == 3:
        _check_zero3(recipe)


def _check_zero3(recipe: Any) -> None:
    """Raise ValueError for keys that do not work with ZeRO-3, in which all processes must run the same modules."""
    for key in ("query_mix", "product_mix"):
        mix = getattr(recipe.pairs, key)
        seen = [form for form, share in mix.items() if share > 0 and form != "t"]
        if seen:
            raise ValueError(
                f"{key}: {', '.join(seen)} cannot be used with ZeRO-3, where all processes must run the vision tower "
                "together; expected t (text) alone, or training/launch/fsdp2.yaml, which allows every mix"
            )
    for key in ("dual_alignment", "sparsity_weight", "compatible_with"):
        if getattr(recipe.loss, key):
            raise ValueError(
                f"{key}: {getattr(recipe.loss, key)} does not work with ZeRO-3, which shards the weights that it reads; "
                "expected the key to be left out, or training/launch/fsdp2.yaml"
            )


def _stage(recipe: Any) -> str:
    reasoning = getattr(recipe, "reasoning", None)
    return "contrastive" if reasoning is None else reasoning.stage
