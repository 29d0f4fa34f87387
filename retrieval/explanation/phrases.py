"""Collect what a shop states about its products as phrases, such as "color: red", and embed phrases.

Shape suffixes: P phrases, N products, D embedding.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from retrieval.encode import encode
from retrieval.stores.interface import StoredProduct

CATEGORY, BRAND = "category", "brand"
EMBEDDED_AS = ("query", "product")
"""A phrase as a query of its value's words, or as a product that has this value alone."""
MOST_PHRASES = 5000


class ExplanationError(ValueError):
    """Raised for what cannot be explained; says what was found and what is expected."""

    exit_status = 2


@dataclass(frozen=True, order=True, slots=True)
class Phrase:
    """One value of an attribute, such as "color: red"; the key of a category is "category", that of a brand "brand"."""

    key: str
    value: str

    def __str__(self) -> str:
        return f"{self.key}: {self.value}"

    def record(self) -> dict[str, Any]:
        """Return the record of a product that has this value alone."""
        name = str(self)
        if self.key == CATEGORY:
            return {"id": name, "category": [self.value]}
        return {"id": name, "attributes": {self.key: [self.value]}}


def phrases_of(product: StoredProduct) -> tuple[Phrase, ...]:
    """Return what a shop states about a product: its attribute values, its brand and the last level of its category.

    Higher levels are sums of lower ones, so that a decomposition could not tell them apart.
    """
    found = [Phrase(key, value) for key, values in product.attributes.items() for value in values]
    found += [Phrase(CATEGORY, product.category[-1])] if product.category else []
    found += [Phrase(BRAND, product.brand)] if product.brand else []
    same: dict[str, dict[str, Phrase]] = {phrase.key.casefold(): {} for phrase in found}
    for phrase in found:
        # An attribute "category: boots" beside the category "Boots" is one phrase; that of the category stays.
        same[phrase.key.casefold()][phrase.value.casefold()] = phrase
    return tuple(phrase for values in same.values() for phrase in values.values())


def collect_phrases(products: Iterable[StoredProduct], *, most: int = MOST_PHRASES) -> list[Phrase]:
    """Return the most frequent phrases of a catalogue, in alphabetical order.

    Args:
        products: the catalogue.
        most (`int`): number of phrases to keep. Default 5,000.

    Raises:
        ExplanationError: no product has an attribute, a brand or a category.
    """
    counts = Counter(phrase for product in products for phrase in phrases_of(product))
    if not counts:
        raise ExplanationError(
            "catalogue: found no attributes, brands or categories; expected some, since explanations name them"
        )
    ordered = sorted(counts, key=lambda phrase: (-counts[phrase], phrase))
    return sorted(ordered[:most])


def embed_phrases(
    model: Any, processor: Any, phrases: Sequence[Phrase], *, embedded_as: str = "query", progress: bool = True
) -> np.ndarray:
    """Return the (P, D) float32 unit vectors of phrases.

    Args:
        model, processor: as for `retrieval.encode.encode`.
        phrases: the phrases.
        embedded_as (`str`): one of `EMBEDDED_AS`. Default "query".
        progress (`bool`): whether to show a progress bar. Default True.

    Raises:
        ExplanationError: another value of `embedded_as`, or a phrase that cannot be encoded.
    """
    if embedded_as not in EMBEDDED_AS:
        raise ExplanationError(f"embedded_as: found {embedded_as!r}; expected one of {', '.join(EMBEDDED_AS)}")
    if embedded_as == "product":
        found = encode(model, processor, [phrase.record() for phrase in phrases], form="t", progress=progress)
    else:
        records = [{"id": str(phrase), "text": phrase.value} for phrase in phrases]
        found = encode(model, processor, records, kind="query", progress=progress)
    if found.skipped:
        first = found.skipped[0]
        raise ExplanationError(f"phrase {first.item!r}: cannot be encoded: {first.reason}")
    return found.vectors
