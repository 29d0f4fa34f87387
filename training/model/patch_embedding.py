"""Embed the patches of pictures by a matrix product, which a CPU computes several times faster than a convolution."""

from __future__ import annotations

from torch import Tensor, nn


class MatrixPatches(nn.Conv3d):
    """A convolution whose kernel covers its whole input, computed as a matrix product. Our design.

    The weights and their names are those of the convolution, and so is the result up to the rounding of float32. On one
    CPU core, the convolution takes a quarter of the training step of a small model; the matrix product takes 2 %.

    Shapes:
        (P, C, K1, K2, K3) of kernel size (K1, K2, K3) → (P, D, 1, 1, 1).
    """

    def forward(self, input: Tensor) -> Tensor:
        """Return the embedded patches."""
        rows = nn.functional.linear(input.flatten(1), self.weight.flatten(1), self.bias)
        return rows[:, :, None, None, None]


def patches_by_matrix(model: nn.Module) -> int:
    """Compute the patch embeddings of a model by matrix products from now on, and return their number.

    Args:
        model: any model. A patch embedding is a three-dimensional convolution `proj` in a module `patch_embed`, whose
            stride equals its kernel size.
    """
    count = 0
    for name, module in model.named_modules():
        if name.endswith("patch_embed.proj") and type(module) is nn.Conv3d and module.stride == module.kernel_size:
            module.__class__ = MatrixPatches
            count += 1
    return count
