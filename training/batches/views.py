"""Alter a picture of a product so that it can be used as a query photo.

Our design, for data sets without photo queries (precedent: the view pairs of SimCLR, arXiv 2002.05709). All random
choices come from the given generator, so a view is a function of its seed.
"""

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

MAX_SIDE = 512  # pixels; larger pictures are reduced first, because the model reduces them, too


def altered_view(image: Image.Image, rng: np.random.Generator, geometry: bool = True) -> Image.Image:
    """Return a picture that is randomly cropped, mirrored, rotated or placed on a plain background, in other light.

    Args:
        image: an RGB picture, which is not changed.
        rng: the generator of all random choices.
        geometry: whether to change more than the light. If False, boxes in pixels remain valid.

    Shapes:
        any size → any size up to MAX_SIDE on the longer side (unchanged without geometry).
    """
    view = image.copy()
    if geometry:
        view.thumbnail((MAX_SIDE, MAX_SIDE))
        if rng.random() < 0.3:
            view = _tilted(view, rng)
        view = _cut(view, rng)
        if rng.random() < 0.5:
            view = ImageOps.mirror(view)
        if rng.random() < 0.4:
            view = _on_plain_ground(view, rng)
    for enhancer in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        view = enhancer(view).enhance(rng.uniform(0.7, 1.3))
    return view


def _cut(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Crop a random rectangle of 50 to 100 % of the area, with 3/4 to 4/3 of the original aspect ratio."""
    area, shape = rng.uniform(0.5, 1.0), np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
    width = max(1, min(image.width, round(image.width * float(np.sqrt(area * shape)))))
    height = max(1, min(image.height, round(image.height * float(np.sqrt(area / shape)))))
    left = int(rng.integers(0, image.width - width + 1))
    top = int(rng.integers(0, image.height - height + 1))
    return image.crop((left, top, left + width, top + height))


def _tilted(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Rotate by up to 15 degrees, and fill the corners with the colour of the picture's corner."""
    angle = rng.uniform(-15, 15)
    return image.rotate(angle, resample=Image.Resampling.BILINEAR, fillcolor=image.getpixel((0, 0)))


def _on_plain_ground(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Reduce to 50 to 90 % and place at a random position on a random colour."""
    ground = Image.new("RGB", image.size, tuple(int(value) for value in rng.integers(0, 256, size=3)))
    scale = rng.uniform(0.5, 0.9)
    small = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))
    left = int(rng.integers(0, ground.width - small.width + 1))
    top = int(rng.integers(0, ground.height - small.height + 1))
    ground.paste(small, (left, top))
    return ground
