"""Map vectors of a new model into the space of an old one: an orthogonal map, a map of low rank, or a small network.

Shape suffixes: N pairs of vectors, D width of the new model, E width of the old model, R rank, H hidden units, V vectors of a
gallery.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn

from retrieval.upgrade.gallery import Gallery

PROCRUSTES, AFFINE, NETWORK = "procrustes", "affine", "network"
KINDS = (PROCRUSTES, AFFINE, NETWORK)
HIDDEN, EPOCHS, STEPS, PATIENCE = 256, 200, 1000, 15
RIDGE = 0.01
"""Ridge of an affine map, as a share of the mean variance of a component."""
_BATCH_PAIRS, _LEARNING_RATE, _WATCHED_SHARE = 256, 1e-3, 0.15
TEMPERATURE = 0.05
"""Of the softmax over old vectors in the search objective of a network."""
_HIDDEN_NAMES = ("inner_DH", "inner_H", "outer_HE", "outer_E")


@dataclass(frozen=True)
class Adapter:
    """A map from one model's unit vectors to another's.

    `y = x A + b + GELU(x U + u) V + v`, scaled to unit length; without hidden layer only `x A + b`.

    Source: Drift-Adapter, arXiv 2509.23471: orthogonal Procrustes, low-rank affine and residual MLP.

    Args:
        kind (`str`): one of `KINDS`.
        matrix_DE, offset_E: A and b.
        hidden: U, u, V and v by the names inner_DH, inner_H, outer_HE and outer_E; empty for a linear map.

    Shapes: called with (Q, D), it returns (Q, E) float32 unit vectors.
    """

    kind: str
    matrix_DE: np.ndarray
    offset_E: np.ndarray
    hidden: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __call__(self, vector_QD: np.ndarray) -> np.ndarray:
        vector_QD = np.asarray(vector_QD, dtype=np.float32)
        if vector_QD.ndim != 2 or vector_QD.shape[1] != len(self.matrix_DE):
            raise ValueError(f"adapter: found vectors of shape {vector_QD.shape}; expected (Q, {len(self.matrix_DE)})")
        mapped_QE = vector_QD @ self.matrix_DE + self.offset_E
        if self.hidden:
            inner_DH, inner_H, outer_HE, outer_E = (self.hidden[name] for name in _HIDDEN_NAMES)
            inner_QH = nn.functional.gelu(torch.from_numpy(vector_QD @ inner_DH + inner_H)).numpy()
            mapped_QE = mapped_QE + inner_QH @ outer_HE + outer_E
        return unit(mapped_QE)

    def tensors(self) -> dict[str, np.ndarray]:
        """Return its arrays by name, for a safetensors file."""
        arrays = {"matrix_DE": self.matrix_DE, "offset_E": self.offset_E, **self.hidden}
        return {name: np.ascontiguousarray(array, dtype=np.float32) for name, array in arrays.items()}

    @classmethod
    def of_tensors(cls, kind: str, tensors: Mapping[str, np.ndarray]) -> Adapter:
        """Return the adapter that `tensors` describes."""
        hidden = {name: tensors[name] for name in _HIDDEN_NAMES if name in tensors}
        return cls(kind, tensors["matrix_DE"], tensors["offset_E"], hidden)


def unit(vector_ND: np.ndarray) -> np.ndarray:
    """Return the rows at unit length, as float32."""
    length_N1 = np.linalg.norm(vector_ND, axis=1, keepdims=True)
    return (vector_ND / np.maximum(length_N1, 1e-12)).astype(np.float32)


def fit_procrustes(new_ND: np.ndarray, old_NE: np.ndarray) -> Adapter:
    """Return the orthogonal map that brings new vectors nearest to old ones.

    `A = U Vᵀ` of the singular value decomposition `Σ_n x_n y_nᵀ = U S Vᵀ`, which maximises the sum of cosines over all maps
    that keep lengths; between different widths it keeps those of the smaller space. Source: Schönemann 1966; for models of
    different versions, Drift-Adapter, arXiv 2509.23471.

    Args:
        new_ND, old_NE: unit vectors of the same products by both models.

    Raises:
        ValueError: different numbers of vectors, or none.
    """
    _check(new_ND, old_NE)
    left_DR, _, right_RE = np.linalg.svd(new_ND.T.astype(np.float64) @ old_NE, full_matrices=False)
    return _linear(PROCRUSTES, left_DR @ right_RE, np.zeros(old_NE.shape[1]))


@dataclass(frozen=True)
class Pairs:
    """Vectors of a new model with the old vectors that an adapter should map them to.

    Args:
        new_ND, old_NE: unit vectors.
        weight_N: weight of each pair.
        product_N: index of the product of each pair.

    Raises:
        ValueError: different numbers of vectors, weights and products, or none.
    """

    new_ND: np.ndarray
    old_NE: np.ndarray
    weight_N: np.ndarray
    product_N: np.ndarray

    def __post_init__(self) -> None:
        _check(self.new_ND, self.old_NE)
        if not len(self.weight_N) == len(self.product_N) == len(self.new_ND):
            raise ValueError(
                f"pairs: found {len(self.weight_N)} weights and {len(self.product_N)} products for {len(self.new_ND)} pairs; "
                "expected one of each for a pair"
            )

    @classmethod
    def of_products(cls, new_ND: np.ndarray, old_NE: np.ndarray) -> Pairs:
        """Return pairs of equal weight, each of its own product."""
        return cls(new_ND, old_NE, np.ones(len(new_ND)), np.arange(len(new_ND)))

    def __len__(self) -> int:
        return len(self.new_ND)

    def __getitem__(self, kept_N: np.ndarray) -> Pairs:
        """Return the pairs of a mask or of indices."""
        return Pairs(*(part[kept_N] for part in (self.new_ND, self.old_NE, self.weight_N, self.product_N)))


def fit_affine(
    new_ND: np.ndarray, old_NE: np.ndarray, rank: int, weight_N: np.ndarray | None = None, ridge: float = RIDGE
) -> Adapter:
    """Return an orthogonal map plus an offset and a correction of low rank.

    `A = P + B V Vᵀ` and `b = ȳ - x̄ A`: P is `fit_procrustes`, B the ridge regression of what P leaves, and V its first R
    principal directions among the predictions (reduced-rank regression, Izenman 1975). The ridge is a share of the mean
    variance of a component, so that few pairs change P little. Source: the low-rank affine map of Drift-Adapter, arXiv
    2509.23471; the regression around P is our design.

    Args:
        new_ND, old_NE: unit vectors of the same products by both models.
        rank (`int`): R, at most the smaller width.
        weight_N: weight of each pair in the means, the rotation and the squares. Default: equal weights.
        ridge (`float`): share of the mean variance of a component. Default 0.01.

    Raises:
        ValueError: different numbers of vectors, or none, or a rank below 1.
    """
    if rank < 1:
        raise ValueError(f"rank: found {rank}; expected 1 or more")
    _check(new_ND, old_NE)
    weight_N1 = np.ones((len(new_ND), 1)) if weight_N is None else weight_N[:, None] / weight_N.mean()
    orthogonal_DE = fit_procrustes(weight_N1 * new_ND, old_NE).matrix_DE.astype(np.float64)
    new_mean_D, old_mean_E = ((weight_N1 * some).mean(axis=0, dtype=np.float64) for some in (new_ND, old_NE))
    centred_ND = new_ND - new_mean_D
    weighted_DN = (weight_N1 * centred_ND).T
    rest_NE = (old_NE - old_mean_E) - centred_ND @ orthogonal_DE
    square_DD = weighted_DN @ centred_ND
    ridge_of_all = ridge * np.trace(square_DD) / len(square_DD) + 1e-12
    slope_DE = np.linalg.solve(square_DD + ridge_of_all * np.eye(len(square_DD)), weighted_DN @ rest_NE)
    _, _, direction_RE = np.linalg.svd(np.sqrt(weight_N1) * centred_ND @ slope_DE, full_matrices=False)
    kept_RE = direction_RE[:rank]
    matrix_DE = orthogonal_DE + slope_DE @ kept_RE.T @ kept_RE
    return _linear(AFFINE, matrix_DE, old_mean_E - new_mean_D @ matrix_DE)


def fit_network(
    pairs: Pairs, fit_base: Callable[[Pairs], Adapter], gallery: Gallery | None = None, *, seed: int = 0
) -> Adapter:
    """Return a linear adapter plus a hidden layer that learns what it leaves.

    `L = Σ w ‖y - f(x) / ‖f(x)‖‖² / Σ w`, and with a gallery `+ mean -log Σ_p exp(f(x)·y_p / τ) / Σ_v exp(f(x)·y_v / τ)`, where
    p are the old vectors of the pair's product and v all of the gallery, τ = 0.05. AdamW takes at most 200 epochs and about
    1,000 steps of 256 pairs. The output of the layer starts at zero, and training stops if the pairs of 15 % of the products,
    which neither the linear adapter nor the layer is fitted on, have not improved for 15 epochs; their best state is kept. So
    it is never worse than its base on them.
    Source: the residual MLP of Drift-Adapter, arXiv 2509.23471; the second term is InfoNCE (arXiv 1807.03748) against frozen
    candidates, as in backward-compatible training, arXiv 2003.11942; stopping is our design.

    Args:
        pairs: what the adapter should map.
        fit_base: fits the linear adapter, which is not trained further, on the pairs of the other 85 % of the products.
        gallery: old vectors that new ones search in; their products are those of the pairs. Default: the first term alone.
        seed (`int`): of the initial weights, the batches and the watched products. Default 0.

    Raises:
        ValueError: fewer than 8 pairs.
    """
    if len(pairs) < 8:
        raise ValueError(f"network: found {len(pairs)} pairs; expected at least 8")
    generator = torch.Generator().manual_seed(seed)
    products = np.unique(pairs.product_N)
    order = torch.randperm(len(products), generator=generator).numpy()
    is_watched_N = np.isin(pairs.product_N, products[order[: max(1, round(_WATCHED_SHARE * len(products)))]])
    base = fit_base(pairs[~is_watched_N])
    new_ND = torch.from_numpy(pairs.new_ND.astype(np.float32))
    linear_NE = torch.from_numpy(pairs.new_ND.astype(np.float32) @ base.matrix_DE + base.offset_E)
    layer = _HiddenLayer(new_ND.shape[1], linear_NE.shape[1], generator)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=_LEARNING_RATE, weight_decay=0.01)
    objective = _Objective(pairs, gallery)

    def loss(rows_N: torch.Tensor) -> torch.Tensor:
        return objective(nn.functional.normalize(linear_NE[rows_N] + layer(new_ND[rows_N]), dim=1), rows_N)

    watched_N, learned_N = (torch.from_numpy(np.flatnonzero(mask_N)) for mask_N in (is_watched_N, ~is_watched_N))
    best, kept, since = float("inf"), layer.arrays(), 0
    for _ in range(min(EPOCHS, STEPS * _BATCH_PAIRS // len(learned_N) + 1)):
        with torch.no_grad():
            watched = float(loss(watched_N))
        since += 1
        if watched < best - 1e-6:
            best, kept, since = watched, layer.arrays(), 0
        if since > PATIENCE:
            break
        for rows_N in learned_N[torch.randperm(len(learned_N), generator=generator)].split(_BATCH_PAIRS):
            optimizer.zero_grad()
            loss(rows_N).backward()
            optimizer.step()
    return Adapter(NETWORK, base.matrix_DE, base.offset_E, kept)


class _Objective:
    """The loss of a network: the distance of pairs, and with a gallery the search for a pair's product in it."""

    def __init__(self, pairs: Pairs, gallery: Gallery | None) -> None:
        self.old_NE = torch.from_numpy(pairs.old_NE.astype(np.float32))
        self.weight_N = torch.from_numpy(pairs.weight_N.astype(np.float32))
        self.product_N = torch.from_numpy(pairs.product_N)
        self.vector_VE = None if gallery is None else torch.from_numpy(gallery.vector_VD.astype(np.float32))
        self.product_V = None if gallery is None else torch.from_numpy(gallery.product_V)

    def __call__(self, mapped_NE: torch.Tensor, rows_N: torch.Tensor) -> torch.Tensor:
        weight_N = self.weight_N[rows_N]
        distance_N = (self.old_NE[rows_N] - mapped_NE).square().sum(dim=1)
        loss = (weight_N * distance_N).sum() / weight_N.sum()
        if self.vector_VE is None or self.product_V is None:
            return loss
        logit_NV = mapped_NE @ self.vector_VE.T / TEMPERATURE
        is_right_NV = self.product_N[rows_N][:, None] == self.product_V
        right_N = logit_NV.masked_fill(~is_right_NV, float("-inf")).logsumexp(dim=1)
        return loss + (logit_NV.logsumexp(dim=1) - right_N).mean()


