"""Compute a vision tower's patch embedding as a matrix product, while vectors are made.

A convolution whose kernel is as large as its input gives one output for each patch: a matrix product. Processors of Qwen's
kind pass patches one by one, and libraries run that convolution several times slower than the product. Precedent: vLLM's
`Conv3dLayer`, which does the same for these models.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch.nn import functional


@contextmanager
def linear_patch_embedding(model: torch.nn.Module) -> Iterator[None]:
    """Replace the 3-D convolutions of a model that take whole patches by matrix products inside the context.

    `y_PO = x_P(CFHW) · W_O(CFHW)ᵀ + b_O`: the same sum in another order, so results agree up to float rounding. An input that is
    larger than the kernel goes through the convolution.

    Args:
        model: any model; one without such a convolution stays as it is.
    """
    whole_patches = [
        module
        for module in model.modules()
        if type(module) is torch.nn.Conv3d and module.groups == 1 and not any(module.padding)
    ]
    for convolution in whole_patches:
        convolution.forward = partial(_product, convolution)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for convolution in whole_patches:
            del convolution.forward


def _product(convolution: torch.nn.Conv3d, patches_PCFHW: torch.Tensor) -> torch.Tensor:
    if patches_PCFHW.shape[2:] != convolution.weight.shape[2:]:
        return torch.nn.Conv3d.forward(convolution, patches_PCFHW)
    product_PO = functional.linear(patches_PCFHW.flatten(1), convolution.weight.flatten(1), convolution.bias)
    return product_PO[:, :, None, None, None]
