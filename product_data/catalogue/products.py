"""Define the vocabulary of the embedded catalogue: colours, brands, product types, attributes and shoppers' words.

This file also samples designs; `shapes` draws a design, and `making.py` makes products and queries from it. A *family*
is six products: two near-twin groups that differ in one detail, each in three colours. Every attribute that a type
lists under `details` is visible in its drawing.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from processing_moon.reasoning_moon import REASONING_KEYS

Rgb = tuple[int, int, int]

COLOURS: dict[str, Rgb] = {
    "black": (44, 44, 50),
    "white": (247, 247, 245),
    "grey": (146, 150, 156),
    "red": (206, 44, 50),
    "orange": (240, 132, 36),
    "yellow": (246, 206, 62),
    "green": (66, 146, 78),
    "teal": (26, 152, 156),
    "blue": (48, 96, 200),
    "purple": (126, 72, 170),
    "pink": (240, 140, 174),
    "brown": (126, 80, 52),
    "beige": (216, 192, 154),
}
COLOUR_WORDS: dict[str, tuple[str, ...]] = {
    "grey": ("grey", "gray"),
    "teal": ("teal", "turquoise"),
    "purple": ("purple", "violet"),
    "beige": ("beige", "sand"),
    "white": ("white", "snow white"),
}
DETAIL_COLOURS = ("white", "black", "red", "yellow", "blue", "green", "orange", "pink")
LOGOS = ("star", "heart", "circle", "triangle", "bolt", "moon", "diamond", "cross")
PATTERNS = ("plain", "striped", "dotted", "checked", "zigzag")
PATTERN_WORDS: dict[str, tuple[str, ...]] = {
    "plain": ("plain", "unpatterned"),
    "striped": ("striped", "stripy"),
    "dotted": ("dotted", "polka dot", "spotty"),
    "checked": ("checked", "checkered"),
    "zigzag": ("zigzag", "zig-zag"),
}
BRANDS = ("Noru", "Veldt", "Ostara", "Kipling Row", "Lumo", "Harbour & Pine", "Tessel", "Mirin", "Aldous", "Fjell")
COUNTS = {"1": "one", "2": "two", "3": "three", "4": "four", "5": "five", "6": "six"}

MBE_KEYS = REASONING_KEYS
"""The ten attribute keys of MBE (MOON, arXiv 2508.11999 App. A). A type leaves out those that do not apply to it."""

DEMOGRAPHIC_WORDS: dict[str, tuple[str, ...]] = {
    "women": ("for women", "for her", "for my girlfriend"),
    "men": ("for men", "for him", "for my husband"),
    "kids": ("for kids", "for my little one", "for a child"),
    "commuters": ("for commuting", "for the train ride"),
    "gamers": ("for gaming", "for a gamer"),
    "runners": ("for running", "for a runner"),
}

_SHOES = ("EU 36", "EU 38", "EU 40", "EU 42", "EU 44")
_CLOTHES = ("S", "M", "L", "XL")
_PEOPLE = ("women", "men", "kids")
_FASHION = ("casual", "sporty", "classic", "streetwear", "vintage")
_HOME = ("Scandinavian", "rustic", "modern", "retro")
_SEASONS = ("summer", "winter", "spring", "autumn")
_PARTY = ("party", "office", "holiday", "wedding")
_COUNT_345 = ("3", "4", "5")


@dataclass(frozen=True)
class ProductType:
    """One leaf of the category tree, with the possible values of its products' attributes.

    Args:
        name: the leaf's name as shops write it; `path` is the path above it.
        nouns: the shoppers' nouns for it; the first is the noun that shops use.
        plural: whether the nouns are plural ("trainers").
        modifiers, elements: values of "category modifier" and "style elements"; both change the drawn shape.
        details: fine details: attribute key → values, all visible in the drawing.
        place: position of the logo, for texts ("side", "chest"); "" without a logo.
    """

    name: str
    path: tuple[str, str]
    nouns: tuple[str, ...]
    modifiers: tuple[str, ...]
    elements: tuple[str, ...]
    details: dict[str, tuple[str, ...]]
    materials: tuple[str, ...]
    sizes: tuple[str, ...]
    styles: tuple[str, ...]
    people: tuple[str, ...] = ()
    occasions: tuple[str, ...] = ()
    plural: bool = False
    place: str = ""

    @property
    def category_path(self) -> tuple[str, str, str]:
        """The three levels, root first."""
        return (*self.path, self.name)


# Materials that are drawn shiny, and materials with a woven texture; all others are matt.
GLOSS = {"leather", "patent leather", "satin", "steel", "aluminium", "glazed ceramic", "porcelain", "glass", "plastic"}
WEAVE = {"canvas", "linen", "wool", "knit", "denim", "corduroy", "jute", "mesh", "nylon", "fleece"}

_TINT = DETAIL_COLOURS
PRODUCT_TYPES: tuple[ProductType, ...] = (
    ProductType(
        "Sneakers",
        ("Fashion", "Shoes"),
        ("sneakers", "trainers", "sports shoes", "kicks"),
        ("low-top", "high-top"),
        ("lace-up", "velcro straps"),
        {"logo": LOGOS, "stitching": _TINT, "sole": _TINT},
        ("canvas", "leather", "mesh", "suede"),
        _SHOES,
        _FASHION,
        _PEOPLE,
        _SEASONS,
        plural=True,
        place="side",
    ),
    ProductType(
        "Boots",
        ("Fashion", "Shoes"),
        ("boots", "booties"),
        ("ankle", "knee-high"),
        ("side zip", "buckle strap"),
        {"stitching": _TINT, "sole": _TINT, "trim": _TINT},
        ("leather", "suede", "rubber"),
        _SHOES,
        ("casual", "classic", "biker", "vintage"),
        _PEOPLE,
        ("winter", "autumn", "hiking"),
        plural=True,
    ),
    ProductType(
        "Heels",
        ("Fashion", "Shoes"),
        ("heels", "high heels", "pumps"),
        ("stiletto", "block-heel"),
        ("ankle strap", "bow"),
        {"sole": _TINT, "trim": _TINT, "pattern": PATTERNS},
        ("patent leather", "suede", "satin"),
        _SHOES[:4],
        ("elegant", "classic", "glamorous"),
        ("women",),
        _PARTY,
        plural=True,
    ),
    ProductType(
        "Backpacks",
        ("Fashion", "Bags"),
        ("backpack", "rucksack", "school bag"),
        ("roll-top", "zipped"),
        ("one front pocket", "two front pockets"),
        {"logo": LOGOS, "stitching": _TINT, "zip": _TINT},
        ("canvas", "nylon", "leather"),
        ("12 l", "18 l", "25 l"),
        _FASHION,
        _PEOPLE,
        ("school", "travel", "hiking"),
        place="pocket",
    ),
    ProductType(
        "Tote bags",
        ("Fashion", "Bags"),
        ("tote bag", "shopper", "carry bag"),
        ("short-handled", "long-handled"),
        ("square corners", "round corners"),
        {"logo": LOGOS, "stitching": _TINT, "pattern": PATTERNS},
        ("canvas", "jute", "leather"),
        ("small", "medium", "large"),
        ("casual", "classic", "bohemian"),
        ("women", "men"),
        ("beach", "office", "shopping"),
        place="front",
    ),
    ProductType(
        "T-shirts",
        ("Fashion", "Clothing"),
        ("T-shirt", "tee", "t shirt"),
        ("short-sleeved", "long-sleeved"),
        ("crew neck", "V-neck"),
        {"logo": LOGOS, "trim": _TINT, "pattern": PATTERNS},
        ("cotton", "linen", "jersey"),
        _CLOTHES,
        _FASHION,
        _PEOPLE,
        _SEASONS,
        place="chest",
    ),
    ProductType(
        "Shirts",
        ("Fashion", "Clothing"),
        ("shirt", "button-up shirt", "button-down"),
        ("short-sleeved", "long-sleeved"),
        ("chest pocket", "no pocket"),
        {"buttons": ("3", "4", "5", "6"), "trim": _TINT, "pattern": PATTERNS},
        ("cotton", "linen", "denim", "satin"),
        _CLOTHES,
        ("casual", "classic", "business", "vintage"),
        _PEOPLE,
        ("office", "summer", "wedding"),
    ),
    ProductType(
        "Dresses",
        ("Fashion", "Clothing"),
        ("dress", "frock"),
        ("mini", "midi"),
        ("sleeveless", "puff sleeves"),
        {"belt": _TINT, "buttons": ("2", "3", "4"), "pattern": PATTERNS},
        ("cotton", "satin", "linen", "velvet"),
        _CLOTHES,
        ("elegant", "bohemian", "casual", "vintage"),
        ("women", "kids"),
        ("party", "summer", "wedding"),
    ),
    ProductType(
        "Trousers",
        ("Fashion", "Clothing"),
        ("trousers", "pants", "slacks"),
        ("slim", "wide-leg"),
        ("turned-up hem", "straight hem"),
        {"stitching": _TINT, "belt": _TINT, "logo": LOGOS},
        ("denim", "cotton", "corduroy", "wool"),
        _CLOTHES,
        _FASHION,
        _PEOPLE,
        ("office", "winter", "spring"),
        plural=True,
        place="thigh",
    ),
    ProductType(
        "Hoodies",
        ("Fashion", "Clothing"),
        ("hoodie", "hooded sweater", "hooded top"),
        ("zip-up", "pullover"),
        ("kangaroo pocket", "side pockets"),
        {"logo": LOGOS, "drawstring": _TINT, "trim": _TINT},
        ("fleece", "cotton", "knit"),
        _CLOTHES,
        ("sporty", "casual", "streetwear"),
        _PEOPLE,
        ("winter", "autumn", "training"),
        place="chest",
    ),
    ProductType(
        "Caps",
        ("Fashion", "Accessories"),
        ("cap", "baseball cap", "hat"),
        ("flat-brim", "curved-brim"),
        ("mesh back", "closed back"),
        {"logo": LOGOS, "stitching": _TINT, "brim": _TINT},
        ("cotton", "wool", "corduroy"),
        ("55 cm", "57 cm", "59 cm"),
        ("sporty", "streetwear", "vintage"),
        _PEOPLE,
        ("summer", "training", "holiday"),
        place="front",
    ),
    ProductType(
        "Umbrellas",
        ("Fashion", "Accessories"),
        ("umbrella", "brolly", "rain umbrella"),
        ("dome", "wide"),
        ("crook handle", "straight handle"),
        {"handle": _TINT, "trim": _TINT, "pattern": PATTERNS},
        ("nylon", "cotton", "plastic"),
        ("90 cm", "100 cm", "120 cm"),
        ("classic", "vintage", "minimalist"),
        _PEOPLE,
        ("autumn", "spring", "travel"),
    ),
    ProductType(
        "Mugs",
        ("Home", "Kitchen"),
        ("mug", "coffee cup", "tea mug"),
        ("tall", "wide"),
        ("round handle", "square handle"),
        {"logo": LOGOS, "rim": _TINT, "pattern": PATTERNS},
        ("glazed ceramic", "porcelain", "stoneware"),
        ("250 ml", "350 ml", "500 ml"),
        _HOME,
        (),
        ("Christmas", "birthday", "everyday"),
        place="side",
    ),
    ProductType(
        "Teapots",
        ("Home", "Kitchen"),
        ("teapot", "tea pot", "pot for tea"),
        ("round", "tall"),
        ("curved spout", "straight spout"),
        {"lid knob": _TINT, "logo": LOGOS, "pattern": PATTERNS},
        ("glazed ceramic", "porcelain", "cast iron"),
        ("0.6 l", "1 l", "1.5 l"),
        _HOME,
        (),
        ("Christmas", "birthday", "everyday"),
        place="belly",
    ),
    ProductType(
        "Pans",
        ("Home", "Kitchen"),
        ("pan", "cooking pan", "pot with a handle"),
        ("shallow", "deep"),
        ("pouring lip", "glass lid"),
        {"handle": _TINT, "rivets": ("1", "2", "3"), "band": _TINT},
        ("steel", "cast iron", "aluminium"),
        ("20 cm", "24 cm", "28 cm"),
        ("modern", "rustic", "professional"),
    ),
    ProductType(
        "Bottles",
        ("Home", "Kitchen"),
        ("bottle", "drinking bottle", "flask"),
        ("slim", "wide-mouth"),
        ("carry loop", "screw cap"),
        {"cap": _TINT, "logo": LOGOS, "band": _TINT},
        ("steel", "glass", "plastic"),
        ("0.4 l", "0.6 l", "0.8 l"),
        ("sporty", "minimalist", "retro"),
        ("women", "men", "kids"),
        ("hiking", "office", "school"),
        place="front",
    ),
    ProductType(
        "Lamps",
        ("Home", "Living"),
        ("lamp", "table lamp", "bedside light"),
        ("cone-shade", "drum-shade"),
        ("ball base", "stick base"),
        {"base": _TINT, "fringe": _TINT, "pattern": PATTERNS},
        ("linen", "paper", "glass"),
        ("30 cm", "45 cm", "60 cm"),
        _HOME,
        (),
        ("reading", "bedroom", "housewarming"),
    ),
    ProductType(
        "Chairs",
        ("Home", "Living"),
        ("chair", "dining chair", "kitchen chair"),
        ("slat-back", "round-back"),
        ("straight legs", "tapered legs"),
        {"slats": ("2", "3", "4"), "legs": _TINT, "pattern": PATTERNS},
        ("oak", "plastic", "beech"),
        ("seat 43 cm", "seat 45 cm", "seat 48 cm"),
        _HOME,
        (),
        ("dining room", "balcony", "study"),
    ),
    ProductType(
        "Vases",
        ("Home", "Living"),
        ("vase", "flower vase", "vase for flowers"),
        ("slim-neck", "bulbous"),
        ("two handles", "no handles"),
        {"bands": ("1", "2", "3"), "rim": _TINT, "pattern": PATTERNS},
        ("porcelain", "glazed ceramic", "terracotta"),
        ("20 cm", "30 cm", "40 cm"),
        _HOME,
        (),
        ("spring", "wedding", "housewarming"),
    ),
    ProductType(
        "Cushions",
        ("Home", "Living"),
        ("cushion", "throw pillow", "sofa pillow"),
        ("square", "round"),
        ("tassels", "no tassels"),
        {"piping": _TINT, "logo": LOGOS, "pattern": PATTERNS},
        ("linen", "velvet", "wool", "cotton"),
        ("40 x 40 cm", "45 x 45 cm", "50 x 50 cm"),
        _HOME,
        (),
        ("Christmas", "spring", "everyday"),
        place="middle",
    ),
    ProductType(
        "Headphones",
        ("Electronics", "Audio"),
        ("headphones", "cans", "headset"),
        ("on-ear", "over-ear"),
        ("wireless", "cable"),
        {"ear pads": _TINT, "logo": LOGOS, "headband stripe": _TINT},
        ("plastic", "aluminium", "leather"),
        ("20 h battery", "30 h battery", "40 h battery"),
        ("minimalist", "retro", "sporty"),
        ("commuters", "gamers", "kids"),
        ("travel", "office", "training"),
        plural=True,
        place="ear cup",
    ),
    ProductType(
        "Speakers",
        ("Electronics", "Audio"),
        ("speaker", "music box", "loudspeaker"),
        ("portable", "bookshelf"),
        ("one driver", "two drivers"),
        {"knobs": ("1", "2", "3"), "cone": _TINT, "logo": LOGOS},
        ("plastic", "oak", "aluminium"),
        ("10 W", "20 W", "40 W"),
        ("minimalist", "retro", "modern"),
        (),
        ("party", "office", "beach"),
        place="top corner",
    ),
    ProductType(
        "Controllers",
        ("Electronics", "Gaming"),
        ("game controller", "gamepad", "joypad"),
        ("compact", "full-size"),
        ("one stick", "two sticks"),
        {"stick": _TINT, "keys": _TINT, "logo": LOGOS},
        ("plastic", "rubber", "aluminium"),
        ("10 h battery", "20 h battery", "2 m cable"),
        ("retro", "minimalist", "modern"),
        ("gamers", "kids"),
        ("party", "travel", "birthday"),
        place="middle",
    ),
    ProductType(
        "Watches",
        ("Electronics", "Wearables"),
        ("watch", "wristwatch", "wrist watch"),
        ("round-dial", "square-dial"),
        ("four hour marks", "twelve hour marks"),
        {"dial": _TINT, "second hand": _TINT, "stitching": _TINT},
        ("leather", "nylon", "rubber"),
        ("36 mm", "40 mm", "44 mm"),
        ("classic", "sporty", "minimalist"),
        ("women", "men", "runners"),
        ("office", "training", "wedding"),
    ),
)
TYPE_BY_NAME = {kind.name: kind for kind in PRODUCT_TYPES}

_DETAIL_PHRASES: dict[str, tuple[str, ...]] = {
    "logo": (
        "with a {v} on the {place}",
        "with a little {v} on the {place}",
        "with a {v} logo",
        "with a {v} on it",
    ),
    "stitching": ("with {v} stitching", "with {v} seams", "stitched in {v}"),
    "sole": ("with {v} soles", "with a {v} sole", "on {v} soles"),
    "zip": ("with a {v} zip", "with a {v} zipper"),
    "trim": ("with {v} trim", "with {v} edges"),
    "buttons": ("with {n} buttons", "with {v} buttons"),
    "belt": ("with a {v} belt", "belted in {v}"),
    "drawstring": ("with {v} strings", "with a {v} drawstring"),
    "brim": ("with a {v} brim", "with a {v} peak"),
    "rim": ("with a {v} rim", "with a {v} edge at the top"),
    "lid knob": ("with a {v} knob on the lid", "with a {v} lid knob"),
    "handle": ("with a {v} handle", "with the handle in {v}"),
    "rivets": ("with {n} rivet{s}", "handle held by {n} rivet{s}"),
    "band": ("with a {v} band", "with a {v} line round it"),
    "cap": ("with a {v} cap", "with a {v} lid"),
    "base": ("with a {v} base", "on a {v} foot"),
    "fringe": ("with {v} fringe", "with a {v} fringe below the shade"),
    "slats": ("with {n} slats", "with {n} bars in the back"),
    "legs": ("with {v} legs", "on {v} legs"),
    "bands": ("with {n} ring{s} round it", "with {n} band{s}"),
    "piping": ("with {v} piping", "edged in {v}"),
    "ear pads": ("with {v} ear pads", "with {v} padding"),
    "headband stripe": ("with a {v} stripe on the band", "with a {v} stripe on top"),
    "stick": ("with a {v} stick", "{v} on the stick"),
    "keys": ("with {v} keys", "with {v} buttons"),
    "knobs": ("with {n} knob{s}", "with {n} knob{s} to turn"),
    "cone": ("with a {v} cone", "with {v} inside the driver"),
    "dial": ("with a {v} dial", "with a {v} face"),
    "second hand": ("with a {v} second hand", "with a {v} thin hand"),
}


def detail_phrase(rng: random.Random, kind: ProductType, key: str, value: str) -> str:
    """Return a shopper's phrase for a detail ("with white soles")."""
    if key == "pattern":
        return "without a pattern" if value == "plain" else f"with a {rng.choice(PATTERN_WORDS[value])} pattern"
    template = rng.choice(_DETAIL_PHRASES[key])
    plural = "" if value == "1" else "s"
    return template.format(v=value, n=COUNTS.get(value, value), place=kind.place, s=plural)


