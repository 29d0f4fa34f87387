"""Write a sample of a data set's tables, as they are, for studies that a whole shop would make too long.

    write_sample("shop/", "shop_sample/", {"train": 1200, "test": None})

Products are drawn by a hash of their identifier: the same ones on every machine, and a larger sample contains a smaller one. A
query stays if a product of the sample answers it, and if the sample has the product that it refers to.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from product_data.table_files import TableError

_PRODUCTS, _QUERIES, _PICTURES = "products", "queries", "query_images"


def write_sample(source: Path, folder: Path, sizes: Mapping[str, int | None]) -> None:
    """Write the products of a sample, the queries that they answer, and the pictures of these queries.

    Args:
        source: folder with products.parquet and queries.parquet, and query_images.parquet if the queries name their pictures.
        folder: folder to write; it must not exist.
        sizes: split → number of products to keep, or None for all. Other splits are left out.

    Raises:
        TableError: the products have no column split, or no product of a named split.
        FileNotFoundError: the source lacks a table.
        FileExistsError: the folder exists.
    """
    tables = {name: pq.read_table(source / f"{name}.parquet") for name in (_PRODUCTS, _QUERIES)}
    products = tables[_PRODUCTS]
    if "split" not in products.column_names:
        raise TableError(f"{source / _PRODUCTS}.parquet: found no column split; expected one")
    names_of: dict[str, list[str]] = {split: [] for split in sizes}
    for name, split in zip(products["product_id"].to_pylist(), products["split"].to_pylist(), strict=True):
        if split in names_of:
            names_of[split].append(name)
    if empty := [split for split, names in names_of.items() if not names]:
        known = sorted(set(products["split"].to_pylist()))
        raise TableError(
            f"{source / _PRODUCTS}.parquet: found no product of split {empty[0]!r}; expected one of {known}"
        )
    kept = {name for split, names in names_of.items() for name in sorted(names, key=_drawn_by)[: sizes[split]]}
    tables[_PRODUCTS] = products.filter(pa.array([name in kept for name in products["product_id"].to_pylist()]))
    queries = [row for row in map(lambda row: _answered(row, kept), tables[_QUERIES].to_pylist()) if row is not None]
    tables[_QUERIES] = pa.Table.from_pylist(
        [row for row in queries if row["split"] in sizes], schema=tables[_QUERIES].schema
    )
    if "image_id" in tables[_QUERIES].column_names:
        pictures = pq.read_table(source / f"{_PICTURES}.parquet")
        shown = set(tables[_QUERIES]["image_id"].to_pylist())
        tables[_PICTURES] = pictures.filter(pa.array([name in shown for name in pictures["image_id"].to_pylist()]))
    folder.mkdir(parents=True)
    for name, table in tables.items():
        pq.write_table(table, folder / f"{name}.parquet")


def _drawn_by(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()


def _answered(query: dict[str, Any], kept: set[str]) -> dict[str, Any] | None:
    """Return a query with its answers in the sample, or None without any, or without the product that it refers to."""
    answers = [number for number, name in enumerate(query["positives"]) if name in kept]
    if not answers or query.get("reference_product_id") not in kept | {None}:
        return None
    lists = [name for name in ("positives", "positive_weights") if query.get(name)]
    return query | {name: [query[name][number] for number in answers] for name in lists}
