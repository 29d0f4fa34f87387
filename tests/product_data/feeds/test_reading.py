"""Recognise a feed, report it, find and fetch its pictures, and hand it to the commands."""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from pathlib import Path

import pytest
from picture_server import picture_server, png
from PIL import Image
from table_files import write_table

from moon3.__main__ import main
from product_data.errors import OptionError
from product_data.feeds import reading
from product_data.feeds.feed_format import formats, recognise
from product_data.feeds.reading import find_feed, read_feed, shop_feed
from product_data.feeds.report import KINDS
from product_data.outputs import OutputError
from product_data.picture_files import PictureFetching
from product_data.table_files import TableError
from product_data.tables import load_tables

SHOPIFY = "Handle,Title,Body (HTML),Variant SKU,Variant Price,Image Src\n"


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture
def fetching(tmp_path):
    return PictureFetching(folder=tmp_path / "fetched", allow_private=True, timeout_seconds=5, backoff_seconds=0.01)


def test_each_file_with_a_format_is_in_the_registry():
    assert list(formats()) == ["google_merchant", "magento", "shopify", "spree", "tables", "woocommerce"]


@pytest.mark.parametrize("name", ["google_merchant", "magento", "shopify", "spree", "tables", "woocommerce"])
def test_a_format_recognises_all_of_its_own_columns(name, tmp_path):
    format = formats()[name]
    chosen, shown = recognise(tmp_path, list(dict.fromkeys([*format.columns, *format.typical])))
    assert chosen is format
    assert shown


def test_columns_that_fit_no_format_are_listed_with_the_nearest_one(tmp_path):
    path = write(tmp_path / "shop.csv", "Artikel,Handle,Body (HTML),Preis\n1,a,b,2\n")
    with pytest.raises(TableError) as caught:
        read_feed(path)
    message = str(caught.value)
    assert "shop.csv: the columns fit no known format; found 'Artikel', 'Handle', 'Body (HTML)', 'Preis'" in message
    assert "the nearest is Shopify product CSV (shopify), which also needs 'Title'" in message
    assert "--format NAME: google_merchant, magento, shopify" in message


@pytest.mark.parametrize("header", ["id,title", "id,name,image", "id,title,description,images,split"])
def test_a_table_with_the_short_names_of_columns_is_the_projects_own(tmp_path, header):
    path = write(tmp_path / "products.csv", f"{header}\n")
    assert read_feed(path).report.format == "tables"
    assert shop_feed(path) is None


def test_a_table_whose_columns_are_those_of_its_own_and_of_a_feed_keeps_its_pictures(tmp_path):
    path = write(tmp_path / "products.csv", "id,title,images,link\n1,Hat,hat.png,https://x.example\n")
    with pytest.raises(TableError, match="the columns fit google_merchant and tables equally"):
        read_feed(path)
    assert load_tables(path).products[0].images == (str(tmp_path / "hat.png"),)


def test_columns_that_no_format_alone_has_are_not_enough(tmp_path):
    with pytest.raises(TableError, match="the nearest is .* which also needs one of "):
        read_feed(write(tmp_path / "shop.csv", "sku,name\n1,b\n"))


def test_columns_that_fit_two_formats_equally_need_a_choice(tmp_path):
    path = write(tmp_path / "shop.csv", "sku,slug,name,visibility\n1,a,b,c\n")
    with pytest.raises(
        TableError, match="the columns fit magento and spree equally; found 'sku', 'slug'.*--format NAME"
    ):
        read_feed(path)
    assert [product.row.product_id for product in read_feed(path, format="spree")] == ["a"]
    assert [product.row.product_id for product in read_feed(path, format="magento")] == ["1"]


def test_a_format_that_is_unknown_or_lacks_columns_is_refused(tmp_path):
    path = write(tmp_path / "shop.csv", "sku,name\n1,b\n")
    with pytest.raises(OptionError, match="--format: found 'shopfy'; expected one of google_merchant, magento"):
        read_feed(path, format="shopfy")
    with pytest.raises(
        TableError, match="found no column 'Handle' or 'URL handle', 'Title', which Shopify product CSV needs"
    ):
        read_feed(path, format="shopify")


