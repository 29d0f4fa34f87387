"""Decide which products and queries reason before they are embedded: those whose nearest neighbour is uncertain.

Shape suffixes: B batch rows, N vectors of a gallery, D size of the vector.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional

THRESHOLD = 0.05
_ROWS_PER_BLOCK = 1024


class MarginGate:
    """Select the vectors whose two nearest gallery vectors are almost equally near.

    `margin_b = s_b1 − s_b2`, where s_b1 and s_b2 are the largest and the second largest cosine of vector b with the rows of
    the gallery; `unsure_b = margin_b < threshold`. Our design. Precedent: margin sampling of active learning (Scheffer et
    al. 2001); that vectors with and without reasoning complement each other is a finding of UME-R1 (arXiv 2511.00405). A
    learned gate would need queries labelled with whether reasoning helped them, for every checkpoint and every gallery.
    The margin needs no labels and adapts to the gallery. Its limits: two near-identical products in a gallery make every
    query for them unsure, and a query that is confidently wrong does not reason; `moon3 gate` draws the curve.

    Args:
        gallery: (N, D) tensor or array, the vectors that are searched, of any length but 0, embedded with or without
            reasoning.
        threshold (`float`): in [0, 2]; with 0, no vector is unsure. Default 0.05.

    Raises:
        ValueError: a gallery that is not numeric or not (N, D), has fewer than 2 rows, or has a row that is 0 or not finite;
            a threshold outside [0, 2].
    """

    def __init__(self, gallery: Any, threshold: float = THRESHOLD) -> None:
        accepted = "expected vectors (N, D) of at least 2 products, as a tensor or an array of numbers"
        try:
            gallery_ND = torch.as_tensor(gallery)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"gallery: found {type(gallery).__name__}; {accepted}") from error
        if gallery_ND.ndim != 2 or gallery_ND.shape[0] < 2 or gallery_ND.is_complex():
            raise ValueError(f"gallery: found shape {tuple(gallery_ND.shape)} of {gallery_ND.dtype}; {accepted}")
        if isinstance(threshold, bool) or not isinstance(threshold, int | float) or not 0 <= threshold <= 2:
            raise ValueError(f"threshold={threshold!r}; expected a number in [0, 2], a difference of two cosines")
        self.gallery_ND, self.threshold = gallery_ND.detach().float(), float(threshold)
        self.norm_N = torch.linalg.vector_norm(self.gallery_ND, dim=1)
        bad = ((self.norm_N == 0) | ~self.norm_N.isfinite()).nonzero()[:, 0].tolist()
        if bad:
            raise ValueError(f"gallery: rows {bad[:5]} are 0 or not finite; expected vectors that have a direction")

    @property
    def width(self) -> int:
        """Size of the gallery's vectors."""
        return self.gallery_ND.shape[1]

    def margins(self, vector_BD: torch.Tensor, exclude: Sequence[Sequence[int]] | None = None) -> torch.Tensor:
        """Return the margin of each vector.

        Args:
            vector_BD: vectors of any length, at least as wide as the gallery's. Of wider ones (Matryoshka), the first part
                is compared.
            exclude: for each vector, the rows of the gallery that it does not search. Default None: it searches all rows.

        Shapes: returns (B,) float32 in [0, 2]; inf if fewer than two rows are left to search.

        Raises:
            ValueError: vectors narrower than the gallery's.
        """
        if vector_BD.shape[1] < self.width:
            raise ValueError(
                f"found vectors of size {vector_BD.shape[1]}; expected at least {self.width}, the gallery's size"
            )
        gallery_ND, norm_N = self.gallery_ND.to(vector_BD.device), self.norm_N.to(vector_BD.device)
        margins = [torch.zeros(0, device=vector_BD.device)]
        for start in range(0, vector_BD.shape[0], _ROWS_PER_BLOCK):
            block_BD = functional.normalize(vector_BD[start : start + _ROWS_PER_BLOCK, : self.width].float(), dim=-1)
            cosine_BN = block_BD @ gallery_ND.T / norm_N
            for row, excluded in enumerate(exclude[start : start + _ROWS_PER_BLOCK] if exclude is not None else ()):
                cosine_BN[row, list(excluded)] = -torch.inf
            best_B2 = cosine_BN.topk(2, dim=1).values
            margin_B = (best_B2[:, 0] - best_B2[:, 1]).clamp(max=2)
            margins.append(torch.where(best_B2[:, 1].isfinite(), margin_B, torch.inf))
        return torch.cat(margins)

    def unsure(self, margin_B: torch.Tensor) -> torch.Tensor:
        """Return (B,) bool: whether each margin is below the threshold."""
        return margin_B < self.threshold


def make_gate(config: Any, reasoning: str, gallery: Any, threshold: float | None) -> MarginGate | None:
    """Make the gate of `reasoning="auto"` for a model's vectors; return None for every other kind of reasoning.

    Args:
        config: MoonConfig, for the sizes of the model's vectors.
        reasoning: "none", "generate", "given" or "auto".
        gallery: see `MarginGate`.
        threshold: see `MarginGate`; None: its default.

    Raises:
        ValueError: a gallery or a threshold without "auto"; "auto" without a gallery, or with a gallery of another width;
            see `MarginGate`.
    """
    if reasoning != "auto":
        for name, value in (("gallery", gallery), ("threshold", threshold)):
            if value is not None:
                raise ValueError(f"{name}= was given with reasoning={reasoning!r}; expected with reasoning='auto'")
        return None
    if gallery is None:
        raise ValueError("reasoning='auto' without gallery=; expected the vectors (N, D) that will be searched")
    gate = MarginGate(gallery, THRESHOLD if threshold is None else threshold)
    widths = dict.fromkeys([config.vector_size, *(config.matryoshka_dims or ())])
    if gate.width not in widths:
        raise ValueError(f"gallery: found vectors of size {gate.width}; expected {' or '.join(map(str, widths))}")
    return gate
