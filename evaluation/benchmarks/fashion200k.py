"""Load Fashion200K from M-BEIR (UniIR, arXiv 2311.17136): captions → pictures (task 0), pictures → captions (task 3).

Place: M-BEIR's folder (`TIGER-Lab/M-BEIR` on the hub; unpack its archive of pictures there), with
`query/test/mbeir_fashion200k_…` and `cand_pool/local/mbeir_fashion200k_…`; or a folder or data set on the hub in mteb's
format.
"""

from __future__ import annotations

from pathlib import Path

from product_data.retrieval_sets import mbeir_tables, mteb_tables
from product_data.tables import ProductTables
from product_data.triplets import TripletOptions

HUB: str | None = None
CUTOFFS = (10, 20, 50)
PREFIX = "mbeir_fashion200k"


def load(place: str, options: TripletOptions) -> ProductTables:
    """Load both tasks as tables; see `product_data.retrieval_sets.mbeir_tables`."""
    if next(Path(place).rglob(f"{PREFIX}*.jsonl"), None) is not None:
        return mbeir_tables("fashion200k", place, PREFIX, options)
    return mteb_tables("fashion200k", place, options)
