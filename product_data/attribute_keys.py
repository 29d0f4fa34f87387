"""Translate a shop's attribute keys into the ten keys of MBE, and write their values as in reasoning.

Our design; the ten keys are MBE's (MOON, arXiv 2508.11999 App. A), see `REASONING_KEYS`. A key that neither the tables
below nor `attribute_keys_zh.yaml` (the keys of Chinese shops) contain is left out and reported, never guessed. Values
keep their language.
"""

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml

from processing_moon.reasoning_moon import REASONING_KEYS
from product_data.words import words

CHINESE_TABLE = Path(__file__).with_name("attribute_keys_zh.yaml")
# MBE's key → the names that shops use for it, besides the key itself.
_SHOP_KEYS: dict[str, tuple[str, ...]] = {
    "colour": ("color", "main colour", "main color", "base colour", "base color", "colour family", "color family"),
    "category": ("type", "product type", "item type", "article type", "product category", "coarse class"),
    "category modifier": ("subtype", "sub type", "fit", "cut", "silhouette", "sleeve length", "neckline", "heel type"),
    "brand": ("brand name", "manufacturer", "maker", "label", "series", "product line", "collection"),
    "size/specification": (
        *("size", "specification", "specifications", "dimensions", "capacity", "volume", "weight", "power", "model"),
        *("length", "width", "height", "depth", "diameter"),
    ),
    "material": ("materials", "fabric", "composition", "outer material", "upper material", "main material"),
    "style elements": ("style element", "pattern", "print", "logo", "detail", "details", "embellishment", "decoration"),
    "fashion style": ("style", "look", "aesthetic", "design style"),
    "target demographic": ("gender", "age", "age group", "audience", "target group", "target audience", "department"),
    "season/occasion": ("season", "occasion", "usage", "use", "event", "room"),
}
# Parts of a product; shops state their colour or number. They become style elements such as "white sole" and "3 knobs".
PART_KEYS = frozenset(
    (
        *("band", "bands", "base", "belt", "brim", "buttons", "cap", "collar", "cone", "cuffs", "dial", "drawstring"),
        *(
            "ear pads",
            "fringe",
            "frame",
            "handle",
            "handles",
            "headband stripe",
            "hem",
            "keys",
            "knobs",
            "laces",
            "legs",
        ),
        *("lid", "lid knob", "lining", "piping", "pockets", "rim", "rivets", "second hand", "slats", "sole", "stick"),
        *("stitching", "strap", "straps", "stripe", "trim", "zip"),
    )
)
# Style elements whose value needs its key in reasoning ("star logo"), but not in a query: "a mug with a star".
SHOWN_KEYS = frozenset(("pattern", "print", "logo"))
VISUAL_KEYS = ("colour", "category", "category modifier", "material", "style elements", "fashion style")
"""The keys that a picture shows if the table does not say what it shows: not brand, size, buyer or season."""


@dataclass(frozen=True, slots=True)
class Fact:
    """One value of one of MBE's keys.

    Args:
        key (`str`): one of REASONING_KEYS.
        value (`str`): the value as it is written in reasoning: "white sole".
        cell (`str`): the value as the table writes it: "white".

    Relations: `product_data.synonyms.states` returns whether a text states it.
    """

    key: str
    value: str
    cell: str


def mbe_key(key: str) -> str | None:
    """Return the key of MBE that a shop's key means, English or Chinese, or None.

    Case, separators between words and full width are ignored.
    """
    return _KEY_OF.get(_plain_key(key)) or chinese_key(key)


def chinese_key(key: str) -> str | None:
    """Return the key of MBE that a Chinese shop's key means ("颜色" → "colour"), or None; spaces are ignored."""
    return _chinese_keys().get("".join(unicodedata.normalize("NFKC", key).split()))


def chinese_names(key: str) -> tuple[str, ...]:
    """Return the names that Chinese shops use for one of MBE's keys."""
    return tuple(name for name, meaning in _chinese_keys().items() if meaning == key)


@cache
def _chinese_keys() -> dict[str, str]:
    table = yaml.safe_load(CHINESE_TABLE.read_text(encoding="utf-8"))
    return {str(name): key for key, lines in table.items() for line in lines for name in line}


def facts_of(
    attributes: Mapping[str, Iterable[str]], category: Sequence[str] = ()
) -> tuple[list[Fact], dict[str, tuple[str, ...]]]:
    """Return the attributes of a product under MBE's keys, in their order, and the attributes of other keys.

    Rule: a key is looked up in the tables above. The value of a part (sole, buttons) is written with the part, and the
    value of a pattern, print or logo with that word. If no attribute states the category, the last level of the category
    path is used.

    Args:
        attributes: key → values, as in a products table.
        category: the category path, root first.
    """
    facts: list[Fact] = []
    unknown: dict[str, tuple[str, ...]] = {}
    for key, values in attributes.items():
        known = mbe_key(key)
        if known is None:
            unknown[key] = tuple(values)
        else:
            facts += [_fact(known, _plain_key(key), value) for value in values if value.strip()]
    if category and not any(fact.key == "category" for fact in facts):
        facts.append(Fact("category", category[-1], category[-1]))
    return sorted(facts, key=lambda fact: REASONING_KEYS.index(fact.key)), unknown


def as_attributes(facts: Iterable[Fact]) -> dict[str, tuple[str, ...]]:
    """Return facts as key → values in the order of REASONING_KEYS; values that differ only in case are kept once."""
    attributes: dict[str, dict[str, str]] = {key: {} for key in REASONING_KEYS}
    for fact in facts:
        attributes[fact.key].setdefault(_folded(fact.value), fact.value)
    return {key: tuple(values.values()) for key, values in attributes.items() if values}


def same_value(first: Fact, second: Fact) -> bool:
    """Return whether two facts have the same key and value; case is ignored."""
    return first.key == second.key and _folded(first.value) == _folded(second.value)


def key_names(key: str) -> tuple[str, ...]:
    """Return the names of one of MBE's keys: its own, those of the table above, and the Chinese ones."""
    return (*key.split("/"), *_SHOP_KEYS[key], *chinese_names(key)) if key in _SHOP_KEYS else ()


def _fact(key: str, shop_key: str, value: str) -> Fact:
    value = " ".join(value.split())
    is_part = shop_key in PART_KEYS
    if not (is_part or shop_key in SHOWN_KEYS) or set(words(shop_key)) <= set(words(value)):
        return Fact(key, value, value)
    is_singular = value in ("1", "one")
    part = " ".join((*shop_key.split()[:-1], *words(shop_key.split()[-1]))) if is_singular else shop_key
    return Fact(key, f"{value} {part}", value)


def _plain_key(key: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", key).casefold().replace("_", " ").replace("-", " ").split())


def _folded(value: str) -> str:
    return " ".join(value.casefold().split())


_KEY_OF = {name: key for key, names in _SHOP_KEYS.items() for name in (key, *names)} | dict.fromkeys(
    sorted(PART_KEYS), "style elements"
)
