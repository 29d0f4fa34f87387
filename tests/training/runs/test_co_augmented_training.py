"""Training with variants: a resumed run equals the straight one, evaluation reads the originals, and mistakes are refused."""

from __future__ import annotations

import json
import shutil

import pytest
from tiny_runs import assert_same_run, forget_after, write_recipe

from product_data.catalogue.making import write_catalogue
from product_data.co_augmentation.variant_files import VariantFolder
from product_data.tables import load_tables
from training.assembly import evaluation
from training.co_augmentation.making import MakingOptions, make_variants
from training.recipe.arguments import RecipeError, parse_recipe
from training.recipe.same_recipe import differing_keys
from training.train import main

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "shop"
    write_catalogue(folder, products=60, image_size=64, progress=False)
    products = load_tables(folder).select("train").products
    options = MakingOptions(folder / "co_augmentation", views=1, titles=1, progress=False)
    make_variants("shop", products, options)
    return folder


def recipe_of(shop, path, **values):
    tables = {"data": [str(shop)], "catalogue": None, "co_augmentation": {"title_share": 0.8, "picture_share": 0.8}}
    return write_recipe(path, **(tables | values))


@pytest.fixture(scope="module")
def recipe(shop, tiny_moon, tmp_path_factory):
    dual = {"dual_alignment": True, "query_mix": {"mm": 1}, "core_crop": True, "queue_steps": 2, "hard_negatives": 1}
    path = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
    return recipe_of(shop, path, base=str(tiny_moon("qwen3_vl")), evaluate_after=True, save_total_limit=4, **dual)


def test_a_run_with_variants_resumes_exactly_and_is_evaluated_on_the_originals(
    shop, recipe, tmp_path, monkeypatch, capsys
):
    seen = []
    evaluate = evaluation.evaluate_model

    def watched(model, processor, tables, **options):
        seen.append(tables)
        return evaluate(model, processor, tables, **options)

    monkeypatch.setattr(evaluation, "evaluate_model", watched)
    whole, again = tmp_path / "whole", tmp_path / "again"
    assert main([str(recipe), "--output_dir", str(whole)]) == 0
    said = capsys.readouterr().out
    assert "co_augmentation: 48 of 48 products of shop have variants" in said
    originals = {row.product_id: row for row in load_tables(shop).products}
    assert seen
    for tables in seen:
        assert {row.product_id: (row.title, row.images) for row in tables.products} == {
            name: (row.title, row.images) for name, row in originals.items()
        }
    shutil.copytree(whole, again)
    forget_after(again, 2)
    assert main([str(recipe), "--output_dir", str(again)]) == 0
    assert_same_run(whole, again)
    digests = json.loads((whole / "checkpoint-4" / "provenance.json").read_text())["data_digests"]
    assert set(digests) == {"shop", "shop, co_augmentation"}


def test_a_run_does_not_resume_with_other_variants(shop, recipe, tmp_path, capsys):
    copy, output = tmp_path / "shop", tmp_path / "run"
    shutil.copytree(shop, copy)
    values = {"base": None, "small_base": {"hidden_size": 32, "num_layers": 1, "vision_depth": 2, "vocab_size": 420}}
    path = recipe_of(copy, tmp_path / "recipe.yaml", max_tokens="auto", **values)
    assert main([str(path), "--output_dir", str(output)]) == 0
    forget_after(output, 2)
    products = load_tables(copy).select("train").products
    shutil.rmtree(copy / "co_augmentation")
    make_variants("shop", products, MakingOptions(copy / "co_augmentation", views=0, titles=2, seed=3, progress=False))
    assert main([str(path), "--output_dir", str(output)]) == 2
    assert "shop, co_augmentation" in capsys.readouterr().err


def test_variants_that_are_missing_or_of_other_products_are_refused(shop, tmp_path, capsys):
    small = {"small_base": {"hidden_size": 32}, "max_steps": 1}
    path = write_recipe(tmp_path / "auto.yaml", **small, co_augmentation={"variants": "auto"})
    assert main([str(path), "--output_dir", str(tmp_path / "a")]) == 2
    assert "found no folder 'co_augmentation' with variants" in capsys.readouterr().err
    other = tmp_path / "other"
    make_variants(
        "other", [row for row in load_tables(shop).products[:1]], MakingOptions(other, views=0, progress=False)
    )
    assert VariantFolder(other).data_set == "other"
    rows = [json.dumps({"product_id": f"x{n}", "title": f"thing {n}"}) for n in range(20)]
    (tmp_path / "products.jsonl").write_text("\n".join(rows))
    wrong = small | {"query_mix": {"t": 1}, "co_augmentation": {"variants": str(other)}}
    path = recipe_of(tmp_path / "products.jsonl", tmp_path / "wrong.yaml", **wrong)
    assert main([str(path), "--output_dir", str(tmp_path / "b")]) == 2
    assert "found variants of none of the products" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"variants": "nowhere"}, "co_augmentation: variants: found no complete variants in .*nowhere"),
        ({"variants": []}, "co_augmentation: variants: found none"),
        ({"title_share": 0, "picture_share": 0}, "co_augmentation: found 0 for title_share and picture_share"),
        ({"title_share": 2}, "co_augmentation.title_share: found 2; expected a number of at most 1"),
        ({"titles": 0.5}, "unknown key 'titles'; the nearest known key is 'title_share'"),
    ],
)
def test_what_cannot_be_drawn_is_refused_by_key(tmp_path, value, message):
    path = write_recipe(tmp_path / "recipe.yaml", small_base={"hidden_size": 32}, co_augmentation=value)
    with pytest.raises(RecipeError, match=message):
        parse_recipe([str(path)])


def test_two_ways_to_write_the_same_variants_are_the_same_run(shop, monkeypatch):
    place = str(shop / "co_augmentation")
    monkeypatch.chdir(shop)
    written = [{"variants": place}, {"variants": [place]}, {"variants": ["co_augmentation"], "title_share": 0.5}]
    for one in written:
        assert differing_keys({"co_augmentation": one}, {"co_augmentation": {"variants": place}}) == []
    assert differing_keys(
        {"co_augmentation": written[0]}, {"co_augmentation": {"variants": place, "title_share": 0.1}}
    ) == ["co_augmentation"]
    assert differing_keys({}, {"co_augmentation": None}) == []