@dataclass(frozen=True)
class Design:
    """The design of one product, which determines its drawing.

    Args:
        kind: the product type.
        attributes: key → value, in the order in which shops list them.
        body: the colour of its main part (red, green, blue, 0..255): the named colour, slightly varied.
        proportions: eight numbers in 0..1 that a family shares; they vary the shape and are not attributes.
    """

    kind: ProductType
    attributes: dict[str, str]
    body: Rgb
    proportions: tuple[float, ...] = field(default=(0.5,) * 8)

    def vary(self, index: int, low: float, high: float) -> float:
        """Return proportion `index` scaled to low..high."""
        return low + self.proportions[index] * (high - low)

    def detail_rgb(self, key: str) -> Rgb:
        """Return the colour that the attribute `key` names."""
        return COLOURS[self.attributes[key]]


FAMILY_SIZE = 6
"""Two near-twin groups in three colours each."""


def _distance(first: str, second: str) -> float:
    """Return the perceived distance of two colours, 0..440: green counts most, blue least."""
    squares = ((a - b) ** 2 for a, b in zip(COLOURS[first], COLOURS[second], strict=True))
    return (sum(w * d for w, d in zip((0.92, 1.85, 0.23), squares, strict=True))) ** 0.5


def _visible(values: tuple[str, ...], colours: list[str], least: float = 95.0) -> list[str]:
    """Return the values that are clearly visible on all of `colours`; values that are not colours always are."""
    return [v for v in values if v not in COLOURS or all(_distance(v, c) > least for c in colours)]


