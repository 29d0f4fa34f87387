"""Load MBE2.0, the benchmark of MOON2.0: triplets with rewritten titles and re-set pictures (arXiv 2511.12449).

Its columns are unknown: they are found by their names, as those of MBE, and printed; `--columns` replaces them.
"""

from __future__ import annotations

from product_data.row_files import open_rows
from product_data.tables import ProductTables
from product_data.triplets import TripletOptions, triplet_tables

HUB: str | None = "ZHNie/MBE2.0"
CUTOFFS = (1, 5, 10)


def load(place: str, options: TripletOptions) -> ProductTables:
    """Load a split of MBE2.0 as tables; see `product_data.triplets.triplet_tables`."""
    return triplet_tables("mbe2", open_rows(place, split=options.split), options)
