"""Write the products of a shop's feed as the project's own products table."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from product_data.feeds.feed_product import FeedProduct
from product_data.feeds.reading import read_feed
from product_data.table_files import ImageSource, is_address


def write_feed_as_table(feed: Path, folder: Path, images_root: Path | None, notes: list[str]) -> Path:
    """Write a feed as products.jsonl in a folder, and return that file.

    Args:
        feed: the file of the feed.
        folder: the folder, made if missing.
        images_root: folder that paths of pictures are relative to. Default: the folder of the feed.
        notes: receives the feed's report, and how many products have variants, which the table does not hold.

    Raises:
        TableError: a feed that cannot be read.
    """
    products = read_feed(feed, images_root=images_root)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "products.jsonl"
    with_variants = 0
    with path.open("w", encoding="utf-8") as stream:
        for product in products:
            with_variants += bool(product.variants)
            stream.write(json.dumps(_row(product), ensure_ascii=False) + "\n")
    notes.append(f"products: read as a feed: {products.report}")
    if with_variants:
        notes.append(f"products: products.jsonl does not hold the variants of {with_variants} products")
    return path


def _row(product: FeedProduct) -> dict[str, Any]:
    row = product.row
    fields: dict[str, Any] = {
        "product_id": row.product_id,
        "title": row.title,
        "description": row.description,
        "category_path": list(row.category),
        "attributes": {key: list(values) for key, values in row.attributes.items()},
        "images": [_path(image) for image in row.images],
        "split": row.split,
        "group": row.group,
        "price": product.price,
        "currency": product.currency,
        "availability": product.availability,
        "brand": product.brand,
        "url": product.url,
    }
    return {name: value for name, value in fields.items() if value not in ("", None, [], {})}


def _path(image: ImageSource) -> str:
    return str(image) if is_address(image) else os.path.abspath(str(image))
