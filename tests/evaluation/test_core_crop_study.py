"""The study of core crops: overlaps, fits and differences whose values are known, and the file it writes."""

import json
from dataclasses import replace

import numpy as np
import pytest
from pictures import file_of, plain

pytest.importorskip("onnxruntime")
from table_files import write_table
from tiny_onnx import write_brightness_network

from evaluation.core_crop_study import (
    BoxedPicture,
    catalogue_pictures,
    compare_sources,
    detectors_of,
    fit_results,
    measure_core_crop,
    overlap,
    results_text,
    sentences,
    street_pictures,
    with_boxes,
)
from evaluation.paired_rows import Row
from product_data.catalogue.making import write_catalogue
from product_data.tables import load_tables


def thing(box, name="a", size=(100, 80)):
    image = plain("black", *size)
    image.paste("white", box)
    return BoxedPicture(name, file_of(image), size, tuple(map(float, box)))


def slow_overlap(one, other):
    cells = [{(x, y) for x in range(box[0], box[2]) for y in range(box[1], box[3])} for box in (one, other)]
    return len(cells[0] & cells[1]) / len(cells[0] | cells[1])


@pytest.mark.parametrize("other", [(0, 0, 10, 10), (5, 5, 15, 12), (20, 20, 30, 30), (2, 3, 4, 9), (10, 0, 20, 10)])
def test_the_overlap_is_the_share_of_common_pixels(other):
    assert overlap((0, 0, 10, 10), other) == pytest.approx(slow_overlap((0, 0, 10, 10), other))


def test_a_detector_that_finds_the_thing_fits_and_fixed_boxes_are_measured_beside(tmp_path):
    detectors = detectors_of(write_brightness_network(tmp_path / "x.onnx"))
    pictures = [thing((10, 10, 50, 40)), thing((30, 20, 90, 70), "b"), thing((5, 40, 35, 75), "c")]
    found = fit_results(pictures, detectors, tmp_path)
    boxes = found["boxes"]
    assert boxes["saliency"]["overlap"]["value"] > 0.85
    assert boxes["saliency"]["at_least_half"] == {"value": 1.0, "interval": [1.0, 1.0]}
    whole = np.mean([(box.box[2] - box.box[0]) * (box.box[3] - box.box[1]) / 8000 for box in pictures])
    assert boxes["whole picture"]["overlap"]["value"] == pytest.approx(whole)
    assert boxes["whole picture"]["with_box"] == 0.0
    gain = boxes["saliency"]["overlap"]["value"] - whole
    assert found["differences"]["whole picture"]["difference"] == pytest.approx(gain)
    lines = (tmp_path / "core_boxes.jsonl").read_text().splitlines()
    assert len(lines) == 9
    fit_results(pictures, detectors, tmp_path)
    assert len((tmp_path / "core_boxes.jsonl").read_text().splitlines()) == 9  # the boxes are known


def test_the_core_of_a_street_photo_is_the_box_around_all_garments(tmp_path):
    image = {"bytes": file_of(plain("grey", 60, 40)), "path": None}
    write_table(tmp_path / "query_images.parquet", [{"image_id": "1.jpg", "image": image}])
    scenes = [
        {"image": "1.jpg", "width": 60, "height": 40, "objects": [{"bbox": [5, 6, 20, 30]}, {"bbox": [15, 2, 40, 9]}]},
        {"image": "2.jpg", "width": 60, "height": 40, "objects": []},
    ]
    write_table(tmp_path / "scenes.jsonl", scenes)
    [found], missing = street_pictures(tmp_path)
    assert (found.name, found.size, found.box) == ("1.jpg", (60, 40), (5, 2, 40, 30))
    assert missing == ["2.jpg"]


def test_photos_of_the_drawn_catalogue_have_their_boxes():
    pictures = catalogue_pictures(18)
    assert len(pictures) > 20
    assert all(0 <= entry.box[0] < entry.box[2] <= entry.size[0] for entry in pictures)


def test_sources_are_compared_query_by_query_with_none_as_the_reference():
    base = Row("retrieval", "i2mm", "mm", "R@1", np.array([0.0, 0, 1, 0]), ("a", "b", "c", "d"), 9, 0.1)
    rows = {"none": [base], "largest region": [replace(base, value_N=np.array([0.0, 0, 1, 1]))]}
    rows["saliency"] = [replace(base, value_N=np.array([1.0, 0, 1, 1]))]
    [found] = compare_sources(rows)
    assert {source: entry["value"] for source, entry in found["boxes"].items()} == {
        "none": 0.25, "largest region": 0.5, "saliency": 0.75,
    }  # fmt: skip
    assert {name: entry["difference"] for name, entry in found["differences"].items()} == {
        "largest region": 0.25, "saliency": 0.5, "saliency - largest region": 0.25,
    }  # fmt: skip


def test_boxes_of_a_detector_replace_those_of_the_tables(tmp_path):
    write_catalogue(tmp_path / "shop", products=18, image_size=64, progress=False)
    tables = load_tables(tmp_path / "shop")
    assert any(row.box for row in tables.queries)
    assert not any(row.box for row in with_boxes(tables, None, tmp_path).queries)
    detector = detectors_of(write_brightness_network(tmp_path / "x.onnx"))["largest region"]
    boxed = with_boxes(tables, detector, tmp_path)
    assert any(row.core_box for row in boxed.products)
    assert not any(row.box for row in boxed.queries if row.type == "text")


def test_the_study_measures_fit_speed_and_search_and_says_it(tmp_path, tiny_moon):
    write_catalogue(tmp_path / "grocery", products=18, image_size=64, progress=False)
    (tmp_path / "street").mkdir()
    entry = thing((10, 10, 50, 40))
    image = {"bytes": entry.picture, "path": None}
    write_table(tmp_path / "street" / "query_images.parquet", [{"image_id": "a", "image": image}] * 1)
    scene = {"image": "a", "width": 100, "height": 80, "objects": [{"bbox": list(entry.box)}]}
    write_table(tmp_path / "street" / "scenes.jsonl", [scene])
    weights = write_brightness_network(tmp_path / "x.onnx")
    models = {"tiny": str(tiny_moon("qwen3_vl", trained=True))}
    results = measure_core_crop(tmp_path, weights, models, tmp_path / "work", drawn_products=18)
    assert json.loads(results_text(results)) == results
    rows = results["search"]["tiny"]["rows"]
    assert {row["what"] for row in rows} >= {"i2mm", "i2i"}
    assert all(set(row["boxes"]) == {"none", "largest region", "saliency"} for row in rows)
    said = sentences(results)
    assert any(line.startswith("street, 1 pictures, saliency: mean overlap 0.8") for line in said)
    assert any(line.startswith("tiny, frozen, i2mm, R@1 of") for line in said)
    assert results["speed"]["saliency"]["pictures_per_second"] > 0
