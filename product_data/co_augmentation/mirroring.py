"""Decide whether a product may be mirrored: never if its picture can contain a logo or text.

Shape suffixes: H height, W width.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from product_data.rows import ProductRow
from product_data.words import words

_LEGIBLE = frozenset(
    ("logo", "print", "text", "lettering", "slogan", "label", "monogram", "embroidery", "side", "hand")
)
_SIDE = 192  # pixels to which a picture is reduced
_TILE_HEIGHT, _TILE_WIDTH = 16, 32
_EDGE = 18.0  # levels of 255 from pixel to pixel
_CHANGES = 5  # between lighter and darker along a row of a tile
_ROWS = 5  # of a tile


def may_be_mirrored(row: ProductRow, product: Image.Image) -> bool:
    """Return whether a product may be mirrored.

    False if an attribute's key or value names something legible or one-sided (logo, print, text, …), or if the
    picture has a region that looks like text. Our design: conservative, so stripes and nets also count as text.

    Args:
        row: the product.
        product: its cut-out, RGBA.
    """
    named = {word for key, values in row.attributes.items() for text in (key, *values) for word in words(text)}
    return not (_LEGIBLE & named) and not looks_like_text(product)


def looks_like_text(product: Image.Image) -> bool:
    """Return whether a tile of 32 × 16 pixels has five rows in which the brightness changes direction five times or more.

    The picture is reduced to 192 pixels. Strokes of letters are such quick changes between light and dark, in several rows.

    Args:
        product: RGBA or RGB.
    """
    reduced = product.copy()
    reduced.thumbnail((_SIDE, _SIDE))
    rgba_HW4 = np.asarray(reduced.convert("RGBA"), dtype=np.float32)
    level_HW = rgba_HW4[..., :3].mean(axis=2)
    inside_HW = rgba_HW4[..., 3] > 127
    step_HW = np.diff(level_HW, axis=1)
    step_HW[~(inside_HW[:, 1:] & inside_HW[:, :-1])] = 0
    sign_HW = np.where(np.abs(step_HW) >= _EDGE, np.sign(step_HW), 0)
    height, width = sign_HW.shape
    for top in range(0, max(1, height - _TILE_HEIGHT + 1), _TILE_HEIGHT // 2):
        for left in range(0, max(1, width - _TILE_WIDTH + 1), _TILE_WIDTH // 2):
            tile = sign_HW[top : top + _TILE_HEIGHT, left : left + _TILE_WIDTH]
            if sum(_changes(line) >= _CHANGES for line in tile) >= _ROWS:
                return True
    return False


def _changes(line: np.ndarray) -> int:
    """Return how often the direction of strong steps changes along a row."""
    strong = line[line != 0]
    return int((strong[1:] != strong[:-1]).sum())
