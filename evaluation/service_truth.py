"""Know what a service has to answer while products are written: acknowledged writes, and exact search over their vectors.

Legend: Q queries, N products, D embedding.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

TOLERANCE = 2e-4
"""Difference of two cosines that the batches of a model explain."""


@dataclass(frozen=True)
class WrittenState:
    """A product that a client wrote.

    Args:
        version (`int`): number of its changes so far.
        content (`int` or `None`): row of its contents among those that are written; `None`: removed.
        is_settled (`bool`): whether the last change was acknowledged.
    """

    version: int = 0
    content: int | None = None
    is_settled: bool = True


class ServiceTruth:
    """Check answers against exact search over all products, those that do not change and those that clients wrote.

    While a product changes, an answer may show it as it was or as it becomes; every other product has to be right.

    Args:
        ids: products that do not change.
        vector_ND: their vectors.
        written_ND: vectors of the contents that clients write.
        query_QD: vectors of the queries.
    """

    def __init__(self, ids: Sequence[str], vector_ND: np.ndarray, written_ND: np.ndarray, query_QD: np.ndarray) -> None:
        self.cosine_QN, self.written_QN = query_QD @ vector_ND.T, query_QD @ written_ND.T
        self._ids = np.array(ids)
        self._written: dict[str, WrittenState] = {}
        self._lock = threading.Lock()

    def begin(self, product_id: str) -> None:
        """Note that a change of a product is sent."""
        with self._lock:
            old = self._written.get(product_id, WrittenState())
            self._written[product_id] = WrittenState(old.version + 1, old.content, False)

    def acknowledge(self, product_id: str, content: int | None) -> None:
        """Note that the service has acknowledged the change: contents, or `None` for removed."""
        with self._lock:
            old = self._written[product_id]
            self._written[product_id] = WrittenState(old.version, content)

    def written(self) -> dict[str, WrittenState]:
        """Return product id → state of the products that clients wrote."""
        with self._lock:
            return dict(self._written)

    def wrong(self, query: int, hits: Sequence[Mapping[str, Any]], k: int, before: dict[str, WrittenState]) -> str:
        """Return what is wrong with the hits of a query; "" if nothing is.

        Args:
            query (`int`): its row.
            hits: the hits of the answer.
            k (`int`): number of products that were wanted.
            before: `written` at the time of the request; the present one is that of the answer.
        """
        now = self.written()
        settled = {one: state for one, state in now.items() if state.is_settled and before.get(one) == state}
        unsettled = now.keys() - settled.keys()
        expected = dict(zip(self._ids.tolist(), self.cosine_QN[query].tolist(), strict=True))
        for one, state in settled.items():
            if state.content is not None:
                expected[one] = float(self.written_QN[query, state.content])
        found = {hit["product_id"]: hit["cosine"] for hit in hits}
        for product_id, cosine in found.items():
            if product_id in unsettled:
                continue
            if product_id not in expected:
                return f"found {product_id}, which is not in the store"
            if abs(cosine - expected[product_id]) > TOLERANCE:
                return f"found cosine {cosine} of {product_id}; expected {expected[product_id]}"
        if len(found) < min(k, len(expected)):
            return f"found {len(found)} products; expected {k}"
        least = min(found.values(), default=-1.0)
        missing = [one for one, cosine in expected.items() if cosine > least + TOLERANCE and one not in found]
        return f"found no {missing[0]}, of cosine {expected[missing[0]]} above {least}" if missing else ""
