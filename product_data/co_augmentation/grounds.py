"""Draw grounds for cut-out products: plain, gradient, texture, or another picture out of focus.

Our design (precedents: cut-and-paste synthesis, arXiv 1708.01642; domain randomisation, arXiv 1703.06907). The
textures are not those of the drawn catalogue, whose photos must stay unseen. All random choices come from the given
generator.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageFilter

from product_data.co_augmentation.light import lab_of

KINDS = ("plain", "gradient", "texture", "picture")
_LEAST_DISTANCE = 28  # ΔE between ground and product
_TRIES = 12
Rgb = tuple[int, int, int]


def draw_ground(
    kind: str, size: tuple[int, int], rng: np.random.Generator, avoid: Rgb, other: Image.Image | None = None
) -> tuple[Image.Image, str]:
    """Return a ground and what it is, for the provenance.

    Args:
        kind: one of `KINDS`; "picture" without another picture is "gradient".
        size: width and height in pixels.
        rng: the generator of all random choices.
        avoid: the product's colour, from which the ground must differ by a ΔE of 28 (CIELAB) if twelve tries find such a colour.
        other: the picture of another product.

    Raises:
        ValueError: an unknown kind.
    """
    if kind not in KINDS:
        raise ValueError(f"kind: found {kind!r}; expected one of {', '.join(KINDS)}")
    if kind == "picture" and other is not None:
        return _out_of_focus(other, size, rng), "picture of another product"
    colour = _colour(rng, avoid)
    if kind == "plain":
        return Image.new("RGB", size, colour), f"plain #{''.join(f'{level:02x}' for level in colour)}"
    if kind == "texture":
        return _texture(size, rng, colour), "texture"
    return _gradient(size, rng, colour), "gradient"


def _colour(rng: np.random.Generator, avoid: Rgb) -> Rgb:
    """Draw a muted colour that differs from the product's."""
    product = lab_of(np.array([avoid], dtype=np.float32))[0]
    best, far = (128, 128, 128), -1.0
    for _ in range(_TRIES):
        grey, tint = rng.uniform(70, 245), rng.uniform(-38, 38, size=3)
        colour = np.clip(grey + tint, 0, 255).round()
        distance = float(np.linalg.norm(lab_of(colour[None].astype(np.float32))[0] - product))
        if distance > far:
            best, far = tuple(int(level) for level in colour), distance  # type: ignore[assignment]
        if distance >= _LEAST_DISTANCE:
            break
    return best


def _gradient(size: tuple[int, int], rng: np.random.Generator, colour: Rgb) -> Image.Image:
    """Draw light that falls off in one direction, as on a wall, and often a floor below it."""
    width, height = size
    y_HW, x_HW = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    angle, fall = rng.uniform(0, 2 * np.pi), rng.uniform(0.08, 0.3)
    light_HW = 1 + fall * (x_HW * np.cos(angle) + y_HW * np.sin(angle))
    if rng.random() < 0.5:
        horizon = rng.uniform(0.1, 0.6)
        light_HW = light_HW * np.where(y_HW > horizon, rng.uniform(0.72, 0.9), 1)
    return _tinted(light_HW, colour)


def _texture(size: tuple[int, int], rng: np.random.Generator, colour: Rgb) -> Image.Image:
    """Draw value noise of several octaves, stretched in one direction at times, as in marble, wood or cloth."""
    width, height = size
    light_HW = np.zeros((height, width))
    across, down = rng.choice([1, 1, 4]), rng.choice([1, 1, 4])
    cells, weight = int(rng.integers(3, 7)), 1.0
    for _ in range(4):
        grid = rng.uniform(-1, 1, (max(2, cells * down), max(2, cells * across))).astype(np.float32)
        light_HW += weight * np.asarray(Image.fromarray(grid).resize(size, Image.Resampling.BICUBIC))
        cells, weight = cells * 2, weight * 0.55
    return _tinted(1 + rng.uniform(0.06, 0.16) * light_HW, colour)


def _tinted(light_HW: np.ndarray, colour: Rgb) -> Image.Image:
    return Image.fromarray((light_HW[..., None] * np.array(colour)).clip(0, 255).round().astype(np.uint8))


def _out_of_focus(other: Image.Image, size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    """Return a part of another picture, enlarged and blurred until it no longer shows a product."""
    width, height = size
    side = rng.uniform(0.6, 1.0)
    wide, high = max(1, round(other.width * side)), max(1, round(other.height * side))
    left, top = int(rng.integers(0, other.width - wide + 1)), int(rng.integers(0, other.height - high + 1))
    part = other.convert("RGB").crop((left, top, left + wide, top + high)).resize((width, height))
    part = part.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else part
    return part.filter(ImageFilter.GaussianBlur(max(size) * rng.uniform(0.05, 0.09)))
