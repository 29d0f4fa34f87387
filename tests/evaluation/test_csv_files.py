"""CSV files as shops write them: quotes that are not balanced, other delimiters, and any cell that a writer can write."""

from __future__ import annotations

import csv
import io
import tempfile
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation.data.csv_files import CsvError, read_csv
from evaluation.data.tables import TableError, load_tables


def write(folder: Path, text: str, name: str = "products.csv") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8", newline="")
    return path


def test_inch_signs_in_quoted_titles_do_not_join_rows(tmp_path: Path) -> None:
    """The standard reader makes 4 rows of these 8, without a word."""
    rows = "".join(f'{number},"Monitor {20 + number}"",x\n' for number in range(8))
    path = write(tmp_path, f"product_id,title,group\n{rows}")
    assert len(list(csv.DictReader(path.open()))) == 4
    with pytest.raises(TableError) as refused:
        load_tables(path)
    message = str(refused.value)
    assert "products.csv, line 2, column 'title': the quote before 'Monitor 20\"\",x' closes on line 3" in message
    assert "expected: a quote inside of a cell written twice" in message


@pytest.mark.parametrize(
    ("rows", "place"),
    [
        ('1,"tape\n2,hat\n', "line 2, column 'title': the quote before 'tape' is never closed"),
        (
            '1,hat\n2,"19" rack"\n',
            "line 3, column 'title': the quote before '19\" rack\"' closes on line 3, in the middle",
        ),
        (
            '1,"a ""long"" one,\n with a break"\n2,"5" pipe\n',
            "line 4, column 'title': the quote before '5\" pipe' closes on",
        ),
        ('"1,hat\n2,shoe\n', "line 2, column 'product_id': the quote before '1,hat' is never closed"),
    ],
    ids=["never closed", "closed inside of a cell", "after a cell of several lines", "in the first column"],
)
def test_the_line_where_an_unbalanced_quote_opens_is_named(tmp_path: Path, rows: str, place: str) -> None:
    with pytest.raises(TableError) as refused:
        load_tables(write(tmp_path, f"product_id,title\n{rows}"))
    assert place in str(refused.value)


def test_rows_that_two_inch_signs_could_join_are_named_and_prose_is_not(tmp_path: Path) -> None:
    joined = 'product_id,title,group\n1,hat,x\n2," wide tape,x\n3,belt,y\n4,Screen 27",x\n5,"red\nhat",z\n'
    report = load_tables(write(tmp_path, joined)).report
    assert (report.products, report.count("swallowed_rows")) == (3, 1)
    assert "products.csv, line 3, column 'title': the quote before ' wide tape,x' closes on line 5" in str(report)
    prose = (
        'product_id,title,description\nA-1,mug,"Red, round.\nNice, big, blue.\nOld, used, cracked."\nA-2,hat,plain\n'
    )
    tables = load_tables(write(tmp_path, prose))
    assert tables.products[0].description == "Red, round.\nNice, big, blue.\nOld, used, cracked."
    assert tables.report.issues == ()


@pytest.mark.parametrize(("delimiter", "called"), [(";", "semicolons"), ("\t", "tabs"), ("|", "bars")])
def test_a_file_with_another_delimiter_is_told_of_its_delimiter(tmp_path: Path, delimiter: str, called: str) -> None:
    lines = [["product_id", "title", "description"], ["1", "hat", "red, warm"], ["2", "shoe", "12,5 cm, new"]]
    path = write(tmp_path, "".join(delimiter.join(line) + "\n" for line in lines))
    with pytest.raises(
        TableError, match=rf"products.csv, line 1: found 3 names that are separated by {called}.*expected commas"
    ):
        load_tables(path)


def test_a_row_of_another_length_names_its_lines_and_the_quote_that_spans_them(tmp_path: Path) -> None:
    with pytest.raises(
        TableError, match="lines 2 to 3: found 2 cells; expected the header's 3; line 2, column 'title'"
    ):
        load_tables(write(tmp_path, 'product_id,title,group\n1,"a\nb"\n'))


CELLS = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\x00\r"), max_size=12) | st.sampled_from(
    ['"', '""', '5" pipe', "a,b", "a\nb", "a\r\nb", ' "x"', "nan", ";;;", "'", '","', '"\n"', "\ufeff", " "]
)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(CELLS, CELLS, CELLS), max_size=6), st.sampled_from(["\n", "\r\n"]), st.booleans())
def test_what_a_writer_of_csv_writes_is_read_back(rows: list[tuple[str, ...]], end: str, quote_all: bool) -> None:
    names = ["a", "b", "c"]
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator=end, quoting=csv.QUOTE_ALL if quote_all else csv.QUOTE_MINIMAL)
    writer.writerows([names, *rows])
    with tempfile.TemporaryDirectory() as folder:
        assert read_csv(write(Path(folder), buffer.getvalue())) == [dict(zip(names, row, strict=True)) for row in rows]


@settings(max_examples=150, deadline=None)
@given(st.lists(st.text('a"",;\n1', max_size=14), max_size=6))
def test_any_text_is_read_or_refused_and_nothing_but_quotes_and_commas_is_lost(lines: list[str]) -> None:
    text = "\n".join(["a,b", *lines])
    with tempfile.TemporaryDirectory() as folder:
        try:
            rows = read_csv(write(Path(folder), text))
        except CsvError:
            return
    read = Counter("".join(cell for row in rows for cell in row.values()))
    assert [read[sign] for sign in "a;1"] == [Counter("".join(lines))[sign] for sign in "a;1"]
