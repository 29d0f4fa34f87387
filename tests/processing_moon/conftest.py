"""Processors over tiny random bases."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

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
