"""Which written attributes mean the same, and which values a text states: one rule for labels, titles and rewards.

Two values are the same if their words are (`product_data.words`), with the synonyms of their key in `synonyms.yaml` exchanged. A
short table by hand instead of a lexical database, whose synonyms are too wide for attributes.

A text states a value if it has the words of one of the value's spellings in a row. A lone letter or digit ("M", "5", and
"large" where it is said "l") stands in many a text by accident: it counts only beside a name of its key or of its part ("size M",
"5 knobs"), or where the text says nothing else. Our design (precedent: distant supervision keeps a match only where more supports
it, Mintz et al. 2009).

Of a value that an item is known to have a text may say less, because only one of the item's values can be meant: a lone letter
or digit then counts with a name of its key anywhere, the value of a part ("white sole") is also stated by its own words and,
anywhere, a word that begins with the part ("soles in white"), that of a pattern, print or logo ("star logo") by its own words. Of
any known value, as for contradictions, this would find what nobody said (a black sole in "black shoes with red soles").
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
from product_data.words import Words, is_one_sign, words

TABLE = Path(__file__).with_name("synonyms.yaml")
_OF_PARTS = "style elements"


@lru_cache(maxsize=65536)
def common_words(text: str) -> Words:
    """Return `product_data.words.words` with each word in the spelling that the table keeps: "gray" as "grey".

    Args:
        text: any string.
    """
    return tuple(_spelling().get(word, word) for word in words(text))


@lru_cache(maxsize=4096)
def canonical_key(key: str) -> str:
    """Return the one of `REASONING_KEYS` that a key means; another key in the form in which it is compared.

    Args:
        key: as it was written, such as "Color", "season / occasion" or "颜色".
    """
    found = common_words(key)
    return _keys().get(found) or chinese_key(key) or " ".join(found)


@lru_cache(maxsize=65536)
def canonical_value(key: str, value: str) -> str:
    """Return the form in which a value is compared: two values are the same if these are equal.

    Args:
        key: the attribute; synonyms hold under their key only.
        value: as it was written, such as "Navy-Blue".
    """
    found = common_words(value)
    return " ".join(_values(canonical_key(key)).get(found, found))


def canonical_attributes(attributes: Mapping[str, Iterable[str]]) -> dict[str, frozenset[str]]:
    """Return attributes with keys and values in the form in which they are compared.

    Args:
        attributes: key → values. Keys that mean the same are joined; a key without a value is left out.
    """
    found: dict[str, set[str]] = defaultdict(set)
    for key, values in attributes.items():
        found[canonical_key(key)].update(canonical_value(key, value) for value in values if value.strip())
    return {key: frozenset(values) for key, values in found.items() if values}


def spellings(key: str, value: str) -> list[Words]:
    """Return the ways to say a value: its own words, and those of the table's line that it stands in.

    Args:
        key: the attribute.
        value: as it was written.
    """
    table, own = _values(canonical_key(key)), common_words(value)
    kept = table.get(own, own)
    return sorted({own, kept, *(said for said, meant in table.items() if meant == kept)}) if own else []


@dataclass(frozen=True)
class Way:
    """A way to say a value.

    Args:
        said: words in a row.
        names: names of which one must stand beside `said`; empty: none has to.
        part: words of which one must begin some other word of the text; empty: none has to.
        of_own: whether it says only values that the item is known to have.
    """

    said: Words
    names: frozenset[Words] = frozenset()
    part: frozenset[str] = frozenset()
    of_own: bool = False

    def is_at(self, text: Words, start: int) -> bool:
        """Return whether a text says it at a place."""
        stop = start + len(self.said)
        if text[start:stop] != self.said:
            return False
        if text == self.said:
            return not self.part
        before, behind = text[:start], text[stop:]
        if self.part and not any(word.startswith(one) for word in before + behind for one in self.part):
            return False
        return not self.names or any(behind[: len(one)] == one or before[-len(one) :] == one for one in self.names)


@lru_cache(maxsize=65536)
def ways_to_say(key: str, value: str, synonyms: bool = True) -> tuple[Way, ...]:
    """Return all ways in which a text may state a value; see the rule at the top.

    Args:
        key: the attribute.
        value: as it was written.
        synonyms: whether the table's other words count.
    """
    key, own = canonical_key(key), common_words(value) if synonyms else words(value)
    said_as = spellings(key, value) if synonyms else [own] if own else []
    ways = []
    for said in said_as:
        ways.append(Way(said, _names(key)) if is_one_sign(said) else Way(said))
        if is_one_sign(said):
            ways.append(Way(said, part=frozenset(name[-1] for name in _names(key)), of_own=True))
    for noun in _nouns() if key == _OF_PARTS else ():
        said = own[: -len(noun)]
        if said and own[-len(noun) :] == noun:
            bare = noun in _shown() and not is_one_sign(said)
            ways.append(Way(said, part=frozenset() if bare else frozenset(noun[-1:]), of_own=True))
    return tuple(ways)


def states(text: str, key: str, value: str, synonyms: bool = True) -> bool:
    """Return whether a text states a value that an item is known to have, by the rule at the top.

    Args:
        text: a title, a query or a description.
        key: the attribute.
        value: as it was written.
        synonyms: whether the table's other words count.

    Relations: `ValueIndex.stated` finds all values that a text states, of any item.
    """
    inside, ways = common_words(text) if synonyms else words(text), ways_to_say(key, value, synonyms)
    return any(way.is_at(inside, start) for way in ways for start in range(len(inside)))


def mentions(text: str, key: str, value: str) -> bool:
    """Return whether a text has the words of a value in a row, in any spelling, were it by accident.

    Args:
        text: a title, a query or a description.
        key: the attribute.
        value: as it was written.
    """
    inside = common_words(text)
    return any(
        inside[start : start + len(said)] == said for said in spellings(key, value) for start in range(len(inside))
    )


class ValueIndex:
    """All known values by their words, so that a text is read in a time that does not grow with their number.

    Args:
        known_values: key → values, as they are written in the data.
    """

    def __init__(self, known_values: Mapping[str, Iterable[str]]) -> None:
        self._meanings: dict[Words, set[tuple[Way, str, str]]] = defaultdict(set)
        for key, values in known_values.items():
            for value in values:
                for way in (one for one in ways_to_say(key, value) if not one.of_own):
                    self._meanings[way.said].add((way, canonical_key(key), canonical_value(key, value)))
        self._longest = max(map(len, self._meanings), default=0)

    def stated(self, text: str) -> dict[str, frozenset[str]]:
        """Return the known values that a text states by the rule at the top: key → values in the form of `canonical_value`.

        Words inside a longer known value of any key do not count: "Red Tape" as a brand names no colour.

        Args:
            text: a title or a query.
        """
        inside = common_words(text)
        meanings: dict[tuple[int, int], list[tuple[str, str]]] = defaultdict(list)
        for start in range(len(inside)):
            for stop in range(start + 1, min(start + self._longest, len(inside)) + 1):
                for way, key, value in self._meanings.get(inside[start:stop], ()):
                    if way.is_at(inside, start):
                        meanings[start, stop].append((key, value))
        found: dict[str, set[str]] = defaultdict(set)
        for span, meant in meanings.items():
            if not any(other != span and other[0] <= span[0] and span[1] <= other[1] for other in meanings):
                for key, value in meant:
                    found[key].add(value)
        return {key: frozenset(values) for key, values in found.items()}


@cache
def _names(key: str) -> frozenset[Words]:
    """What a lone letter or digit of a key may stand beside."""
    return frozenset(words(name) for name in (*key_names(key), key))


@cache
def _shown() -> frozenset[Words]:
    return frozenset(map(words, SHOWN_KEYS))


@cache
def _nouns() -> frozenset[Words]:
    """The words with which values of parts, patterns, prints and logos end."""
    return _shown() | frozenset(map(words, PART_KEYS))


@cache
def _table() -> dict[str, Any]:
    return yaml.safe_load(TABLE.read_text(encoding="utf-8"))


@cache
def _spelling() -> dict[str, str]:
    """Variant of a word → the word that is kept."""
    return {variant: kept for kept, variants in _table()["spellings"].items() for variant in variants}


@cache
def _keys() -> dict[Words, str]:
    return {common_words(said): key for key in REASONING_KEYS for said in (key, *_table()["keys"].get(key, ()))}


@cache
def _values(key: str) -> dict[Words, Words]:
    """Every spelling of a key's values, the kept ones included → the kept one."""
    lines = _table()["values"].get(key, {})
    return {common_words(said): common_words(kept) for kept, others in lines.items() for said in (kept, *others)}
