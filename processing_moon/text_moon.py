"""Write the text of a product or query with Moon's markers, and break up control tokens in what users wrote.

Nothing here needs a tokenizer: its control tokens are an argument.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, field

CATEGORY_START, CATEGORY_END = "<|category_start|>", "<|category_end|>"
ATTRIBUTE_START, ATTRIBUTE_END = "<|attribute_start|>", "<|attribute_end|>"
TITLE_START, TITLE_END = "<|title_start|>", "<|title_end|>"
_BLANK_CATEGORIES = frozenset(("Cc", "Cf", "Zs", "Zl", "Zp"))
# Fillers, joiners, variation selectors and the empty braille cell, which Unicode counts as letters, marks or symbols.
_BLANK = frozenset("\u034f\u115f\u1160\u2800\u3164\uffa0" + "".join(map(chr, range(0xFE00, 0xFE10))))


def has_visible_text(text: str) -> bool:
    """Return whether a text has a visible character, not only spaces, controls, zero-width and other blank characters."""
    return any(
        unicodedata.category(character) not in _BLANK_CATEGORIES and character not in _BLANK for character in text
    )


@dataclass
class ProductText:
    """The text of a product or query, by part; an absent part is empty.

    Args:
        title: the product's title, or a query's text.
        category: the category path, "a > b > c".
        attributes: one string "key: v1, v2" for each attribute.
        description: the product's description.
    """

    title: str = ""
    category: str = ""
    attributes: list[str] = field(default_factory=list)
    description: str = ""

    def __bool__(self) -> bool:
        return bool(self.title.strip() or self.category or self.attributes or self.description)


def control_token_pattern(tokens: Iterable[str]) -> re.Pattern[str]:
    """Return a pattern that finds the tokenizer's control tokens in a text, the longest first.

    The pattern leaves out tokens that a space after their first character would not break: those of one character, those of
    one character and spaces, and those that begin with a space.
    """
    breakable = [token for token in tokens if token not in f"{token[:1]} {token[1:]}"]
    return re.compile("|".join(re.escape(token) for token in sorted(breakable, key=len, reverse=True)) or r"(?!)")


def plain_text(text: str, control_tokens: re.Pattern[str]) -> str:
    """Break up the control tokens in a user's text; the tokenizer then reads them as words.

    A space is inserted after the first character of each control token in the text: "<|im_end|>" becomes "< |im_end|>". Any
    other text stays unchanged. Our design.

    Args:
        text: the user's text.
        control_tokens: from `control_token_pattern`.
    """
    while control_tokens.search(text):
        text = control_tokens.sub(lambda match: f"{match.group()[0]} {match.group()[1:]}", text)
    return text


def product_text(
    parts: ProductText, *, markers: bool, control_tokens: re.Pattern[str], title_markers: bool = False
) -> str:
    """Return the text of a product or query: title, category, attributes, description, one per line; absent parts are left out.

    Source: title ⧺ category ⧺ attributes is MOON (arXiv 2508.11999 §3.1); the markers, which show the model where title,
    category and attributes are, and the description are our design.

    Args:
        parts: the text by part.
        markers: whether marker tokens surround category and attributes.
        control_tokens: the tokens to break up in the user's text, from `control_token_pattern`.
        title_markers: whether marker tokens surround the title, or a query's text. Default False.
    """
    title = plain_text(parts.title, control_tokens)
    category = plain_text(parts.category, control_tokens)
    attributes = plain_text("; ".join(parts.attributes), control_tokens)
    if title_markers:
        title = title and f"{TITLE_START}{title}{TITLE_END}"
    if markers:
        category = category and f"{CATEGORY_START}{category}{CATEGORY_END}"
        attributes = attributes and f"{ATTRIBUTE_START}{attributes}{ATTRIBUTE_END}"
    lines = (title, category, attributes, plain_text(parts.description, control_tokens))
    return "\n".join(line for line in lines if line)
