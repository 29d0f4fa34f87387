"""Find the categories, brands and attribute values that texts name, by a dictionary of the shop's own values.

The dictionary holds the names of all category levels and their last words ("Running Shoes", "shoes"), the brands, and the values
of all attributes, with the spellings of `product_data.synonyms`; Chinese is compared by characters. MOON Embedding (arXiv
2511.11305) filters its data by named entities; a dictionary instead of a trained recogniser is our design (precedent: distant
supervision, Mintz et al. 2009): it needs no model, and knows every brand that the shop sells.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from product_data.rows import ProductRow
from product_data.synonyms import ValueIndex, canonical_key, canonical_value, common_words
from product_data.words import Words

CATEGORY = "category"
_LONGEST = 6  # words of a value; longer ones are sentences
_NO_ENTITY = frozenset(
    ("yes", "no", "true", "false", "none", "all", "other", "others", "various", "default", "n/a", "na")
)
Entities = Mapping[str, frozenset[str]]
"""Key → values, both in the form in which `product_data.synonyms` compares them."""


class EntityDictionary:
    """The entities of a catalogue.

    Args:
        products: all products, of every split.
    """

    def __init__(self, products: Iterable[ProductRow]) -> None:
        known: dict[str, set[str]] = defaultdict(set)
        for row in products:
            for key, values in _own(row):
                known[key].update(values)
        self.size = sum(map(len, known.values()))
        self._index = ValueIndex(known)

    def named_in(self, text: str) -> Entities:
        """Return the entities that a text names.

        Args:
            text: a query or a title.
        """
        return self._index.stated(text) if text else {}

    def of_product(self, row: ProductRow) -> Entities:
        """Return the entities of a product: its category, brand and attributes, and what its title and description name."""
        found: dict[str, set[str]] = defaultdict(set)
        for key, values in _own(row):
            found[key].update(canonical_value(key, value) for value in values)
        for text in (row.title, row.description):
            for key, stated in self.named_in(text).items():
                found[key] |= stated
        return {key: frozenset(values) for key, values in found.items()}


def shared_entities(left: Entities, right: Entities) -> tuple[str, ...]:
    """Return the values that both sides name, in alphabetical order; the key does not count, since shops differ in keys."""
    values = [frozenset(value for found in side.values() for value in found) for side in (left, right)]
    return tuple(sorted(values[0] & values[1]))


def entity_names(entities: Entities) -> tuple[str, ...]:
    """Return entities for readers, such as "colour: red"."""
    return tuple(sorted(f"{key}: {value}" for key, values in entities.items() for value in values))


@dataclass(frozen=True)
class ProductFacts:
    """What is compared of two products that may be the same.

    Args:
        words: the words of the title, in their preferred spellings.
        description: those of the description.
        values: key → values of the attributes; of a key without attribute, those that the title names. Keys with the same
            meaning are one.
        attributes: key as the shop writes it → values.
        numbers: the words of the title that contain a digit.
    """

    words: Words
    description: Words
    values: Entities
    attributes: Entities
    numbers: frozenset[str]

    @classmethod
    def of(cls, row: ProductRow, dictionary: EntityDictionary) -> ProductFacts:
        """Return the facts of a product."""
        attributes = {
            " ".join(common_words(key)): frozenset(canonical_value(key, value) for value in values)
            for key, values in row.attributes.items()
        }
        values: dict[str, frozenset[str]] = {}
        for key, own in row.attributes.items():
            same = canonical_key(key)
            values[same] = values.get(same, frozenset()).union(canonical_value(key, value) for value in own)
        values |= _stated_alone(values, dictionary.named_in(row.title))
        title = common_words(row.title)
        numbers = frozenset(word for word in title if any(map(str.isdigit, word)))
        return cls(title, common_words(row.description), values, attributes, numbers)

    def contradicts(self, other: ProductFacts) -> bool:
        """Return whether two products cannot be the same: a key has no value in common, or the titles' numbers differ."""
        for own, others in ((self.attributes, other.attributes), (self.values, other.values)):
            if any(not values & others[key] for key, values in own.items() if key in others):
                return True
        return not (self.numbers <= other.numbers or other.numbers <= self.numbers)

    def similarity(self, other: ProductFacts) -> float:
        """Return the Jaccard similarity of the titles' words, `|A ∩ B| / |A ∪ B|`; 1 if a product has no title."""
        if not self.words or not other.words:
            return 1.0
        own, others = set(self.words), set(other.words)
        return len(own & others) / len(own | others)


def _stated_alone(known: Entities, stated: Entities) -> dict[str, frozenset[str]]:
    """Return what a title states of keys without an attribute, where only one of them can have the value."""
    explained = frozenset(value for values in known.values() for value in values)
    unknown = {key: values - explained for key, values in stated.items() if key not in known and key != CATEGORY}
    uses = Counter(value for values in unknown.values() for value in values)
    alone = {key: frozenset(value for value in values if uses[value] == 1) for key, values in unknown.items()}
    return {key: values for key, values in alone.items() if values}


def _own(row: ProductRow) -> Iterable[tuple[str, list[str]]]:
    """Yield the entities of a product's attributes and category: each key with its values."""
    for key, values in row.attributes.items():
        yield canonical_key(key), [value for value in values if _is_entity(value)]
    names = list(row.category)
    heads = [parts[-1] for name in names if len(parts := name.split()) > 1 and parts[-1].isascii()]
    yield CATEGORY, [name for name in (*names, *heads) if _is_entity(name)]


def _is_entity(value: str) -> bool:
    return value.strip().casefold() not in _NO_ENTITY and 0 < len(common_words(value)) <= _LONGEST
