"""Every kind of picture comes out upright, RGB and with the right pixels, or is refused."""

from __future__ import annotations

import io
import struct
import warnings
import zlib

import numpy as np
import pytest
import torch
from pictures import file_of, noise
from PIL import Image, ImageFile

from processing_moon import ImageLimits, ProductError, open_image

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def corners(image):
    width, height = image.size
    return [image.getpixel(spot) for spot in ((0, 0), (width - 1, 0), (0, height - 1), (width - 1, height - 1))]


def quarters(width=40, height=20):
    """Red, green over blue, white: no two turns of it look the same."""
    image = Image.new("RGB", (width, height))
    for spot, colour in zip(((0, 0), (1, 0), (0, 1), (1, 1)), (RED, GREEN, BLUE, WHITE), strict=True):
        image.paste(colour, (spot[0] * width // 2, spot[1] * height // 2, width, height))
    return image


def test_a_picture_is_the_same_from_path_bytes_pil_and_arrays(tmp_path):
    image = noise(96, 64)
    data = file_of(image)
    path = tmp_path / "picture é.png"
    path.write_bytes(data)
    pixels = np.asarray(image)
    channels_first = np.moveaxis(pixels, 2, 0)
    sources = [path, str(path), data, bytearray(data), memoryview(data), image, Image.open(path), pixels, channels_first,
               torch.from_numpy(pixels.copy()), torch.from_numpy(channels_first.copy()) / 255, pixels / 255,
               pixels.astype(np.uint16) * 257, (pixels / 255).astype(np.float16)]  # fmt: skip
    for source in sources:
        opened = open_image(source)
        assert opened.mode == "RGB"
        assert np.array_equal(np.asarray(opened), pixels)


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "PNG", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied(kind, orientation):
    turns = [None, Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.ROTATE_180, Image.Transpose.FLIP_TOP_BOTTOM,
             Image.Transpose.TRANSPOSE, Image.Transpose.ROTATE_90, Image.Transpose.TRANSVERSE,
             Image.Transpose.ROTATE_270]  # fmt: skip
    turn = turns[orientation - 1]  # how a camera with this orientation stores the upright picture
    stored = quarters() if turn is None else quarters().transpose(turn)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 100, "subsampling": 0} if kind == "JPEG" else {"lossless": True} if kind == "WEBP" else {}
    data = file_of(stored, kind, exif=exif, **options)
    for source in (data, Image.open(io.BytesIO(data))):
        opened = open_image(source)
        assert opened.size == (40, 20)
        assert np.abs(np.array(corners(opened)) - np.array([RED, GREEN, BLUE, WHITE])).max() <= 3


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "PNG", "TIFF", "XMP", "own"])
def test_opening_an_opened_picture_again_changes_nothing(kind):
    exif = Image.Exif()
    exif[0x0112] = 6
    xmp = b'<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/>'
    options = {"xmp": xmp} if kind == "XMP" else {"exif": exif}
    source = file_of(quarters(), "JPEG" if kind in ("XMP", "own") else kind, **options)
    if kind == "own":
        source = Image.open(io.BytesIO(source)).copy()
    first = open_image(source)
    assert first.size == (20, 40)
    assert "exif" not in first.info
    again = open_image(open_image(first))
    assert again.size == (20, 40)
    assert np.array_equal(np.asarray(again), np.asarray(first))


def test_broken_exif_data_leaves_the_picture_as_it_is():
    data = file_of(quarters(), "JPEG", quality=100, exif=b"Exif\x00\x00not a tiff header")
    assert open_image(data).size == (40, 20)


