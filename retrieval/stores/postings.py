"""Find the rows that have a value, for filters and facets in memory.

Legend: N products.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from operator import eq

import numpy as np

from retrieval.stores.facts import attribute_pairs, category_paths
from retrieval.stores.interface import StoredProduct
from retrieval.stores.where import COMPARISONS, Condition, Where

FACETS = {"category": "category_paths", "brand": "brand", "availability": "availability"}
"""Name of a facet → the column that is counted."""


class FactColumns:
    """Prices as an array, and for each other column that a filter compares: value → rows that have it.

    Args:
        products: row n is the n-th product.

    Memory: 8 bytes a product for the price, and 4 for each value of each product.
    """

    def __init__(self, products: Iterable[StoredProduct]) -> None:
        prices: list[float] = []
        rows: dict[str, dict[str, list[int]]] = {"brand": {}, "availability": {}, "category_paths": {}}
        rows["attribute_pairs"] = {}
        for row, product in enumerate(products):
            prices.append(np.nan if product.price is None else product.price)
            values = {"category_paths": category_paths(product), "attribute_pairs": attribute_pairs(product)}
            values |= {"brand": [product.brand], "availability": [product.availability]}
            for column, column_values in values.items():
                for value in column_values:
                    rows[column].setdefault(value, []).append(row)
        self.price_N = np.array(prices, dtype=np.float64)
        self._rows = {
            column: {value: np.array(found, dtype=np.int32) for value, found in values.items()}
            for column, values in rows.items()
        }

    @property
    def memory_bytes(self) -> int:
        """Bytes of the arrays, without the values themselves."""
        return self.price_N.nbytes + sum(rows.nbytes for values in self._rows.values() for rows in values.values())

    def mask(self, where: Where) -> np.ndarray:
        """Return (N,) bool: the products that pass a filter."""
        mask_N = np.ones(len(self.price_N), dtype=bool)
        for condition in where.conditions:
            mask_N &= self._holds(condition)
        return mask_N

    def _holds(self, condition: Condition) -> np.ndarray:
        mask_N = np.zeros(len(self.price_N), dtype=bool)
        if condition.key == "price":
            compare = COMPARISONS.get(condition.operator, eq)
            for value in condition.values:
                mask_N |= compare(self.price_N, value) & ~np.isnan(self.price_N)
            return mask_N
        for value in condition.compared:
            mask_N[self._rows[condition.field].get(value, [])] = True
        return ~mask_N if condition.operator == "!=" else mask_N

    def counts(self, mask_N: np.ndarray) -> Mapping[str, list[tuple[str, int]]]:
        """Return for each of `FACETS` the number of rows of a mask that have each value."""
        return {
            name: [(value, int(mask_N[rows].sum())) for value, rows in self._rows[column].items()]
            for name, column in FACETS.items()
        }
