"""Suggest which column of a table could be a missing one, for error messages."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Any

# Names that exports of shops use, without case, spaces and punctuation; the likeliest first.
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
    "user_id": "userid user uid visitorid visitor customerid customer sessionid",
    "time": "time timestamp datetime date eventtime createdat ts",
    "clicked": "clicked click isclick clicks label target response",
    "action": "action event eventtype eventname type",
}
_LISTED = 3
_REPEATING = ("user_id",)  # ids whose cells repeat in the table that needs them


def likely_columns(wanted: Sequence[str], unused: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the columns that could be one of those wanted, quoted, the likeliest first, three at most.

    Args:
        wanted: names of the format, such as "product_id".
        unused: the table's columns that have no role yet.
        rows: the table; if an id is wanted, columns whose cells repeat come last, with a note.
    """
    plain = {column: re.sub(r"[\W_]+", "", str(column)).casefold() for column in unused}
    likely: list[str] = []
    for name in wanted:
        often = _OFTEN_CALLED.get(name, name.replace("_", "")).split()
        ranked = sorted((often.index(form), column) for column, form in plain.items() if form in often)
        candidates = [column for _, column in ranked]
        near = difflib.get_close_matches(name.replace("_", ""), list(plain.values()), n=1, cutoff=0.8)
        candidates += [column for column, form in plain.items() if form in near]
        if name.endswith("_id") and name not in _REPEATING:
            candidates.sort(key=lambda column: _repeats(column, rows))
        likely += candidates
    distinct = list(dict.fromkeys(likely))[:_LISTED]
    wants_id = any(name.endswith("_id") and name not in _REPEATING for name in wanted)
    return [f"{column!r}{' (its cells repeat)' if wants_id and _repeats(column, rows) else ''}" for column in distinct]


def _repeats(column: str, rows: Sequence[Mapping[str, Any]]) -> bool:
    cells = [str(row.get(column)) for row in rows]
    return len(set(cells)) < len(cells)
