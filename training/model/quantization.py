"""QLoRA: train adapters on a frozen base in 4 or 8 bits. We have not tested it on a GPU."""

from typing import Any

import torch
from transformers import BitsAndBytesConfig
from transformers.utils import is_bitsandbytes_available

WHOLE_MODULES = ("visual", "router", "fire", "fusion", "detail_mergers", "projection", "lm_head")
"""Modules whose linear layers are not quantized: those that see pictures, and small ones that route or come last."""


def check_quantization(model: Any) -> None:
    """Raise ValueError for a quantized base that cannot be trained.

    Args:
        model: a `training.recipe.model.ModelArguments`.

    Raises:
        ValueError: the recipe has no adapters or an unsupported architecture, or the machine lacks a CUDA GPU or
            bitsandbytes.
    """
    if model.quantization == "none":
        return
    found = f"quantization: found {model.quantization}"
    if model.lora is None:
        raise ValueError(f"{found} without lora; expected lora, because quantized weights cannot be trained, or none")
    if model.architecture != "moon":
        raise ValueError(f"{found} with architecture {model.architecture}; expected moon, or quantization none")
    if not torch.cuda.is_available():
        raise ValueError(f"{found} on a machine without a CUDA GPU; expected a CUDA GPU, or quantization none")
    if not is_bitsandbytes_available():
        raise ValueError(f"{found} without the package bitsandbytes; run pip install bitsandbytes, or set none")


def quantization_config(kind: str) -> BitsAndBytesConfig | None:
    """Return the quantization configuration, or None for "none".

    4 bits: NF4 with double quantization, computing in bfloat16. Source: QLoRA, arXiv 2305.14314, §3. 8 bits:
    LLM.int8(), arXiv 2208.07339.

    bitsandbytes quantizes only `nn.Linear`. Moon's experts are 3-D parameters and keep 2 bytes per weight, like token
    embeddings. If every layer has experts, only the attention of the text model becomes smaller. peft's
    `prepare_model_for_kbit_training` is not called, because it would cast experts and embeddings, most of the weights,
    to float32. The base is frozen when adapters are added, normalizations compute in float32 anyway, and
    `gradient_checkpointing` of the recipe is not reentrant, so inputs do not need a gradient.

    Args:
        kind: "none", "8bit" or "4bit".
    """
    if kind == "none":
        return None
    if kind == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=list(WHOLE_MODULES))
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
        llm_int8_skip_modules=list(WHOLE_MODULES),
    )
