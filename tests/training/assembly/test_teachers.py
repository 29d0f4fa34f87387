"""A recipe's teachers: what is refused before the first step, and a training that resumes exactly."""

import json
import shutil

import pytest
import torch
import yaml
from stored_products import units, vector_folder
from tiny_runs import assert_same_run, forget_after, losses, write_recipe

from modeling_moon import MoonModel
from product_data.catalogue.making import write_catalogue
from product_data.tables import load_tables
from retrieval.stores.interface import StoredProduct
from training.assembly.objective import teachers_of
from training.recipe.arguments import RecipeError, parse_recipe
from training.recipe.loss import LossArguments
from training.recipe.same_recipe import _comparable
from training.train import main


@pytest.fixture
def shop(tmp_path):
    """A drawn shop, and a teacher's vectors of its products."""
    write_catalogue(tmp_path / "shop", products=60, image_size=64, progress=False)
    rows = load_tables(tmp_path / "shop").products
    stored = [StoredProduct(row.product_id) for row in rows]
    vector_folder(tmp_path / "teacher", stored, {"i": units(len(rows), 1), "t": units(len(rows), 2)})
    return tmp_path


def test_a_training_with_teachers_runs_and_resumes_exactly(tiny_moon, shop, capsys):
    teachers = [
        {"vectors": str(shop / "teacher"), "form": "i"},
        {"vectors": [str(shop / "teacher")], "form": "t", "kind": "relations", "weight": 0.5},
    ]
    recipe = write_recipe(
        shop / "recipe.yaml",
        base=str(tiny_moon("qwen3_vl")),
        data=[str(shop / "shop")],
        catalogue=None,
        teachers=teachers,
        teachers_alone_steps=1,
        queue_steps=2,
    )
    whole, resumed = shop / "whole", shop / "resumed"
    assert main([str(recipe), "--output_dir", str(whole)]) == 0
    assert "teachers[0]: direct, knows" in capsys.readouterr().out
    lines = losses(whole)
    assert lines[0]["loss"] == pytest.approx(lines[0]["loss_teachers"], rel=1e-5)
    assert all(line["loss"] > line["loss_teachers"] > 0 for line in lines[1:])
    shutil.copytree(whole, resumed)
    forget_after(resumed, 2)
    assert main([str(recipe), "--output_dir", str(resumed)]) == 0
    assert_same_run(whole, resumed)
    assert json.loads((whole / "final" / "config.json").read_text())["model_type"] == "moon"
    assert not any("maps" in name for name, _ in MoonModel.from_pretrained(whole / "final").named_parameters())


def test_an_encoder_teaches_queries_and_altered_pictures_and_the_training_resumes_exactly(
    tiny_moon, shop, capsys, one_thread
):
    teacher = {"encoder": str(tiny_moon("qwen3_vl")), "form": "i", "weight": 0.5}
    recipe = write_recipe(
        shop / "recipe.yaml",
        base=str(tiny_moon("qwen3_vl")),
        data=[str(shop / "shop")],
        catalogue=None,
        teachers=[teacher, {**teacher, "form": "t", "kind": "relations"}],
        augment_products=1.0,
        encode_chunk_size=2,
    )
    whole, resumed = shop / "whole", shop / "resumed"
    assert main([str(recipe), "--output_dir", str(whole)]) == 0
    assert "teachers[0]: direct, embeds the queries and products of each batch" in capsys.readouterr().out
    assert all(line["loss"] > line["loss_teachers"] > 0 for line in losses(whole))
    shutil.copytree(whole, resumed)
    forget_after(resumed, 2)
    assert main([str(recipe), "--output_dir", str(resumed)]) == 0
    assert_same_run(whole, resumed)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoder": "frozen_image=nowhere.onnx", "form": "i"}, r"teachers\[0\]: nowhere.onnx: found no file"),
        ({"encoder": "nowhere/at/all", "form": "t"}, r"teachers\[0\]: "),
    ],
)
def test_an_encoder_that_cannot_be_loaded_names_its_place_in_the_recipe(shop, changes, message):
    tables = [load_tables(shop / "shop")]
    with pytest.raises(RecipeError, match=message):
        teachers_of(LossArguments(teachers=[changes]), tables)


