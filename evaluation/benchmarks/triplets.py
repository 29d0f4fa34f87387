"""Load any table of triplets: a query, the product that answers it, and optionally a hard negative.

Columns are found by their names and printed; `--columns` replaces them.
"""

from __future__ import annotations

from pathlib import Path

from product_data.row_files import open_rows
from product_data.tables import ProductTables
from product_data.triplets import TripletOptions, triplet_tables

HUB: str | None = None
CUTOFFS = (1, 5, 10)


def load(place: str, options: TripletOptions) -> ProductTables:
    """Load the rows as tables with the name of their file; see `product_data.triplets.triplet_tables`."""
    return triplet_tables(Path(place).stem, open_rows(place, split=options.split), options)
