"""Read the product export of Magento 2 (Adobe Commerce): a configurable product names its variants by SKU.

A store view has rows of its own with the SKU and texts in its language. Columns: "Product data structure",
experienceleague.adobe.com.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from product_data.feeds.cells import Row, is_true, split_escaped
from product_data.feeds.feed_format import FeedFormat
from product_data.feeds.feed_product import BACKORDER, IN_STOCK, OUT_OF_STOCK, UNKNOWN, Variant
from product_data.feeds.product_builder import ProductBuilder

_PAIR = re.compile(r",(?=\s*\w+=)")
_ROOT = "default category"  # the root that Magento's installation makes; it says nothing about a product
_DEFAULT = "default"
_NO_PICTURE = "no_selection"


class Magento(FeedFormat):
    """Magento 2: `sku` is the id; `configurable_variations` holds the SKUs and options of a product's variants."""

    name = "magento"
    title = "Magento 2 product export"
    columns = {
        "sku": "key",
        "store_view_code": "store_view",
        "name": "title",
        "description": "description",
        "short_description": "short_description",
        "categories": "category",
        "product_online": "online",
        "visibility": "visibility",
        "price": "price",
        "special_price": "sale_price",
        "special_price_from_date": "sale_start",
        "special_price_to_date": "sale_end",
        "base_image": "images",
        "additional_images": "more_images",
        "additional_attributes": "attributes",
        "configurable_variations": "variations",
        "qty": "stock",
        "is_in_stock": "availability",
        "allow_backorders": "backorders",
    }
    needed = (("key",), ("title",))
    typical = (
        "store_view_code",
        "attribute_set_code",
        "product_type",
        "product_websites",
        "product_online",
        "tax_class_name",
        "visibility",
        "url_key",
        "base_image",
        "additional_images",
        "additional_attributes",
        "configurable_variations",
        "is_in_stock",
    )
    default_language = _DEFAULT

    def key(self, row: Row) -> str:
        return row.get("key")

    def aliases(self, row: Row) -> Iterator[tuple[str, str]]:
        for options in _variations(row):
            if (sku := options.get("sku")) and row.get("key"):
                yield sku, row.get("key")

    def language_of(self, row: Row) -> str:
        return _store_view(row)

    def fill(self, product: ProductBuilder, rows: Sequence[Row]) -> None:
        own = [row for row in rows if row.get("key") == product.product_id]
        main = [row for row in own if not _store_view(row)]
        for row in main[1:]:
            why = "an earlier row has this id; it counts"
            product.cells.note("duplicate_id", row, "key", product.product_id, row.get("key"), why)
        for row in own:
            if product.language and _store_view(row) == product.language:
                product.translated |= self._texts(product, row)
        first = (main or own or list(rows))[0]
        if not main:
            why = "no row has texts for all store views; the first row is read"
            product.cells.note("orphan_variant", first, "key", product.product_id, first.get("key"), why)
        self._main(product, first)
        children = {
            row.get("key"): row
            for row in reversed(rows)
            if row.get("key") != product.product_id and not _store_view(row)
        }
        for options in _variations(first):
            self._variant(product, first, dict(options), children)

    def _texts(self, product: ProductBuilder, row: Row) -> bool:
        """Take title and description where no earlier row has given them; return whether the row has a title."""
        roles = ("short_description", "description")
        texts = [product.cells.text(row, role, product.product_id) for role in roles]
        for name, text in (
            ("title", product.cells.text(row, "title", product.product_id)),
            ("description", "\n".join(filter(None, texts))),
        ):
            if text:
                product.texts.setdefault(name, text)
        return bool(row.get("title"))

    def _main(self, product: ProductBuilder, row: Row) -> None:
        self._texts(product, row)
        product.category = product.cells.category(row, "category", product.product_id, _paths)
        for name, values in _attributes(product, row):
            product.attribute(name, values, row, "attributes")
        self._pictures(product, row)
        product.price, product.availability = self._price(product, row), _availability(product, row)
        if row.get("online") == "2":
            product.cells.note("hidden_product", row, "online", product.product_id, "2", "2 means disabled")
        elif row.get("visibility").casefold() == "not visible individually":
            product.cells.note("hidden_product", row, "visibility", product.product_id, row.get("visibility"))

    def _variant(self, product: ProductBuilder, parent: Row, options: dict[str, str], children: dict[str, Row]) -> None:
        sku = options.pop("sku", "")
        plain = product.cells.plain
        options = {name: plain(value, parent, "variations", product.product_id) for name, value in options.items()}
        child = children.get(sku)
        if child is None:
            why = f"no row has the SKU {sku!r}; the variant has its options only"
            product.cells.note("unreadable_attribute", parent, "variations", product.product_id, sku, why)
            product.variant(parent, Variant(sku, options))
            return
        pictures = self._pictures(product, child)
        product.variant(
            child, Variant(sku, options, self._price(product, child), _availability(product, child), pictures)
        )
        for name, values in _attributes(product, child):
            product.attribute(name, values, child, "attributes")

    def _pictures(self, product: ProductBuilder, row: Row) -> tuple[int, ...]:
        named = [
            (row.get("images"), "images"),
            *((source, "more_images") for source in row.get("more_images").split(",")),
        ]
        return product.add_images(
            [(source.strip(), role) for source, role in named if source.strip() not in ("", _NO_PICTURE)], row
        )

    def _price(self, product: ProductBuilder, row: Row) -> float | None:
        dates = [date for role in ("sale_start", "sale_end") if (date := row.get(role))]
        if dates and row.get("sale_price"):
            why = f"the special price has the dates {' – '.join(dates)}"
            product.cells.note("dated_sale_price", row, "sale_price", product.product_id, row.get("sale_price"), why)
            return product.money(row, "price")
        return product.money(row, "sale_price", "price")