def test_a_teacher_that_knows_no_product_of_the_training_is_refused(tiny_moon, shop, capsys):
    vector_folder(shop / "strange", [StoredProduct("x"), StoredProduct("y")], {"t": units(2)})
    recipe = write_recipe(
        shop / "recipe.yaml",
        base=str(tiny_moon("qwen3_vl")),
        data=[str(shop / "shop")],
        catalogue=None,
        teachers=[{"vectors": str(shop / "strange"), "form": "t"}],
    )
    assert main([str(recipe), "--output_dir", str(shop / "run")]) == 2
    assert "teachers[0]: found vectors of none of" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teachers": [{"form": "i"}]}, r"teachers\[0\]: found no vectors; expected vectors: FOLDER and form"),
        ({"teachers": [{"vectors": "TEACHER"}]}, r"teachers\[0\]: found no form; expected vectors: FOLDER and form"),
        ({"teachers": [{"vectors": "nowhere", "form": "i"}]}, r"teachers\[0\]: vectors: found no vectors in .*nowhere"),
        ({"teachers": [{"vectors": "TEACHER", "form": "x"}]}, r"teachers\[0\].form: found 'x'"),
        ({"teachers": [{"vectors": "TEACHER", "form": "i", "weight": 0}]}, r"teachers\[0\].weight: found 0"),
        ({"teachers": [{"vectors": "TEACHER", "form": "i", "kind": "soft"}]}, r"teachers\[0\].kind: found 'soft'"),
        ({"teachers": [{"vectors": "TEACHER", "form": "i", "wieght": 1}]}, r"unknown key 'wieght'.*'weight'"),
        ({"teachers_alone_steps": 2}, "teachers_alone_steps: found 2.*; expected only with teachers"),
        (
            {"teachers": [{"vectors": "TEACHER", "encoder": "frozen_image=x.onnx", "form": "i"}]},
            r"teachers\[0\]: found vectors and encoder; expected one of them",
        ),
        ({"teachers": [{"encoder": "frozen_image=x.onnx"}]}, r"teachers\[0\]: found no form"),
        (
            {
                "teachers": [{"encoder": "frozen_image=x.onnx", "form": "i"}],
                "data": ["rows.parquet"],
                "streaming": True,
            },
            "teachers: an encoder does not work with streaming",
        ),
        (
            {"teachers": [{"vectors": "TEACHER", "form": "i"}], "stage": "grpo", "preset": "moon3"},
            "teachers: found .* expected only without stage: grpo: the passes of rollouts return vectors",
        ),
    ],
)
def test_teachers_that_cannot_work_are_refused_by_key(shop, changes, message):
    changes = yaml.safe_load(yaml.safe_dump(changes).replace("TEACHER", str(shop / "teacher")))
    values = {"small_base": {"hidden_size": 32}, "data": ["catalogue"], "max_steps": 2} | changes
    (shop / "recipe.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(RecipeError, match=message):
        parse_recipe([str(shop / "recipe.yaml")])


def test_a_teachers_folder_that_cannot_be_used_names_its_place_in_the_recipe(shop):
    entry = {"vectors": str(shop / "teacher"), "form": "mm"}
    with pytest.raises(RecipeError, match=r"teachers\[0\]: .*found no form 'mm'"):
        teachers_of(LossArguments(teachers=[entry]))
    teacher = teachers_of(LossArguments(teachers=[entry | {"form": "i"}]))[0]
    assert (teacher.kind, teacher.weight) == ("direct", 1.0)
    assert torch.equal(teacher.vectors.of([])["rows"], torch.zeros(0, dtype=torch.int64))


def test_a_teacher_written_in_other_words_is_the_same_recipe(shop, monkeypatch):
    monkeypatch.chdir(shop)
    short = {"teachers": [{"vectors": "teacher", "form": "i"}]}
    long = {"teachers": [{"vectors": [str(shop / "teacher")], "form": "i", "weight": 1.0, "kind": "direct"}]}
    assert _comparable("teachers", short) == _comparable("teachers", long)
    assert _comparable("teachers", short) != _comparable(
        "teachers", {"teachers": [{**short["teachers"][0], "form": "t"}]}
    )
