"""Define a format of feeds, and find formats by name or by the columns of a file; the folder is the registry.

A format is one file of this folder with `FORMAT`, an object of a subclass of `FeedFormat`.
"""

from __future__ import annotations

import pkgutil
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import ClassVar

import product_data.feeds
from product_data.errors import OptionError
from product_data.feeds.cells import Row
from product_data.feeds.product_builder import ProductBuilder
from product_data.table_files import TableError, listed


class FeedFormat:
    """A format: the roles of its columns, and how the rows of one product become a `FeedProduct`.

    Class attributes:
        name, title: the name for `--format`, and what a report calls it.
        columns: column → role. Case, spaces, "_" and a prefix "g:" do not count.
        patterns: regular expression of columns → role; `\\1` in a role is the first group.
        needed: for each entry, a file must have a column of one of these roles.
        typical: columns that only this format has; of several formats, the one with most of them is taken.
        least: how many of them a file must have at least. Default 1.
        prices: roles with prices. More than one column of a role: the first one is read.
        default_language: the language of the main texts, "" if the format does not say.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    columns: ClassVar[Mapping[str, str]]
    patterns: ClassVar[Mapping[str, str]] = {}
    needed: ClassVar[Sequence[Sequence[str]]]
    typical: ClassVar[Sequence[str]]
    least: ClassVar[int] = 1
    prices: ClassVar[Sequence[str]] = ("price", "sale_price")
    default_language: ClassVar[str] = ""

    def __init__(self) -> None:
        self._roles = {folded(column): role for column, role in self.columns.items()}
        self._patterns = [(re.compile(pattern, re.IGNORECASE), role) for pattern, role in self.patterns.items()]

    def role_of(self, column: str) -> str:
        """Return the role of a column; "" if the format does not read it."""
        if role := self._roles.get(folded(column)):
            return role
        for pattern, role in self._patterns:
            if match := pattern.fullmatch(column.strip()):
                return match.expand(role)
        return ""

    def roles_of(self, header: Iterable[str]) -> dict[str, str]:
        """Return role → column for the columns of a file; the first column of a role counts."""
        roles: dict[str, str] = {}
        for column in header:
            if role := self.role_of(column):
                roles.setdefault(role, column)
        return roles

    def key(self, row: Row) -> str:
        """Return the id of the row's product; "" if it has none."""
        raise NotImplementedError

    def aliases(self, row: Row) -> Iterator[tuple[str, str]]:
        """Yield pairs (id in other rows, id of the product) that a row states."""
        yield from ()

    def continues(self, row: Row) -> bool:
        """Return whether a row without an id belongs to the product of the row above it."""
        return False

    def languages(self, path: Path) -> dict[str, None]:
        """Return the languages of the texts in files beside the feed."""
        return {}

    def language_of(self, row: Row) -> str:
        """Return the language of a row's texts; "" for the default language."""
        return ""

    def translations(self, path: Path, language: str) -> Iterator[tuple[str, dict[str, str]]]:
        """Yield product id and texts ("title", "description") in a language, from files beside the feed."""
        yield from ()

    def fill(self, product: ProductBuilder, rows: Sequence[Row]) -> None:
        """Fill a product from its rows, which are in the order of the file."""
        raise NotImplementedError


def folded(column: str) -> str:
    """Return the name of a column without case, "g:", and a list of parts in brackets; "_" counts as a space."""
    name = column.strip().strip("\ufeff").casefold().removeprefix("g:")
    name = re.sub(r"\((?:\w+:)+\w+\)$", "", name)
    return " ".join(name.replace("_", " ").split())


def formats() -> dict[str, FeedFormat]:
    """Return the formats by name."""
    modules = (
        import_module(f"product_data.feeds.{found.name}") for found in pkgutil.iter_modules(product_data.feeds.__path__)
    )
    known = [module.FORMAT for module in modules if hasattr(module, "FORMAT")]
    return {format.name: format for format in sorted(known, key=lambda format: format.name)}


def format_named(name: str) -> FeedFormat:
    """Return a format.

    Raises:
        OptionError: no such format.
    """
    known = formats()
    if name not in known:
        raise OptionError(f"--format: found {name!r}; expected one of {', '.join(known)}")
    return known[name]


def lacking(format: FeedFormat, header: Sequence[str]) -> list[str]:
    """Return what a header lacks of a format: for each needed role, the columns that could have it."""
    present = format.roles_of(header)
    return [
        " or ".join(repr(column) for column, role in format.columns.items() if role in roles)
        for roles in format.needed
        if not any(role in present for role in roles)
    ]


def recognise(path: Path, header: Sequence[str]) -> tuple[FeedFormat, str]:
    """Return the format of a file by its columns, and the columns that show it.

    Rule (our design): a format is possible if the file has all columns that it needs, and a typical one. Of the possible
    formats, the one is taken of which the file has most typical columns.

    Raises:
        TableError: no format is possible, or two have equally many typical columns; the message lists the columns and the
            nearest format.
    """
    names = {folded(column) for column in header}
    known = formats()
    shown = {name: [column for column in format.typical if folded(column) in names] for name, format in known.items()}
    possible = [
        name for name, format in known.items() if not lacking(format, header) and len(shown[name]) >= format.least
    ]
    best = max((len(shown[name]) for name in possible), default=0)
    chosen = [name for name in possible if len(shown[name]) == best]
    if len(chosen) == 1:
        return known[chosen[0]], ", ".join(shown[chosen[0]]) or "the columns that it needs"
    columns = listed([*map(repr, header)])
    choose = f"choose a format with --format NAME: {', '.join(known)}"
    if chosen:
        raise TableError(f"{path}: the columns fit {' and '.join(chosen)} equally; found {columns}; {choose}")
    nearest = max(known.values(), key=lambda format: (len(format.roles_of(header)), len(shown[format.name])))
    near = ""
    if nearest.roles_of(header):
        needs = ", ".join(lacking(nearest, header)) or f"one of {', '.join(map(repr, nearest.typical))}"
        near = f"; the nearest is {nearest.title} ({nearest.name}), which also needs {needs}"
    raise TableError(f"{path}: the columns fit no known format; found {columns}{near}; {choose}")
