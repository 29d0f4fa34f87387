"""Keep a catalogue in memory and search it exactly.

Legend: Q queries, N products, D embedding.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from retrieval.bm25 import WordIndex
from retrieval.centring import Centring
from retrieval.stores.exact_search import FirstPass, FlatVectors
from retrieval.stores.facts import from_json, most_frequent, searched_words, split_words, to_json
from retrieval.stores.interface import StoredProduct
from retrieval.stores.postings import FactColumns
from retrieval.stores.ranking import SAME_SCORE, Candidate, best, rounded
from retrieval.stores.searching import RankingStore, checked_batch
from retrieval.stores.where import Where


class ExactStore(RankingStore):
    """A store in memory: exact search, filters by masks, words by BM25. It writes no file.

    Args:
        dimension (`int`): D.
        fingerprint (`str`): of the model whose vectors it holds.
        first_pass: "none" (default), a number of dimensions or "int8"; see `FlatVectors`.
        centring: means by form, which `upsert` subtracts; `add_vectors` writes vectors as they are. Default: none.

    Memory: `memory_bytes`. The vectors take 4·D bytes for each product and form; the facts, about their length as JSON and 100
    bytes for each product. The first filter and the first words build their index: see `FactColumns` and `WordIndex`.
    """

    def __init__(
        self,
        dimension: int,
        fingerprint: str = "",
        *,
        first_pass: FirstPass = "none",
        centring: Centring | None = None,
    ) -> None:
        self.centring = centring
        self.dimension, self.fingerprint, self.first_pass = dimension, fingerprint, first_pass
        self.about = "exact search in memory"
        self._row: dict[str, int] = {}
        self._ids: list[str] = []
        self._facts: list[bytes] = []
        self._digests: list[str] = []
        self._alive = np.zeros(0, dtype=bool)
        self._flat: dict[str, FlatVectors] = {}
        self._present: dict[str, np.ndarray] = {}
        self._columns: FactColumns | None = None
        self._words: tuple[np.ndarray, WordIndex] | None = None
        self._kept: tuple[frozenset[str], np.ndarray] | None = None

    @property
    def forms(self) -> tuple[str, ...]:
        """The forms of which the store has vectors."""
        return tuple(sorted(self._flat))

    @property
    def memory_bytes(self) -> int:
        """Bytes of vectors, facts and indices, without the ids and Python's own objects (about 100 bytes a product)."""
        indices = [self._columns, self._words and self._words[1]]
        return (
            sum(flat.memory_bytes for flat in self._flat.values())
            + sum(present.nbytes for present in self._present.values())
            + sum(map(len, self._facts))
            + sum(index.memory_bytes for index in indices if index is not None)
        )

    def upsert(self, products: Sequence[StoredProduct], vectors: Mapping[str, np.ndarray]) -> None:
        """Add or replace products: see `retrieval.stores.interface.Store.upsert`."""
        batch = checked_batch(products, vectors, self.dimension, self.centring)
        rows = self.add_products(products)
        for present in self._present.values():
            present[rows] = False
        for form, vector_ND in batch.items():
            self.add_vectors(form, rows, vector_ND)

    def add_products(self, products: Sequence[StoredProduct]) -> np.ndarray:
        """Add or replace facts and return their rows; `add_vectors` completes them. `upsert` does both."""
        rows = []
        for product in products:
            row = self._row.setdefault(product.product_id, len(self._ids))
            if row == len(self._ids):
                self._ids.append(product.product_id)
                self._facts.append(b"")
                self._digests.append("")
            self._facts[row], self._digests[row] = to_json(product).encode(), product.digest
            rows.append(row)
        added = len(self._ids) - len(self._alive)
        self._alive = np.append(self._alive, np.ones(added, dtype=bool))
        for form, flat in self._flat.items():
            flat.resize(len(self._ids))
            self._present[form] = np.append(self._present[form], np.zeros(added, dtype=bool))
        self._columns = self._words = self._kept = None
        return np.array(rows, dtype=np.int64)

    def add_vectors(self, form: str, rows: np.ndarray, vector_ND: np.ndarray) -> None:
        """Write vectors of a form for rows that `add_products` returned; a row of NaN is a missing vector."""
        if form not in self._flat:
            self._flat[form] = FlatVectors(self.dimension, first_pass=self.first_pass)
            self._flat[form].resize(len(self._ids))
            self._present[form] = np.zeros(len(self._ids), dtype=bool)
        there = ~np.isnan(vector_ND).all(axis=1)
        self._flat[form].write(rows[there], vector_ND[there])
        self._present[form][rows] = there

    def __contains__(self, product_id: object) -> bool:
        return product_id in self._row

    def rows(self, product_ids: Iterable[str]) -> np.ndarray:
        """Return the rows of products that the store has, for `add_vectors`."""
        return np.array([self._row[product_id] for product_id in product_ids], dtype=np.int64)

    def without_vector(self) -> list[str]:
        """Return the ids of products that have no vector of any form yet."""
        there_N = np.zeros(len(self._ids), dtype=bool)
        for present_N in self._present.values():
            there_N |= present_N
        return [product_id for product_id, row in self._row.items() if not there_N[row]]

    def delete(self, product_ids: Iterable[str]) -> int:
        """Remove products; return how many of the ids were in the store. `compact` frees their memory."""
        rows = [self._row.pop(product_id) for product_id in set(product_ids) if product_id in self._row]
        self._alive[rows] = False
        self._words = self._kept = None
        return len(rows)

    def get(self, product_ids: Sequence[str]) -> list[StoredProduct | None]:
        """Return products by id, in the given order; None for an unknown id."""
        rows = [self._row.get(product_id) for product_id in product_ids]
        return [None if row is None else from_json(self._facts[row]) for row in rows]

    def vectors(self, product_ids: Sequence[str], form: str) -> np.ndarray:
        """Return (N, D) float32 vectors by id; a row of NaN where there is none."""
        found = np.full((len(product_ids), self.dimension), np.nan, dtype=np.float32)
        if form in self._flat:
            rows = np.array([self._row.get(product_id, -1) for product_id in product_ids], dtype=np.int64)
            there = (rows >= 0) & self._present[form][rows] if len(self._ids) else rows >= 0
            found[there] = self._flat[form].read(rows[there])
        return found

    def nearest(
        self, query_QD: np.ndarray, k: int, where: Where | None, forms: Sequence[str], exclude: frozenset[str]
    ) -> list[list[Candidate]]:
        """Return for each query the k products with the nearest vectors: see `RankingStore.nearest`."""
        mask_N = self._mask(where, exclude)
        found: list[list[Candidate]] = [[] for _ in query_QD]
        for form in forms:
            if form not in self._flat:
                continue
            form_mask_N = mask_N & self._present[form]
            answers = self._flat[form].search(query_QD, k, None if form_mask_N.all() else form_mask_N)
            for candidates, (rows, scores) in zip(found, answers, strict=True):
                ids = (self._ids[row] for row in rows)
                candidates += [Candidate(one, float(score), form) for one, score in zip(ids, scores, strict=True)]
        return [best(candidates, k) for candidates in found]

    def matching(
        self, words: Sequence[str], k: int, where: Where | None, exclude: frozenset[str]
    ) -> list[list[Candidate]]:
        """Return for each text the k products with the highest BM25 score: see `RankingStore.matching`."""
        rows_of, index = self._word_index()
        mask_N = self._mask(where, exclude)[rows_of]
        answers = []
        for text in words:
            score_N = np.where(mask_N, index.scores(split_words(text)), 0)
            rows = np.flatnonzero(score_N)
            if len(rows) > k:
                least = np.partition(score_N[rows], len(rows) - k)[len(rows) - k]
                rows = rows[score_N[rows] >= least * (1 - SAME_SCORE)]
            answers.append(best((Candidate(self._ids[rows_of[row]], rounded(score_N[row])) for row in rows), k))
        return answers

    def products(self, where: Where | None = None) -> Iterator[StoredProduct]:
        """Iterate over the products in the order of ids."""
        mask_N = self._mask(where)
        for product_id in sorted(self._row):
            row = self._row.get(product_id)
            if row is not None and mask_N[row]:
                yield from_json(self._facts[row])

    def digests(self) -> dict[str, str]:
        """Return product id → digest of every product."""
        return {product_id: self._digests[row] for product_id, row in self._row.items()}

    def count(self, where: Where | None = None) -> int:
        """Return the number of products."""
        return len(self._row) if where is None else int(self._mask(where).sum())

    def facets(self, where: Where | None = None, *, limit: int = 20) -> dict[str, dict[str, int]]:
        """Return value → number of products: see `retrieval.stores.interface.Store.facets`."""
        counts = self._fact_columns().counts(self._mask(where))
        return {name: most_frequent(pairs, limit) for name, pairs in counts.items()}

    def compact(self) -> str:
        """Free the memory of deleted products."""
        kept = np.flatnonzero(self._alive)
        removed = len(self._alive) - len(kept)
        if removed:
            for form, old in list(self._flat.items()):
                new = FlatVectors(self.dimension, first_pass=self.first_pass)
                new.resize(len(kept))
                for start in range(0, len(kept), new.block_rows):
                    rows = np.arange(start, min(start + new.block_rows, len(kept)))
                    new.write(rows, old.read(kept[rows]))
                self._flat[form], self._present[form] = new, self._present[form][kept]
            self._ids = [self._ids[row] for row in kept]
            self._facts = [self._facts[row] for row in kept]
            self._digests = [self._digests[row] for row in kept]
            self._row = {product_id: row for row, product_id in enumerate(self._ids)}
            self._alive = np.ones(len(kept), dtype=bool)
            self._columns = self._words = self._kept = None
        return f"freed the memory of {removed} deleted products; {len(self._row)} are kept"

    def close(self) -> None:
        """Do nothing: the store has no files."""

    def _mask(self, where: Where | None, exclude: frozenset[str] = frozenset()) -> np.ndarray:
        mask_N = self._without(exclude)
        return mask_N if where is None else mask_N & self._fact_columns().mask(where)

    def _without(self, exclude: frozenset[str]) -> np.ndarray:
        """Return the mask of the products besides `exclude`; the last one is kept, since a `MixedStore` repeats its set."""
        if not exclude:
            return self._alive
        kept = self._kept
        if kept is None or (kept[0] is not exclude and kept[0] != exclude):
            mask_N = self._alive.copy()
            mask_N[[self._row[product_id] for product_id in exclude if product_id in self._row]] = False
            self._kept = kept = (exclude, mask_N)
        return kept[1]

    def _fact_columns(self) -> FactColumns:
        if self._columns is None:
            self._columns = FactColumns(map(from_json, self._progress(self._facts, "filters")))
        return self._columns

    def _word_index(self) -> tuple[np.ndarray, WordIndex]:
        if self._words is None:
            rows = np.flatnonzero(self._alive)
            facts = self._progress([self._facts[row] for row in rows], "words")
            self._words = rows, WordIndex(searched_words(from_json(text)) for text in facts)
        return self._words

    def _progress(self, facts: Sequence[bytes], name: str) -> Any:
        return tqdm(facts, desc=f"index of {name}", unit="product", delay=3.0, leave=False)
