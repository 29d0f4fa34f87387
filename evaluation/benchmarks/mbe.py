"""MBE, the benchmark of MOON: rows of searches on Taobao, the purchased product and a hard negative (arXiv 2508.11999 §4).

Known of its columns are `id`, `doc_title`, `doc_image` (an address), `doc_industry_name`, `doc_cate1_name` … `doc_cate4_name` and
`doc_attributes` ("key:value,,key:value!!!value"), and that the query's core box stands under "query bbox". What the query and
the negative are called is not known here: columns are found by pattern and printed, and `--columns` replaces them.
"""

from __future__ import annotations

from product_data.row_files import open_rows
from product_data.tables import ProductTables
from product_data.triplets import TripletOptions, triplet_tables

HUB: str | None = "Daoze/MM-Bench-E-Commerce"
CUTOFFS = (1, 5, 10)


def load(place: str, options: TripletOptions) -> ProductTables:
    """Return MBE's rows of a split as tables; see `product_data.triplets.triplet_tables`."""
    return triplet_tables("mbe", open_rows(place, split=options.split), options)
