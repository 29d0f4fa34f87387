"""Make CLIP-shaped and SigLIP-shaped models with random weights: `clip=random` and `siglip=random`.

What a table shows for them is what the architecture finds without any training: a control for the models that were trained.
Nothing is downloaded. The sizes are small, our design; the tokenizer has one token for each byte.
"""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipImageProcessorPil,
    SiglipModel,
)

RANDOM = "random"
"""The place of a model that is made, not loaded."""
_SPECIAL = ("<pad>", "<s>", "</s>")
_BYTES, _SIDE, _PATCH, _WIDTH = 256, 96, 16, 192
_TOWER = {"hidden_size": _WIDTH, "intermediate_size": 2 * _WIDTH, "num_hidden_layers": 3, "num_attention_heads": 6}


def random_towers(kind: str, *, seed: int = 0) -> tuple[Any, Any, Any]:
    """Return a model, a tokenizer and an image processor: towers of three layers of width 192, pictures of 96 pixels.

    Args:
        kind: "clip" or "siglip".
        seed (`int`): seed of the weights. Default 0.
    """
    tokenizer = _byte_tokenizer()
    text: dict[str, Any] = _TOWER | {"vocab_size": len(tokenizer), "max_position_embeddings": _BYTES}
    text |= {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos")}
    vision = _TOWER | {"image_size": _SIDE, "patch_size": _PATCH}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if kind == "clip":
            crop = {"height": _SIDE, "width": _SIDE}
            pictures = CLIPImageProcessorPil(size={"shortest_edge": _SIDE}, crop_size=crop)
            config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=_WIDTH)
            return CLIPModel(config).eval(), tokenizer, pictures
        own = SiglipConfig(text_config=text | {"projection_size": _WIDTH}, vision_config=vision)
        size = {"height": _SIDE, "width": _SIDE}
        return SiglipModel(own).eval(), tokenizer, SiglipImageProcessorPil(size=size)


def _byte_tokenizer() -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*_SPECIAL, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    pad, start, end = _SPECIAL
    ends = [(token, vocabulary[token]) for token in (start, end)]
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{start} $A {end}", special_tokens=ends)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=pad, bos_token=start, eos_token=end, model_max_length=_BYTES
    )
