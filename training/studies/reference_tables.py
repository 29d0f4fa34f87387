"""Write the tables of the studies of transfer: what may be trained on and published, and the products of two shops left out.

write_reference_tables(Path("../shared/data"), Path("runs/reference/tables"))
write_evidence_tables(Path("../shared/data"), Path("runs/reference/tables"))

Trained on: drawn products; grocery (MIT) and spree (BSD-3-Clause) with their queries; and the photos of grocery, spree and street
(Apache-2.0) as products of a picture alone, whose queries are altered views of it. Left out: the validation and test splits of
fashion and ikea, whose licences do not allow weights to be published. The evidence study publishes none, and reads samples.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from processing_moon import open_image
from product_data.atomic_files import written_whole
from product_data.catalogue.making import write_catalogue
from product_data.spree import read_spree
from product_data.table_files import ImageSource, read_rows
from product_data.table_samples import write_sample
from product_data.tables import ProductRow, ProductTables, QueryRow, load_tables

CATALOGUE = {"products": 1500, "image_size": 128}
LEFT_OUT = ("fashion", "ikea")
LEFT_OUT_SPLITS = ("valid", "test")
EVIDENCE: dict[str, dict[str, int | None]] = {
    "fashion": {"train": 1200, "test": 400},
    "ikea": {"test": None},
    "chorus": {"test": 400},
}
"""Shop → split → products of its sample for the evidence study."""
SIDE = 192
"""Longest side in pixels of a stored picture: twice what the small models see."""
_TRAIN, _QUALITY = "train", 92


def write_reference_tables(data: Path, folder: Path) -> list[str]:
    """Write all tables that are not there yet.

    Args:
        data: folder with the folders grocery, spree, street, fashion and ikea.
        folder: folder to write; complete tables in it are kept.

    Returns:
        The names of the tables, whose folders are in `folder`.
    """
    makers: dict[str, Any] = {
        "catalogue": lambda target: write_catalogue(target, **CATALOGUE),
        "grocery": lambda target: _write(target, load_tables(data / "grocery").select(_TRAIN)),
        "spree": lambda target: _write(target, read_spree(data / "spree")),
        "grocery_photos": lambda target: _write_photos(target, _grocery_photos(data / "grocery")),
        "spree_photos": lambda target: _write_photos(target, _spree_photos(data / "spree")),
        "street_photos": lambda target: _write_photos(target, _street_photos(data / "street")),
    }
    makers |= {f"left_out/{name}": _sampler(data / name, dict.fromkeys(LEFT_OUT_SPLITS)) for name in LEFT_OUT}
    return _write_missing(makers, folder)


def write_evidence_tables(data: Path, folder: Path) -> list[str]:
    """Write the samples of the evidence study that are not there yet.

    Args:
        data: folder with the folders fashion, ikea and chorus.
        folder: folder to write; complete tables in it are kept.

    Returns:
        The names of the tables, whose folders are in `folder`.
    """
    return _write_missing(
        {f"evidence/{name}": _sampler(data / name, sizes) for name, sizes in EVIDENCE.items()}, folder
    )


def _sampler(source: Path, sizes: Mapping[str, int | None]) -> Callable[[Path], None]:
    return lambda target: write_sample(source, target, sizes)


def _write_missing(makers: Mapping[str, Callable[[Path], Any]], folder: Path) -> list[str]:
    for name, make in tqdm(makers.items(), desc="tables", delay=3.0):
        target = folder / name
        if not target.is_dir():
            target.parent.mkdir(parents=True, exist_ok=True)
            with written_whole(target) as partial:
                make(partial)
    return list(makers)


def reduced(picture: ImageSource) -> bytes:
    """Return a picture of at most `SIDE` pixels a side as JPEG."""
    image = open_image(picture)
    image.thumbnail((SIDE, SIDE))
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=_QUALITY)
    return stream.getvalue()


def _write(folder: Path, tables: ProductTables) -> None:
    folder.mkdir(parents=True)
    products = [_product(row) for row in tables.products]
    queries = [_query(row) for row in tables.queries]
    for name, rows in (("products", products), ("queries", queries)):
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{name}.parquet")


def _product(row: ProductRow) -> dict[str, Any]:
    return {
        "product_id": row.product_id,
        "title": row.title,
        "description": row.description,
        "category_path": list(row.category),
        "attributes": [{"key": key, "value": value} for key, values in row.attributes.items() for value in values],
        "images": [reduced(image) for image in row.images],
        "split": _TRAIN,
        "group": row.group,
    }


def _query(row: QueryRow) -> dict[str, Any]:
    query = {"query_id": row.query_id, "type": row.type, "text": row.text, "positives": list(row.positives)}
    image = row.record().get("image")
    return query | {"split": _TRAIN, "image": None if image is None else reduced(image)}


def _write_photos(folder: Path, photos: Iterator[tuple[str, ImageSource]]) -> None:
    folder.mkdir(parents=True)
    rows = [{"product_id": name, "images": [reduced(image)], "split": _TRAIN} for name, image in photos]
    pq.write_table(pa.Table.from_pylist(rows), folder / "products.parquet")


def _grocery_photos(folder: Path) -> Iterator[tuple[str, ImageSource]]:
    yield from _pictures_of(load_tables(folder).select(_TRAIN).queries)


def _spree_photos(folder: Path) -> Iterator[tuple[str, ImageSource]]:
    tables = read_spree(folder)
    yield from ((row.product_id, row.images[0]) for row in tables.products)
    yield from _pictures_of(tables.queries)


def _pictures_of(queries: Sequence[QueryRow]) -> Iterator[tuple[str, ImageSource]]:
    yield from ((row.query_id, row.record()["image"]) for row in queries if "image" in row.record())


def _street_photos(folder: Path) -> Iterator[tuple[str, ImageSource]]:
    yield from ((str(row["image_id"]), row["image"]["bytes"]) for row in read_rows(folder / "query_images.parquet"))
