"""Category paths as shops write them: lists, "A > B", "A>>B", "A|B", "A/B", with spaces or without.

Signs that no label holds (">", ">>", "»", "›", "→", "|") always separate levels. A slash also stands inside of labels
("Tops/Blouses"), so that the whole column decides about it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from evaluation.data.table_files import is_absent, parse_texts
from evaluation.data.text_cells import html_spans

_ARROW = re.compile(r"\s*(?:[-=]+>|>+|»|›|→)\s*")
_BAR, _SLASH = re.compile(r"\s*\|\s*"), re.compile(r"\s*/\s*")
_MORE_THAN = re.compile(r"(?:^|.?\s+)>\d")
_PATH_BREAK = re.compile(r"\s*[,;|\n]\s*")
_DOCUMENTED = (" > ", ">", "|")


@dataclass(frozen=True)
class CategoryCell:
    """What was read of a cell.

    Args:
        path: its category path, the first level first.
        separator: what separated the levels of a text, "" for nothing or a list.
        paths: all category paths that the cell names, where there are several.
        undecided: whether it is a text with a slash that was read as one label.
    """

    path: tuple[str, ...] = ()
    separator: str = ""
    paths: tuple[tuple[str, ...], ...] = ()
    undecided: bool = False


class CategoryReader:
    """Reads the cells of one column.

    A slash separates levels where no cell of the column has another separator, and either every cell that is not empty holds
    a slash, or two labels that hold one begin alike ("Home/Sofas", "Home/Lamps"). Several paths in one cell
    ("A > B, A > C") are told from a label that holds a comma by their first level, which must be that of the cell or of another
    cell of the column; the first path that no other continues counts. Our design.

    Args:
        cells: all cells of the column, in any spelling. Default: none, so that a slash separates nothing.
        separator (`str` or `None`): what separates levels, in place of all signs above. Default: found.
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
        """What separates the levels of a text, or None where it is one label."""
        signs = [self._given] if self._given else [_ARROW, _BAR, *([_SLASH] if self.slashes and slashes else [])]
        return next((sign for sign in signs if _first_cut(text, sign)), None)

    def _read_text(self, text: str, sign: re.Pattern[str] | None) -> CategoryCell:
        if sign is None:
            return CategoryCell((text,), undecided=self._given is None and bool(_first_cut(text, _SLASH)))
        return _cell(self._paths(text, sign), _first_cut(text, sign))

    def _paths(self, text: str, sign: re.Pattern[str]) -> list[tuple[str, ...]]:
        return [path for part in self._parts(text, sign) if (path := tuple(filter(None, _pieces(part, sign))))]

    def _parts(self, text: str, sign: re.Pattern[str]) -> list[str]:
        """The texts of the paths that a cell names."""
        breaks = [match for match in _outside_html(text, _PATH_BREAK) if not sign.search(match[0])]
        pieces = _cut(text, breaks)
        if all(_first_cut(piece, sign) for piece in pieces) and not any("," in found[0] for found in breaks):
            return pieces
        roots = {_root(pieces[0], sign)}
        parts = [pieces[0]]
        for found, piece in zip(breaks, pieces[1:], strict=True):
            root = _root(piece, sign)
            is_path = root in roots or (root in self._roots and _first_cut(piece, sign)) or "|" in found[0]
            if is_path:
                parts.append(piece)
            else:
                parts[-1] += found[0] + piece
        return parts


def _as_written(separator: str) -> re.Pattern[str]:
    """A separator with any spaces around it; one that is given with spaces, such as " - ", with these alone."""
    literal = re.escape(separator)
    return re.compile(literal if separator != separator.strip() else rf"\s*{literal}\s*")


def parse_category(value: Any) -> tuple[str, ...]:
    """The category path of a single cell: a list, a JSON list, "a > b > c" or "a|b|c", with spaces or without."""
    return CategoryReader().read(value).path


def is_documented(separator: str) -> bool:
    """Whether a separator is one of those that the two-table format names, so that nothing needs to be said."""
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
    """The first separator of a text as it is written, or nothing."""
    return next((match[0] for match in _outside_html(text, sign)), "")


def _pieces(text: str, sign: re.Pattern[str]) -> list[str]:
    return _cut(text, _outside_html(text, sign))


def _cut(text: str, cuts: Sequence[re.Match[str]]) -> list[str]:
    starts, ends = [0, *(cut.end() for cut in cuts)], [*(cut.start() for cut in cuts), len(text)]
    return [text[start:end].strip() for start, end in zip(starts, ends, strict=True)]


def _outside_html(text: str, sign: re.Pattern[str]) -> list[re.Match[str]]:
    """Where a sign stands inside of a text, but not in a tag or an entity, and not as "more than" before a number."""
    spans = list(html_spans(text))
    return [
        match
        for match in sign.finditer(text)
        if not any(start < match.end() and match.start() < end for start, end in spans)
        and not (sign is _ARROW and _MORE_THAN.match(text, max(0, match.start() - 1)))
    ]
