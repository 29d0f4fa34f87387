"""Copies of tables: rows left out, new columns, and types that stay."""

from __future__ import annotations

import json

import pyarrow
import pyarrow.parquet
import pytest
from table_files import write_table

from product_data.table_copies import cell_text, copy_table, count_column, numbers_column, text_column, texts_column
from product_data.table_files import parse_texts, parse_weights, read_rows

ROWS = [{"id": f"q{number}", "positives": ["a|b", "c"], "price": 1.5} for number in range(600)]
COLUMNS = (
    texts_column("positives"),
    numbers_column("positive_weights"),
    text_column("note"),
    count_column("source_row"),
)


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl", ".csv"])
def test_rows_are_left_out_and_cells_replaced_in_every_format(tmp_path, suffix):
    source = write_table(tmp_path / f"queries{suffix}", ROWS)
    first = 0

    def edit(rows):
        nonlocal first
        numbers = range(first, first + len(rows))
        first += len(rows)
        return {
            "positives": [["x|y", "z"] for _ in rows],
            "positive_weights": [[1.0, 0.25] if number % 2 else None for number in numbers],
            "note": ["" for _ in rows],
            "source_row": list(numbers),
        }

    target = tmp_path / "copy" / source.name
    target.parent.mkdir()
    copy_table(source, target, COLUMNS, edit, frozenset(range(1, 600, 3)))
    rows = read_rows(target)
    assert [int(row["source_row"]) for row in rows] == [number for number in range(600) if number % 3 != 1]
    assert {parse_texts(row["positives"]) for row in rows} == {("x|y", "z")}
    assert [parse_weights(row["positive_weights"]) for row in rows[:4]] == [(), (), (1.0, 0.25), (1.0, 0.25)]
    assert {str(row["price"]) for row in rows} == {"1.5"}


def test_a_column_of_texts_stays_one_and_the_features_of_datasets_name_new_columns(tmp_path):
    table = pyarrow.table({"positives": ["a|b"], "id": ["q"]})
    features = {"info": {"features": {"positives": {"dtype": "string", "_type": "Value"}}}}
    source = tmp_path / "queries.parquet"
    pyarrow.parquet.write_table(table.replace_schema_metadata({b"huggingface": json.dumps(features).encode()}), source)
    copy_table(
        source,
        tmp_path / "copy.parquet",
        COLUMNS,
        lambda rows: {"positives": [["c", "d"]], "positive_weights": [[0.5]], "note": ["n"], "source_row": [0]},
    )
    copied = pyarrow.parquet.read_table(tmp_path / "copy.parquet")
    assert copied["positives"].to_pylist() == ["c|d"]
    assert copied["positive_weights"].to_pylist() == [[0.5]]
    known = json.loads(copied.schema.metadata[b"huggingface"])["info"]["features"]
    assert known["positives"] == {"dtype": "string", "_type": "Value"}
    assert known["source_row"] == {"dtype": "int64", "_type": "Value"}


def test_a_list_whose_texts_contain_the_separator_becomes_json():
    assert cell_text(["a", "b"], "|") == "a|b"
    assert cell_text(["a|b", "ü"], "|") == '["a|b", "ü"]'
    assert cell_text([1.0, 0.25], ",") == "1,0.25"
    assert cell_text("a", "|") == "a"
