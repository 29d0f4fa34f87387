"""Read a Google Merchant feed: a text file with tabs, or RSS or Atom with elements `g:…`.

Columns: "Product data specification", support.google.com/merchants.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from product_data.feeds.cells import Row
from product_data.feeds.feed_format import FeedFormat
from product_data.feeds.feed_product import Variant
from product_data.feeds.product_builder import ProductBuilder
from product_data.feeds.xml_items import PART

_OPTIONS = ("color", "size", "material", "pattern")
_ATTRIBUTES = (*_OPTIONS, "gender", "age_group", "size_type", "condition", "gtin", "mpn")


class GoogleMerchant(FeedFormat):
    """Google Merchant: items with the same `item_group_id` are variants of one product, whose id is that group."""

    name = "google_merchant"
    title = "Google Merchant feed"
    columns = {
        "id": "key",
        "item_group_id": "group",
        "title": "title",
        "description": "description",
        "content": "description",
        "link": "url",
        "image_link": "images",
        "additional_image_link": "more_images",
        "additional_image_links": "more_images",
        "availability": "availability",
        "price": "price",
        "sale_price": "sale_price",
        "sale_price_effective_date": "sale_dates",
        "brand": "brand",
        "google_product_category": "category.google",
        "product_type": "category.own",
        "product_detail": "details",
        "product_highlight": "highlights",
        **{name: f"attribute.{name.replace('_', ' ')}" for name in _ATTRIBUTES},
    }
    needed = (("key",), ("title", "description", "images"))
    typical = (
        "image_link",
        "additional_image_link",
        "availability",
        "condition",
        "gtin",
        "mpn",
        "google_product_category",
        "item_group_id",
        "identifier_exists",
        "age_group",
        "product_detail",
        "shipping",
        "link",
    )

    def roles_of(self, header: Iterable[str]) -> dict[str, str]:
        """Return role → column; an element of Google's namespace comes before one of RSS or Atom."""
        return super().roles_of(sorted(header, key=lambda column: not column.startswith("g:")))

    def key(self, row: Row) -> str:
        return row.get("group") or row.get("key")

    def fill(self, product: ProductBuilder, rows: Sequence[Row]) -> None:
        seen: set[str] = set()
        for row in rows:
            if row.get("key") in seen:
                why = "an earlier row has this id; it counts"
                product.cells.note("duplicate_id", row, "key", product.product_id, row.get("key"), why)
                continue
            seen.add(row.get("key"))
            for role in ("title", "description", "brand"):
                product.text(row, role, several=bool(row.get("group")))
            if row.get("url"):
                product.texts.setdefault("url", row.get("url").splitlines()[0])
            self._category(product, row)
            self._attributes(product, row)
            pictures = product.images(row, "images", "more_images")
            price, available = (
                self._price(product, row),
                product.cells.availability(row, "availability", product.product_id),
            )
            if row.get("group"):
                options = {name: value for name in _OPTIONS if (value := product.cell(row, f"attribute.{name}"))}
                product.variant(row, Variant(row.get("key"), options, price, available, pictures))
            else:
                product.price, product.availability = price, available

    def _price(self, product: ProductBuilder, row: Row) -> float | None:
        if row.get("sale_dates") and row.get("sale_price"):
            why = f"the sale price counts only in {row.get('sale_dates')!r}"
            product.cells.note("dated_sale_price", row, "sale_price", product.product_id, row.get("sale_price"), why)
            return product.money(row, "price")
        return product.money(row, "sale_price", "price")

    def _category(self, product: ProductBuilder, row: Row) -> None:
        own = product.cells.category(row, "category.own", product.product_id)
        google: tuple[str, ...] = ()
        if (number := row.get("category.google")).isdecimal():
            product.cells.note("category_number", row, "category.google", product.product_id, number)
        else:
            google = product.cells.category(row, "category.google", product.product_id)
        product.category = product.category or own or google
        if own and google:
            product.attribute("google product category", [" > ".join(google)])

    def _attributes(self, product: ProductBuilder, row: Row) -> None:
        for role in row.columns:
            if role.startswith("attribute."):
                product.attribute(role.removeprefix("attribute."), [row.get(role)], row, role)
        product.attribute("highlights", row.get("highlights").splitlines(), row, "highlights")
        for detail in _details(row.get("details")):
            parts = [part.strip() for part in detail]
            if len(parts) < 2 or not parts[-1] or not parts[-2]:
                expected = "expected section:name:value"
                product.cells.note(
                    "unreadable_attribute", row, "details", product.product_id, ":".join(detail), expected
                )
            else:
                product.attribute(parts[-2].casefold(), [parts[-1]], row, "details")


def _details(cell: str) -> list[list[str]]:
    """Return [section, name, value] of each detail of a cell, of XML or of a text file."""
    if PART in cell:
        return [_named_parts(line) for line in cell.splitlines()]
    return [part.split(":", 2) for part in _cut(cell) if part.strip()]


def _named_parts(line: str) -> list[str]:
    """Return section, name and value of the child elements of a detail."""
    parts = dict(part.partition(":")[::2] for part in line.split(PART))
    return [parts.get(name, "") for name in ("section_name", "attribute_name", "attribute_value")]


def _cut(cell: str) -> list[str]:
    """Return the details of a cell; a comma between quotes does not separate them, and the quotes are removed."""
    parts, inside = [""], False
    for sign in cell.replace('""', "\0"):
        if sign == '"':
            inside = not inside
        elif sign in ",\n" and not inside:
            parts.append("")
        else:
            parts[-1] += sign
    return [part.replace("\0", '"') for part in parts]


FORMAT = GoogleMerchant()
