"""Read the product file of Spree: a row for each product and, below it, one for each variant, all with its `slug`.

Texts in other languages are in `product_translations.csv` beside it. Columns: Spree's product import (docs.spreecommerce.org).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from product_data.feeds.cells import Row, is_false, is_true
from product_data.feeds.delimited import DelimitedFile
from product_data.feeds.feed_format import FeedFormat
from product_data.feeds.feed_product import BACKORDER, IN_STOCK, OUT_OF_STOCK, UNKNOWN, Variant
from product_data.feeds.product_builder import ProductBuilder
from product_data.table_files import is_absent

TRANSLATIONS = "product_translations.csv"
_MAX = 9  # numbered columns


class Spree(FeedFormat):
    """Spree: `slug` is the id; options are `option1_name` and `option1_value`, pictures `image1_src`, …"""

    name = "spree"
    title = "Spree product export"
    columns = {
        "slug": "key",
        "name": "title",
        "sku": "variant_id",
        "price": "price",
        "currency": "currency",
        "status": "status",
        "description": "description",
        "tags": "tags",
        "product_type": "product_type",
        "inventory_count": "stock",
        "inventory_backorderable": "backorderable",
        "track_inventory": "tracked",
    }
    patterns = {
        r"category(\d)": r"category.\1",
        r"option(\d)_name": r"option_name.\1",
        r"option(\d)_value": r"option_value.\1",
        r"image(\d)_src": r"image.\1",
        r"custom_field\.(?:\w+\.)?(\w+)": r"field.\1",
    }
    needed = (("key",), ("title",))
    typical = (
        "slug",
        "image1_src",
        "option1_name",
        "option1_value",
        "category1",
        "compare_at_price",
        "available_on",
        "discontinue_on",
        "inventory_count",
        "inventory_backorderable",
        "track_inventory",
        "tax_category",
    )
    prices = ("price",)
    default_language = "en"

    def key(self, row: Row) -> str:
        return row.get("key")

    def languages(self, path: Path) -> dict[str, None]:
        return dict.fromkeys(locale for _, locale, _ in _translations(path))

    def translations(self, path: Path, language: str) -> Iterator[tuple[str, dict[str, str]]]:
        for slug, locale, texts in _translations(path):
            if locale == language:
                yield slug, texts

    def fill(self, product: ProductBuilder, rows: Sequence[Row]) -> None:
        for row in rows:
            before = len(product.pictures), len(product.variants)
            for role in ("title", "description"):
                product.text(row, role)
            self._category(product, row)
            self._attributes(product, row)
            pictures = product.images(row, *(f"image.{number}" for number in range(1, _MAX + 1)))
            if options := self._options(row):
                price, available = product.money(row, "price"), _availability(product, row)
                product.variant(row, Variant(row.get("variant_id"), options, price, available, pictures))
            elif row.get("title"):
                product.price, product.availability = product.money(row, "price"), _availability(product, row)
                if row.get("status").casefold() not in ("", "active"):
                    product.cells.note("hidden_product", row, "status", product.product_id, row.get("status"))
            elif before == (len(product.pictures), len(product.variants)) and not self._only_price(product, row):
                product.cells.note(
                    "unused_row", row, "", product.product_id, why="it has neither a name, an option nor a new picture"
                )

    def _only_price(self, product: ProductBuilder, row: Row) -> bool:
        """Return whether a row repeats a variant for its price in another currency, which is noted."""
        if not any(variant.variant_id == row.get("variant_id") for variant in product.variants.values()):
            return False
        return product.money(row, "price") is None

    def _options(self, row: Row) -> dict[str, str]:
        pairs = ((row.get(f"option_name.{n}"), row.get(f"option_value.{n}"), n) for n in range(1, _MAX + 1))
        return {name or f"option {number}": value for name, value, number in pairs if value}

    def _category(self, product: ProductBuilder, row: Row) -> None:
        for number in range(1, _MAX + 1):
            path = product.cells.category(row, f"category.{number}", product.product_id)
            product.category = product.category or path
            if path not in ((), product.category):
                product.cells.note(
                    "several_categories",
                    row,
                    f"category.{number}",
                    product.product_id,
                    " > ".join(path),
                    "the first counts",
                )

    def _attributes(self, product: ProductBuilder, row: Row) -> None:
        product.attribute("type", [row.get("product_type")], row, "product_type")
        product.attribute("tags", row.get("tags").split(","), row, "tags")
        for role in row.columns:
            if role.startswith("field."):
                product.attribute(role.removeprefix("field.").replace("_", " "), [row.get(role)], row, role)


def _availability(product: ProductBuilder, row: Row) -> str:
    if row.get("tracked") and is_false(row.get("tracked")):
        return IN_STOCK
    stock = product.cells.stock(row, "stock", product.product_id)
    if stock is None:
        return UNKNOWN
    return IN_STOCK if stock > 0 else BACKORDER if is_true(row.get("backorderable")) else OUT_OF_STOCK


def _translations(path: Path) -> Iterator[tuple[str, str, dict[str, str]]]:
    """Yield slug, language and texts of each row of the translations beside a feed."""
    file = path.with_name(TRANSLATIONS)
    if not file.is_file():
        return
    for row in DelimitedFile(file).rows():
        texts = {
            role: row.cells.get(column, "") for role, column in (("title", "name"), ("description", "description"))
        }
        slug, locale = row.cells.get("slug", ""), row.cells.get("locale", "")
        if slug and locale:
            yield slug, locale, {role: text for role, text in texts.items() if not is_absent(text)}


FORMAT = Spree()
