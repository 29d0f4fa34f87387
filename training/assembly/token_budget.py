"""Choose the token budget of an item by the data: what nearly all products and queries need, and no more."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from processing_moon import MoonProcessor
from product_data.tables import ProductTables

SHARE = 0.99
"""Of the items that have to fit whole."""
_SAMPLE, _STEP = 128, 8


@dataclass(frozen=True)
class TokenBudget:
    """What items need, and the budget that follows from it.

    Args:
        tokens: the budget that holds 99 % of the measured items whole.
        lengths: tokens of each measured item.
    """

    tokens: int
    lengths: tuple[int, ...]

    def share(self, tokens: int) -> float:
        """Share of the measured items, 0 to 1, that are whole within so many tokens."""
        return sum(length <= tokens for length in self.lengths) / len(self.lengths) if self.lengths else 1.0

    def chosen(self) -> str:
        """Say what `max_tokens: auto` stands for."""
        return f"max_tokens: auto is {self.tokens} here, which holds {self._whole(self.tokens)}"

    def complaint(self, tokens: int) -> str | None:
        """Say that another budget is too small for many items, or return None where it holds as many as it should."""
        if self.share(tokens) >= SHARE:
            return None
        return (
            f"max_tokens={tokens} holds {self._whole(tokens)}; the others lose their description first, then their longest "
            f"attributes. max_tokens: auto would be {self.tokens}"
        )

    def _whole(self, tokens: int) -> str:
        return f"{100 * self.share(tokens):.3g} % of the products and queries whole (measured on {len(self.lengths)})"


def token_budget(processor: MoonProcessor, tables: Sequence[ProductTables], allow_urls: bool = False) -> TokenBudget:
    """Measure items as the processor writes them, and return the budget that holds 99 % of them whole. Our design.

    At most 128 products and 128 queries of each data set are measured, evenly spaced, pictures included. The budget is a
    multiple of 8, and no larger than the processor's own. Longer items lose whole parts by priority, see `MoonProcessor`.

    Args:
        processor: with the budget of pictures, the instructions and the read-out that training will use.
        tables: the training split of each data set.
        allow_urls: whether pictures that are given as addresses are fetched.

    Returns:
        The budget. Where not one item can be read, the processor's own.
    """
    options: dict[str, Any] = {"on_error": "skip", "allow_urls": allow_urls, "return_tensors": None, "padding": False}
    lengths: list[int] = []
    for table in tables:
        for kind, rows in (("products", table.products), ("queries", table.queries)):
            records = [row.record() for row in _spread(rows)]
            if records:
                lengths += [len(ids) for ids in processor(**{kind: records}, **options).get("input_ids", [])]
    if not lengths:
        return TokenBudget(processor.max_tokens, ())
    needed = float(np.quantile(lengths, SHARE, method="higher"))
    return TokenBudget(min(processor.max_tokens, math.ceil(needed / _STEP) * _STEP), tuple(lengths))


def settle_budget(
    processor: MoonProcessor, asked: int | str | None, tables: Sequence[ProductTables], allow_urls: bool = False
) -> str | None:
    """Set the processor's budget to what a recipe asks for, and return what there is to say about it, if anything.

    Args:
        processor: with its own budget, which is changed.
        asked: `max_tokens` of the recipe.
        tables: the training split of each data set; without any, "auto" leaves the processor's own and nothing is said.
        allow_urls: whether pictures that are given as addresses are fetched.
    """
    if asked is None:
        return None
    measured = token_budget(processor, tables, allow_urls) if tables else None
    if not isinstance(asked, str):
        processor.max_tokens = asked
        return None if measured is None else measured.complaint(asked)
    if measured is None:
        return None
    processor.max_tokens = measured.tokens
    return measured.chosen()


def _spread(rows: Sequence[Any]) -> list[Any]:
    """At most `_SAMPLE` rows, evenly spaced."""
    places = np.linspace(0, len(rows) - 1, min(len(rows), _SAMPLE)).round().astype(int) if rows else []
    return [rows[place] for place in places]
