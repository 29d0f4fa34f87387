"""Draw the catalogue's pictures: smooth shaded areas, product shots, and photos on cluttered ground.

Coordinates of the pen are per cent of the picture, (0, 0) at the top left. Sprites are drawn at twice the size and
without anti-aliasing; the reduction by two smooths them.
"""

from __future__ import annotations

import io
import math
import random
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageEnhance, ImageFilter

from product_data.catalogue.products import Rgb

Point = tuple[float, float]
SUPERSAMPLING = 2
_SPLINE_STEPS = 7


def mix(colour: Rgb, other: Rgb, share: float) -> Rgb:
    """Mix `colour` with a share (0..1) of `other`."""
    return tuple(round(a + (b - a) * share) for a, b in zip(colour, other, strict=True))  # type: ignore[return-value]


def darker(colour: Rgb, share: float = 0.35) -> Rgb:
    """Mix `colour` with black."""
    return mix(colour, (16, 14, 24), share)


def lighter(colour: Rgb, share: float = 0.4) -> Rgb:
    """Mix `colour` with white."""
    return mix(colour, (255, 255, 255), share)


def luminance(colour: Rgb) -> float:
    """Return the perceived brightness, 0..255."""
    return 0.3 * colour[0] + 0.59 * colour[1] + 0.11 * colour[2]


def contrast(colour: Rgb) -> Rgb:
    """Return an ink that stands out on `colour`: cream on dark, night blue on light."""
    return (252, 248, 236) if luminance(colour) < 140 else (34, 30, 58)


def second_tone(colour: Rgb) -> Rgb:
    """Return the second colour of a pattern on `colour`."""
    return lighter(colour, 0.62) if luminance(colour) < 165 else darker(colour, 0.42)


_STEPS = np.linspace(0, 1, _SPLINE_STEPS, endpoint=False)[None, :, None]
_HERMITE = tuple(
    np.polynomial.polynomial.polyval(_STEPS, c) for c in ((1, 0, -3, 2), (0, 1, -2, 1), (0, 0, 3, -2), (0, 0, -1, 1))
)


def smooth(points: Sequence[Point], *, closed: bool = True) -> list[Point]:
    """Return a centripetal Catmull-Rom curve (Yuksel et al. 2011) through `points`; a repeated point is a corner."""
    array = np.asarray(points, dtype=np.float64)
    if not closed:
        array = np.concatenate([array[:1], array, array[-1:]])
    n = len(array)
    index = (np.arange(n)[:, None] + np.arange(-1, 3)) % n if closed else np.arange(n - 3)[:, None] + np.arange(4)
    chords = np.diff(array[index], axis=1)
    kept = np.any(chords[:, 1] != 0, axis=1)  # a repeated point spans no curve
    corners, chords = array[index][kept], chords[kept]
    span = np.maximum((chords**2).sum(2) ** 0.25, 1e-9)[..., None]
    rate = chords / span
    bend = (chords[:, :-1] + chords[:, 1:]) / (span[:, :-1] + span[:, 1:])
    tangents = (rate[:, :-1] + rate[:, 1:] - bend) * span[:, 1:2]
    straight = span[:, (0, 2)] < 1e-6  # at a corner the curve leaves along its chord
    tangents = np.where(straight, chords[:, 1:2], tangents)
    start, leave, end, arrive = _HERMITE
    curve = start * corners[:, 1:2] + leave * tangents[:, :1] + end * corners[:, 2:3] + arrive * tangents[:, 1:]
    curve = curve.reshape(-1, 2)
    if not closed:
        curve = np.concatenate([curve, array[-1:]])
    return [tuple(p) for p in curve.tolist()]


def mirror(points: Sequence[Point], axis: float = 50.0) -> list[Point]:
    """Return a closed symmetric outline: `points` of the right half, top to bottom, and their mirror image."""
    return [*points, *((2 * axis - x, y) for x, y in reversed(points) if x != axis)]


