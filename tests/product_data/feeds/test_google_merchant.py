"""Google Merchant feeds: text with tabs, RSS and Atom; groups become variants; XML is read safely."""

from __future__ import annotations

import pytest

from product_data.feeds.feed_product import IN_STOCK, OUT_OF_STOCK, PREORDER
from product_data.feeds.reading import read_feed
from product_data.table_files import TableError

COLUMNS = (
    "id\titem group id\ttitle\tdescription\tlink\timage_link\tadditional_image_link\tavailability\tprice\tsale_price\t"
    "sale_price_effective_date\tbrand\tgoogle_product_category\tproduct_type\tcolor\tsize\tage_group\t"
    "product_detail(section_name:attribute_name:attribute_value)\tshipping(country:price)"
)
DETAILS = 'General:Type:Player,Display:Diagonal Size:"2.5"" wide, flat"'
ROWS = [
    "001\tTEE\tTee red\tA &amp; B\thttps://x.example/1\thttps://x.example/1.jpg\thttps://x.example/2.jpg,https://x.example/3.jpg"
    f"\tin_stock\t1.299,00 EUR\t\t\tAcme\t1604\tClothing > Tees\tRed\tM\tadult\t{DETAILS}\tUS:1 EUR",
    "TV\t\tTV\tBig\t\thttps://x.example/tv.jpg\t\tpreorder\t499,00 EUR\t399,00 EUR\t\tAcme\tElectronics > Video\t\t\t\t\t\t",
    "002\tTEE\tTee blue\tA &amp; B\t\thttps://x.example/4.jpg\t\tout of stock\t1.199 EUR\t999,00 EUR\t2026-01-01/2026-02-01"
    "\tAcme\t1604\tClothing > Tees\tBlue\tM\tadult\t\t",
    "TV\t\tTV again\t\t\t\t\tin stock\t1 EUR\t\t\t\t\t\t\t\t\t\t",
]
XML = """<?xml version="1.0" encoding="UTF-8"?>
<rss version="2.0" xmlns:g="http://base.google.com/ns/1.0"><channel><title>Shop</title>
<item>
  <title>RSS title</title><link>https://x.example/p</link>
  <g:id>007</g:id><g:title>Mug 5" high</g:title><description><![CDATA[<p>White &amp; round</p>]]></description>
  <g:image_link>https://x.example/m.jpg</g:image_link>
  <g:additional_image_link>https://x.example/a,b.jpg</g:additional_image_link>
  <g:additional_image_link>https://x.example/c.jpg</g:additional_image_link>
  <g:price>12.50 USD</g:price><g:availability>in stock</g:availability>
  <g:product_detail><g:section_name>General</g:section_name><g:attribute_name>Volume</g:attribute_name>
    <g:attribute_value>0.3 l: large</g:attribute_value></g:product_detail>
  <g:product_detail><g:attribute_name>Dishwasher</g:attribute_name><g:attribute_value>yes</g:attribute_value></g:product_detail>
  <g:shipping><g:country>US</g:country><g:price>3 USD</g:price></g:shipping>
</item>
<item><g:id>008</g:id><g:title>Cup</g:title></item>
</channel></rss>"""
ATOM = """<feed xmlns="http://www.w3.org/2005/Atom" xmlns:g="http://base.google.com/ns/1.0"><title>Shop</title>
<entry><title>Mug</title><link href="https://x.example/mug"/><g:id>1</g:id><g:image_link>m.jpg</g:image_link>
<summary>s</summary></entry></feed>"""


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def test_items_of_a_group_are_variants_of_one_product_wherever_they_stand(tmp_path):
    feed = read_feed(write(tmp_path / "feed.txt", "\n".join([COLUMNS, *ROWS])))
    tee, tv = feed
    assert (tee.row.product_id, tee.row.title, tee.row.description) == ("TEE", "Tee red", "A & B")
    assert tee.row.category == ("Clothing", "Tees")
    assert [(v.variant_id, v.options, v.price, v.availability, v.images) for v in tee.variants] == [
        ("001", {"color": "Red", "size": "M"}, 1299.0, IN_STOCK, (0, 1, 2)),
        ("002", {"color": "Blue", "size": "M"}, 1199.0, OUT_OF_STOCK, (3,)),
    ]
    assert (tee.price, tee.currency, tee.availability, tee.brand) == (1199.0, "EUR", IN_STOCK, "Acme")
    assert tee.url == "https://x.example/1"
    assert tee.row.attributes["type"] == ("Player",)
    assert tee.row.attributes["diagonal size"] == ('2.5" wide, flat',)
    assert (tee.row.attributes["color"], tee.row.attributes["age group"]) == (("Red", "Blue"), ("adult",))
    assert (tv.row.product_id, tv.price, tv.availability, tv.variants) == ("TV", 399.0, PREORDER, ())
    assert tv.row.category == ("Electronics", "Video")


