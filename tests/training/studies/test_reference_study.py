"""The reference checkpoint: its tables, its trainings, and the comparison with two frozen encoders."""

import csv
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pictures import file_of, noise
from PIL import Image

from evaluation.paired_rows import Row
from moon3.__main__ import main
from processing_moon import open_image
from product_data.catalogue.making import write_catalogue
from product_data.tables import load_tables
from training.recipe.arguments import RecipeError, parse_recipe
from training.studies import reference_tables
from training.studies.reference_study import (
    ALL,
    FROZEN,
    MOON,
    RECIPES,
    SHARED,
    SHIPPED,
    Encoders,
    UnfinishedError,
    compare,
    mean_of_rows,
    mean_over_seeds,
    table,
    train_seeds,
)
from training.studies.reference_tables import write_evidence_tables, write_reference_tables

TINY = {
    "moon": {"embedding_dim": 32},
    "max_image_tokens": 2,
    "max_steps": 2,
    "save_steps": 2,
    "per_device_train_batch_size": 4,
}


@pytest.fixture(scope="module")
def shops(tmp_path_factory):
    """Shops in the layout of the study's data, of drawn products."""
    data = tmp_path_factory.mktemp("data")
    for seed, name in enumerate(("grocery", "fashion", "ikea"), start=3):
        write_catalogue(data / name, products=60, image_size=64, seed=seed, progress=False)
    (data / "spree" / "images").mkdir(parents=True)
    columns = ("slug", "name", "category1", "option1_name", "option1_value", "image1_src")
    rows = [("fan", "Tower Fan", "Air", "", "", "fan.webp"), ("fan", "", "", "Color", "Black", "black.webp")]
    with (data / "spree" / "products.csv").open("w", newline="") as file:
        csv.writer(file).writerows([columns, *rows])
    for name in ("fan", "black"):
        Image.new("RGB", (400, 300)).save(data / "spree" / "images" / f"{name}.webp")
    (data / "street").mkdir()
    pictures = [{"image_id": f"{n}.jpg", "image": {"bytes": file_of(noise(seed=n)), "path": None}} for n in range(3)]
    pq.write_table(pa.Table.from_pylist(pictures), data / "street" / "query_images.parquet")
    return data


@pytest.fixture(scope="module")
def tables(shops, tmp_path_factory):
    """The written tables, with few drawn products."""
    folder = tmp_path_factory.mktemp("reference") / "tables"
    patched = pytest.MonkeyPatch()
    patched.setattr(reference_tables, "CATALOGUE", {"products": 30, "image_size": 64, "progress": False})
    names = write_reference_tables(shops, folder)
    patched.undo()
    return folder, names


def test_the_tables_are_complete_and_hold_no_product_of_the_shops_that_are_left_out(shops, tables):
    folder, names = tables
    assert names[:3] == ["catalogue", "grocery", "spree"]
    left_out = {name: load_tables(folder / "left_out" / name) for name in ("fashion", "ikea")}
    for name, found in left_out.items():
        source = load_tables(shops / name)
        assert set(found.splits) == {"valid", "test"}
        assert found.select("test").products == source.select("test").products
        assert [row.query_id for row in found.select("test").queries] == [
            row.query_id for row in source.select("test").queries
        ]
    grocery = load_tables(folder / "grocery")
    source = load_tables(shops / "grocery").select("train")
    assert [(row.product_id, row.title, row.attributes) for row in grocery.products] == [
        (row.product_id, row.title, row.attributes) for row in source.products
    ]
    assert [(row.query_id, row.positives) for row in grocery.queries] == [
        (row.query_id, row.positives) for row in source.queries
    ]
    assert {row.split for row in grocery.products} == {"train"}


def test_photos_are_products_of_a_picture_alone_and_pictures_are_reduced(tables):
    folder, _ = tables
    counts = {name: len(load_tables(folder / name).products) for name in ("spree_photos", "street_photos")}
    assert counts == {"spree_photos": 2, "street_photos": 3}
    for row in load_tables(folder / "spree_photos").products:
        assert not row.has_text
        assert max(open_image(row.images[0]).size) == reference_tables.SIDE


