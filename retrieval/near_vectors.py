"""Find the products of a catalogue whose vectors are near, among those that `moon3 embed` wrote.

Shape suffixes: N products, D embedding, P pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from product_data.errors import OptionError
from retrieval.decisions.pair_scores import PairScorer
from retrieval.vectors.vector_files import VectorFolder

NEIGHBOURS = 10


class NearVectorPairs:
    """Pairs of products with near vectors, as `product_data.preparation.near_duplicates.NearVectors`.

    A pair is found if one product is among the 10 nearest neighbours of the other; the search is exact.

    Args:
        place: a folder that `moon3 embed` wrote.
        form (`str` or `None`): "mm", "t" or "i". Default: the first form of the folder.

    Raises:
        VectorFileError: not such a folder, a job that has not finished, or a form without vectors.
    """

    def __init__(self, place: str | Path, form: str | None = None) -> None:
        folder = VectorFolder(place)
        self.form = form or folder.forms[0]
        state = folder.require_state()
        self.digest = f"{folder.fingerprint} {self.form} {sorted(state.shards.items())}"
        self._place = Path(place)
        parts = list(folder.vectors(self.form))
        self._row = {name: row for row, name in enumerate(name for ids, _ in parts for name in ids)}
        self._vector_ND = np.concatenate([np.zeros((0, folder.dimension), np.float32), *(part for _, part in parts)])

    def pairs(self, product_ids: Sequence[str], least_cosine: float) -> tuple[np.ndarray, np.ndarray]:
        """Return pairs of products with at least a cosine.

        Args:
            product_ids: the products; those without a vector are in no pair.
            least_cosine (`float`): in [-1, 1].

        Shapes: returns (P, 2) int64 places in `product_ids`, the smaller first, and (P,) float64 cosines.

        Raises:
            OptionError: over half of the products have no vector: the vectors are those of another catalogue.
        """
        places = np.array([place for place, name in enumerate(product_ids) if name in self._row], dtype=np.int64)
        if len(places) * 2 < len(product_ids):
            raise OptionError(
                f"--vectors {self._place}: found vectors of {len(places)} of {len(product_ids)} products; expected those of "
                "most products: run moon3 embed on the same tables"
            )
        if len(places) < 2:
            return np.zeros((0, 2), np.int64), np.zeros(0)
        vector_ND = self._vector_ND[[self._row[product_ids[place]] for place in places]]
        scorer = PairScorer.of(vector_ND, NEIGHBOURS)
        pair_P2 = scorer.candidates(least_cosine)
        return places[pair_P2], scorer.features(pair_P2)[:, 0]
