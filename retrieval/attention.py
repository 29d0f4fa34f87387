"""Choose the attention implementation of a model by name, and refuse one that cannot run here before anything is loaded.

transformers knows the names: "sdpa" (PyTorch's, the default), "eager", "flash_attention_2" to "flash_attention_4" (their
packages, or prebuilt kernels of the Hub through the package kernels), and a kernel's repository on the Hub by its id.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.utils import is_flash_attn_2_available
from transformers.utils.import_utils import is_kernels_available

from product_data.errors import OptionError

PACKAGES = {
    "flash_attention_2": "flash_attn",
    "flash_attention_3": "flash_attn_interface",
    "flash_attention_4": "flash_attn.cute",
}
INSTALL = "pip install 'moon3[flash]', which loads prebuilt kernels from the Hub"
_HALF = (torch.bfloat16, torch.float16)


def attention_of(name: str, on_gpu: bool, dtype: torch.dtype) -> str:
    """Return the attention implementation, with "auto" replaced by a name.

    Args:
        name: "auto", or a name of transformers. "auto" is "flash_attention_2" where the package flash-attn can compute, otherwise
            "sdpa": kernels are downloaded only on request.
        on_gpu: whether the model will be on a GPU.
        dtype: the type that the attention computes in: that of the weights, or of autocast.

    Raises:
        OptionError: flash attention without a GPU, in float32, or without its package and without kernels.
    """
    if name == "auto":
        return "flash_attention_2" if on_gpu and dtype in _HALF and is_flash_attn_2_available() else "sdpa"
    if not is_flash(name):
        return name
    if not on_gpu:
        raise OptionError(f"attn_implementation {name!r}: found a CPU; expected a CUDA GPU, or sdpa or eager")
    if dtype not in _HALF:
        found = str(dtype).removeprefix("torch.")
        raise OptionError(f"attn_implementation {name!r}: found {found}; expected bfloat16 or float16")
    package = PACKAGES.get(name)
    if not is_kernels_available() and (package is None or not _is_installed(package)):
        wanted = "the package kernels" if package is None else f"the package {package} or kernels"
        raise OptionError(f"attn_implementation {name!r}: found no such package; expected {wanted}: {INSTALL}")
    return name


def is_flash(name: str) -> bool:
    """Return whether a name of transformers is that of flash attention: by version, or by a kernel's id on the Hub."""
    return name in PACKAGES or ("/" in name and "flash" in name)


def set_attention(model: Any, name: str, on_gpu: bool) -> str | None:
    """Give a loaded model an attention implementation by its name, and return that of the model afterwards.

    Args:
        model: a model of transformers, or a peer around one. A model without attention of transformers (BM25) stays as it is, and
            the answer is None.
        name, on_gpu: see `attention_of`.

    Raises:
        OptionError: see `attention_of`; or a name that transformers refuses.
    """
    inner = model if isinstance(model, PreTrainedModel) else getattr(model, "model", None)
    if not isinstance(inner, PreTrainedModel):
        return None
    chosen = attention_of(name, on_gpu, inner.dtype)
    try:
        inner.set_attn_implementation(chosen)
    except (ValueError, ImportError, OSError) as error:
        raise OptionError(f"attn_implementation {name!r}: {error}") from error
    return chosen


def _is_installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:  # the package around a submodule
        return False
