"""Map vectors of a new model into the space of an old one: an orthogonal map, a map of low rank, or a small network.

Shape suffixes: N pairs of vectors, D width of the new model, E width of the old model, R rank, H hidden units.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn

PROCRUSTES, AFFINE, NETWORK = "procrustes", "affine", "network"
KINDS = (PROCRUSTES, AFFINE, NETWORK)
HIDDEN, EPOCHS, PATIENCE = 256, 200, 15
_RIDGE = 0.01  # of the mean variance of a component
_BATCH_PAIRS, _LEARNING_RATE, _WATCHED_SHARE = 256, 1e-3, 0.15
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


def fit_affine(new_ND: np.ndarray, old_NE: np.ndarray, rank: int) -> Adapter:
    """Return an orthogonal map plus an offset and a correction of low rank.

    `A = P + B V Vᵀ` and `b = ȳ - x̄ A`: P is `fit_procrustes`, B the ridge regression of what P leaves, and V its first R
    principal directions among the predictions (reduced-rank regression, Izenman 1975). The ridge is 1 % of the mean variance
    of a component, so that few pairs change P little. Source: the low-rank affine map of Drift-Adapter, arXiv 2509.23471; the
    regression around P is our design.

    Args:
        new_ND, old_NE: unit vectors of the same products by both models.
        rank (`int`): R, at most the smaller width.

    Raises:
        ValueError: different numbers of vectors, or none, or a rank below 1.
    """
    if rank < 1:
        raise ValueError(f"rank: found {rank}; expected 1 or more")
    orthogonal_DE = fit_procrustes(new_ND, old_NE).matrix_DE.astype(np.float64)
    new_mean_D, old_mean_E = new_ND.mean(axis=0, dtype=np.float64), old_NE.mean(axis=0, dtype=np.float64)
    centred_ND = new_ND - new_mean_D
    rest_NE = (old_NE - old_mean_E) - centred_ND @ orthogonal_DE
    square_DD = centred_ND.T @ centred_ND
    ridge = _RIDGE * np.trace(square_DD) / len(square_DD) + 1e-12
    slope_DE = np.linalg.solve(square_DD + ridge * np.eye(len(square_DD)), centred_ND.T @ rest_NE)
    _, _, direction_RE = np.linalg.svd(centred_ND @ slope_DE, full_matrices=False)
    kept_RE = direction_RE[:rank]
    matrix_DE = orthogonal_DE + slope_DE @ kept_RE.T @ kept_RE
    return _linear(AFFINE, matrix_DE, old_mean_E - new_mean_D @ matrix_DE)


def fit_network(new_ND: np.ndarray, old_NE: np.ndarray, base: Adapter, *, seed: int = 0) -> Adapter:
    """Return a linear adapter plus a hidden layer that learns what it leaves.

    `L = mean ‖y - f(x) / ‖f(x)‖‖²`, by AdamW in batches of 256 pairs. The output of the layer starts at zero, and training
    stops if 15 % of the pairs, which it does not train on, have not improved for 15 epochs; their best state is kept. So it is
    never worse than `base` on them. Source: the residual MLP of Drift-Adapter, arXiv 2509.23471; stopping is our design.

    Args:
        new_ND, old_NE: unit vectors of the same products by both models.
        base: the linear adapter, which is not trained.
        seed (`int`): of the initial weights, the batches and the watched pairs. Default 0.

    Raises:
        ValueError: fewer than 8 pairs, or different numbers of vectors.
    """
    _check(new_ND, old_NE)
    if len(new_ND) < 8:
        raise ValueError(f"network: found {len(new_ND)} pairs; expected at least 8")
    generator = torch.Generator().manual_seed(seed)
    order_N = torch.randperm(len(new_ND), generator=generator)
    watched_N, learned_N = order_N.split(
        [(count := max(1, round(_WATCHED_SHARE * len(order_N)))), len(order_N) - count]
    )
    new, old = torch.from_numpy(new_ND.astype(np.float32)), torch.from_numpy(old_NE.astype(np.float32))
    linear_NE = torch.from_numpy(new_ND.astype(np.float32) @ base.matrix_DE + base.offset_E)
    layer = _HiddenLayer(new.shape[1], old.shape[1], generator)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=_LEARNING_RATE, weight_decay=0.01)

    def loss(rows_N: torch.Tensor) -> torch.Tensor:
        mapped_NE = nn.functional.normalize(linear_NE[rows_N] + layer(new[rows_N]), dim=1)
        return (old[rows_N] - mapped_NE).square().sum(dim=1).mean()

    best, kept, since = float("inf"), layer.arrays(), 0
    for _ in range(EPOCHS):
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
