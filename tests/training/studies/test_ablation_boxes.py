"""Tables with core boxes for the cells of a suite."""

import pytest

from product_data.catalogue.making import write_catalogue
from product_data.core_boxes.detectors import NamedDetector
from product_data.core_boxes.saliency import Detection
from product_data.tables import load_tables
from training.errors import RecipeError
from training.studies.ablation_boxes import data_with_boxes, detector_settings, name_of_data_set

LARGEST = {"name": "largest-region"}


@pytest.fixture
def shop(tmp_path):
    write_catalogue(tmp_path / "shop", products=18, image_size=64)
    return tmp_path / "shop"


def test_products_without_a_box_get_one_and_everything_else_stays(shop, tmp_path):
    before = load_tables(shop)
    entries, facts = data_with_boxes(
        [{"path": str(shop), "weight": 2}, "catalogue"], LARGEST, tmp_path / "out", progress=False
    )
    after = load_tables(entries[0]["path"])
    assert (entries[0]["name"], entries[0]["weight"], entries[1]) == ("shop", 2, "catalogue")
    assert [row.product_id for row in after.products] == [row.product_id for row in before.products]
    found = [row.core_box for row in after.products if row.core_box]
    assert not any(row.core_box for row in before.products)
    assert [row.box for row in after.queries] == [row.box for row in before.queries]  # known ones stay
    assert any(row.box for row in before.queries)
    assert len(found) == facts["shop"]["products_with_box"] > 9
    assert facts["shop"]["products"] == len(before.products)
    assert facts["shop"]["by"] == "largest-region"
    assert all(0 <= x0 < x1 <= 64 and 0 <= y0 < y1 <= 64 for x0, y0, x1, y1 in found)


def test_a_data_set_is_named_as_its_tables_are(shop, tmp_path, monkeypatch):
    dotted = shop.rename(tmp_path / "shop.v2")
    monkeypatch.chdir(dotted)
    for source in (str(dotted), ".", str(dotted / "products.parquet")):
        assert name_of_data_set(source) == name_of_data_set({"path": source}) == load_tables(source).name
    parts = {part: str(dotted / f"{part}.parquet") for part in ("products", "queries")}
    assert name_of_data_set(parts) == load_tables(parts).name == "shop.v2"
    assert name_of_data_set(parts | {"name": "mine"}) == "mine"
    bare = {"products": "products.parquet"}
    assert name_of_data_set(bare) == load_tables(bare).name
    assert name_of_data_set("catalogue") == "catalogue"


def test_boxes_of_two_detectors_have_folders_of_their_own(shop, tmp_path, monkeypatch):
    monkeypatch.setattr("training.studies.ablation_boxes.open_detector", lambda *_, **__: counting([]))
    (entry,), _ = data_with_boxes([str(shop)], LARGEST, tmp_path / "out", progress=False)
    saliency = {"name": "saliency", "weights": "a.onnx"}
    (other,), _ = data_with_boxes([str(shop)], saliency, tmp_path / "out", progress=False)
    assert entry["path"] != other["path"]


def counting(seen, stop_after=None):
    """A detector that notes every picture, and is interrupted after some."""

    def detections(images, titles):
        if stop_after is not None and len(seen) >= stop_after:
            raise KeyboardInterrupt
        seen.extend(images)
        return [Detection((0.0, 0.0, 9.0, 9.0), "") for _ in images]

    return NamedDetector("largest-region", {}, detections)


def test_an_interrupted_detection_goes_on_and_a_complete_one_is_not_repeated(shop, tmp_path, monkeypatch):
    places = "training.studies.ablation_boxes.open_detector"
    whole, first, second = [], [], []
    monkeypatch.setattr(places, lambda *_, **__: counting(whole))
    _, facts = data_with_boxes([str(shop)], LARGEST, tmp_path / "whole", progress=False)
    monkeypatch.setattr(places, lambda *_, **__: counting(first, stop_after=8))
    with pytest.raises(KeyboardInterrupt):
        data_with_boxes([str(shop)], LARGEST, tmp_path / "out", progress=False)
    assert data_with_boxes([str(shop)], LARGEST, tmp_path / "out", write=False) == ([], {})
    monkeypatch.setattr(places, lambda *_, **__: counting(second))
    entries, resumed = data_with_boxes([str(shop)], LARGEST, tmp_path / "out", progress=False)
    assert resumed == facts
    assert 0 < len(second) == len(whole) - len(first)
    monkeypatch.setattr(places, lambda *_, **__: pytest.fail("a detector was opened"))
    assert data_with_boxes([str(shop)], LARGEST, tmp_path / "out", progress=False) == (entries, facts)


def test_settings_take_the_names_of_detectors_and_what_they_need():
    assert detector_settings(None, "boxes") is None
    assert detector_settings("largest_region", "boxes") == detector_settings("largest-region", "boxes") == LARGEST
    saliency = {"detector": "saliency", "weights": "u2netp.onnx"}
    assert detector_settings(saliency, "boxes") == {"name": "saliency", "weights": "u2netp.onnx"}
    for value in ("guess", "saliency", {"detector": "saliency", "model": "x"}, {"weights": "x"}, 3):
        with pytest.raises(RecipeError, match="boxes: found"):
            detector_settings(value, "boxes")


def test_data_without_a_path_is_refused(tmp_path):
    with pytest.raises(RecipeError, match="expected path: a folder or file of tables"):
        data_with_boxes([{"products": "p.parquet"}], LARGEST, tmp_path / "out")
