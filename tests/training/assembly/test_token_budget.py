"""The token budget that the data ask for."""

import json
from pathlib import Path

import pytest

from processing_moon import MoonProcessor
from product_data.tables import load_tables
from training.assembly.starting_model import load_start
from training.assembly.token_budget import token_budget
from training.recipe.arguments import RecipeError, make_recipe, parse_recipe
from training.runs.run import Run

WORDS = "colour and cloth of a shirt, washed and worn "


@pytest.fixture
def shop(tmp_path):
    """A shop with 200 short descriptions and one very long one."""
    rows = [{"product_id": str(n), "title": f"shirt {n}", "description": WORDS} for n in range(200)]
    rows[0]["description"] = WORDS * 60
    path = tmp_path / "products.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    return path


def test_the_budget_holds_99_of_100_items_whole_and_no_more_than_the_longest_needs(tiny_moon, shop):
    processor = MoonProcessor.from_pretrained(tiny_moon("qwen3_vl"))
    tables = load_tables({"products": str(shop)})
    ordinary = processor(products=[tables.products[199].record()])["input_ids"].shape[1]
    found = token_budget(processor, [tables])
    assert ordinary <= found.tokens < ordinary + 16
    assert found.tokens % 8 == 0
    assert max(found.lengths) > 2 * found.tokens
    assert 0.99 <= found.share(found.tokens) < 1
    assert found.chosen().startswith(f"max_tokens: auto is {found.tokens}, which holds 99.2 % of the products")


def test_the_budget_is_never_above_the_processors_own(tiny_moon, shop):
    processor = MoonProcessor.from_pretrained(tiny_moon("qwen3_vl"), max_tokens=64)
    assert token_budget(processor, [load_tables({"products": str(shop)})]).tokens == 64


def test_a_recipe_with_auto_measures_the_training_split_once_and_trains_with_it(tiny_moon, shop, tmp_path, capsys):
    values = {
        "base": str(tiny_moon("qwen3_vl")),
        "max_tokens": "auto",
        "max_steps": 1,
        "output_dir": str(tmp_path / "run"),
    }
    recipe = make_recipe(Path("auto.yaml"), values | {"data": [str(shop)]}, [])
    tables = load_tables({"products": str(shop)})
    run = Run(recipe)
    _, processor = load_start(run, Path(recipe.model.base), on_gpu=False, tables=[tables])
    assert processor.max_tokens == run.facts["max_tokens"] < 128
    assert capsys.readouterr().out.count("max_tokens: auto is ") == 1


def test_a_budget_that_is_too_small_for_most_items_is_named_with_its_share_before_training(
    tiny_moon, shop, tmp_path, capsys
):
    values = {
        "base": str(tiny_moon("qwen3_vl")),
        "max_steps": 1,
        "output_dir": str(tmp_path / "run"),
        "data": [str(shop)],
    }
    tables = load_tables({"products": str(shop)})
    for tokens, said in (
        (40, "max_tokens=40 holds 0 % of the products and queries whole (measured on 128)"),
        (2000, ""),
    ):
        recipe = make_recipe(Path("fixed.yaml"), {**values, "max_tokens": tokens}, [])
        _, processor = load_start(Run(recipe), Path(recipe.model.base), on_gpu=False, tables=[tables])
        assert processor.max_tokens == tokens
        printed = capsys.readouterr().out
        assert said in printed
        assert printed.count("max_tokens") == (2 if said else 0)


def test_auto_may_be_given_on_the_command_line_and_other_words_are_refused():
    recipe = "training/recipes/smoke_moon1.yaml"
    recipe = str(Path(__file__).resolve().parents[3] / recipe)
    assert parse_recipe([recipe, "--max_tokens", "auto"]).data.max_tokens == "auto"
    assert parse_recipe([recipe, "--max_tokens", "80"]).data.max_tokens == 80
    with pytest.raises(RecipeError, match="max_tokens"):
        parse_recipe([recipe, "--max_tokens", "lots"])
    with pytest.raises(RecipeError, match="max_tokens: found 'lots'"):
        make_recipe(Path("lots.yaml"), {"base": "a/b", "max_tokens": "lots", "max_steps": 1}, [])
