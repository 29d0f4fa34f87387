"""Turn the export of a Spree shop into tables: products, and their other pictures as queries.

`product_data.feeds.spree` reads the file. Texts and attributes are those of the product, without tags and options, so that a
query for a colour has its answer in the pictures.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from product_data.feeds.feed_product import FeedProduct
from product_data.feeds.reading import Feed, read_feed
from product_data.table_files import ImageSource, TableError
from product_data.tables import ProductTables, load_tables

_NOT_FIELDS = ("type", "tags", "brand")


def read_spree(folder: str | Path, *, variants: bool = False) -> ProductTables:
    """Read `products.csv` and `images/` of a folder.

    Args:
        folder: folder with the file and the pictures; a picture has the name at the end of its URL.
        variants (`bool`): whether variants are separate products. If False, a product has its first picture; the
            queries are the pictures of its variants, and the answer is the product. If True, a product is a variant
            with its picture and the value of its option; the queries are the first picture with a text such as "in
            white", and the answer is that variant.

    Raises:
        TableError: a missing file, column or picture.
    """
    feed = read_feed(folder, format="spree")
    products: list[dict[str, Any]] = []
    queries: list[dict[str, Any]] = []
    for item in _with_pictures(feed):
        product, own = _product(item), item.row.images[0]
        if not variants:
            products.append(product | {"images": [own]})
        for name, value, picture in _options(item):
            query = {"query_id": f"{item.row.product_id} in {value}", "image": picture}
            answer = product["product_id"]
            if variants:
                answer = f"{answer} in {value}"
                attributes = [*product["attributes"], {"key": name.casefold(), "value": value}]
                more = {"product_id": answer, "attributes": attributes, "images": [picture]}
                products.append(product | more | {"group": item.row.product_id})
                query |= {"image": own, "text": f"in {value.casefold()}"}
            queries.append(
                query | {"type": "both" if variants else "image", "positives": [answer], "derived": variants}
            )
    tables = load_tables({"products": products, "queries": queries})
    return replace(tables, name="spree variants" if variants else "spree")


def _with_pictures(feed: Feed) -> list[FeedProduct]:
    """Return the products of a feed.

    Raises:
        TableError: a product without a picture, or a picture that is not in the folder.
    """
    products = list(feed)
    for kind in ("no_picture", "missing_picture", "picture_not_fetched"):
        for loss in feed.report.losses.first.get(kind, ()):
            raise TableError(f"{feed.path}, {loss}: found no picture in {feed.path.parent / 'images'}")
    return products


def _options(product: FeedProduct) -> Iterator[tuple[str, str, ImageSource]]:
    """Yield name and value of the first option, and the picture, of each variant with a picture."""
    for variant in product.variants:
        name, value = next(iter(variant.options.items()))
        if variant.images:
            yield name, value, product.row.images[variant.images[0]]


def _product(product: FeedProduct) -> dict[str, Any]:
    options = {name for variant in product.variants for name in variant.options}
    fields = {key: values for key, values in product.row.attributes.items() if key not in {*options, *_NOT_FIELDS}}
    return {
        "product_id": product.row.product_id,
        "title": product.row.title,
        "description": product.row.description,
        "category_path": list(product.row.category),
        "attributes": [{"key": key, "value": list(values)} for key, values in fields.items()],
    }