def test_a_cmyk_picture_becomes_one_of_rgb():
    for source in (
        Image.new("CMYK", (8, 8), (0, 255, 255, 0)),
        file_of(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG"),
    ):
        assert np.abs(np.array(open_image(source).getpixel((4, 4))) - RED).max() <= 4


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bit_grey_is_scaled_not_clipped(kind):
    grey = np.array([[0, 257, 32896, 65535]], dtype=np.uint16).repeat(4, axis=0)
    wanted = [(value,) * 3 for value in (0, 1, 128, 255)]
    for source in (
        file_of(Image.fromarray(grey), kind),
        Image.fromarray(grey),
        grey,
        Image.fromarray(grey.astype(np.int32)),
    ):
        opened = open_image(source)
        assert [opened.getpixel((place, 2)) for place in range(4)] == wanted


def test_integer_grey_of_eight_bits_is_taken_as_it_is():
    grey = np.array([[0, 1, 128, 255]], dtype=np.int32).repeat(4, axis=0)
    given = Image.fromarray(grey)
    assert given.mode == "I"
    for source in (given, file_of(given, "TIFF"), given.transpose(Image.Transpose.ROTATE_180).rotate(180)):
        assert np.array_equal(np.asarray(open_image(source))[:, :, 0], grey)


@pytest.mark.parametrize("kind", ["PNG", "PPM", "TIFF", "JPEG2000"])
def test_a_dark_file_of_sixteen_bits_stays_dark(kind):
    dark = np.full((4, 4), 200, dtype=np.uint16)
    options = {"irreversible": False} if kind == "JPEG2000" else {}
    for source in (file_of(Image.fromarray(dark), kind, **options), Image.fromarray(dark), dark):
        assert open_image(source).getpixel((0, 0)) == (1, 1, 1)


def test_sixteen_bit_grey_keeps_its_transparent_value():
    grey = np.array([[0, 257, 32896, 30000]], dtype=np.uint16).repeat(4, axis=0)
    data = file_of(Image.fromarray(grey), transparency=32896)
    opened = open_image(data)
    assert [opened.getpixel((place, 2))[0] for place in range(4)] == [0, 1, 255, 117]


def test_integer_grey_outside_sixteen_bits_is_refused():
    with pytest.raises(ProductError, match="grey values from 0 to 70000; expected 0 to 65535"):
        open_image(Image.fromarray(np.array([[0, 70000]], dtype=np.int32)))


def test_one_bit_grey_and_float_pictures_become_rgb():
    bits = np.array([[True, False], [False, True]])
    assert corners(open_image(file_of(Image.fromarray(bits)))) == [WHITE, (0, 0, 0), (0, 0, 0), WHITE]
    assert corners(open_image(bits)) == [WHITE, (0, 0, 0), (0, 0, 0), WHITE]
    assert open_image(file_of(Image.new("L", (4, 4), 77))).getpixel((0, 0)) == (77, 77, 77)
    assert open_image(np.full((7, 5, 1), 77, np.uint8)).getpixel((4, 6)) == (77, 77, 77)
    assert open_image(Image.new("F", (4, 4), 0.5)).getpixel((0, 0)) == (128, 128, 128)
    assert open_image(Image.new("HSV", (4, 4), (0, 255, 255))).getpixel((0, 0)) == RED


def half_clear(mode):
    """Left half opaque red (grey 100 where there is no colour), right half wholly transparent."""
    if mode in ("LA", "La"):
        image = Image.new("LA", (8, 6), (100, 255))
        image.paste((0, 0), (4, 0, 8, 6))
        return image.convert(mode) if mode == "La" else image
    image = Image.new("RGBA", (8, 6), (255, 0, 0, 255))
    image.paste((0, 0, 0, 0), (4, 0, 8, 6))
    return image.convert(mode)


@pytest.mark.parametrize("mode", ["RGBA", "RGBa", "LA", "La"])
def test_transparency_is_composited_on_white(mode):
    image = half_clear(mode)
    left = (100, 100, 100) if mode.startswith("L") else RED
    sources = [image] + ([file_of(image)] if mode in ("RGBA", "LA") else [])
    for source in sources:
        assert corners(open_image(source)) == [left, WHITE, left, WHITE]
    if mode == "RGBA":
        assert corners(open_image(np.asarray(image))) == [RED, WHITE, RED, WHITE]
        assert open_image(Image.new("RGBA", (2, 2), (0, 0, 0, 128))).getpixel((0, 0)) == (127, 127, 127)


@pytest.mark.parametrize("transparency", [1, b"\xff\x00"])
def test_palettes_with_transparency_are_composited_on_white(transparency):
    image = Image.new("P", (8, 4), 0)
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.paste(1, (4, 0, 8, 4))
    assert corners(open_image(file_of(image))) == [RED, BLUE, RED, BLUE]
    kinds = ("PNG",) if isinstance(transparency, bytes) else ("PNG", "GIF")
    for kind in kinds:
        assert corners(open_image(file_of(image, kind, transparency=transparency))) == [RED, WHITE, RED, WHITE]


def test_a_transparent_colour_of_an_rgb_png_is_composited_on_white():
    image = Image.new("RGB", (8, 4), RED)
    image.paste(BLUE, (4, 0, 8, 4))
    assert corners(open_image(file_of(image, transparency=BLUE))) == [RED, WHITE, RED, WHITE]


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_of_an_animation_the_first_frame_is_taken(kind):
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, GREEN, BLUE)]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = file_of(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert Image.open(io.BytesIO(data)).n_frames == 3
    assert open_image(data).getpixel((4, 4)) == RED


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_truncated_files_are_refused(kind, share):
    data = file_of(noise(90, 80), kind)
    with pytest.raises(ProductError, match="truncated|not an image"):
        open_image(data[: int(len(data) * share)])


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_random_damage_gives_a_picture_or_the_documented_error():
    random = np.random.default_rng(0)
    refused = 0
    for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "ICO", "AVIF"):
        data = np.frombuffer(file_of(noise(48, 40), kind), dtype=np.uint8)
        for _ in range(40):
            damaged = data.copy()
            spots = random.integers(0, min(len(data), random.choice([40, 400, 10**6])), random.integers(1, 12))
            damaged[spots] = random.integers(0, 256, len(spots))
            try:
                assert open_image(damaged.tobytes(), limits=ImageLimits(max_pixels=10**6)).mode == "RGB"
            except ProductError:
                refused += 1
    assert refused > 40


