"""What the command line takes as a recipe file does: nothing, and a word in the place of a number."""

import pytest
import yaml

from training.recipe.arguments import RecipeError, parse_recipe


@pytest.fixture
def recipe(tmp_path):
    def write(**values):
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump({"small_base": {"hidden_size": 64}, "max_steps": 10, **values}))
        return str(path)

    return write


@pytest.mark.parametrize(
    ("key", "given"),
    [
        ("train_minutes", 2.5),
        ("evaluate_products", 5),
        ("queue_momentum", 0.9),
        ("max_tokens", 64),
        ("lora", {"r": 2}),
        ("save_total_limit", 2),
        ("run_name", "mine"),
    ],
)
@pytest.mark.parametrize("null", ["null", "~"])
def test_null_on_the_command_line_is_the_null_of_a_recipe_file(recipe, key, given, null):
    expected = parse_recipe([recipe(**{key: None})]).resolved.get(key)
    for written in ([f"--{key}", null], [f"--{key.replace('_', '-')}={null}"]):
        assert parse_recipe([recipe(**{key: given}), *written, "--seed", "7"]).resolved.get(key) == expected


def test_a_time_budget_is_replaced_by_steps_in_one_command(recipe):
    parsed = parse_recipe([recipe(train_minutes=2.5, max_steps=-1), "--train_minutes", "null", "--max_steps", "40"])
    assert (parsed.training.train_minutes, parsed.training.max_steps) == (None, 40)


@pytest.mark.parametrize(("key", "accepted"), [("seed", "an integer"), ("evaluate_after", "true or false")])
def test_null_is_refused_for_a_key_that_needs_a_value(recipe, key, accepted):
    with pytest.raises(RecipeError, match=rf"{key}: found None \(nothing\); expected {accepted}"):
        parse_recipe([recipe(), f"--{key}", "null"])


def test_the_queue_is_a_number_or_auto_in_both_places(recipe):
    assert parse_recipe([recipe(queue_steps="auto")]).loss.queue_steps == "auto"
    assert parse_recipe([recipe(queue_steps=3), "--queue_steps", "auto"]).resolved["queue_steps"] == "auto"
    assert parse_recipe([recipe(queue_steps="auto"), "--queue-steps=5"]).loss.queue_steps == 5
    with pytest.raises(RecipeError, match=r"queue_steps: found 'many' \(text\); expected an integer or auto"):
        parse_recipe([recipe(queue_steps="many")])
    with pytest.raises(RecipeError, match="found 'many'; expected auto, or a whole number of at least 0"):
        parse_recipe([recipe(), "--queue_steps", "many"])
    with pytest.raises(RecipeError, match="queue_steps: found -1; expected a number of at least 0"):
        parse_recipe([recipe(), "--queue_steps", "-1"])


def test_the_spatial_half_is_refused_where_the_joint_stage_would_not_read_it(recipe):
    joint = {"preset": "moon3", "stage": "reasoning", "spatial_negatives": False}
    with pytest.raises(RecipeError, match="spatial_negatives: found False; expected only without stage: reasoning"):
        parse_recipe([recipe(**joint)])
    assert parse_recipe([recipe(**joint | {"stage": "cold_start"})]).loss.spatial_negatives is False
