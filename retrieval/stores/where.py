"""Read a filter such as "price < 50 and brand = 'Acme'", and apply it to products or turn it into SQL."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

from product_data.feeds.feed_product import AVAILABILITY
from retrieval.stores.facts import attribute_pair, attribute_pairs, category_paths, path_of
from retrieval.stores.interface import StoredProduct, StoreError

COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
KEYS = ("price", "availability", "brand", "category")
ATTRIBUTES = "attributes."
_TOKEN = re.compile(
    r"""\s*(?:(?P<quoted>'(?:[^']|'')*'|"(?:[^"]|"")*")|(?P<operator><=|>=|!=|<|>|=)|(?P<mark>[(),])"""
    r"""|(?P<word>(?:[^\s<>=!(),'"]|(?<=\.)'(?:[^']|'')*')+))"""
)


@dataclass(frozen=True, slots=True)
class Condition:
    """One comparison of a filter.

    Args:
        key (`str`): one of `KEYS`, or "attributes." and the key of an attribute.
        operator (`str`): one of `COMPARISONS`, or "in".
        values: texts, or numbers for the price; several for "in" only.
    """

    key: str
    operator: str
    values: tuple[Any, ...]

    @property
    def field(self) -> str:
        """The column that a store compares: price, brand, availability, category_paths or attribute_pairs."""
        if self.key == "category":
            return "category_paths"
        return "attribute_pairs" if self.key.startswith(ATTRIBUTES) else self.key

    @property
    def compared(self) -> tuple[Any, ...]:
        """The values as the column has them."""
        if self.key == "category":
            return tuple(path_of([value]) for value in self.values)
        if self.key.startswith(ATTRIBUTES):
            return tuple(attribute_pair(self.key.removeprefix(ATTRIBUTES), value) for value in self.values)
        return self.values

    def holds(self, product: StoredProduct) -> bool:
        """Return whether a product satisfies the condition."""
        if self.key == "price":
            compare = COMPARISONS.get(self.operator, operator.eq)
            return product.price is not None and any(compare(product.price, value) for value in self.values)
        values = {
            "brand": lambda: [product.brand],
            "availability": lambda: [product.availability],
            "category_paths": lambda: category_paths(product),
            "attribute_pairs": lambda: attribute_pairs(product),
        }[self.field]()
        return any(value in values for value in self.compared) != (self.operator == "!=")

    def sql(self) -> str:
        """Return the condition in the SQL of DataFusion, over the columns of `field`."""
        if self.key == "price":
            numbers = ", ".join(repr(float(value)) for value in self.values)
            return f"price IN ({numbers})" if self.operator == "in" else f"price {self.operator} {numbers}"
        texts = [sql_text(value) for value in self.compared]
        if self.field in ("brand", "availability"):
            clause = f"{self.field} IN ({', '.join(texts)})"
        else:
            clause = "(" + " OR ".join(f"array_has({self.field}, {text})" for text in texts) + ")"
        return f"(NOT {clause})" if self.operator == "!=" else clause


