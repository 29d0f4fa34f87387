"""Prices as shops write them; what one cell does not show, the other cells of its column decide."""

from __future__ import annotations

import pytest

from product_data.feeds.prices import Price, parse_price
from product_data.feeds.reading import read_feed


@pytest.mark.parametrize(
    ("text", "value", "currency"),
    [
        ("1.299,00 EUR", 1299.0, "EUR"),
        ("$1,299.00", 1299.0, "USD"),
        ("19,95", 19.95, ""),
        ("12.50 USD", 12.5, "USD"),
        ("EUR 12", 12.0, "EUR"),
        ("1 299,90 kr", 1299.9, "SEK"),
        ("1\u00a0299,-", 1299.0, ""),
        ("1'299.50 CHF", 1299.5, "CHF"),
        ("12,34,567.00 ₹", 1234567.0, "INR"),
        ("1.299.000", 1299000.0, ""),
        ("0.125", 0.125, ""),
        ("12.5000", 12.5, ""),
        ("7", 7.0, ""),
        ("KWD 1.250", 1.25, "KWD"),
    ],
)
def test_signs_spaces_and_currencies(text, value, currency):
    price = parse_price(text)
    assert (price.value, price.currency) == (value, currency)


@pytest.mark.parametrize("text", ["", "abc", "10 - 20", "-5", "1,2,3", "1.2,3.4", "from 5", "5 5"])
def test_what_is_not_a_price_is_refused(text):
    with pytest.raises(ValueError, match="expected"):
        parse_price(text)


@pytest.mark.parametrize(
    ("text", "decimal", "value"),
    [
        ("1.299", ".", 1.299),
        ("1.299", ",", 1299.0),
        ("1.299", "", 1299.0),
        ("1,299", ".", 1299.0),
        ("1,299", ",", 1.299),
    ],
)
def test_one_sign_before_three_digits_is_read_as_the_column_decides(text, decimal, value):
    assert parse_price(text, decimal) == Price(value, "", ambiguous=True)


@pytest.mark.parametrize(
    ("others", "value", "why"),
    [
        (("19,95", "5,00"), 1299.0, "decimal sign ','; read as 1299"),
        (("19.95", "5.00"), 1.299, "decimal sign '.'; read as 1.299"),
        (("7",), 1299.0, "no other price shows more; read as 1299"),
        (("19.95", "5,00"), 1299.0, "no other price shows more; read as 1299"),
    ],
)
def test_the_report_says_how_an_ambiguous_price_was_read_and_why(tmp_path, others, value, why):
    lines = ["id\ttitle\timage_link\tprice", "1\thut\t\t1.299"]
    lines += [f"{number}\thut\t\t{price}" for number, price in enumerate(others, start=2)]
    (tmp_path / "feed.tsv").write_text("\n".join(lines))
    feed = read_feed(tmp_path / "feed.tsv")
    assert next(iter(feed)).price == value
    (loss,) = feed.report.losses.first["ambiguous_price"]
    assert (loss.row, loss.column, loss.found) == (2, "price", "1.299")
    assert loss.why.endswith(why)
