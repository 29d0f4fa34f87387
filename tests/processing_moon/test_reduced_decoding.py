"""JPEG files decoded at a reduced scale: upright, aligned and near the full decoding, and bit for bit as before when off."""

from __future__ import annotations

import io
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from pictures import file_of, noise
from PIL import Image, ImageDraw

from processing_moon import ImageLimits, MoonProcessor, ProductError, images_moon, open_image
from processing_moon.images_moon import Picture, open_picture
from processing_moon.picture_cache_moon import PictureCache, source_key
from processing_moon.pixels_moon import least_size, target_size

SHARED = Path(__file__).parents[2] / ".." / "shared" / "data"


def photo(width: int = 1000, height: int = 1300) -> Image.Image:
    """A sharp picture: fine stripes, text and areas of colour, with four different corners."""
    image = Image.new("RGB", (width, height), (240, 235, 225))
    draw = ImageDraw.Draw(image)
    for place in range(0, width // 2, 6):
        draw.line((place, 0, place, height // 2), fill=(30, 60, 160), width=3)
    draw.ellipse((width * 0.4, height * 0.4, width * 0.9, height * 0.8), fill=(180, 40, 30))
    draw.rectangle((width * 0.8, 0, width, height * 0.2), fill=(20, 140, 60))
    draw.rectangle((0, height * 0.85, width * 0.15, height), fill=(250, 200, 0))
    for row in range(height // 2, height, 24):
        draw.text((10, row), f"100 % cotton, size {row}", fill=(0, 0, 0))
    return image


def jpeg(image: Image.Image, **options) -> bytes:
    return file_of(image, "JPEG", **{"quality": 92, **options})


def pixels(processor: MoonProcessor, source, reduced: bool, **record) -> np.ndarray:
    batch = processor(products=[{"images": source, **record}], reduced_decoding=reduced)
    return batch["pixel_values"].numpy()


@pytest.fixture(scope="module")
def small(make_processor):
    return make_processor(max_image_tokens=49, max_tokens=400)


def levels(full: np.ndarray, reduced: np.ndarray) -> np.ndarray:
    """Differences in grey levels of 255; the tiny base maps bytes to [-1, 1]."""
    assert full.shape == reduced.shape
    return np.abs(full - reduced) * 127.5


def test_a_large_jpeg_is_decoded_at_the_smallest_scale_that_keeps_twice_the_target(small) -> None:
    least = partial(least_size, image_processor=small.image_processor, max_image_tokens=49)
    for size, scale in (((1000, 1300), 2), ((4000, 5200), 8), ((2100, 2700), 4), ((400, 300), 1), ((3, 5), 1)):
        opened = open_picture(jpeg(noise(*size)), least_size=least)
        assert (opened.size, opened.scale) == (size, scale)
        assert opened.image.size == tuple(-(-side // scale) for side in size)
        if scale > 1:
            wanted = target_size(size, small.image_processor, 49)
            assert all(have >= 2 * want for have, want in zip(opened.image.size, wanted, strict=True))


@pytest.mark.parametrize("size", [(1000, 1300), (1001, 1333), (1999, 903)])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"subsampling": 2}])
def test_sharp_pictures_differ_by_little(small, size, options) -> None:
    data = jpeg(photo(*size), **options)
    difference = levels(pixels(small, data, False), pixels(small, data, True))
    assert 0 < difference.mean() < 1.0
    assert np.quantile(difference, 0.99) < 8


@pytest.mark.parametrize("size", [(1000, 1300), (1003, 1301)])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_turned_pictures_are_as_upright_and_as_aligned_as_with_full_decoding(small, orientation, size) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = jpeg(photo(*size), exif=exif)
    least = partial(least_size, image_processor=small.image_processor, max_image_tokens=49)
    opened = open_picture(data, least_size=least)
    assert opened.size == open_image(data).size
    assert opened.scale == 2
    difference = levels(pixels(small, data, False), pixels(small, data, True))
    assert difference.mean() < 1.0


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_grey_and_cmyk_files_are_reduced_too(small, mode) -> None:
    data = jpeg(photo().convert(mode))
    assert levels(pixels(small, data, False), pixels(small, data, True)).mean() < 1.0


@pytest.mark.parametrize("box", [[100, 100, 300, 350], [0, 0, 1000, 1300], [801.5, 0, 1100, 255], [10, 10, 14, 13]])
def test_the_core_crop_keeps_its_own_resolution(small, box) -> None:
    data = jpeg(photo())
    full, reduced = (pixels(small, data, how, core_box=box) for how in (False, True))
    assert levels(full, reduced).mean() < 1.0
    least = least_size((1000, 1300), small.image_processor, 49, tuple(box))
    crop = min(box[2], 1000) - box[0]
    assert least[0] >= 1000 / crop * 2 * 32 or box == [10, 10, 14, 13]
    assert least_size((1000, 1300), small.image_processor, 49, (10, 10, 14, 13)) > (1000, 1300)


def test_without_the_crop_a_box_does_not_hinder_the_reduction(small, monkeypatch) -> None:
    scales = []
    monkeypatch.setattr(
        images_moon, "_reduce", lambda *a, own=images_moon._reduce: scales.append(own(*a)) or scales[-1]
    )
    record = {"images": jpeg(photo()), "core_box": [10, 10, 60, 60]}
    for crop in (True, False):
        small(products=[record], reduced_decoding=True, core_crop=crop)
    assert scales == [1, 2]


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF", "TIFF", "BMP"])
def test_other_formats_are_decoded_in_full(small, kind) -> None:
    data = file_of(photo(500, 650), kind)
    opened = open_picture(data, least_size=lambda size: (16, 16))
    assert (opened.scale, opened.image.size) == (1, (500, 650))
    assert np.array_equal(np.asarray(opened.image), np.asarray(open_image(data)))
    assert (
        levels(pixels(small, data, False), pixels(small, data, True)).max() <= 2.01
    )  # torch's filter rounds differently


def test_pictures_that_are_passed_as_images_stay_as_they_are(small) -> None:
    given = Image.open(io.BytesIO(jpeg(photo())))
    small(products=[{"images": given}], reduced_decoding=True)
    assert given.size == (1000, 1300)


@pytest.mark.parametrize("size", [(1, 1), (1, 150), (150, 1), (7, 3), (33, 2)])
def test_tiny_and_thin_pictures_are_embedded(small, size) -> None:
    data = jpeg(noise(*size), subsampling=0)
    assert levels(pixels(small, data, False), pixels(small, data, True)).max() <= 2.01


def test_the_limit_of_pixels_holds_for_the_full_scale_and_damage_is_found(small) -> None:
    data = jpeg(photo())
    with pytest.raises(ProductError, match=r"1000×1300 is too many pixels; expected at most 1000000"):
        open_picture(data, limits=ImageLimits(max_pixels=10**6), least_size=lambda size: (10, 10))
    for source in (data[: len(data) // 2], b"nonsense", b""):
        errors = []
        for reduced in (False, True):
            (skipped,) = small(products=[{"images": source}], reduced_decoding=reduced, on_error="skip").skipped
            errors.append(skipped)
        assert errors[0] == errors[1]


def test_switched_off_the_pixels_are_those_of_the_plain_pipeline_bit_by_bit(small) -> None:
    data = jpeg(photo())
    size = target_size((1000, 1300), small.image_processor, 49)
    with Image.open(io.BytesIO(data)) as image:
        plain = image.convert("RGB").resize(size, Image.Resampling.BICUBIC)
    wanted = small(products=[{"images": plain}])["pixel_values"]
    assert not small.reduced_decoding
    assert torch.equal(small(products=[{"images": data}])["pixel_values"], wanted)
    assert torch.equal(small(products=[{"images": data}], reduced_decoding=False)["pixel_values"], wanted)
    assert not torch.equal(small(products=[{"images": data}], reduced_decoding=True)["pixel_values"], wanted)


def test_the_setting_is_saved_and_loaded_and_older_checkpoints_have_it_off(make_processor, tmp_path) -> None:
    processor = make_processor(reduced_decoding=True, max_image_tokens=49)
    processor.save_pretrained(tmp_path)
    loaded = MoonProcessor.from_pretrained(tmp_path)
    assert loaded.reduced_decoding is True
    data = jpeg(photo())
    batches = [one(products=[{"images": data}])["pixel_values"] for one in (processor, loaded)]
    assert torch.equal(*batches)
    config = tmp_path / "processor_config.json"
    config.write_text(config.read_text().replace('"reduced_decoding": true,', ""))
    assert MoonProcessor.from_pretrained(tmp_path).reduced_decoding is False
    with pytest.raises(ValueError, match="reduced_decoding='yes' is not known"):
        make_processor(reduced_decoding="yes")


def test_torchs_filter_is_pillows() -> None:
    image = photo(501, 667)
    picture = Picture(image, image.size)
    for size in ((192, 224), (700, 800), (501, 667), (32, 32)):
        for name in ("BICUBIC", "BILINEAR", "LANCZOS"):
            resample = Image.Resampling[name]
            plain, fast = (
                np.asarray(picture.resized(size, resample, vectorized=how)).astype(int) for how in (False, True)
            )
            assert np.abs(plain - fast).max() <= (0 if name == "LANCZOS" else 2)
    ends_within_a_pixel = Picture(image, (1001, 1333), 2)
    plain, fast = (
        np.asarray(ends_within_a_pixel.resized((192, 224), Image.Resampling.BICUBIC, vectorized=how)).astype(int)
        for how in (False, True)
    )
    assert np.abs(plain - fast).mean() < 0.2


def test_the_cache_opens_a_shared_file_once_and_forgets_the_least_recently_used(small, monkeypatch) -> None:
    opened = []
    own = images_moon._decode_opened
    monkeypatch.setattr(images_moon, "_decode_opened", lambda *a: opened.append(1) or own(*a))
    data, other = jpeg(photo()), jpeg(photo(900, 900))
    records = [{"title": "red", "images": data}, {"title": "blue", "images": bytes(bytearray(data))}]
    records += [{"images": [data, other]}, {"images": data, "core_box": [100, 100, 300, 300]}]
    without = small(products=records, reduced_decoding=True)
    assert len(opened) == 5
    opened.clear()
    cache = PictureCache()
    batch = small(products=records, reduced_decoding=True, picture_cache=cache)
    assert len(opened) == 3  # both files, and the first one again at the scale of the crop
    assert torch.equal(batch["pixel_values"], without["pixel_values"])
    opened.clear()
    assert torch.equal(
        small(products=records, picture_cache=PictureCache())["pixel_values"], small(products=records)["pixel_values"]
    )

    made = []
    tiny = PictureCache(max_bytes=3 * 3 * 32 * 32)
    for key in ("a", "b", "c", "a", "d", "b", "a"):
        tiny.get(key, lambda key=key: made.append(key) or noise())
    assert made == ["a", "b", "c", "d", "b"]
    tiny.get("large", lambda: made.append("large") or noise(100, 100))
    tiny.get("a", lambda: made.append("a again") or noise())
    assert made[5:] == ["large"]
    tiny.clear()
    tiny.get("a", lambda: made.append("a again") or noise())
    assert made[-1] == "a again"
    with pytest.raises(ValueError, match="max_bytes=-1"):
        PictureCache(-1)
    assert source_key("a.jpg") == source_key(Path("a.jpg")) != source_key(b"a.jpg")
    assert source_key(noise()) is None


def test_photos_of_a_shop_differ_by_little(small) -> None:
    table = SHARED / "grocery" / "products.parquet"
    if not table.is_file():
        pytest.skip("no shared photos on this machine")
    import pyarrow.parquet

    files = [row[0]["bytes"] for row in pyarrow.parquet.read_table(table)["images"].to_pylist()]
    enlarged = [jpeg(open_image(file).resize((1000, 1300), Image.Resampling.BICUBIC)) for file in files[:6]]
    for data in [*files[:12], *enlarged]:
        assert levels(pixels(small, data, False), pixels(small, data, True)).mean() < 1.0
