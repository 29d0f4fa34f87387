"""The product file of Shopify, in its old and its new columns: variants, pictures, options, stock."""

from __future__ import annotations

import csv

import pytest

from product_data.feeds.feed_product import BACKORDER, IN_STOCK, OUT_OF_STOCK
from product_data.feeds.reading import read_feed

COLUMNS = (
    *("Handle", "Title", "Body (HTML)", "Vendor", "Product Category", "Type", "Tags", "Published", "Option1 Name"),
    *("Option1 Value", "Option2 Name", "Option2 Value", "Variant SKU", "Variant Inventory Tracker"),
    *("Variant Inventory Qty", "Variant Inventory Policy", "Variant Price", "Variant Compare At Price", "Image Src"),
    *("Image Position", "Variant Image", "Google Shopping / Gender", "Status"),
    "Fabric (product.metafields.custom.fabric)",
)
NEW = {
    **{"Handle": "URL handle", "Body (HTML)": "Description", "Variant SKU": "SKU", "Variant Price": "Price"},
    **{"Published": "Published on online store", "Variant Inventory Tracker": "Inventory tracker"},
    **{"Variant Inventory Qty": "Inventory quantity", "Image Src": "Product image URL", "Option1 Name": "Option1 name"},
    **{"Option1 Value": "Option1 value", "Variant Image": "Variant image URL", "Image Position": "Image position"},
    **{"Variant Inventory Policy": "Continue selling when out of stock"},
}
BOOT = {
    "Handle": "boot",
    "Title": 'Boot, 5" heel',
    "Body (HTML)": '<p>High &amp; warm,<br>5" heel</p>\n<ul><li>Leather</li></ul>',
    "Vendor": "Acme",
    "Product Category": "Apparel & Accessories > Shoes",
    "Type": "Boots",
    "Tags": "leather, winter",
    "Published": "true",
    "Option1 Name": "Color",
    "Option1 Value": "Red",
    "Option2 Name": "Size",
    "Option2 Value": "08",
    "Variant SKU": "0012",
    "Variant Inventory Tracker": "shopify",
    "Variant Inventory Qty": "0",
    "Variant Inventory Policy": "continue",
    "Variant Price": "120.00",
    "Variant Compare At Price": "150.00",
    "Image Src": "https://x.example/2.jpg",
    "Image Position": "2",
    "Variant Image": "https://x.example/red.jpg?v=1",
    "Google Shopping / Gender": "female",
    "Status": "active",
    "Fabric (product.metafields.custom.fabric)": "Leather; Wool",
}
BLUE = {
    "Handle": "boot",
    "Option1 Value": "Blue",
    "Option2 Value": "08",
    "Variant SKU": "0013",
    "Variant Inventory Tracker": "shopify",
    "Variant Inventory Qty": "-1",
    "Variant Inventory Policy": "deny",
    "Variant Price": "110.00",
    "Image Src": "https://x.example/1.jpg",
    "Image Position": "1",
    "Variant Image": "https://x.example/1.jpg",
}
PICTURE = {"Handle": "boot", "Image Src": "https://x.example/3.jpg", "Image Position": "3"}
HAT = {
    "Handle": "hat",
    "Title": "Hat",
    "Type": "Hats",
    "Option1 Name": "Title",
    "Option1 Value": "Default Title",
    "Variant SKU": "099",
    "Variant Inventory Qty": "0",
    "Variant Price": "9",
    "Status": "draft",
}


def write(path, *rows, names=None):
    names = names or {}
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [names.get(column, column) for column in COLUMNS])
        writer.writeheader()
        writer.writerows({names.get(column, column): cell for column, cell in row.items()} for row in rows)
    return path


