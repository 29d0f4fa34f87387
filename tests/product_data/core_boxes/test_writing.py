"""Boxes in tables: what is written, kept and replaced, what is reported, and a run that is stopped."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet
import pytest
from pictures import file_of, noise, plain
from table_files import write_table

from product_data.core_boxes.box_cache import BoxCache, Pictured
from product_data.core_boxes.detectors import NamedDetector, open_detector
from product_data.core_boxes.saliency import Detection
from product_data.core_boxes.writing import CACHE, RECORD, BoxOptions, write_core_boxes
from product_data.errors import OptionError
from product_data.folder_lock import FolderInUseError, Owner
from product_data.table_files import TableError
from product_data.tables import load_tables


class Counting:
    """A detector that boxes the left half of a picture, finds nothing in small ones, and counts what it sees."""

    def __init__(self, stop_after: int | None = None, **settings):
        self.seen, self.stop_after = [], stop_after
        self.named = NamedDetector("half", {"version": 1, **settings}, self.detections)

    def detections(self, images, titles):
        if self.stop_after is not None and len(self.seen) + len(images) > self.stop_after:
            raise KeyboardInterrupt
        self.seen += list(zip((image.size for image in images), titles, strict=True))
        return [
            Detection(None, "too small")
            if image.width < 20
            else Detection((0.0, 0.0, image.width / 2, image.height * 1.0))
            for image in images
        ]


@pytest.fixture
def shop(tmp_path):
    """A folder with products and queries of every kind, as files of one format."""

    def make(suffix: str) -> Path:
        folder = tmp_path / f"shop{suffix.replace('.', '_')}"
        (folder / "images").mkdir(parents=True)
        for name, image in {
            "a": noise(32, 32, 1), "b": noise(48, 32, 2), "small": noise(8, 8, 3), "copy": noise(32, 32, 1),
            "q": noise(64, 32, 4),
        }.items():  # fmt: skip
            image.save(folder / "images" / f"{name}.png")
        (folder / "images" / "broken.png").write_bytes(b"no picture")
        products = [
            {"product_id": "1", "title": "hat", "images": "images/a.png", "core_box": None, "more": "kept"},
            {"product_id": "2", "title": "boot", "images": "images/b.png", "core_box": "1,2,3,4", "more": None},
            {"product_id": "3", "title": "ring", "images": "images/small.png", "core_box": None, "more": None},
            {"product_id": "4", "title": "words", "images": None, "core_box": None, "more": None},
            {"product_id": "5", "title": "lost", "images": "images/broken.png", "core_box": None, "more": None},
            {"product_id": "6", "title": "twin", "images": "copy.png", "core_box": None, "more": None},
        ]
        queries = [
            {"query_id": "t", "type": "text", "text": "a hat", "image_id": None, "positives": "1", "derived": "false"},
            {"query_id": "i", "type": "image", "text": None, "image_id": "q", "positives": "1", "derived": "true"},
            {"query_id": "b", "type": "both", "text": "in blue", "image_id": "q", "positives": "2", "derived": "true"},
        ]
        write_table(folder / f"products{suffix}", products)
        write_table(folder / f"queries{suffix}", queries)
        write_table(folder / f"query_images{suffix}", [{"image_id": "q", "image": "images/q.png"}])
        return folder

    return make


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl", ".csv"])
def test_boxes_stand_in_the_tables_and_everything_else_stays(suffix, shop, tmp_path):
    source, detector = shop(suffix), Counting()
    report = write_core_boxes(source, tmp_path / "out", detector.named)
    tables, before = load_tables(tmp_path / "out"), load_tables(source)
    boxes = {row.product_id: row.core_box for row in tables.products}
    half = (0.0, 0.0, 16.0, 32.0)
    assert boxes == {"1": half, "2": (1, 2, 3, 4), "3": None, "4": None, "5": None, "6": half}
    assert {row.query_id: row.box for row in tables.queries} == {"t": None, "i": (0, 0, 32, 32), "b": (0, 0, 32, 32)}
    for was, now in zip(before.products, tables.products, strict=True):
        assert replace(was, core_box=None, images=()) == replace(now, core_box=None, images=())
        assert [Path(image).resolve() for image in now.images] == [Path(image).resolve() for image in was.images]
    assert len(detector.seen) == 3  # a and its copy once, small, q once; b has a box
    assert dict(report.counts["products"]) == {
        "detected": 2, "kept": 1, "without a picture": 1, "without a box: too small": 1, "the picture cannot be opened": 1,
    }  # fmt: skip
    assert dict(report.counts["queries"]) == {"without a picture": 1, "detected": 2}
    assert not report.ok
    assert "'5': the picture cannot be opened" in str(report)
    assert "products: 3 of 6 have a box (2 detected, 1 kept); " in str(report)
    record = json.loads((tmp_path / "out" / RECORD).read_text())
    assert (record["complete"], record["detector"]) == (True, {"name": "half", "version": 1})
    assert "box_by" not in str(tables.report)


def test_each_detected_box_names_its_detector_and_unknown_columns_stay(shop, tmp_path):
    write_core_boxes(shop(".jsonl"), tmp_path / "out", Counting().named)
    rows = [json.loads(line) for line in (tmp_path / "out" / "products.jsonl").read_text().splitlines()]
    assert [row["box_by"] for row in rows] == ["half version=1", None, None, None, None, "half version=1"]
    assert rows[0]["more"] == "kept"
    assert rows[1]["core_box"] == "1,2,3,4"


def test_replace_detects_everywhere_and_says_so(shop, tmp_path):
    report = write_core_boxes(shop(".csv"), tmp_path / "out", Counting().named, BoxOptions(replace=True))
    [boot] = [row for row in load_tables(tmp_path / "out").products if row.product_id == "2"]
    assert boot.core_box == (0, 0, 24, 32)
    assert report.counts["products"]["kept"] == 0


def test_a_stopped_run_goes_on_where_it_was_and_leaves_no_half_table(shop, tmp_path):
    source, out = shop(".parquet"), tmp_path / "out"
    whole = tmp_path / "whole"
    write_core_boxes(source, whole, Counting().named)
    seen = []
    for stop_after in (1, 1):
        detector = Counting(stop_after)
        with pytest.raises(KeyboardInterrupt):
            write_core_boxes(source, out, detector.named, BoxOptions(batch_size=1))
        seen += detector.seen
        assert not (out / "queries.parquet").exists()
        assert json.loads((out / RECORD).read_text())["complete"] is False
    with (out / CACHE).open("a") as stream:
        stream.write('{"detector": "cut o')  # the line of a killed run
    last = Counting()
    write_core_boxes(source, out, last.named)
    assert len(seen) + len(last.seen) == 3
    for name in ("products", "queries"):
        one, other = (pyarrow.parquet.read_table(folder / f"{name}.parquet") for folder in (out, whole))
        assert one.equals(other)
    nothing = Counting(0)
    assert write_core_boxes(source, out, nothing.named).detected == 0


def test_another_setting_or_picture_is_detected_again_and_a_shared_cache_is_read(shop, tmp_path):
    source, cache = shop(".csv"), tmp_path / "boxes.jsonl"
    write_core_boxes(source, tmp_path / "one", Counting().named, BoxOptions(cache=cache))
    assert write_core_boxes(source, tmp_path / "two", Counting(0).named, BoxOptions(cache=cache)).detected == 0
    noise(40, 32, 9).save(source / "images" / "a.png")
    assert write_core_boxes(source, tmp_path / "two", Counting().named, BoxOptions(cache=cache)).detected == 1
    other = Counting(threshold=0.3)
    assert write_core_boxes(source, tmp_path / "three", other.named, BoxOptions(cache=cache)).detected == 4


def test_a_title_is_part_of_the_key_only_for_a_detector_that_reads_it(tmp_path):
    picture = file_of(noise(32, 32))
    rows = [Pictured("1", picture, "hat"), Pictured("2", picture, "boot"), Pictured("3", picture, "hat")]
    blind = Counting()
    BoxCache(tmp_path / "blind", blind.named).detections(rows)
    assert blind.seen == [((32, 32), None)]
    reading = Counting()
    BoxCache(tmp_path / "reading", replace(reading.named, reads_titles=True)).detections(rows)
    assert reading.seen == [((32, 32), "hat"), ((32, 32), "boot")]


def test_a_picture_that_could_not_be_opened_is_tried_again(tmp_path):
    place = tmp_path / "late.png"
    cache = BoxCache(tmp_path / "boxes", Counting().named)
    asked = [Pictured("1", str(place)), Pictured("2", "https://shop.example/a.png")]
    assert [found.box for found in cache.detections(asked)] == [None, None]
    noise(32, 32).save(place)
    assert cache.detections(asked)[0].box == (0, 0, 16, 32)


def test_a_parquet_table_of_hugging_face_datasets_can_still_be_loaded(tmp_path):
    from datasets import load_dataset

    from product_data.catalogue.making import write_catalogue

    write_catalogue(tmp_path / "drawn", products=18, image_size=64, progress=False)
    write_core_boxes(tmp_path / "drawn", tmp_path / "out", Counting().named)
    loaded = load_dataset(
        "parquet", data_files=str(tmp_path / "out" / "products.parquet"), cache_dir=str(tmp_path / "c")
    )
    assert loaded["train"][0]["core_box"] == [0.0, 0.0, 32.0, 64.0]
    assert loaded["train"][0]["images"][0].size == (64, 64)
    before, after = load_tables(tmp_path / "drawn"), load_tables(tmp_path / "out")
    assert [row.box for row in after.queries] == [row.box for row in before.queries]  # known boxes are kept


def test_a_feed_becomes_a_products_table_with_boxes(tmp_path):
    plain("white", 64).save(tmp_path / "hat.png")
    columns = "id,title,description,link,image_link,price,availability"
    (tmp_path / "feed.csv").write_text(f"{columns}\n1,Hat,Red hat,https://x.example/1,hat.png,9.50 EUR,in_stock\n")
    report = write_core_boxes(tmp_path / "feed.csv", tmp_path / "out", Counting().named)
    [row] = load_tables(tmp_path / "out").products
    assert (row.title, row.core_box) == ("Hat", (0, 0, 32, 64))
    assert "read as a feed" in str(report)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [RECORD, CACHE, "products.jsonl"]


def test_what_cannot_be_done_is_refused(shop, tmp_path):
    source, half = shop(".csv"), Counting().named
    with pytest.raises(OptionError, match="found the folder of the source; expected another folder"):
        write_core_boxes(source, source, half)
    with pytest.raises(OptionError, match=r"found (products|queries|query_images).csv; expected a new folder"):
        write_core_boxes(shop(".jsonl"), source, half)
    with pytest.raises(TableError, match="moon3 catalogue --output FOLDER writes it"):
        write_core_boxes("catalogue", tmp_path / "out", half)
    with pytest.raises(TableError, match="no such file or folder"):
        write_core_boxes(tmp_path / "nowhere", tmp_path / "out", half)
    (tmp_path / "bad.jsonl").write_text('{"detector": 1}\nno json\n')
    with pytest.raises(OptionError, match="found a line that is not a box"):
        BoxCache(tmp_path / "bad.jsonl", half)
    (tmp_path / "busy").mkdir()
    owner = replace(Owner.this_process(), process=os.getppid(), started=0)
    (tmp_path / "busy" / "core_boxes.lock").write_text(json.dumps(owner.__dict__))
    with pytest.raises(FolderInUseError):
        write_core_boxes(source, tmp_path / "busy", half)


@pytest.mark.parametrize(
    "name, options, found",
    [
        ("guess", {}, "detector: found 'guess'; expected one of saliency, largest-region, grounding"),
        ("saliency", {}, "detector saliency: found no weights"),
        ("grounding", {}, "detector grounding: found no model"),
        (
            "largest-region",
            {"model": "x"},
            "detector largest-region: found model; expected it with the detector grounding",
        ),
    ],
)
def test_a_detector_without_what_it_needs_is_refused(name, options, found):
    with pytest.raises(OptionError, match=found):
        open_detector(name, **options)


def test_a_grounding_model_reads_titles_and_is_named_by_its_weights(tiny_base, tmp_path):
    detector = open_detector("grounding", model=str(tiny_base("qwen2_5_vl")))
    assert detector.reads_titles
    assert len(detector.settings["weights"]) == 16
    cache = BoxCache(tmp_path / "boxes", detector)
    [found] = cache.detections([Pictured("1", file_of(noise(32, 32)), "hat")])
    assert found.box is None
    assert found.reason == "the detector is unsure"


def test_the_largest_region_writes_the_box_of_a_thing_on_plain_ground(tmp_path):
    image = plain("white", 100)
    image.paste("red", (20, 30, 60, 80))
    cache = BoxCache(tmp_path / "boxes", open_detector("largest-region"))
    [found] = cache.detections([Pictured("1", file_of(image))])
    assert found.box == pytest.approx((20, 30, 60, 80), abs=2)
