"""Read the product export of WooCommerce: variations are rows whose `Parent` is the SKU or `id:ID` of their product.

Columns: "Product CSV Import Schema", github.com/woocommerce/woocommerce/wiki, in English.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from product_data.feeds.cells import Row, split_escaped
from product_data.feeds.feed_format import FeedFormat
from product_data.feeds.feed_product import BACKORDER, IN_STOCK, OUT_OF_STOCK, UNKNOWN, Variant
from product_data.feeds.product_builder import ProductBuilder


class WooCommerce(FeedFormat):
    """WooCommerce: the id is the SKU, or `id:ID` for a product without one."""

    name = "woocommerce"
    title = "WooCommerce product export"
    columns = {
        "ID": "number",
        "Type": "type",
        "SKU": "sku",
        "Name": "title",
        "Published": "published",
        "Short description": "short_description",
        "Description": "description",
        "Date sale price starts": "sale_start",
        "Date sale price ends": "sale_end",
        "In stock?": "availability",
        "Stock": "stock",
        "Backorders allowed?": "backorders",
        "Sale price": "sale_price",
        "Regular price": "price",
        "Categories": "category",
        "Tags": "tags",
        "Images": "images",
        "Parent": "parent",
        "External URL": "url",
        "Brands": "brand",
    }
    patterns = {
        r"Attribute (\d+) name": r"attribute_name.\1",
        r"Attribute (\d+) value\(s\)": r"attribute_values.\1",
    }
    needed = (("sku", "number"), ("title",), ("type",))
    typical = (
        "Is featured?",
        "Visibility in catalog",
        "Visibility in catalogue",
        "Short description",
        "Tax status",
        "In stock?",
        "Backorders allowed?",
        "Sold individually?",
        "Sale price",
        "Regular price",
        "Categories",
        "Images",
        "Parent",
        "Attribute 1 name",
        "Attribute 1 value(s)",
    )

    def key(self, row: Row) -> str:
        if _is_variation(row):
            return row.get("parent")
        return _own_id(row)

    def aliases(self, row: Row) -> Iterator[tuple[str, str]]:
        if not _is_variation(row) and row.get("sku") and row.get("number"):
            yield f"id:{row.get('number')}", row.get("sku")

    def fill(self, product: ProductBuilder, rows: Sequence[Row]) -> None:
        parents = [row for row in rows if not _is_variation(row)]
        if not parents:
            why = f"no row has the id {product.product_id!r}; the texts are those of the first variant"
            product.cells.note("orphan_variant", rows[0], "parent", product.product_id, rows[0].get("title"), why)
        for row in parents[1:]:
            why = "an earlier row has this id; it counts"
            product.cells.note("duplicate_id", row, "sku", product.product_id, _own_id(row), why)
        self._main(product, (parents or rows)[0])
        for row in rows:
            if _is_variation(row):
                self._variation(product, row)

    def _main(self, product: ProductBuilder, row: Row) -> None:
        for role in ("title", "brand", "url"):
            product.text(row, role)
        roles = ("short_description", "description")
        texts = [product.cells.plain(_lines(row.get(role)), row, role, product.product_id) for role in roles]
        product.texts["description"] = "\n".join(text for text in texts if text)
        product.category = product.cells.category(row, "category", product.product_id, _paths)
        product.attribute("tags", split_escaped(row.get("tags"), ","), row, "tags")
        for name, values, role in _attributes(row):
            product.attribute(name, values, row, role)
        product.images(row, "images")
        product.price, product.availability = self._price(product, row), _availability(product, row)
        if row.get("published") not in ("", "1"):
            product.cells.note("hidden_product", row, "published", product.product_id, row.get("published"))

    def _variation(self, product: ProductBuilder, row: Row) -> None:
        pictures = product.images(row, "images")
        options = {
            name: product.cells.plain(values[0], row, role, product.product_id)
            for name, values, role in _attributes(row)
            if values
        }
        price, available = self._price(product, row), _availability(product, row)
        product.variant(row, Variant(_own_id(row), options, price, available, pictures))

    def _price(self, product: ProductBuilder, row: Row) -> float | None:
        dates = [date for role in ("sale_start", "sale_end") if (date := row.get(role))]
        if dates and row.get("sale_price"):
            why = f"the sale price has the dates {' – '.join(dates)}"
            product.cells.note("dated_sale_price", row, "sale_price", product.product_id, row.get("sale_price"), why)
            return product.money(row, "price")
        return product.money(row, "sale_price", "price")


def _is_variation(row: Row) -> bool:
    return "variation" in [kind.strip() for kind in row.get("type").casefold().split(",")]


def _own_id(row: Row) -> str:
    number = row.get("number")
    return row.get("sku") or (f"id:{number}" if number else "")


def _lines(text: str) -> str:
    r"""Return a text with its line breaks, which the export writes as "\n"."""
    return text.replace("\\n", "\n")


def _paths(cell: str) -> list[tuple[str, ...]]:
    """Return the category paths of a cell: "Clothing > Hoodies, Music"."""
    return [tuple(split_escaped(path, ">")) for path in split_escaped(cell, ",")]


def _attributes(row: Row) -> Iterator[tuple[str, list[str], str]]:
    """Yield name, values and role of each numbered attribute of a row."""
    for role in row.columns:
        group, _, number = role.partition(".")
        if group == "attribute_values" and (name := row.get(f"attribute_name.{number}")):
            yield name, split_escaped(row.get(role), ","), role


def _availability(product: ProductBuilder, row: Row) -> str:
    if row.get("availability"):
        return product.cells.availability(row, "availability", product.product_id)
    stock = product.cells.stock(row, "stock", product.product_id)
    if stock is None:
        return UNKNOWN
    return IN_STOCK if stock > 0 else BACKORDER if row.get("backorders") in ("1", "notify") else OUT_OF_STOCK


FORMAT = WooCommerce()
