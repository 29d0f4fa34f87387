"""Trainings with boxes of each source."""

import json

import pytest

pytest.importorskip("onnxruntime")
from tiny_onnx import write_brightness_network

from product_data.catalogue.making import write_catalogue
from training.places import RECIPES
from training.recipe.arguments import parse_recipe
from training.studies.core_crop_training import RECIPE, train_by_source


def test_the_recipe_can_be_run_and_asks_with_photos_only():
    recipe = parse_recipe([str(RECIPES / RECIPE), "--output_dir", "x"])
    assert recipe.data.core_crop
    assert recipe.training.evaluate_after
    assert recipe.resolved["query_mix"] == {"i": 1, "t": 0, "mm": 0}


@pytest.mark.slow
def test_every_source_and_seed_is_trained_once_on_its_own_boxes(tmp_path):
    write_catalogue(tmp_path / "grocery", products=60, image_size=64, progress=False)
    weights = write_brightness_network(tmp_path / "x.onnx")
    keys = {"max_steps": 2, "per_device_train_batch_size": 4, "save_steps": 2}
    found = train_by_source(tmp_path, weights, tmp_path / "work", [0, 1], keys)
    assert set(found["by_seed"]) == {"none", "largest region", "saliency"}
    assert all(len(values) == 2 for rows in found["by_seed"].values() for values in rows.values())
    row = next(row for row in found["rows"] if (row["what"], row["metric"]) == ("i2mm", "R@10"))
    mean = sum(found["by_seed"]["saliency"]["i2mm R@10"]) / 2
    assert row["boxes"]["saliency"]["value"] == pytest.approx(mean)
    cells = [json.loads(path.read_text()) for path in (tmp_path / "work" / "runs").rglob("cell.json")]
    assert len(cells) == 6
    stamps = [path.stat().st_mtime_ns for path in sorted((tmp_path / "work" / "runs").rglob("cell.json"))]
    train_by_source(tmp_path, weights, tmp_path / "work", [0, 1], keys)
    assert stamps == [path.stat().st_mtime_ns for path in sorted((tmp_path / "work" / "runs").rglob("cell.json"))]
