"""Enriched titles: what they must keep, what they must not say, and how templates make them."""

from __future__ import annotations

import numpy as np
import pytest

from product_data.catalogue.making import make_catalogue
from product_data.co_augmentation.titles import TitleCheck, rewritten_titles
from product_data.rows import ProductRow
from product_data.synonyms import other_names, states
from product_data.tables import load_tables

SNEAKERS = ProductRow(
    "a",
    title="Fjell Red Sneakers 42",
    category=("Shoes", "Sneakers"),
    attributes={"colour": ("red",), "brand": ("Fjell",), "material": ("suede",), "sole": ("white",)},
)
BOOTS = ProductRow(
    "b",
    title="Aldous Blue Boots",
    category=("Shoes", "Boots"),
    attributes={"colour": ("blue",), "brand": ("Aldous",), "material": ("leather",)},
)
NAMELESS = ProductRow("c", title="Cotton cap", category=("Hats", "Caps"), attributes={"material": ("cotton",)})
CHECK = TitleCheck([SNEAKERS, BOOTS, NAMELESS])


@pytest.mark.parametrize(
    ("row", "title"),
    [
        (SNEAKERS, "Fjell Red Suede Sneakers 42 with a white sole"),
        (SNEAKERS, "Red suede trainers by Fjell, size 42"),
        (NAMELESS, "Light cotton cap for summer days"),
        (NAMELESS, "Blue cotton cap"),  # the record has no colour that this contradicts
    ],
)
def test_a_title_that_keeps_the_record_is_accepted(row, title):
    assert CHECK.problem(row, title) == ""


@pytest.mark.parametrize(
    ("row", "title", "problem"),
    [
        (SNEAKERS, "Red suede sneakers 42", "the brand 'Fjell' is lost"),
        (SNEAKERS, "Fjell suede sneakers 42", "the colour 'red' is lost"),
        (SNEAKERS, "Fjell red shoes 42", "the category 'Sneakers' is lost"),
        (SNEAKERS, "Fjell red sneakers", "the number 42 is lost"),
        (SNEAKERS, "Fjell red sneakers 42, 500 g", "the number 500 is not in the record"),
        (SNEAKERS, "Fjell red leather sneakers 42", "the material 'leather' contradicts the record (it has suede)"),
        (SNEAKERS, "Fjell red and blue sneakers 42", "the colour 'blue' contradicts the record (it has red)"),
        (NAMELESS, "Aldous cotton cap", "the brand 'Aldous' contradicts the record (it has none)"),
        (SNEAKERS, "fjell red sneakers 42", "the title is unchanged"),
        (SNEAKERS, " ", "the title is empty"),
        (SNEAKERS, "Fjell Red Sneakers 42\nsuede", "the title has several lines"),
        (NAMELESS, "cotton cap " + "very " * 45, "the title has 47 words; at most 40 are accepted"),
    ],
)
def test_a_title_that_loses_or_invents_something_is_rejected_with_the_reason(row, title, problem):
    assert CHECK.problem(row, title) == problem


def test_templates_add_facts_use_synonyms_and_pass_the_check():
    products, _ = make_catalogue(products=60, image_size=64, progress=False)
    rows = load_tables({"products": products}).products
    check = TitleCheck(rows)
    renamed = added = 0
    for number, row in enumerate(rows):
        titles = list(rewritten_titles(row, 3, np.random.default_rng(number), check))
        assert titles == list(rewritten_titles(row, 3, np.random.default_rng(number), check))
        assert len(titles) == 3
        assert len({*titles, row.title}) == 4
        for title in titles:
            assert check.problem(row, title) == ""
            assert ",," not in title
            assert states(title, "brand", row.attributes["brand"][0]) == states(
                row.title, "brand", row.attributes["brand"][0]
            )
            added += len(title) > len(row.title) + 3
            names = other_names("category", row.attributes["category"][0])
            renamed += any(name.casefold() in title.casefold() for name in names)
    assert renamed > 10
    assert added > 60


def test_a_product_without_facts_beyond_its_title_has_no_new_title():
    row = ProductRow("d", title="Lime", category=("Fruit", "Lime"))
    assert list(rewritten_titles(row, 2, np.random.default_rng(0), TitleCheck([row]))) == []


def test_another_language_gets_no_english_words():
    row = ProductRow("e", title="Botas de piel para niños", attributes={"brand": ("Lumo",), "season": ("invierno",)})
    titles = list(rewritten_titles(row, 3, np.random.default_rng(0), TitleCheck([row])))
    assert titles
    assert not any(" by " in title or " for " in title for title in titles)


def test_other_names_are_written_as_in_the_table():
    assert other_names("category", "Sneakers") == ("trainers", "kicks")
    assert other_names("category", "kicks") == ("sneakers", "trainers")
    assert other_names("category", "spaceship") == ()
