"""Search a catalogue whose products have vectors of an old model or of a new one, with the new model's queries.

Legend: Q queries, D width of the new model.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from retrieval.stores.interface import Store, StoredProduct, StoreError
from retrieval.stores.ranking import Candidate, best
from retrieval.stores.searching import RankingStore, require_uncentred
from retrieval.stores.where import Where
from retrieval.upgrade.sampling import UpgradeError
from retrieval.upgrade.upgrade_folder import Upgrade

_READ_ONLY = (
    "expected the store of one model: embed with moon3 embed, and bring the vectors up to date with moon3 upgrade"
)


class MixedStore(RankingStore):
    """A store of two groups: products with the new model's vectors, and all others with the old model's.

    The new group is searched with the query, the old one with `adapter(query)`. Cosines of the old group are calibrated to the
    scale of the new ones, and both rankings are merged by them; `Hit.cosine` is the calibrated one. Facts and words come from
    the old store, which has every product.

    Args:
        old: the store of all products, with the old model's vectors.
        new: a store of the new model's vectors of some products, with the old store's facts.
        upgrade: the adapter between both models.

    Raises:
        UpgradeError: a store whose vectors come from another model than the upgrade's.
        StoreError: a store that is centred by form, since the adapter was fitted on the vectors as the models made them.

    Relations: `retrieval.upgrade.opening.open_upgraded` makes it from a folder of vectors.
    """

    def __init__(self, old: Store, new: Store, upgrade: Upgrade) -> None:
        for side, store, model in (("old", old, upgrade.old), ("new", new, upgrade.new)):
            if (store.fingerprint, store.dimension) != (model.fingerprint, model.dimension):
                raise UpgradeError(
                    f"{side} vectors: found fingerprint {store.fingerprint!r} and width {store.dimension}; expected "
                    f"{model.fingerprint!r} and {model.dimension}, those of {model.model}, for which the adapter was fitted"
                )
            require_uncentred(store.centring, f"{side} vectors")
        self.old, self.new, self.upgrade, self.moved = old, new, upgrade, frozenset(new.digests())
        self.dimension, self.fingerprint = upgrade.new.dimension, upgrade.new.fingerprint
        self._all_moved = self.moved >= old.digests().keys()
        self.about = (
            f"{len(self.moved)} of {old.count()} products by {upgrade.new.model}, the others by {upgrade.old.model} "
            f"through the adapter {upgrade.name}"
        )

    @property
    def forms(self) -> tuple[str, ...]:
        """The forms of which the store has vectors."""
        return tuple(dict.fromkeys([*getattr(self.new, "forms", ()), *getattr(self.old, "forms", ())]))

    def nearest(
        self, query_QD: np.ndarray, k: int, where: Where | None, forms: Sequence[str], exclude: frozenset[str]
    ) -> list[list[Candidate]]:
        """Return for each query the k products with the highest calibrated cosines: see `RankingStore.nearest`."""
        found: list[list[Candidate]] = [[] for _ in query_QD]
        if self.moved:
            hits = self.new.search(query_QD, k=k, where=where, forms=forms, exclude=exclude)
            found = [[Candidate(hit.product.product_id, hit.score, hit.form) for hit in one] for one in hits]
        if not self._all_moved:
            adapted_QE = self.upgrade.adapter(query_QD)
            left_out = exclude | self.moved if exclude else self.moved  # the same set lets the store keep its mask
            hits = self.old.search(adapted_QE, k=k, where=where, forms=forms, exclude=left_out)
            for candidates, one in zip(found, hits, strict=True):
                scores = [float(self.upgrade.calibration(hit.score)) for hit in one]
                candidates += [
                    Candidate(hit.product.product_id, score, hit.form) for hit, score in zip(one, scores, strict=True)
                ]
        return [best(candidates, k) for candidates in found]

    def matching(
        self, words: Sequence[str], k: int, where: Where | None, exclude: frozenset[str]
    ) -> list[list[Candidate]]:
        """Return for each text the k products that match its words best: see `RankingStore.matching`."""
        found = self.old.search(None, words=words, k=k, where=where, exclude=exclude)
        return [[Candidate(hit.product.product_id, hit.score) for hit in hits] for hits in found]

    def get(self, product_ids: Sequence[str]) -> list[StoredProduct | None]:
        """Return products by id, in the given order; None for an unknown id."""
        return self.old.get(product_ids)

    def vectors(self, product_ids: Sequence[str], form: str) -> np.ndarray:
        """Return (N, D) float32 vectors in the new model's space; a row of NaN where there is none.

        Old vectors are mapped by the adapter old → new.
        """
        vector_ND = np.full((len(product_ids), self.dimension), np.nan, dtype=np.float32)
        for store, rows in (
            (self.new, [row for row, one in enumerate(product_ids) if one in self.moved]),
            (self.old, [row for row, one in enumerate(product_ids) if one not in self.moved]),
        ):
            found = store.vectors([product_ids[row] for row in rows], form)
            there = np.isfinite(found).all(axis=1)
            kept = np.array(rows, dtype=np.int64)[there]
            if len(kept):
                vector_ND[kept] = found[there] if store is self.new else self.upgrade.back(found[there])
        return vector_ND

    def products(self, where: Where | None = None) -> Iterator[StoredProduct]:
        """Iterate over the products in the order of ids."""
        return self.old.products(where)

    def digests(self) -> dict[str, str]:
        """Return product id → digest of every product."""
        return self.old.digests()

    def count(self, where: Where | None = None) -> int:
        """Return the number of products."""
        return self.old.count(where)

    def facets(self, where: Where | None = None, *, limit: int = 20) -> dict[str, dict[str, int]]:
        """Return value → number of products: see `retrieval.stores.interface.Store.facets`."""
        return self.old.facets(where, limit=limit)

    def upsert(self, products: Sequence[StoredProduct], vectors: Mapping[str, np.ndarray]) -> None:
        """Refuse to write.

        Raises:
            StoreError: always.
        """
        raise StoreError(f"upsert: found a store with vectors of two models; {_READ_ONLY}")

    def delete(self, product_ids: Iterable[str]) -> int:
        """Refuse to write.

        Raises:
            StoreError: always.
        """
        raise StoreError(f"delete: found a store with vectors of two models; {_READ_ONLY}")

    def compact(self) -> str:
        """Compact both stores; return a sentence on what was done."""
        return "; ".join(f"{side}: {store.compact()}" for side, store in (("old", self.old), ("new", self.new)))

    def close(self) -> None:
        """Release files and connections of both stores."""
        self.old.close()
        self.new.close()
