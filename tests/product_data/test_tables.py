"""The reader of product data: real data, a user's own files in three formats, broken rows and the report on them."""

from __future__ import annotations

import base64
import pickle
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pictures import file_of, plain
from PIL import Image
from table_files import write_table

from moon3.__main__ import main
from product_data.categories import parse_category
from product_data.table_files import parse_attributes, parse_box, parse_flag, parse_texts
from product_data.tables import TableError, load_tables

pytestmark = pytest.mark.lowest

REAL_DATA = Path(__file__).resolve().parents[2] / "../shared/data"


PRODUCTS: list[dict[str, Any]] = [
    {
        "product_id": "007",
        "title": "Red shoe",
        "description": None,
        "category_path": ["Home", "Shoes"],
        "attributes": [{"key": "colour", "value": "red"}, {"key": "colour", "value": "rose"}],
        "images": ["red.png"],
        "split": "test",
    },
    {
        "product_id": "8",
        "title": "Blue hat",
        "description": "warm",
        "category_path": ["Home", "Hats"],
        "attributes": [{"key": "colour", "value": "blue"}],
        "images": ["blue.png", "red.png"],
        "split": "train",
    },
]
QUERIES: list[dict[str, Any]] = [
    {"query_id": "q1", "text": "red shoe", "image": None, "positives": ["007"], "split": "test"},
    {"query_id": "q2", "text": "in blue", "image": "red.png", "positives": ["8"], "split": "train"},
]


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    for colour in ("red", "blue"):
        (tmp_path / f"{colour}.png").write_bytes(file_of(plain(colour, 8)))
    return tmp_path


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl", ".csv"])
def test_a_users_folder_reads_alike_from_every_format(shop: Path, suffix: str) -> None:
    write_table(shop / f"products{suffix}", PRODUCTS)
    write_table(shop / f"queries{suffix}", QUERIES)
    tables = load_tables(shop, check_images=True)
    assert tables.report.issues == ()
    first, second = tables.products
    assert (first.product_id, first.title, first.description) == ("007", "Red shoe", "")
    assert first.category == ("Home", "Shoes")
    assert first.attributes == {"colour": ("red", "rose")}
    assert [Path(str(image)).name for image in second.images] == ["blue.png", "red.png"]
    assert all(Path(str(image)).is_file() for image in second.images)
    assert [query.type for query in tables.queries] == ["text", "both"]
    assert tables.queries[1].record()["image"] == str(shop / "red.png")
    assert tables.queries[0].record() == {"id": "q1", "text": "red shoe"}


def test_one_products_file_and_short_csv_spellings_and_aliases_read(shop: Path) -> None:
    (shop / "stock.csv").write_text(
        "id,name,category,attributes,image,core_box\n"
        "1,Mug,Home > Kitchen > Mugs,colour: red | blue; size: 0.3 l,red.png|blue.png,0 0 4 4\n"
        "2,nan,Home|Kitchen,,,\n",
        encoding="utf-8",
    )
    tables = load_tables(shop / "stock.csv")
    mug, bare = tables.products
    assert mug.category == ("Home", "Kitchen", "Mugs")
    assert mug.attributes == {"colour": ("red", "blue"), "size": ("0.3 l",)}
    assert len(mug.images) == 2
    assert mug.core_box == (0.0, 0.0, 4.0, 4.0)
    assert (bare.title, bare.category, bare.images, bare.core_box) == ("", ("Home", "Kitchen"), (), None)
    assert tables.queries == []
    assert tables.report.issues == ()


