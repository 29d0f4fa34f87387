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
    with pytest.raises(RecipeError, match=r"found 'many' \(text\); expected an integer or auto"):
        parse_recipe([recipe(), "--queue_steps", "many"])
    with pytest.raises(RecipeError, match="queue_steps: found -1; expected a number of at least 0"):
        parse_recipe([recipe(), "--queue_steps", "-1"])


def test_the_spatial_half_is_refused_where_the_joint_stage_would_not_read_it(recipe):
    joint = {"preset": "moon3", "stage": "grpo", "spatial_negatives": False}
    with pytest.raises(RecipeError, match="spatial_negatives: found False; expected only without stage: grpo"):
        parse_recipe([recipe(**joint)])
    assert parse_recipe([recipe(**joint | {"stage": "cold_start"})]).loss.spatial_negatives is False


@pytest.mark.parametrize(("written", "value"), [("yes", True), ("true", True), ("off", False), ("False", False)])
def test_a_switch_takes_the_words_for_true_and_false(recipe, written, value):
    assert parse_recipe([recipe(), "--core_crop", written]).data.core_crop is value


def test_a_switch_alone_is_on_and_text_stays_as_it_is_written(recipe):
    parsed = parse_recipe([recipe(core_crop=False), "--core-crop", "--run_name", "007", "--split", "[a]"])
    assert (parsed.data.core_crop, parsed.training.run_name, parsed.data.split) == (True, "007", "[a]")


def test_parts_of_a_mapping_and_the_mapping_count_in_the_order_in_which_they_are_written(recipe):
    written = ["--lora.r", "2", "--lora", "{r: 4}", "--lora.alpha=8"]
    assert parse_recipe([recipe(), *written]).model.lora == {"r": 4, "alpha": 8}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seed"], "command line: found --seed without a value"),
        (["--seed", "1", "2"], "command line: found '2' without its --key"),
        (["--query_mix", "{t: 1, t: 2}"], "key 't' found twice"),
        (["--query_mix", "{t"], r"--query_mix: found '\{t'; expected a mapping"),
        (["--query_mix", "3"], r"query_mix: found 3 \(an integer\); expected a mapping"),
        (["--cold_start", "{query_mix: !replace {t: 1}}"], "cold_start.query_mix: found !replace below another key"),
        (["--derived_queries", "perhaps"], r"derived_queries: found 'perhaps' \(text\); expected true or false"),
    ],
)
def test_what_cannot_be_read_is_named(recipe, arguments, message):
    with pytest.raises(RecipeError, match=message):
        parse_recipe([recipe(), *arguments])
