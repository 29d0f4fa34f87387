"""Read the product file of Shopify: variants and further pictures are rows with the product's Handle.

Columns: "Using CSV files to import and export products", help.shopify.com, in their names before and since 2025.
"""

from __future__ import annotations

from collections.abc import Sequence

from product_data.feeds.cells import Row, is_false, split_pictures
from product_data.feeds.feed_format import FeedFormat
from product_data.feeds.feed_product import BACKORDER, IN_STOCK, OUT_OF_STOCK, UNKNOWN, Variant
from product_data.feeds.product_builder import ProductBuilder

_DEFAULT = ("title", "default title")  # the option of a product without options


class Shopify(FeedFormat):
    """Shopify: `Handle` is the id, `Vendor` the brand; `Option1 Name` to `Option3 Value` are the options of a variant."""

    name = "shopify"
    title = "Shopify product CSV"
    columns = {
        "Handle": "key",
        "URL handle": "key",
        "Title": "title",
        "Body (HTML)": "description",
        "Description": "description",
        "Vendor": "brand",
        "Product Category": "category",
        "Standardized Product Type": "category",
        "Type": "product_type",
        "Custom Product Type": "product_type",
        "Tags": "tags",
        "Published": "published",
        "Published on online store": "published",
        "Status": "status",
        "Variant SKU": "variant_id",
        "SKU": "variant_id",
        "Variant Price": "price",
        "Price": "price",
        "Variant Inventory Qty": "stock",
        "Inventory quantity": "stock",
        "Variant Inventory Policy": "policy",
        "Continue selling when out of stock": "policy",
        "Variant Inventory Tracker": "tracker",
        "Inventory tracker": "tracker",
        "Image Src": "images",
        "Product image URL": "images",
        "Image Position": "position",
        "Variant Image": "variant_image",
        "Variant image URL": "variant_image",
    }
    patterns = {
        r"Option(\d) Name": r"option_name.\1",
        r"Option(\d) Value": r"option_value.\1",
        r"Google Shopping / (Gender|Age Group|Condition)": r"google.\1",
        r"(.+?) \(product\.metafields\.[^)]+\)": r"field.\1",
    }
    needed = (("key",), ("title",))
    typical = (
        "Handle",
        "URL handle",
        "Body (HTML)",
        "Vendor",
        "Published on online store",
        "Variant SKU",
        "Variant Price",
        "Variant Inventory Qty",
        "Variant Grams",
        "Compare-at price",
        "Option1 Name",
        "Option1 Value",
        "Image Src",
        "Product image URL",
        "Variant image URL",
        "Image Position",
        "Variant Image",
    )
    prices = ("price",)

    def key(self, row: Row) -> str:
        return row.get("key")

    def continues(self, row: Row) -> bool:
        return not row.get("title")

    def fill(self, product: ProductBuilder, rows: Sequence[Row]) -> None:
        names: dict[int, str] = {}
        self._pictures(product, rows)
        for row in rows:
            for role in ("title", "description", "brand"):
                product.text(row, role)
            self._category(product, row)
            self._attributes(product, row)
            for number in range(1, 4):
                if name := row.get(f"option_name.{number}"):
                    names.setdefault(number, name)
            self._variant(product, row, names)
            self._status(product, row)

    def _pictures(self, product: ProductBuilder, rows: Sequence[Row]) -> None:
        """Add the product's pictures in the order of `Image Position`; a picture without one follows those above it."""
        placed: list[tuple[int, int, Row]] = []
        last = 0
        for place, row in enumerate(rows):
            if row.get("images"):
                given = row.get("position")
                last = int(given) if given.isdecimal() else last
                placed.append((last, place, row))
        for _, _, row in sorted(placed, key=lambda entry: entry[:2]):
            product.images(row, "images")

    def _variant(self, product: ProductBuilder, row: Row, names: dict[int, str]) -> None:
        values = {names.get(n, f"option {n}"): row.get(f"option_value.{n}") for n in range(1, 4)}
        options = {
            name: product.cells.plain(value, row, "option_value.1", product.product_id)
            for name, value in values.items()
            if value and (name.casefold(), value.casefold()) != _DEFAULT
        }
        price = product.money(row, "price")
        is_variant = any(values.values()) or row.get("variant_id") or price is not None or row.get("variant_image")
        if is_variant:
            pictures = product.images(row, "variant_image")
            available = _availability(product, row)
            product.variant(row, Variant(row.get("variant_id"), options, price, available, pictures))
        elif not (row.get("title") or split_pictures(row.get("images"))):
            product.cells.note(
                "unused_row", row, "", product.product_id, why="it has neither a title, a variant nor a picture"
            )

    def _category(self, product: ProductBuilder, row: Row) -> None:
        path = product.cells.category(row, "category", product.product_id)
        kind = product.cells.text(row, "product_type", product.product_id)
        if path or kind:
            product.category = product.category or path or (kind,)
            if path:
                product.attribute("type", [kind])

    def _attributes(self, product: ProductBuilder, row: Row) -> None:
        product.attribute("tags", row.get("tags").split(","), row, "tags")
        for role in row.columns:
            group, _, name = role.partition(".")
            if group == "google":
                product.attribute(name.casefold(), [row.get(role)], row, role)
            elif group == "field":
                product.attribute(name, row.get(role).split(";"), row, role)

    def _status(self, product: ProductBuilder, row: Row) -> None:
        status, published = row.get("status"), row.get("published")
        if status.casefold() not in ("", "active"):
            product.cells.note("hidden_product", row, "status", product.product_id, status)
        elif published and is_false(published):
            product.cells.note("hidden_product", row, "published", product.product_id, published)


def _availability(product: ProductBuilder, row: Row) -> str:
    """Return the availability of a variant: without a tracker it is always in stock."""
    stock = product.cells.stock(row, "stock", product.product_id)
    if stock is None:
        return UNKNOWN
    if stock > 0 or ("tracker" in row.columns and not row.get("tracker")):
        return IN_STOCK
    continues = row.get("policy").casefold() in ("continue", "true")
    return BACKORDER if continues else OUT_OF_STOCK


FORMAT = Shopify()
