"""Embed the patches of pictures by one matrix product, which a CPU computes several times faster than a convolution."""

from __future__ import annotations

from torch import Tensor, nn


class MatrixPatches(nn.Conv3d):
    """A convolution whose kernel covers its whole input, computed as the matrix product that it is. Our design.

    The weights, their names and the result, up to the rounding of float32, are those of the convolution. On one CPU core the
    convolution takes a quarter of a training step of a small model, the product 2 % of it.

    Shapes:
        (P, C, K1, K2, K3) of kernel size (K1, K2, K3) → (P, D, 1, 1, 1).
    """

    def forward(self, input: Tensor) -> Tensor:
        """Return the embedded patches."""
        rows = nn.functional.linear(input.flatten(1), self.weight.flatten(1), self.bias)
        return rows[:, :, None, None, None]


def patches_by_matrix(model: nn.Module) -> int:
    """Replace in place how the patch embeddings of a model are computed, and return how many were found.

    Args:
        model: any; a patch embedding is a three-dimensional convolution named `proj` of a module named `patch_embed` whose
            stride is its kernel.
    """
    found = 0
    for name, module in model.named_modules():
        if name.endswith("patch_embed.proj") and type(module) is nn.Conv3d and module.stride == module.kernel_size:
            module.__class__ = MatrixPatches
            found += 1
    return found
