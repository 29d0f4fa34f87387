"""Encode products for the queue with a slowly moving average of the model."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from retrieval.encode import vectors_of


class MomentumEncoder:
    """Encode with an exponential moving average of the model's trainable parameters.

    `θ_k ← m θ_k + (1 - m) θ`, after every optimizer step. The vectors of the queue then come from encoders that differ
    little from one another, however fast the model changes.

    Source: MoCo, arXiv 1911.05722, §3.2 (m = 0.999). Only trainable parameters are averaged, so with adapters the copy
    is as small as they are; all other parameters are shared with the model (our design).

    Args:
        model: the trained model, not wrapped for distributed training. Its forward returns `.embeddings`.
        momentum: m, from 0 to below 1.

    Raises:
        ValueError: the momentum is out of range, or a saved state was made with other parameters.

    Relations:
        It encodes products for `training.batches.negatives.NegativeQueue` instead of the model. The cost is a second
        encoding of each product, without gradient.
    """

    def __init__(self, model: nn.Module, momentum: float) -> None:
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum: found {momentum}; expected at least 0 and below 1")
        self.model, self.momentum = model, momentum
        self._averages = {name: parameter.detach().clone() for name, parameter in self._learning().items()}

    def _learning(self) -> dict[str, nn.Parameter]:
        return {name: parameter for name, parameter in self.model.named_parameters() if parameter.requires_grad}

    @torch.no_grad()
    def update(self) -> None:
        """Update the averages after an optimizer step."""
        for name, parameter in self._learning().items():
            self._averages[name].lerp_(parameter.detach(), 1 - self.momentum)

    @torch.no_grad()
    def encode(self, inputs: Mapping[str, Any]) -> Tensor:
        """Return the vectors (B, D) of a batch, without gradient."""
        return vectors_of(functional_call(self.model, self._averages, args=(), kwargs=dict(inputs)))

    def state_dict(self) -> dict[str, Tensor]:
        """Return the averages, from which `load_state_dict` continues exactly."""
        return {name: average.cpu() for name, average in self._averages.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore a saved state."""
        if state.keys() != self._averages.keys():
            differing = sorted(state.keys() ^ self._averages.keys())[:5]
            raise ValueError(
                f"momentum encoder: found a state that differs in {differing}; expected a state of this model"
            )
        for name, average in self._averages.items():
            average.copy_(state[name])
