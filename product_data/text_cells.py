"""Find and remove what readers of a text do not see: HTML, lone surrogates and blank characters."""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Iterator, Mapping
from html.entities import html5
from typing import Any

import numpy as np

_HTML = re.compile(
    r"<(?P<unread>script|style)\b[^<>]*>.*?</(?P=unread)\s*>|"
    r"</?(?P<tag>a|abbr|b|big|br|center|code|del|div|em|font|h[1-6]|hr|i|img|ins|label|li|mark|ol|p|pre|q|s|script|small|span|"
    r"strike|strong|style|su[bp]|table|tbody|td|th|thead|tr|tt|u|ul)(?:\s[^<>]*)?/?>|<!--(?:.*?-->)?|"
    r"&(?:(?P<name>[a-z][a-z0-9]*)|#[0-9]+|#x[0-9a-f]+);",
    re.IGNORECASE | re.DOTALL,
)
_INSIDE_A_LINE = re.compile("a|abbr|b|big|code|del|em|font|i|ins|label|mark|q|s|small|span|strike|strong|su[bp]|tt|u")
_SURROGATE = re.compile("[\ud800-\udfff]")
_BLANK_CATEGORIES = frozenset(("Cc", "Cf", "Zs", "Zl", "Zp"))
# Fillers, joiners, variation selectors and the empty braille cell, which Unicode counts as letters, marks or symbols.
_BLANK = frozenset("\u034f\u115f\u1160\u2800\u3164\uffa0" + "".join(map(chr, range(0xFE00, 0xFE10))))
REPLACEMENT = "\ufffd"


def has_visible_text(text: str) -> bool:
    """Return whether a text has a visible character, other than spaces, controls and zero-width characters."""
    return any(
        unicodedata.category(character) not in _BLANK_CATEGORIES and character not in _BLANK for character in text
    )


def html_spans(text: str) -> Iterator[tuple[int, int]]:
    """Yield start and end of each HTML tag, comment and entity of a text; `<New>` and `&shop;` are none of these."""
    if "<" in text or "&" in text:
        for match in _HTML.finditer(text):
            if _is_html(match):
                yield match.span()


def _is_html(match: re.Match[str]) -> bool:
    return not match["name"] or f"{match['name']};" in html5


def html_in(text: str) -> str:
    """Return the first HTML tag, comment or entity of a text, or ""."""
    return next((text[start:end] for start, end in html_spans(text)), "")


def strip_html(text: str) -> str:
    """Remove HTML from a text: "Home &amp; Living<br>new" → "Home & Living new".

    Entities become their characters. Tags and comments are removed, scripts and styles with their contents. A tag that
    starts a new line becomes a space, a tag inside a line (`<b>`) nothing. The removal is repeated until no HTML is
    left, because feeds are often escaped twice ("&amp;amp;"). Our design.

    Args:
        text: any text; a text without HTML is returned unchanged.
    """
    while html_in(text):
        text = " ".join(_HTML.sub(_plain, text).split())
    return text if has_visible_text(text) else ""


def _plain(match: re.Match[str]) -> str:
    if match[0].startswith("&"):
        return html.unescape(match[0]) if _is_html(match) else match[0]
    return "" if _INSIDE_A_LINE.fullmatch((match["tag"] or "").lower()) else " "


def lone_surrogate(value: Any) -> str:
    """Return the first lone surrogate of a cell, with up to 20 characters before it, or "".

    Args:
        value: a text, or a list, array or mapping of cell values.
    """
    if isinstance(value, str):
        if value.isascii() or (match := _SURROGATE.search(value)) is None:
            return ""
        return value[max(0, match.start() - 20) : match.end()]
    if isinstance(value, Mapping):
        return next((half for pair in value.items() for part in pair if (half := lone_surrogate(part))), "")
    if isinstance(value, list | tuple) or (isinstance(value, np.ndarray) and value.dtype.kind in "OU"):
        return next((half for part in value if (half := lone_surrogate(part))), "")
    return ""


def mended(value: Any) -> Any:
    """Return a cell with the replacement character (U+FFFD) in place of each lone surrogate."""
    if isinstance(value, str):
        return _SURROGATE.sub(REPLACEMENT, value)
    if isinstance(value, Mapping):
        return {mended(key): mended(part) for key, part in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [mended(part) for part in value]
    return value
