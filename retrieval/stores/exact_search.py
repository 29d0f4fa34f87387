"""Search vectors exactly, in blocks: a matrix product, the best of each block, and an exact score for what is left.

Legend: Q queries, N vectors, D embedding, B vectors of a block, P candidates of a pool.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import torch

from retrieval.stores.interface import StoreError
from retrieval.stores.ranking import TIE, exact_cosines

FirstPass = Literal["none", "int8"] | int
BLOCK_ROWS = 16384
QUERY_ROWS = 512
GATHERED_SHARE = 0.5
"""A block of which less than this share passes the filter is copied without the other rows before the product."""
OVERSAMPLING = 10
"""A first pass keeps this many times k candidates for the exact scores; at least 100."""


class FlatVectors:
    """Vectors in memory that are searched exactly.

    The score is the dot product. Each block of `block_rows` vectors costs one matrix product and one selection of the best;
    the exact scores of these candidates then decide, so that equal vectors tie. Our design (precedent: `IndexFlatIP` of
    faiss, arXiv 2401.08281).

    Args:
        dimension (`int`): D.
        first_pass: what selects the candidates. "none" (default): the vectors themselves, without loss. A number d < D: the
            first d values of each vector, at length 1 (Matryoshka, arXiv 2205.13147). "int8": the vectors as 8-bit integers
            with one scale each. The exact scores of 10·k candidates (at least 100) then rank them.
        block_rows (`int`): vectors of a block. Default 16384.
        query_rows (`int`): queries of a matrix product. Default 512.

    Memory: `memory_bytes` for what is kept: 4·D bytes a vector and room for at most one block more; a first pass adds 4 bytes
    a vector, and "int8" D + 4. A search adds `search_bytes`: the scores and one copy of a block, independent of N.

    Raises:
        StoreError: an unusable first pass.
    """

    def __init__(
        self,
        dimension: int,
        *,
        first_pass: FirstPass = "none",
        block_rows: int = BLOCK_ROWS,
        query_rows: int = QUERY_ROWS,
    ) -> None:
        is_dimension = isinstance(first_pass, int) and 1 <= first_pass < dimension
        if not is_dimension and first_pass not in ("none", "int8"):
            raise StoreError(
                f"first_pass: found {first_pass!r}; expected 'none', 'int8' or a number of dimensions below {dimension}"
            )
        self.dimension, self.first_pass = dimension, first_pass
        self.block_rows, self.query_rows = block_rows, query_rows
        self.rows = 0
        self._blocks: list[np.ndarray] = []
        self._scales: list[np.ndarray] = []
        self._codes: list[np.ndarray] = []

    @property
    def memory_bytes(self) -> int:
        """Bytes of all vectors, with those of the first pass."""
        return sum(part.nbytes for part in (*self._blocks, *self._scales, *self._codes))

    @property
    def search_bytes(self) -> int:
        """Bytes that a search adds: scores of `query_rows` queries for a block, and one copy of a block."""
        return 4 * self.block_rows * (self.query_rows + self.dimension)

    def resize(self, rows: int) -> None:
        """Make room for a number of vectors; new ones are 0. The last block doubles until it is full."""
        self.rows = max(self.rows, rows)
        while self._room() < self.rows:
            if not self._blocks or len(self._blocks[-1]) == self.block_rows:
                self._blocks.append(np.zeros((0, self.dimension), dtype=np.float32))
                self._scales.append(np.zeros(0, dtype=np.float32))
                self._codes.append(np.zeros((0, self.dimension), dtype=np.int8))
            wanted = self.rows - self._room() + len(self._blocks[-1])
            size = min(max(wanted, 2 * len(self._blocks[-1])), self.block_rows)
            self._blocks[-1] = _grown(self._blocks[-1], size)
            if self.first_pass != "none":
                self._scales[-1] = _grown(self._scales[-1], size)
            if self.first_pass == "int8":
                self._codes[-1] = _grown(self._codes[-1], size)

    def _room(self) -> int:
        return sum(map(len, self._blocks))

    def write(self, rows_N: np.ndarray, vector_ND: np.ndarray) -> None:
        """Write vectors to distinct rows, after `resize`."""
        block_N, place_N = np.divmod(rows_N, self.block_rows)
        for block in np.unique(block_N):
            chosen = block_N == block
            places, vectors = place_N[chosen], vector_ND[chosen]
            self._blocks[block][places] = vectors
            if isinstance(self.first_pass, int):
                lengths = np.linalg.norm(vectors[:, : self.first_pass], axis=1)
                self._scales[block][places] = 1 / np.maximum(lengths, 1e-12)
            elif self.first_pass == "int8":
                scales = np.maximum(np.abs(vectors).max(axis=1), 1e-12) / 127
                self._scales[block][places] = scales
                self._codes[block][places] = np.rint(vectors / scales[:, None]).astype(np.int8)

    def read(self, rows_N: np.ndarray) -> np.ndarray:
        """Return (N, D) vectors by row."""
        found = np.empty((len(rows_N), self.dimension), dtype=np.float32)
        block_N, place_N = np.divmod(rows_N, self.block_rows)
        for block in np.unique(block_N):
            chosen = block_N == block
            found[chosen] = self._blocks[block][place_N[chosen]]
        return found

    def search(
        self, query_QD: np.ndarray, k: int, mask_N: np.ndarray | None = None
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return for each query the rows of its best vectors and their exact scores, in the order of the rows.

        All vectors whose score ties with the k-th best are among them, so more than k rows can be returned.

        Args:
            query_QD: (Q, D) float32.
            k (`int`): number of vectors.
            mask_N: rows to search. Default: all.
        """
        answers = []
        for start in range(0, len(query_QD), self.query_rows):
            chunk_QD = np.ascontiguousarray(query_QD[start : start + self.query_rows], dtype=np.float32)
            pool = max(k + 16, 2 * k) if self.first_pass == "none" else max(OVERSAMPLING * k, 100)
            score_QP, row_QP = self._pool(chunk_QD, pool, mask_N)
            for query_D, score_P, row_P in zip(chunk_QD, score_QP, row_QP, strict=True):
                row_P = row_P[score_P > -np.inf]
                least = score_P[k - 1] - TIE if k <= len(row_P) else -np.inf
                if self.first_pass == "none" and len(row_P) == pool and score_P[-1] >= least:
                    row_P = self._at_least(query_D, least, mask_N)
                answers.append(self._settled(query_D, row_P))
        return answers

    def _settled(self, query_D: np.ndarray, row_P: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        row_P = np.sort(row_P)
        return row_P, exact_cosines(query_D, self.read(row_P))

    def _pool(self, query_QD: np.ndarray, pool: int, mask_N: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        best_QP = torch.full((len(query_QD), 0), -torch.inf)
        row_QP = torch.zeros((len(query_QD), 0), dtype=torch.long)
        for rows, score_QB in self._scores(query_QD, mask_N):
            top_QP, place_QP = score_QB.topk(min(pool, score_QB.shape[1]), dim=1)
            found_QP = place_QP + rows if isinstance(rows, int) else torch.from_numpy(rows)[place_QP]
            both_QP = torch.cat([best_QP, top_QP], dim=1)
            best_QP, order_QP = both_QP.topk(min(pool, both_QP.shape[1]), dim=1)
            row_QP = torch.cat([row_QP, found_QP], dim=1).gather(1, order_QP)
        return best_QP.numpy(), row_QP.numpy()

    def _at_least(self, query_D: np.ndarray, least: float, mask_N: np.ndarray | None) -> np.ndarray:
        """Return all rows with a score of at least `least`, for a k-th place that many vectors share."""
        found = []
        for rows, score_1B in self._scores(query_D[None], mask_N):
            places = np.flatnonzero(score_1B.numpy()[0] >= least)
            found.append(places + rows if isinstance(rows, int) else rows[places])
        return np.concatenate(found)

    def _scores(self, query_QD: np.ndarray, mask_N: np.ndarray | None) -> Iterator[tuple[Any, torch.Tensor]]:
        """Yield for each block its rows (the first row, or an array) and (Q, B) scores; -inf for rows outside the mask."""
        query = torch.from_numpy(query_QD)
        if isinstance(self.first_pass, int):
            query = query[:, : self.first_pass]
        room_QB = torch.empty(len(query), min(self.block_rows, max(self.rows, 1)))
        for block in range(len(self._blocks)):
            first = block * self.block_rows
            size = min(self.rows - first, self.block_rows)
            if size <= 0:
                return
            mask_B = None if mask_N is None else mask_N[first : first + size]
            if mask_B is not None and mask_B.mean() < GATHERED_SHARE:
                places = np.flatnonzero(mask_B)
                if places.size:
                    yield places + first, self._products(query, block, places, room_QB)
                continue
            score_QB = self._products(query, block, slice(0, size), room_QB)
            if mask_B is not None and not mask_B.all():
                score_QB.masked_fill_(torch.from_numpy(~mask_B), -torch.inf)
            yield first, score_QB

    def _products(self, query: torch.Tensor, block: int, places: Any, room_QB: torch.Tensor) -> torch.Tensor:
        values = self._codes[block] if self.first_pass == "int8" else self._blocks[block]
        if isinstance(self.first_pass, int):
            values = values[:, : self.first_pass]
        vector_BD = torch.from_numpy(values[places]).float()
        room = room_QB.view(-1)[: len(query) * len(vector_BD)].view(len(query), -1)
        score_QB = torch.mm(query, vector_BD.T, out=room)
        if self.first_pass != "none":
            score_QB.mul_(torch.from_numpy(self._scales[block][places]))
        return score_QB


def _grown(old: np.ndarray, size: int) -> np.ndarray:
    """Return an array with more rows, which are 0."""
    new = np.zeros((size, *old.shape[1:]), dtype=old.dtype)
    new[: len(old)] = old
    return new
