"""Choose a token budget from the data, so that nearly all products and queries fit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from processing_moon import MoonProcessor
from product_data.tables import ProductTables

SHARE = 0.99
"""The share of products and queries that must fit completely."""
_SAMPLE, _STEP = 128, 8


@dataclass(frozen=True)
class TokenBudget:
    """The measured lengths of products and queries, and the budget that follows from them.

    Args:
        tokens: the budget in which 99 % of the measured products and queries fit.
        lengths: the number of tokens of each of them.
    """

    tokens: int
    lengths: tuple[int, ...]

    def share(self, tokens: int) -> float:
        """Return the share of the measured products and queries, 0 to 1, that fit into a number of tokens."""
        return sum(length <= tokens for length in self.lengths) / len(self.lengths) if self.lengths else 1.0

    def chosen(self) -> str:
        """Return a message with the value of `max_tokens: auto`."""
        return f"max_tokens: auto is {self.tokens}, which holds {self._coverage(self.tokens)}"

    def complaint(self, tokens: int) -> str | None:
        """Return a warning that another budget is too small, or None if enough products and queries fit."""
        if self.share(tokens) >= SHARE:
            return None
        return (
            f"max_tokens={tokens} holds {self._coverage(tokens)}; the others lose their description first, then their "
            f"longest attributes. max_tokens: auto would be {self.tokens}"
        )

    def _coverage(self, tokens: int) -> str:
        return f"{100 * self.share(tokens):.3g} % of the products and queries whole (measured on {len(self.lengths)})"


def token_budget(processor: MoonProcessor, tables: Sequence[ProductTables], allow_urls: bool = False) -> TokenBudget:
    """Measure products and queries, and return the budget in which 99 % of them fit. Our design.

    At most 128 products and 128 queries of each data set are measured, evenly spaced, including their pictures. The
    budget is a multiple of 8 and at most that of the processor. Longer products and queries lose whole parts by
    priority; see `MoonProcessor`.

    Args:
        processor: the processor, with the picture budget, the instructions and the read-out of the training.
        tables: the training split of each data set.
        allow_urls: whether to download pictures that are given as URLs.

    Returns:
        The budget; that of the processor if no product or query can be read.
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


def set_budget(
    processor: MoonProcessor, max_tokens: int | str | None, tables: Sequence[ProductTables], allow_urls: bool = False
) -> str | None:
    """Set the processor's token budget to that of a recipe, and return a message about it, or None.

    Args:
        processor: the processor, whose budget is changed.
        max_tokens: the recipe's `max_tokens`.
        tables: the training split of each data set. Without tables, "auto" keeps the processor's budget.
        allow_urls: whether to download pictures that are given as URLs.
    """
    if max_tokens is None:
        return None
    measured = token_budget(processor, tables, allow_urls) if tables else None
    if not isinstance(max_tokens, str):
        processor.max_tokens = max_tokens
        return None if measured is None else measured.complaint(max_tokens)
    if measured is None:
        return None
    processor.max_tokens = measured.tokens
    return measured.chosen()


def _spread(rows: Sequence[Any]) -> list[Any]:
    """Return at most `_SAMPLE` rows, evenly spaced."""
    if not rows:
        return []
    places = np.linspace(0, len(rows) - 1, min(len(rows), _SAMPLE)).round().astype(int)
    return [rows[place] for place in places]
