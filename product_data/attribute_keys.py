"""A shop's attribute keys in the ten keys of MBE, and how a value is written.

Our design; the ten keys are MBE's (MOON, arXiv 2508.11999 App. A), see `REASONING_KEYS`. A key that the tables below and
`attribute_keys_zh.yaml`, the words of Chinese shops, do not have is left out and named, never guessed. Values keep their
language.
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
# MBE's key → what shops call it, beside the key itself.
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
# Parts of a product whose colour or number shops state; they become style elements such as "white sole" and "3 knobs".
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
# Style elements whose value is not understood without its key, yet tells enough in a query: "a mug with a star".
SHOWN_KEYS = frozenset(("pattern", "print", "logo"))
VISUAL_KEYS = ("colour", "category", "category modifier", "material", "style elements", "fashion style")
"""What a picture shows, where nobody has said what it shows: neither brand nor size, buyer nor season."""


@dataclass(frozen=True, slots=True)
class Fact:
    """One value of one of MBE's keys.

    Args:
        key (`str`): one of REASONING_KEYS.
        value (`str`): as a reasoning writes it: "white sole".
        said (`str`): as the table has it: "white".

    Relations: `product_data.synonyms.states` tells whether a text names it.
    """

    key: str
    value: str
    said: str


def mbe_key(key: str) -> str | None:
    """Return the key of MBE that a shop's key is, English or Chinese, or None.

    Case, what parts the words, and full width do not matter.
    """
    return _KEY_OF.get(_plain_key(key)) or chinese_key(key)


def chinese_key(key: str) -> str | None:
    """Return the key of MBE that a Chinese shop's key is ("颜色" → "colour"), or None. Spaces and full width do not matter."""
    return _chinese_keys().get("".join(unicodedata.normalize("NFKC", key).split()))


def chinese_names(key: str) -> tuple[str, ...]:
    """Return what Chinese shops call one of MBE's keys."""
    return tuple(name for name, found in _chinese_keys().items() if found == key)


@cache
def _chinese_keys() -> dict[str, str]:
    table = yaml.safe_load(CHINESE_TABLE.read_text(encoding="utf-8"))
    return {str(name): key for key, lines in table.items() for line in lines for name in line}


def facts_of(
    attributes: Mapping[str, Iterable[str]], category: Sequence[str] = ()
) -> tuple[list[Fact], dict[str, tuple[str, ...]]]:
    """Return the attributes of a product in MBE's keys, in their order, and those that have none.

    Rule: a key is looked up in the tables above. The value of a part (sole, buttons) is written with the part, and so is
    that of a pattern, print or logo. Where no attribute names the category, the last level of the category path does.

    Args:
        attributes: key → values, as a products table has them.
        category: the category path, the root first.
    """
    facts: list[Fact] = []
    unknown: dict[str, tuple[str, ...]] = {}
    for key, values in attributes.items():
        found = mbe_key(key)
        if found is None:
            unknown[key] = tuple(values)
        else:
            facts += [_fact(found, _plain_key(key), value) for value in values if value.strip()]
    if category and not any(fact.key == "category" for fact in facts):
        facts.append(Fact("category", category[-1], category[-1]))
    return sorted(facts, key=lambda fact: REASONING_KEYS.index(fact.key)), unknown


def as_attributes(facts: Iterable[Fact]) -> dict[str, tuple[str, ...]]:
    """Return facts as key → values in the order of REASONING_KEYS, each value once whatever its case."""
    found: dict[str, dict[str, str]] = {key: {} for key in REASONING_KEYS}
    for fact in facts:
        found[fact.key].setdefault(_folded(fact.value), fact.value)
    return {key: tuple(values.values()) for key, values in found.items() if values}


def same_value(first: Fact, second: Fact) -> bool:
    """Return whether two facts say the same."""
    return first.key == second.key and _folded(first.value) == _folded(second.value)


def key_names(key: str) -> tuple[str, ...]:
    """Return what shops call one of MBE's keys: its own names, those of the table above, and the Chinese ones."""
    return (*key.split("/"), *_SHOP_KEYS[key], *chinese_names(key)) if key in _SHOP_KEYS else ()


def _fact(key: str, shop_key: str, value: str) -> Fact:
    value = " ".join(value.split())
    is_part = shop_key in PART_KEYS
    if not (is_part or shop_key in SHOWN_KEYS) or set(words(shop_key)) <= set(words(value)):
        return Fact(key, value, value)
    one = value in ("1", "one")
    part = " ".join((*shop_key.split()[:-1], *words(shop_key.split()[-1]))) if one else shop_key
    return Fact(key, f"{value} {part}", value)


def _plain_key(key: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", key).casefold().replace("_", " ").replace("-", " ").split())


def _folded(value: str) -> str:
    return " ".join(value.casefold().split())


_KEY_OF = {name: key for key, names in _SHOP_KEYS.items() for name in (key, *names)} | dict.fromkeys(
    sorted(PART_KEYS), "style elements"
)