_THIN = {"stitching", "second hand", "headband stripe", "trim"}
"""Details drawn as thin lines, which need more contrast."""
_TOUCHING = {"dial": "second hand", "second hand": "dial"}
"""Details drawn on each other: their colours must differ too."""


def _choices(key: str, values: tuple[str, ...], chosen: dict[str, str], colours: list[str]) -> list[str]:
    """Return the values of detail `key` that are visible on the bodies' colours and beside its neighbour's colour."""
    beside = [chosen[_TOUCHING[key]]] if _TOUCHING.get(key) in chosen else []
    clear = _visible(values, colours + beside, 126.0) if key in _THIN else []
    return clear if len(clear) > 1 else _visible(values, colours + beside)


def _three_colours(rng: random.Random) -> list[str]:
    """Draw the colours of a family so that three detail colours are visible on all of them, two even as thin lines."""
    while True:
        colours = rng.sample(sorted(COLOURS), 3)
        if len(_visible(DETAIL_COLOURS, colours)) >= 3 and len(_visible(DETAIL_COLOURS, colours, 126.0)) >= 2:
            return colours


def draw_family(seed: int, family: int) -> list[Design]:
    """Return the six designs of a family, in the order a0 a1 b0 b1 a2 b2 (group letter, colour number).

    Groups a and b have the same attributes except for one detail; within a group only the colour differs. A family does
    not depend on other families: family 7 is the same in a catalogue of 8 or 8,000 families.

    Args:
        seed: seed of the catalogue.
        family: index, from 0.
    """
    block = list(PRODUCT_TYPES)
    random.Random(f"types/{seed}/{family // len(block)}").shuffle(block)
    return sample_family(block[family % len(block)], random.Random(f"family/{seed}/{family}"))