@dataclass(frozen=True, slots=True)
class Where:
    """A filter: a product passes if all conditions hold.

    The price is compared as a number, without regard to the currency; a product without a price satisfies no condition on
    it. `category = 'Shoes > Boots'` holds for that category and all below it. `attributes.color = red` holds if one of the
    values is equal; `!=`, if none is. Texts are compared exactly, upper and lower case included.

    Args:
        conditions: all must hold; without any, every product passes.
    """

    conditions: tuple[Condition, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Where:
        """Return the filter that a text describes.

        `condition and condition …`, each `key operator value` or `key in (value, …)`. Keys: price, availability, brand,
        category, attributes.KEY (`attributes.'shoe size'` if the key has other characters). Operators: =, !=, in; for the
        price also <, <=, >, >=. A value with spaces or signs stands in quotes; a quote inside is doubled.

        Raises:
            StoreError: the text cannot be read; says at which character, what was found and what is expected.
        """
        return cls(tuple(_Reader(text).conditions()))

    def __and__(self, other: Where) -> Where:
        return Where(self.conditions + other.conditions)

    def holds(self, product: StoredProduct) -> bool:
        """Return whether a product passes."""
        return all(condition.holds(product) for condition in self.conditions)

    def sql(self) -> str:
        """Return the filter in the SQL of DataFusion; "true" if it has no condition."""
        return " AND ".join(condition.sql() for condition in self.conditions) or "true"


def sql_text(text: str) -> str:
    """Return a text as an SQL string literal; quotes are doubled, and no other character has a meaning there."""
    return "'" + text.replace("'", "''") + "'"


class _Reader:
    """Read the tokens of a filter from left to right."""

    def __init__(self, text: str) -> None:
        self.text, self.place = text, 0

    def conditions(self) -> list[Condition]:
        if not self.text.strip():
            self.refuse(0, "a condition, such as price < 50")
        found = [self.condition()]
        while self.text[self.place :].strip():
            self.take("word", "and", expected="'and' or the end")
            found.append(self.condition())
        return found

    def condition(self) -> Condition:
        start, key = self.key()
        place, kind, sign = self.token("=, !=, <, <=, >, >= or in")
        if kind == "word" and sign.casefold() == "in":
            return Condition(key, "in", self.values(key))
        if kind != "operator":
            self.refuse(place, "=, !=, <, <=, >, >= or in")
        if key != "price" and sign not in ("=", "!="):
            self.refuse(place, f"=, != or in after {key}: only the price has an order")
        return Condition(key, sign, (self.value(key),))

    def key(self) -> tuple[int, str]:
        expected = f"one of {', '.join(KEYS)} or {ATTRIBUTES}KEY"
        place, kind, word = self.token(expected)
        if kind == "word" and word.startswith(ATTRIBUTES) and len(word) > len(ATTRIBUTES):
            name = word.removeprefix(ATTRIBUTES)
            return place, ATTRIBUTES + (_unquoted(name) if name.startswith("'") else name)
        if kind != "word" or word not in KEYS:
            self.refuse(place, expected)
        return place, word

    def values(self, key: str) -> tuple[Any, ...]:
        self.take("mark", "(", expected="'('")
        found = [self.value(key)]
        while True:
            place, kind, sign = self.token("',' or ')'")
            if (kind, sign) == ("mark", ")"):
                return tuple(found)
            if (kind, sign) != ("mark", ","):
                self.refuse(place, "',' or ')'")
            found.append(self.value(key))

    def value(self, key: str) -> Any:
        place, kind, text = self.token("a value")
        if kind not in ("word", "quoted"):
            self.refuse(place, "a value")
        text = _unquoted(text) if kind == "quoted" else text
        if key == "availability" and text not in AVAILABILITY:
            self.refuse(place, f"one of {', '.join(filter(None, AVAILABILITY))}, or '' for unknown")
        if key != "price":
            return text
        try:
            number = float(text)
        except ValueError:
            number = float("nan")
        if not abs(number) < float("inf"):
            self.refuse(place, "a number")
        return number

    def take(self, kind: str, word: str, *, expected: str) -> None:
        place, found, text = self.token(expected)
        if (found, text.casefold()) != (kind, word):
            self.refuse(place, expected)

    def token(self, expected: str) -> tuple[int, str, str]:
        match = _TOKEN.match(self.text, self.place)
        if match is None or match.lastgroup is None:
            place = len(self.text) - len(self.text[self.place :].lstrip())
            self.refuse(place, expected)
        self.place = match.end()
        return match.start(match.lastgroup), match.lastgroup, match[match.lastgroup]

    def refuse(self, place: int, expected: str) -> NoReturn:
        found = repr(self.text[place : place + 20]) if self.text[place:] else "the end"
        raise StoreError(f"filter {self.text!r}, character {place + 1}: found {found}; expected {expected}")


def _unquoted(text: str) -> str:
    return text[1:-1].replace(text[0] * 2, text[0])
