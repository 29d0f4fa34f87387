"""Recipes of the version before: old names are understood, with a warning that names the new ones, and runs go on."""

import warnings
from pathlib import Path

import pytest
import yaml

from training.recipe.arguments import RecipeError, known_keys, make_recipe, parse_recipe
from training.recipe.old_names import OLD_KEYS, OLD_PARTS, OLD_VALUES, REMOVED, with_new_names
from training.recipe.same_recipe import differences, differing_keys
from training.studies.ablation_suite import read_suite

STORED = Path(__file__).with_name("resolved_recipe_of_0_1.yaml")
LEAST = {"small_base": {"hidden_size": 64}, "max_steps": 3}


@pytest.fixture
def recipe(tmp_path):
    def write(name="recipe.yaml", **values):
        (tmp_path / name).write_text(
            yaml.safe_dump(values if "extends" in values else {**LEAST, **values}, sort_keys=False)
        )
        return str(tmp_path / name)

    return write


def stored():
    return yaml.safe_load(STORED.read_text())


def test_every_old_name_leads_to_a_key_that_there_is_and_no_removed_key_is_one():
    keys = known_keys()
    assert set(OLD_KEYS.values()) | set(OLD_VALUES) | set(OLD_PARTS) <= keys.keys()
    assert not (set(OLD_KEYS) | set(REMOVED)) & keys.keys()


def test_old_names_in_a_file_become_the_new_ones_with_a_warning_and_in_their_order(recipe):
    path = recipe(query_mix={"both": 2, "image": 1}, target_mix={"text": 1, "mm": 3})
    with pytest.warns(FutureWarning) as said:
        parsed = parse_recipe([path])
    assert list(parsed.pairs.query_mix.items()) == [("mm", 2), ("i", 1)]
    assert list(parsed.pairs.product_mix.items()) == [("t", 1), ("mm", 3)]
    sentences = [str(one.message) for one in said if "the next version removes the old name" in str(one.message)]
    assert len(sentences) == 3
    assert any(f"{path}: target_mix is now product_mix" in one for one in sentences)
    assert any("query_mix: {'both': 2, 'image': 1} is now query_mix: {'mm': 2, 'i': 1}" in one for one in sentences)


def test_new_names_are_read_without_a_warning(recipe):
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        parse_recipe([recipe(query_mix={"i": 1}, product_mix={"t": 1}, stage="cold_start", preset="moon3")])


def test_the_old_name_of_a_stage_is_understood_in_file_and_command_line(recipe):
    with pytest.warns(FutureWarning, match="stage: reasoning is now stage: grpo"):
        assert parse_recipe([recipe(stage="reasoning", preset="moon3")]).reasoning.stage == "grpo"
    with pytest.warns(FutureWarning, match="command line: stage: reasoning is now stage: grpo"):
        assert parse_recipe([recipe(preset="moon3"), "--stage", "reasoning"]).reasoning.stage == "grpo"


def test_old_names_on_the_command_line_and_in_a_parent_merge_with_new_ones(recipe):
    recipe("parent.yaml", query_mix={"image": 1, "text": 1}, target_mix={"both": 1})
    child = recipe("child.yaml", extends="parent.yaml", query_mix={"t": 5})
    with pytest.warns(FutureWarning):
        parsed = parse_recipe([child, "--query_mix.both", "2", "--target_mix", "{image: 1}"])
    assert (parsed.pairs.query_mix, parsed.pairs.product_mix) == ({"i": 1, "t": 5, "mm": 2}, {"i": 1})


def test_old_names_are_understood_in_a_cold_start_and_in_a_suite(recipe, tmp_path):
    with pytest.warns(FutureWarning, match="cold_start: target_mix is now product_mix"):
        parsed = parse_recipe(
            [recipe(stage="grpo", preset="moon3", cold_start={"max_steps": 1, "target_mix": {"text": 1}})]
        )
    assert parsed.reasoning.cold_start == {"max_steps": 1, "product_mix": {"t": 1}}
    recipe("base.yaml", query_mix={"t": 1})
    suite = tmp_path / "suite.yaml"
    suite.write_text(
        "base: base.yaml\nseeds: [0]\nkeys: {evaluate_after: true, query_mix: {image: 1}}\n"
        "cells: {plain: {}, mixed: {target_mix: {text: 1, mm: 1}}}\n"
    )
    with pytest.warns(FutureWarning, match="cells: mixed: target_mix is now product_mix"):
        found = read_suite(suite)
    assert found.recipe["query_mix"] == {"t": 1, "i": 1}
    assert found.cells["mixed"] == {"product_mix": {"t": 1, "mm": 1}}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"target_mix": {"t": 1}, "product_mix": {"t": 1}}, "product_mix: also set under its old name"),
        ({"query_mix": {"text": 1, "t": 2}}, "query_mix: found parts under their old and new names"),
        (
            {"filter_kappa": 10.0},
            "filter_kappa: found 10.0; expected the key to be left out: .* kappa of .*SampleFilter",
        ),
        ({"query_mix": {"picture": 1}}, "query_mix: unknown key 'picture'; the nearest known key is"),
    ],
)
def test_what_is_not_clear_is_refused(recipe, values, message):
    with pytest.raises(RecipeError, match=message):
        parse_recipe([recipe(**values)])


def test_a_removed_key_with_its_default_is_left_out_with_a_warning(recipe):
    with pytest.warns(FutureWarning, match="filter_kappa is no longer a recipe key, but kappa of .*; leave it out"):
        assert "filter_kappa" not in parse_recipe([recipe(filter_kappa=20)]).resolved


def test_a_run_that_the_version_before_began_is_the_same_run():
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)  # nobody can rename what a run has stored
        now = make_recipe(Path("now.yaml"), with_new_names(stored()), []).resolved
        assert differing_keys(stored(), now) == []
        changed = stored() | {"query_mix": {"text": 1}}
        assert differences(changed, now) == "query_mix: {'t': 1} → {'i': 2.0, 't': 1.0, 'mm': 1.0}"
    assert now["stage"] == "grpo"
    assert now["cold_start"]["query_mix"] == {"t": 1}


def test_a_run_with_a_key_that_counted_and_is_no_more_is_another_run():
    now = make_recipe(Path("now.yaml"), with_new_names(stored()), []).resolved
    assert differing_keys(stored() | {"filter_kappa": 5.0}, now) == ["filter_kappa"]


def test_the_stored_recipe_of_a_run_can_be_run_again(recipe, tmp_path):
    path = tmp_path / "resolved_recipe.yaml"
    path.write_text(STORED.read_text())
    with pytest.warns(FutureWarning, match="target_mix is now product_mix"):
        parsed = parse_recipe([str(path)])
    assert differing_keys(stored(), parsed.resolved) == []


def test_a_rate_that_the_version_before_stored_as_text_is_the_same_number():
    one = {"cold_start": {"learning_rate": "1e-4"}}
    assert differing_keys(one, {"cold_start": {"learning_rate": 1e-4}}) == []
    assert differing_keys(one, {"cold_start": {"learning_rate": 1e-5}}) == ["cold_start"]
