"""Normalise the words of a text for comparison; labels, rewards and the facts of titles all use this normaliser.

Two texts have the same words after NFKC and case folding, without punctuation, apostrophes and a plural's "s", and with
number words as digits. Our design (precedent: the normalisation of answers before F1 in SQuAD, arXiv 1606.05250).

Relations: `product_data.synonyms` exchanges words that mean the same.
"""

import re
import unicodedata
from functools import lru_cache

Words = tuple[str, ...]
# In scripts that are written without spaces each character is a word.
_UNSPACED = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"\d+(?:\.\d+)?|[{_UNSPACED}]|[^\W\d_{_UNSPACED}]+")
_ONE_CHARACTER = re.compile(rf"[^\W_{_UNSPACED}]")
_APOSTROPHES = re.compile(r"['’`´]")
_DECIMAL_COMMA = re.compile(r"(?<=\d),(?=\d)")
_NUMBERS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
_DIGITS = {word: str(number) for number, word in enumerate(_NUMBERS, start=1)}
_TIMES = re.compile(r"(?<=\d)\s*×\s*(?=\d)")


@lru_cache(maxsize=65536)
def words(text: str) -> Words:
    """Return the words of a text in the form in which they are compared; the form is not meant for readers.

    Numbers are separated from letters ("50x50cm" as "50 x 50 cm"). In scripts without spaces each character is a word.

    Args:
        text: any string.

    Returns:
        the words, empty only for a text of white space; symbols are words if the text has no others.
    """
    plain = _APOSTROPHES.sub("", unicodedata.normalize("NFKC", text).casefold())
    parts = _WORD.findall(_TIMES.sub("x", _DECIMAL_COMMA.sub(".", plain))) or text.split()
    return tuple(_DIGITS.get(word) or _singular(word) for word in parts)


def is_single_character(phrase: Words) -> bool:
    """Return whether a phrase is a single letter or digit ("m", "5"), which many texts contain by accident."""
    return len(phrase) == 1 and bool(_ONE_CHARACTER.fullmatch(phrase[0]))


def _singular(word: str) -> str:
    """Return a word without the ending of a regular plural; a rough rule, applied to both sides of a comparison."""
    if len(word) <= 3 or word.endswith("ss"):
        return word
    if word.endswith("s"):
        word = word[:-2] if word.endswith(("sses", "xes", "ches", "shes")) else word[:-1]
    return word[:-2] + "y" if len(word) > 3 and word.endswith("ie") else word  # hoodies, hoodie, hoody
