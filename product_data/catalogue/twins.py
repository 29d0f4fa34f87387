"""Draw listings of the same products twice, among look-alikes, with the right answer for every pair.

Each product of a catalogue is listed twice: as its shop shows it, and as another shop shows it: turned or mirrored, in other
light, on other ground. Products of a family look alike: those of a group differ in their colour alone, and near-twins in one
fine detail alone. Our design, for measuring decisions about duplicates; the same drawings as `product_data.catalogue.making`.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tqdm.auto import tqdm

from product_data.catalogue.drawing import SUPERSAMPLING, encode, pose, relight, street_photo, studio_shot
from product_data.catalogue.making import IMAGE_SIZE, PlannedProduct, differing_keys, plan_products
from product_data.catalogue.products import FAMILY_SIZE
from product_data.catalogue.shapes import draw_sprite
from product_data.errors import OptionError

SCENES = ("studio", "street")
SUFFIXES = ("-first", "-second")
"""Endings of the ids of both listings of a product."""


@dataclass(frozen=True)
class Twins:
    """Listings of products, two for each.

    Args:
        listings: rows with product_id, images (list of JPEG bytes), bbox of the product in pixels, and product (the id of what
            is listed).
        look_alikes: pairs of products that differ in exactly one attribute, and the key of that attribute.
    """

    listings: list[dict[str, Any]]
    look_alikes: list[tuple[str, str, str]]

    def same(self, left: str, right: str) -> bool:
        """Return whether two listings show the same product."""
        return product_of(left) == product_of(right)


def product_of(listing: str) -> str:
    """Return the id of the product that a listing shows."""
    return listing.rpartition("-")[0]


def draw_twins(
    *,
    products: int = 600,
    seed: int = 0,
    image_size: int = IMAGE_SIZE,
    scene: str = "studio",
    near_twins: bool = True,
    progress: bool = True,
) -> Twins:
    """Draw two listings of each product of a catalogue.

    Args:
        products (`int`): number of products that are planned, at least 6. Default 600.
        seed (`int`): seed of the catalogue, as in `making.make_catalogue`; of the same seed are the same products. Default 0.
        image_size (`int`): side of each picture in pixels, at least 64. Default 128.
        scene (`str`): ground of the second listing: "studio" (plain) or "street" (textured, the product smaller). Default
            "studio".
        near_twins (`bool`): list both groups of a family, which differ in one fine detail. False lists the first group only,
            so that look-alikes differ in their colour. Default True.
        progress (`bool`): whether to show a progress bar. Default True.

    Raises:
        OptionError: too few products, pictures too small for details, or an unknown scene.
    """
    if scene not in SCENES:
        raise OptionError(f"scene={scene!r}; expected one of {', '.join(SCENES)}")
    if products < FAMILY_SIZE or image_size < 64:
        raise OptionError(
            f"products={products}, image_size={image_size}; expected at least {FAMILY_SIZE} products and 64 pixels"
        )
    planned = [product for product in plan_products(products, seed=seed) if near_twins or product.group.endswith("a")]
    bar = tqdm(planned, desc="twins", unit="product", disable=not progress, delay=2.0, leave=False)
    listings = [listing for product in bar for listing in _two_listings(product, seed, image_size, scene)]
    return Twins(listings, _look_alikes(planned))


def _two_listings(product: PlannedProduct, seed: int, size: int, scene: str) -> list[dict[str, Any]]:
    sprite = draw_sprite(product.design, size)
    rng = random.Random(f"twin/{seed}/{product.index}")
    whole = [0, 0, size, size]
    first = (studio_shot(sprite, random.Random(f"studio/{seed}/{product.index}"), size), whole)
    if scene == "street":
        second = street_photo(sprite, [], rng, size)[:2]
    else:
        turned = pose(sprite, rng, size * SUPERSAMPLING, rng.uniform(0.85, 0.95), (0.5, 0.5), turn=6)
        second = (relight(studio_shot(turned, rng, size), rng), whole)
    return [
        {
            "product_id": product.product_id + suffix,
            "product": product.product_id,
            "images": [encode(picture)],
            "bbox": box,
        }
        for suffix, (picture, box) in zip(SUFFIXES, (first, second), strict=True)
    ]


def _look_alikes(planned: Sequence[PlannedProduct]) -> list[tuple[str, str, str]]:
    found = []
    for first, product in enumerate(planned):
        for other in planned[first + 1 : first + FAMILY_SIZE]:
            if other.index // FAMILY_SIZE == product.index // FAMILY_SIZE:
                keys = differing_keys(product, other)
                if len(keys) == 1:
                    found.append((product.product_id, other.product_id, keys[0]))
    return found
