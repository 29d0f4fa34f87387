"""One command compares frozen encoders with other models on shops, with and without the core crop."""

from __future__ import annotations

import json

import pyarrow.parquet
import pytest
from tiny_peers import make_image_encoder, make_text_encoder

from evaluation import frozen_study, shops_study
from evaluation.shops_study import UNSEEN, Shop
from moon3.__main__ import main
from product_data.catalogue.making import write_catalogue


@pytest.fixture
def study(tiny_moon, tmp_path, monkeypatch):
    for seed, name in enumerate(("boxed", "plain")):
        write_catalogue(tmp_path / "data" / name, products=24, image_size=64, seed=seed, progress=False)
    for path in (tmp_path / "data" / "plain").glob("*.parquet"):
        table = pyarrow.parquet.read_table(path)
        boxes = [name for name in table.column_names if name in ("bbox", "core_box")]
        pyarrow.parquet.write_table(table.drop_columns(boxes), path)
    shops = (Shop("boxed", "boxed", UNSEEN, "with boxes"), Shop("plain", "plain", UNSEEN, "without"))
    for module in (frozen_study, shops_study):
        monkeypatch.setattr(module, "SHOPS", shops)
    image, text = make_image_encoder(tmp_path / "image"), make_text_encoder(tmp_path / "text")
    moon = tiny_moon("qwen3_vl", trained=True)

    def run(*arguments):
        common = ["--data", str(tmp_path / "data"), "--work", str(tmp_path / "work")]
        models = ["--model", f"fused=frozen={image}+{text}", f"image=frozen_image={image}", f"Moon={moon}"]
        return main(["frozen-study", *common, *models, "--output", str(tmp_path / "study.json"), *arguments])

    return run


def test_a_name_that_stands_twice_is_refused(tmp_path, capsys):
    words = ["frozen-study", "--data", str(tmp_path), "--model", "a=x", "a=y", "--output", str(tmp_path / "x.json")]
    assert main(words) == 2
    assert "--model: found the name 'a' twice; expected different names" in capsys.readouterr().err


def test_rows_have_each_model_that_has_a_score_and_its_difference_to_the_first(study, tmp_path, capsys, monkeypatch):
    assert study() == 0
    results = json.loads((tmp_path / "study.json").read_text())
    shops = results["shops"]
    assert (shops["boxed"]["core_boxes"], shops["plain"]["core_boxes"]) == (True, False)
    rows = {(row["what"], row["metric"], row["form"]): row["models"] for row in shops["boxed"]["rows"]}
    assert set(rows["i2mm", "R@10", "mm"]) == {
        "fused",
        "image",
        "Moon",
        *(f"{name} + crop" for name in ("fused", "image", "Moon")),
    }
    assert set(rows["t2mm", "R@10", "mm"]) == {"fused", "Moon", "fused + crop", "Moon + crop", "BM25"}
    assert set(rows["t2i", "R@10", "i"]) == {"Moon", "Moon + crop"}
    for models in rows.values():
        assert "difference" not in models.get("fused", {})
        for name, score in models.items():
            if name in ("BM25", "fused") or "fused" not in models:
                continue
            expected = score["value"] - models["fused"]["value"]
            assert score["difference"]["difference"] == pytest.approx(expected)
    # A query that is a picture alone ranks products as the image encoder does.
    assert rows["i2mm", "R@10", "mm"]["fused"]["value"] == rows["i2mm", "R@10", "mm"]["image"]["value"]
    assert all(not name.endswith("crop") for row in shops["plain"]["rows"] for name in row["models"])
    assert results["recipes"]["fused"]["image_weight"] == 0.5
    assert "| boxed" in capsys.readouterr().out
    monkeypatch.setattr(frozen_study, "measure", lambda *given, **named: pytest.fail("measured again"))
    assert study() == 0


def test_models_of_another_study_stand_beside_rows_of_the_same_size(study, tmp_path):
    assert study("--shops", "plain") == 0
    rows = json.loads((tmp_path / "study.json").read_text())["shops"]["plain"]["rows"]
    value = {"value": 0.25, "interval": [0.2, 0.3]}
    earlier = [{**row, "models": {"dual tower": value, "Moon": value}} for row in rows]
    earlier[0] |= {"queries": 1}
    (tmp_path / "earlier.json").write_text(json.dumps({"models": {}, "shops": {"plain": {"rows": earlier}}}))
    assert study("--shops", "plain", "--beside", str(tmp_path / "earlier.json")) == 0
    beside = json.loads((tmp_path / "study.json").read_text())["shops"]["plain"]["rows"]
    assert "dual tower" not in beside[0]["models"]
    assert all(row["models"]["dual tower"] == value for row in beside[1:])
    assert [row["models"]["Moon"] for row in beside] == [row["models"]["Moon"] for row in rows]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--output", "study.txt"], "--output study.txt; expected a .json file"),
        (["--model", "a=b"], "--model: found 1 name; expected two or more models with different names"),
        (["--model", "a"], "--model: found 'a'; expected NAME=MODEL"),
        (["--beside", "no.json"], "expected a results file of moon3 shops-study"),
    ],
)
def test_options_that_cannot_work_are_refused_before_anything_is_measured(study, arguments, message, capsys):
    assert study(*arguments) == 2
    assert message in capsys.readouterr().err
