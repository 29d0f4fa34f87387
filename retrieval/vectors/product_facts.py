"""Keep the facts of products in a parquet file that is sorted by id, without holding them all in memory."""

from __future__ import annotations

import heapq
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields
from itertools import islice
from operator import attrgetter
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from product_data.atomic_files import file_written_whole
from product_data.feeds.feed_product import FeedProduct
from retrieval.stores.interface import StoredProduct
from retrieval.vectors.shard_files import VectorFileError

_TEXT, _TEXTS = pyarrow.string(), pyarrow.list_(pyarrow.string())
_TYPES = {"category": _TEXTS, "attributes": pyarrow.map_(_TEXT, _TEXTS), "price": pyarrow.float64(), "images": _TEXTS}
SCHEMA = pyarrow.schema([(field.name, _TYPES.get(field.name, _TEXT)) for field in fields(StoredProduct)])
"""The columns of `StoredProduct`, in its order."""
_ROWS_PER_GROUP = 4096
_ROWS_IN_MEMORY = 32768


def stored_product(product: FeedProduct, digest: str = "", shown: Path | None = None) -> StoredProduct:
    """Return what a store keeps of a product of a feed.

    `images` has URLs and absolute paths, so that they hold in every working folder. Pictures that a feed holds as bytes have
    neither.

    Args:
        product: the product.
        digest (`str`): see `StoredProduct`. Default "".
        shown: file with a copy of the first picture, if the feed holds it as bytes. Default `None`.
    """
    row = product.row
    images = [image if is_url(image) else os.path.abspath(image) for image in row.images if isinstance(image, str)]
    return StoredProduct(
        row.product_id,
        row.title,
        row.description,
        tuple(row.category),
        dict(row.attributes),
        product.brand,
        product.price,
        product.currency,
        product.availability,
        product.url,
        (*((str(shown),) if shown else ()), *images),
        digest,
    )


def is_url(image: str) -> bool:
    """Return whether an entry of `StoredProduct.images` is a URL, not a path."""
    return image.startswith(("http://", "https://", "data:"))


def write_products(path: Path, products: Iterable[StoredProduct]) -> int:
    """Write products to a parquet file as a whole, and return their number."""
    count = 0
    with file_written_whole(path) as partial, pyarrow.parquet.ParquetWriter(partial, SCHEMA) as writer:
        left = iter(products)
        while group := list(islice(left, _ROWS_PER_GROUP)):
            writer.write_table(_table(group))
            count += len(group)
    return count


def read_products(path: Path) -> Iterator[StoredProduct]:
    """Yield the products of a file, in its order.

    Raises:
        VectorFileError: a missing or torn file, or one with other columns.
    """
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            if file.schema_arrow.names != SCHEMA.names:
                raise VectorFileError(
                    f"{path}: found the columns {', '.join(file.schema_arrow.names)}; expected {', '.join(SCHEMA.names)}"
                )
            for batch in file.iter_batches(_ROWS_PER_GROUP):
                yield from map(_product, batch.to_pylist())
    except (pyarrow.ArrowException, OSError) as error:
        raise _unreadable(path, error) from error


def read_digests(path: Path) -> dict[str, str]:
    """Return product id → digest of the products of a file.

    Raises:
        VectorFileError: as for `read_products`.
    """
    try:
        table = pyarrow.parquet.read_table(path, columns=["product_id", "digest"])
    except (pyarrow.ArrowException, OSError) as error:
        raise _unreadable(path, error) from error
    return dict(zip(table["product_id"].to_pylist(), table["digest"].to_pylist(), strict=True))


def _unreadable(path: Path, error: Exception) -> VectorFileError:
    return VectorFileError(f"{path}: cannot be read ({error}); expected the products of moon3 embed: run it again")


def _table(products: Iterable[StoredProduct]) -> pyarrow.Table:
    columns: list[tuple[Any, ...]] = list(zip(*map(_cells, products), strict=True))
    arrays = [pyarrow.array(values, field.type) for values, field in zip(columns, SCHEMA, strict=True)]
    return pyarrow.table(arrays, schema=SCHEMA)


def _cells(product: StoredProduct) -> Iterator[Any]:
    for name in SCHEMA.names:
        cell = getattr(product, name)
        yield list(cell.items()) if isinstance(cell, dict) else cell


def _product(cells: dict[str, Any]) -> StoredProduct:
    attributes = {key: tuple(values) for key, values in cells["attributes"]}
    lists = {name: tuple(cells[name]) for name in ("category", "images")}
    return StoredProduct(**cells | lists | {"attributes": attributes})


class SortedProducts:
    """Sort products by id on the disk: sorted files of a bounded size, which are then merged.

    Args:
        folder: a new folder for the files, which the caller removes.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._held: list[StoredProduct] = []
        self._files: list[Path] = []

    def add(self, product: StoredProduct) -> None:
        """Take one product."""
        self._held.append(product)
        if len(self._held) >= _ROWS_IN_MEMORY:
            self._write()

    def write(self, path: Path, completed: Callable[[StoredProduct], StoredProduct]) -> int:
        """Write all products, sorted by id, and return their number.

        Args:
            path: the parquet file.
            completed: called with each product; returns the one to write, with the same id.
        """
        self._held.sort(key=attrgetter("product_id"))
        streams = [*map(read_products, self._files), iter(self._held)]
        return write_products(path, map(completed, heapq.merge(*streams, key=attrgetter("product_id"))))

    def _write(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._files.append(self.folder / f"{len(self._files):06}.parquet")
        write_products(self._files[-1], sorted(self._held, key=attrgetter("product_id")))
        self._held.clear()
