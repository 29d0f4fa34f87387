"""Load MBE3.0, the benchmark of MOON3.0: triplets whose elements have three sets of attributes (arXiv 2604.00513).

The sets are the attributes that the picture shows, those that the text shows, and their union. A place on the hub and
the columns are unknown: columns are found by their names (`doc_image_attributes`, `doc_text_attributes`,
`doc_attributes`) and printed; `--columns` replaces them (positive.attributes_image, positive.attributes_text,
positive.attributes).
"""

from __future__ import annotations

from dataclasses import replace

from product_data.row_files import open_rows
from product_data.rows import ProductRow
from product_data.tables import ProductTables
from product_data.triplets import TripletOptions, triplet_tables

HUB: str | None = None
CUTOFFS = (1, 5, 10)


def load(place: str, options: TripletOptions) -> ProductTables:
    """Load a split of MBE3.0 as tables; a product without attributes gets those of its picture and its text."""
    tables = triplet_tables("mbe3", open_rows(place, split=options.split), options)
    return replace(
        tables,
        products=[with_union(row) for row in tables.products],
        labels=tuple(with_union(row) for row in tables.labels),
    )


def with_union(row: ProductRow) -> ProductRow:
    """Return a product; if it has no attributes, it gets the union of those that its picture and text show."""
    sets = [shown for shown in (row.attributes_text, row.attributes_image) if shown]
    if row.attributes or not sets:
        return row
    union: dict[str, tuple[str, ...]] = {}
    for shown in sets:
        for key, values in shown.items():
            union[key] = tuple(dict.fromkeys((*union.get(key, ()), *values)))
    return replace(row, attributes=union)
