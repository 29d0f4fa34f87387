"""Batches of like items: the kernel, and a data set whose positions are reordered by it."""

import pickle
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from product_data.tables import ProductRow, ProductTables, QueryRow, ValidationReport, load_tables
from training.assembly.stages import pair_dataset
from training.batches.buckets import BucketedPairs, Outline, bucket_order
from training.batches.pairs import PairDataset, PairSource
from training.recipe.arguments import parse_recipe
from training.recipe.pairs import PairArguments
from training.runs.run import Run

outlines = st.lists(st.builds(Outline, st.sampled_from(["image", "text", "both"]), st.integers(0, 500)), max_size=60)


@given(outlines, st.integers(1, 9), st.integers(0, 5))
def test_every_item_comes_once_and_few_batches_mix_modalities(items, batch_size, seed):
    order = bucket_order(items, batch_size, np.random.default_rng(seed))
    assert sorted(order) == list(range(len(items)))
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    mixed = sum(len({items[index].modality for index in batch}) > 1 for batch in batches)
    assert mixed <= max(len({item.modality for item in items}) - 1, 0)
    assert order == bucket_order(items, batch_size, np.random.default_rng(seed))


def test_batches_are_alike_in_length_and_their_order_is_random():
    rng = np.random.default_rng(0)
    items = [Outline("text", int(length)) for length in rng.integers(0, 1000, 256)]
    order = bucket_order(items, 8, rng)
    batches = [[items[index].length for index in order[start : start + 8]] for start in range(0, 256, 8)]
    assert max(max(batch) - min(batch) for batch in batches) < 150
    means = [np.mean(batch) for batch in batches]
    assert means != sorted(means)


def dataset(length=96):
    products = [ProductRow(f"p{n}", title="thing " * (n + 1), images=(bytes([n]),)) for n in range(12)]
    queries = [QueryRow(f"q{n}", "text", "wish", positives=(f"p{n % 12}",)) for n in range(12)]
    tables = ProductTables("shop", products, queries, ValidationReport("shop", 12, 12, {}))
    return PairDataset([PairSource(tables)], PairArguments(hard_negatives=0), 3, length)


def test_a_window_holds_the_same_pairs_in_another_order():
    plain, bucketed = dataset(90), BucketedPairs(dataset(90), batch_size=4, window_batches=8)
    positions = [pair.position for pair in (bucketed[position] for position in range(90))]
    for start in (0, 32, 64):
        window = range(start, min(start + 32, 90))
        assert sorted(positions[place] for place in window) == list(window)
        assert [positions[place] for place in window] != list(window)
    assert bucketed[5].names == plain[positions[5]].names
    assert [bucketed[position].position for position in reversed(range(90))] == positions[::-1]
    copy = pickle.loads(pickle.dumps(bucketed))
    assert [copy[position].position for position in range(90)] == positions
    with pytest.raises(IndexError, match="position: found 90; expected 0 to 89"):
        bucketed[90]


def test_an_outline_tells_the_form_and_the_texts_of_the_pair_that_is_drawn():
    pairs = dataset()
    forms = Counter()
    for position in range(96):
        form, length = pairs.outline(position)
        pair = pairs[position]
        assert (
            form
            == {(True, False): "text", (False, True): "image", (True, True): "both"}[
                "text" in pair.query, "image" in pair.query
            ]
        )
        assert length >= len(pair.products[0]["title"])
        forms[form] += 1
    assert len(forms) == 3


def test_a_recipe_asks_for_buckets(tmp_path):
    values = {"small_base": {}, "max_steps": 4, "per_device_train_batch_size": 3, "bucket_batches": 2}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(values))
    recipe = parse_recipe([str(tmp_path / "recipe.yaml")])
    tables = [load_tables("catalogue", products=60, image_size=64, progress=False).select("train")]
    made = pair_dataset(Run(recipe), recipe.training, tables, steps=4)
    assert isinstance(made, BucketedPairs)
    assert (made.batch_size, made.window, len(made)) == (3, 6, 12)
    assert sorted(made[position].position for position in range(6)) == list(range(6))
    recipe = replace(recipe, data=replace(recipe.data, bucket_batches=0))
    assert isinstance(pair_dataset(Run(recipe), recipe.training, tables, steps=4), PairDataset)
