"""Read the product import file of the shop system Spree into tables: products, and their other pictures as queries.

The file has a row for each product and, below it, a row for each of its variants, all with the product's `slug`. A
product's first row has its name, description and category; a variant's row has the value of an option (such as a
colour) and a picture.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from product_data.table_files import TableError, read_rows
from product_data.tables import ProductTables, load_tables

_FIELD = "custom_field.custom."
_PATH_SEPARATOR = " -> "
_NEEDED = ("slug", "name", "image1_src", "option1_value")


def read_spree(folder: str | Path, *, variants: bool = False) -> ProductTables:
    """Read `products.csv` and `images/` of a folder.

    Args:
        folder: folder with the file and the pictures; a picture has the name at the end of its URL.
        variants (`bool`): whether variants are separate products. If False, a product has its first picture; the
            queries are the pictures of its variants, and the answer is the product. If True, a product is a variant
            with its picture and the value of its option; the queries are the first picture with a text such as "in
            white", and the answer is that variant.

    Raises:
        TableError: a missing file, column or picture, or a variant before its product.
    """
    folder = Path(folder)
    path = folder / "products.csv"
    rows = read_rows(path)
    if missing := [name for name in _NEEDED if rows and name not in rows[0]]:
        raise TableError(
            f"{path}: found no column {', '.join(map(repr, missing))}; expected a product import file of Spree"
        )
    products: list[dict[str, Any]] = []
    queries: list[dict[str, Any]] = []
    for first, others in _products(path, rows):
        own = _picture(folder, first)
        product = _product(first)
        if not variants:
            products.append(product | {"images": [own]})
        for row in others:
            value = row["option1_value"]
            query = {"query_id": f"{first['slug']} in {value}", "image": _picture(folder, row)}
            answer = product["product_id"]
            if variants:
                answer = f"{answer} in {value}"
                option = {"key": row["option1_name"].casefold(), "value": value}
                attributes = [*product["attributes"], option]
                more = {"product_id": answer, "attributes": attributes, "images": [query["image"]]}
                products.append(product | more | {"group": first["slug"]})
                query |= {"image": own, "text": f"in {value.casefold()}"}
            queries.append(
                query | {"type": "both" if variants else "image", "positives": [answer], "derived": variants}
            )
    tables = load_tables({"products": products, "queries": queries})
    return replace(tables, name="spree variants" if variants else "spree")


def _products(path: Path, rows: list[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """Yield the first row of each product, and the rows of its variants that have a picture."""
    by_slug: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_slug.setdefault(row["slug"], []).append(row)
    for slug, (first, *others) in by_slug.items():
        if not first["name"] or first["option1_value"]:
            raise TableError(f"{path}, slug {slug!r}: found a variant in the first row; expected the product's own row")
        yield first, [row for row in others if row["option1_value"] and row["image1_src"]]


def _product(row: dict[str, Any]) -> dict[str, Any]:
    fields = {name.removeprefix(_FIELD): value for name, value in row.items() if name.startswith(_FIELD) and value}
    return {
        "product_id": row["slug"],
        "title": row["name"],
        "description": row.get("description") or "",
        "category_path": [part for part in (row.get("category1") or "").split(_PATH_SEPARATOR) if part],
        "attributes": [{"key": name.replace("_", " "), "value": value} for name, value in fields.items()],
    }


def _picture(folder: Path, row: dict[str, Any]) -> str:
    name = PurePosixPath(urlsplit(row["image1_src"] or "").path).name
    path = folder / "images" / name
    if not name or not path.is_file():
        raise TableError(f"{folder / 'products.csv'}, slug {row['slug']!r}: found no picture {path}")
    return str(path.resolve())
