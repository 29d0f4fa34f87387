"""Define a product of a shop's feed: what a model reads of it, and what a search filters by and shows."""

from __future__ import annotations

from dataclasses import dataclass, field

from product_data.rows import ProductRow

IN_STOCK, OUT_OF_STOCK, PREORDER, BACKORDER, UNKNOWN = "in_stock", "out_of_stock", "preorder", "backorder", ""
AVAILABILITY = (IN_STOCK, OUT_OF_STOCK, PREORDER, BACKORDER, UNKNOWN)


@dataclass(frozen=True, slots=True)
class Variant:
    """One variant of a product, such as a colour and size.

    Args:
        variant_id (`str`): its id or stock-keeping unit; "" if the feed gives none.
        options: names of options → values, such as {"Color": "red", "Size": "M"}.
        price (`float` or `None`): in the product's currency.
        availability (`str`): one of `AVAILABILITY`.
        images: indices of its pictures in the product's `row.images`.
    """

    variant_id: str = ""
    options: dict[str, str] = field(default_factory=dict)
    price: float | None = None
    availability: str = UNKNOWN
    images: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class FeedProduct:
    """One product of a feed.

    Args:
        row: id, texts, category, attributes and pictures; `row.record(form)` is what a model embeds.
        price (`float` or `None`): the lowest price of its variants; `None` if the feed gives none.
        currency (`str`): ISO 4217 code, such as "EUR"; "" if the feed gives none.
        availability (`str`): one of `AVAILABILITY`; "in_stock" if one of its variants is in stock.
        brand (`str`): "" if the feed gives none.
        url (`str`): the product's page.
        variants: its variants, in the feed's order; empty if the feed has none.
    """

    row: ProductRow
    price: float | None = None
    currency: str = ""
    availability: str = UNKNOWN
    brand: str = ""
    url: str = ""
    variants: tuple[Variant, ...] = ()
