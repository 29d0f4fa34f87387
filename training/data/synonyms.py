"""Which written attributes mean the same, and which known values a text names.

Two values are the same if their words are, after NFKC and case folding, without punctuation, apostrophes and a plural's "s",
and with the words of `synonyms.yaml` exchanged. Our design (precedent: the normalisation of answers before F1 in SQuAD, arXiv
1606.05250); a short table by hand instead of a lexical database, whose synonyms are too wide for attributes.
"""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import yaml

from processing_moon.reasoning_moon import REASONING_KEYS

TABLE = Path(__file__).with_name("synonyms.yaml")
Words = tuple[str, ...]
# Scripts that are written without spaces count by characters.
_UNSPACED = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"\d+(?:\.\d+)?|[{_UNSPACED}]|[^\W\d_{_UNSPACED}]+")
_APOSTROPHES = re.compile(r"['’`´]")
_DECIMAL_COMMA = re.compile(r"(?<=\d),(?=\d)")
_TIMES = re.compile(r"(?<=\d)\s*×\s*(?=\d)")


@lru_cache(maxsize=65536)
def words(text: str) -> Words:
    """Return the words of a text in the form in which they are compared, which is not meant to be read.

    Numbers and letters part ("50x50cm" as "50 x 50 cm"), and scripts without spaces count by characters.

    Args:
        text: any string.

    Returns:
        nothing only for a text of white space; symbols are words where there are no others.
    """
    plain = _APOSTROPHES.sub("", unicodedata.normalize("NFKC", text).casefold())
    found = _WORD.findall(_TIMES.sub("x", _DECIMAL_COMMA.sub(".", plain))) or text.split()
    return tuple(_spelling().get(word, word) for word in map(_singular, found))


def _singular(word: str) -> str:
    """A word without a regular plural's ending; rough, since both sides of a comparison go through it."""
    if len(word) <= 3 or not word.endswith("s") or word.endswith(("ss", "us", "is")):
        return word
    if word.endswith("ies"):
        return word[:-3] + "y"
    return word[:-2] if word.endswith(("xes", "ches", "shes")) else word[:-1]


@lru_cache(maxsize=4096)
def canonical_key(key: str) -> str:
    """Return the one of `REASONING_KEYS` that a key means; another key in the form in which it is compared.

    Args:
        key: as it was written, such as "Color" or "season / occasion".
    """
    found = words(key)
    return _keys().get(found, " ".join(found))


@lru_cache(maxsize=65536)
def canonical_value(key: str, value: str) -> str:
    """Return the form in which a value is compared: two values are the same if these are equal.

    Args:
        key: the attribute; synonyms hold under their key only.
        value: as it was written, such as "Navy-Blue".
    """
    found = words(value)
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
    table, own = _values(canonical_key(key)), words(value)
    kept = table.get(own, own)
    return sorted({own, kept, *(said for said, meant in table.items() if meant == kept)}) if own else []


def states(text: str, key: str, value: str) -> bool:
    """Return whether a text names a value, in any of its spellings, as whole words in a row.

    Args:
        text: a title, a query or a description.
        key: the attribute.
        value: as it was written.

    Relations: `ValueIndex.stated` finds all known values that a text names, and puts those aside that are parts of others.
    """
    inside = words(text)
    return any(_holds(inside, said) for said in spellings(key, value))


def _holds(text: Words, said: Words) -> bool:
    return any(text[start : start + len(said)] == said for start in range(len(text) - len(said) + 1))


class ValueIndex:
    """All known values by their words, so that a text is read in a time that does not grow with their number.

    Args:
        known_values: key → values, as they are written in the data.
    """

    def __init__(self, known_values: Mapping[str, Iterable[str]]) -> None:
        self._meanings: dict[Words, set[tuple[str, str]]] = defaultdict(set)
        for key, values in known_values.items():
            for value in values:
                meaning = (canonical_key(key), canonical_value(key, value))
                for said in spellings(key, value):
                    self._meanings[said].add(meaning)
        self._longest = max(map(len, self._meanings), default=0)

    def stated(self, text: str) -> dict[str, frozenset[str]]:
        """Return the known values that a text names: key → values in the form of `canonical_value`.

        Words inside a longer known value of any key do not count: "Red Tape" as a brand names no colour.

        Args:
            text: a title or a query.
        """
        inside, size = words(text), self._longest
        spans = [
            (start, stop)
            for start in range(len(inside))
            for stop in range(start + 1, min(start + size, len(inside)) + 1)
            if inside[start:stop] in self._meanings
        ]
        found: dict[str, set[str]] = defaultdict(set)
        for span in spans:
            if not any(other != span and other[0] <= span[0] and span[1] <= other[1] for other in spans):
                for key, value in self._meanings[inside[slice(*span)]]:
                    found[key].add(value)
        return {key: frozenset(values) for key, values in found.items()}


@cache
def _table() -> dict[str, Any]:
    return yaml.safe_load(TABLE.read_text(encoding="utf-8"))


@cache
def _spelling() -> dict[str, str]:
    """Variant of a word → the word that is kept."""
    return {variant: kept for kept, variants in _table()["spellings"].items() for variant in variants}


@cache
def _keys() -> dict[Words, str]:
    return {words(said): key for key in REASONING_KEYS for said in (key, *_table()["keys"].get(key, ()))}


@cache
def _values(key: str) -> dict[Words, Words]:
    """Every spelling of a key's values, the kept ones included → the kept one."""
    lines = _table()["values"].get(key, {})
    return {words(said): words(kept) for kept, others in lines.items() for said in (kept, *others)}