def test_missing_files_folders_and_outputs_are_refused(tmp_path):
    with pytest.raises(TableError, match="nowhere: no such file or folder; expected a product feed"):
        read_feed(tmp_path / "nowhere")
    with pytest.raises(TableError, match=r"found no products file; expected exactly one of .*products.csv"):
        read_feed(tmp_path)
    feed = write(tmp_path / "products.csv", SHOPIFY)
    assert find_feed(tmp_path) == feed
    with pytest.raises(TableError, match="images folder none: no such folder"):
        read_feed(feed, images_root="none")
    with pytest.raises(OutputError, match="--losses .*: found a folder"):
        read_feed(feed, losses=tmp_path)
    write(tmp_path / "products.tsv", "")
    with pytest.raises(TableError, match=r"found products.csv and products.tsv; expected exactly one"):
        find_feed(tmp_path)


def test_a_header_without_rows_is_a_fatal_report(tmp_path, capsys):
    path = write(tmp_path / "export.csv", SHOPIFY)
    feed = read_feed(path)
    assert list(feed) == []
    assert not feed.report.ok
    assert "ERROR: 1 × the feed has no products (no_products)" in str(feed.report)
    assert main(["tables", str(path)]) == 1
    assert "the feed has no products" in capsys.readouterr().out


def test_the_report_names_columns_with_their_roles_and_those_that_are_not_read(tmp_path):
    path = write(tmp_path / "export.csv", SHOPIFY.strip() + ",Gift Card\na,A,,1,2.50,,no\n")
    feed = read_feed(path)
    list(feed)
    text = str(feed.report)
    assert "1 rows, 1 products, 1 variants, 0 pictures" in text
    assert "Handle → key, Title → title, Body (HTML) → description" in text
    assert "columns not read: Gift Card" in text
    assert "separator: comma" in text
    assert "decimal sign of column 'Variant Price': '.'" in text
    with pytest.raises(KeyError, match="known kinds: no_products"):
        feed.report.count("nonsense")


def test_every_loss_is_written_to_a_file_and_the_report_shows_the_first_ones(tmp_path):
    rows = "".join(f"p{number},P,<b>x</b>,,abc,\n" for number in range(8))
    path, losses = write(tmp_path / "export.csv", SHOPIFY + rows), tmp_path / "losses.csv"
    feed = read_feed(path, losses=losses)
    list(feed)
    table = list(csv.DictReader(losses.open(encoding="utf-8")))
    assert len(table) == sum(feed.report.losses.counts.values()) == 24
    price = next(row for row in table if row["kind"] == "unreadable_price")
    assert (price["row"], price["product_id"], price["column"], price["found"]) == ("2", "p0", "Variant Price", "abc")
    assert all(row["why"] for row in table)
    assert len(feed.report.losses.first["html"]) == 5
    assert not list(tmp_path.glob("*.partial"))
    list(feed)
    assert len(list(csv.DictReader(losses.open(encoding="utf-8")))) == 24


def test_pictures_beside_the_feed_are_found_by_path_and_by_the_last_part_of_a_url(tmp_path):
    (tmp_path / "images").mkdir()
    for name in ("a b.png", "c.png"):
        Image.new("RGB", (4, 4)).save(tmp_path / "images" / name)
    (tmp_path / "images" / "broken.png").write_bytes(b"no picture")
    cells = "https://x.example/f/a%20b.png?v=3|c.png|broken.png|gone.png|/deep/c.png"
    feed = read_feed(write(tmp_path / "export.csv", f"{SHOPIFY}a,A,,1,2,{cells}\n"), check_images=True)
    (product,) = feed
    names = [image.removeprefix(f"{tmp_path}/") for image in product.row.images]
    assert names == ["images/a b.png", "images/c.png", "images/broken.png", "gone.png"]
    first = feed.report.losses.first
    assert (first["missing_picture"][0].row, first["missing_picture"][0].column) == (2, "Image Src")
    assert first["missing_picture"][0].found == "gone.png"
    assert first["unreadable_picture"][0].found == "broken.png"


def test_variants_share_a_picture_and_keep_their_indices_when_files_are_found(tmp_path):
    (tmp_path / "images").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "images" / "c.png")
    header = SHOPIFY.strip() + ",Option1 Name,Option1 Value,Variant Image\n"
    rows = "a,A,,1,2,https://x.example/1/c.png,Color,Red,https://x.example/2/c.png\na,,,2,2,,,Blue,c.png\n"
    feed = read_feed(write(tmp_path / "export.csv", header + rows))
    (product,) = feed
    assert product.row.images == (str(tmp_path / "images" / "c.png"),)
    shared = feed.report.losses.first["shared_file"]
    assert [(loss.row, loss.column) for loss in shared] == [(2, "Variant Image"), (3, "Variant Image")]
    assert [variant.images for variant in product.variants] == [(0,), (0,)]


