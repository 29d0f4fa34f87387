"""Make the vision tower of a base: random with given sizes, or that of a Qwen2.5-VL checkpoint."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel

from product_data.errors import OptionError
from training.model.small_base import SmallBaseConfig, preprocessor_config, vision_config
from training.model.upcycle import base_tensors, local_folder

BACKBONE = "qwen2_5_vl"
# Sizes of a random tower, by the field of SmallBaseConfig that they set. 256 image tokens cover 448×448 pixels.
SIZES = {
    "hidden_size": ("vision_hidden_size", 256),
    "depth": ("vision_depth", 4),
    "max_image_tokens": ("max_image_tokens", 256),
    "min_image_tokens": ("min_image_tokens", 4),
}
_PREFIX = "model.vlm.visual."
_LAST_LAYER = "merger.mlp.2."


@dataclass(frozen=True)
class VisionTower:
    """A vision tower.

    Args:
        config: the configuration, whose `out_hidden_size` is the width of the text model.
        tensors: the weights, by their names in the tower.
        preprocessor: the contents of preprocessor_config.json.
        random: names of the tensors that are random.
    """

    config: Any
    tensors: dict[str, Tensor]
    preprocessor: dict[str, Any]
    random: frozenset[str]


def random_tower(sizes: Mapping[str, int], hidden_size: int, seed: int) -> VisionTower:
    """Return a random tower in the shape of Qwen2.5-VL's, with the initialization of transformers.

    Args:
        sizes: values of `SIZES` that differ from its defaults: `hidden_size` (a multiple of 32), `depth` (at least 2),
            `max_image_tokens` and `min_image_tokens` (a token covers 28×28 pixels).
        hidden_size: the width of the text model.
        seed: the seed of the weights.

    Raises:
        OptionError: an unknown size, or a value out of range.
    """
    unknown = sorted(set(sizes) - set(SIZES))
    if unknown:
        raise OptionError(f"--vision: found {', '.join(unknown)}; expected {', '.join(SIZES)}, or a checkpoint")
    chosen = {field: sizes.get(name, default) for name, (field, default) in SIZES.items()}
    try:
        small = SmallBaseConfig(backbone=BACKBONE, hidden_size=hidden_size, head_dim=hidden_size, **chosen)
    except ValueError as error:
        raise OptionError(f"--vision: {error}") from error
    written = vision_config(small)
    config = AutoConfig.for_model(BACKBONE, vision_config=written).vision_config
    tensors = _random_tensors(config, seed)
    return VisionTower(config, tensors, preprocessor_config(small, written["patch_size"]), frozenset(tensors))


def tower_of(checkpoint: str | Path, hidden_size: int, seed: int) -> VisionTower:
    """Return the vision tower and the image-processor settings of a Qwen2.5-VL checkpoint.

    The last layer of its merger has the width of the text model. If the widths differ, this layer is random.

    Args:
        checkpoint: the folder or hub id.
        hidden_size: the width of the text model.
        seed: the seed of a random last layer.

    Raises:
        OptionError: the checkpoint is not a Qwen2.5-VL, or has no image-processor settings.
        UpcycleError: the checkpoint cannot be downloaded, or has no safetensors.
    """
    folder = local_folder(checkpoint)
    settings = folder / "preprocessor_config.json"
    config = AutoConfig.from_pretrained(folder) if (folder / "config.json").is_file() else None
    if getattr(config, "model_type", None) != BACKBONE or not settings.is_file():
        found = "no config.json" if config is None else f"model type {config.model_type!r}"
        found = found if settings.is_file() else f"{found} and no preprocessor_config.json"
        raise OptionError(f"--vision {checkpoint}: found {found}; expected a Qwen2.5-VL checkpoint or KEY=VALUE")
    stored = base_tensors(folder)
    tensors = {name.removeprefix(_PREFIX): tensor for name, tensor in stored if name.startswith(_PREFIX)}
    config = config.vision_config
    random: frozenset[str] = frozenset()
    if config.out_hidden_size != hidden_size:
        config.out_hidden_size = hidden_size
        new = _random_tensors(config, seed)
        random = frozenset(name for name in tensors if name.startswith(_LAST_LAYER))
        tensors |= {name: new[name] for name in random}
    return VisionTower(config, tensors, json.loads(settings.read_text(encoding="utf-8")), random)


def _random_tensors(config: Any, seed: int) -> dict[str, Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return dict(AutoModel.from_config(config, dtype=torch.float32).state_dict())
