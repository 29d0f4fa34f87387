"""`moon3 bench embed` compares all ways, writes ratios, distances and recalls, and says what limits the rate."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from pictures import file_of, noise, plain
from PIL import Image

from evaluation import embedding_speed
from evaluation.embedding_speed import EmbeddingSpeed, embedding_speed_table, enlarged, limit, recalls, sharp_pictures
from moon3.__main__ import main
from product_data.tables import load_tables

LARGER = {"text_config": {"num_hidden_layers": 2}, "vision_config": {"depth": 2}}


def test_the_command_writes_rates_distances_and_recalls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(embedding_speed, "PHOTO_SIZE", (500, 650))
    monkeypatch.setattr(embedding_speed, "_LARGER", LARGER)
    output = tmp_path / "speed.json"
    words = ["bench", "embed", "--output", str(output), "--products", "6", "--repeats", "1", "--workers", "0"]
    assert main(words) == 0
    results = json.loads(output.read_text())
    assert set(results) == {"pictures", "settings", "small", "larger", "vectors", "recall", "provenance"}
    assert "not photos" in results["pictures"]
    assert results["settings"]["model"] == "moon1-catalogue"
    assert (results["small"]["products"], results["larger"]["products"]) == (6, 4)
    assert results["larger"]["parameters"] > results["small"]["parameters"]
    for name in ("small", "larger"):
        assert set(results[name]["ways"]) == set(embedding_speed._WAYS)
        for way in results[name]["ways"].values():
            assert way["speed_up"] == pytest.approx(1 / way["ratio"])
            assert way["products_per_second"] > 0
    assert 0 < results["vectors"]["photos"]["mean"] <= results["vectors"]["photos"]["largest"] < 1e-3
    (recall,) = results["recall"].values()
    assert recall["direction"] == "i2mm"
    assert recall["R@10_change"] == recall["reduced"]["R@10"] - recall["full"]["R@10"]
    assert 0 < recall["largest_1_minus_cosine"]["queries"] < 1e-3
    printed = capsys.readouterr().out
    assert "times plain" in printed
    assert printed.strip() == embedding_speed_table(results).strip()


def test_the_limit_is_the_slower_part_and_workers_count_for_the_preparation() -> None:
    rates = {"model_linear": 100.0, "preparation_reduced": 60.0, "preparation_text": 600.0, "reduced": 55.0}
    assert limit(rates, 1).startswith(
        "the preparation: the model alone reaches 100 products a second, preparation alone 60"
    )
    assert "pictures take 90%" in limit(rates, 1)
    assert limit(rates, 2).startswith("the model: ")
    assert limit(rates, 0).startswith("the preparation: ")


def test_photos_come_from_the_folder_and_options_are_checked(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="found 0 pictures; expected a folder with 6 or more"):
        EmbeddingSpeed(photos=tmp_path)
    with pytest.raises(ValueError, match="products=5; expected 6 or more"):
        EmbeddingSpeed(products=5)
    for number in range(7):
        (tmp_path / f"{number}.JPG").write_bytes(file_of(noise(40, 30, number), "JPEG"))
    (tmp_path / "0.webp").write_bytes(file_of(noise(50, 20), "WEBP"))
    files, described = embedding_speed.product_photos(EmbeddingSpeed(photos=tmp_path, products=6))
    assert files[0] == (tmp_path / "0.JPG").read_bytes()
    with Image.open(io.BytesIO(files[1])) as image:
        assert (image.format, image.size) == ("JPEG", (50, 20))
    assert len(files) == 6
    assert described == "6 photos of 40 × 30 pixels in the middle, 1 of them stored as JPEG (quality 90)"


def test_drawn_pictures_are_jpeg_files_of_a_shops_size() -> None:
    for data in (enlarged(noise()), enlarged({"bytes": file_of(noise())}), *sharp_pictures(2)):
        with Image.open(io.BytesIO(data)) as image:
            assert (image.format, image.size) == ("JPEG", (1000, 1300))


def test_recall_needs_queries_with_pictures_and_keeps_the_processors_setting(
    tiny_moon: Callable[..., Path],
) -> None:
    model, processor = embedding_speed.load_for_evaluation(tiny_moon(), device="cpu")
    products = [{"product_id": name, "images": [file_of(plain(name), "JPEG")]} for name in ("red", "blue")]
    text = {"query_id": "t", "text": "red", "positives": ["red"]}
    both = {"query_id": "b", "text": "same", "image": file_of(plain("red"), "JPEG"), "positives": ["red"]}
    with pytest.raises(ValueError, match=r"found queries of the types \['text'\]; expected some with a picture"):
        recalls(model, processor, load_tables({"products": products, "queries": [text]}))
    found = recalls(model, processor, load_tables({"products": products, "queries": [text, both]}))
    assert found["direction"] == "mm2mm"
    assert found["full"]["queries"] == 1
    assert processor.reduced_decoding is False