def test_the_tables_of_the_evidence_study_are_samples_of_three_shops(tmp_path, monkeypatch):
    for seed, name in enumerate(("fashion", "ikea", "chorus")):
        write_catalogue(tmp_path / "data" / name, products=40, image_size=64, seed=seed, progress=False)
    monkeypatch.setattr(reference_tables, "EVIDENCE", reference_tables.EVIDENCE | {"fashion": {"train": 7, "test": 2}})
    names = write_evidence_tables(tmp_path / "data", tmp_path / "tables")
    assert names == ["evidence/fashion", "evidence/ikea", "evidence/chorus"]
    fashion, ikea = (load_tables(tmp_path / "tables" / "evidence" / name) for name in ("fashion", "ikea"))
    assert [row.split for row in fashion.products].count("train") == 7
    assert [row.split for row in fashion.products].count("test") == 2
    assert set(ikea.splits) == {"test"}


def test_complete_tables_are_kept(shops, tables):
    folder, names = tables
    stamps = {path: path.stat().st_mtime_ns for path in folder.rglob("*.parquet")}
    assert write_reference_tables(shops, folder) == names
    assert stamps == {path: path.stat().st_mtime_ns for path in folder.rglob("*.parquet")}


def row(what, values, names=None, chance=0.1):
    names = tuple(names or (f"q{n}" for n in range(len(values))))
    return Row("retrieval", what, "mm", "R@10", np.array(values, dtype=float), names, 50, chance)


def test_the_mean_of_rows_weighs_rows_and_not_queries():
    one, other = ("shop", "abcd", np.array([1.0, 0.0, 0.0, 0.0])), ("shop", "ab", np.array([1.0, 1.0]))
    assert mean_of_rows([one, other]).mean() == pytest.approx((0.25 + 1.0) / 2)
    assert mean_of_rows([one, other]).tolist() == pytest.approx([1.5, 1.0, 0.0, 0.0])  # 4/2 · (v/4 + v/2) of each query
    assert len(mean_of_rows([one, ("other shop", "ab", other[2])])) == 6


def test_a_row_that_the_encoders_lack_counts_as_chance_in_the_mean_of_all_rows():
    frozen = {"shop": [row("t2mm", [1, 0, 1, 1])]}
    moon = {"shop": [row("t2mm", [1, 1, 0, 0]), row("t2i", [1, 1, 1, 0, 0])]}
    entries = {(entry["shop"], entry["what"]): entry["models"] for entry in compare(frozen, moon)}
    assert entries["shop", "t2mm"][MOON]["difference"]["difference"] == pytest.approx(-0.25)
    assert set(entries["shop", "t2i"]) == {MOON}
    assert entries[SHARED, "R@10"][FROZEN]["value"] == pytest.approx(0.75)
    assert entries[ALL, "R@10"][FROZEN]["value"] == pytest.approx((0.75 + 0.1) / 2)
    assert entries[ALL, "R@10"][MOON]["value"] == pytest.approx((0.5 + 0.6) / 2)
    with pytest.raises(ValueError, match="shop, t2mm: the models have different queries"):
        compare({"shop": [row("t2mm", [1, 0], names="ab")]}, {"shop": [row("t2mm", [1, 0])]})


def test_another_model_can_be_compared_with(tables):
    entries = compare({"shop": [row("t2mm", [1, 0])]}, {"shop": [row("t2mm", [1, 1])]}, SHIPPED)
    assert entries[0]["models"][SHIPPED]["value"] == 0.5
    assert SHIPPED in table({"drawn": entries}, "drawn")


def test_the_value_of_a_query_is_its_mean_over_seeds():
    joined = mean_over_seeds([{"shop": [row("t2mm", [1, 0])]}, {"shop": [row("t2mm", [1, 1])]}])
    assert joined["shop"][0].value_N.tolist() == [1.0, 0.5]


def test_the_recipe_can_be_run_with_encoders_in_place_of_its_own(tables, monkeypatch, tmp_path):
    (tmp_path / "runs" / "reference" / "base").mkdir(parents=True)
    (tmp_path / "runs" / "reference" / "tables").symlink_to(tables[0])
    monkeypatch.chdir(tmp_path)
    recipe = parse_recipe([str(RECIPES / "reference.yaml"), "--output_dir", "x"])
    found = Encoders("image.onnx", "text", "words", "small.onnx").teachers({"teachers": recipe.loss.teachers})
    assert [teacher["encoder"] for teacher in found] == ["frozen_image=small.onnx"]
    assert Encoders("image.onnx", "text", "words").fused == "frozen=image.onnx+text"


