"""QLoRA: a frozen base in 4 or 8 bits under adapters that learn. Not run by us for want of a GPU; see CONTRIBUTING.md."""

from typing import Any

import torch
from transformers import BitsAndBytesConfig
from transformers.utils import is_bitsandbytes_available

WHOLE_MODULES = ("visual", "router", "fire", "fusion", "detail_mergers", "projection", "lm_head")
"""Modules whose linear layers keep their precision: pictures' detail, and small parts that decide or come last."""


def check_quantization(model: Any) -> None:
    """Refuse a quantised base where it cannot be trained.

    Args:
        model: a `training.recipe.model.ModelArguments`.

    Raises:
        ValueError: no adapters, another architecture, no GPU, or no bitsandbytes; names the key, what was found and what
            is accepted.
    """
    if model.quantization == "none":
        return
    found = f"quantization: found {model.quantization}"
    if model.lora is None:
        raise ValueError(f"{found} without lora; expected with lora, because quantised weights do not learn, or none")
    if model.architecture != "moon":
        raise ValueError(f"{found} with architecture {model.architecture}; expected moon, or quantization none")
    if not torch.cuda.is_available():
        raise ValueError(f"{found} on a machine without a CUDA GPU; expected a CUDA GPU, or quantization none")
    if not is_bitsandbytes_available():
        raise ValueError(f"{found} without the package bitsandbytes; expected pip install bitsandbytes, or none")


def quantization_config(kind: str) -> BitsAndBytesConfig | None:
    """Return how weights are kept.

    4 bits: NF4 with the quantisation constants quantised too, computing in bfloat16. Source: QLoRA, arXiv 2305.14314, §3.
    8 bits: LLM.int8(), arXiv 2208.07339.

    bitsandbytes quantises `nn.Linear` alone. Moon's experts are 3-D parameters and keep their 2 bytes a weight, as do token
    embeddings: where every layer has experts, the text model's attention is all that shrinks. The rest is as without
    quantisation. peft's `prepare_model_for_kbit_training` is not called: it would cast experts and embeddings, most of the
    weights, to float32; freezing is done with the adapters, normalisations compute in float32 by themselves, and checkpointing
    is the recipe's `gradient_checkpointing`, never reentrant here, so that inputs need no gradient of their own.

    Args:
        kind: "none" (which returns None), "8bit" or "4bit".
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
