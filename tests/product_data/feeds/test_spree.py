"""The real export of a Spree shop: products, variants, prices, pictures, and three languages."""

from pathlib import Path

import pytest

from product_data.feeds.reading import read_feed
from product_data.table_files import TableError


def test_the_real_export_has_37_products_with_their_variants_and_pictures(shared_data):
    feed = read_feed(shared_data / "spree")
    products = list(feed)
    report = feed.report
    assert (report.format, report.rows, report.products, report.variants, report.pictures) == (
        "spree",
        211,
        37,
        87,
        124,
    )
    assert all(Path(image).is_file() for product in products for image in product.row.images)
    machine = products[0]
    assert (machine.row.product_id, machine.price, machine.currency) == ("automatic-espresso-machine", 879.99, "USD")
    assert machine.row.title == "Automatic Espresso Machine"
    assert machine.row.category == ("Kitchen", "Coffee Machines")
    assert machine.row.attributes["Color"] == ("Matte Black", "Silver", "White")
    assert [(v.options["Color"], v.images) for v in machine.variants] == [
        ("Matte Black", (1,)),
        ("Silver", (2,)),
        ("White", (3,)),
    ]
    assert report.count("several_currencies") == 87  # the prices in EUR are rows of their own
    assert dict(report.losses.counts) == {"several_currencies": 87}


@pytest.mark.parametrize(
    ("language", "title"),
    [
        (None, "Automatic Espresso Machine"),
        ("en", "Automatic Espresso Machine"),
        ("de", "Kaffeevollautomat"),
        ("fr", "Machine Espresso Automatique"),
    ],
)
def test_the_real_export_has_three_languages(shared_data, language, title):
    feed = read_feed(shared_data / "spree", language=language)
    assert feed.report.languages == ("en", "de", "fr")
    assert next(iter(feed)).row.title == title
    products = list(feed)
    assert (len(products), feed.report.count("missing_translation")) == (37, 0)


def test_a_language_that_the_feed_does_not_have_is_refused(shared_data):
    with pytest.raises(TableError, match="found no texts in language 'it'; expected one of: en, de, fr"):
        read_feed(shared_data / "spree", language="it")
