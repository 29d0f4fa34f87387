"""The export of WooCommerce: variations find their product by SKU or id; text is unescaped."""

from __future__ import annotations

import csv

from product_data.feeds.feed_product import BACKORDER, IN_STOCK, OUT_OF_STOCK
from product_data.feeds.reading import read_feed

COLUMNS = (
    *(
        "ID",
        "Type",
        "SKU",
        "Name",
        "Published",
        "Short description",
        "Description",
        "Date sale price ends",
        "In stock?",
    ),
    *("Sale price", "Regular price", "Categories", "Tags", "Images", "Parent", "Tax status"),
    *("Attribute 1 name", "Attribute 1 value(s)", "Attribute 2 name", "Attribute 2 value(s)"),
)


def write(path, *rows):
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    return path


HOODIE = {
    "ID": "44",
    "Type": "variable",
    "SKU": "woo-hoodie",
    "Name": "Hoodie",
    "Published": "1",
    "Short description": "<b>Warm</b>",
    "Description": "Line one\\nLine two",
    "Categories": r"Clothing > Hoodies, Clothing, Bags\, Cases > New",
    "Tags": "soft, new",
    "Images": "https://x.example/h1.jpg, https://x.example/h2.jpg",
    "Attribute 1 name": "Color",
    "Attribute 1 value(s)": r"Blue, Red\, dark",
    "Attribute 2 name": "Logo",
    "Attribute 2 value(s)": "Yes",
}
BLUE = {
    "ID": "61",
    "Type": "variation, virtual",
    "Parent": "id:44",
    "Name": "Hoodie - Blue",
    "In stock?": "1",
    "Sale price": "42",
    "Regular price": "45",
    "Images": "https://x.example/h2.jpg",
    "Attribute 1 name": "Color",
    "Attribute 1 value(s)": "Blue",
}
RED = BLUE | {
    "ID": "62",
    "SKU": "hoodie-red",
    "Parent": "woo-hoodie",
    "In stock?": "backorder",
    "Sale price": "40",
    "Date sale price ends": "2026-12-31",
    "Images": "",
    "Attribute 1 value(s)": r"Red\, dark",
}
CAP = {"ID": "70", "Type": "simple", "Name": "Cap", "Published": "-1", "In stock?": "0", "Regular price": "16,50"}


def test_variations_join_their_product_by_sku_and_by_id(tmp_path):
    feed = read_feed(write(tmp_path / "products.csv", BLUE, HOODIE, CAP, RED))
    hoodie, cap = feed
    assert (hoodie.row.product_id, hoodie.row.title, hoodie.row.description) == (
        "woo-hoodie",
        "Hoodie",
        "Warm\nLine one\nLine two",
    )
    assert hoodie.row.category == ("Clothing", "Hoodies")
    assert hoodie.row.images == ("https://x.example/h1.jpg", "https://x.example/h2.jpg")
    assert hoodie.row.attributes == {"tags": ("soft", "new"), "Color": ("Blue", "Red, dark"), "Logo": ("Yes",)}
    assert [(v.variant_id, v.options, v.price, v.availability, v.images) for v in hoodie.variants] == [
        ("id:61", {"Color": "Blue"}, 42.0, IN_STOCK, (1,)),
        ("hoodie-red", {"Color": "Red, dark"}, 45.0, BACKORDER, ()),
    ]
    assert (hoodie.price, hoodie.availability) == (42.0, IN_STOCK)
    assert (cap.row.product_id, cap.price, cap.availability, cap.variants) == ("id:70", 16.5, OUT_OF_STOCK, ())
    report = feed.report
    assert (report.format, report.encoding, report.products, report.rows) == (
        "woocommerce",
        "UTF-8 with byte order mark",
        2,
        4,
    )
    for kind in ("dated_sale_price", "several_categories", "hidden_product", "variant_without_picture", "no_picture"):
        assert report.count(kind) == 1, kind
    assert report.losses.first["dated_sale_price"][0].row == 5
    assert "not read: Bags, Cases > New" in report.losses.first["several_categories"][0].why


def test_a_variation_without_its_product_becomes_a_product_and_is_reported(tmp_path):
    feed = read_feed(
        write(tmp_path / "products.csv", RED | {"Parent": "gone"}, CAP, {"Type": "simple", "Name": "No id"})
    )
    red, _ = feed
    assert (red.row.product_id, red.row.title, red.variants[0].variant_id) == ("gone", "Hoodie - Blue", "hoodie-red")
    orphan, lost = feed.report.losses.first["orphan_variant"][0], feed.report.losses.first["missing_id"][0]
    assert (orphan.row, orphan.column, lost.row) == (2, "Parent", 4)
