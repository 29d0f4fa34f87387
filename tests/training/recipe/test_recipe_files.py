"""What a recipe inherits: keys replaced, mappings merged, and mappings replaced whole."""

from pathlib import Path

import pytest

from training.recipe.arguments import RecipeError, parse_recipe
from training.recipe.files import read_recipe_file
from training.studies.ablation_suite import read_suite

PARENT = "small_base: {hidden_size: 64}\nmax_steps: 3\nquery_mix: {i: 12, t: 3, mm: 2}\n"


@pytest.fixture
def write(tmp_path):
    def file(name: str, text: str) -> Path:
        (tmp_path / name).write_text(text)
        return tmp_path / name

    file("parent.yaml", PARENT)
    return file


def test_a_mapping_marked_replace_takes_the_place_of_the_inherited_one_whole(write):
    merged = write("merged.yaml", "extends: parent.yaml\nquery_mix: {mm: 1}\n")
    whole = write("whole.yaml", "extends: parent.yaml\nquery_mix: !replace {mm: 1}\n")
    assert parse_recipe([str(merged)]).pairs.query_mix == {"i": 12, "t": 3, "mm": 1}
    assert parse_recipe([str(whole)]).pairs.query_mix == {"mm": 1}
    assert type(parse_recipe([str(whole)]).resolved["query_mix"]) is dict


def test_what_extends_a_recipe_with_a_replaced_mapping_merges_with_it_again(write):
    write("whole.yaml", "extends: parent.yaml\nquery_mix: !replace {mm: 1}\n")
    child = write("child.yaml", "extends: whole.yaml\nquery_mix: {t: 2}\n")
    assert read_recipe_file(child)["query_mix"] == {"mm": 1, "t": 2}


def test_replace_says_what_to_do_where_nothing_would_read_it(write):
    with pytest.raises(RecipeError, match=r"wrong.yaml, line 2: found !replace before a value that is not a mapping"):
        parse_recipe([str(write("wrong.yaml", "extends: parent.yaml\nseed: !replace 3\n"))])
    nested = write("nested.yaml", "extends: parent.yaml\ncold_start: {query_mix: !replace {mm: 1}}\n")
    with pytest.raises(
        RecipeError, match=r"cold_start.query_mix: found !replace below another key; expected .*by name"
    ):
        parse_recipe([str(nested)])


def test_a_suite_replaces_a_mapping_of_its_base_whole(write):
    suite = write(
        "suite.yaml",
        "base: parent.yaml\nseeds: [0]\nkeys: {evaluate_after: true, query_mix: !replace {t: 1}}\n"
        "cells: {plain: {}, warm: {temperature: 0.1}}\n",
    )
    assert read_suite(suite).recipe["query_mix"] == {"t": 1}
