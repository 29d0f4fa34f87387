"""Graded answers: weights in the queries table, and a shop's log of clicks, carts and purchases that becomes queries."""

from __future__ import annotations

import math
from datetime import UTC, date, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pictures import file_of, plain
from table_files import write_table

from product_data.interactions import (
    Interaction,
    InteractionOptions,
    graded_queries,
    parse_count,
    parse_time,
    query_key,
)
from product_data.tables import TableError, load_tables

PRODUCTS = [{"product_id": name, "title": f"thing {name}"} for name in ("a", "b", "c")]


def log(*rows: dict[str, Any], products: list[dict[str, Any]] | None = None, **options: Any) -> Any:
    source = {"products": products or PRODUCTS, "interactions": list(rows)}
    return load_tables(source, interactions=InteractionOptions(**options))


def row(query: str | None, product_id: str, action: str, **more: Any) -> dict[str, Any]:
    return {"query": query, "product_id": product_id, "action": action, **more}


def test_a_purchase_is_worth_more_than_a_cart_and_a_cart_more_than_a_click() -> None:
    tables = log(row("shoe", "a", "click"), row("shoe", "b", "purchase"), row("shoe", "c", "cart"))
    (query,) = tables.queries
    assert query.answers == {"b": 1.0, "c": 0.5, "a": 0.25}
    assert list(query.answers) == ["b", "c", "a"]
    assert (query.type, query.text, query.kind) == ("text", "shoe", "interactions")
    assert "1 queries (3 interactions)" in str(tables.report)


def slow_grade(counts: list[tuple[float, float]]) -> float:
    """The formula of `graded_queries`, term by term."""
    product = 1.0
    for weight, count in counts:
        product *= math.pow(1 - weight, math.log(1 + count) / math.log(2))
    return 1 - product


@given(st.lists(st.tuples(st.sampled_from([0.1, 0.25, 0.5]), st.integers(1, 10_000)), min_size=1, max_size=4))
def test_the_weight_is_the_noisy_or_of_the_actions(counts: list[tuple[float, int]]) -> None:
    rows = [
        Interaction("k", "shoe", None, "a", f"action {number}", weight, float(count))
        for number, (weight, count) in enumerate(counts)
    ]
    (query,) = graded_queries(rows)
    assert query.weights[0] == pytest.approx(slow_grade(counts), abs=1e-9)
    assert 0 < query.weights[0] <= 1


def test_counts_add_up_over_rows_and_never_reach_a_purchase() -> None:
    rows = [row("shoe", "a", "click"), row("shoe", "a", "Click", count=2), row("shoe", "b", "click", count=10**6)]
    (query,) = log(*rows, row("shoe", "c", "purchase")).queries
    assert query.answers["a"] == pytest.approx(1 - 0.75 ** math.log2(4))
    assert query.answers["a"] < query.answers["b"] < query.answers["c"] == 1.0


def test_spelling_case_and_spaces_do_not_part_a_query_but_a_picture_does() -> None:
    picture_row = row(None, "a", "click", query_image=file_of(plain("red", 8)))
    tables = log(row("Red  Shoe", "a", "click"), row("red shoe ", "b", "click"), picture_row, {**picture_row})
    assert [query.text for query in tables.queries] == ["Red  Shoe", ""]
    assert tables.queries[0].positives == ("a", "b")
    assert tables.queries[1].type == "image"
    assert tables.queries[1].answers["a"] == pytest.approx(1 - 0.75 ** math.log2(3))


def test_a_query_is_known_by_the_same_name_wherever_the_shop_lies(tmp_path: Path) -> None:
    names = []
    for folder in (tmp_path / "here", tmp_path / "there"):
        folder.mkdir()
        (folder / "q.png").write_bytes(file_of(plain("blue", 8)))
        write_table(folder / "products.jsonl", PRODUCTS)
        (folder / "interactions.csv").write_text("image,product_id,event\nq.png,a,click\n")
        (query,) = load_tables(folder).queries
        assert query.image == str(folder / "q.png")
        names.append(query.query_id)
    assert names[0] == names[1]
    assert query_key("a", None, "") != query_key("", b"a", "")


def test_old_interactions_fade_by_their_half_life() -> None:
    rows = [
        row("shoe", "a", "click", time="2024-05-01"),
        row("shoe", "b", "click", time="2024-05-31T00:00:00+00:00"),
        row("shoe", "c", "click"),
    ]
    (plain,) = log(*rows).queries
    assert set(plain.answers.values()) == {0.25}
    (faded,) = log(*rows, half_life_days=15).queries
    assert faded.answers["b"] == faded.answers["c"] == 0.25
    assert faded.answers["a"] == pytest.approx(1 - 0.75 ** math.log2(1 + 0.25))
    (ancient,) = log(row("s", "a", "click", time=0), row("s", "b", "click", time=10**11), half_life_days=1).queries
    assert 0 < ancient.answers["a"] < 1e-30


