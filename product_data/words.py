"""The words of a text in the form in which they are compared: the one normaliser of labels, rewards and facts of titles.

Two texts have the same words after NFKC and case folding, without punctuation, apostrophes and a plural's "s", and with number
words as digits. Our design (precedent: the normalisation of answers before F1 in SQuAD, arXiv 1606.05250).

Relations: `product_data.synonyms` exchanges words that mean the same.
"""

import re
import unicodedata
from functools import lru_cache

Words = tuple[str, ...]
# Scripts that are written without spaces count by characters.
_UNSPACED = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"\d+(?:\.\d+)?|[{_UNSPACED}]|[^\W\d_{_UNSPACED}]+")
_ONE_SIGN = re.compile(rf"[^\W_{_UNSPACED}]")
_APOSTROPHES = re.compile(r"['’`´]")
_DECIMAL_COMMA = re.compile(r"(?<=\d),(?=\d)")
_NUMBERS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
_DIGITS = {word: str(number) for number, word in enumerate(_NUMBERS, start=1)}
_TIMES = re.compile(r"(?<=\d)\s*×\s*(?=\d)")


@lru_cache(maxsize=65536)
def words(text: str) -> Words:
    """Return the words of a text in the form in which they are compared, which is not meant to be read.

    Numbers and letters part ("50x50cm" as "50 x 50 cm"), and scripts without spaces count by characters.

    Args:
        text: any string.

    Returns:
        nothing only for a text of white space; symbols are words where there are no others.
    """
    plain = _APOSTROPHES.sub("", unicodedata.normalize("NFKC", text).casefold())
    found = _WORD.findall(_TIMES.sub("x", _DECIMAL_COMMA.sub(".", plain))) or text.split()
    return tuple(_DIGITS.get(word) or _singular(word) for word in found)


def is_one_sign(said: Words) -> bool:
    """Return whether words are a lone letter or digit ("m", "5"), which stands in many a text by accident."""
    return len(said) == 1 and bool(_ONE_SIGN.fullmatch(said[0]))


def _singular(word: str) -> str:
    """A word without a regular plural's ending; rough, since both sides of a comparison go through it."""
    if len(word) <= 3 or word.endswith("ss"):
        return word
    if word.endswith("s"):
        word = word[:-2] if word.endswith(("sses", "xes", "ches", "shes")) else word[:-1]
    return word[:-2] + "y" if len(word) > 3 and word.endswith("ie") else word  # hoodies, hoodie, hoody
