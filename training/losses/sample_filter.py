"""Dynamic sample filtering: triplets that the model does not yet trust pull less.

Shape suffixes: B triplets (query, positive, hard negative).
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

SCHEDULES = ("cosine", "linear", "constant")


def triplet_trust(positive_B: Tensor, negative_B: Tensor, kappa: float, margin: float) -> Tensor:
    """Trust in each triplet: `φ = σ(κ (r_q·r_p - r_q·r_n - m̄))`.

    Source: MOON2.0, arXiv 2511.12449, dynamic sample filtering.

    Args:
        positive_B: r_q·r_p, the similarity with the positive.
        negative_B: r_q·r_n, the similarity with the hard negative; -inf where there is none, which gives φ = 1.
        kappa: κ, the steepness, no unit.
        margin: m̄, by how much the positive shall be nearer, in cosine similarity.

    Shapes:
        (B,), (B,) → (B,) float in [0, 1].
    """
    return torch.sigmoid(kappa * (positive_B - negative_B - margin))


@dataclass(frozen=True)
class SampleFilter:
    """Weights of triplets, from their trust and the progress of training.

    `w = 1 where φ ≥ threshold, otherwise φ / threshold` (or a constant), with
    `m̄(t) = end + (start - end)·c(t)`, c falling from 1 to 0 over training as half a cosine, or linearly.

    Source: MOON2.0, arXiv 2511.12449, for φ, the threshold 0.6 and that m̄ decays, so that easy, trusted triplets come
    first. κ, the schedule and the weight are our design, because the paper gives none (precedent: the soft weights of
    self-paced learning, Jiang et al. 2014): κ = 20 is 1/τ at τ = 0.05, so that φ is what a softmax over positive and
    negative alone would say; the weight has no jump at the threshold; a cosine as the learning rate's.

    Args:
        threshold: φ below which a triplet counts less, in (0, 1].
        kappa: κ of `triplet_trust`, above 0.
        start: m̄ at the first step, cosine similarity.
        end: m̄ at the last step, at most `start`.
        schedule: "cosine", "linear" or "constant" (m̄ = start).
        weight: a constant weight of triplets below the threshold, 0 to drop them; None is φ / threshold.

    Raises:
        ValueError: a value out of range, named.
    """

    threshold: float = 0.6
    kappa: float = 20.0
    start: float = 0.1
    end: float = 0.0
    schedule: str = "cosine"
    weight: float | None = None

    def __post_init__(self) -> None:
        if not 0 < self.threshold <= 1:
            raise ValueError(f"threshold: found {self.threshold}; expected above 0, at most 1")
        if not (math.isfinite(self.kappa) and self.kappa > 0):
            raise ValueError(f"kappa: found {self.kappa}; expected a finite number above 0")
        if not -2 <= self.end <= self.start <= 2:
            raise ValueError(f"start, end: found {self.start}, {self.end}; expected -2 <= end <= start <= 2")
        if self.schedule not in SCHEDULES:
            raise ValueError(f"schedule: found {self.schedule!r}; expected {', '.join(SCHEDULES)}")
        if self.weight is not None and not 0 <= self.weight <= 1:
            raise ValueError(f"weight: found {self.weight}; expected 0 to 1, or None")

    def margin_at(self, progress: float) -> float:
        """Return m̄ after a share of the training.

        Args:
            progress: steps done over all steps; below 0 counts as 0, above 1 as 1.
        """
        progress = min(max(progress, 0.0), 1.0)
        if self.schedule == "constant":
            return self.start
        left = 1 - progress if self.schedule == "linear" else (1 + math.cos(math.pi * progress)) / 2
        return self.end + (self.start - self.end) * left

    def weights(self, positive_B: Tensor, negative_B: Tensor, progress: float) -> tuple[Tensor, Tensor]:
        """Return the triplets' weights and which of them are down-weighted.

        Args:
            positive_B, negative_B: as in `triplet_trust`; no gradient flows through them.
            progress: as in `margin_at`.

        Shapes:
            (B,), (B,) → (B,) float in [0, 1] and (B,) bool.
        """
        trust_B = triplet_trust(positive_B.detach(), negative_B.detach(), self.kappa, self.margin_at(progress))
        below_B = trust_B < self.threshold
        lowered_B = trust_B / self.threshold if self.weight is None else torch.full_like(trust_B, self.weight)
        return torch.where(below_B, lowered_B, torch.ones_like(trust_B)), below_B
