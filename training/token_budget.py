"""Choose the token budget of an item by the data: what nearly all products and queries need, and no more."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from evaluation.data.tables import ProductTables
from processing_moon import MoonProcessor

SHARE = 0.99
"""Of the items that have to fit whole."""
_SAMPLE, _STEP = 256, 8


@dataclass(frozen=True)
class TokenBudget:
    """A budget and what it holds.

    Args:
        tokens: the budget of an item.
        longest: tokens of the longest item that was measured.
        share: share of the measured items that fit whole, 0 to 1.
    """

    tokens: int
    longest: int
    share: float

    def __str__(self) -> str:
        whole = (
            "every product and query" if self.share == 1 else f"{100 * self.share:.3g} % of the products and queries"
        )
        return f"max_tokens: auto is {self.tokens} here: {whole} of a sample fit whole, and the longest takes {self.longest}"


def token_budget(processor: MoonProcessor, tables: Sequence[ProductTables], allow_urls: bool = False) -> TokenBudget:
    """Measure items as the processor writes them, and return the budget that holds 99 % of them whole. Our design.

    At most 256 products and 256 queries of each data set are measured, evenly spaced, pictures included. The budget is a multiple of 8 and
    no larger than the processor's own. Longer items lose whole parts by priority, see `MoonProcessor`.

    Args:
        processor: with the budget of pictures, the instructions and the read-out that training will use.
        tables: the training split of each data set.
        allow_urls: whether pictures that are given as addresses are fetched.

    Returns:
        The budget. Where not one item can be read, the processor's own.
    """
    options: dict[str, Any] = {"on_error": "skip", "allow_urls": allow_urls, "return_tensors": None, "padding": False}
    options["max_tokens"] = processor.max_tokens
    lengths: list[int] = []
    for table in tables:
        for kind, rows in (("products", table.products), ("queries", table.queries)):
            records = [row.record() for row in _spread(rows)]
            if records:
                lengths += [len(ids) for ids in processor(**{kind: records}, **options).get("input_ids", [])]
    if not lengths:
        return TokenBudget(processor.max_tokens, 0, 1.0)
    needed = float(np.quantile(lengths, SHARE, method="higher"))
    tokens = min(processor.max_tokens, math.ceil(needed / _STEP) * _STEP)
    return TokenBudget(tokens, max(lengths), float(np.mean([length <= tokens for length in lengths])))


def _spread(rows: Sequence[Any]) -> list[Any]:
    """At most `_SAMPLE` rows, evenly spaced."""
    places = np.linspace(0, len(rows) - 1, min(len(rows), _SAMPLE)).round().astype(int) if rows else []
    return [rows[place] for place in places]
