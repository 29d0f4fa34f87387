"""Write a stored product as JSON, and derive from it what filters compare and what words are searched in.

The stores share these functions, so that the same filter and the same words find the same products in each.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict

from product_data.words import words
from retrieval.stores.interface import StoredProduct

LEVEL_SEPARATOR = " > "


def to_json(product: StoredProduct) -> str:
    """Return a product as a JSON object; `from_json` reads it."""
    return json.dumps(asdict(product), ensure_ascii=False, separators=(",", ":"))


def from_json(text: str | bytes) -> StoredProduct:
    """Return the product that `to_json` wrote."""
    facts = json.loads(text)
    for name in ("category", "images"):
        facts[name] = tuple(facts[name])
    facts["attributes"] = {key: tuple(values) for key, values in facts["attributes"].items()}
    return StoredProduct(**facts)


def path_of(levels: Sequence[str]) -> str:
    """Return levels of a category, root first, as one path such as "Shoes > Boots"."""
    return LEVEL_SEPARATOR.join(level.strip() for level in LEVEL_SEPARATOR.join(levels).split(">"))


def category_paths(product: StoredProduct) -> list[str]:
    """Return the path of each level of a product's category: "Shoes", "Shoes > Boots"."""
    levels = path_of(product.category).split(LEVEL_SEPARATOR) if product.category else []
    return [LEVEL_SEPARATOR.join(levels[:depth]) for depth in range(1, len(levels) + 1)]


def attribute_pair(key: str, value: str) -> str:
    """Return one attribute as a string that no other key and value give."""
    return json.dumps([key, value], ensure_ascii=False)


def attribute_pairs(product: StoredProduct) -> list[str]:
    """Return each value of each attribute with its key; see `attribute_pair`."""
    pairs = (attribute_pair(key, value) for key, values in product.attributes.items() for value in values)
    return list(dict.fromkeys(pairs))


def searched_words(product: StoredProduct) -> list[str]:
    """Return the words of a product's title, description, brand, category and attributes, repeated ones too."""
    attributes = [text for key, values in product.attributes.items() for text in (key, *values)]
    return split_words(" ".join([product.title, product.description, product.brand, *product.category, *attributes]))


def split_words(text: str) -> list[str]:
    """Return the words of a text as `product_data.words.words` normalises them, without keeping the text in its cache."""
    return [word for word in words.__wrapped__(text) if word]


def most_frequent(counts: Iterable[tuple[str, int]], limit: int) -> dict[str, int]:
    """Return the values with the highest counts, the most frequent first; ties are in the order of the values."""
    ranked = sorted(
        ((value, number) for value, number in counts if value and number), key=lambda one: (-one[1], one[0])
    )
    return dict(ranked[:limit])