def _store_view(row: Row) -> str:
    view = row.get("store_view")
    return "" if view in ("all", "admin", _DEFAULT) else view


def _variations(row: Row) -> Iterator[dict[str, str]]:
    """Yield SKU and options of each variant: "sku=A-1,size=M|sku=A-2,size=L"."""
    for part in row.get("variations").split("|"):
        pairs = (pair.partition("=")[::2] for pair in _PAIR.split(part) if "=" in pair)
        if options := {name.strip().replace("_", " "): value.strip() for name, value in pairs if value.strip()}:
            yield options


def _attributes(product: ProductBuilder, row: Row) -> Iterator[tuple[str, list[str]]]:
    """Yield names and values of "color=Red,material=Cotton|Wool"; a comma within a value does not separate."""
    cell = row.get("attributes")
    for pair in _PAIR.split(cell) if cell else ():
        name, equals, value = pair.partition("=")
        if not equals:
            expected = "expected name=value"
            product.cells.note("unreadable_attribute", row, "attributes", product.product_id, pair, expected)
        else:
            yield name.strip().replace("_", " "), value.strip().strip('"').split("|")


def _paths(cell: str) -> list[tuple[str, ...]]:
    """Return the category paths of a cell, without Magento's root: "Default Category/Gear/Bags,Default Category/New"."""
    paths = [tuple(split_escaped(path, "/")) for path in split_escaped(cell, ",")]
    return [path[1:] if path and path[0].casefold() == _ROOT else path for path in paths]


def _availability(product: ProductBuilder, row: Row) -> str:
    if row.get("availability"):
        stocked = is_true(row.get("availability"))
        stock = product.cells.stock(row, "stock", product.product_id)
        if stocked and stock is not None and stock <= 0 and is_true(row.get("backorders")):
            return BACKORDER
        return IN_STOCK if stocked else OUT_OF_STOCK
    stock = product.cells.stock(row, "stock", product.product_id)
    return UNKNOWN if stock is None else IN_STOCK if stock > 0 else OUT_OF_STOCK


FORMAT = Magento()
