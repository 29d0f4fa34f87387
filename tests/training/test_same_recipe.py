"""Whether two resolved recipes are one run: defaults that they leave out, and spellings of one path."""

import pytest
import yaml

from training.arguments import parse_recipe
from training.same_recipe import differences, differing_keys


@pytest.fixture
def resolve(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("shop", "shop/images", "other"):
        (tmp_path / folder).mkdir()
    (tmp_path / "shop" / "products.csv").write_text("product_id,title\n1,mug\n")

    def recipe(**values):
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump({"small_base": {"hidden_size": 64}, "max_steps": 10, **values}))
        return parse_recipe([str(path)]).resolved

    return recipe


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ({"per_device_train_batch_size": 4}, {}, "per_device_train_batch_size: 4 → 8"),
        ({}, {"per_device_train_batch_size": 4}, "per_device_train_batch_size: 8 → 4"),
        ({"weight_decay": 0.1}, {}, "weight_decay: 0.1 → 0.0"),
        ({"gradient_accumulation_steps": 2}, {}, "gradient_accumulation_steps: 2 → 1"),
        ({"temperature": 0.1}, {}, "temperature: 0.1 → 0.05"),
    ],
)
def test_a_value_that_a_recipe_leaves_out_is_named_by_its_default(resolve, before, after, said):
    assert differences(resolve(**before), resolve(**after)) == said


def test_a_recipe_of_before_there_was_a_key_has_its_default(resolve):
    old = resolve()
    del old["spatial_negatives"]
    assert differing_keys(old, resolve()) == []
    assert differences(old, resolve(spatial_negatives=False)) == "spatial_negatives: True → False"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("shop", "{here}/shop"),
        ("shop", "./shop/"),
        ("shop", {"path": "other/../shop"}),
        (
            {"products": "shop/products.csv", "images": "shop/images"},
            {"products": "{here}/shop/products.csv", "images": "./shop/images"},
        ),
    ],
)
def test_two_spellings_of_one_data_path_are_one_recipe(resolve, tmp_path, one, other):
    def spelled(value):
        if isinstance(value, dict):
            return {key: spelled(part) for key, part in value.items()}
        return value.replace("{here}", str(tmp_path))

    assert differing_keys(resolve(data=[one]), resolve(data=[spelled(other)])) == []


def test_other_paths_and_other_weights_are_another_recipe(resolve):
    first = resolve(data=["shop"])
    assert differing_keys(first, resolve(data=["other"])) == ["data"]
    assert differing_keys(first, resolve(data=[{"path": "shop", "weight": 2}])) == ["data"]
    assert differing_keys(first, resolve(data=["catalogue"])) == ["data"]


def test_a_base_and_a_cold_start_may_be_spelled_in_two_ways_too(resolve, tmp_path):
    (tmp_path / "base").mkdir()
    one, other = (resolve(small_base=None, base=base) for base in ("./base", str(tmp_path / "base")))
    assert differing_keys(one, other) == []
    one, other = ({"cold_start": {"base": base, "data": [base]}} for base in ("base", str(tmp_path / "base")))
    assert differing_keys(one, other) == []
    assert differing_keys(one, {"cold_start": None}) == ["cold_start"]


def test_shards_of_a_stream_may_be_spelled_in_two_ways(resolve, tmp_path):
    one = resolve(streaming=True, data=[{"parquet": ["shop/*.parquet"]}])
    assert differing_keys(one, resolve(streaming=True, data=[{"parquet": [f"{tmp_path}/shop/*.parquet"]}])) == []
