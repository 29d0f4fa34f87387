"""Texts of tables: HTML in every column, halves of signs in every table, words for nothing, and signs without ink."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st
from table_files import write_table

from moon3.__main__ import main
from processing_moon.text_moon import has_visible_text as visible_to_the_processor
from product_data.reading import ReadingOptions
from product_data.table_files import parse_attributes
from product_data.tables import TableError, load_tables
from product_data.text_cells import has_visible_text, html_in, lone_surrogate, mended, strip_html

HALF = "\ud83d"  # the first half of an emoji, which a cut after so many characters leaves
PRODUCTS: list[dict[str, Any]] = [{"product_id": "1", "title": "hat"}, {"product_id": "2", "title": "shoe"}]
QUERIES: list[dict[str, Any]] = [{"query_id": "q", "text": "hat", "positives": ["1"]}]
CLICKS: list[dict[str, Any]] = [{"query": "hat", "product_id": "1", "action": "click"}]


# ---------------------------------------------------------------------------------------------------------------------
# HTML


def test_html_is_counted_and_named_in_every_text_column() -> None:
    products = [
        {
            "product_id": "1",
            "title": "<b>hat</b>",
            "description": "Salt &amp; pepper",
            "category_path": "Home &amp; Living",
        },
        {"product_id": "2", "title": "x", "attributes": "colour: gr&uuml;n; size: 5", "attributes_text": {"a": "<br>"}},
    ]
    queries = [{"query_id": "q", "text": "fish &amp; chips", "positives": ["1"]}]
    clicks = [{"query": "caf&eacute;", "product_id": "1", "action": "click"}]
    report = load_tables({"products": products, "queries": queries, "interactions": clicks}).report
    assert {issue.kind: issue.count for issue in report.issues} == {"html_cells": 7}
    for place in (
        "product '1', title: '<b>'",
        "product '1', description: '&amp;'",
        "product '1', category_path: '&amp;'",
        "product '2', attributes: '&uuml;'",
        "product '2', attributes_text: '<br>'",
    ):
        assert place in str(report)


def test_an_attribute_is_not_split_at_the_semicolon_of_an_entity_or_inside_of_a_tag() -> None:
    assert parse_attributes("colour: gr&uuml;n; size: 5") == {"colour": ("gr&uuml;n",), "size": ("5",)}
    assert parse_attributes('a: <span style="b: c; d: e">x</span>; f: g') == {
        "a": ('<span style="b: c; d: e">x</span>',),
        "f": ("g",),
    }
    assert parse_attributes("a: R&D; b: x&y;c: z") == {"a": ("R&D",), "b": ("x&y",), "c": ("z",)}


def test_html_is_stripped_from_every_text_column_where_that_is_asked_for() -> None:
    products = [
        {
            "product_id": "1&amp;2",
            "title": "<b>Red</b> hat<br/>new",
            "description": "<p>one</p><!-- note --><p>t&#119;o</p><script>var x = 1 < 2;</script>",
            "category_path": "Home &amp; Living &gt; Hats",
            "attributes": "colour: gr&uuml;n; <i>si</i>ze: 5&nbsp;cm | 6&quot;; gone: <br>",
        },
        {
            "product_id": "3",
            "title": "x",
            "category_path": ["A &amp;amp; B", "C"],
            "attributes": {"k&auml;": ["&lt;5"]},
        },
    ]
    queries = [{"query_id": "q", "text": "fish &amp; chips", "positives": ["3"]}]
    clicks = [{"query": "caf&eacute;", "product_id": "3", "action": "click"}]
    parts = {"products": products, "queries": queries, "interactions": clicks}
    tables = load_tables(parts, reading=ReadingOptions(strip_html=True))
    first, second = tables.products
    assert (first.product_id, first.title, first.description) == ("1&amp;2", "Red hat new", "one two")
    assert first.category == ("Home & Living", "Hats")
    assert first.attributes == {"colour": ("grün",), "size": ("5 cm", '6"')}
    assert (second.category, second.attributes) == (("A & B", "C"), {"kä": ("<5",)})
    assert [query.text for query in tables.queries] == ["fish & chips", "café"]
    assert tables.report.count("html_cells") == 0


def test_the_commands_take_the_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "products.csv").write_text("product_id,title,category_path\n1,a &amp; b,Home/Hats\n")
    assert main(["tables", str(tmp_path)]) == 0
    assert "html_cells" in (printed := capsys.readouterr().out)
    assert "split_categories" in printed
    assert main(["tables", str(tmp_path), "--strip-html", "--category-separator", "/"]) == 0
    assert capsys.readouterr().out.count("\n") == 1
    assert main(["tables", str(tmp_path), "--category-separator", ""]) == 2


def test_what_is_no_html_stays_as_it_is() -> None:
    for text in ("Salt & pepper", "size < 5 cm > 3 cm", "<New> Mug", "AT&T; phone", "R&D", "a<b", "  two  spaces "):
        assert strip_html(text) == text
    assert strip_html("A &lt;5 cm &nbsp;<br> B") == "A <5 cm B"


@given(
    st.lists(
        st.sampled_from(
            ["<b>", "</b>", "&amp;", "&", ";", "<", ">", "lt;", "#60;", "<!--", "-->", "a", " ", "<script>"]
        )
    )
)
def test_stripping_ends_and_leaves_no_html(parts: list[str]) -> None:
    stripped = strip_html("".join(parts))
    assert html_in(stripped) == ""
    assert strip_html(stripped) == stripped


# ---------------------------------------------------------------------------------------------------------------------
# Invalid Unicode


@pytest.mark.parametrize(
    ("part", "row"),
    [
        ("products", {"product_id": "3", "title": f"hat {HALF}"}),
        ("products", {"product_id": f"3{HALF}", "title": "hat"}),
        ("products", {"product_id": "3", "title": "x", "attributes": {"colour": ["red", HALF]}}),
        ("products", {"product_id": "3", "title": "x", "attributes": [{"key": f"k{HALF}", "value": "red"}]}),
        ("products", {"product_id": "3", "title": "x", "category_path": np.array(["a", HALF], dtype=object)}),
        ("products", {"product_id": "3", "title": "x", "images": f"{HALF}.png"}),
        ("products", {"product_id": "3", "title": "x", "note": HALF}),
        ("products", {"product_id": "3", "title": "x", f"note{HALF}": "y"}),
        ("queries", {"query_id": "r", "text": f"{HALF} hat", "positives": ["1"]}),
        ("queries", {"query_id": "r", "text": "x", "positives": ["1", HALF]}),
        ("interactions", {"query": f"hat {HALF}", "product_id": "1", "action": "click"}),
        ("query_images", {"image_id": HALF, "image": b"x"}),
        ("written_attributes", {"product_id": "1", "attributes_image": f"colour: {HALF}"}),
    ],
)
@pytest.mark.parametrize("as_file", [False, True])
def test_half_of_an_emoji_in_any_cell_of_any_table_is_named_and_stops_before_anything_starts(
    tmp_path: Path, part: str, row: dict[str, Any], as_file: bool
) -> None:
    sources: dict[str, Any] = {"products": list(PRODUCTS), "queries": list(QUERIES), "interactions": list(CLICKS)}
    sources[part] = [*sources.get(part, []), row]
    if as_file:
        plain = {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in row.items()}
        plain = {name: "x" if isinstance(value, bytes) else value for name, value in plain.items()}
        rows = [*sources[part][:-1], plain]
        write_table(tmp_path / f"{part}.jsonl", rows)
        sources[part] = tmp_path / f"{part}.jsonl"
    report = load_tables(sources).report
    column = next(name for name, value in row.items() if lone_surrogate(name) or lone_surrogate(value))
    assert report.count("invalid_unicode") == 1
    number = 0 if part in ("query_images", "written_attributes") else 2 if part == "products" else 1
    assert f"row {number}, column {mended(column)!r}: " in str(report)
    assert "\\ud83d" in str(report)
    str(report).encode()  # it can be printed
    with pytest.raises(TableError, match="invalid Unicode"):
        report.raise_if_fatal()


def test_the_command_line_names_half_of_an_emoji_and_refuses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "products.jsonl").write_text('{"product_id": "1", "title": "hat \\ud83d"}\n')
    assert main(["tables", str(tmp_path)]) == 1
    assert "row 0, column 'title': 'hat \\ud83d'" in capsys.readouterr().out


def invalid_parquet(path: Path) -> Path:
    """A parquet file whose second title is Latin-1."""
    raw = pyarrow.array([b"hat", b"caf\xe9", b"shoe"])
    titles = pyarrow.Array.from_buffers(pyarrow.string(), 3, raw.buffers())
    pyarrow.parquet.write_table(pyarrow.table({"product_id": ["1", "2", "3"], "title": titles}), path)
    return path


def test_bytes_that_are_not_utf8_are_named_by_row_and_column_in_every_format(tmp_path: Path) -> None:
    files = [
        invalid_parquet(tmp_path / "a.parquet"),
        tmp_path / "a.csv",
        tmp_path / "a.jsonl",
    ]
    files[1].write_bytes("product_id,title\n1,hat\n2,café\n".encode("latin-1"))
    files[2].write_bytes(b'{"product_id": "1", "title": "hat"}\n{"product_id": "2", "title": "caf\xe9"}\n')
    for file in files:
        with pytest.raises(TableError, match=rf"{file.name}, row 1, column 'title': not UTF-8 \(byte 0xe9"):
            load_tables(file)
    (tmp_path / "b.csv").write_bytes("product_id,title\n1,hat\n".encode("utf-16"))
    with pytest.raises(TableError, match=r"b.csv: found UTF-16; expected text saved as UTF-8"):
        load_tables(tmp_path / "b.csv")


@given(st.text(st.characters(), max_size=20))
def test_mended_text_is_valid_and_valid_text_is_left(text: str) -> None:
    assert lone_surrogate(mended(text)) == ""
    mended(text).encode()
    assert bool(lone_surrogate(text)) == (mended(text) != text)


# ---------------------------------------------------------------------------------------------------------------------
# Words for nothing, signs without ink


@pytest.mark.parametrize("word", ["nan", "null", "None", "NULL"])
def test_a_query_that_is_a_word_for_nothing_is_a_query(word: str, tmp_path: Path) -> None:
    (tmp_path / "products.csv").write_text("product_id,title\n1,bread\n")
    (tmp_path / "queries.csv").write_text(f"query_id,text,positives\nq,{word},1\nr,,1\n")
    (tmp_path / "interactions.csv").write_text(f"query,product_id,action\n{word},1,click\n")
    tables = load_tables(tmp_path)
    assert [query.text for query in tables.queries] == [word, "", word]
    assert tables.report.count("words_for_nothing") == 2
    assert tables.report.count("empty_queries") == 1
    assert f"queries 'q': '{word}', interactions 'row 0': '{word}'" in str(tables.report)


def test_beside_a_picture_a_word_for_nothing_says_that_there_are_no_words() -> None:
    queries = [
        {"query_id": "q", "text": "nan", "image": b"x", "positives": ["1"]},
        {"query_id": "r", "text": float("nan")},
    ]
    tables = load_tables({"products": PRODUCTS, "queries": queries})
    assert [(query.type, query.text) for query in tables.queries] == [("image", ""), ("text", "")]
    assert tables.report.count("words_for_nothing") == 0


BLANK = [
    "\u200b",
    "\u200b\u200d\ufeff",
    "\u00ad",
    "\u2060 ",
    "\u3164",
    "\u115f\u1160",
    "\u2800",
    "\ufe0f",
    "\u034f",
    " \t",
    "",
]
SEEN = ["a", "\u200ba", "0", "-", "帽", "👒", "é", "\u0301", "\ue000", "\U000e01f0\u0378"]


def test_a_title_of_signs_that_nobody_sees_is_no_text() -> None:
    for text in BLANK:
        tables = load_tables({"products": [{"product_id": "1", "title": text, "attributes": {"a": text}}]})
        assert (tables.products[0].title, tables.products[0].attributes) == ("", {})
        assert tables.report.count("empty_products") == 1
    queries = [{"query_id": "q", "text": "\u200b", "positives": ["1"]}]
    assert load_tables({"products": PRODUCTS, "queries": queries}).report.count("empty_queries") == 1
    assert load_tables({"products": [{"product_id": "1", "title": "\u200ba "}]}).products[0].title == "\u200ba"


def test_tables_and_processor_agree_on_what_can_be_seen() -> None:
    assert not any(map(has_visible_text, BLANK))
    assert all(map(has_visible_text, SEEN))
    signs = map(chr, [*range(0xD800), *range(0xE000, 0x11000), *range(0x1F000, 0x1FB00), *range(0xE0000, 0xE0200)])
    assert not [sign for sign in signs if has_visible_text(sign) != visible_to_the_processor(sign)]


# ---------------------------------------------------------------------------------------------------------------------
# What reading needs


def test_tables_are_read_and_checked_without_torch_and_transformers(tmp_path: Path) -> None:
    (tmp_path / "products.csv").write_text("product_id,title,images\n1,hat,gone.png\n")
    (tmp_path / "interactions.csv").write_text("query,product_id,action\nhat,1,click\n")
    code = (
        "import sys\nfrom product_data.tables import load_tables\n"
        f"tables = load_tables({str(tmp_path)!r})\nassert tables.validate().count('missing_images') == 1\n"
        "print(sorted({'torch', 'transformers', 'datasets'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_fatal_report_is_printed_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "products.csv").write_text("product_id,title\n1,hat\n1,shoe\n")
    folder, out = str(tmp_path), str(tmp_path / "out")
    for command in (
        ["evaluate", "--model", "none", "--benchmark", folder],
        ["heatmap", "--model", "none", "--data", folder, "--output", out],
        ["mine", "--model", "none", "--data", folder, "--output", out],
        ["annotate", folder, "--model", "none", "--output", f"{out}.parquet"],
    ):
        assert main(command) == 2
        printed = capsys.readouterr()
        assert (printed.out + printed.err).count("duplicate_product_ids") == 1
