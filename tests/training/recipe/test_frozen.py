"""A recipe does not change once it was read, and each of its groups checks itself."""

import dataclasses

import pytest
import yaml
from pydantic import ValidationError

from training.recipe.arguments import GROUPS, RecipeError, default_values, known_keys, parse_recipe, usage
from training.recipe.checking import make_group
from training.recipe.loss import LossArguments
from training.recipe.pairs import PairArguments


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({"small_base": {"hidden_size": 64}, "max_steps": 3}))
    return parse_recipe([str(path)])


@pytest.mark.parametrize("name", [name for name in GROUPS if name != "training"])
def test_no_key_of_a_group_can_be_set(recipe, name):
    group = getattr(recipe, name)
    for entry in dataclasses.fields(group):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(group, entry.name, None)


def test_no_group_of_a_recipe_can_be_set(recipe):
    for name in (*GROUPS, "path", "resolved"):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(recipe, name, None)


def test_a_changed_copy_of_a_group_is_checked_again(recipe):
    assert dataclasses.replace(recipe.loss, temperature=0.1).temperature == 0.1
    with pytest.raises(ValidationError):
        dataclasses.replace(recipe.loss, temperature=-0.1)


def test_a_group_by_itself_refuses_a_key_of_another_group_and_names_all_that_is_wrong():
    with pytest.raises(ValidationError, match="hard_negatives"):
        LossArguments(hard_negatives=1)
    with pytest.raises(RecipeError) as error:
        make_group(PairArguments, {"hard_negatives": -1, "derived_queries": "no", "query_mix": {"i": "much"}})
    assert str(error.value).splitlines() == [
        "query_mix.i: found 'much' (text); expected a number",
        "hard_negatives: found -1; expected a number of at least 0",
        "derived_queries: found 'no' (text); expected true or false",
    ]


def test_no_key_is_in_two_groups_and_each_has_a_default():
    names = [entry.name for group in GROUPS.values() for entry in dataclasses.fields(group)]
    assert len(names) == len(set(names))
    assert known_keys().keys() == default_values().keys() == set(names)


@pytest.mark.parametrize("name", [name for name in GROUPS if name != "training"])
def test_the_help_describes_every_key_of_a_group(name):
    text = usage()
    for entry in dataclasses.fields(GROUPS[name]):
        assert f"    --{entry.name}: " in text