@pytest.mark.parametrize("names", [{}, NEW], ids=["old columns", "new columns"])
def test_rows_of_one_handle_are_one_product(tmp_path, names):
    feed = read_feed(write(tmp_path / "export.csv", BOOT, BLUE, PICTURE, HAT, names=names))
    boot, hat = feed
    assert (boot.row.product_id, boot.row.title) == ("boot", 'Boot, 5" heel')
    assert boot.row.description == 'High & warm, 5" heel Leather'
    assert boot.row.category == ("Apparel & Accessories", "Shoes")
    assert boot.row.attributes == {
        "type": ("Boots",),
        "tags": ("leather", "winter"),
        "gender": ("female",),
        "Fabric": ("Leather", "Wool"),
        "Color": ("Red", "Blue"),
        "Size": ("08",),
        "brand": ("Acme",),
    }
    assert [image.rsplit("/", 1)[1] for image in boot.row.images] == ["1.jpg", "2.jpg", "3.jpg", "red.jpg?v=1"]
    assert [(v.variant_id, v.options, v.price, v.availability, v.images) for v in boot.variants] == [
        ("0012", {"Color": "Red", "Size": "08"}, 120.0, BACKORDER, (3,)),
        ("0013", {"Color": "Blue", "Size": "08"}, 110.0, OUT_OF_STOCK, (0,)),
    ]
    assert (boot.price, boot.currency, boot.availability, boot.brand) == (110.0, "", BACKORDER, "Acme")
    assert (hat.row.category, hat.price, hat.availability) == (("Hats",), 9.0, IN_STOCK)
    assert [(v.variant_id, v.options) for v in hat.variants] == [("099", {})]
    assert feed.report.format == "shopify"
    assert dict(feed.report.losses.counts) == {
        "html": 1,
        "picture_not_fetched": 4,
        "no_picture": 1,
        "hidden_product": 1,
    }


def test_rows_of_a_handle_that_stand_apart_are_merged_and_read_the_same_each_time(tmp_path):
    together = list(read_feed(write(tmp_path / "together.csv", BOOT, BLUE, PICTURE, HAT)))
    apart = read_feed(write(tmp_path / "apart.csv", BOOT, HAT, BLUE, HAT | {"Variant SKU": "100"}, PICTURE))
    first, again = list(apart), list(apart)
    assert [product.row.product_id for product in first] == ["boot", "hat"]
    assert first[0] == together[0]
    assert first == again
    assert [variant.variant_id for variant in first[1].variants] == ["099", "100"]
    assert next(iter(apart)) == together[0]  # an iteration that is left early does not disturb the next one
    assert list(apart) == first


def test_a_repeated_handle_with_other_texts_keeps_the_first_and_says_so(tmp_path):
    other = {
        "Handle": "boot",
        "Title": "Other boot",
        "Variant SKU": "0012",
        "Option1 Value": "Red",
        "Option2 Value": "08",
    }
    feed = read_feed(write(tmp_path / "export.csv", BOOT, other))
    (boot,) = feed
    assert boot.row.title == 'Boot, 5" heel'
    losses = feed.report.losses.first
    assert (losses["conflicting_cells"][0].row, losses["conflicting_cells"][0].column) == (3, "Title")
    assert (losses["duplicate_id"][0].row, losses["duplicate_id"][0].found) == (3, "0012")


def test_rows_without_handle_or_title_are_kept_or_named(tmp_path):
    rows = [{"Title": "No handle"}, BOOT, PICTURE | {"Handle": ""}, {"Handle": "bare"}, {"Handle": "boot"}]
    feed = read_feed(write(tmp_path / "export.csv", *rows))
    boot, bare = feed
    assert [image[-5:] for image in boot.row.images] == ["2.jpg", "3.jpg", "g?v=1"]
    assert (bare.row.product_id, bare.row.has_text, bare.row.images) == ("bare", False, ())
    first = feed.report.losses.first
    places = {kind: (first[kind][0].row, first[kind][0].column) for kind in first}
    assert places["missing_id"] == (2, "Handle")
    assert places["filled_id"] == (4, "Handle")
    assert places["missing_title"] == (5, "Title")
    assert places["empty_product"][0] == 5
    assert sorted(loss.row for loss in first["unused_row"]) == [5, 6]
    assert feed.report.rows == 5


def test_unreadable_cells_are_named_with_row_and_column(tmp_path):
    feed = read_feed(
        write(tmp_path / "export.csv", BOOT | {"Variant Price": "on request", "Variant Inventory Qty": "many"})
    )
    (boot,) = feed
    assert (boot.price, boot.availability) == (None, "")
    price, stock = feed.report.losses.first["unreadable_price"][0], feed.report.losses.first["unreadable_cell"][0]
    assert str(price) == (
        "row 2, product 'boot', column 'Variant Price': found 'on request'; expected a price, such as 12.50 EUR"
    )
    assert (stock.row, stock.column, stock.found) == (2, "Variant Inventory Qty", "many")
