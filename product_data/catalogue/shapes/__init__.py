"""Draw each product type: one drawing function per leaf of the category tree.

Each function reads the design's attributes: the picture shows what the tables state. The eight proportions of a
family vary the outline and are not attributes. `SHAPES` maps a type's name to its function.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import lru_cache

from PIL import Image

from product_data.catalogue.drawing import SUPERSAMPLING, Pen
from product_data.catalogue.products import FAMILY_SIZE, GLOSS, TYPE_BY_NAME, WEAVE, Design, sample_family
from product_data.catalogue.shapes.clothing import caps, dresses, hoodies, shirts, t_shirts, trousers, umbrellas
from product_data.catalogue.shapes.electronics import controllers, headphones, speakers, watches
from product_data.catalogue.shapes.household import bottles, chairs, cushions, lamps, mugs, pans, teapots, vases
from product_data.catalogue.shapes.shoes_and_bags import backpacks, boots, heels, sneakers, tote_bags

Draw = Callable[[Pen, Design], None]
SHAPES: dict[str, Draw] = {
    "Sneakers": sneakers,
    "Boots": boots,
    "Heels": heels,
    "Backpacks": backpacks,
    "Tote bags": tote_bags,
    "T-shirts": t_shirts,
    "Shirts": shirts,
    "Dresses": dresses,
    "Trousers": trousers,
    "Hoodies": hoodies,
    "Caps": caps,
    "Umbrellas": umbrellas,
    "Mugs": mugs,
    "Teapots": teapots,
    "Pans": pans,
    "Bottles": bottles,
    "Lamps": lamps,
    "Chairs": chairs,
    "Vases": vases,
    "Cushions": cushions,
    "Headphones": headphones,
    "Speakers": speakers,
    "Controllers": controllers,
    "Watches": watches,
}


def draw_sprite(design: Design, size: int) -> Image.Image:
    """Draw the product alone: RGBA, a square of `size` x SUPERSAMPLING pixels, transparent around it."""
    material = design.attributes["material"]
    finish = "gloss" if material in GLOSS else "weave" if material in WEAVE else "matt"
    pen = Pen(size, finish, scale=int(design.proportions[7] * 2.99))
    SHAPES[design.kind.name](pen, design)
    return pen.image


@lru_cache(maxsize=512)
def draw_distractor(name: str, variant: int, size: int) -> Image.Image:
    """Draw another object of a photo, of type `name`, the same in every catalogue: RGBA (size, size)."""
    rng = random.Random(f"distractor/{name}/{variant}")
    design = sample_family(TYPE_BY_NAME[name], rng)[rng.randrange(FAMILY_SIZE)]
    return draw_sprite(design, size).reduce(SUPERSAMPLING)
