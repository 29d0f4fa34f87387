"""Enrich titles from the facts of a record, and check that an enriched title keeps them and adds nothing wrong.

MOON2.0 (arXiv 2511.12449) lets a language model rewrite titles from (title, image, entities). `TitleCheck` guards any
writer. `rewritten_titles` needs no model: our design (precedents: verbalising the facts of a record by templates, as
KELM does from a knowledge graph, arXiv 2010.12688; replacing words by synonyms, EDA, arXiv 1901.11196).
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from product_data.attribute_keys import Fact, facts_of
from product_data.rows import ProductRow
from product_data.synonyms import (
    ValueIndex,
    canonical_key,
    canonical_value,
    common_words,
    mentions,
    other_names,
    states,
)
from product_data.words import Words, words

KEPT_KEYS = ("brand", "category", "colour", "size/specification")
"""Keys whose values an enriched title must keep if the title states them."""
_RENAMED_KEYS = ("category", "colour", "fashion style", "season/occasion")  # "genuine" leather would be a new claim
MOST_WORDS = 40
_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_TRIES = 12  # for one title


class TitleCheck:
    """Decide whether an enriched title may replace a title. Our design.

    It must keep every value of `KEPT_KEYS` and every number that the title states, in any spelling of
    `synonyms.yaml`. It must not state a value that contradicts the record: a value that some product of the tables
    has under a key, where this product has other values of that key and none of its texts mentions it; a brand of
    another product, even if this one has none; or a number that none of its texts has.

    Args:
        products: the products whose values are known.
    """

    def __init__(self, products: Iterable[ProductRow]) -> None:
        known: dict[str, dict[str, None]] = defaultdict(dict)
        for row in products:
            for fact in facts_of(row.attributes, row.category)[0]:
                known[fact.key][fact.value] = None
        self._index = ValueIndex(known)
        self._written = {
            (canonical_key(key), canonical_value(key, value)): value
            for key, values in known.items()
            for value in values
        }

    def problem(self, row: ProductRow, title: str) -> str:
        """Return why a title must not replace that of a product, or "".

        Args:
            row: the product.
            title: the enriched title.
        """
        own = words(title)
        if not own or "\n" in title.strip():
            return "the title is empty" if not own else "the title has several lines"
        if len(own) > MOST_WORDS:
            return f"the title has {len(own)} words; at most {MOST_WORDS} are accepted"
        if own == words(row.title):
            return "the title is unchanged"
        return self._lost(row, title) or self._invented(row, title)

    def _lost(self, row: ProductRow, title: str) -> str:
        for fact in facts_of(row.attributes, row.category)[0]:
            is_kept = fact.key not in KEPT_KEYS or not states(row.title, fact.key, fact.value)
            if not is_kept and not states(title, fact.key, fact.value):
                return f"the {fact.key} {fact.value!r} is lost"
        lost = _numbers(row.title) - _numbers(title)
        return f"the number {min(lost)} is lost" if lost else ""

    def _invented(self, row: ProductRow, title: str) -> str:
        texts = _texts(row)
        new = _numbers(title) - _numbers(texts)
        if new:
            return f"the number {min(new)} is not in the record"
        own: dict[str, set[str]] = defaultdict(set)
        for fact in facts_of(row.attributes, row.category)[0]:
            own[canonical_key(fact.key)].add(canonical_value(fact.key, fact.value))
        for key, values in self._index.stated(title).items():
            for value in sorted(values - own[key]):
                if (own[key] or key == "brand") and not mentions(texts, key, value):
                    found = ", ".join(sorted(self._written.get((key, one), one) for one in own[key])) or "none"
                    return f"the {key} {self._written[key, value]!r} contradicts the record (it has {found})"
        return ""


def _texts(row: ProductRow) -> str:
    values = [value for values in row.attributes.values() for value in values]
    keyed = [f"{value} {key}" for key, values in row.attributes.items() for value in values]
    return " . ".join([row.title, row.description, *row.category, *values, *keyed])


def _numbers(text: str) -> set[str]:
    return {word for word in words(text) if _NUMBER.fullmatch(word)}


def rewritten_titles(row: ProductRow, count: int, rng: np.random.Generator, check: TitleCheck) -> Iterator[str]:
    """Yield up to `count` different titles of a product that pass the check, made from its title and its facts.

    Three templates, in turn. In every second title, a category, colour, style or season takes another name of `synonyms.yaml`:

    1. the title, then facts that it does not state: "Noru Blue Tote Bag, leather, checked pattern, for men";
    2. facts that it does not state before it: "leather, checked: Noru Blue Tote Bag";
    3. its own words in another order: the category and colour first, then the brand and the other words.

    Args:
        row: the product.
        count: the number of titles.
        rng: the generator of all random choices.
        check: decides which titles are kept.
    """
    facts, _ = facts_of(row.attributes, row.category)
    seen: set[Words] = {words(row.title)}
    for number in range(count):
        for attempt in range(_TRIES):
            title = _TEMPLATES[(number + attempt) % len(_TEMPLATES)](row, facts, rng)
            title = _renamed(title, facts, rng) if (number + attempt) % 2 else title
            title = " ".join(title.split())
            if words(title) not in seen and not check.problem(row, title):
                seen.add(words(title))
                yield title
                break


def _unstated(row: ProductRow, facts: Sequence[Fact], rng: np.random.Generator) -> list[Fact]:
    """Return up to three facts that the title does not state, in a random order."""
    missing = [fact for fact in facts if fact.key != "size/specification" and not _mentioned(row.title, fact)]
    chosen = [missing[place] for place in rng.permutation(len(missing))[: int(rng.integers(1, 4))]]
    return sorted(chosen, key=facts.index)


def _mentioned(text: str, fact: Fact) -> bool:
    return states(text, fact.key, fact.value) or mentions(text, fact.key, fact.value)


def _written(fact: Fact, row: ProductRow) -> str:
    """Return a fact as titles write it; English connectives only beside an English title."""
    english = row.title.isascii()
    if english and fact.key in ("target demographic", "season/occasion"):
        return f"for {fact.value}"
    return f"by {fact.value}" if english and fact.key == "brand" else fact.value


def _with_facts_after(row: ProductRow, facts: Sequence[Fact], rng: np.random.Generator) -> str:
    return ", ".join([row.title, *(_written(fact, row) for fact in _unstated(row, facts, rng))])


def _with_facts_before(row: ProductRow, facts: Sequence[Fact], rng: np.random.Generator) -> str:
    plain = [fact.value for fact in _unstated(row, facts, rng)]
    return f"{', '.join(plain)}: {row.title}" if plain else row.title


def _reordered(row: ProductRow, facts: Sequence[Fact], rng: np.random.Generator) -> str:
    """Return the title's own words, grouped by the facts that they state, in another order."""
    left = row.title.split()
    groups: list[str] = []
    for key in ("category", "colour", "brand", "material"):
        for fact in facts:
            place = _place_of(left, fact) if fact.key == key else None
            if place is not None:
                groups.append(" ".join(left[place]).strip(" ,"))
                del left[place]
    first, rest = groups[:1], [*groups[1:], *([" ".join(left).strip(" ,")] if left else [])]
    rest = [rest[place] for place in rng.permutation(len(rest))]
    return ", ".join([*first, *rest, *(_written(fact, row) for fact in _unstated(row, facts, rng)[:1])])


def _place_of(parts: Sequence[str], fact: Fact) -> slice | None:
    """Return where the words of a fact are among the parts of a title."""
    wanted = common_words(fact.value)
    for start in range(len(parts)):
        for stop in range(start + 1, min(start + len(wanted) + 1, len(parts)) + 1):
            if common_words(" ".join(parts[start:stop])) == wanted:
                return slice(start, stop)
    return None


def _renamed(title: str, facts: Sequence[Fact], rng: np.random.Generator) -> str:
    """Return a title in which one value has another name of the table, if any has."""
    parts = title.split()
    for fact in [facts[place] for place in rng.permutation(len(facts))]:
        names = other_names(fact.key, fact.value) if fact.key in _RENAMED_KEYS else ()
        place = _place_of(parts, fact)
        if names and place is not None:
            name = names[int(rng.integers(len(names)))]
            name = name.title() if parts[place.start][:1].isupper() else name
            comma = "," if parts[place.stop - 1].endswith(",") else ""
            return " ".join([*parts[: place.start], name + comma, *parts[place.stop :]])
    return title


_TEMPLATES = (_with_facts_after, _reordered, _with_facts_before)
