"""Make the embedded catalogue: products and queries that are drawn from a seed, without a download.

Products come in families of six: two groups (designs) that differ in exactly one fine detail, each in three colours.
A family depends only on (seed, family index). All products of a family, and so of a group, are in one split.
Queries are text (colloquial), image (the product re-posed and re-lit on cluttered ground, its box known) and both
("same in blue"). The positives of a text query are all products of its split that satisfy the whole text.

    moon3 catalogue --output DIR --products 600 --seed 0 --sheet sheet.png
    moon3 catalogue --rate
"""

from __future__ import annotations

import itertools
import random
import re
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm.auto import tqdm

from product_data.catalogue import sheet as catalogue_sheet
from product_data.catalogue.drawing import encode, street_photo, studio_shot
from product_data.catalogue.products import (
    COLOUR_WORDS,
    DEMOGRAPHIC_WORDS,
    FAMILY_SIZE,
    PATTERN_WORDS,
    PRODUCT_TYPES,
    Design,
    detail_phrase,
    draw_family,
)
from product_data.catalogue.shapes import draw_distractor, draw_sprite
from product_data.errors import OptionError

SPLITS = (("train", 0.8), ("valid", 0.05), ("test", 0.15))
QUERY_TYPES = ("image", "text", "both")
IMAGE_SIZE = 128
GROUP_LETTERS = "aabbab"
"""The group of each product of a family, in order."""


@dataclass(frozen=True)
class PlannedProduct:
    """One product before it is drawn: its place in the catalogue and its design."""

    index: int
    product_id: str
    group: str
    split: str
    design: Design

    @property
    def attributes(self) -> dict[str, str]:
        """The attributes of the drawing: key → value."""
        return self.design.attributes


