"""Dynamic sample filtering: lower the weight of triplets in which the model has little trust.

Shape suffixes: B triplets (query, positive, hard negative).
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

SCHEDULES = ("cosine", "linear", "constant")


def triplet_trust(positive_B: Tensor, negative_B: Tensor, kappa: float, margin: float) -> Tensor:
    """Return the trust in each triplet: `φ = σ(κ (r_q·r_p - r_q·r_n - m̄))`.

    Source: MOON2.0, arXiv 2511.12449, dynamic sample filtering.

    Args:
        positive_B: r_q·r_p, the similarity with the positive.
        negative_B: r_q·r_n, the similarity with the hard negative. A query without a hard negative has -inf, hence φ =
            1.
        kappa: κ, the steepness, without a unit.
        margin: m̄, the required lead of the positive over the hard negative, in cosine similarity.

    Shapes:
        (B,), (B,) → (B,) float in [0, 1].
    """
    return torch.sigmoid(kappa * (positive_B - negative_B - margin))


@dataclass(frozen=True)
class SampleFilter:
    """The weights of triplets, computed from their trust and the progress of training.

    `w = 1 if φ ≥ threshold, otherwise φ / threshold` (or a constant), with
    `m̄(t) = end + (start - end)·c(t)`, where c falls from 1 to 0 over training, as half a cosine or linearly.

    Source: MOON2.0, arXiv 2511.12449, for φ, the threshold 0.6 and the decay of m̄, which lets easy, trusted triplets
    come first. The paper does not publish κ, the schedule or the weight; they are our design (precedent: the soft
    weights of self-paced learning, Jiang et al. 2014). κ = 20 is 1/τ at τ = 0.05, so φ is the softmax over the positive
    and the negative. The weight is continuous at the threshold, and the cosine is that of the learning rate.

    Args:
        threshold: φ below which a triplet counts less, in (0, 1].
        kappa: κ of `triplet_trust`, above 0.
        start: m̄ at the first step, cosine similarity.
        end: m̄ at the last step, at most `start`.
        schedule: "cosine", "linear" or "constant" (m̄ = start).
        weight: a constant weight of triplets below the threshold, 0 to drop them. None: φ / threshold.

    Raises:
        ValueError: a value is out of range; the message names it.
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
            raise ValueError(f"schedule: found {self.schedule!r}; expected one of {', '.join(SCHEDULES)}")
        if self.weight is not None and not 0 <= self.weight <= 1:
            raise ValueError(f"weight: found {self.weight}; expected 0 to 1, or None")

    def margin_at(self, progress: float) -> float:
        """Return m̄ at a point of the training.

        Args:
            progress: the number of finished steps divided by the number of all steps, clamped to [0, 1].
        """
        progress = min(max(progress, 0.0), 1.0)
        if self.schedule == "constant":
            return self.start
        left = 1 - progress if self.schedule == "linear" else (1 + math.cos(math.pi * progress)) / 2
        return self.end + (self.start - self.end) * left

    def weights(self, positive_B: Tensor, negative_B: Tensor, progress: float) -> tuple[Tensor, Tensor]:
        """Return the weights of the triplets, and a mask of those with a lowered weight.

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
