"""Load M5Product: products of Taobao with picture, caption and attributes (arXiv 2109.04275), with R@10, 100 and 500.

The column names of its release and a place on the hub are unknown: the columns of a table of triplets or products are
found by their names and printed; `--columns` replaces them. In a table without queries the parts of products search
each other (t→i, i→t).
"""

from __future__ import annotations

from product_data.row_files import open_rows
from product_data.tables import ProductTables
from product_data.triplets import TripletOptions, triplet_tables

HUB: str | None = None
CUTOFFS = (10, 100, 500)


def load(place: str, options: TripletOptions) -> ProductTables:
    """Load M5Product's rows as tables; see `product_data.triplets.triplet_tables`."""
    return triplet_tables("m5product", open_rows(place, split=options.split), options)
