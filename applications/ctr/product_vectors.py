"""Take the vectors of a log's products from a folder of `moon3 embed`, and count the similarities of a target to a history.

Shape suffixes: P products of the log, D width, N rows, L clicks of a history, T tiers.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from applications.ctr.periods import NONE, Histories
from product_data.errors import OptionError
from product_data.impressions import ImpressionLog
from retrieval.vectors.vector_files import VectorFolder

_ROWS_PER_BLOCK = 4096


@dataclass(frozen=True, eq=False)
class ProductVectors:
    """The vectors of the products of a log, in its order.

    Args:
        model (`str`): the model that made them.
        fingerprint (`str`): of that model, see `retrieval.vectors.fingerprint`.
        vector_PD: unit vectors, float32; zeros for a product without a vector.
        missing (`int`): number of products without a vector.
    """

    model: str
    fingerprint: str
    vector_PD: np.ndarray
    missing: int

    def centred(self, products: np.ndarray) -> np.ndarray:
        """Return the vectors minus the mean of some products' vectors, with length 1, (P, D); zeros stay zeros.

        A model whose vectors share a large common part would otherwise have all cosines in a few tiers.

        Args:
            products: indices of the products of the mean: those of the training period, so that no later one is used.
        """
        has_vector_P = np.asarray(self.vector_PD.any(axis=1))
        chosen = products[has_vector_P[products]]
        centred_PD = np.where(has_vector_P[:, None], self.vector_PD - self.vector_PD[chosen].mean(axis=0), 0.0)
        return (centred_PD / np.maximum(np.linalg.norm(centred_PD, axis=1, keepdims=True), 1e-9)).astype(np.float32)


def read_vectors(folder: str | Path, log: ImpressionLog, form: str = "mm") -> ProductVectors:
    """Return the vectors of a log's products.

    Args:
        folder: a folder that `moon3 embed` wrote.
        log: the log.
        form (`str`): form of the products: "mm", "t" or "i". Default "mm".

    Raises:
        OptionError: fewer than half of the log's products have a vector.
        VectorFileError: a folder or form that cannot be read.
    """
    vectors = VectorFolder(folder)
    place = {name: number for number, name in enumerate(log.products)}
    vector_PD = np.zeros((len(place), vectors.dimension), dtype=np.float32)
    found = np.zeros(len(place), dtype=bool)
    for ids, part_ND in vectors.vectors(form):
        rows = [place.get(name, NONE) for name in ids]
        is_shown = np.array(rows) != NONE
        vector_PD[np.array(rows)[is_shown]] = part_ND[is_shown]
        found[np.array(rows)[is_shown]] = True
    shown_P = np.unique(log.product_N)
    missing = int((~found[shown_P]).sum())
    if 2 * missing > len(shown_P):
        first = log.products[shown_P[~found[shown_P]][0]]
        raise OptionError(
            f"{folder}: found vectors of {len(shown_P) - missing} of the {len(shown_P)} products of {log.name} (the first "
            f"without one: {first!r}); expected at least half: embed the feed that the log is about"
        )
    return ProductVectors(vectors.embedding.model, vectors.fingerprint, vector_PD, missing)


def similarity_histogram(vector_PD: np.ndarray, product_N: np.ndarray, histories: Histories, tiers: int) -> np.ndarray:
    """Count the products of each row's history by their cosine with the row's product.

    `h_t = #{j : ⌊(cos(v_target, v_j) + 1) / 2 · T⌋ = t}`, the last tier including 1 (SimTier, arXiv 2407.19467 §4.2); the count
    is returned as `log(1 + h_t)`, which is our design.

    Args:
        vector_PD: unit vectors, float32, see `ProductVectors.centred`; a product with zeros counts in no tier.
        product_N: the product of each row.
        histories: the histories of the rows.
        tiers (`int`): T.

    Returns: (N, T) float32.
    """
    has_vector_P = np.asarray(vector_PD.any(axis=1))
    count_NT = np.zeros((len(product_N), tiers), dtype=np.float32)
    for start in range(0, len(product_N), _ROWS_PER_BLOCK):
        rows = np.arange(start, min(start + _ROWS_PER_BLOCK, len(product_N)))
        history_NL = histories.of(rows)
        target_N = product_N[rows]
        cosine_NL = np.einsum("nd,nld->nl", vector_PD[target_N], vector_PD[history_NL])
        tier_NL = np.clip(((cosine_NL + 1.0) / 2.0 * tiers).astype(np.int64), 0, tiers - 1)
        counts_NL = (history_NL != NONE) & has_vector_P[history_NL] & has_vector_P[target_N][:, None]
        place = (np.arange(len(rows))[:, None] * tiers + tier_NL)[counts_NL]
        count_NT[rows] = np.bincount(place, minlength=len(rows) * tiers).reshape(len(rows), tiers)
    return np.log1p(count_NT)
