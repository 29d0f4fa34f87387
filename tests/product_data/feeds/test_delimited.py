"""Rows of text files: any encoding, separator and quoting comes back equal, and each repair is reported with its row."""

from __future__ import annotations

import csv
import io
import tempfile
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from product_data.feeds.delimited import DelimitedFile
from product_data.feeds.reading import read_feed
from product_data.feeds.text_encoding import detect_encoding
from product_data.table_files import TableError

NAMES = ["Handle", "Title", "Body (HTML)", "Vendor", "Variant Price"]
ENCODINGS = {
    "utf-8": "UTF-8",
    "utf-8-sig": "UTF-8 with byte order mark",
    "utf-16": "UTF-16 (little-endian)",
    "utf-16-le": "UTF-16 without byte order mark (little-endian)",
    "utf-16-be": "UTF-16 without byte order mark (big-endian)",
    "cp1252": "Windows-1252",
}
WESTERN = "abc 019'é€–,;\t|\n"  # in Windows-1252
SPECIAL = st.sampled_from(
    ['"', '""', '5" heel', "a,b", "a;b", "a\tb", "a|b", "a\nb", "a\r\nb", ' "x"', '","', '"\n"', "007"]
)
ANY = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\x00\r\ufeff\ufffd"), max_size=12) | SPECIAL
OLD = st.text(WESTERN, max_size=12) | SPECIAL
LAST = ("last", "é" * 60, "", "", "")  # bytes that are not UTF-8 in Windows-1252, and text enough to see UTF-16


def written(rows, encoding, separator, quoting, end="\r\n"):
    buffer = io.StringIO()
    csv.writer(buffer, delimiter=separator, quoting=quoting, lineterminator=end).writerows(rows)
    return buffer.getvalue().encode(encoding)


def tables(cells):
    return st.lists(st.tuples(st.text("abc019-", min_size=1, max_size=6), *[cells] * 4), max_size=5)


@settings(max_examples=250, deadline=None)
@given(
    st.sampled_from([name for name in ENCODINGS if name != "cp1252"]).flatmap(
        lambda name: st.tuples(st.just(name), tables(ANY))
    )
    | st.tuples(st.just("cp1252"), tables(OLD)),
    st.sampled_from([",", ";", "\t", "|"]),
    st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC]),
    st.sampled_from(["\n", "\r\n"]),
)
@example(("utf-8", [("a", '5" heel', '"', "x\ny", '""')]), ";", csv.QUOTE_MINIMAL, "\n")
def test_a_table_in_any_encoding_separator_and_quoting_comes_back_equal(table, separator, quoting, end):
    encoding, rows = table
    rows = [*rows, LAST]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "feed.csv"
        path.write_bytes(written([NAMES, *rows], encoding, separator, quoting, end))
        notes = []
        file = DelimitedFile(path)
        read = list(file.rows(notes.append))
        assert file.header == NAMES
        assert file.separator == separator
        assert file.encoding.label.startswith(ENCODINGS[encoding])
        assert [tuple(row.cells.get(name, "") for name in NAMES) for row in read] == rows
        assert [row.number for row in read] == list(range(2, len(rows) + 2))
        assert {note.kind for note in notes} <= {"swallowed_rows"}
        products = {product.row.product_id: product for product in read_feed(path, format="shopify")}
        assert list(products) == list(dict.fromkeys(row[0] for row in rows))
        assert products["last"].row.title == "é" * 60


def read(path: Path, text: str | bytes):
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    notes: list = []
    rows = [(row.number, row.line, list(row.cells.values())) for row in DelimitedFile(path).rows(notes.append)]
    return rows, [(note.kind, note.row, note.line, note.column) for note in notes]


@pytest.mark.parametrize(
    ("text", "cells"),
    [
        ('a,b\n1,5" heel\n', [["1", '5" heel']]),
        ('a,b\n1,"5"" heel"\n', [["1", '5" heel']]),
        ('a,b\n1,"5" heel"\n2,x\n', [["1", '5" heel'], ["2", "x"]]),
        ('a,b\n1,"heel 5""\n2,x\n', [["1", 'heel 5"'], ["2", "x"]]),
        ('a,b\n1,"heel\n2,x\n3,y\n', [["1", '"heel'], ["2", "x"], ["3", "y"]]),
        ('a,b\n1,"heel,x\n2,x 5"\n3,y\n', [["1", "heel,x\n2,x 5"], ["3", "y"]]),
        ('a,b,c\n1,"heel,x\n2,y,5" long\n3,y,z\n', [["1", '"heel', "x"], ["2", "y", '5" long'], ["3", "y", "z"]]),
        ('a,b\n1,"heel\nlow 5" wide"\n3,y\n', [["1", 'heel\nlow 5" wide'], ["3", "y"]]),
    ],
)
def test_inch_signs_and_open_quotes_lose_neither_text_nor_rows(tmp_path, text, cells):
    rows, notes = read(tmp_path / "feed.csv", text)
    assert [row[2] for row in rows] == cells
    strict = text.startswith(('a,b\n1,5" heel', 'a,b\n1,"5""', 'a,b\n1,"heel,x'))
    assert [note[:3] for note in notes if note[0] in ("quotes", "swallowed_rows")] == (
        [] if strict else [("quotes", 2, 2)]
    )


