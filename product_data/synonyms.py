"""Compare written attributes, and find the values that a text states: one rule for labels, titles and rewards.

Two values are the same if their words are the same (`product_data.words`) after the synonyms of their key in
`synonyms.yaml` are replaced. The table is short and written by hand, because the synonyms of a lexical database are too
broad for attributes.

A text states a value if it contains the words of one of the value's spellings in sequence. Many texts contain a single
letter or digit ("M", "5", or "l" for "large") by accident: it counts only next to a name of its key or of its part
("size M", "5 knobs"), or if it is the whole text. Our design (precedent: distant supervision keeps a match only with
further evidence, Mintz et al. 2009).

If a product is known to have a value, a text can state it with fewer words, since it can only mean a value of that
product. A single letter or digit then counts with a name of its key anywhere in the text. The value of a part ("white
sole") is also stated by its other words together with a word that begins with the part ("soles in white"), and the value
of a pattern, print or logo ("star logo") by its other words alone. For arbitrary known values, as in contradictions, this
rule would find too much (a black sole in "black shoes with red soles").
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import yaml

from processing_moon.reasoning_moon import REASONING_KEYS
from product_data.attribute_keys import PART_KEYS, SHOWN_KEYS, chinese_key, key_names
from product_data.words import Words, is_single_character, words

TABLE = Path(__file__).with_name("synonyms.yaml")
_OF_PARTS = "style elements"


@lru_cache(maxsize=65536)
def common_words(text: str) -> Words:
    """Return `product_data.words.words` with each word in the table's preferred spelling: "grey" for "gray".

    Args:
        text: any string.
    """
    return tuple(_spelling().get(word, word) for word in words(text))


@lru_cache(maxsize=4096)
def canonical_key(key: str) -> str:
    """Return the key of `REASONING_KEYS` that a key means; any other key in the form in which it is compared.

    Args:
        key: the key as it is written, such as "Color", "season / occasion" or "颜色".
    """
    name = common_words(key)
    return _keys().get(name) or chinese_key(key) or " ".join(name)


@lru_cache(maxsize=65536)
def canonical_value(key: str, value: str) -> str:
    """Return the form in which a value is compared: two values are the same if these are equal.

    Args:
        key: the attribute key; synonyms are specific to a key.
        value: the value as it is written, such as "Navy-Blue".
    """
    own = common_words(value)
    return " ".join(_values(canonical_key(key)).get(own, own))


def canonical_attributes(attributes: Mapping[str, Iterable[str]]) -> dict[str, frozenset[str]]:
    """Return attributes with keys and values in the form in which they are compared.

    Args:
        attributes: key → values. Keys with the same meaning are joined; a key without a value is left out.
    """
    canonical: dict[str, set[str]] = defaultdict(set)
    for key, values in attributes.items():
        canonical[canonical_key(key)].update(canonical_value(key, value) for value in values if value.strip())
    return {key: frozenset(values) for key, values in canonical.items() if values}


def spellings(key: str, value: str) -> list[Words]:
    """Return the spellings of a value: its own words, and its synonyms in the table.

    Args:
        key: the attribute key.
        value: the value as it is written.
    """
    table, own = _values(canonical_key(key)), common_words(value)
    kept = table.get(own, own)
    return sorted({own, kept, *(phrase for phrase, meaning in table.items() if meaning == kept)}) if own else []


def other_names(key: str, value: str) -> tuple[str, ...]:
    """Return the other names of a value as the table writes them: ("trainers", "kicks") for the category "sneakers".

    Args:
        key: the attribute key.
        value: the value as it is written.

    Relations: `spellings` returns all names in the form in which they are compared.
    """
    lines, own = _table()["values"].get(canonical_key(key), {}), common_words(value)
    for kept, others in lines.items():
        names = (kept, *others)
        if own in {common_words(name) for name in names}:
            return tuple(name for name in names if common_words(name) != own)
    return ()


@dataclass(frozen=True)
class Wording:
    """A wording that states a value.

    Args:
        phrase: consecutive words.
        names: if not empty, one of these must be next to `phrase`.
        part: if not empty, another word of the text must begin with one of these.
        known_only: whether the wording only states values that the product is known to have.
    """

    phrase: Words
    names: frozenset[Words] = frozenset()
    part: frozenset[str] = frozenset()
    known_only: bool = False

    def matches(self, text: Words, start: int) -> bool:
        """Return whether a text has this wording at a position."""
        stop = start + len(self.phrase)
        if text[start:stop] != self.phrase:
            return False
        if text == self.phrase:
            return not self.part
        before, after = text[:start], text[stop:]
        if self.part and not any(word.startswith(prefix) for word in before + after for prefix in self.part):
            return False
        return not self.names or any(after[: len(name)] == name or before[-len(name) :] == name for name in self.names)


@lru_cache(maxsize=65536)
def wordings(key: str, value: str, synonyms: bool = True) -> tuple[Wording, ...]:
    """Return all wordings that state a value; see the rule at the top.

    Args:
        key: the attribute key.
        value: the value as it is written.
        synonyms: whether synonyms of the table count.
    """
    key, own = canonical_key(key), common_words(value) if synonyms else words(value)
    phrases = spellings(key, value) if synonyms else [own] if own else []
    found = []
    for phrase in phrases:
        found.append(Wording(phrase, _names(key)) if is_single_character(phrase) else Wording(phrase))
        if is_single_character(phrase):
            found.append(Wording(phrase, part=frozenset(name[-1] for name in _names(key)), known_only=True))
    for noun in _nouns() if key == _OF_PARTS else ():
        phrase = own[: -len(noun)]
        if phrase and own[-len(noun) :] == noun:
            alone = noun in _shown_nouns() and not is_single_character(phrase)
            found.append(Wording(phrase, part=frozenset() if alone else frozenset(noun[-1:]), known_only=True))
    return tuple(found)


def states(text: str, key: str, value: str, synonyms: bool = True) -> bool:
    """Return whether a text states a value that a product is known to have, by the rule at the top.

    Args:
        text: a title, a query or a description.
        key: the attribute key.
        value: the value as it is written.
        synonyms: whether synonyms of the table count.

    Relations: `ValueIndex.stated` finds all known values that a text states, for any product.
    """
    inside = common_words(text) if synonyms else words(text)
    return any(
        wording.matches(inside, start) for wording in wordings(key, value, synonyms) for start in range(len(inside))
    )


def mentions(text: str, key: str, value: str) -> bool:
    """Return whether a text contains the words of a value in sequence, in any spelling, even by accident.

    Args:
        text: a title, a query or a description.
        key: the attribute key.
        value: the value as it is written.
    """
    inside = common_words(text)
    return any(
        inside[start : start + len(phrase)] == phrase
        for phrase in spellings(key, value)
        for start in range(len(inside))
    )


class ValueIndex:
    """An index of known values by their words; the time to search a text does not grow with the number of values.

    Args:
        known_values: key → values, as the data writes them.
    """

    def __init__(self, known_values: Mapping[str, Iterable[str]]) -> None:
        self._meanings: dict[Words, set[tuple[Wording, str, str]]] = defaultdict(set)
        for key, values in known_values.items():
            for value in values:
                for wording in wordings(key, value):
                    if not wording.known_only:
                        meaning = wording, canonical_key(key), canonical_value(key, value)
                        self._meanings[wording.phrase].add(meaning)
        self._longest = max(map(len, self._meanings), default=0)

    def stated(self, text: str) -> dict[str, frozenset[str]]:
        """Return the known values that a text states, by the rule at the top: key → values as in `canonical_value`.

        Words inside a longer known value of any key do not count: the brand "Red Tape" does not state a colour.

        Args:
            text: a title or a query.
        """
        inside = common_words(text)
        meanings: dict[tuple[int, int], list[tuple[str, str]]] = defaultdict(list)
        for start in range(len(inside)):
            for stop in range(start + 1, min(start + self._longest, len(inside)) + 1):
                for wording, key, value in self._meanings.get(inside[start:stop], ()):
                    if wording.matches(inside, start):
                        meanings[start, stop].append((key, value))
        found: dict[str, set[str]] = defaultdict(set)
        for span, stated in meanings.items():
            if not any(other != span and other[0] <= span[0] and span[1] <= other[1] for other in meanings):
                for key, value in stated:
                    found[key].add(value)
        return {key: frozenset(values) for key, values in found.items()}


@cache
def _names(key: str) -> frozenset[Words]:
    """Return the names that may be next to a single letter or digit of a key."""
    return frozenset(words(name) for name in (*key_names(key), key))


@cache
def _shown_nouns() -> frozenset[Words]:
    return frozenset(map(words, SHOWN_KEYS))


@cache
def _nouns() -> frozenset[Words]:
    """Return the words at the end of values of parts, patterns, prints and logos."""
    return _shown_nouns() | frozenset(map(words, PART_KEYS))


@cache
def _table() -> dict[str, Any]:
    return yaml.safe_load(TABLE.read_text(encoding="utf-8"))


@cache
def _spelling() -> dict[str, str]:
    """Return variant of a word → its preferred spelling."""
    return {variant: kept for kept, variants in _table()["spellings"].items() for variant in variants}


@cache
def _keys() -> dict[Words, str]:
    return {common_words(name): key for key in REASONING_KEYS for name in (key, *_table()["keys"].get(key, ()))}


@cache
def _values(key: str) -> dict[Words, Words]:
    """Return each spelling of a key's values → the preferred one, which is included."""
    lines = _table()["values"].get(key, {})
    return {common_words(name): common_words(kept) for kept, others in lines.items() for name in (kept, *others)}