def test_everything_that_is_left_out_is_counted_and_named() -> None:
    tables = log(
        row("shoe", "a", "click", time=5),
        row("shoe", "a", "click", time=5),
        row("shoe", "a", "click", time=6),
        row("shoe", "a", "purchse"),
        row("shoe", "a", ""),
        row("shoe", "gone", "click"),
        row("", "a", "click"),
        row("shoe", "a", "purchase", count=0),
        row("shoe", "a", "purchase", count=-1),
        row("shoe", "a", "purchase", count="some"),
        row("shoe", "a", "click", count=None),
        row("shoe", "a", "click", time="yesterday"),
    )
    counts = {issue.kind: issue.count for issue in tables.report.issues}
    assert counts == {
        "unusable_times": 1,
        "unknown_actions": 2,
        "dangling_interactions": 1,
        "empty_interactions": 1,
        "unusable_counts": 3,
        "duplicate_interactions": 1,
    }
    text = str(tables.report)
    assert "row 3: 'purchse' (the nearest: 'purchase')" in text
    assert "row 4: '' (expected one of purchase, cart, click)" in text
    assert "row 5 → 'gone'" in text
    assert "row 1 (click of 'a')" in text
    assert (
        "their count is not a whole number of at least 1 (unusable_counts): row 7: 0, row 8: -1, row 9: 'some'" in text
    )
    assert tables.report.ok
    assert tables.queries[0].answers == {"a": pytest.approx(1 - 0.75 ** math.log2(1 + 4))}


def test_a_log_of_which_nothing_can_be_used_is_fatal() -> None:
    with pytest.raises(TableError, match="none of the interactions can be used"):
        log(row("shoe", "gone", "click")).report.raise_if_fatal()


def test_the_columns_that_a_log_needs_are_named() -> None:
    for column in ("product_id", "action", "query"):
        full = row("shoe", "a", "click")
        del full[column]
        with pytest.raises(TableError, match=f"no column '{column}'"):
            log(full)


def test_a_logged_query_goes_with_its_best_answer_where_it_names_no_split() -> None:
    products = [{**product, "split": "test" if product["product_id"] == "b" else "train"} for product in PRODUCTS]
    rows = [row("shoe", "a", "click"), row("shoe", "b", "purchase"), row("hat", "a", "click")]
    assert [query.split for query in log(*rows, products=products).queries] == ["test", "train"]
    given_split = [{**entry, "split": "valid"} for entry in rows]
    assert [query.split for query in log(*given_split, products=products).queries] == ["valid", "valid"]


def test_weights_of_other_actions_can_be_given_and_wrong_ones_are_refused() -> None:
    (query,) = log(row("shoe", "a", "Wish"), action_weights={"wish": 0.4}).queries
    assert query.answers == {"a": 0.4}
    for weights in ({}, {"click": 0}, {"click": 1.5}, {"click": True}, {"click": "much"}):
        with pytest.raises(ValueError, match="action_weights"):
            InteractionOptions(weights)
    with pytest.raises(ValueError, match="half_life_days: found 0"):
        InteractionOptions(half_life_days=0)


def graded(weights: Any, positives: Any = ("a", "b")) -> Any:
    queries = [{"query_id": "q", "text": "x", "positives": list(positives), "positive_weights": weights}]
    return load_tables({"products": PRODUCTS, "queries": queries})


def test_a_queries_table_can_grade_its_answers() -> None:
    for spelling in ([1, 0.5], "[1, 0.5]", "1|0.5", "1, 0.5"):
        assert graded(spelling).queries[0].answers == {"a": 1.0, "b": 0.5}
    assert graded(None).queries[0].answers == {"a": 1.0, "b": 1.0}
    assert graded([0.2, 0.5, 0.9], ("a", "b", "a")).queries[0].answers == {"a": 0.9, "b": 0.5}


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1.0], "1 weights for 2 positives"),
        ([1.0, 0.0], "expected numbers above 0"),
        ("much|little", "could not convert string to float"),
    ],
)
def test_weights_that_cannot_be_used_are_named_and_count_as_none(weights: Any, message: str) -> None:
    tables = graded(weights)
    assert tables.queries[0].answers == {"a": 1.0, "b": 1.0}
    assert tables.report.count("malformed_cells") == 1
    assert message in str(tables.report)


