"""The weights that a preparation writes change the loss of a training."""

from __future__ import annotations

import pytest
from pictures import noise
from table_files import write_table
from tiny_runs import losses, write_recipe

from product_data.preparation.job import PreparationOptions, prepare
from product_data.preparation.pair_filter import PairOptions
from product_data.preparation.prepared_tables import WritingOptions
from training.recipe.arguments import parse_recipe
from training.runs.run import Run
from training.train import train

COLOURS = ("red", "blue", "green", "grey", "white", "black")


@pytest.fixture
def shop(tmp_path):
    """Six shoes, each with a query for a hat."""
    folder = tmp_path / "shop"
    folder.mkdir()
    products = []
    for number, colour in enumerate(COLOURS):
        noise(32, 32, number).save(folder / f"{number}.png")
        attributes = f"colour: {colour}"
        row = {"product_id": f"p{number}", "title": f"{colour} shoe {number}", "attributes": attributes}
        products.append(row | {"images": f"{number}.png", "category": "Shoes", "split": "train"})
    hat = {"product_id": "hat", "title": "hat", "attributes": "", "images": "", "category": "Hats", "split": "test"}
    write_table(folder / "products.csv", [*products, hat])
    queries = [
        {"query_id": f"q{number}", "text": f"a hat number {number}", "positives": f"p{number}", "split": "train"}
        for number in range(len(COLOURS))
    ]
    write_table(folder / "queries.csv", queries)
    return folder


def first_loss(folder, tmp_path, tiny_moon, name):
    values = {"query_mix": {"t": 1}, "derived_queries": False, "max_steps": 1, "save_steps": 1, "hard_negatives": 0}
    recipe = write_recipe(
        tmp_path / f"{name}.yaml",
        **values,
        data=[str(folder)],
        catalogue=None,
        base=str(tiny_moon("qwen3_vl")),
        queue_steps=0,
        per_device_train_batch_size=4,
    )
    train(Run(parse_recipe([str(recipe), "--output_dir", str(tmp_path / name)])))
    return losses(tmp_path / name)[0]["loss"]


def test_a_down_weighted_pair_counts_that_much_less_in_the_loss(shop, tmp_path, tiny_moon):
    found = {}
    for unrelated in ("keep", "down_weight"):
        options = PreparationOptions(writing=WritingOptions(pairs=PairOptions(unrelated, 0.25)), progress=False)
        done = prepare(shop, tmp_path / f"prepared-{unrelated}", options)
        assert done.counts["pairs"]["none"] == len(COLOURS)
        found[unrelated] = first_loss(done.folder.path, tmp_path, tiny_moon, unrelated)
    assert found["keep"] > 0.1
    assert found["down_weight"] == pytest.approx(0.25 * found["keep"], rel=1e-4)
