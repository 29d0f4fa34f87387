"""Entities of queries and products, contradictions, and splits of groups."""

from __future__ import annotations

from collections import Counter

import pytest

from product_data.preparation.entities import EntityDictionary, ProductFacts, shared_entities
from product_data.preparation.near_duplicates import DuplicateGroup
from product_data.preparation.pair_filter import judge_pairs
from product_data.preparation.split_assignment import assign_splits, chosen_split
from product_data.rows import ProductRow, QueryRow

SHOP = [
    ProductRow("1", "Noru 红色连衣裙", category=("服装", "连衣裙"), attributes={"颜色": ("红色",), "品牌": ("Noru",)}),
    ProductRow(
        "2",
        "Trail runner 9",
        category=("Shoes", "Running Shoes"),
        attributes={"color": ("grey",), "waterproof": ("yes",)},
    ),
    ProductRow("3", "Plain mug", category=("Home", "Mugs"), attributes={"colour": ("blue",), "capacity": ("300 ml",)}),
]


@pytest.mark.parametrize(
    ("text", "product", "verdict"),
    [
        ("gray trainers for rain", "2", "shared"),  # gray is grey
        ("running shoes", "2", "shared"),
        ("cheap shoes", "2", "shared"),  # the last word of a category's name
        ("blue mug", "2", "none"),
        ("红色裙子", "1", "shared"),
        ("红色裙子", "3", "none"),
        ("yes please", "2", "unknown"),  # "yes" is no entity
        ("something nice", "3", "unknown"),
        ("by noru", "1", "shared"),
    ],
)
def test_a_pair_is_judged_by_the_entities_of_the_shop(text, product, verdict):
    (pair,) = judge_pairs(SHOP, [QueryRow("q", "text", text, positives=(product, "gone"))], progress=False)
    assert (pair.verdict, pair.product_id, pair.row) == (verdict, product, 0)


def test_a_query_without_words_is_not_judged_by_a_text_that_it_does_not_use():
    queries = [
        QueryRow("q", "image", "blue", image=b"x", positives=("2",)),
        QueryRow("r", "both", "blue", image=b"x", positives=("2",)),
    ]
    assert [pair.verdict for pair in judge_pairs(SHOP, queries, progress=False)] == ["no words", "none"]


def test_entities_are_shared_whatever_their_key():
    assert shared_entities({"colour": frozenset({"red"})}, {"print": frozenset({"red", "blue"})}) == ("red",)
    assert shared_entities({}, {"print": frozenset({"red"})}) == ()


def facts(title, **attributes):
    rows = [ProductRow("x", "", attributes={"colour": ("red", "blue"), "size": ("S", "M")})]
    row = ProductRow("y", title, attributes={key: (value,) for key, value in attributes.items()})
    return ProductFacts.of(row, EntityDictionary([*rows, row]))


@pytest.mark.parametrize(
    ("left", "right", "contradict"),
    [
        (facts("Shoe", colour="red"), facts("Shoe", colour="blue"), True),
        (facts("Shoe", color="red"), facts("Shoe", colour="blue"), True),
        (facts("Shoe", colour="red"), facts("Shoe"), False),
        (facts("Shoe in red"), facts("Shoe", colour="blue"), True),  # what a title names counts for a missing attribute
        (facts("Shoe", colour="Red"), facts("Shoe", colour="red"), False),
        (facts("Phone 64 GB"), facts("Phone 128 GB"), True),
        (facts("Phone 64 GB"), facts("Phone"), False),
        (facts("Phone 64 GB"), facts("Phone 64 GB 5"), False),
    ],
)
def test_products_contradict_each_other_if_a_key_or_the_numbers_differ(left, right, contradict):
    assert left.contradicts(right) is right.contradicts(left) is contradict


def group(*rows):
    return DuplicateGroup(rows, rows[0], {})


def products(*splits_and_groups):
    return [ProductRow(str(row), split=split, group=name) for row, (split, name) in enumerate(splits_and_groups)]


def test_a_group_goes_to_its_evaluation_split_with_its_variants():
    rows = products(("train", "g"), ("test", None), ("train", "g"), ("train", None), ("train", "h"), ("valid", "h"))
    found = assign_splits(rows, [group(0, 1)])
    assert found.split == {0: "test", 2: "test"}
    assert found.group == {1: "g"}
    assert found.crossing == 1
    # The group h was in two splits before: only the product with a duplicate moves.
    assert assign_splits(rows, [group(1, 4)]).split == {4: "test"}
    assert assign_splits(rows, [group(0, 3)]).split == {}
    assert assign_splits(rows, []).split == {}


@pytest.mark.parametrize(
    ("splits", "chosen"),
    [
        ({"train"}, "train"),
        ({"train", "test"}, "test"),
        ({"train", "valid", "test"}, "valid"),  # the smallest
        ({"train", "all"}, "all"),
    ],
)
def test_the_split_of_a_group(splits, chosen):
    assert chosen_split(splits, Counter({"train": 80, "test": 15, "valid": 5})) == chosen