def test_moments_and_counts_are_read_in_the_spellings_that_logs_use() -> None:
    moment = datetime(2024, 5, 31, 12, tzinfo=UTC)
    for spelling in (
        "2024-05-31T12:00",
        "2024-05-31 14:00:00+02:00",
        moment.timestamp(),
        str(moment.timestamp()),
        moment,
    ):
        assert parse_time(spelling) == moment.timestamp()
    day = datetime(2024, 5, 31, tzinfo=UTC).timestamp()
    for spelling in ("2024-05-31", "20240531", 20240531, 20240531.0, date(2024, 5, 31)):
        assert parse_time(spelling) == day
    assert [parse_time(number) for number in (20241399, 20240531.5, 5)] == [20241399, 20240531.5, 5]  # no days
    assert parse_count("3") == parse_count(3.0) == 3
    for wrong in (float("inf"), True, [], 1e21, "1e21", "31.05.2024"):
        with pytest.raises((ValueError, TypeError)):
            parse_time(wrong)
    for wrong in ("1.5", -1, "many"):
        with pytest.raises(ValueError, match="convert|expected a whole number"):
            parse_count(wrong)


SECONDS = datetime(2024, 5, 1, 10, tzinfo=UTC).timestamp()


@pytest.mark.parametrize(
    ("spelling", "seconds"),
    [
        ("2024-05-01 10:00:00 UTC", SECONDS),
        ("2024-05-01 10:00:00.123456 UTC", SECONDS + 0.123456),
        ("2024-05-01 10:00:00.5 UTC", SECONDS + 0.5),
        ("2024-05-01T10:00:00.123456789Z", SECONDS + 0.123456),
        ("2024-05-01 10:00:00Z", SECONDS),
        ("2024-05-01 12:00:00+02", SECONDS),
        ("2024-05-01 12:00:00 +02", SECONDS),
        ("2024-05-01 12:00:00 +02:00", SECONDS),
        ("2024-05-01 12:00:00 +0200", SECONDS),
        ("2024-05-01 15:30:00+5:30", SECONDS),
        ("2024-05-01 05:00:00.000000-05:00", SECONDS),
        ("2024-05-01 10:00:00 GMT", SECONDS),
        ("2024-05-01 06:00:00 America/New_York", SECONDS),
        (" 2024-05-01 10:00:00 utc ", SECONDS),
        (SECONDS * 1e3, SECONDS),
        (int(SECONDS * 1e6), SECONDS),
        (str(int(SECONDS * 1e6)), SECONDS),
        (int(SECONDS * 1e9), SECONDS),
        (np.datetime64("2024-05-01T10:00:00.000000000"), SECONDS),
    ],
)
def test_moments_are_read_as_bigquery_and_other_warehouses_write_them(spelling: Any, seconds: float) -> None:
    assert parse_time(spelling) == pytest.approx(seconds, abs=1e-6)


@pytest.mark.parametrize(
    "wrong", ["2024-05-01 10:00:00 XYZ", "2024-05-01 10:00 Mars/Base", "10:00:00 UTC", "2024-13-01 10:00:00 UTC"]
)
def test_a_moment_that_cannot_be_read_says_what_is_accepted(wrong: str) -> None:
    with pytest.raises(ValueError, match="expected seconds since 1970, or text such as"):
        parse_time(wrong)


@given(st.datetimes(datetime(1900, 1, 1), datetime(2100, 1, 1)), st.integers(-720, 840), st.sampled_from(["", " "]))
def test_any_moment_with_any_offset_is_read(moment: datetime, minutes: int, space: str) -> None:
    moment = moment.replace(tzinfo=timezone(timedelta(minutes=minutes)))
    written = f"{moment:%Y-%m-%d %H:%M:%S.%f}{space}{moment:%z}"
    assert parse_time(written) == moment.timestamp()


def test_bigquery_times_find_duplicates_and_half_lives() -> None:
    rows = [
        row("shoe", "a", "click", time="2024-05-01 10:00:00 UTC"),
        row("shoe", "a", "click", time="2024-05-01 10:00:00.000000+00"),
        row("shoe", "b", "click", time="2024-05-16 10:00:00 UTC"),
    ]
    tables = log(*rows, half_life_days=15)
    assert tables.report.count("duplicate_interactions") == 1
    assert tables.report.count("unusable_times") == 0
    assert tables.queries[0].answers["a"] == pytest.approx(1 - 0.75 ** math.log2(1 + 0.5))


def test_times_that_cannot_be_read_are_counted_and_a_half_life_without_any_time_is_fatal() -> None:
    rows = [row("shoe", "a", "click", time="1st of May"), row("shoe", "b", "click", time="2nd of May")]
    report = log(*rows).report
    assert (report.count("unusable_times"), report.ok) == (2, True)
    assert "1st of May" in str(report)
    refused = log(*rows, half_life_days=3).report
    assert (refused.count("no_times"), refused.ok) == (1, False)
    assert log(row("shoe", "a", "click"), half_life_days=3).report.count("no_times") == 1
    assert log(*rows, row("shoe", "a", "click", time=5), half_life_days=3).report.ok