def test_pictures_are_fetched_once_and_a_failure_leaves_the_url_and_the_other_pictures(tmp_path, fetching):
    with picture_server() as server:
        cells = "|".join(server.url(name) for name in ("red", "missing", "broken"))
        path = write(tmp_path / "export.csv", f"{SHOPIFY}a,A,,1,2,{cells}\nb,B,,2,2,{server.url('red')}\n")
        feed = read_feed(path, pictures=fetching)
        a, b = feed
        assert a.row.images[0] == b.row.images[0]
        assert a.row.images[0].startswith(str(fetching.folder))
        assert a.row.images[1:] == (server.url("missing"), server.url("broken"))
        failed = feed.report.losses.first["failed_picture"]
        assert [(loss.row, loss.column, loss.found) for loss in failed] == [
            (2, "Image Src", server.url("missing")),
            (2, "Image Src", server.url("broken")),
        ]
        assert "404" in failed[0].why
        list(feed)
        assert server.asked["red"] == 1
        assert "pictures from URLs: 0 fetched (0.0 MiB), 2 failed" in str(feed.report)
        private = read_feed(path, pictures=replace(fetching, allow_private=False, folder=tmp_path / "other"))
        assert next(iter(private)).row.images[0] == server.url("red")
        list(private)
        assert "non-public address" in private.report.losses.first["failed_picture"][0].why


def test_the_projects_own_tables_are_a_feed_with_prices(tmp_path):
    picture = io.BytesIO(png("red")).getvalue()
    rows = [
        {
            "product_id": "007",
            "title": "Hat &amp; scarf",
            "category_path": ["A", "B"],
            "attributes": [{"key": "colour", "value": "red"}],
            "images": [picture],
            "group": "g",
            "price": 2.5,
            "currency": "eur",
            "availability": "in stock",
            "brand": "Acme",
        },
        {"product_id": "8", "title": "Shoe", "category_path": ["A"], "images": [], "price": 1.299},
        {"product_id": "007", "title": "Other", "category_path": ["A"], "images": [picture]},
    ]
    feed = read_feed(write_table(tmp_path / "products.parquet", rows))
    hat, shoe = feed
    assert (hat.row.product_id, hat.row.title, hat.row.category) == ("007", "Hat & scarf", ("A", "B"))
    assert hat.row.attributes == {"colour": ("red",), "brand": ("Acme",)}
    assert (hat.row.images, hat.row.group) == ((picture,), "g")
    assert (hat.price, hat.currency, hat.availability, hat.brand) == (2.5, "EUR", "in_stock", "Acme")
    assert shoe.price == 1.299
    report = feed.report
    assert (report.count("duplicate_id"), report.count("no_picture")) == (1, 1)
    assert report.losses.first["duplicate_id"][0].row == 3


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_own_tables_as_text_give_the_rows_of_load_tables(tmp_path, suffix):
    rows = [
        {"product_id": "1", "title": "Hat", "category_path": "A > B", "attributes": "colour: red | blue; size: M"},
        {"product_id": "2", "title": "Shoe", "category_path": "A > C", "attributes": ""},
    ]
    rows = [row | {"images": "gone.png"} for row in rows]
    path = write_table(tmp_path / f"products{suffix}", rows)
    feed = read_feed(path)
    assert [product.row for product in feed] == load_tables(path).products
    assert feed.report.count("missing_picture") == 2
    assert shop_feed(path) is None


def test_broken_json_and_parquet_are_refused(tmp_path):
    with pytest.raises(TableError, match=r"products.jsonl, line 2: not JSON"):
        read_feed(write(tmp_path / "products.jsonl", '{"product_id": "1"}\nx\n'))
    with pytest.raises(TableError, match=r"products.jsonl, line 1: found int; expected one JSON object per line"):
        read_feed(write(tmp_path / "products.jsonl", "1\n"))
    with pytest.raises(TableError, match=r"products.parquet: not a readable parquet file"):
        read_feed(write(tmp_path / "products.parquet", "x"))


