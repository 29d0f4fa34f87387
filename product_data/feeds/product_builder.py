"""Build one product of a feed from the cells of its rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from product_data.feeds.cells import CellReader, Row, split_pictures
from product_data.feeds.feed_product import (
    BACKORDER,
    IN_STOCK,
    OUT_OF_STOCK,
    PREORDER,
    UNKNOWN,
    FeedProduct,
    Variant,
)
from product_data.rows import ProductRow
from product_data.table_files import ImageSource

_BEST_FIRST = (IN_STOCK, PREORDER, BACKORDER, OUT_OF_STOCK)


class ProductBuilder:
    """Collect what the rows of one product say. The first row that fills a field counts; a different one is noted.

    Args:
        product_id (`str`): its id.
        cells: reads the cells.
        language (`str`): the language of its texts, for formats whose rows have one; "" for the default.

    `more` holds fields of `ProductRow` that are neither texts, category, attributes nor pictures; `translated` says whether
    a row had texts in the language.
    """

    def __init__(self, product_id: str, cells: CellReader, language: str = "") -> None:
        self.product_id, self.cells, self.language = product_id, cells, language
        self.more: dict[str, Any] = {}
        self.translated = False
        self.texts: dict[str, str] = {}
        self.category: tuple[str, ...] = ()
        self.attributes: dict[str, dict[str, None]] = {}
        self.pictures: list[ImageSource] = []
        self.places: list[tuple[Row, str]] = []
        self.rows_of_variants: list[Row] = []
        self.variants: dict[tuple[str, tuple[tuple[str, str], ...]], Variant] = {}
        self.currency, self.price, self.availability = "", None, UNKNOWN  # type: str, float | None, str

    def text(self, row: Row, role: str, name: str = "") -> None:
        """Take a text ("title", "description", "brand" or "url") from the column of a role.

        Args:
            row: the row.
            role: the role of the column.
            name: the text. Default: the role.
        """
        name = name or role
        text = row.get(role) if name == "url" else self.cells.text(row, role, self.product_id)
        if text and self.texts.setdefault(name, text) != text:
            self.cells.note(
                "conflicting_cells", row, role, self.product_id, text, f"the product's {name} is another one"
            )

    def attribute(self, key: str, values: Iterable[str], row: Row | None = None, role: str = "") -> None:
        """Add values of an attribute; each value counts once. HTML of a row's cell is removed."""
        for value in values:
            if row is not None:
                value = self.cells.plain(value, row, role, self.product_id)
            if key.strip() and value.strip():
                self.attributes.setdefault(key.strip(), {})[value.strip()] = None

    def images(self, row: Row, *roles: str) -> tuple[int, ...]:
        """Add the pictures of a row's cells, each once; return their indices."""
        return self.add_images([(source, role) for role in roles for source in split_pictures(row.get(role))], row)

    def add_images(self, sources: Iterable[tuple[ImageSource, str]], row: Row) -> tuple[int, ...]:
        """Add pictures with the role of their column, each once; return their indices."""
        indices = []
        for source, role in sources:
            if source not in self.pictures:
                self.pictures.append(source)
                self.places.append((row, role))
            indices.append(self.pictures.index(source))
        return tuple(dict.fromkeys(indices))

    def money(self, row: Row, *roles: str) -> float | None:
        """Return the price of the first of these columns that has one, in the product's currency.

        The product's currency is that of its first price; a price in another one is left out and noted.
        """
        for role in roles:
            price, currency = self.cells.price(row, role, self.product_id)
            currency = currency or row.get("currency").upper()
            if price is None:
                continue
            self.currency = self.currency or currency
            if currency not in ("", self.currency):
                found = f"the product's prices are in {self.currency}; this one is left out"
                self.cells.note("several_currencies", row, role, self.product_id, row.get(role), found)
                continue
            return price
        return None

    def variant(self, row: Row, variant: Variant) -> None:
        """Add a variant; one with the id and options of an earlier one is left out and noted, unless nothing differs."""
        key = (variant.variant_id, tuple(variant.options.items()))
        known = self.variants.setdefault(key, variant)
        if known is variant:
            self.rows_of_variants.append(row)
        elif known != variant:
            name = variant.variant_id or ", ".join(variant.options.values())
            self.cells.note(
                "duplicate_id",
                row,
                "variant_id",
                self.product_id,
                name,
                "an earlier row describes this variant; it counts",
            )
        for option, value in variant.options.items():
            self.attribute(option, [value])

    def build(self, row: Row, texts: Mapping[str, str]) -> FeedProduct:
        """Return the product.

        Args:
            row: its first row, for notes.
            texts: "title" and "description" that replace those of the rows, such as a translation.
        """
        given = {**self.texts, **{name: text for name, text in texts.items() if text}}
        variants = tuple(self.variants.values())
        prices = [price for price in (variant.price for variant in variants) if price is not None]
        brand = given.get("brand", "")
        if brand and not any(key.casefold() == "brand" for key in self.attributes):
            self.attribute("brand", [brand])
        attributes = {key: tuple(values) for key, values in self.attributes.items()}
        product = ProductRow(
            self.product_id,
            given.get("title", ""),
            given.get("description", ""),
            self.category,
            attributes,
            tuple(self.pictures),
            **self.more,
        )
        self._note_gaps(row, product, variants)
        return FeedProduct(
            product,
            price=min(prices) if prices else self.price,
            currency=self.currency,
            availability=best_availability([*(variant.availability for variant in variants), self.availability]),
            brand=brand,
            url=given.get("url", ""),
            variants=variants,
        )

    def _note_gaps(self, row: Row, product: ProductRow, variants: tuple[Variant, ...]) -> None:
        if not product.title:
            self.cells.note("missing_title", row, "title", self.product_id)
        if not product.images:
            self.cells.note("no_picture", row, "images", self.product_id)
        if not product.has_text and not product.images:
            self.cells.note("empty_product", row, "", self.product_id)
        for variant, place in zip(variants, self.rows_of_variants, strict=True):
            if not variant.images and product.images and len(variants) > 1:
                name = variant.variant_id or ", ".join(variant.options.values())
                self.cells.note("variant_without_picture", place, "", self.product_id, name)


def best_availability(values: Iterable[str]) -> str:
    """Return "in_stock" if one of the values is that, else the next best one: preorder, backorder, out of stock."""
    known = set(values)
    return next((value for value in _BEST_FIRST if value in known), UNKNOWN)