def sample_family(kind: ProductType, rng: random.Random) -> list[Design]:
    """Return six designs of one type in the order of `draw_family`."""
    colours = _three_colours(rng)
    shared = {
        "category": kind.name.lower(),
        "category modifier": rng.choice(kind.modifiers),
        "brand": rng.choice(BRANDS),
        "size/specification": rng.choice(kind.sizes),
        "material": rng.choice(kind.materials),
        "style elements": rng.choice(kind.elements),
        "fashion style": rng.choice(kind.styles),
    }
    if kind.people:
        shared["target demographic"] = rng.choice(kind.people)
    if kind.occasions:
        shared["season/occasion"] = rng.choice(kind.occasions)
    for key, values in kind.details.items():
        shared[key] = rng.choice(_choices(key, values, shared, colours))
        if key == "pattern" and rng.random() < 0.4:
            shared[key] = "plain"
    options = [(key, v) for key, values in kind.details.items() for v in _choices(key, values, shared, colours)]
    changed = rng.choice(sorted({key for key, v in options if v != shared[key]}))
    twin = {**shared, changed: rng.choice([v for key, v in options if key == changed and v != shared[key]])}
    proportions = tuple(rng.random() for _ in range(8))
    bodies = [tuple(min(255, max(0, v + rng.randint(-9, 9))) for v in COLOURS[c]) for c in colours]
    order = ((0, 0), (0, 1), (1, 0), (1, 1), (0, 2), (1, 2))
    return [
        Design(kind, {"colour": colours[c], **(shared, twin)[g]}, bodies[c], proportions)  # type: ignore[arg-type]
        for g, c in order
    ]