class _HiddenLayer(nn.Module):
    """`GELU(x U + u) V + v`, whose output is zero at first."""

    def __init__(self, width: int, output: int, generator: torch.Generator) -> None:
        super().__init__()
        self.inner_DH = nn.Parameter(torch.randn(width, HIDDEN, generator=generator) / width**0.5)
        self.inner_H = nn.Parameter(torch.zeros(HIDDEN))
        self.outer_HE = nn.Parameter(torch.zeros(HIDDEN, output))
        self.outer_E = nn.Parameter(torch.zeros(output))

    def forward(self, vector_ND: torch.Tensor) -> torch.Tensor:
        return nn.functional.gelu(vector_ND @ self.inner_DH + self.inner_H) @ self.outer_HE + self.outer_E

    def arrays(self) -> dict[str, np.ndarray]:
        return {name: parameter.detach().numpy().copy() for name, parameter in self.named_parameters()}


def _linear(kind: str, matrix_DE: np.ndarray, offset_E: np.ndarray) -> Adapter:
    return Adapter(kind, matrix_DE.astype(np.float32), offset_E.astype(np.float32))


def _check(new_ND: np.ndarray, old_NE: np.ndarray) -> None:
    if len(new_ND) != len(old_NE) or not len(new_ND):
        raise ValueError(
            f"pairs: found {len(new_ND)} new and {len(old_NE)} old vectors; expected equal numbers, at least one of each"
        )
