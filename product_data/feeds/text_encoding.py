"""Detect the encoding of a feed: UTF-8, UTF-16 and UTF-32 by their marks, Windows-1252 where bytes are not UTF-8."""

from __future__ import annotations

import codecs
import re
from dataclasses import dataclass
from pathlib import Path

_CHUNK = 2**20
_SAMPLE = 4096
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig", "UTF-8 with byte order mark"),
    (codecs.BOM_UTF32_LE, "utf-32", "UTF-32 (little-endian)"),
    (codecs.BOM_UTF32_BE, "utf-32", "UTF-32 (big-endian)"),
    (codecs.BOM_UTF16_LE, "utf-16", "UTF-16 (little-endian)"),
    (codecs.BOM_UTF16_BE, "utf-16", "UTF-16 (big-endian)"),
)
_UNDECODABLE = re.compile("[\udc80-\udcff]")
_DAMAGED = 10  # valid characters for each invalid byte, from which a file counts as damaged UTF-8


@dataclass(frozen=True, slots=True)
class Encoding:
    """The encoding of a file.

    Args:
        codec (`str`): Python's name, for `open`; bytes that it cannot decode are read as the replacement character.
        label (`str`): what a report says.
    """

    codec: str
    label: str


def detect_encoding(path: Path) -> Encoding:
    """Return the encoding of a file; the whole file is checked.

    Rule (our design): a byte order mark decides. Without one, a file whose bytes are mostly zero at odd or at even places
    is UTF-16, and a file that can be decoded as UTF-8 is UTF-8. Otherwise it is Windows-1252, unless ten or more
    characters are valid UTF-8 for each byte that is not: then it is UTF-8 with damaged characters.
    """
    with path.open("rb") as file:
        start = file.read(_SAMPLE)
    for mark, codec, label in _MARKS:
        if start.startswith(mark):
            return Encoding(codec, label)
    if order := _utf16_order(start):
        return Encoding(
            f"utf-16-{order}", f"UTF-16 without byte order mark ({'little' if order == 'le' else 'big'}-endian)"
        )
    valid, invalid, line = _check_utf8(path)
    if not invalid:
        return Encoding("utf-8", "UTF-8")
    found = f"line {line} has the first of {invalid} bytes that are not UTF-8"
    if valid >= _DAMAGED * invalid:
        return Encoding("utf-8", f"UTF-8 with damaged characters ({found})")
    return Encoding("cp1252", f"Windows-1252 ({found})")


def _utf16_order(start: bytes) -> str:
    """Return "le" or "be" for the zero bytes of UTF-16, or ""."""
    pairs = len(start) // 2
    if not pairs:
        return ""
    even, odd = start[0 : 2 * pairs : 2].count(0) / pairs, start[1 : 2 * pairs : 2].count(0) / pairs
    return "le" if odd > 0.4 > 0.1 > even else "be" if even > 0.4 > 0.1 > odd else ""


def _check_utf8(path: Path) -> tuple[int, int, int]:
    """Return the number of valid non-ASCII characters and of invalid bytes, and the line of the first one."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="surrogateescape")
    valid = invalid = line = 0
    lines = 1
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            text = decoder.decode(chunk)
            if not text.isascii():
                wrong = [match.start() for match in _UNDECODABLE.finditer(text)]
                valid += len(text) - len(text.encode("ascii", "ignore")) - len(wrong)
                if wrong and not invalid:
                    line = lines + text.count("\n", 0, wrong[0])
                invalid += len(wrong)
            lines += text.count("\n")
    rest = decoder.decode(b"", final=True)
    return valid, invalid + len(rest), line or (lines if rest else 0)
