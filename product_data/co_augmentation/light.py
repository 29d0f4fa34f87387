"""Light a cut-out product differently, without changing the name of its colour.

Shape suffixes: H height, W width, N pixels, C names of colours.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

# The eleven basic colour terms (Berlin and Kay 1969), each by typical values in sRGB.
_NAMES: tuple[tuple[str, tuple[int, int, int]], ...] = (
    ("black", (20, 20, 22)),
    ("grey", (128, 128, 128)),
    ("white", (245, 245, 245)),
    ("red", (200, 30, 35)),
    ("orange", (240, 130, 30)),
    ("brown", (110, 65, 40)),
    ("yellow", (240, 215, 50)),
    ("green", (45, 135, 60)),
    ("green", (40, 140, 130)),
    ("blue", (40, 80, 190)),
    ("blue", (110, 165, 225)),
    ("purple", (120, 60, 150)),
    ("pink", (240, 150, 185)),
)
_SAMPLE = 4096  # pixels
_HALVINGS = 3  # of the change, until the colour keeps its name


def lab_of(pixel_N3: np.ndarray) -> np.ndarray:
    """Return sRGB pixels in CIELAB (D65).

    Shapes: (N, 3) from 0 to 255 → (N, 3) float32.
    """
    linear = np.asarray(pixel_N3, dtype=np.float32) / 255
    linear = np.where(linear <= 0.04045, linear / 12.92, ((linear + 0.055) / 1.055) ** 2.4)
    matrix = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = linear @ matrix.T / np.array([0.9505, 1.0, 1.089])
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    lab = np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], axis=1)
    return lab.astype(np.float32)


def colour_name(product: Image.Image) -> str:
    """Return the basic colour term that most pixels of a product are nearest to (CIELAB).

    Args:
        product: RGBA; only pixels with an alpha above one half count.
    """
    return _name_of(_visible(product))


def mean_colour(product: Image.Image) -> tuple[int, int, int]:
    """Return the mean colour of a product's visible pixels."""
    red, green, blue = _visible(product).mean(axis=0).round().astype(int).tolist()
    return red, green, blue


def _visible(product: Image.Image) -> np.ndarray:
    rgba_HW4 = np.asarray(product)
    pixel_N3 = rgba_HW4[rgba_HW4[..., 3] > 127][:, :3]
    pixel_N3 = pixel_N3 if len(pixel_N3) else rgba_HW4.reshape(-1, 4)[:, :3]
    return pixel_N3[:: max(1, len(pixel_N3) // _SAMPLE)].astype(np.float32)


def _name_of(pixel_N3: np.ndarray) -> str:
    typical_C3 = lab_of(np.array([colour for _, colour in _NAMES], dtype=np.float32))
    lab_N3 = lab_of(pixel_N3)
    distance_NC = np.linalg.norm(lab_N3[:, None] - typical_C3[None], axis=2)
    names = np.array([name for name, _ in _NAMES])[distance_NC.argmin(axis=1)]
    values, counts = np.unique(names, return_counts=True)
    return str(values[counts.argmax()])


def relit(product: Image.Image, rng: np.random.Generator) -> tuple[Image.Image, str]:
    """Return a product in other light, and what was changed.

    `pixel' = brightness · tint · pixel^gamma` for levels in [0, 1], with a brightness of .8 to 1.2, a gamma of .85 to
    1.18 and red against blue by up to ± 5 %. If the name of the product's colour changes, the change is halved, up to
    three times, and then left out. Our design (precedent: the colour jitter of SimCLR, arXiv 2002.05709, without its
    changes of hue, which would contradict titles).

    Args:
        product: RGBA, which is not changed.
        rng: the generator of all random choices.
    """
    bright, gamma, warm = rng.uniform(-0.2, 0.2), rng.uniform(-0.17, 0.17), rng.uniform(-0.05, 0.05)
    name = colour_name(product)
    rgba_HW4 = np.asarray(product)
    for halving in range(_HALVINGS + 1):
        share = 0.5**halving
        tint_3 = (1 + share * bright) * np.array([1 + share * warm, 1, 1 - share * warm])
        lit_HW3 = (rgba_HW4[..., :3] / 255.0) ** np.exp(share * gamma) * tint_3
        lit = Image.fromarray(
            np.dstack([(lit_HW3 * 255).clip(0, 255).round().astype(np.uint8), rgba_HW4[..., 3]]), "RGBA"
        )
        if colour_name(lit) == name:
            return (
                lit,
                f"brightness {1 + share * bright:.2f}, gamma {np.exp(share * gamma):.2f}, warmth {share * warm:+.2f}",
            )
    return product, "light unchanged"
