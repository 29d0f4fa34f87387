"""Read labelled pairs of products, and divide them into the parts that fit and that choose."""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from product_data.table_files import read_rows
from retrieval.decisions.errors import DecisionError

COLUMNS = ("left", "right", "same")
_SAME = {"1", "true", "yes", "1.0"}
_DIFFERENT = {"0", "false", "no", "0.0"}


@dataclass(frozen=True, slots=True)
class LabelledPair:
    """Two products and whether a person calls them the same; `left` < `right`."""

    left: str
    right: str
    same: bool


def read_labelled_pairs(path: Path, known: Container[str]) -> tuple[list[LabelledPair], int]:
    """Read a table with the columns left, right (product ids) and same (1 or 0, true or false, yes or no).

    A pair that occurs twice with one answer counts once. A row without an answer is not labelled yet.

    Args:
        path: a .csv, .jsonl or .parquet file.
        known: the ids of the catalogue.

    Returns:
        The pairs, and the number of rows without an answer.

    Raises:
        TableError: a file that cannot be read.
        DecisionError: a missing column, an id that is not in the catalogue, a product paired with itself, an answer that is
            not one of the above, two answers for one pair, or no labelled pair at all.
    """
    found: dict[tuple[str, str], bool] = {}
    unanswered = 0
    for number, row in enumerate(read_rows(path), start=1):
        place = f"{path}, row {number}"
        left, right = (_product(row, side, known, place) for side in ("left", "right"))
        if left == right:
            raise DecisionError(f"{place}: found product {left!r} on both sides; expected two products")
        same = _answer(row, place)
        if same is None:
            unanswered += 1
            continue
        pair = (min(left, right), max(left, right))
        if found.setdefault(pair, same) != same:
            raise DecisionError(
                f"{place}: found the pair {left!r}, {right!r} with another answer than before; expected one answer"
            )
    if not found:
        raise DecisionError(f"{path}: found no labelled pair; expected rows with an answer in the column 'same'")
    return [LabelledPair(*pair, same) for pair, same in found.items()], unanswered


def _product(row: Mapping[str, Any], column: str, known: Container[str], place: str) -> str:
    value = _cell(row, column, place)
    product = str(value).strip()
    if product not in known:
        raise DecisionError(f"{place}, column {column!r}: found {value!r}; expected the id of a product of the store")
    return product


def _answer(row: Mapping[str, Any], place: str) -> bool | None:
    value = _cell(row, "same", place)
    if value is None or value != value or not str(value).strip():  # an empty cell can be read as None or NaN
        return None
    word = str(value).strip().casefold()
    if word not in _SAME | _DIFFERENT:
        raise DecisionError(f"{place}, column 'same': found {value!r}; expected 1 or 0, true or false, yes or no")
    return word in _SAME


def _cell(row: Mapping[str, Any], column: str, place: str) -> Any:
    if column not in row:
        raise DecisionError(f"{place}: found the columns {', '.join(row)}; expected {', '.join(COLUMNS)}")
    return row[column]


def divide(pairs: int, *, fit_share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw which labelled pairs fit the calibration and which choose the threshold.

    A random part of a random sample is a random sample: the choosing part still stands for the candidates.

    Args:
        pairs (`int`): number of labelled pairs.
        fit_share (`float`): share of the fitting part, in (0, 1).
        seed (`int`): seed of the draw.

    Shapes: returns two ascending int64 arrays of rows without a common element.
    """
    order = np.random.default_rng(seed).permutation(pairs)
    count = round(fit_share * pairs)
    return np.sort(order[:count]), np.sort(order[count:])
