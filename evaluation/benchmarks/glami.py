"""GLAMI-1M: fashion products with pictures and titles in 13 languages (arXiv 2211.14451), in the form of mteb.

Place: a folder or a data set of the hub with `corpus`, `queries` and `qrels`. Which one is not known here. Columns beside id,
text and image are found by pattern and printed; `--columns` replaces them.
"""

from __future__ import annotations

from product_data.retrieval_sets import mteb_tables
from product_data.tables import ProductTables
from product_data.triplets import TripletOptions

HUB: str | None = None
CUTOFFS = (1, 5, 10)


def load(place: str, options: TripletOptions) -> ProductTables:
    """Return its tables; see `product_data.retrieval_sets.mteb_tables`."""
    return mteb_tables("glami", place, options)
