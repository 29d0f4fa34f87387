"""Guess which column of a table stands for one that is missing, for the message that names it."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Any

# Names that exports of shops use, without case, spaces and signs; the likeliest first.
_OFTEN_CALLED = {
    "product_id": "productid sku uniqid handle slug id itemid articleid articlenumber asin gtin ean variantid code url",
    "title": "title name productname producttitle itemname displayname label",
    "description": "description body bodyhtml longdescription productdescription details",
    "images": "images image imageurl imagelink imagesrc imagepath picture photo img filename",
    "query_id": "queryid qid id searchid",
    "image_id": "imageid id filename",
    "positives": "positives relevant answers productids productid targets purchased",
    "text": "text query searchterm keywords searchquery term",
    "query": "query searchterm searchquery keywords term text search",
    "query_image": "queryimage image imageurl photo",
    "action": "action event eventtype eventname type",
}
_LISTED = 3


def likely_columns(wanted: Sequence[str], there: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Quote the columns that could be one of those wanted, the likeliest first, three at most.

    Args:
        wanted: names of the format, such as "product_id".
        there: the table's columns that have no meaning yet.
        rows: the table; of columns for an id, those whose cells repeat come last, and say so.
    """
    plain = {column: re.sub(r"[\W_]+", "", str(column)).casefold() for column in there}
    found: list[str] = []
    for name in wanted:
        often = _OFTEN_CALLED.get(name, name.replace("_", "")).split()
        ranked = sorted((often.index(form), column) for column, form in plain.items() if form in often)
        candidates = [column for _, column in ranked]
        near = difflib.get_close_matches(name.replace("_", ""), list(plain.values()), n=1, cutoff=0.8)
        candidates += [column for column, form in plain.items() if form in near]
        if name.endswith("_id"):
            candidates.sort(key=lambda column: _repeats(column, rows))
        found += candidates
    distinct = list(dict.fromkeys(found))[:_LISTED]
    an_id = any(name.endswith("_id") for name in wanted)
    return [f"{column!r}{' (its cells repeat)' if an_id and _repeats(column, rows) else ''}" for column in distinct]


def _repeats(column: str, rows: Sequence[Mapping[str, Any]]) -> bool:
    cells = [str(row.get(column)) for row in rows]
    return len(set(cells)) < len(cells)
