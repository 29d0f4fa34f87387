"""A filter is read as written, refused with the place of the mistake, and cannot leave its quotes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stored_products import HOSTILE, shop

from retrieval.stores.interface import StoredProduct, StoreError
from retrieval.stores.where import Condition, Where, sql_text


def test_a_filter_is_read_as_written():
    text = "price < 50 and brand = 'Acme' AND category = 'Shoes > Boots' and availability = in_stock"
    assert Where.parse(text).conditions == (
        Condition("price", "<", (50.0,)),
        Condition("brand", "=", ("Acme",)),
        Condition("category", "=", ("Shoes > Boots",)),
        Condition("availability", "=", ("in_stock",)),
    )
    assert Where.parse('attributes.color in (red, \'dark blue\',"a""b")').conditions == (
        Condition("attributes.color", "in", ("red", "dark blue", 'a"b')),
    )
    assert Where.parse("attributes.'shoe size'!='O''N'").conditions == (
        Condition("attributes.shoe size", "!=", ("O'N",)),
    )
    assert Where.parse("price>=1e3").conditions == (Condition("price", ">=", (1000.0,)),)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "character 1: found the end; expected a condition"),
        ("   ", "expected a condition, such as price < 50"),
        ("price", "character 6: found the end; expected =, !=, <, <=, >, >= or in"),
        ("price <", "character 8: found the end; expected a value"),
        ("price < cheap", "character 9: found 'cheap'; expected a number"),
        ("price < nan", "character 9: found 'nan'; expected a number"),
        ("price in (inf)", "character 11: found 'inf.'; expected a number"),
        ("brand < Acme", "character 7: found '< Acme'; expected =, != or in after brand: only the price has an order"),
        ("colour = red", "character 1: found 'colour = red'; expected one of price, availability, brand, category or"),
        ("attributes. = red", "character 1: found 'attributes. = red'; expected one of"),
        ("'price' < 3", "character 1: found .*; expected one of"),
        ("price < 3 or price > 4", "character 11: found 'or price > 4'; expected 'and' or the end"),
        ("brand = 'Acme", "character 9: found .*; expected a value"),
        ("brand = (Acme)", "character 9: found '.Acme.'; expected a value"),
        ("brand in Acme", "character 10: found 'Acme'; expected '.'"),
        ("brand in (Acme, )", "character 17: found '.'; expected a value"),
        ("brand in (Acme Bcme)", "character 16: found 'Bcme.'; expected ',' or '.'"),
        ("brand in (Acme", "character 15: found the end; expected ',' or '.'"),
        ("brand = Acme and", "character 17: found the end; expected one of price"),
        ("brand like Acme", "character 7: found 'like Acme'; expected =, !="),
    ],
)
def test_a_mistake_is_refused_with_its_place(text, message):
    with pytest.raises(StoreError, match=message):
        Where.parse(text)


@given(st.text(max_size=30))
def test_any_text_is_a_filter_or_refused(text):
    said = ""
    try:
        found = Where.parse(text).conditions
    except StoreError as error:
        found, said = (), str(error)
    assert found or repr(text) in said


@given(st.text(max_size=20) | st.sampled_from(HOSTILE))
def test_a_quoted_value_comes_back_whole_and_stays_inside_its_quotes_in_sql(value):
    quoted = "'" + value.replace("'", "''") + "'"
    assert Where.parse(f"brand = {quoted}").conditions == (Condition("brand", "=", (value,)),)
    literal = sql_text(value)
    assert literal[0] == literal[-1] == "'"
    assert "'" not in literal[1:-1].replace("''", "")
    assert literal[1:-1].replace("''", "'") == value


def test_a_category_holds_for_all_below_it_and_only_from_the_root():
    boots = StoredProduct("1", category=("Shoes", "Boots", "Ankle boots"))
    for path in ("Shoes", "Shoes > Boots", "Shoes>Boots", " Shoes  >  Boots > Ankle boots"):
        assert Where.parse(f"category = '{path}'").holds(boots), path
    for path in ("Boots", "Shoes > Boo", "shoes", "Shoes > Boots > Ankle boots > Red"):
        assert not Where.parse(f"category = '{path}'").holds(boots), path


def test_a_product_without_a_price_satisfies_no_condition_on_it():
    for operator in ("=", "!=", "<", "<=", ">", ">="):
        assert not Where.parse(f"price {operator} 5").holds(StoredProduct("1"))
    assert not Where.parse("price in (5, 6)").holds(StoredProduct("1"))


def test_filters_are_joined_and_an_empty_one_keeps_everything():
    both = Where.parse("price < 20") & Where.parse("brand = Acme")
    assert [both.holds(one) for one in shop()] == [
        one.price is not None and one.price < 20 and one.brand == "Acme" for one in shop()
    ]
    assert all(Where().holds(one) for one in shop())
    assert Where().sql() == "true"