def test_the_report_counts_each_loss_with_row_and_column(tmp_path):
    feed = read_feed(write(tmp_path / "feed.txt", "\n".join([COLUMNS, *ROWS])))
    list(feed)
    report, first = feed.report, feed.report.losses.first
    assert (report.format, report.separator, report.encoding) == ("google_merchant", "tab", "UTF-8")
    assert "shipping(country:price)" in report.unread
    assert dict(report.losses.counts) == {
        "picture_not_fetched": 5,
        "html": 2,
        "category_number": 2,
        "variant_text": 1,
        "ambiguous_price": 1,
        "dated_sale_price": 1,
        "duplicate_id": 1,
    }
    assert [
        (first[kind][0].row, first[kind][0].column) for kind in ("duplicate_id", "ambiguous_price", "dated_sale_price")
    ] == [
        (5, "id"),
        (4, "price"),
        (4, "sale_price"),
    ]
    assert "decimal sign ','; read as 1199" in first["ambiguous_price"][0].why


def test_rss_items_are_read_with_their_repeated_and_nested_elements(tmp_path):
    feed = read_feed(write(tmp_path / "feed.xml", XML))
    mug, cup = feed
    assert (mug.row.product_id, mug.row.title, mug.row.description) == ("007", 'Mug 5" high', "White & round")
    assert mug.row.images == ("https://x.example/m.jpg", "https://x.example/a,b.jpg", "https://x.example/c.jpg")
    assert mug.row.attributes == {"volume": ("0.3 l: large",), "dishwasher": ("yes",)}
    assert (mug.price, mug.currency, mug.url) == (12.5, "USD", "https://x.example/p")
    assert (cup.row.title, cup.price) == ("Cup", None)
    assert "g:shipping" in feed.report.unread
    assert feed.report.encoding == "UTF-8, as the XML declares"


def test_atom_entries_and_utf_16_are_read(tmp_path):
    path = tmp_path / "feed.xml"
    path.write_bytes(f'<?xml version="1.0" encoding="UTF-16"?>{ATOM}'.encode("utf-16"))
    (mug,) = read_feed(path)
    assert (mug.row.title, mug.url) == ("Mug", "https://x.example/mug")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('<!DOCTYPE r [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]>' + XML[39:].replace("Shop", "&b;"), "entity 'a'"),
        ('<!DOCTYPE r [<!ENTITY a SYSTEM "file:///etc/passwd">]>' + XML[39:].replace("Shop", "&a;"), "entity 'a'"),
        (XML[:-20], r"line 15: not well-formed XML \(unclosed token\)"),
        (XML.replace("Cup", "Cup &nbsp;"), "line 15: not well-formed XML"),
        ("<shop><product/></shop>", "found XML with root 'shop' and no item"),
    ],
)
def test_xml_that_is_unsafe_broken_or_another_kind_is_refused_with_its_line(tmp_path, text, message):
    with pytest.raises(TableError, match=message):
        read_feed(write(tmp_path / "feed.xml", text))


def test_a_document_type_without_entities_is_harmless_and_is_never_loaded(tmp_path):
    text = '<!DOCTYPE rss SYSTEM "http://127.0.0.1:9/rss.dtd">' + XML[39:]
    assert len(list(read_feed(write(tmp_path / "feed.xml", text)))) == 2


def test_an_item_that_never_ends_is_refused_before_it_fills_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("product_data.feeds.xml_items._LONGEST_ITEM", 1000)
    text = XML.replace("Cup", "c" * 2000)
    with pytest.raises(TableError, match="line 15: the item is longer than 1000 characters"):
        read_feed(write(tmp_path / "feed.xml", text))
