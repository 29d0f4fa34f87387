"""Matryoshka: apply a contrastive loss at several widths of the same vectors.

Shape suffixes: B queries, C candidates, D embedding width, d a prefix of it.
"""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional

from training.losses.info_nce import Exclusion


class MatryoshkaLoss(nn.Module):
    """The weighted mean of a contrastive loss over prefixes of the vectors.

    `L = Σ_d w_d L(q_{1..d}/|q_{1..d}|, c_{1..d}/|c_{1..d}|) / Σ_d w_d`, over `dims` and the full width. At the full
    width the vectors are not normalized again.

    Source: Matryoshka representation learning, arXiv 2205.13147, §3. The paper takes the sum; the mean, which keeps the
    scale of the loss and its gradient, is our design. MOON Embedding, arXiv 2511.11305, has such outputs.

    Args:
        contrastive: `InfoNCELoss`, or a module with the same `forward`.
        dims: widths below the full one. The full width is always added.
        weights: w of each width in `dims`, above 0. The full width has weight 1. None: all weights are 1.

    Raises:
        ValueError: a width is below 1, repeated, or above that of the vectors; or the weights are not as many as the
            widths, all above 0.

    Relations:
        Wraps `InfoNCELoss` and replaces it.
    """

    def __init__(self, contrastive: nn.Module, dims: Sequence[int], weights: Sequence[float] | None = None) -> None:
        super().__init__()
        dims = [int(width) for width in dims]
        if not dims or min(dims) < 1 or len(set(dims)) < len(dims):
            raise ValueError(f"dims: found {dims}; expected different widths of at least 1")
        weights = [1.0] * len(dims) if weights is None else [float(weight) for weight in weights]
        if len(weights) != len(dims) or not min(weights) > 0:
            raise ValueError(f"weights: found {weights}; expected {len(dims)} numbers above 0, one for each width")
        self.contrastive = contrastive
        self.weights = dict(sorted(zip(dims, weights, strict=True), reverse=True))

    @property
    def temperature(self) -> float:
        """Return τ of the wrapped loss."""
        return float(self.contrastive.temperature)  # type: ignore[arg-type]

    def forward(
        self,
        query_BD: Tensor,
        candidates: Tensor | Sequence[Tensor],
        target_B: Tensor,
        excluded: Tensor | Exclusion | None = None,
        weight_B: Tensor | None = None,
        reduction: str = "mean",
    ) -> Tensor:
        """Return the loss; see `InfoNCELoss.forward` for arguments and shapes."""
        full = query_BD.shape[1]
        if max(self.weights) > full:
            raise ValueError(f"dims: found {max(self.weights)} for vectors of width {full}; expected up to {full}")
        segments = [candidates] if isinstance(candidates, Tensor) else list(candidates)
        weights = {full: 1.0, **{width: weight for width, weight in self.weights.items() if width != full}}
        total = query_BD.new_zeros(())
        for width, weight in weights.items():
            parts = [prefix(vector_ND, width) for vector_ND in (query_BD, *segments)]
            total = total + weight * self.contrastive(parts[0], parts[1:], target_B, excluded, weight_B, reduction)
        return total / sum(weights.values())


def prefix(vector_BD: Tensor, width: int) -> Tensor:
    """Return the first `width` dimensions, normalized to length one; at the full width the vectors unchanged.

    Shapes:
        (B, D) → (B, width), in float32 or wider.
    """
    if width == vector_BD.shape[1]:
        return vector_BD
    part = vector_BD[:, :width]
    return functional.normalize(part.double() if part.dtype.itemsize == 8 else part.float(), dim=1)
