"""The saliency detector: boxes of masks, real and tiny networks, and what it refuses."""

import sys
from pathlib import Path

import numpy as np
import pytest
from pictures import noise, plain
from PIL import Image, ImageDraw

pytest.importorskip("onnxruntime")
from tiny_onnx import write_brightness_network

from processing_moon.processing_moon import MoonProcessor
from product_data.core_boxes.saliency import SaliencyDetector, SaliencyError, SaliencyOptions, box_of_mask
from product_data.errors import OptionError

REAL = Path(__file__).resolve().parents[4] / "shared" / "weights" / "u2netp.onnx"


def bright(box: tuple[int, int, int, int], size: tuple[int, int] = (200, 100)) -> Image.Image:
    image = plain("black", *size)
    image.paste("white", box)
    return image


@pytest.fixture
def weights(tmp_path):
    return write_brightness_network(tmp_path / "brightness.onnx")


def slow_box(mask: np.ndarray, threshold: float) -> tuple[int, int, int, int]:
    scaled = (mask - mask.min()) / (mask.max() - mask.min())
    inside = [(x, y) for y, row in enumerate(scaled) for x, value in enumerate(row) if value >= threshold]
    columns, rows = [x for x, _ in inside], [y for _, y in inside]
    return min(columns), min(rows), max(columns) + 1, max(rows) + 1


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.8])
def test_the_box_of_a_mask_is_that_of_its_scaled_foreground(threshold):
    mask = np.random.default_rng(0).random((20, 30)).astype(np.float32) ** 8
    found = box_of_mask(mask, (30, 20), SaliencyOptions(threshold, margin=0.0))
    wanted = slow_box(mask, threshold)
    share = (wanted[2] - wanted[0]) * (wanted[3] - wanted[1]) / 600
    assert found.box == (wanted if share <= 0.95 else None)


def test_the_region_and_the_margin_decide_what_a_box_holds():
    mask = np.zeros((100, 100), dtype=np.float32)
    mask[10:30, 10:20] = 1
    mask[60:70, 80:90] = 0.9
    assert box_of_mask(mask, (100, 100), SaliencyOptions(margin=0.0)).box == (10, 10, 90, 70)
    assert box_of_mask(mask, (100, 100), SaliencyOptions(region="largest", margin=0.0)).box == (10, 10, 20, 30)
    assert box_of_mask(mask, (200, 50), SaliencyOptions(region="largest", margin=0.1)).box == (18, 4, 42, 16)


@pytest.mark.parametrize(
    "mask, reason",
    [
        (np.full((50, 50), 0.7), "nothing is salient"),
        (np.linspace(0, 0.1, 2500).reshape(50, 50), "nothing is salient"),
        (np.full((50, 50), np.nan), "nothing is salient"),
        (np.pad(np.ones((49, 50)), ((0, 1), (0, 0))), "the whole picture is salient"),
        (np.pad(np.ones((2, 2)), ((10, 38), (10, 38))), "the salient region is tiny"),
    ],
)
def test_a_degenerate_mask_has_a_reason_and_no_box(mask, reason):
    found = box_of_mask(mask.astype(np.float32), (50, 50))
    assert (found.box, found.reason) == (None, reason)


def test_a_network_finds_the_bright_region_in_pixels_of_the_picture(weights):
    detector = SaliencyDetector(weights, SaliencyOptions(margin=0.0))
    boxes = [(20, 10, 80, 60), (100, 30, 190, 90), (40, 40, 60, 80)]
    found = detector.detect([bright(box) for box in boxes], [None] * 3)
    assert np.abs(np.array(found) - np.array(boxes)).max() <= 1
    assert detector.detect([plain("black"), plain("white")], [None, None]) == [None, None]


@pytest.mark.parametrize("shape", [("batch", 3, 320, 320), (1, 3, 320, 320), (2, 3, 64, 96), ("n", 3, "h", "w")])
def test_a_box_does_not_depend_on_its_batch_nor_on_whether_the_file_fixes_one(shape, tmp_path):
    detector = SaliencyDetector(write_brightness_network(tmp_path / "x.onnx", shape), batch_size=2)
    images = [noise(40, 30, seed).resize((80, 60)) for seed in range(3)] + [bright((20, 10, 80, 60))]
    together = detector.masks(images)
    alone = [detector.masks([image])[0] for image in images]
    assert len(together) == 4
    assert together[0].shape == ((64, 96) if shape[2] == 64 else (320, 320))
    assert all(np.array_equal(one, other) for one, other in zip(together, alone, strict=True))
    assert not np.array_equal(together[0], together[1])


def test_the_processor_takes_it_as_a_detector(weights, tiny_base):
    processor = MoonProcessor.from_base(tiny_base())
    image = bright((40, 20, 120, 80))
    batch = processor(products=[{"title": "plate", "images": image}], detector=SaliencyDetector(weights))
    assert len(batch["image_grid_thw"]) == 2


def test_its_settings_name_the_file_its_contents_and_each_option(weights):
    settings = SaliencyDetector(weights, SaliencyOptions(0.4, "largest", 0.1)).settings
    assert settings.pop("sha256").isalnum()
    assert settings == {"file": "brightness.onnx", "threshold": 0.4, "region": "largest", "margin": 0.1}


def test_what_it_cannot_use_is_refused(weights, tmp_path, monkeypatch):
    with pytest.raises(SaliencyError, match="nowhere.onnx: no such file; expected the ONNX file of a U²-Net"):
        SaliencyDetector(tmp_path / "nowhere.onnx")
    (tmp_path / "text.onnx").write_text("not a network")
    with pytest.raises(SaliencyError, match="not an ONNX file that onnxruntime can run"):
        SaliencyDetector(tmp_path / "text.onnx")
    grey = write_brightness_network(tmp_path / "grey.onnx", ("batch", 1, 320, 320))
    with pytest.raises(SaliencyError, match=r"found the input .*1, 320, 320.*; expected one input \(B, 3, 320, 320\)"):
        SaliencyDetector(grey)
    for name in ("batch_size", "threads"):
        with pytest.raises(OptionError, match=f"{name}: found 0; expected 1 or more"):
            SaliencyDetector(weights, **{name: 0})
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(SaliencyError, match=r"found no onnxruntime; .*pip install 'moon3\[onnx\]'"):
        SaliencyDetector(weights)


@pytest.mark.parametrize(
    "options, found",
    [({"threshold": 1.0}, "threshold: found 1.0"), ({"region": "two"}, "region: found"), ({"margin": -1}, "margin")],
)
def test_options_out_of_range_are_refused(options, found):
    with pytest.raises(OptionError, match=found):
        SaliencyOptions(**options)


@pytest.mark.skipif(not REAL.is_file(), reason="needs ../shared/weights/u2netp.onnx")
def test_the_real_network_finds_one_thing_and_nothing_on_a_blank():
    image = plain("lightgrey", 300, 200)
    ImageDraw.Draw(image).ellipse((60, 50, 160, 150), fill="darkred", outline="black", width=4)
    found, blank = SaliencyDetector(REAL, SaliencyOptions(margin=0.0), threads=1).detections(
        [image, plain("grey", 64)], [None, None]
    )
    assert np.abs(np.array(found.box) - (60, 50, 161, 151)).max() <= 8
    assert (blank.box, blank.reason) == (None, "nothing is salient")