def test_images_root_and_query_images_are_followed(shop: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("tables")
    write_table(elsewhere / "products.jsonl", PRODUCTS)
    queries = [{"query_id": "q", "image_id": "one", "bbox": [0, 0, 4, 4], "positives": ["8"]}]
    write_table(elsewhere / "queries.jsonl", queries)
    write_table(
        elsewhere / "query_images.parquet",
        [{"image_id": "one", "image": {"bytes": file_of(plain("red", 8)), "path": None}}],
    )
    tables = load_tables(elsewhere, images_root=shop)
    assert tables.report.issues == ()
    assert tables.queries[0].image == file_of(plain("red", 8))
    assert tables.queries[0].record()["core_box"] == [0.0, 0.0, 4.0, 4.0]
    named = {"products": elsewhere / "products.jsonl", "queries": queries, "images": shop}
    report = load_tables(named).report
    assert report.count("missing_images") == 1
    assert "one" in str(report)


def test_rows_in_memory_take_arrays_nan_pil_images_and_encoded_images() -> None:
    row = {
        "product_id": 5,
        "title": float("nan"),
        "category_path": np.array(["a", "b"], dtype=object),
        "attributes": {"size": 7.0, "colour": ["red", None, "blue"], "style": None},
        "images": np.array([{"bytes": file_of(plain("red", 8)), "path": None}], dtype=object),
        "group": None,
    }
    other = {"product_id": "6", "title": "None", "images": Image.new("RGB", (4, 4))}
    tables = load_tables({"products": [row, other]})
    assert tables.report.issues == ()
    first, second = tables.products
    assert (first.product_id, first.title, first.category) == ("5", "", ("a", "b"))
    assert first.attributes == {"size": ("7",), "colour": ("red", "blue")}
    assert first.images == (file_of(plain("red", 8)),)
    assert isinstance(second.images[0], Image.Image)


def test_every_kind_of_trouble_is_counted_and_named(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(file_of(plain("red", 8))[:30])
    products = [
        {"product_id": "a", "title": "one", "images": "gone.png", "titel": "x"},
        {"product_id": "a", "title": "two", "images": "broken.png"},
        {"product_id": "b", "title": "", "images": None},
        {"product_id": None, "title": "nameless", "images": None},
        {"product_id": "c", "title": "three", "attributes": "no colon here", "core_box": [5, 5, 1, 1]},
        {"product_id": "d", "title": "four", "images": "https://shop.example/d.jpg"},
    ]
    queries = [
        {"query_id": "q", "text": "x", "positives": ["a", "zzz"], "negatives": ["yyy"], "reference_product_id": "xxx"},
        {"query_id": "q", "text": None, "positives": []},
        {"query_id": "r", "text": "x", "type": "both", "positives": ["b"]},
        {"query_id": "s", "text": "x", "type": "video", "positives": ["b"]},
        {"query_id": "", "text": "x", "positives": ["b"]},
    ]
    write_table(tmp_path / "products.jsonl", products)
    write_table(tmp_path / "queries.jsonl", queries)
    report = load_tables(tmp_path, check_images=True).report
    expected = {
        "missing_images": 1,
        "unreadable_images": 1,
        "image_addresses": 1,
        "duplicate_product_ids": 1,
        "duplicate_query_ids": 1,
        "missing_product_ids": 1,
        "missing_query_ids": 1,
        "empty_products": 1,
        "empty_queries": 1,
        "malformed_cells": 2,
        "type_mismatches": 2,
        "dangling_positives": 1,
        "dangling_negatives": 1,
        "dangling_references": 1,
        "queries_without_positives": 1,
        "unknown_columns": 1,
    }
    assert {issue.kind: issue.count for issue in report.issues} == expected
    text = str(report)
    for words in ("gone.png", "'zzz'", "'yyy'", "'xxx'", "nearest known: 'title'", "no colon", "video"):
        assert words in text
    assert not report.ok
    with pytest.raises(TableError, match="duplicate_product_ids"):
        report.raise_if_fatal()
    with pytest.raises(KeyError, match="known kinds"):
        report.count("nonsense")


def test_titles_that_hold_html_are_counted_and_named_and_stay_as_they_are() -> None:
    held = [
        "Salt &amp; pepper",
        "<b>Mug</b>",
        "Mug<br/>red",
        "x &#39;y&#39;",
        '<span class="new">Mug</span>',
        "&NBSP; &nbsp;",
    ]
    plain = ["Salt & pepper", "size < 5 cm > 3 cm", "<New> Mug", "AT&T; phone", "R&D", "M&S;", "a<b", "<3 mug"]
    rows = [{"product_id": f"p{number}", "title": title} for number, title in enumerate([*held, *plain])]
    tables = load_tables({"products": rows})
    (issue,) = tables.report.issues
    assert (issue.kind, issue.count, issue.fatal) == ("html_cells", len(held), False)
    assert issue.examples[:3] == tuple(
        f"product 'p{number}', title: {html!r}" for number, html in enumerate(("&amp;", "<b>", "<br/>"))
    )
    assert [row.title for row in tables.products] == [*held, *plain]


@pytest.mark.parametrize(
    ("there", "asked"),
    [
        ("1", "1.0"),
        ("1.00", "1"),
        ("1", "001"),
        ("007", "7"),
        ("0", "00"),
        ("AB 1", "AB1"),
        ("ab-1", "AB-1"),
        ("x\u00a01", "x 1"),
        ("１２", "12"),
    ],
)
def test_an_id_that_is_only_written_otherwise_is_said_to_be_there(there: str, asked: str) -> None:
    products = [{"product_id": there, "title": "x"}, {"product_id": "other", "title": "y"}]
    queries = [
        {
            "query_id": "q",
            "text": "x",
            "positives": ["gone", asked],
            "negatives": [asked],
            "reference_product_id": asked,
        }
    ]
    clicks = [
        {"query": "x", "product_id": asked, "action": "click"},
        {"query": "x", "product_id": "other", "action": "click"},
    ]
    written = [{"product_id": asked, "attributes_text": "colour: red"}]
    parts = {"products": products, "queries": queries, "interactions": clicks, "written_attributes": written}
    report = load_tables(parts).report
    counts = {issue.kind: (issue.count, issue.near) for issue in report.issues}
    assert counts == {
        "dangling_positives": (2, 1),
        "dangling_negatives": (1, 1),
        "dangling_references": (1, 1),
        "dangling_interactions": (1, 1),
        "dangling_written_attributes": (1, 1),
    }
    sentence = f"; 1 of them differ only in spelling: found {asked!r}, the table has {there!r}"
    assert str(report).count(sentence) == 5
    assert load_tables(parts).validate() == report


def test_an_id_that_is_another_one_is_not_said_to_be_there() -> None:
    products = [{"product_id": name, "title": "x"} for name in ("1", "10", "1.5", "a1", "")]
    queries = [{"query_id": "q", "text": "x", "positives": ["100", "1.05", "15", "a01", "-1", "1e0"]}]
    report = load_tables({"products": products, "queries": queries}).report
    assert [(issue.count, issue.near) for issue in report.issues if issue.kind == "dangling_positives"] == [(6, 0)]
    assert "differ only in spelling" not in str(report)


def test_a_report_names_five_examples_and_counts_all() -> None:
    tables = load_tables({"products": [{"product_id": str(i), "title": ""} for i in range(9)]})
    (issue,) = tables.report.issues
    assert (issue.kind, issue.count, len(issue.examples)) == ("empty_products", 9, 5)
    tables.report.raise_if_fatal()


def test_splits_select_rows_and_all_belongs_to_every_split() -> None:
    products = [
        {"product_id": str(i), "title": "t", "split": split} for i, split in enumerate(["train", "test", "all"])
    ]
    queries = [{"query_id": "q", "text": "x", "positives": ["1"], "split": "test"}]
    tables = load_tables({"products": products, "queries": queries})
    assert tables.splits == {"train": (1, 0), "test": (1, 1), "all": (1, 0)}
    test = tables.select("test")
    assert [row.product_id for row in test.products] == ["1", "2"]
    assert len(test.queries) == 1
    assert tables.select(None) is tables
    with pytest.raises(TableError, match=r"no split 'tset'; expected one of all, test, train"):
        tables.select("tset")
    unsplit = load_tables({"products": [{"product_id": "1", "title": "t"}]}, split="test")
    assert len(unsplit.products) == 1


def test_forms_and_left_out_fields_shape_the_record() -> None:
    row = load_tables(
        {"products": [PRODUCTS[1] | {"images": [file_of(plain("red", 8))], "core_box": [0, 0, 2, 2]}]}
    ).products[0]
    assert set(row.record()) == {"id", "title", "description", "category", "attributes", "images", "core_box"}
    assert set(row.record("t", without=("category",))) == {"id", "title", "description", "attributes"}
    assert set(row.record("i")) == {"id", "images", "core_box"}
    with pytest.raises(ValueError, match="expected one of mm, t, i"):
        row.record("image")


def test_tables_come_out_of_a_pickle_as_they_went_in() -> None:
    tables = load_tables({"products": [PRODUCTS[0] | {"images": [file_of(plain("red", 8))]}], "queries": QUERIES[:1]})
    assert pickle.loads(pickle.dumps(tables)) == tables


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: folder / "nowhere", "no such file or folder"),
        (lambda folder: folder, "no products table"),
        (lambda folder: _file(folder / "products.txt", b"x"), "expected one of .parquet, .jsonl, .csv"),
        (lambda folder: _file(folder / "p.jsonl", b'{"product_id": 1}\n{oops\n'), "line 2: not JSON"),
        (lambda folder: _file(folder / "p.jsonl", b"[1]\n"), "line 1: found list"),
        (
            lambda folder: _file(folder / "p.csv", b"product_id,title\n1,2,3\n"),
            "line 2: found 3 cells; expected the header's 2",
        ),
        (lambda folder: _file(folder / "p.parquet", b"nonsense"), "not a readable parquet file"),
        (
            lambda folder: _file(folder / "p.csv", b"sku,title\n1,2\n"),
            "no column 'product_id'; 'sku' could be it: rename it; the columns are: sku, title",
        ),
        (lambda folder: _file(folder / "p.csv", b"product_id,price\n1,2\n"), "no column 'title' or 'description'"),
        (lambda folder: {"produkte": folder}, "expected one of products, queries"),
        (lambda folder: {"products": [], "images": folder / "gone"}, "images folder"),
    ],
)
def test_an_unusable_source_is_refused_in_a_sentence(tmp_path: Path, make: Any, message: str) -> None:
    with pytest.raises(TableError, match=message):
        load_tables(make(tmp_path))


