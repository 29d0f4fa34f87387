"""Read category paths as shops write them: lists, "A > B", "A>>B", "A|B", "A/B", with spaces or without.

Separators that labels never contain (">", ">>", "»", "›", "→", "|") always separate levels. Labels can contain a slash
("Tops/Blouses"), so the whole column decides whether a slash separates levels.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from product_data.table_files import is_absent, parse_texts
from product_data.text_cells import html_spans

_ARROW = re.compile(r"\s*(?:[-=]+>|>+|»|›|→)\s*")
_BAR, _SLASH = re.compile(r"\s*\|\s*"), re.compile(r"\s*/\s*")
_MORE_THAN = re.compile(r"(?:^|.?\s+)>\d")
_PATH_BREAK = re.compile(r"\s*[,;|\n]\s*")
_DOCUMENTED = (" > ", ">", "|")


@dataclass(frozen=True)
class CategoryCell:
    """The category path of a cell, and how it was read.

    Args:
        path: the category path, root first.
        separator: the separator between the levels of a text; "" for a single label or a list.
        paths: all category paths of the cell, if it has several.
        undecided: whether the cell is a text with a slash that was read as one label.
    """

    path: tuple[str, ...] = ()
    separator: str = ""
    paths: tuple[tuple[str, ...], ...] = ()
    undecided: bool = False


class CategoryReader:
    """Read the category paths of one column.

    A slash separates levels if no cell of the column has another separator and either every cell that is not empty
    contains a slash, or two labels with a slash have the same first level ("Home/Sofas", "Home/Lamps"). A comma
    separates two paths in one cell ("A > B, A > C") if what follows it starts with a first level of this cell or of
    another cell of the column; otherwise it belongs to a label. Of several paths, the first one that is not the beginning
    of another is read. Our design.

    Args:
        cells: all cells of the column, in any spelling. Default: none; then a slash never separates levels.
        separator (`str` or `None`): the separator of levels, instead of those above. Default `None`: it is detected.
    """

    def __init__(self, cells: Iterable[Any] = (), separator: str | None = None) -> None:
        texts = [cell.strip() for cell in cells if isinstance(cell, str) and not is_absent(cell)]
        texts = [text for text in texts if not text.startswith("[")]
        self._given = _as_written(separator) if separator else None
        plain = self._given is None and not any(_first_cut(text, sign) for text in texts for sign in (_ARROW, _BAR))
        self.slashes = plain and _are_paths([text for text in texts if _first_cut(text, _SLASH)], len(texts))
        self._roots = {_root(text, sign) for text in texts if (sign := self._sign(text)) is not None}

    def read(self, cell: Any) -> CategoryCell:
        """Read one cell.

        Raises:
            ValueError: a cell that is neither text nor a list of texts.
        """
        if isinstance(cell, str) and not cell.lstrip().startswith("["):
            return CategoryCell() if is_absent(cell) else self._read_text(cell.strip(), self._sign(cell))
        labels = parse_texts(cell)
        paths, separator = [], ""
        for label in labels:
            if (sign := self._sign(label, slashes=False)) is None:
                return CategoryCell(labels)  # a list of levels
            separator = separator or _first_cut(label, sign)
            paths += self._paths(label, sign)
        return _cell(paths, separator)

    def _sign(self, text: str, slashes: bool = True) -> re.Pattern[str] | None:
        """Return the separator of a text's levels, or None if the text is one label."""
        signs = [self._given] if self._given else [_ARROW, _BAR, *([_SLASH] if self.slashes and slashes else [])]
        return next((sign for sign in signs if _first_cut(text, sign)), None)

    def _read_text(self, text: str, sign: re.Pattern[str] | None) -> CategoryCell:
        if sign is None:
            return CategoryCell((text,), undecided=self._given is None and bool(_first_cut(text, _SLASH)))
        return _cell(self._paths(text, sign), _first_cut(text, sign))

    def _paths(self, text: str, sign: re.Pattern[str]) -> list[tuple[str, ...]]:
        return [path for part in self._parts(text, sign) if (path := tuple(filter(None, _pieces(part, sign))))]

    def _parts(self, text: str, sign: re.Pattern[str]) -> list[str]:
        """Return the text of each path of a cell."""
        breaks = [match for match in _outside_html(text, _PATH_BREAK) if not sign.search(match[0])]
        pieces = _cut(text, breaks)
        if all(_first_cut(piece, sign) for piece in pieces) and not any("," in match[0] for match in breaks):
            return pieces
        roots = {_root(pieces[0], sign)}
        parts = [pieces[0]]
        for match, piece in zip(breaks, pieces[1:], strict=True):
            root = _root(piece, sign)
            is_path = root in roots or (root in self._roots and _first_cut(piece, sign)) or "|" in match[0]
            if is_path:
                parts.append(piece)
            else:
                parts[-1] += match[0] + piece
        return parts


def _as_written(separator: str) -> re.Pattern[str]:
    """Return the pattern of a separator with any spaces around it, or with its own spaces if it has some (" - ")."""
    literal = re.escape(separator)
    return re.compile(literal if separator != separator.strip() else rf"\s*{literal}\s*")


def parse_category(value: Any) -> tuple[str, ...]:
    """Return the category path of a cell: a list, a JSON list, "a > b > c" or "a|b|c", with spaces or without."""
    return CategoryReader().read(value).path


def is_documented(separator: str) -> bool:
    """Return whether the two-table format documents a separator; the report then need not mention it."""
    return separator in _DOCUMENTED or separator.strip() == "|" or not separator


def _cell(paths: Sequence[tuple[str, ...]], separator: str) -> CategoryCell:
    distinct = list(dict.fromkeys(paths))
    ends = [path for path in distinct if not any(path == other[: len(path)] for other in distinct if other != path)]
    return CategoryCell(ends[0] if ends else (), separator, tuple(distinct) if len(distinct) > 1 else ())


def _are_paths(slashed: Sequence[str], texts: int) -> bool:
    if not slashed:
        return False
    first = Counter(_root(text, _SLASH) for text in dict.fromkeys(slashed))
    return len(slashed) == texts or max(first.values()) > 1


def _root(text: str, sign: re.Pattern[str]) -> str:
    return _pieces(text, sign)[0].casefold()


def _first_cut(text: str, sign: re.Pattern[str]) -> str:
    """Return the first separator of a text as it is written, or ""."""
    return next((match[0] for match in _outside_html(text, sign)), "")


def _pieces(text: str, sign: re.Pattern[str]) -> list[str]:
    return _cut(text, _outside_html(text, sign))


def _cut(text: str, cuts: Sequence[re.Match[str]]) -> list[str]:
    starts, ends = [0, *(cut.end() for cut in cuts)], [*(cut.start() for cut in cuts), len(text)]
    return [text[start:end].strip() for start, end in zip(starts, ends, strict=True)]


def _outside_html(text: str, sign: re.Pattern[str]) -> list[re.Match[str]]:
    """Return the matches of a separator outside HTML tags and entities, without ">" before a number ("more than")."""
    spans = list(html_spans(text))
    return [
        match
        for match in sign.finditer(text)
        if not any(start < match.end() and match.start() < end for start, end in spans)
        and not (sign is _ARROW and _MORE_THAN.match(text, max(0, match.start() - 1)))
    ]