def make_catalogue(
    *,
    products: int = 600,
    seed: int = 0,
    image_size: int = IMAGE_SIZE,
    queries_per_product: int = 3,
    splits: Sequence[tuple[str, float]] = SPLITS,
    only: str | None = None,
    progress: bool = True,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Draw a catalogue: the tables `products` and `queries` as lists of rows. Our design (synthetic benchmark).

    Args:
        products: number of products; 3,400 contain over 500 unseen test products with the default splits.
        seed: seed of the catalogue; its first n products do not depend on `products`.
        image_size: side of each picture, in pixels, at least 64.
        queries_per_product: 0 or more; the types image, text and both alternate: 3 are one of each.
        splits: names and shares; each split gets at least one family of six products.
        only: draw this split only; its rows are the same as in the whole catalogue. Default None: all splits.
        progress: whether to show a progress bar.

    Returns:
        products: dicts of product_id, title, description, category_path (list of 3), attributes (list of {key, value}),
            images (list of JPEG bytes), split, group.
        queries: dicts of query_id, type ("text", "image", "both"), text, image (JPEG bytes or None), bbox ([x0, y0, x1,
            y1] in pixels of the image, or None), positives (product ids), negatives (product ids: same category,
            exactly one attribute differs from a positive's; never the reference product), split, kind, derived (True if
            the text is generated), reference_product_id.

    Raises:
        ValueError: a count or size out of range, a share that is not positive, or too few products for the splits.
    """
    _check(products, image_size, queries_per_product, splits)
    if only not in (None, *(name for name, _ in splits)):
        raise ValueError(f"only={only!r}; expected one of {', '.join(name for name, _ in splits)}, or None")
    planned = plan_products(products, seed=seed, splits=splits)
    catalogue = _Relations(planned)
    product_rows, query_rows = [], []
    drawn = [product for product in planned if only in (None, product.split)]
    for product in tqdm(drawn, desc="catalogue", unit="product", disable=not progress, delay=2.0, leave=False):
        sprite = draw_sprite(product.design, image_size)
        product_rows.append(_product_row(product, sprite, seed, image_size))
        photographer = _Photographer(product, sprite, seed, image_size)
        query_rows += [
            _query_row(catalogue, product, number, photographer, seed) for number in range(queries_per_product)
        ]
    return product_rows, [row for row in query_rows if row is not None]


def _check(products: int, image_size: int, queries_per_product: int, splits: Sequence[tuple[str, float]]) -> None:
    if image_size < 64:
        raise OptionError(f"image_size={image_size}: details vanish below 64 pixels; expected 64 or more")
    if queries_per_product < 0:
        raise OptionError(f"queries_per_product={queries_per_product}; expected 0 or more")
    names = [name for name, _ in splits]
    if not splits or len(set(names)) != len(names) or any(share <= 0 for _, share in splits):
        raise OptionError(f"splits={tuple(splits)!r}; expected one or more different names, each with a share above 0")
    if products < FAMILY_SIZE * len(splits):
        raise OptionError(
            f"products={products} leave a split without products; expected at least {FAMILY_SIZE} for each of "
            f"the {len(splits)} splits"
        )


def split_sequence(splits: Sequence[tuple[str, float]]) -> Iterator[str]:
    """Yield the split of family 0, 1, 2, …: first each split once, then always the one furthest below its share.

    Args:
        splits: names and shares; the shares need not sum to 1.
    """
    total = sum(share for _, share in splits)
    given = dict.fromkeys((name for name, _ in splits), 0)
    first = sorted(given, key=lambda n: -dict(splits)[n])
    for family in itertools.count():
        lag = {n: share / total * (family + 1) - given[n] for n, share in splits}
        name = first[family] if family < len(first) else max(lag, key=lag.__getitem__)
        given[name] += 1
        yield name


def plan_products(
    products: int, *, seed: int = 0, splits: Sequence[tuple[str, float]] = SPLITS
) -> list[PlannedProduct]:
    """Return the first `products` designs of a seed with their ids, groups and splits; draws no picture."""
    planned: list[PlannedProduct] = []
    split_of_family = split_sequence(splits)
    for family in range(-(-products // FAMILY_SIZE)):
        split = next(split_of_family)
        for position, design in enumerate(draw_family(seed, family)):
            index = family * FAMILY_SIZE + position
            group = f"c{seed}-g{family:05d}{GROUP_LETTERS[position]}"
            planned.append(PlannedProduct(index, f"c{seed}-{index:06d}", group, split, design))
    return planned[:products]


def differing_keys(first: PlannedProduct, second: PlannedProduct) -> list[str]:
    """Return the attribute keys in which two products of one category differ."""
    a, b = first.attributes, second.attributes
    return [key for key in {**a, **b} if a.get(key) != b.get(key)]


class _Relations:
    """Find similar products: by split and type, and within a family."""

    def __init__(self, products: Sequence[PlannedProduct]) -> None:
        self._by_type: dict[tuple[str, str], list[PlannedProduct]] = defaultdict(list)
        self._families: dict[int, list[PlannedProduct]] = defaultdict(list)
        for product in products:
            self._by_type[product.split, product.design.kind.name].append(product)
            self._families[product.index // FAMILY_SIZE].append(product)

    def satisfying(self, product: PlannedProduct, stated: dict[str, str]) -> list[PlannedProduct]:
        """Return all products of the same split and type that have each stated value."""
        pool = self._by_type[product.split, product.design.kind.name]
        return [p for p in pool if all(p.attributes[key] == value for key, value in stated.items())]

    def variants(self, product: PlannedProduct) -> list[PlannedProduct]:
        """Return the products of the same group in other colours."""
        return [
            p for p in self._families[product.index // FAMILY_SIZE] if p.group == product.group and p is not product
        ]

    def twin(self, product: PlannedProduct) -> PlannedProduct | None:
        """Return the near-twin: the same colour, one other fine detail; None if the catalogue lacks it."""
        family = self._families[product.index // FAMILY_SIZE]
        same = [p for p in family if p is not product and p.attributes["colour"] == product.attributes["colour"]]
        return same[0] if same else None

    def neighbours(self, product: PlannedProduct) -> list[PlannedProduct]:
        """Return the products that differ in exactly one attribute."""
        twin = self.twin(product)
        return self.variants(product) + ([twin] if twin else [])


# ------------------------------------------------------------------------------------------------------ pictures


class _Photographer:
    """Take the pictures of one product; its sprite is drawn once."""

    def __init__(self, product: PlannedProduct, sprite: Image.Image, seed: int, size: int) -> None:
        self._product, self._sprite, self._seed, self._size = product, sprite, seed, size

    def photo(self, number: int) -> tuple[bytes, list[int]]:
        """Return JPEG and box of the product's `number`-th street photo."""
        rng = random.Random(f"photo/{self._seed}/{self._product.index}/{number}")
        picture, box, _ = photograph(self._product.design, self._sprite, rng, self._size)
        return encode(picture), box


def photograph(
    design: Design, sprite: Image.Image, rng: random.Random, size: int
) -> tuple[Image.Image, list[int], Image.Image]:
    """Draw a street photo of `sprite` with two or three objects of other types; returns what `street_photo` returns."""
    others = [kind for kind in PRODUCT_TYPES if kind is not design.kind]
    distractors = [
        draw_distractor(rng.choice(others).name, rng.randrange(6), size) for _ in range(rng.choice((2, 2, 3)))
    ]
    return street_photo(sprite, distractors, rng, size)


def _product_row(product: PlannedProduct, sprite: Image.Image, seed: int, size: int) -> dict[str, Any]:
    rng = random.Random(f"studio/{seed}/{product.index}")
    return {
        "product_id": product.product_id,
        "title": write_title(product, seed),
        "description": write_description(product, seed),
        "category_path": list(product.design.kind.category_path),
        "attributes": [{"key": key, "value": value} for key, value in product.attributes.items()],
        "images": [encode(studio_shot(sprite, rng, size))],
        "split": product.split,
        "group": product.group,
    }


# --------------------------------------------------------------------------------------------------------- texts


_OWNERS = {"women": "women's", "men": "men's", "kids": "kids'"}


def write_title(product: PlannedProduct, seed: int) -> str:
    """Write a title as shops do: brand, some adjectives, the noun, sometimes a detail; never all attributes."""
    rng = random.Random(f"title/{seed}/{product.group}")
    a, kind = product.attributes, product.design.kind
    people = a.get("target demographic", "")
    words = [a["brand"]]
    if people in _OWNERS and rng.random() < 0.5:
        words.append(_OWNERS[people])
    adjectives = [a["fashion style"], a["category modifier"], a["material"], a["colour"]]
    keep = sorted(rng.sample(range(4), rng.choice((1, 2, 2, 3))))
    words += [adjectives[k] for k in keep]
    words.append(kind.nouns[0])
    ending, extra = "", rng.random()
    if extra < 0.35:
        key = rng.choice([key for key in sorted(kind.details) if a[key] != "plain"])
        words += ["with", *_listed(key, a[key]).split()]
    elif extra < 0.6:
        ending = ", " + a["size/specification"]
    return " ".join(w if w == "with" else w[:1].upper() + w[1:] for w in " ".join(words).split()) + ending


def _listed(key: str, value: str) -> str:
    """Return a detail as a shop lists it: "white sole", "star logo", "4 buttons"."""
    noun = key[:-1] if value == "1" and key.endswith("s") else key
    return f"{value} {noun}"


def write_description(product: PlannedProduct, seed: int) -> str:
    """Write two or three sentences as shops do, which truthfully state some of the attributes."""
    rng = random.Random(f"description/{seed}/{product.group}")
    a, kind = product.attributes, product.design.kind
    be = "are" if kind.plural else "is"
    these = "These" if kind.plural else "This"
    sentences = [
        f"{these} {a['category modifier']} {kind.nouns[0]} {be} made of {a['material']}, {a['fashion style']} in style."
    ]
    keys = rng.sample(sorted(kind.details), 2)
    sentences.append(f"Details: {a['style elements']}, " + ", ".join(_listed(key, a[key]) for key in keys) + ".")
    if "season/occasion" in a and rng.random() < 0.6:
        sentences.append(f"Good for: {a['season/occasion']}.")
    if rng.random() < 0.5:
        sentences.append(f"Size: {a['size/specification']}.")
    return " ".join(sentences)


_OPENERS = ("", "", "", "", "looking for {a} ", "i need {a} ", "got any ", "where can i find {a} ", "want {a} ", "any ")


def write_query(product: PlannedProduct, rng: random.Random) -> tuple[str, dict[str, str]]:
    """Write a query for a product as shoppers do, and return the attribute values that it states.

    Args:
        product: the product.
        rng: draws content and wording.

    Returns:
        text: colloquial, lower case; it states the type, mostly the colour, one or two details, sometimes the use.
        stated: attribute key → value; a product of the type answers the text if and only if it has all of them.
    """
    a, kind = product.attributes, product.design.kind
    stated: dict[str, str] = {}
    before: list[str] = []
    after: list[str] = []
    if rng.random() < 0.85:
        stated["colour"] = a["colour"]
        before.append(rng.choice(COLOUR_WORDS.get(a["colour"], (a["colour"],))))
    details = rng.sample(sorted(kind.details), rng.choice((1, 1, 2)) if stated else 2)
    for key in details:
        stated[key] = a[key]
        if key == "pattern" and rng.random() < 0.7:
            before.append(rng.choice(PATTERN_WORDS[a[key]]))
        else:
            after.append(detail_phrase(rng, kind, key, a[key]))
    aside = rng.choice(("", "category modifier", "material", "target demographic", "season/occasion", "brand"))
    if aside in a:
        stated[aside] = a[aside]
        _say_aside(rng, aside, a[aside], before, after)
    if len(after) > 1 and after[0].startswith("with ") and after[1].startswith("with ") and rng.random() < 0.6:
        after[1] = after[1].replace("with", "and", 1)
    words = " ".join([*before, rng.choice(kind.nouns), *after])
    opener = rng.choice(_OPENERS)
    if opener in ("got any ", "any ") and not kind.plural:
        opener = "looking for {a} "
    return _with_articles(opener.format(a="some" if kind.plural else "a") + words), stated


def _with_articles(text: str) -> str:
    """Replace "a" before a vowel by "an"."""
    return re.sub(r"\ba (?=[aeiou])", "an ", text)


def _say_aside(rng: random.Random, key: str, value: str, before: list[str], after: list[str]) -> None:
    """Add the words for an attribute that is not a fine detail."""
    if key in ("category modifier", "material"):
        before.append(value)
    elif key == "target demographic":
        after.append(rng.choice(DEMOGRAPHIC_WORDS[value]))
    elif key == "season/occasion":
        after.append(rng.choice(("for {v}", "good for {v}")).format(v=value))
    else:
        after.append(rng.choice(("by {v}", "from {v}")).format(v=value.lower()))


_IN_COLOUR = (
    "same in {c}",
    "{this} but in {c}",
    "do you have {this} in {c}?",
    "{c} version of {this}",
    "can i get {this} in {c}",
)
_POINTED = ("the {n} in this photo", "where can i get {this} {n}", "{n} like in the picture", "{this} {n} please")


# ------------------------------------------------------------------------------------------------------- queries


def _query_row(
    catalogue: _Relations, product: PlannedProduct, number: int, photographer: _Photographer, seed: int
) -> dict[str, Any] | None:
    """Return query `number` of a product; None if the catalogue lacks the product that it asks for."""
    rng = random.Random(f"query/{seed}/{product.index}/{number}")
    query_type = QUERY_TYPES[(product.index + number) % 3]
    row: dict[str, Any] = {
        "query_id": f"{product.product_id}-q{number}",
        "type": query_type,
        "text": None,
        "image": None,
        "bbox": None,
        "split": product.split,
        "derived": query_type != "image",
        "reference_product_id": None,
    }
    positives = [product]
    if query_type == "text":
        row["kind"] = "colloquial"
        row["text"], stated = write_query(product, rng)
        positives = catalogue.satisfying(product, stated)
    else:
        row["kind"] = "photo"
        row["image"], row["bbox"] = photographer.photo(number)
    if query_type == "both":
        row["kind"], row["text"], target = _query_with_photo(catalogue, product, number, rng)
        if target is None:
            return None
        positives = [target]
        row["reference_product_id"] = product.product_id if target is not product else None
    row["positives"] = [p.product_id for p in positives]
    row["negatives"] = _hard_negatives(catalogue, positives, row["reference_product_id"])
    return row


def _query_with_photo(
    catalogue: _Relations, product: PlannedProduct, number: int, rng: random.Random
) -> tuple[str, str, PlannedProduct | None]:
    """Return kind, text and target of a query that shows `product` and states what should differ (or the object)."""
    kind = product.design.kind
    this = "these" if kind.plural else "this"
    wish = (product.index // 2 + number) % 3
    if wish == 0:
        return "pointed", rng.choice(_POINTED).format(n=rng.choice(kind.nouns), this=this), product
    if wish == 1 and (twin := catalogue.twin(product)):
        key = differing_keys(product, twin)[0]
        words = detail_phrase(rng, kind, key, twin.attributes[key])
        return (
            "same_with_detail",
            _with_articles(rng.choice(("same but {w}", "like this {w}", "this one {w}")).format(w=words)),
            twin,
        )
    variants = catalogue.variants(product)
    if not variants:
        return "same_in_colour", "", None
    target = rng.choice(variants)
    colour = target.attributes["colour"]
    words = rng.choice(_IN_COLOUR).format(c=rng.choice(COLOUR_WORDS.get(colour, (colour,))), this=this)
    return "same_in_colour", words, target


def _hard_negatives(catalogue: _Relations, positives: Sequence[PlannedProduct], reference: str | None) -> list[str]:
    """Return the products that differ from a positive in exactly one attribute, except positives and the reference."""
    right = {p.product_id for p in positives} | {reference}
    near = {n.product_id for p in positives for n in catalogue.neighbours(p)}
    return sorted(near - right)


# ------------------------------------------------------------------------------------------------------ on disk


_CARD = """\
---
license: apache-2.0
---
# Products drawn by Moon's embedded catalogue

Every picture and text was drawn from a seed. None of it is anyone else's.
"""


def write_catalogue(folder: str | Path, **options: Any) -> Path:
    """Write the tables of `make_catalogue(**options)` as parquet files, and their licence into README.md.

    Pictures are struct{bytes, path} with Hugging Face feature metadata: `datasets.load_dataset("parquet", …)` decodes
    them. Queries refer to their picture by `image_id`.

    Args:
        folder: the output folder; it is made if missing, and existing files are replaced.
        options: options of `make_catalogue`.

    Returns:
        the folder.
    """
    import pyarrow
    from datasets import Features, List, Value
    from datasets import Image as Picture
    from pyarrow import parquet

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    products, queries = make_catalogue(**options)
    text, texts = Value("string"), List(Value("string"))
    product_features = {name: text for name in ("product_id", "title", "description", "split", "group")} | {
        "category_path": texts,
        "attributes": List({"key": text, "value": text}),
        "images": List(Picture()),
    }
    query_features = {
        name: text for name in ("query_id", "type", "text", "image_id", "split", "kind", "reference_product_id")
    } | {"bbox": List(Value("float32")), "positives": texts, "negatives": texts, "derived": Value("bool")}
    pictures = [
        {"image_id": f"{q['query_id']}.jpg", "image": {"bytes": q["image"], "path": None}}
        for q in queries
        if q["image"]
    ]
    product_rows = [{**p, "images": [{"bytes": image, "path": None} for image in p["images"]]} for p in products]
    query_rows = [
        {**{k: v for k, v in q.items() if k != "image"}, "image_id": f"{q['query_id']}.jpg" if q["image"] else None}
        for q in queries
    ]
    for name, rows, features in (
        ("products", product_rows, product_features),
        ("queries", query_rows, query_features),
        ("query_images", pictures, {"image_id": text, "image": Picture()}),
    ):
        schema = Features(features).arrow_schema
        parquet.write_table(pyarrow.Table.from_pylist(rows, schema=schema), folder / f"{name}.parquet")
    (folder / "README.md").write_text(_CARD, encoding="utf-8")
    return folder


def contact_sheet(path: str | Path, *, seed: int = 0) -> Path:
    """Draw an overview of the catalogue, about 1,200 pixels wide: every type, photos with boxes, near-twins, queries.

    Args:
        path: the picture to write, .png or (a third of the size) .jpg.
        seed: seed of the catalogue.
    """
    products, queries = make_catalogue(
        products=len(PRODUCT_TYPES) * FAMILY_SIZE,
        seed=seed,
        image_size=catalogue_sheet.PICTURE,
        splits=(("all", 1.0),),
        progress=False,
    )
    catalogue_sheet.draw_sheet(products, queries).save(path, optimize=True, quality=88)
    return Path(path)


def picture_rate(*, seconds: float = 5.0, image_size: int = IMAGE_SIZE, seed: int = 0) -> float:
    """Measure how many pictures per second this process draws and encodes, half product shots, half street photos."""
    planned = plan_products(600, seed=seed)
    for kind in PRODUCT_TYPES:  # the pool of other objects is drawn once per process
        for variant in range(6):
            draw_distractor(kind.name, variant, image_size)
    drawn, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < seconds:
        product = planned[(drawn // 2) % len(planned)]
        sprite = draw_sprite(product.design, image_size)
        _product_row(product, sprite, seed, image_size)
        _Photographer(product, sprite, seed, image_size).photo(0)
        drawn += 2
    return drawn / elapsed
