"""A log of showings: which columns are found, what is left out, and what is written and read again."""

import csv

import numpy as np
import pytest

from product_data.impressions import ImpressionLog, read_impressions, write_impressions
from product_data.table_files import TableError

ROWS = [
    {"user_id": "b", "product_id": "007", "time": "2026-01-02T00:00", "clicked": "yes"},
    {"user_id": "a", "product_id": "1", "time": "2026-01-01T00:00", "clicked": "0"},
    {"user_id": "a", "product_id": "007", "time": "2026-01-01T00:00", "clicked": "1"},
]


def test_rows_are_sorted_by_time_and_ids_stay_text():
    log = read_impressions(ROWS)
    assert log.users == ("a", "b")
    assert log.products == ("1", "007")
    assert log.user_N.tolist() == [0, 0, 1]
    assert log.product_N.tolist() == [0, 1, 1]
    assert log.clicked_N.tolist() == [False, True, True]
    assert log.time_N.tolist() == [1767225600.0, 1767225600.0, 1767312000.0]
    assert log.simulation is None
    assert log.probability_N is None


def test_usual_names_of_columns_are_found(tmp_path):
    names = {"user_id": "visitor_id", "product_id": "item_id", "time": "timestamp", "clicked": "label"}
    with (tmp_path / "log.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(names.values()))
        writer.writeheader()
        writer.writerows({names[name]: cell for name, cell in row.items()} for row in ROWS)
    assert read_impressions(tmp_path / "log.csv").digest == read_impressions(ROWS).digest


@pytest.mark.parametrize(
    ("column", "called", "hint"),
    [
        ("user_id", "uid", "'uid' could be it"),
        ("clicked", "response", "'response' could be it"),
        ("time", "ts", "'ts'"),
    ],
)
def test_a_missing_column_is_refused_with_the_one_that_could_be_it(column, called, hint):
    rows = [{called if name == column else name: cell for name, cell in row.items()} for row in ROWS]
    with pytest.raises(TableError, match=f"found no column '{column}'") as error:
        read_impressions(rows)
    assert hint in str(error.value)


@pytest.mark.parametrize(
    ("column", "cell"), [("user_id", ""), ("product_id", None), ("time", "noon"), ("clicked", "maybe"), ("clicked", "")]
)
def test_a_row_that_cannot_be_used_is_left_out_and_noted(column, cell):
    log = read_impressions([*ROWS, {**ROWS[0], column: cell}])
    assert len(log) == 3
    (issue,) = log.issues
    assert issue.kind == "broken_impressions"
    assert f"row 3, column '{column}'" in issue.examples[0]


def test_a_log_without_a_usable_row_is_refused():
    with pytest.raises(TableError, match="no usable row among 1"):
        read_impressions([{**ROWS[0], "time": "noon"}])


def test_a_written_log_is_read_again(tmp_path):
    read = read_impressions(ROWS)
    simulated = ImpressionLog(
        "x", read.users, read.products, read.user_N, read.product_N, read.time_N, read.clicked_N,
        np.array([0.1, 0.5, 0.9]), {"seed": 4},
    )  # fmt: skip
    write_impressions(simulated, tmp_path / "log.parquet")
    again = read_impressions(tmp_path / "log.parquet")
    assert again.digest == read.digest
    assert again.simulation == {"seed": 4}
    assert again.probability_N.tolist() == [0.1, 0.5, 0.9]
    assert not list(tmp_path.glob("*.partial"))
