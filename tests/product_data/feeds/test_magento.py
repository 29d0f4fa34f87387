"""The export of Magento 2: variants are named by their product, store views hold other languages."""

from __future__ import annotations

import csv

from product_data.feeds.feed_product import BACKORDER, IN_STOCK, OUT_OF_STOCK
from product_data.feeds.reading import read_feed

COLUMNS = (
    *("sku", "store_view_code", "attribute_set_code", "product_type", "categories", "product_websites", "name"),
    *("description", "short_description", "product_online", "visibility", "price", "special_price", "url_key"),
    *("special_price_to_date", "base_image", "additional_images", "additional_attributes", "qty", "is_in_stock"),
    *("allow_backorders", "configurable_variations"),
)
BAG = {
    "sku": "0012",
    "product_type": "simple",
    "categories": r"Default Category/Gear/Bags\/Cases,Default Category/Gear,Default Category/New",
    "name": "Bag",
    "description": "<p>Strong &amp; light</p>",
    "price": "1299.0000",
    "special_price": "34.5",
    "base_image": "/b/a/bag.jpg",
    "additional_images": "/b/a/bag.jpg,/b/a/bag_2.jpg",
    "additional_attributes": "activity=Yoga|Gym,features_bags=Audio Pocket, waterproof,color=Black",
    "qty": "100",
    "is_in_stock": "1",
}
SMALL = {"sku": "TEE-S", "name": "Tee-S", "price": "20", "qty": "0", "is_in_stock": "1", "allow_backorders": "1"}
LARGE = {"sku": "TEE-L", "name": "Tee-L", "price": "22", "is_in_stock": "0", "base_image": "no_selection"}
TEE = {
    "sku": "TEE",
    "product_type": "configurable",
    "name": "Tee",
    "base_image": "/t/tee.jpg",
    "configurable_variations": "sku=TEE-S,size=S,color=Red, dark|sku=TEE-L,size=L,color=Blue|sku=TEE-X,size=X,color=Red",
}


def write(path, *rows):
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_attributes_pictures_and_categories_of_a_cell_are_unpacked(tmp_path):
    feed = read_feed(write(tmp_path / "products.csv", BAG))
    (bag,) = feed
    assert (bag.row.product_id, bag.row.title, bag.row.description) == ("0012", "Bag", "Strong & light")
    assert bag.row.category == ("Gear", "Bags/Cases")
    assert bag.row.attributes == {
        "activity": ("Yoga", "Gym"),
        "features bags": ("Audio Pocket, waterproof",),
        "color": ("Black",),
    }
    assert [image.rsplit("/", 1)[1] for image in bag.row.images] == ["bag.jpg", "bag_2.jpg"]
    assert (bag.price, bag.availability) == (34.5, IN_STOCK)
    assert feed.report.count("missing_picture") == 2
    assert "not read: New" in feed.report.losses.first["several_categories"][0].why


def test_rows_that_a_configurable_product_names_are_its_variants_before_and_after_it(tmp_path):
    feed = read_feed(write(tmp_path / "products.csv", SMALL, TEE, BAG, LARGE))
    tee, bag = feed
    assert (tee.row.product_id, tee.row.title, bag.row.product_id) == ("TEE", "Tee", "0012")
    assert [(v.variant_id, v.options, v.price, v.availability) for v in tee.variants] == [
        ("TEE-S", {"size": "S", "color": "Red, dark"}, 20.0, BACKORDER),
        ("TEE-L", {"size": "L", "color": "Blue"}, 22.0, OUT_OF_STOCK),
        ("TEE-X", {"size": "X", "color": "Red"}, None, ""),
    ]
    assert (tee.price, tee.availability, tee.row.images[0][-10:]) == (20.0, BACKORDER, "/t/tee.jpg")
    (lost,) = feed.report.losses.first["unreadable_attribute"]
    assert (lost.row, lost.column, lost.found) == (3, "configurable_variations", "TEE-X")


def test_a_store_view_is_a_language_and_products_without_it_keep_their_texts(tmp_path):
    german = {"sku": "0012", "store_view_code": "de", "name": "Tasche"}
    path = write(tmp_path / "products.csv", BAG, TEE, german)
    assert [product.row.title for product in read_feed(path)] == ["Bag", "Tee"]
    feed = read_feed(path, language="de")
    bag, tee = feed
    assert (bag.row.title, bag.row.description, tee.row.title) == ("Tasche", "Strong & light", "Tee")
    assert feed.report.languages == ("default", "de")
    assert [(loss.row, loss.product_id) for loss in feed.report.losses.first["missing_translation"]] == [(3, "TEE")]


def test_sale_prices_with_dates_and_hidden_products_are_reported(tmp_path):
    row = BAG | {"special_price_to_date": "1/1/27", "product_online": "2"}
    feed = read_feed(write(tmp_path / "products.csv", row))
    (bag,) = feed
    assert bag.price == 1299.0
    assert (feed.report.count("dated_sale_price"), feed.report.count("hidden_product")) == (1, 1)


def test_pictures_are_relative_to_the_folder_of_the_media(tmp_path):
    media = tmp_path / "catalog" / "product" / "b" / "a"
    media.mkdir(parents=True)
    (media / "bag.jpg").write_bytes(b"x")
    feed = read_feed(write(tmp_path / "products.csv", BAG), images_root=tmp_path / "catalog" / "product")
    (bag,) = feed
    assert bag.row.images[0] == str(media / "bag.jpg")
    assert [loss.found for loss in feed.report.losses.first["missing_picture"]] == ["/b/a/bag_2.jpg"]
