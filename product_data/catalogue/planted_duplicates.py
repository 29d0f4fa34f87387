"""Plant near-duplicates among the products of the drawn catalogue, and wrong answers among its queries.

A copy is what another seller, or a second import, makes of a product: its picture is compressed again, scaled, cropped a little
or brighter; its title is reworded or in another order, or an attribute is missing. Copies go into any split. Beside them stay the
look-alikes of the catalogue, which are other products: variants in another colour, near-twins that differ in one fine detail, and
products whose titles follow one pattern. Our design, for measuring `product_data.preparation`; simulated data.
"""

from __future__ import annotations

import io
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image, ImageEnhance

from processing_moon import open_image
from product_data.catalogue.making import SPLITS
from product_data.catalogue.products import PRODUCT_TYPES
from product_data.errors import OptionError

PICTURE_CHANGES = ("compressed", "scaled", "cropped", "brightness")
TEXT_CHANGES = ("same", "reordered", "reworded", "attribute missing")
COPY = "-copy"
_SYNONYMS = {"grey": "gray", "purple": "violet", "teal": "turquoise", "women's": "ladies", "colour": "color"}
_NOUNS = {noun: kind.nouns for kind in PRODUCT_TYPES for noun in kind.nouns[:1]}


@dataclass(frozen=True)
class Planted:
    """Tables with planted copies and wrong answers.

    Args:
        products, queries: rows as of `product_data.catalogue.making.make_catalogue`.
        copies: id of a copy → id of its product.
        changes: id of a copy → the changes of its picture and its text.
        wrong: (query id, product id) of the planted wrong answers.
    """

    products: list[dict[str, Any]]
    queries: list[dict[str, Any]]
    copies: dict[str, str]
    changes: dict[str, tuple[str, ...]]
    wrong: frozenset[tuple[str, str]]


def plant(
    products: Sequence[Mapping[str, Any]],
    queries: Sequence[Mapping[str, Any]] = (),
    *,
    seed: int = 0,
    copied: float = 0.3,
    wrong: float = 0.1,
) -> Planted:
    """Return tables with copies of some products, and wrong answers to some queries of words.

    Args:
        products, queries: the tables; they are not changed.
        seed (`int`): seed of the draws. Default 0.
        copied (`float`): share of products with a copy, in [0, 1]; a fifth of these has two. Default 0.3.
        wrong (`float`): share of queries of words whose answers become one product of another type, in [0, 1]. Default 0.1.

    Raises:
        OptionError: a share out of range.
    """
    for name, share in (("copied", copied), ("wrong", wrong)):
        if not 0 <= share <= 1:
            raise OptionError(f"{name}={share}; expected a share from 0 to 1")
    rows = [dict(row) for row in products]
    copies: dict[str, str] = {}
    changes: dict[str, tuple[str, ...]] = {}
    for row in products:
        rng = random.Random(f"copies/{seed}/{row['product_id']}")
        if rng.random() < copied:
            for number in range(2 if rng.random() < 0.2 else 1):
                copy, made = _copy(row, number, rng)
                rows.append(copy)
                copies[copy["product_id"]], changes[copy["product_id"]] = str(row["product_id"]), made
    random.Random(f"order/{seed}").shuffle(rows)
    asked, answers = _with_wrong_answers(queries, products, seed, wrong)
    return Planted(rows, asked, copies, changes, answers)


def _copy(row: Mapping[str, Any], number: int, rng: random.Random) -> tuple[dict[str, Any], tuple[str, ...]]:
    pictured = rng.sample(PICTURE_CHANGES, rng.choice((1, 1, 2)))
    worded = rng.choice(TEXT_CHANGES)
    picture = open_image(row["images"][0])
    for change in pictured:
        picture = altered(picture, change, rng)
    attributes = [dict(entry) for entry in row["attributes"]]
    if worded == "attribute missing":
        attributes.pop(rng.randrange(len(attributes)))
    copy = dict(row) | {
        "product_id": f"{row['product_id']}{COPY}{number}",
        "title": reworded(str(row["title"]), worded, rng),
        "attributes": attributes,
        "images": [_jpeg(picture, rng.randint(35, 70) if "compressed" in pictured else 90)],
        "split": rng.choices([name for name, _ in SPLITS], [share for _, share in SPLITS])[0],
        "group": None,
    }
    return copy, (*pictured, worded)


def altered(picture: Image.Image, change: str, rng: random.Random) -> Image.Image:
    """Return a picture after one of `PICTURE_CHANGES`; "compressed" is left to the encoder.

    Args:
        picture: an RGB picture.
        change (`str`): scaled to half to double its size, cropped by up to 3 % on each side, or 7 to 20 % darker or brighter.
        rng: draws the amount.
    """
    width, height = picture.size
    if change == "scaled":
        factor = rng.choice((0.5, 0.6, 0.75, 1.5, 2.0))
        return picture.resize((round(width * factor), round(height * factor)), Image.Resampling.LANCZOS)
    if change == "cropped":
        left, top, right, bottom = (rng.uniform(0, 0.03) for _ in range(4))
        return picture.crop(
            (round(left * width), round(top * height), round((1 - right) * width), round((1 - bottom) * height))
        )
    if change == "brightness":
        return ImageEnhance.Brightness(picture).enhance(rng.choice((rng.uniform(0.8, 0.93), rng.uniform(1.07, 1.2))))
    return picture


def reworded(title: str, change: str, rng: random.Random) -> str:
    """Return a title after one of `TEXT_CHANGES`.

    Args:
        title: as `product_data.catalogue.making.write_title` writes it.
        change (`str`): "reordered" moves its words; "reworded" replaces its noun by another of the type and words by their
            synonyms, and adds a word of praise; others leave it.
        rng: draws the order and the words.
    """
    if change == "reordered":
        parts = title.split()
        rng.shuffle(parts)
        return " ".join(parts)
    if change == "reworded":
        lower = title.lower()
        for noun, others in _NOUNS.items():
            if noun in lower and len(others) > 1:
                lower = lower.replace(noun, rng.choice(others[1:]))
                break
        parts = [_SYNONYMS.get(part, part) for part in lower.split()]
        return " ".join([rng.choice(("new", "original", "genuine")), *parts])
    return title


def _jpeg(picture: Image.Image, quality: int) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=quality)
    return stream.getvalue()


def _with_wrong_answers(
    queries: Sequence[Mapping[str, Any]], products: Sequence[Mapping[str, Any]], seed: int, share: float
) -> tuple[list[dict[str, Any]], frozenset[tuple[str, str]]]:
    """Return queries, of which some have one answer of another first level of the category, and these answers."""
    kind_of = {str(row["product_id"]): row["category_path"][0] for row in products}
    rows: list[dict[str, Any]] = []
    wrong: set[tuple[str, str]] = set()
    for query in queries:
        rng = random.Random(f"wrong/{seed}/{query['query_id']}")
        row = dict(query)
        if query["type"] == "text" and rng.random() < share:
            kind = kind_of[query["positives"][0]]
            others = [
                str(other["product_id"])
                for other in products
                if other["category_path"][0] != kind and other["split"] == query["split"]
            ]
            if others:
                row["positives"], row["negatives"] = [rng.choice(others)], []
                wrong.add((str(query["query_id"]), row["positives"][0]))
        rows.append(row)
    return rows, frozenset(wrong)
