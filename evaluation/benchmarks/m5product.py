"""M5Product: products of Taobao with picture, caption and attributes (arXiv 2109.04275), searched at R@10, 100 and 500.

The columns of its release, and a place on the hub, are not known here: a table of triplets or of products is read by pattern and
its columns are printed; `--columns` replaces them. A table without queries is searched by the products' own parts (t→i, i→t).
"""

from __future__ import annotations

from product_data.row_files import open_rows
from product_data.tables import ProductTables
from product_data.triplets import TripletOptions, triplet_tables

HUB: str | None = None
CUTOFFS = (10, 100, 500)


def load(place: str, options: TripletOptions) -> ProductTables:
    """Return M5Product's rows as tables; see `product_data.triplets.triplet_tables`."""
    return triplet_tables("m5product", open_rows(place, split=options.split), options)
