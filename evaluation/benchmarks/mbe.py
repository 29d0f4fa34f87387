"""Load MBE, the benchmark of MOON: searches on Taobao, purchased products and hard negatives (arXiv 2508.11999 §4).

Its known columns are `id`, `doc_title`, `doc_image` (a URL), `doc_industry_name`, `doc_cate1_name` …
`doc_cate4_name`, `doc_attributes` ("key:value,,key:value!!!value") and "query bbox" (the query's core box). The other
columns of the query and the negative are unknown: they are found by their names and printed; `--columns` replaces them.
"""

from __future__ import annotations

from product_data.row_files import open_rows
from product_data.tables import ProductTables
from product_data.triplets import TripletOptions, triplet_tables

HUB: str | None = "Daoze/MM-Bench-E-Commerce"
CUTOFFS = (1, 5, 10)


def load(place: str, options: TripletOptions) -> ProductTables:
    """Load a split of MBE as tables; see `product_data.triplets.triplet_tables`."""
    return triplet_tables("mbe", open_rows(place, split=options.split), options)
