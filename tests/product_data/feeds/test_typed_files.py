"""Parquet and JSON lines as feeds: types of cells, encodings, damage, and files that change."""

from __future__ import annotations

import json
import os

import pytest
from table_files import write_table

from product_data.feeds.reading import read_feed
from product_data.outputs import OutputError
from product_data.table_files import TableError
from product_data.text_cells import REPLACEMENT


def lines(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_a_shop_format_reads_numbers_and_lists_as_texts(tmp_path, suffix):
    rows = [
        {"id": 7, "title": "Hat", "price": 1.299, "availability": "in stock", "image_link": ["a.png", "b.png"]},
        {"id": 8, "title": "Shoe", "price": 40.0, "availability": "out of stock", "image_link": ["c.png"]},
    ]
    hat, shoe = read_feed(write_table(tmp_path / f"feed{suffix}", rows), format="google_merchant")
    assert (hat.row.product_id, hat.price, hat.availability, len(hat.row.images)) == ("7", 1.299, "in_stock", 2)
    assert (shoe.row.product_id, shoe.price, shoe.availability) == ("8", 40.0, "out_of_stock")


def test_a_cell_that_is_no_text_is_left_out_and_noted(tmp_path):
    path = lines(
        tmp_path / "feed.jsonl", {"Handle": 1, "Title": {"en": "Hat"}, "Variant Price": 3.5, "Image Src": "a.png"}
    )
    feed = read_feed(path, format="shopify")
    [hat] = feed
    assert (hat.row.product_id, hat.row.title, hat.price) == ("1", "", 3.5)
    assert str(feed.report.losses.first["unreadable_cell"][0]) == (
        "row 1, column 'Title': found \"{'en': 'Hat'}\"; found dict; expected text"
    )


def test_a_row_whose_id_is_a_list_is_left_out_and_noted(tmp_path):
    feed = read_feed(
        lines(tmp_path / "p.jsonl", {"product_id": ["a"], "title": "x"}, {"product_id": "b", "title": "y"})
    )
    assert [product.row.product_id for product in feed] == ["b"]
    assert feed.report.count("missing_id") == 1


@pytest.mark.parametrize(
    ("contents", "why"),
    [
        ('{"product_id": "a", "title": "Grün"}\n'.encode("latin-1"), "row 0, column 'title': not UTF-8"),
        ('{"product_id": "a"}\n'.encode("utf-16"), "found UTF-16; expected text saved as UTF-8"),
        (b'{"product_id": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\n", "line 1: the JSON is nested too deeply"),
        (b'{"product_id": ' + b"9" * 5000 + b"}\n", "line 1: not readable JSON"),
        (b"", "found a file without rows; expected at least one product"),
    ],
)
def test_json_lines_that_cannot_be_read_are_refused_with_their_place(tmp_path, contents, why):
    (tmp_path / "p.jsonl").write_bytes(contents)
    with pytest.raises(TableError, match=why):
        read_feed(tmp_path / "p.jsonl")


def test_half_of_a_surrogate_pair_is_replaced_and_noted_also_in_an_id(tmp_path):
    feed = read_feed(
        lines(tmp_path / "p.jsonl", {"product_id": "a\ud800", "title": "x\udfff", "images": ["\ud800.png"]})
    )
    [product] = feed
    assert (product.row.product_id, product.row.title) == (f"a{REPLACEMENT}", f"x{REPLACEMENT}")
    assert feed.report.count("damaged_text") == 3
    str(feed.report).encode()


def test_a_damaged_parquet_file_is_refused_while_it_is_read(tmp_path):
    path = write_table(tmp_path / "p.parquet", [{"product_id": str(n), "title": f"hat {n}" * 50} for n in range(2000)])
    contents = bytearray(path.read_bytes())
    contents[100 : len(contents) // 2] = bytes(len(contents) // 2 - 100)
    path.write_bytes(contents)
    with pytest.raises(TableError, match="not a readable parquet file"):
        list(read_feed(path))


@pytest.mark.parametrize("change", ["before", "meanwhile"])
def test_a_feed_that_changes_while_it_is_read_is_refused(tmp_path, change):
    path = tmp_path / "products.csv"
    path.write_text("product_id,title\n" + "".join(f"{n},hat\n" for n in range(600)))
    feed = read_feed(path)
    products = iter(feed)
    if change == "meanwhile":
        next(products)
    path.write_text("product_id,title\n1,hat\n")
    with pytest.raises(TableError, match=r"products.csv: the file has changed since it was opened"):
        list(products)


def test_a_picture_whose_name_is_too_long_is_a_missing_picture(tmp_path):
    feed = read_feed(lines(tmp_path / "p.jsonl", {"product_id": "1", "title": "x", "images": ["x" * 5000 + ".png"]}))
    assert len(list(feed)) == 1
    assert feed.report.count("missing_picture") == 1
    assert len(str(feed.report)) < 3000


def test_a_long_id_is_shortened_in_the_report(tmp_path):
    feed = read_feed(lines(tmp_path / "p.jsonl", {"product_id": "L" * 4096, "title": "x"}))
    assert [product.row.product_id for product in feed] == ["L" * 4096]
    assert len(str(feed.report)) < 1000


def test_many_columns_are_shortened_in_a_message(tmp_path):
    (tmp_path / "wide.csv").write_text(",".join(f"c{n}" for n in range(5000)) + "\n")
    for format in ("tables", None):
        with pytest.raises(TableError, match=r"'c19', … \(5000 columns\)") as raised:
            read_feed(tmp_path / "wide.csv", format=format)
        assert len(str(raised.value)) < 1500


def test_losses_go_to_a_new_folder_and_never_over_the_feed(tmp_path):
    path = lines(tmp_path / "p.jsonl", {"product_id": "1", "title": "x"})
    list(read_feed(path, losses=tmp_path / "new" / "losses.csv"))
    assert "no_picture" in (tmp_path / "new" / "losses.csv").read_text()
    before = path.read_bytes()
    with pytest.raises(OutputError, match="found the feed itself; expected another file"):
        read_feed(path, losses=path)
    assert path.read_bytes() == before


def test_a_pipe_is_refused_because_a_feed_is_read_twice(tmp_path):
    os.mkfifo(tmp_path / "pipe.csv")
    with pytest.raises(TableError, match="found a pipe or a device; expected a file"):
        read_feed(tmp_path / "pipe.csv")