def test_a_decompression_bomb_is_refused_before_it_is_decoded():
    small = file_of(Image.new("L", (8, 8)))
    for side in (16_000, 60_000):
        header = struct.pack(">II", side, side)
        body = b"IHDR" + header + small[24:29]
        bomb = small[:12] + body + struct.pack(">I", zlib.crc32(body)) + small[33:]
        for action in ("ignore", "error"):
            with warnings.catch_warnings():
                warnings.simplefilter(action)
                with pytest.raises(ProductError, match="too many pixels"):
                    open_image(bomb)
    before = Image.MAX_IMAGE_PIXELS, warnings.filters[:]
    with pytest.raises(ProductError, match=r"96×64 is too many pixels; expected at most 6000"):
        open_image(Image.new("RGB", (96, 64)), limits=ImageLimits(max_pixels=6000))
    with pytest.raises(ProductError, match="expected at most 10 pixels"):
        open_image(np.zeros((10, 10, 3), np.uint8), limits=ImageLimits(max_pixels=10))
    assert (Image.MAX_IMAGE_PIXELS, warnings.filters[:]) == before
    assert not ImageFile.LOAD_TRUNCATED_IMAGES


def test_formats_that_run_other_programs_are_not_opened(tmp_path):
    path = tmp_path / "drawing.eps"
    Image.new("RGB", (8, 8)).save(path)
    with pytest.raises(ProductError, match="not an image that can be read; expected one of JPEG"):
        open_image(path)


def test_arrays_whose_layout_is_unclear_are_refused():
    for shape in ((3, 5, 3), (4, 7, 1), (3, 3, 3)):
        with pytest.raises(ProductError, match="could be H×W×C and C×H×W"):
            open_image(np.zeros(shape, np.uint8))
    assert open_image(np.zeros((2, 5, 3), np.uint8)).size == (5, 2)
    assert open_image(np.zeros((3, 2, 5), np.uint8)).size == (5, 2)
    assert open_image(torch.zeros(3, 2, 5, dtype=torch.bfloat16)).size == (5, 2)


def test_the_callers_picture_is_not_changed():
    exif = Image.Exif()
    exif[0x0112] = 6
    given = Image.open(io.BytesIO(file_of(quarters(), "JPEG", exif=exif)))
    open_image(given)
    assert given.size == (40, 20)
    assert given.getexif()[0x0112] == 6


def test_an_error_names_item_field_and_survives_pickling():
    import pickle

    with pytest.raises(ProductError) as caught:
        open_image(b"", item="product 3 (id 'x')", field="images[0]")
    error = pickle.loads(pickle.dumps(caught.value))
    assert (error.item, error.field) == ("product 3 (id 'x')", "images[0]")
    assert str(error) == "product 3 (id 'x'), field 'images[0]': the bytes: empty (zero bytes); expected an image file"


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_a_picture_is_admitted_by_its_pixels_before_it_is_decoded(kind, monkeypatch):
    admitted, data = [], file_of(noise(40, 30), kind)
    assert open_image(data, limits=ImageLimits(admit=admitted.append)).size == (40, 30)
    assert admitted == [1200]

    def refuse(pixels):
        raise RuntimeError(f"{pixels} are too many now")

    monkeypatch.setattr(Image.Image, "load", lambda _: pytest.fail("it was decoded"))
    with pytest.raises(RuntimeError, match="1200 are too many now"):
        open_image(data, limits=ImageLimits(admit=refuse))
