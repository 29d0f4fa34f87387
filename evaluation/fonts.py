"""Find a font that has the characters of a text, and describe characters that no font has in words."""

from __future__ import annotations

import functools
import itertools
import os
import sys
import unicodedata
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any

from PIL import ImageFont

Font = Callable[[int], Any]
"""Size in pixels → a font of Pillow."""
# These are tried first, in this order.
_SYSTEM_FONTS = ("DejaVuSans.ttf", "NotoSans-Regular.ttf", "NotoSansCJK-Regular.ttc", "Arial Unicode.ttf", "msyh.ttc")
_FOLDERS = (
    "/usr/share/fonts",
    "/usr/local/share/fonts",
    "~/.fonts",
    "~/.local/share/fonts",
    "/System/Library/Fonts",
    "/Library/Fonts",
    "~/Library/Fonts",
    os.path.join(os.environ.get("WINDIR", "C:/Windows"), "Fonts"),
)
_MOST_FILES = 3000
_SCRIPTS = {"CJK": "Chinese", "HANGUL": "Korean", "HIRAGANA": "Japanese", "KATAKANA": "Japanese"}
_reported: set[str] = set()  # scripts


def font_for(text: str, chosen: str | Path | None = None) -> tuple[Font, frozenset[str]]:
    """Find a font for a text, and return it with the characters of the text that it lacks.

    A process reports the lacking characters once, on standard error; draw the result of `readable` instead of them.

    Args:
        text: the text to draw.
        chosen (`str`, `Path` or `None`): a TrueType or OpenType file. Default `None`: Pillow's font, which has English
            letters only; if it lacks characters of the text, a common font of the system, or else the font of the
            system that has most of them.

    Raises:
        OSError: a font file that cannot be read.
    """
    characters = frozenset(character for character in text if _is_drawn(character))
    if chosen is not None:
        font = _file_font(str(chosen))
        lacking = _lacking(characters, font(12))
    else:
        font, lacking = _best_font(characters)
    _report(lacking)
    return font, lacking


def readable(text: str, lacking: Collection[str]) -> str:
    """Put the characters that a font lacks into words: "[fire]" for an emoji, "[Thai: 5 letters]" for letters.

    Args:
        text: the text to draw.
        lacking: the lacking characters, from `font_for`.
    """
    kept = [character for place, character in enumerate(text) if not _is_invisible(text, place)]
    parts = []
    for name, run in itertools.groupby(kept, key=lambda character: _script(character) if character in lacking else ""):
        characters = list(run)
        if not name:
            parts.append("".join(characters))
        elif name == "symbol":
            parts += [f"[{unicodedata.name(symbol, f'U+{ord(symbol):04X}').lower()}]" for symbol in characters]
        else:
            parts.append(f"[{name}: {len(characters)} letter{'s' if len(characters) > 1 else ''}]")
    return "".join(parts)


@functools.lru_cache(maxsize=32)
def _best_font(characters: frozenset[str]) -> tuple[Font, frozenset[str]]:
    best: tuple[Font, frozenset[str]] = ImageFont.load_default, _lacking(characters, ImageFont.load_default(12))
    for name in itertools.chain(_SYSTEM_FONTS, map(str, _system_files())):
        if not best[1]:
            break
        font = _file_font(name)
        try:
            # The whole text is only checked if the font has some of the characters that are still lacking.
            if len(_lacking(best[1], font(12))) < len(best[1]):
                best = min(best, (font, _lacking(characters, font(12))), key=lambda pair: len(pair[1]))
        except (OSError, ValueError):  # not on this system, or a font of pictures in one size
            continue
    return best


def _file_font(name: str) -> Font:
    return lambda size: ImageFont.truetype(name, size)


def _system_files() -> list[Path]:
    """Return the font files of the system, plain styles first."""
    folders = (Path(folder).expanduser() for folder in _FOLDERS)
    found = (
        path
        for folder in folders
        if folder.is_dir()
        for path in folder.rglob("*")
        if path.suffix.lower() in (".ttf", ".otf", ".ttc")
    )
    files = list(itertools.islice(found, _MOST_FILES))
    return sorted(files, key=lambda path: ("Regular" not in path.stem, len(path.stem), str(path)))


def _lacking(characters: Iterable[str], font: Any) -> frozenset[str]:
    """Return the characters without a glyph, which look like a non-character when drawn one by one and without shaping.

    With shaping, a mark that the font lacks would get a dotted circle, which looks different.
    """
    font = font.font_variant(layout_engine=ImageFont.Layout.BASIC)
    absent = bytes(font.getmask("\uffff"))
    return frozenset(character for character in characters if bytes(font.getmask(character)) == absent)


def _is_drawn(character: str) -> bool:
    return character.isprintable() and not character.isspace() and not _is_selector(character)


def _is_selector(character: str) -> bool:
    return "\ufe00" <= character <= "\ufe0f"


def _is_invisible(text: str, place: int) -> bool:
    """Return whether a character only shapes its neighbours; beside an emoji it would be drawn as a box."""
    if _is_selector(text[place]):
        return True
    if unicodedata.category(text[place]) != "Cf":
        return False
    return not (0 < place < len(text) - 1 and text[place - 1].isalpha() and text[place + 1].isalpha())


def _script(character: str) -> str:
    """Return the script of a letter, or "symbol"."""
    if unicodedata.category(character)[0] not in "LMN":
        return "symbol"
    word = unicodedata.name(character, "unknown").split()[0].split("-")[0]
    return _SCRIPTS.get(word, word.capitalize())


def _report(lacking: frozenset[str]) -> None:
    scripts = sorted({_script(character) for character in lacking} - _reported)
    if scripts:
        _reported.update(scripts)
        names = ", ".join("symbols such as emoji" if script == "symbol" else script for script in scripts)
        print(
            f"no font of this system has all characters of the drawn texts ({names}); missing ones are put into words, "
            "such as [fire] or [Thai: 5 letters]. Fonts such as Noto Sans, Noto Sans CJK and Noto Sans Thai have them",
            file=sys.stderr,
        )