def test_load_tables_and_the_command_accept_a_feed(tmp_path, capsys):
    Image.new("RGB", (4, 4)).save(tmp_path / "hat.png")
    path = write(tmp_path / "export.csv", f'{SHOPIFY}007,"Hat, 5""",<b>Warm</b>,1,2.50,hat.png\n8,Shoe,,2,3,\n')
    tables = load_tables(path)
    assert [(row.product_id, row.title, row.description) for row in tables.products] == [
        ("007", 'Hat, 5"', "Warm"),
        ("8", "Shoe", ""),
    ]
    assert tables.products[0].images == (str(tmp_path / "hat.png"),)
    assert tables.report.ok
    assert "read as a feed" in str(tables.report)
    assert main(["tables", str(path), "--losses", str(tmp_path / "losses.csv")]) == 0
    printed = capsys.readouterr().out
    assert "format: shopify (Shopify product CSV, recognised by Handle" in printed
    assert "losses.csv" in printed
    assert main(["tables", str(path), "--format", "shopfy"]) == 2
    assert "--format: found 'shopfy'" in capsys.readouterr().err
    unknown = write(tmp_path / "unknown.csv", "a,b\n1,2\n")
    assert main(["tables", str(unknown)]) == 2
    said = capsys.readouterr().err
    assert "found no column 'product_id'" in said
    assert "as the export of a shop system: " in said


def test_the_command_fetches_pictures(tmp_path, capsys):
    with picture_server() as server:
        path = write(tmp_path / "export.csv", f"{SHOPIFY}a,A,,1,2,{server.url('red')}\n")
        words = ["tables", str(path), "--fetch-pictures", str(tmp_path / "p"), "--allow-private-addresses"]
        assert main(words) == 0
    assert "pictures from URLs: 1 fetched" in capsys.readouterr().out


def test_a_translation_that_lacks_a_product_falls_back_and_says_so(tmp_path):
    write(tmp_path / "products.csv", "slug,name,option1_value,image1_src,description\na,Hat,,,Warm\nb,Shoe,,,Soft\n")
    write(tmp_path / "product_translations.csv", "slug,locale,name,description\na,de,Hut,\n")
    feed = read_feed(tmp_path, language="de")
    hat, shoe = feed
    assert (hat.row.title, hat.row.description, shoe.row.title) == ("Hut", "Warm", "Shoe")
    assert feed.report.languages == ("en", "de")
    (loss,) = feed.report.losses.first["missing_translation"]
    assert (loss.row, loss.product_id, loss.why) == (3, "b", "no title in 'de'")
    with pytest.raises(TableError, match="found no texts in language 'fr'; expected one of: en, de"):
        read_feed(tmp_path, language="fr")


def test_two_iterations_at_once_see_the_same_products(tmp_path):
    rows = "".join(f"p{number % 3},P{number % 3},,s{number},2,\n" for number in range(9))
    feed = read_feed(write(tmp_path / "export.csv", SHOPIFY + rows))
    pairs = list(zip(feed, feed, strict=True))
    assert [one.row.product_id for one, _ in pairs] == ["p0", "p1", "p2"]
    assert all(one == other and len(one.variants) == 3 for one, other in pairs)


def test_each_kind_of_loss_is_one_that_the_reader_notes():
    folder = Path(reading.__file__).parent
    code = "\n".join(path.read_text(encoding="utf-8") for path in folder.glob("*.py") if path.name != "report.py")
    assert [kind for kind in KINDS if f'"{kind}"' not in code] == []


def test_html_in_options_is_removed_and_named_with_its_column(tmp_path):
    header = SHOPIFY.strip() + ",Option1 Name,Option1 Value,Option2 Name,Option2 Value\n"
    rows = "a,A,,1,2,,Color,Red,Fit,Wide &amp; soft\na,,,2,2,,,Blue,,Slim\n"
    feed = read_feed(write(tmp_path / "export.csv", header + rows))
    (product,) = feed
    assert [variant.options["Fit"] for variant in product.variants] == ["Wide & soft", "Slim"]
    assert product.row.attributes["Fit"] == ("Wide & soft", "Slim")
    assert [(loss.row, loss.column) for loss in feed.report.losses.first["html"]] == [(2, "Option2 Value")]
