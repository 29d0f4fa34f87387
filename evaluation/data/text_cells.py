"""What the texts of a table may hold that nobody sees: HTML, halves of signs, and characters without ink."""

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
    """Whether a text has a character that can be seen: not only spaces, controls, zero-width and other blank ones."""
    return any(unicodedata.category(sign) not in _BLANK_CATEGORIES and sign not in _BLANK for sign in text)


def html_spans(text: str) -> Iterator[tuple[int, int]]:
    """Where tags, comments and entities of HTML stand in a text; `<New>` is no tag, and `&shop;` no entity."""
    if "<" in text or "&" in text:
        for match in _HTML.finditer(text):
            if _is_html(match):
                yield match.span()


def _is_html(match: re.Match[str]) -> bool:
    return not match["name"] or f"{match['name']};" in html5


def html_in(text: str) -> str:
    """The first tag or entity of a text, or nothing."""
    return next((text[start:end] for start, end in html_spans(text)), "")


def strip_html(text: str) -> str:
    """A text without HTML: "Home &amp; Living<br>new" → "Home & Living new".

    Entities become their characters, tags and comments go, scripts and styles with their contents. A tag that begins a line
    of its own leaves a space, one inside of a line (`<b>`) nothing. It is repeated until no HTML is left, because feeds are
    often escaped twice ("&amp;amp;"). Our design.

    Args:
        text: any text; one without HTML is returned as it is.
    """
    while html_in(text):
        text = " ".join(_HTML.sub(_plain, text).split())
    return text if has_visible_text(text) else ""


def _plain(match: re.Match[str]) -> str:
    if match[0].startswith("&"):
        return html.unescape(match[0]) if _is_html(match) else match[0]
    return "" if _INSIDE_A_LINE.fullmatch((match["tag"] or "").lower()) else " "


def lone_surrogate(value: Any) -> str:
    """The first half of a surrogate pair that stands alone in a cell, with the characters before it, or nothing.

    Args:
        value: a text, or a list, array or mapping of what cells hold.
    """
    if isinstance(value, str):
        if value.isascii() or (found := _SURROGATE.search(value)) is None:
            return ""
        return value[max(0, found.start() - 20) : found.end()]
    if isinstance(value, Mapping):
        return next((half for pair in value.items() for part in pair if (half := lone_surrogate(part))), "")
    if isinstance(value, list | tuple) or (isinstance(value, np.ndarray) and value.dtype.kind in "OU"):
        return next((half for part in value if (half := lone_surrogate(part))), "")
    return ""


def mended(value: Any) -> Any:
    """A cell with the replacement character (U+FFFD) in place of every lone surrogate."""
    if isinstance(value, str):
        return _SURROGATE.sub(REPLACEMENT, value)
    if isinstance(value, Mapping):
        return {mended(key): mended(part) for key, part in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [mended(part) for part in value]
    return value