@lru_cache(maxsize=64)
def _pattern_mask(pattern: str, pixels: int, scale: int) -> Image.Image:
    """Return the mask of a pattern's second colour: (pixels, pixels) of 0..255."""
    y, x = np.mgrid[0:pixels, 0:pixels] * (100.0 / pixels)
    step = (5.0, 6.5, 8.0)[scale]
    if pattern == "striped":
        cover = (y % (2 * step) < 0.8 * step) * 255
    elif pattern == "dotted":
        row = np.floor(y / (1.25 * step))
        dx = (x + (row % 2) * 0.62 * step) % (1.25 * step) - 0.625 * step
        dy = y % (1.25 * step) - 0.625 * step
        cover = (dx**2 + dy**2 < (0.34 * step) ** 2) * 255
    elif pattern == "checked":
        cover = (x % (2 * step) < step) * 115 + (y % (2 * step) < step) * 115
    elif pattern == "zigzag":
        cover = ((y + np.abs(x % (2 * step) - step)) % (1.7 * step) < 0.65 * step) * 255
    else:
        raise ValueError(f"pattern: found {pattern!r}; expected striped, dotted, checked or zigzag")
    return Image.fromarray(cover.astype(np.uint8))


@lru_cache(maxsize=2)
def _weave_mask(pixels: int) -> Image.Image:
    y, x = np.mgrid[0:pixels, 0:pixels]
    grain = np.random.default_rng(7).integers(0, 16, (pixels, pixels))
    return Image.fromarray((((x // 2 + y // 2) % 2) * 14 + grain).astype(np.uint8))


@lru_cache(maxsize=8)
def _shade_masks(form: str) -> tuple[Image.Image, Image.Image]:
    """Return (dark, light) masks of 24 x 24 for a flat, round (cylinder) or ball-like part, lit from the left."""
    v, u = np.mgrid[0:24, 0:24] / 23.0
    if form == "flat":
        dark, light = (0.5 * u + 0.7 * v - 0.45) * 0.3, (0.55 - 0.5 * u - 0.6 * v) * 0.3
    elif form == "round":
        dark, light = 0.5 * np.abs(u - 0.36) ** 1.6 * 1.6, 0.34 * np.exp(-(((u - 0.3) / 0.13) ** 2))
    else:
        radius = np.hypot(u - 0.36, v - 0.32)
        dark, light = 0.62 * np.clip(radius - 0.15, 0, 1) ** 1.4, 0.42 * np.exp(-((radius / 0.2) ** 2))
    images = [Image.fromarray((np.clip(m, 0, 1) * 255).astype(np.uint8)) for m in (dark, light)]
    return images[0], images[1]


class Pen:
    """Draw one sprite: a transparent square of `size` x SUPERSAMPLING pixels.

    Args:
        size: size of the finished picture, in pixels.
        finish: "matt", "gloss" (stronger lights) or "weave" (a fine grain), for all areas that `area` fills.
        scale: coarseness of patterns: 0, 1 or 2.
    """

    def __init__(self, size: int, finish: str = "matt", scale: int = 1) -> None:
        self.pixels = size * SUPERSAMPLING
        self.unit = self.pixels / 100.0
        self.finish = finish
        self.scale = scale
        self.image = Image.new("RGBA", (self.pixels, self.pixels))
        self.draw = ImageDraw.Draw(self.image)

    def _scaled(self, points: Sequence[Point]) -> list[Point]:
        return [(x * self.unit, y * self.unit) for x, y in points]

    def area(
        self,
        points: Sequence[Point],
        colour: Rgb,
        *,
        pattern: str = "plain",
        form: str = "flat",
        curved: bool = True,
        edge: bool = True,
    ) -> None:
        """Fill the closed outline `points`, shade it as `form` ("flat", "round", "ball") and outline it."""
        outline = self._scaled(smooth(points) if curved else points)
        xs, ys = [p[0] for p in outline], [p[1] for p in outline]
        left, top = max(0, math.floor(min(xs))), max(0, math.floor(min(ys)))
        right, bottom = min(self.pixels, math.ceil(max(xs)) + 1), min(self.pixels, math.ceil(max(ys)) + 1)
        extent = (right - left, bottom - top)
        mask = Image.new("L", extent)
        ImageDraw.Draw(mask).polygon([(x - left, y - top) for x, y in outline], fill=255)
        patch = Image.new("RGB", extent, colour)
        box = (left, top, right, bottom)
        if pattern != "plain":
            patch.paste(second_tone(colour), mask=_pattern_mask(pattern, self.pixels, self.scale).crop(box))
        if self.finish == "weave":
            patch.paste((20, 16, 30), mask=_weave_mask(self.pixels).crop(box))
        dark, light = (m.resize(extent, Image.Resampling.BILINEAR) for m in _shade_masks(form))
        patch.paste((18, 12, 40), mask=dark)
        patch.paste((255, 255, 255), mask=ImageChops.add(light, light) if self.finish == "gloss" else light)
        self.image.paste(patch, (left, top), mask)
        if edge:
            self.draw.line([*outline, outline[0]], fill=darker(colour, 0.45), width=max(1, round(0.7 * self.unit)))

    def line(self, points: Sequence[Point], colour: Rgb, width: float = 1.0, *, curved: bool = True) -> None:
        """Draw an open line of `width` per cent through `points`."""
        path = self._scaled(smooth(points, closed=False) if curved else points)
        self.draw.line(path, fill=colour, width=max(1, round(width * self.unit)), joint="curve")

    def stitch(self, points: Sequence[Point], colour: Rgb, width: float = 1.0) -> None:
        """Draw a dashed line: a seam."""
        path = np.asarray(self._scaled(smooth(points, closed=False)))
        steps = np.hypot(*np.diff(path, axis=0).T)
        at = np.concatenate([[0.0], np.cumsum(steps)])
        dash = 2.4 * self.unit
        thickness = max(1, round(width * self.unit))
        for start in np.arange(0.0, at[-1] - 0.4 * dash, 1.6 * dash):
            x, y = (np.interp((start, min(start + dash, at[-1])), at, path[:, k]) for k in (0, 1))
            self.draw.line([(x[0], y[0]), (x[1], y[1])], fill=colour, width=thickness)

    def oval(self, x: float, y: float, rx: float, ry: float, colour: Rgb, *, edge: Rgb | None = None) -> None:
        """Draw a plain ellipse around (x, y)."""
        u = self.unit
        box = ((x - rx) * u, (y - ry) * u, (x + rx) * u, (y + ry) * u)
        self.draw.ellipse(box, fill=colour, outline=edge, width=max(1, round(0.6 * u)))

    def flat(self, points: Sequence[Point], colour: Rgb) -> None:
        """Draw a plain polygon without shade or outline."""
        self.draw.polygon(self._scaled(points), fill=colour)

    def logo(self, name: str, x: float, y: float, radius: float, colour: Rgb) -> None:
        """Draw a small emblem around (x, y)."""
        if name == "circle":
            u = self.unit
            box = ((x - radius) * u, (y - radius) * u, (x + radius) * u, (y + radius) * u)
            self.draw.ellipse(box, outline=colour, width=max(2, round(radius * 0.38 * u)))
            return
        self.flat([(x + px * radius, y + py * radius) for px, py in _logo_outline(name)], colour)

    def marks(self, x: float, y: float, inner: float, outer: float, angles: Sequence[float], colour: Rgb) -> None:
        """Draw short rays around (x, y): the hour marks of a dial."""
        ends = zip(_around(angles, [inner] * len(angles)), _around(angles, [outer] * len(angles)), strict=True)
        for (ax, ay), (bx, by) in ends:
            self.line([(x + ax, y + ay), (x + bx, y + by)], colour, 1.4, curved=False)


def _around(angles: Sequence[float], radii: Sequence[float]) -> list[Point]:
    return [(r * math.sin(math.radians(a)), -r * math.cos(math.radians(a))) for a, r in zip(angles, radii, strict=True)]


@lru_cache(maxsize=16)
def _logo_outline(name: str) -> list[Point]:
    """Return an emblem's outline within the unit circle."""
    if name == "star":
        return _around(range(0, 360, 36), [1.1, 0.45] * 5)
    if name == "heart":
        t = np.linspace(0, 2 * math.pi, 28)
        x, y = 16 * np.sin(t) ** 3, 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
        return list(zip((x / 16).tolist(), (-y / 16).tolist(), strict=True))
    if name == "moon":
        outer = _around(range(30, -211, -20), [1.05] * 13)
        return outer + [(0.525 - (0.525 - x) * 0.38, y) for x, y in reversed(outer)]
    outlines: dict[str, list[Point]] = {
        "triangle": _around((0, 120, 240), (1.15,) * 3),
        "diamond": [(0, -1.15), (0.75, 0), (0, 1.15), (-0.75, 0)],
        "bolt": [(0.3, -1.2), (-0.7, 0.2), (-0.05, 0.2), (-0.3, 1.2), (0.7, -0.25), (0.05, -0.25)],
        "cross": [
            (-0.33, -1), (0.33, -1), (0.33, -0.33), (1, -0.33), (1, 0.33), (0.33, 0.33),
            (0.33, 1), (-0.33, 1), (-0.33, 0.33), (-1, 0.33), (-1, -0.33), (-0.33, -0.33),
        ],
    }  # fmt: skip
    return outlines[name]


# ---------------------------------------------------------------------------------------------------- pictures


def encode(image: Image.Image) -> bytes:
    """Encode as JPEG at quality 90 with full colour resolution; details of a few pixels keep their colour."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90, subsampling=0)
    return buffer.getvalue()


@lru_cache(maxsize=4)
def _studio_light(size: int) -> Image.Image:
    v, u = np.mgrid[0:size, 0:size] / (size - 1)
    return Image.fromarray((np.clip(np.hypot(u - 0.45, v - 0.35) * 95, 0, 255)).astype(np.uint8))


_STUDIO: tuple[Rgb, ...] = (
    (250, 248, 244),
    (238, 242, 246),
    (246, 238, 230),
    (232, 240, 236),
    (244, 236, 242),
    (228, 230, 236),
)


def studio_shot(sprite: Image.Image, rng: random.Random, size: int) -> Image.Image:
    """Return an RGB product shot of (size, size): the sprite on plain light ground with a soft shadow."""
    ground = rng.choice(_STUDIO)
    picture = Image.new("RGB", (size, size), ground)
    picture.paste(darker(ground, 0.25), mask=_studio_light(size))
    product = sprite.reduce(SUPERSAMPLING)
    _cast_shadow(picture, product, (round(0.02 * size), round(0.035 * size)), 0.5)
    picture.paste(product, mask=product)
    return picture


def _cast_shadow(picture: Image.Image, product: Image.Image, offset: tuple[int, int], strength: float) -> None:
    """Darken `picture` softly beside `product`, in place; computed at a quarter of the size."""
    size = picture.width
    small = product.getchannel("A").reduce(4).filter(ImageFilter.GaussianBlur(size / 110))
    shadow = small.resize((size, size), Image.Resampling.BILINEAR).point(lambda v: round(v * strength))
    picture.paste((30, 26, 48), offset, shadow)


@lru_cache(maxsize=24)
def _ground_texture(kind: str, size: int) -> np.ndarray:
    """Return the brightness of a ground, (size, size, 3) float around 1; the photo tints and turns it."""
    rng = np.random.default_rng(len(kind) * 31 + size)
    y, x = np.mgrid[0:size, 0:size] * (100.0 / size)
    fine = rng.normal(0, 1, (size, size))
    if kind == "wood":
        plank = np.floor(x / 17)
        tone = rng.uniform(0.82, 1.1, 8)[plank.astype(int)]
        grain = np.sin(x * 1.9 + 3.2 * np.sin(y / 19 + plank * 2.3)) * 0.06
        level = tone + grain + 0.02 * fine - 0.35 * (x % 17 < 0.9)
    elif kind == "tiles":
        tile = rng.uniform(0.9, 1.08, (6, 6))[(y // 20).astype(int), (x // 20).astype(int)]
        level = tile + 0.015 * fine - 0.28 * ((x % 20 < 1.3) | (y % 20 < 1.3))
    elif kind == "stripes":
        level = np.where((x + y) % 18 < 9, 1.08, 0.8) + 0.02 * fine
    elif kind == "carpet":
        level = 1.0 + 0.13 * fine + 0.12 * (np.abs(np.sin(x / 7) + np.sin(y / 7)) < 0.5)
    elif kind == "bricks":
        row = np.floor(y / 11)
        shifted = x + (row % 2) * 12
        brick = rng.uniform(0.8, 1.1, (10, 6))[row.astype(int) % 10, (shifted // 24).astype(int) % 6]
        level = brick + 0.04 * fine + 0.3 * ((shifted % 24 < 1.4) | (y % 11 < 1.3))
    elif kind == "tablecloth":
        level = 0.78 + 0.17 * (x % 16 < 8) + 0.17 * (y % 16 < 8) + 0.015 * fine
    elif kind == "grass":
        blur = Image.fromarray((fine * 40 + 128).clip(0, 255).astype(np.uint8)).filter(ImageFilter.BoxBlur(1))
        level = 0.95 + (np.asarray(blur, dtype=np.float64) - 128) / 150
    else:
        cloud = Image.fromarray(rng.integers(0, 255, (7, 7), dtype=np.uint8)).resize(
            (size, size), Image.Resampling.BICUBIC
        )
        level = 0.9 + (np.asarray(cloud, dtype=np.float64) - 128) / 700 + 0.015 * fine
    return level[..., None].repeat(3, 2).astype(np.float32)


_GROUNDS: tuple[tuple[str, tuple[Rgb, ...]], ...] = (
    ("wood", ((176, 128, 84), (130, 88, 58), (206, 172, 128))),
    ("tiles", ((186, 206, 214), (216, 206, 190), (120, 150, 160))),
    ("stripes", ((212, 178, 170), (150, 170, 196), (196, 200, 160))),
    ("carpet", ((140, 70, 74), (88, 104, 134), (168, 156, 132), (96, 120, 96))),
    ("bricks", ((166, 92, 74), (150, 140, 134))),
    ("tablecloth", ((214, 116, 112), (126, 156, 200), (150, 186, 140))),
    ("grass", ((98, 142, 70), (126, 150, 84))),
    ("plaster", ((206, 200, 190), (170, 180, 186), (214, 196, 178))),
)


def ground(rng: random.Random, size: int) -> Image.Image:
    """Draw a coloured, textured ground: wood, tiles, stripes, carpet, bricks, tablecloth, grass or plaster."""
    kind, tints = rng.choice(_GROUNDS)
    tint = np.asarray([v + rng.randint(-14, 14) for v in rng.choice(tints)], dtype=np.float32)
    level = np.rot90(_ground_texture(kind, size), rng.randrange(4))
    picture = Image.fromarray((level * tint).clip(0, 255).astype(np.uint8))
    if rng.random() < 0.5:  # a floor that meets a wall
        horizon = rng.randint(size // 5, size // 2)
        wall = (rng.randint(120, 225), rng.randint(120, 225), rng.randint(120, 225))
        picture.paste(mix(wall, (200, 196, 190), 0.5), (0, 0, size, horizon))
        picture.paste(darker(mix(wall, (200, 196, 190), 0.5), 0.3), (0, horizon, size, horizon + max(1, size // 50)))
    return picture


def pose(
    sprite: Image.Image, rng: random.Random, size: int, scale: float, centre: Point, *, turn: float
) -> Image.Image:
    """Turn a sprite by up to `turn` degrees, shear, sometimes mirror and scale it, and centre it at `centre` (0..1).

    Returns:
        RGBA (size, size).
    """
    angle = math.radians(rng.uniform(-turn, turn))
    shear, squash = rng.uniform(-0.12, 0.12), rng.uniform(0.9, 1.08)
    flip = -1.0 if rng.random() < 0.5 else 1.0
    cos, sin = math.cos(angle), math.sin(angle)
    forward = np.array([[cos, -sin], [sin, cos]]) @ np.array([[flip, shear], [0.0, squash]]) * scale
    back = np.linalg.inv(forward) * (sprite.width / size)
    pixels = np.array(centre) * size
    offset = np.array([sprite.width / 2, sprite.height / 2]) - back @ pixels
    matrix = (back[0, 0], back[0, 1], offset[0], back[1, 0], back[1, 1], offset[1])
    return sprite.transform((size, size), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)


def covered_share(product: Image.Image, other: Image.Image) -> float:
    """Return the share of the product's pixels that an object in front of it hides."""
    mask = np.asarray(product.getchannel("A")) > 127
    return float((mask & (np.asarray(other.getchannel("A")) > 127)).sum() / max(1, mask.sum()))


def relight(picture: Image.Image, rng: random.Random) -> Image.Image:
    """Change the light of a picture: brightness, contrast, colour temperature and a fall-off across it."""
    size = picture.width
    warmth, bright = rng.uniform(-0.09, 0.09), rng.uniform(0.78, 1.16)
    angle, fall = rng.uniform(0, 2 * math.pi), rng.uniform(0.0, 0.28)
    v, u = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j].astype(np.float32)
    field = bright * (1 + fall * (u * math.cos(angle) + v * math.sin(angle)))
    tint = np.array([1 + warmth, 1.0, 1 - warmth], dtype=np.float32)
    lit = (np.asarray(picture, dtype=np.float32) * (field[..., None] * tint)).clip(0, 255).astype(np.uint8)
    return ImageEnhance.Contrast(Image.fromarray(lit)).enhance(rng.uniform(0.86, 1.12))


def street_photo(
    sprite: Image.Image, distractors: Sequence[Image.Image], rng: random.Random, size: int
) -> tuple[Image.Image, list[int], Image.Image]:
    """Draw the product of `sprite` among other objects on cluttered ground.

    Args:
        sprite: RGBA, `size` x SUPERSAMPLING square.
        distractors: sprites of other objects, (size, size); the last may be in front and hide at most 6 % of the
            product.
        rng: draws pose, light and ground.
        size: size of the photo, in pixels.

    Returns:
        the RGB photo; the box [x0, y0, x1, y1] of the product in pixels, hidden parts included, x1 and y1 exclusive;
        and the mask of the product ("L", 255 inside it).
    """
    picture = ground(rng, size)
    scale = rng.uniform(0.48, 0.73)
    free = 0.5 * (1 - 1.3 * scale)
    centre = (0.5 + rng.uniform(-free, free), 0.5 + rng.uniform(-free, free))
    large = pose(sprite, rng, size * SUPERSAMPLING, scale, centre, turn=24)
    product = large.reduce(SUPERSAMPLING)
    layers = [_beside(other, centre, rng, size) for other in distractors]
    front = layers[-1] if layers and covered_share(product, layers[-1]) <= 0.06 else None
    for layer in layers:
        if layer is not front:
            _put(picture, layer)
    _put(picture, product)
    if front is not None:
        _put(picture, front)
    mask = product.getchannel("A").point(lambda v: 255 if v > 60 else 0)
    box = mask.getbbox()
    if box is None:
        raise ValueError("sprite: found no visible pixel; expected a drawn product")
    return relight(picture, rng), list(box), mask


def _put(picture: Image.Image, layer: Image.Image) -> None:
    size = picture.width
    _cast_shadow(picture, layer, (round(0.025 * size), round(0.03 * size)), 0.42)
    picture.paste(layer, mask=layer)


def _beside(other: Image.Image, centre: Point, rng: random.Random, size: int) -> Image.Image:
    """Pose another object somewhere around the product's centre."""
    angle, far = rng.uniform(0, 2 * math.pi), rng.uniform(0.42, 0.62)
    where = (centre[0] + far * math.cos(angle), centre[1] + far * math.sin(angle))
    where = (min(1.0, max(0.0, where[0])), min(1.0, max(0.0, where[1])))
    return pose(other, rng, size, rng.uniform(0.34, 0.52), where, turn=40)
