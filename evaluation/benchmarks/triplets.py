"""Any table of triplets: a query, the product that answers it, and, where there is one, a hard negative.

Columns are found by pattern and printed; `--columns` replaces them.
"""

from __future__ import annotations

from pathlib import Path

from product_data.row_files import open_rows
from product_data.tables import ProductTables
from product_data.triplets import TripletOptions, triplet_tables

HUB: str | None = None
CUTOFFS = (1, 5, 10)


def load(place: str, options: TripletOptions) -> ProductTables:
    """Return the rows as tables, called like their file; see `product_data.triplets.triplet_tables`."""
    return triplet_tables(Path(place).stem, open_rows(place, split=options.split), options)
