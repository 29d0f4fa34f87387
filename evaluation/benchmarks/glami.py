"""Load GLAMI-1M: fashion products with pictures and titles in 13 languages (arXiv 2211.14451), in the format of mteb.

Place: a folder or a data set on the hub with `corpus`, `queries` and `qrels`; there is no default. Columns besides id,
text and image are found by their names and printed; `--columns` replaces them.
"""

from __future__ import annotations

from product_data.retrieval_sets import mteb_tables
from product_data.tables import ProductTables
from product_data.triplets import TripletOptions

HUB: str | None = None
CUTOFFS = (1, 5, 10)


def load(place: str, options: TripletOptions) -> ProductTables:
    """Load its tables; see `product_data.retrieval_sets.mteb_tables`."""
    return mteb_tables("glami", place, options)
