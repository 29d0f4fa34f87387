"""Processors over tiny random bases, and small pictures whose pixels are known."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from processing_moon import MoonProcessor


@pytest.fixture(scope="session")
def make_processor(tiny_base: Callable[..., Path]) -> Callable[..., MoonProcessor]:
    """`make_processor(readout="emb")`: a processor over a tiny base; the same call gives the same object."""
    made: dict[tuple, MoonProcessor] = {}

    def get(backbone: str = "qwen3_vl", **settings: Any) -> MoonProcessor:
        key = (backbone, *sorted((name, str(value)) for name, value in settings.items()))
        if key not in made:
            made[key] = MoonProcessor.from_base(tiny_base(backbone), **settings)
        return made[key]

    return get


@pytest.fixture(scope="session")
def processor(make_processor: Callable[..., MoonProcessor]) -> MoonProcessor:
    return make_processor()


@pytest.fixture(scope="session")
def noise() -> Callable[..., Image.Image]:
    """`noise(width, height, seed)`: a picture of random pixels, so that any change of it shows."""

    def make(width: int = 96, height: int = 64, seed: int = 0) -> Image.Image:
        pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
        return Image.fromarray(pixels)

    return make


@pytest.fixture(scope="session")
def encoded() -> Callable[..., bytes]:
    """`encoded(image, "PNG")`: the bytes of a file."""

    def encode(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
        file = io.BytesIO()
        image.save(file, kind, **options)
        return file.getvalue()

    return encode
