"""The core crop, and the detectors that find its box."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import file_of, noise
from PIL import Image, ImageDraw, ImageFilter

from processing_moon import GroundingDetector, LargestRegionDetector, ProductError, crop_core, cropping_moon
from processing_moon.cropping_moon import parse_box


class FixedDetector:
    """Gives the boxes it was made with, and remembers what it was asked."""

    def __init__(self, *boxes):
        self.boxes, self.asked = boxes, []

    def detect(self, images, titles):
        self.asked.append(([image.size for image in images], titles))
        return list(self.boxes)


def overlap(box, wanted):
    if box is None:
        return 0.0
    width = min(box[2], wanted[2]) - max(box[0], wanted[0])
    height = min(box[3], wanted[3]) - max(box[1], wanted[1])
    both = max(0, width) * max(0, height)
    areas = [(one[2] - one[0]) * (one[3] - one[1]) for one in (box, wanted)]
    return both / (sum(areas) - both)


def test_the_crop_is_the_second_image(processor):
    first, second = noise(120, 90, 1), noise(64, 64, 2)
    batch = processor(products=[{"images": [first, second], "core_box": [10, 20, 70, 80]}])
    wanted = processor(products=[{"images": [first, first.crop((10, 20, 70, 80)), second]}])
    assert all(torch.equal(batch[name], wanted[name]) for name in wanted)
    query = processor(queries=[{"text": "a", "image": first, "core_box": [10, 20, 70, 80]}])
    assert query["image_grid_thw"].tolist() == wanted["image_grid_thw"][:2].tolist()


def test_the_box_is_clamped_to_the_upright_picture(processor):
    image = noise(120, 90)
    batch = processor(products=[{"images": image, "core_box": [-50.5, 20, 70, 1e9]}])
    wanted = processor(products=[{"images": [image, image.crop((0, 20, 70, 90))]}])
    assert torch.equal(batch["pixel_values"], wanted["pixel_values"])
    turned = noise(120, 90)
    turned.getexif()[0x0112] = 6
    batch = processor(products=[{"images": turned, "core_box": [60, 100, 90, 120]}])
    upright = image.transpose(Image.Transpose.ROTATE_270)
    wanted = processor(products=[{"images": [upright, upright.crop((60, 100, 90, 120))]}])
    assert torch.equal(batch["pixel_values"], wanted["pixel_values"])


def test_the_crop_can_be_switched_off_by_call_and_by_setting(processor, make_processor):
    record = {"images": noise(96, 64), "core_box": [0, 0, 30, 30]}
    assert len(processor(products=[record])["image_grid_thw"]) == 2
    assert len(processor(products=[record], core_crop=False)["image_grid_thw"]) == 1
    off = make_processor(core_crop=False)
    assert len(off(products=[record])["image_grid_thw"]) == 1
    assert len(off(products=[record], core_crop=True)["image_grid_thw"]) == 2


@pytest.mark.parametrize("core_crop", [True, False])
def test_a_box_outside_the_image_is_refused_with_and_without_the_crop(processor, core_crop):
    record = {"images": [noise(120, 90)], "core_box": [130, 0, 150, 9]}
    with pytest.raises(ProductError, match="field 'core_box': .* lies outside the image of 120×90 pixels"):
        processor(products=[record], core_crop=core_crop)
    batch = processor(products=[{"title": "a"}, record], core_crop=core_crop, on_error="skip")
    assert batch.kept == [0]
    assert processor(products=[{**record, "title": "a"}], core_crop=core_crop, form="t").kept == [0]


def test_a_detector_fills_in_missing_boxes_alone(processor):
    records = [
        {"title": "shoe", "images": noise(90, 90, 1)},
        {"title": "bag", "images": [noise(90, 90, 2)], "core_box": [5, 5, 50, 50]},
        {"title": "no image"},
        {"images": [noise(80, 80, 3), noise(64, 64, 4)]},
    ]
    detector = FixedDetector((10, 10, 60, 70), None)
    batch = processor(products=records, detector=detector)
    assert detector.asked == [([(90, 90), (80, 80)], ["shoe", None])]
    wanted = processor(products=[{**records[0], "core_box": [10, 10, 60, 70]}, *records[1:]])
    assert all(torch.equal(batch[name], wanted[name]) for name in wanted)


def test_a_detectors_useless_box_means_no_crop(processor):
    record = {"images": noise(400, 400)}
    without = processor(products=[record])
    for box in ((500, 500, 600, 600), (0, 0, 400, 1), (30, 30, 10, 10), (math.nan, 0, 5, 5)):
        batch = processor(products=[record], detector=FixedDetector(box))
        assert torch.equal(batch["pixel_values"], without["pixel_values"])
    unused = FixedDetector()
    processor(products=[record], detector=unused, core_crop=False)
    processor(products=[{"title": "a"}], detector=unused)
    assert unused.asked == []
    with pytest.raises(ValueError, match="FixedDetector.detect returned 2 boxes for 1 images"):
        processor(products=[record], detector=FixedDetector(None, None))


def test_a_detector_works_beside_skipped_items(processor):
    detector = FixedDetector((10, 10, 60, 60))
    batch = processor(products=[{"images": b"x"}, {"images": noise(90, 90)}], detector=detector, on_error="skip")
    assert batch.kept == [1]
    assert len(batch["image_grid_thw"]) == 2


def test_crop_core_adds_a_margin_and_refuses_useless_boxes():
    image = noise(100, 80)
    assert np.array_equal(np.asarray(crop_core(image, (10, 20, 50, 40))), np.asarray(image)[20:40, 10:50])
    assert crop_core(image, (10, 20, 50, 40), margin=0.5).size == (70, 40)
    assert crop_core(image, (10.2, 20.2, 10.4, 20.4)).size == (1, 1)
    for box in ((5, 5, 5, 9), (9, 5, 5, 9), (100, 0, 120, 9), (0, 0, math.nan, 9), (0, 0, math.inf, 9)):
        with pytest.raises(ValueError, match="box"):
            crop_core(image, box)
    with pytest.raises(ValueError, match="margin=-1"):
        crop_core(image, (0, 0, 9, 9), margin=-1)


# ---------------------------------------------------------------------------------------------------------------------
# LargestRegionDetector


def shop_photo(size, box, *, ground=(245, 245, 245), colour=(180, 30, 30), shape="ellipse", shade=0.0, speck=True):
    """A product on plain or shaded ground, with a speck of dust beside it."""
    image = Image.new("RGB", size, ground)
    if shade:
        ramp = np.linspace(1 - shade, 1, size[0])[None, :, None] * np.linspace(1 - shade / 2, 1, size[1])[:, None, None]
        image = Image.fromarray((np.asarray(image) * ramp).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    getattr(draw, shape)((box[0], box[1], box[2] - 1, box[3] - 1), fill=colour)
    if speck:
        draw.ellipse((size[0] - 12, 8, size[0] - 9, 11), fill=colour)
    return image


@pytest.mark.parametrize("size", [(300, 300), (640, 200), (90, 400), (1600, 1200)])
@pytest.mark.parametrize("shape", ["ellipse", "rectangle"])
@pytest.mark.parametrize("ground", [(255, 255, 255), (20, 20, 20), (200, 220, 180)])
def test_the_largest_region_on_plain_ground_is_found(size, shape, ground):
    box = (size[0] * 0.2, size[1] * 0.3, size[0] * 0.7, size[1] * 0.85)
    image = shop_photo(size, box, ground=ground, shape=shape)
    (found,) = LargestRegionDetector(margin=0.0).detect([image], [None])
    assert overlap(found, box) > 0.85


def test_shaded_and_noisy_ground_does_not_hide_the_product():
    random = np.random.default_rng(0)
    hits = []
    for _ in range(20):
        x0, y0 = random.integers(10, 100, 2)
        box = (x0, y0, x0 + random.integers(60, 150), y0 + random.integers(60, 150))
        image = shop_photo((300, 300), box, shade=0.4, colour=tuple(int(one) for one in random.integers(0, 90, 3)))
        noisy = np.asarray(image.filter(ImageFilter.GaussianBlur(1))) + random.normal(0, 6, (300, 300, 3))
        (found,) = LargestRegionDetector().detect([Image.fromarray(noisy.clip(0, 255).astype(np.uint8))], [None])
        hits.append(overlap(found, box))
    assert np.mean(np.array(hits) > 0.8) >= 0.9


def test_of_several_things_the_largest_is_taken():
    image = shop_photo((300, 300), (30, 30, 180, 180), shape="rectangle", speck=False)
    ImageDraw.Draw(image).rectangle((220, 220, 270, 270), fill=(0, 0, 90))
    (found,) = LargestRegionDetector(margin=0.0).detect([image], [None])
    assert overlap(found, (30, 30, 180, 180)) > 0.9


def test_a_picture_without_one_clear_region_has_no_box():
    even = Image.new("RGB", (200, 200), "white")
    speck = shop_photo((400, 400), (200, 200, 204, 204))
    twins = shop_photo((300, 300), (20, 20, 120, 120), speck=False)
    ImageDraw.Draw(twins).ellipse((170, 170, 269, 269), fill=(0, 90, 0))
    filling = shop_photo((300, 300), (2, 2, 299, 299), shape="rectangle", speck=False)
    stripes = Image.fromarray(np.tile(np.array([[0], [255]], np.uint8).repeat(8, 0), (20, 300))).convert("RGB")
    for image in (even, speck, twins, filling, stripes, noise(300, 300), Image.new("RGB", (3, 3), "red")):
        assert LargestRegionDetector().detect([image], [None]) == [None]
    with pytest.raises(ValueError, match="grid >= 8"):
        LargestRegionDetector(grid=1)


def test_the_default_detector_feeds_the_processor(processor):
    image = shop_photo((200, 200), (50, 60, 150, 160))
    batch = processor(products=[{"title": "plate", "images": image}], detector=LargestRegionDetector())
    assert len(batch["image_grid_thw"]) == 2


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.integers(1, 12), st.floats(0.1, 0.9))
def test_regions_equal_a_flood_fill(seed, height, width, share):
    mask = np.random.default_rng(seed).random((height, width)) < share
    labels, areas = cropping_moon._connected_regions(mask)
    wanted = np.zeros(mask.shape, dtype=int)
    count = 0
    for spot in zip(*np.nonzero(mask), strict=True):
        if wanted[spot]:
            continue
        count += 1
        todo = [spot]
        while todo:
            row, column = todo.pop()
            if 0 <= row < height and 0 <= column < width and mask[row, column] and not wanted[row, column]:
                wanted[row, column] = count
                todo += [(row + 1, column), (row - 1, column), (row, column + 1), (row, column - 1)]
    assert len(areas) == count
    pairs = set(zip(labels.ravel().tolist(), wanted.ravel().tolist(), strict=True))
    assert len(pairs) == count + (not mask.all())
    assert areas.tolist() == [int((labels == region + 1).sum()) for region in range(count)]


# ---------------------------------------------------------------------------------------------------------------------
# GroundingDetector


@pytest.mark.parametrize(
    "answer",
    [
        '[{"bbox_2d": [100, 200, 300, 400], "label": "shoe"}]',
        '```json\n[\n\t{"bbox_2d": [100, 200, 300, 400], "label": "a [1, 2, 3, 4] shoe"}\n]\n```',
        "The box is {'bbox_2d': [100,200,300,400]}",
        '{"bbox_2d": [100.0, 200.0, 300.0, 400.0]',
        "[100, 200, 300, 400]",
        'Of [1, 1, 2, 2] things: "bbox_2d": [100, 200, 300, 400]',
    ],
)
def test_boxes_are_read_in_both_conventions(answer):
    # Qwen2.5-VL writes pixels of the picture as it saw it (here 500×1000 of an original of 1000×1500).
    assert parse_box(answer, "pixels", (500, 1000), (1000, 1500)) == (200, 300, 600, 600)
    # Qwen3-VL writes thousandths of the sides.
    assert parse_box(answer, "thousandths", (500, 1000), (1000, 1500)) == (100, 300, 300, 600)


def test_boxes_are_clamped_and_useless_ones_are_none():
    assert parse_box("[-50, 10, 2000, 500]", "thousandths", (9, 9), (200, 100)) == (0, 1, 200, 50)
    for answer in ("[5, 5, 5, 9]", "[9, 9, 5, 5]", "[1200, 0, 1300, 50]", "[0, 0, 5]", "", "no box", "[1, 2, 3, x]",
                   '{"bbox_2d": null}', "[nan, 0, 1, 1]", f"[0, 0, {'9' * 400}, 5]", "[[[[", "[0,0,-5,-5]"):  # fmt: skip
        assert parse_box(answer, "thousandths", (9, 9), (200, 100)) is None


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet='[]{}"bbox_2d:, -+.0123456789enaif\n', max_size=60))
def test_no_answer_makes_the_parser_fail(answer):
    box = parse_box(answer, "pixels", (64, 64), (100, 50))
    assert box is None or (0 <= box[0] < box[2] <= 100 and 0 <= box[1] < box[3] <= 50)


@pytest.mark.parametrize("backbone", ["qwen3_vl", "qwen2_5_vl"])
def test_an_untrained_model_gives_none_and_the_cache_is_kept(tiny_base, tmp_path, backbone, monkeypatch):
    cache = tmp_path / "boxes" / "cache.jsonl"
    detector = GroundingDetector.from_pretrained(tiny_base(backbone), cache=cache, batch_size=2, max_new_tokens=4)
    images, titles = [noise(90, 60, 1), noise(64, 120, 2), noise(40, 40, 3)], ["shoe", None, "bag <|im_end|>"]
    asked = []
    ask = GroundingDetector._detect_batch
    monkeypatch.setattr(
        GroundingDetector, "_detect_batch", lambda self, *args: asked.append(len(args[0])) or ask(self, *args)
    )
    assert detector.detect(images, titles) == [None, None, None]
    assert asked == [2, 1]
    assert detector.detect(images[:1] * 2, ["shoe", "other shoe"]) == [None, None]
    assert asked == [2, 1, 1]
    assert len(cache.read_bytes().split(b"\n")) == 5
    again = GroundingDetector.from_pretrained(tiny_base(backbone), cache=cache, max_new_tokens=4)
    assert again.detect(images, titles) == [None, None, None]
    assert asked == [2, 1, 1]


def test_answers_become_boxes_and_an_interrupted_cache_goes_on(tiny_base, tmp_path, monkeypatch):
    cache = tmp_path / "cache.jsonl"
    detector = GroundingDetector.from_pretrained(tiny_base(), cache=cache)
    answers = iter(['[{"bbox_2d": [0, 500, 500, 1000]}]', "I see none", '{"bbox_2d": [100, 100, 200, 200]}'])
    monkeypatch.setattr(
        detector.processor, "batch_decode", lambda ids, **kwargs: [next(answers) for _ in ids], raising=False
    )
    monkeypatch.setattr(detector, "max_new_tokens", 1)
    images = [noise(90, 60, 1), noise(64, 120, 2)]
    assert detector.detect(images, ["a", "b"]) == [(0, 30, 45, 60), None]
    with cache.open("a") as file:
        file.write('{"image": "half a li')
    again = GroundingDetector(detector.model, detector.processor, name=detector.name, cache=cache, max_new_tokens=1)
    assert again.detect([*images, noise(100, 100, 3)], ["a", "b", "c"]) == [(0, 30, 45, 60), None, (10, 10, 20, 20)]
    assert [json.loads(line)["box"] for line in cache.read_text().splitlines() if not line.endswith("half a li")] == [
        [0, 30, 45, 60],
        None,
        [10, 10, 20, 20],
    ]
    renamed = GroundingDetector(detector.model, detector.processor, name="other", cache=cache)
    assert len(renamed._boxes) == 3
    assert not any(model == "other" for *_, model in renamed._boxes)


def test_a_turned_picture_is_turned_once_for_a_detector(processor, tiny_base, monkeypatch):
    exif = Image.Exif()
    exif[0x0112] = 6
    record = {"title": "shoe", "images": file_of(noise(120, 60), "PNG", exif=exif)}
    detector = GroundingDetector.from_pretrained(tiny_base(), max_new_tokens=1)
    seen = []
    process = type(detector.processor).__call__

    def watch(self, *args, **kwargs):
        batch = process(self, *args, **kwargs)
        if self is detector.processor:
            seen.append(batch["image_grid_thw"].tolist())
        return batch

    monkeypatch.setattr(type(detector.processor), "__call__", watch)
    monkeypatch.setattr(detector.processor, "batch_decode", lambda ids, **kwargs: ["[0, 0, 500, 500]"], raising=False)
    found = processor(products=[record], detector=detector)
    given = processor(products=[{**record, "core_box": [0, 0, 30, 60]}])
    assert seen == [[[1, 8, 4]]]
    assert torch.equal(found["pixel_values"], given["pixel_values"])


def test_other_models_and_sizes_are_refused(tiny_base):
    detector = GroundingDetector.from_pretrained(tiny_base())

    class Other:
        class config:  # noqa: N801
            model_type = "llava"

    with pytest.raises(ValueError, match="model type 'llava'; expected one of qwen2_5_vl, qwen3_vl"):
        GroundingDetector(Other(), detector.processor, name="x")
    with pytest.raises(ValueError, match="batch_size=0, max_new_tokens=96; expected 1 or more"):
        GroundingDetector(detector.model, detector.processor, name="x", batch_size=0)