def _file(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def test_two_files_for_one_table_and_options_of_another_source_are_refused(shop: Path) -> None:
    write_table(shop / "products.csv", PRODUCTS)
    with pytest.raises(TableError, match="are for source 'catalogue'"):
        load_tables(shop, product_count=3)
    write_table(shop / "products.jsonl", PRODUCTS)
    with pytest.raises(TableError, match="found products.jsonl and products.csv"):
        load_tables(shop)


@pytest.mark.parametrize(
    ("columns", "likely"),
    [
        (["sku", "title"], "'sku' could be it"),
        (["Product ID", "title", "handle"], "'Product ID' or 'handle' could be it"),
        (["uniq_id", "title", "slug"], "'uniq_id' or 'slug' could be it"),
        (["prodct_id", "title"], "'prodct_id' could be it"),
        (["product_id", "Product Name"], "'Product Name' could be it"),
        (["product_id", "image_url"], "'image_url' could be it"),
    ],
)
def test_a_missing_column_names_those_that_could_be_it(columns: list[str], likely: str) -> None:
    rows = [{column: f"{column} {number}" for column in columns} for number in range(3)]
    with pytest.raises(TableError, match=f"no column .*; {likely}: rename it; the columns are: "):
        load_tables({"products": rows})


def test_a_column_whose_cells_repeat_comes_last_and_says_so() -> None:
    rows = [{"handle": "mug", "variant_id": str(number), "title": "x"} for number in range(2)]
    with pytest.raises(
        TableError, match=r"no column 'product_id'; 'variant_id' or 'handle' \(its cells repeat\) could be it"
    ):
        load_tables({"products": rows})
    with pytest.raises(TableError, match="no column 'product_id'; the columns are: price, title"):
        load_tables({"products": [{"price": 1, "title": "x"}]})


def test_queries_need_their_columns() -> None:
    products = [{"product_id": "1", "title": "t"}]
    for queries, column in (
        ([{"text": "x", "positives": ["1"]}], "query_id"),
        ([{"query_id": "q", "text": "x"}], "positives"),
        ([{"query_id": "q", "positives": ["1"]}], "text"),
    ):
        with pytest.raises(TableError, match=f"no column '{column}'"):
            load_tables({"products": products, "queries": queries})


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "products.csv",
            "product_id,title\n1,café\n".encode("latin-1"),
            r"row 0, column 'title': not UTF-8 \(byte 0xe9",
        ),
        (
            "products.jsonl",
            '{"product_id": "1", "title": "café"}\n'.encode("latin-1"),
            r"row 0, column 'title': not UTF-8",
        ),
        ("products.csv", b"product_id,title\n1," + b"x" * 200 + b"\n", r"products.csv, line 2: not CSV \(field larger"),
    ],
    ids=["csv in another encoding", "jsonl in another encoding", "a cell beyond the limit"],
)
def test_a_text_file_that_cannot_be_read_is_named(
    tmp_path: Path, name: str, content: bytes, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("product_data.csv_files._LONGEST_CELL", 100)
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(TableError, match=message):
        load_tables(path)


def test_of_two_columns_with_one_name_none_is_taken_silently(tmp_path: Path) -> None:
    path = tmp_path / "products.csv"
    path.write_text("product_id,title,title\n1,red hat,blue hat\n")
    with pytest.raises(
        TableError, match=r"products.csv, line 1: 2 columns are named 'title'; expected one name for each"
    ):
        load_tables(path)
    path.write_text("product_id,title,,\n1,red hat,,\n")  # what a spreadsheet adds
    assert load_tables(path).products[0].title == "red hat"


@pytest.mark.parametrize("part", ["products", "interactions"])
def test_ids_of_any_number_type_meet_and_what_is_no_id_is_named(tmp_path: Path, part: str) -> None:
    tables: dict[str, list[dict[str, Any]]] = {
        "products": [{"product_id": Decimal("7"), "title": "hat"}, {"product_id": Decimal("8.00"), "title": "shoe"}],
        "interactions": [{"query": "hat", "product_id": "7", "action": "click"}],
    }
    assert load_tables(tables).queries[0].positives == ("7",)
    assert [row.product_id for row in load_tables(tables).products] == ["7", "8"]
    tables[part][0]["product_id"] = {"oid": "7"}
    if part == "products":
        with pytest.raises(TableError, match="products, row 0, column 'product_id': found dict; expected text"):
            load_tables(tables)
    else:
        assert "column 'product_id': found dict; expected text" in str(load_tables(tables).report)


def test_cells_parse_and_wrong_ones_say_what_is_accepted() -> None:
    assert parse_category('["a", "b"]') == ("a", "b")
    assert parse_texts("1|2| 3 ") == ("1", "2", "3")
    assert parse_attributes('{"size": [1, 2]}') == {"size": ("1", "2")}
    assert parse_attributes([("a", "b"), {"key": "a", "value": "c"}]) == {"a": ("b", "c")}
    assert parse_box("[1, 2, 3, 4]") == (1.0, 2.0, 3.0, 4.0)
    assert [parse_flag(value) for value in (True, "False", 1, None, "yes")] == [True, False, True, False, True]
    for parse, value in (
        (parse_attributes, 5),
        (parse_attributes, [1]),
        (parse_attributes, "{oops"),
        (parse_box, [0, 0, 1]),
        (parse_box, "a b c d"),
        (parse_flag, "maybe"),
        (parse_texts, [{"a": 1}]),
    ):
        with pytest.raises(ValueError, match=r"expected|JSON|convert"):
            parse(value)


def test_the_command_line_prints_the_report(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_table(shop / "products.csv", PRODUCTS)
    (shop / "blue.png").write_bytes(file_of(plain("blue", 8))[:40])
    assert main(["tables", str(shop)]) == 0
    assert "1 × images that cannot be opened (unreadable_images): product '8', images[0]" in capsys.readouterr().out
    write_table(shop / "products.csv", [PRODUCTS[0], PRODUCTS[0]])
    assert main(["tables", str(shop)]) == 1
    assert "ERROR: 1 × product_id used by more than one product" in capsys.readouterr().out
    assert main(["tables", str(shop / "nowhere")]) == 2


def test_opening_every_picture_shows_how_far_it_is(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bars = []
    monkeypatch.setattr("product_data.checking.tqdm", lambda items, **how: bars.append(how["disable"]) or items)
    write_table(shop / "products.csv", PRODUCTS)
    load_tables(shop)
    load_tables(shop, check_images=True)
    assert bars == [True, False]


def test_base64_text_is_no_picture_but_a_missing_file() -> None:
    text = base64.b64encode(file_of(plain("red", 8))).decode()
    report = load_tables({"products": [{"product_id": "1", "images": [text]}]}).report
    assert report.count("missing_images") == 1


@pytest.mark.skipif(not REAL_DATA.is_dir(), reason="../shared/data is not on this machine")
@pytest.mark.parametrize(
    ("name", "products", "queries"), [("grocery", 48, 2285), ("ikea", 1613, 2042), ("street", 0, 1063)]
)
def test_real_data_reads_whole(name: str, products: int, queries: int) -> None:
    tables = load_tables(REAL_DATA / name)
    assert (len(tables.products), len(tables.queries)) == (products, queries)
    assert tables.report.ok
    assert all(isinstance(query.image, bytes) for query in tables.queries if query.type != "text")
    if products:
        assert len(tables.select("test").products) >= 48
