"""Set products on other grounds without a generative model: the embedded picture editor.

MOON2.0 (arXiv 2511.12449) lets a generative editor first make a clean main picture and then set it on other
backgrounds, from other viewpoints. This editor does what is possible without one: our design (precedent:
cut-and-paste synthesis, arXiv 1708.01642). It knows the product's box in every picture that it makes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

from processing_moon.product_moon import Box
from product_data.co_augmentation.cutting import CutOut, cut_out
from product_data.co_augmentation.grounds import KINDS, draw_ground
from product_data.co_augmentation.light import mean_colour, relit
from product_data.co_augmentation.mirroring import may_be_mirrored
from product_data.core_boxes.saliency import SaliencyDetector
from product_data.rows import ProductRow

WHITE = (255, 255, 255)
_CLEAN_SHARE = 0.82  # of the shorter side that the product takes in the clean picture
_SCALES = (0.5, 0.85)
_TURN = 8.0  # degrees
_OFF_CENTRE = 0.8  # share of the free room
_SHEAR = 0.06


@dataclass(frozen=True)
class EditedPicture:
    """A picture that an editor made.

    Args:
        picture: RGB.
        box: (x0, y0, x1, y1) of the product in pixels, or None if unknown.
        made_by (`str`): how it was made, for the column of provenance.
    """

    picture: Image.Image
    box: Box | None
    made_by: str


class EmbeddedEditor:
    """Cut a product out once, and set it on white and on other grounds.

    Args:
        image: RGB picture of the product.
        row: the product, whose core box and attributes are read.
        saliency: network for grounds that are not plain. Default: none.

    Raises:
        CutOutError: the product cannot be separated from its ground.

    Relations: `training.co_augmentation.editors` uses a callable of yours instead.
    """

    def __init__(self, image: Image.Image, row: ProductRow, saliency: SaliencyDetector | None = None) -> None:
        self.row = row
        self.cut: CutOut = cut_out(image, row.core_box, saliency)
        self.size = self.cut.picture.size

    def clean(self) -> EditedPicture:
        """Return the product alone, in the middle of a white ground."""
        product = self.cut.product
        scale = _CLEAN_SHARE * min(self.size[0] / product.width, self.size[1] / product.height)
        product = _resized(product, scale)
        left, top = (self.size[0] - product.width) // 2, (self.size[1] - product.height) // 2
        ground = Image.new("RGB", self.size, WHITE)
        return _placed(ground, product, (left, top), f"cut out by {self.cut.way}; on white")

    def scene(self, number: int, rng: np.random.Generator, other: Image.Image | None = None) -> EditedPicture:
        """Return the product on another ground, in other light, and a little smaller, aside, turned or sheared.

        Args:
            number: from 0; the kinds of grounds alternate.
            rng: the generator of all random choices.
            other: picture of another product, for the ground "picture".
        """
        product, light = relit(self.cut.product, rng)
        mirrored = may_be_mirrored(self.row, product) and rng.random() < 0.5
        product = product.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirrored else product
        angle, shear = rng.uniform(-_TURN, _TURN), rng.uniform(-_SHEAR, _SHEAR)
        share = rng.uniform(*_SCALES)
        scale = share * min(self.size[0] / product.width, self.size[1] / product.height)
        product = _turned(_resized(product, scale), angle, shear)
        ground, name = draw_ground(KINDS[number % len(KINDS)], self.size, rng, mean_colour(product), other)
        free = max(0, self.size[0] - product.width), max(0, self.size[1] - product.height)
        corner = tuple(round(room * (0.5 + _OFF_CENTRE * rng.uniform(-0.5, 0.5))) for room in free)
        ground = _shaded(ground, product, corner, rng)  # type: ignore[arg-type]
        words = f"cut out by {self.cut.way}; on {name}; {light}; size {share:.2f}, turned {angle:+.0f}°"
        return _placed(ground, product, corner, words + ("; mirrored" if mirrored else ""))  # type: ignore[arg-type]


def _resized(product: Image.Image, scale: float) -> Image.Image:
    """Resize with colours weighted by alpha, so that the invisible ground does not return at the edges."""
    size = max(1, round(product.width * scale)), max(1, round(product.height * scale))
    return product.convert("RGBa").resize(size, Image.Resampling.LANCZOS).convert("RGBA")


def _turned(product: Image.Image, angle: float, shear: float) -> Image.Image:
    width, height = product.size
    extra = abs(shear) * height
    matrix = (1, shear, -shear * height / 2 - extra / 2, 0, 1, 0)
    sheared = product.convert("RGBa").transform(
        (width + round(extra), height), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR
    )
    turned = sheared.rotate(angle, Image.Resampling.BILINEAR, expand=True).convert("RGBA")
    box = turned.getchannel("A").getbbox()
    return turned.crop(box) if box is not None else product


def _shaded(
    ground: Image.Image, product: Image.Image, corner: tuple[int, int], rng: np.random.Generator
) -> Image.Image:
    """Return the ground with a soft shadow of the product."""
    strength, size = rng.uniform(0.1, 0.4), max(ground.size)
    shadow = Image.new("L", ground.size, 0)
    offset = round(rng.uniform(-0.02, 0.02) * size), round(rng.uniform(0.01, 0.03) * size)
    shadow.paste(product.getchannel("A"), (corner[0] + offset[0], corner[1] + offset[1]))
    shadow = shadow.filter(ImageFilter.GaussianBlur(size / 60)).point(lambda level: round(level * strength))
    shaded = ground.copy()
    shaded.paste((20, 20, 28), (0, 0), shadow)
    return shaded


def _placed(ground: Image.Image, product: Image.Image, corner: tuple[int, int], made_by: str) -> EditedPicture:
    """Return the picture and the box of what is visible of the product in it."""
    picture = ground.copy()
    picture.paste(product, corner, product)
    visible = product.getchannel("A").point(lambda level: 255 if level > 127 else 0).getbbox()
    x0, y0, x1, y1 = visible or (0, 0, *product.size)
    box = (corner[0] + x0, corner[1] + y0, min(corner[0] + x1, ground.width), min(corner[1] + y1, ground.height))
    return EditedPicture(picture, tuple(map(float, box)), made_by)  # type: ignore[arg-type]