def test_a_base_of_another_language_model_is_refused(tables, tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(
        "training.studies.reference_study.make_text_base", lambda text, out, **_: (made.append(text), out.mkdir())
    )
    monkeypatch.setattr("training.studies.reference_study.run_all", lambda runs, *_: [])
    for words in ("one", "one"):
        train_seeds(tables[0], Encoders("a", "b", words), tmp_path / "work", [0])
    assert made == ["one"]
    with pytest.raises(RecipeError, match="found a base made of .*'one'.*; expected .*'other'.* or another --work"):
        train_seeds(tables[0], Encoders("a", "b", "other"), tmp_path / "work", [0])
    with pytest.raises(RecipeError, match="--seeds: found \\[0, 0\\]"):
        train_seeds(tables[0], Encoders("a", "b", "one"), tmp_path / "work", [0, 0])


def test_a_training_that_does_not_finish_is_named(tables, tmp_path, monkeypatch):
    (tmp_path / "base").mkdir()
    monkeypatch.setattr("training.studies.reference_study.run_all", lambda runs, *_: [run.name for run in runs])
    with pytest.raises(UnfinishedError, match="reference, seed 4: not finished; the same command continues"):
        train_seeds(tables[0], Encoders("a", "b", "c"), tmp_path, [4])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--output", "x.csv", "--image-encoder", "a", "--text-encoder", "b", "--language-model", "c"],
            "x.csv; expected a .json file",
        ),
        (["--image-encoder", "a"], "--text-encoder: found none; expected a place, or --tables-only"),
    ],
)
def test_a_command_that_cannot_work_is_refused_before_anything_is_written(
    arguments, message, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert main(["reference-checkpoint", "--data", "nowhere", "--work", "work", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "work" / "tables").exists()


@pytest.mark.slow
def test_one_command_trains_each_seed_once_and_compares_the_models(tables, shops, tmp_path, monkeypatch, capsys):
    pytest.importorskip("onnxruntime")
    from tiny_donors import tiny_donor
    from tiny_onnx import write_brightness_network
    from tiny_peers import make_text_encoder

    image = write_brightness_network(tmp_path / "image.onnx", ("batch", 3, 32, 32))
    text = make_text_encoder(tmp_path / "text")
    words = tiny_donor(tmp_path / "words")
    work = tmp_path / "work"
    work.mkdir()
    (work / "tables").symlink_to(tables[0])
    recipe = reference_recipe()
    monkeypatch.setattr("training.studies.reference_study.read_recipe_file", lambda path: recipe | TINY)
    drawn = {"products": 40, "seed": 2, "image_size": 64, "progress": False}
    monkeypatch.setattr("training.studies.reference_study.MEASURED_ON", {"validation": drawn})
    given = ["reference-checkpoint", "--data", str(shops), "--image-encoder", str(image), "--text-encoder", str(text)]
    given += [
        "--language-model",
        str(words),
        "--work",
        str(work),
        "--output",
        str(tmp_path / "results.json"),
        "--seeds",
        "0",
        "1",
        "--steps",
        "2",
    ]
    assert main(given) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["seeds"] == [0, 1]
    assert set(results["by_seed"]) == {"0", "1"}
    shared = next(entry for entry in results["rows"] if entry["shop"] == SHARED)["models"]
    assert {"value", "interval", "difference"} <= set(shared[MOON])
    assert {entry["what"] for entry in results["drawn"]} >= {"t2mm", "i2mm", "mm2mm", "t2i", "i2t"}
    shown = capsys.readouterr().out
    assert table(results) in shown
    assert table(results, "drawn") in shown
    stamps = [path.stat().st_mtime_ns for path in sorted(work.rglob("cell.json"))]
    assert main(given) == 0
    assert stamps == [path.stat().st_mtime_ns for path in sorted(work.rglob("cell.json"))]


def reference_recipe():
    from training.recipe.files import read_recipe_file

    return read_recipe_file(RECIPES / "reference.yaml")
