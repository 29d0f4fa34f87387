"""Answer why a product matches a query, with the explainer of the store, which is made on first use."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from retrieval.explanation.explain import MatchExplainer, MatchExplanation
from retrieval.queries import Query
from retrieval.search import Searcher

HeatMaps = Callable[[Searcher, Query, str, MatchExplanation], list[dict[str, str]]]
"""(searcher, query, product id, explanation) → for each side its title, and its picture as a data URL or why there is none."""


CHANGED_SHARE = 0.1
"""Change of the number of products after which the catalogue's phrases are collected again, as a share."""


class MatchAnswers:
    """Explain matches for clients, one at a time.

    The phrases are those of the catalogue at the first explanation, until the number of products differs by `CHANGED_SHARE`.

    Args:
        searcher: the store and its model.
        folder (`Path` or `None`): folder that keeps the vectors of the catalogue's phrases. Default `None`: memory.
        heat_maps: draws where the model looks. Default `None`: the answer has no pictures.
    """

    def __init__(self, searcher: Searcher, folder: Path | None = None, heat_maps: HeatMaps | None = None) -> None:
        self.searcher, self.folder, self.heat_maps = searcher, folder, heat_maps
        self._explainer: MatchExplainer | None = None
        self._products = 0
        self._lock = threading.Lock()

    def answer(self, query: Query, product_id: str) -> Mapping[str, Any]:
        """Return the explanation in types of JSON, with "heat_maps" if they are drawn.

        Args:
            query: the query that found the product.
            product_id (`str`): the product.

        Raises:
            ExplanationError: an unknown product, or a catalogue without attributes, brands and categories.
            SearchError: a query that cannot be encoded.
        """
        with self._lock:
            products = self.searcher.store.count()
            if self._explainer is None or abs(products - self._products) > CHANGED_SHARE * self._products:
                self._explainer, self._products = MatchExplainer(self.searcher, folder=self.folder), products
            found = self._explainer.explain(product_id, query)
            pictures = self.heat_maps(self.searcher, query, product_id, found) if self.heat_maps else []
        return found.as_dict() | {"heat_maps": pictures}