def test_rows_that_a_quoted_cell_may_hide_are_reported(tmp_path):
    rows, notes = read(tmp_path / "feed.csv", 'id,title,group\n1,hat,x\n2," wide,x\n3,belt,y\n4,Screen 27",x\n')
    assert [row[:2] for row in rows] == [(2, 2), (3, 3)]
    assert notes == [("swallowed_rows", 3, 3, "title")]


def test_rows_of_another_length_blank_rows_and_line_breaks_keep_their_numbers(tmp_path):
    text = 'a,b,c\n1,"x\ny",z\n2,x\n\n,,\n3,x,y,z,w\n4,x,y,,\n'
    rows, notes = read(tmp_path / "feed.csv", text)
    assert rows == [
        (2, 2, ["1", "x\ny", "z"]),
        (3, 4, ["2", "x"]),
        (6, 7, ["3", "x", "y"]),
        (7, 8, ["4", "x", "y"]),
    ]
    assert notes == [("short_row", 3, 4, ""), ("blank_row", 5, 6, ""), ("long_row", 6, 7, "")]


@pytest.mark.parametrize("line", ["sep=;\n", '"sep=;"\r\n', "\ufeffsep=;\n", "\nSEP=;\n"])
def test_a_line_that_declares_the_separator_is_obeyed(tmp_path, line):
    file = tmp_path / "feed.csv"
    rows, _ = read(file, f"{line}a;b,c,d\n1;2\n")
    assert rows[0][2] == ["1", "2"]
    assert DelimitedFile(file).separator_label == "semicolon (the line 'sep=;')"


def test_columns_without_a_name_or_with_a_repeated_one_are_named_and_reported(tmp_path):
    path = tmp_path / "feed.csv"
    _, notes = read(path, "a,,a\n1,2,3\n")
    assert DelimitedFile(path).header == ["a", "column 2", "a (3)"]
    assert notes == [("repeated_column", 1, 0, "a (3)")]


@pytest.mark.parametrize("text", ["", "\n\n", "sep=;\n", "\ufeff"])
def test_an_empty_file_is_refused(tmp_path, text):
    (tmp_path / "feed.csv").write_text(text, encoding="utf-8")
    with pytest.raises(TableError, match=r"feed.csv: found an empty file; expected a header line"):
        read_feed(tmp_path / "feed.csv")


@pytest.mark.parametrize(
    ("mark", "codec", "label"),
    [
        (b"\xfe\xff", "utf-16-be", "UTF-16 (big-endian)"),
        (b"\xff\xfe", "utf-16-le", "UTF-16 (little-endian)"),
        (b"\xff\xfe\0\0", "utf-32-le", "UTF-32 (little-endian)"),
    ],
)
def test_byte_order_marks_are_obeyed_and_are_no_part_of_the_header(tmp_path, mark, codec, label):
    path = tmp_path / "feed.csv"
    rows, notes = read(path, mark + "Größe;Preis\n38;19,95 €\n".encode(codec))
    file = DelimitedFile(path)
    assert (file.header, file.encoding.label, rows) == (["Größe", "Preis"], label, [(2, 2, ["38", "19,95 €"])])
    assert notes == []


def test_windows_1252_is_read_only_where_bytes_are_not_utf_8(tmp_path):
    path = tmp_path / "feed.csv"
    rows, notes = read(path, "a,b\n1,Größe\n2,5 €\n".encode("cp1252"))
    assert [row[2][1] for row in rows] == ["Größe", "5 €"]
    assert detect_encoding(path).label == "Windows-1252 (line 2 has the first of 3 bytes that are not UTF-8)"
    rows, notes = read(path, ("a,b\n1,Größe ä ö ü Ä Ö Ü é è ê\n2,h".encode() + b"\xe4t\n"))
    assert [row[2][1] for row in rows] == ["Größe ä ö ü Ä Ö Ü é è ê", "h\ufffdt"]
    assert notes == [("damaged_text", 3, 3, "b")]
    assert detect_encoding(path).label.startswith("UTF-8 with damaged characters (line 3")
