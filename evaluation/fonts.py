"""A font that has the characters of a text, for what is drawn: titles come in every script."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import ImageFont

Font = Callable[[int], Any]
"""Size in pixels → a font of Pillow."""
# Looked for in the system's font folders, in this order.
_SYSTEM_FONTS = ("DejaVuSans.ttf", "NotoSans-Regular.ttf", "NotoSansCJK-Regular.ttc", "Arial Unicode.ttf", "msyh.ttc")


def font_for(text: str, chosen: str | Path | None = None) -> tuple[Font, int]:
    """A font for a text, and how many of the text's different characters it lacks.

    Args:
        text: what will be drawn.
        chosen (`str`, `Path` or `None`): a TrueType or OpenType file. Default: Pillow's own, which has English letters only;
            where it lacks characters of the text, the one of a few common fonts of the system that has most of them.

    Raises:
        OSError: a font file that cannot be read.
    """
    if chosen is not None:
        fonts: list[Font] = [lambda size: ImageFont.truetype(str(chosen), size)]
    else:
        fonts = [ImageFont.load_default, *(_system_font(name) for name in _SYSTEM_FONTS)]
    best: tuple[Font, int] | None = None
    for font in fonts:
        try:
            lacking = _lacking(text, font(12))
        except OSError:  # a font that this system does not have
            if chosen is not None:
                raise
            continue
        if best is None or lacking < best[1]:
            best = font, lacking
        if not lacking:
            break
    assert best is not None  # Pillow's own is always there
    return best


def _system_font(name: str) -> Font:
    return lambda size: ImageFont.truetype(name, size)


def _lacking(text: str, font: Any) -> int:
    """How many different characters of the text have no glyph: those drawn as what is no character is drawn."""
    absent = bytes(font.getmask("\uffff"))
    characters = [character for character in sorted(set(text)) if character.isprintable() and not character.isspace()]
    return sum(bytes(font.getmask(character)) == absent for character in characters)
