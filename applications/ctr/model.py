"""Predict clicks from the shown product, the user's history and how similar the two are.

Shape suffixes: B rows, L clicks of a history, E size of a product's representation, D width of the vectors, T tiers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from product_data.errors import OptionError


class Parts(NamedTuple):
    """What a variant of the model uses."""

    ids: bool
    vectors: bool
    histogram: bool


VARIANTS: dict[str, Parts] = {
    "ids": Parts(ids=True, vectors=False, histogram=False),
    "ids_vectors": Parts(ids=True, vectors=True, histogram=False),
    "ids_vectors_histogram": Parts(ids=True, vectors=True, histogram=True),
    "vectors": Parts(ids=False, vectors=True, histogram=True),
}
"""Name → parts: ids alone; vectors as well, in target and history; the similarity histogram as well; vectors without ids."""


@dataclass(frozen=True)
class CtrSettings:
    """Sizes and training of a click model.

    Args:
        history (`int`): number of a user's last clicks that the model sees. Default 30.
        size (`int`): size of an id's embedding, and of a projected vector. Default 16.
        tiers (`int`): tiers of the similarity histogram. Default 16.
        hidden (`int`): units of the hidden layers. Default 64.
        batch_size (`int`): rows of a training step. Default 512.
        learning_rate (`float`): of Adam. Default 2e-3.
        unknown_share (`float`): share of ids that training replaces by the id of unknown products, which new products have
            (DropoutNet, Volkovs et al., NeurIPS 2017). Default 0.1.
        epochs (`int`): the most epochs; training stops earlier, see `applications.ctr.training`. Default 8.

    Raises:
        OptionError: a count below 1, a share outside [0, 1), or a learning rate that is not above 0.
    """

    history: int = 30
    size: int = 16
    tiers: int = 16
    hidden: int = 64
    batch_size: int = 512
    learning_rate: float = 2e-3
    unknown_share: float = 0.1
    epochs: int = 8

    def __post_init__(self) -> None:
        for name in ("history", "size", "tiers", "hidden", "batch_size", "epochs"):
            if getattr(self, name) < 1:
                raise OptionError(f"{name}: found {getattr(self, name)!r}; expected a whole number of at least 1")
        if not 0 <= self.unknown_share < 1 or not self.learning_rate > 0:
            raise OptionError(
                f"found unknown_share={self.unknown_share!r}, learning_rate={self.learning_rate!r}; expected a share of at "
                "least 0 and below 1, and a rate above 0"
            )


class CtrModel(nn.Module):
    """Return the logit of a click: target attention over the history, and the similarity histogram.

    With the representation e of a product (the embedding of its id, its projected vector, or both), the history is pooled by
    target attention (DIN, arXiv 1706.06978 §4.3): `u = Σ_l a(e_l, e_t) · e_l`, where `a` is a network of
    `[e_l; e_t; e_l − e_t; e_l ⊙ e_t]` and the weights are not normalised. The logit is a network of
    `[u; e_t; u ⊙ e_t; log(1 + length); histogram]`. DIN's Dice is SiLU here, and u is divided by the longest history.

    Args:
        variant (`str`): a name of `VARIANTS`.
        products (`int`): number of products; id 0 is that of unknown products.
        vector_PD: vectors of the products, float32, which are not trained; `None` for a variant without them.
        settings: sizes.
    """

    vectors: Tensor

    def __init__(self, variant: str, products: int, vector_PD: Tensor | None, settings: CtrSettings) -> None:
        super().__init__()
        self.parts, self.settings = VARIANTS[variant], settings
        size = 0
        if self.parts.ids:
            self.embedding = nn.Embedding(products + 1, settings.size)
            nn.init.normal_(self.embedding.weight, std=0.05)
            size += settings.size
        if self.parts.vectors:
            if vector_PD is None:
                raise OptionError(f"variant {variant}: found no vectors; expected vectors of the products")
            self.register_buffer("vectors", vector_PD, persistent=False)
            self.projection = nn.Linear(vector_PD.shape[1], settings.size)
            size += settings.size
        hidden = settings.hidden
        self.attention = nn.Sequential(nn.Linear(4 * size, hidden // 2), nn.SiLU(), nn.Linear(hidden // 2, 1))
        inputs = 3 * size + 1 + (settings.tiers if self.parts.histogram else 0)
        self.head = nn.Sequential(
            nn.Linear(inputs, hidden), nn.SiLU(), nn.Linear(hidden, hidden // 2), nn.SiLU(), nn.Linear(hidden // 2, 1)
        )

    def forward(self, ids: Tensor, places: Tensor, histogram: Tensor) -> Tensor:
        """Return the logits.

        Args:
            ids: (B, 1 + L) int64: id of the target and of the history's products; 0 for unknown ones.
            places: (B, 1 + L) int64: row of each product in the vectors; −1 where the history has no click.
            histogram: (B, T) float32, which variants without a histogram do not read.

        Shapes: returns (B,) float32.
        """
        represented = self._represent(ids, places)
        target, history = represented[:, :1], represented[:, 1:]
        is_click = places[:, 1:] >= 0
        pairs = torch.cat([history, target.expand_as(history), history - target, history * target], dim=-1)
        weight = self.attention(pairs) * is_click[..., None]
        pooled = (weight * history).sum(dim=1) / self.settings.history**0.5
        length = torch.log1p(is_click.sum(dim=1, keepdim=True).float())
        inputs = [pooled, target[:, 0], pooled * target[:, 0], length]
        if self.parts.histogram:
            inputs.append(histogram)
        return self.head(torch.cat(inputs, dim=-1))[:, 0]

    def _represent(self, ids: Tensor, places: Tensor) -> Tensor:
        """Return the representations (B, 1 + L, E) of products."""
        parts = []
        if self.parts.ids:
            parts.append(self.embedding(ids))
        if self.parts.vectors:
            used, inverse = torch.unique(places.clamp(min=0), return_inverse=True)
            parts.append(self.projection(self.vectors[used])[inverse])
        return torch.cat(parts, dim=-1)
