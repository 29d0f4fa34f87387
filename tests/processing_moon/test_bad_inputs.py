"""Every kind of bad input gives the documented error, or with on_error="skip" a record of what was left out and why."""

from __future__ import annotations

import os
import re
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pictures import file_of, noise
from PIL import Image

from processing_moon import ProductError

PRODUCT, QUERY = "products", "queries"


def _image(kind: str = "RGB", size: tuple[int, int] = (40, 30), colour: Any = None) -> Image.Image:
    return Image.new(kind, size, colour)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Bad files by name, as paths or bytes."""
    folder = tmp_path_factory.mktemp("bad")
    made: dict[str, Any] = {}

    def keep(name: str, data: bytes) -> None:
        (folder / name).write_bytes(data)
        made[name] = str(folder / name)
        made[f"{name} bytes"] = data

    for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"):
        data = file_of(noise(80, 60), kind)
        keep(f"truncated {kind}", data[: len(data) * 2 // 3])
    keep("empty", b"")
    keep("text", b"this is no picture\n" * 20)
    keep("html.jpg", b"<html><body>404</body></html>")
    keep("signature", file_of(_image(), "PNG")[:8])
    keep("pdf", b"%PDF-1.4\n%\xe2\xe3")
    keep("svg", b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>')
    eps = folder / "eps"
    _image().save(eps, "EPS")
    made["eps"] = str(eps)
    png = file_of(_image("L", (8, 8)))
    header = b"IHDR" + struct.pack(">II", 50_000, 50_000) + png[24:29]
    keep("bomb", png[:12] + header + struct.pack(">I", zlib.crc32(header)) + png[33:])
    damaged = bytearray(file_of(noise(80, 60), "PNG"))
    damaged[300:330] = b"\xff" * 30
    keep("damaged PNG", bytes(damaged))
    made["folder"] = str(folder)
    made["missing"] = str(folder / "missing.png")
    os.mkfifo(folder / "pipe")
    made["pipe"] = str(folder / "pipe")
    closed = Image.open(made["truncated PNG"])
    closed.close()
    made["closed"] = closed
    made["lazy"] = Image.open(made["truncated JPEG"])
    return made


def _nan() -> np.ndarray:
    pixels = np.full((20, 30, 3), 0.5)
    pixels[3, 4, 1] = np.nan
    return pixels


UNWRITTEN = "of a size that cannot be written out"
BOX = {"images": _image(), "title": "box"}
# name: (kind, record or function of the files, field of the error, words of the error)
CASES: dict[str, tuple[str, Any, str, str]] = {
    # Records
    "a string for a record": (PRODUCT, "red shoes", "record", "found str 'red shoes'; expected a dict"),
    "None for a record": (PRODUCT, None, "record", "found NoneType"),
    "a list for a record": (QUERY, ["red"], "record", "found list"),
    "an empty product": (PRODUCT, {}, "record", "neither text nor an image"),
    "an empty query": (QUERY, {}, "record", "neither text nor an image"),
    "a product of an id alone": (PRODUCT, {"id": "x"}, "record", "neither text nor an image"),
    "empty fields only": (PRODUCT, {"title": "", "images": [], "category": [], "attributes": {}}, "record", "neither text"),
    "white space only": (PRODUCT, {"title": " \n\t", "description": "  "}, "record", "neither text nor an image"),
    "an empty query text": (QUERY, {"text": ""}, "record", "neither text nor an image"),
    "a blank query text": (QUERY, {"text": "   "}, "record", "neither text nor an image"),
    "empty attribute values only": (PRODUCT, {"attributes": {"colour": ["", None]}}, "record", "neither text"),
    "a misspelt field": (PRODUCT, {"titel": "red"}, "titel", "unknown field; did you mean 'title'?"),
    "an unknown field": (PRODUCT, {"title": "red", "price": 3}, "price", "unknown field; expected one of title, description"),
    "a query field in a product": (PRODUCT, {"title": "red", "text": "red"}, "text", "unknown field"),
    "a product field in a query": (QUERY, {"text": "red", "title": "red"}, "title", "unknown field"),
    "images in a query": (QUERY, {"images": [_image()]}, "images", "unknown field; did you mean 'image'?"),
    # Text
    "a number as title": (PRODUCT, {"title": 3}, "title", "found int 3; expected a string"),
    "NaN as title": (PRODUCT, {"title": float("nan")}, "title", "found float nan; expected a string"),
    "bytes as title": (PRODUCT, {"title": b"red"}, "title", "found bytes"),
    "a list as title": (PRODUCT, {"title": ["red"]}, "title", "found list"),
    "half a surrogate pair": (PRODUCT, {"title": "red \ud83d"}, "title", "not valid Unicode"),
    "a dict as description": (PRODUCT, {"description": {"en": "red"}}, "description", "found dict"),
    "a number as query text": (QUERY, {"text": 7}, "text", "found int 7"),
    "a dict as category": (PRODUCT, {"category": {"a": 1}}, "category", "expected a string or a list of strings"),
    "a number as category": (PRODUCT, {"category": 12}, "category", "found int 12"),
    "a number in the category path": (PRODUCT, {"category": ["Shoes", 2]}, "category[1]", "found int 2"),
    "a list of attributes": (PRODUCT, {"attributes": [("a", "b")]}, "attributes", "expected a dict of key to value"),
    "attributes as one string": (PRODUCT, {"attributes": "colour: red"}, "attributes", "found str"),
    "an empty attribute key": (PRODUCT, {"attributes": {" ": "red"}}, "attributes", "keys that are non-empty strings"),
    "a number as attribute key": (PRODUCT, {"attributes": {1: "red"}}, "attributes", "keys that are non-empty strings"),
    "a dict as attribute value": (PRODUCT, {"attributes": {"a": {"b": "c"}}}, "attributes['a']", "found dict"),
    "a NaN attribute value": (PRODUCT, {"attributes": {"size": float("nan")}}, "attributes['size']", "a finite number"),
    "a truth value as attribute": (PRODUCT, {"attributes": {"new": True}}, "attributes['new']", "found bool"),
    "an attribute value beyond all floats": (PRODUCT, {"attributes": {"size": 10**400}}, "attributes['size']", "a finite number"),
    "an attribute value too long to be written": (PRODUCT, {"attributes": {"size": [10**5000]}}, "attributes['size']",
                                                  f"found int {UNWRITTEN}"),
    "a title too long to be written": (PRODUCT, {"title": [10**5000]}, "title", f"found list {UNWRITTEN}"),
    "a field named by a huge number": (PRODUCT, {"title": "a", 10**5000: 1}, UNWRITTEN, "unknown field"),
    # Files
    "a missing file": (PRODUCT, lambda f: {"images": [f["missing"]]}, "images[0]", "no such file"),
    "a title where an image belongs": (PRODUCT, {"images": "red running shoes"}, "images", "no such file"),
    "an empty path": (PRODUCT, {"images": ""}, "images", "no such file"),
    "a path with a zero byte": (PRODUCT, {"images": "a\0b.png"}, "images", "not a readable path"),
    "a path that is too long": (PRODUCT, {"images": "x" * 5000}, "images", "not a readable path"),
    "a directory": (PRODUCT, lambda f: {"images": f["folder"]}, "images", "is a directory"),
    "a pipe": (PRODUCT, lambda f: {"images": f["pipe"]}, "images", "is not a regular file"),
    "a device": (QUERY, {"image": "/dev/zero"}, "image", "is not a regular file"),
    "an empty file": (PRODUCT, lambda f: {"images": [_image(), f["empty"]]}, "images[1]", "empty (zero bytes)"),
    "zero bytes": (QUERY, {"image": b""}, "image", "empty (zero bytes)"),
    "a text file": (PRODUCT, lambda f: {"images": f["text"]}, "images", "not an image that can be read"),
    "an error page named .jpg": (PRODUCT, lambda f: {"images": f["html.jpg"]}, "images", "not an image"),
    "a PDF": (QUERY, lambda f: {"image": f["pdf"]}, "image", "not an image"),
    "an SVG": (QUERY, lambda f: {"image": f["svg bytes"]}, "image", "not an image"),
    "an EPS": (QUERY, lambda f: {"image": f["eps"]}, "image", "not an image"),
    "a signature without a picture": (QUERY, lambda f: {"image": f["signature bytes"]}, "image", "not an image"),
    "a truncated JPEG": (PRODUCT, lambda f: {"images": f["truncated JPEG"]}, "images", "truncated JPEG image"),
    "a truncated PNG": (PRODUCT, lambda f: {"images": f["truncated PNG bytes"]}, "images", "truncated PNG image"),
    "a truncated WebP": (QUERY, lambda f: {"image": f["truncated WEBP"]}, "image", "image"),
    "a truncated GIF": (QUERY, lambda f: {"image": f["truncated GIF"]}, "image", "truncated GIF image"),
    "a truncated BMP": (QUERY, lambda f: {"image": f["truncated BMP"]}, "image", "truncated BMP image"),
    "a truncated TIFF": (QUERY, lambda f: {"image": f["truncated TIFF"]}, "image", "image"),
    "a damaged PNG": (QUERY, lambda f: {"image": f["damaged PNG"]}, "image", "damaged or truncated PNG image"),
    "a decompression bomb": (PRODUCT, lambda f: {"images": f["bomb"]}, "images", "too many pixels"),
    "a closed PIL image": (QUERY, lambda f: {"image": f["closed"]}, "image", "damaged or truncated PNG image"),
    "a truncated PIL image not yet loaded": (QUERY, lambda f: {"image": f["lazy"]}, "image", "truncated JPEG image"),
    # Pixels
    "a PIL image without pixels": (QUERY, {"image": _image(size=(0, 5))}, "image", "has no pixels"),
    "a long thin strip": (PRODUCT, {"images": _image(size=(4020, 20))}, "images", "4020×20 is too long and thin"),
    "an array with NaN": (PRODUCT, {"images": _nan()}, "images", "NaN or infinite"),
    "an array with infinity": (QUERY, {"image": np.full((9, 9), np.inf)}, "image", "NaN or infinite"),
    "floats up to 255": (QUERY, {"image": np.full((9, 9, 3), 200.0)}, "image", "float values from 200 to 200"),
    "negative floats": (QUERY, {"image": np.full((9, 9, 3), -0.5)}, "image", "float values from -0.5"),
    "an array of int64": (QUERY, {"image": np.zeros((9, 9, 3), np.int64)}, "image", "an array of int64"),
    "an array of strings": (QUERY, {"image": np.array([["a"]])}, "image", "an array of <U1"),
    "an empty array": (QUERY, {"image": np.zeros((0, 9, 3), np.uint8)}, "image", "shape (0, 9, 3)"),
    "a vector": (QUERY, {"image": np.zeros(9, np.uint8)}, "image", "shape (9,)"),
    "a batch of images as one": (PRODUCT, {"images": np.zeros((2, 9, 9, 3), np.uint8)}, "images", "shape (2, 9, 9, 3)"),
    "an array of five channels": (QUERY, {"image": np.zeros((9, 9, 5), np.uint8)}, "image", "has no axis of channels"),
    "an array that could lie both ways": (QUERY, {"image": np.zeros((3, 9, 3), np.uint8)}, "image", "could be H×W×C"),
    "a tensor with NaN": (QUERY, {"image": torch.full((3, 9, 9), float("nan"))}, "image", "NaN or infinite"),
    "a tensor without memory": (QUERY, {"image": torch.zeros(3, 9, 9, device="meta")}, "image", "not a dense array in memory"),
    "a sparse tensor": (PRODUCT, {"images": torch.zeros(9, 9).to_sparse()}, "images", "torch.sparse_coo, on cpu"),
    "a tensor of 8-bit floats": (QUERY, {"image": torch.zeros(9, 9).to(torch.float8_e4m3fn)}, "image", "torch.float8_e4m3fn"),
    "a tensor of complex numbers": (QUERY, {"image": torch.zeros(9, 9) * 1j}, "image", "an array of complex64"),
    "an image that is None in a list": (PRODUCT, {"images": [_image(), None]}, "images[1]", "found None"),
    "a number as image": (QUERY, {"image": 5}, "image", "found int 5; expected a path"),
    "a dict as image": (PRODUCT, {"images": [{"url": "x"}]}, "images[0]", "found dict"),
    "a list as a query's image": (QUERY, {"image": [_image()]}, "image", "expected one image"),
    # Addresses
    "a URL that was not allowed": (PRODUCT, {"images": "https://example.com/a.png"}, "images", "unless allow_urls=True"),
    "a file: URL": (PRODUCT, {"images": "file:///etc/passwd"}, "images", "a file: URL is not opened"),
    "an ftp: URL": (QUERY, {"image": "ftp://example.com/a.png"}, "image", "a ftp: URL is not opened"),
    "a data: URL": (QUERY, {"image": "data:image/png;base64,AAAA"}, "image", "a data: URL is not opened"),
    # Boxes
    "a box of three numbers": (PRODUCT, {**BOX, "core_box": [0, 0, 5]}, "core_box", "expected [x0, y0, x1, y1]"),
    "a box of words": (PRODUCT, {**BOX, "core_box": ["a", 0, 5, 5]}, "core_box", "expected [x0, y0, x1, y1]"),
    "a box with NaN": (PRODUCT, {**BOX, "core_box": [0, 0, float("nan"), 5]}, "core_box", "is not finite"),
    "a box with infinity": (PRODUCT, {**BOX, "core_box": [0, 0, float("inf"), 5]}, "core_box", "is not finite"),
    "a box without memory": (PRODUCT, {**BOX, "core_box": torch.zeros(4, device="meta")}, "core_box", "which cannot be read"),
    "a box beyond all floats": (PRODUCT, {**BOX, "core_box": [0, 0, 10**400, 5]}, "core_box", "a side is not finite"),
    "a box too long to be written": (PRODUCT, {**BOX, "core_box": [0, 0, 10**5000, 5]}, "core_box", "a side is not finite"),
    "a box of complex numbers": (PRODUCT, {**BOX, "core_box": list(np.array([0, 0, 5j, 5]))}, "core_box", "expected [x0, y0"),
    "an inverted box": (PRODUCT, {**BOX, "core_box": [20, 0, 5, 5]}, "core_box", "inverted or without area"),
    "a box without area": (QUERY, {"image": _image(), "core_box": [5, 5, 5, 9]}, "core_box", "inverted or without area"),
    "a box outside the image": (QUERY, {"image": _image(), "core_box": [90, 90, 99, 99]}, "core_box", "the image of 40×30"),
    "a box left of the image": (PRODUCT, {**BOX, "core_box": [-9, 0, -1, 5]}, "core_box", "lies outside"),
    "a box without an image": (PRODUCT, {"title": "red", "core_box": [0, 0, 5, 5]}, "core_box", "found a box without an image"),
    "a box beside a text query": (QUERY, {"text": "red", "core_box": [0, 0, 5, 5]}, "core_box", "found a box without an image"),
    "a thin crop": (PRODUCT, {"images": _image(size=(900, 900)), "core_box": [0, 0, 900, 3]}, "core_box", "too long and thin"),
}  # fmt: skip


def test_there_are_at_least_sixty_cases():
    assert len(CASES) >= 60


def _made(case: str, files: dict[str, Any]) -> tuple[str, Any, str, str]:
    kind, record, field, words = CASES[case]
    return kind, record(files) if callable(record) else record, field, words


@pytest.mark.parametrize("case", CASES)
def test_a_bad_input_is_refused_by_item_field_and_reason(processor, files, case):
    kind, record, field, words = _made(case, files)
    singular = {"products": "product", "queries": "query"}[kind]
    with pytest.raises(ProductError, match=re.escape(words)) as caught:
        processor(**{kind: [record]})
    assert caught.value.field == field
    assert caught.value.item.startswith(f"{singular} 0")
    assert str(caught.value).startswith(f"{singular} 0")


@pytest.mark.parametrize("case", CASES)
def test_a_bad_input_is_skipped_and_the_others_keep_their_tensors(processor, files, case):
    kind, record, field, words = _made(case, files)
    good = [{"title": "red shoe", "images": noise(96, 64)}, {"title": "a longer title of a brown bag"}]
    if kind == QUERY:
        good = [{"text": "red shoe", "image": noise(96, 64)}, {"text": "a longer query for a brown bag"}]
    batch = processor(**{kind: [good[0], record, good[1]]}, on_error="skip")
    wanted = processor(**{kind: good})
    assert batch.kept == [0, 2]
    (skipped,) = batch.skipped
    assert (skipped.index, skipped.field) == (1, field)
    assert words in skipped.reason
    assert set(batch) == set(wanted)
    assert all(torch.equal(batch[name], wanted[name]) for name in wanted)


def test_a_batch_of_bad_inputs_alone_is_empty_in_skip_mode(processor, files):
    records = [_made(case, files)[1] for case in CASES if CASES[case][0] == PRODUCT]
    batch = processor(products=records, on_error="skip")
    assert not dict(batch)
    assert batch.kept == []
    assert [one.index for one in batch.skipped] == list(range(len(records)))
    with pytest.raises(ProductError, match="product 0"):
        processor(products=records)


def test_an_item_over_the_budget_is_skipped_too(processor):
    records = [{"title": "red"}, {"images": [noise(200, 200)] * 30}, {"title": "blue"}]
    batch = processor(products=records, max_tokens=150, on_error="skip")
    assert batch.kept == [0, 2]
    assert batch.skipped[0].field == "max_tokens"
    assert "30 image tokens" in batch.skipped[0].reason


def test_the_id_names_the_item(processor):
    with pytest.raises(
        ProductError, match=re.escape("product 1 (id 'sku-7'), field 'title': found int 3; expected a string")
    ):
        processor(products=[{"title": "red"}, {"id": "sku-7", "title": 3}])
    with pytest.raises(ProductError, match=r"query 0 \(id 42\)"):
        processor(queries=[{"id": 42, "text": ""}])


def test_an_id_of_any_length_names_the_item(processor):
    with pytest.raises(ProductError, match=r"product 0 \(id of a size that cannot be written out\)"):
        processor(products=[{"id": 10**5000}])


def test_a_box_of_the_largest_floats_is_the_whole_picture(processor):
    box = [-1.7e308, -1.7e308, 1.7e308, 1.7e308]
    batch = processor(products=[{**BOX, "core_box": box}])
    assert torch.equal(batch["pixel_values"], processor(products=[{**BOX, "images": [_image()] * 2}])["pixel_values"])


def test_tiny_pictures_are_handled(processor):
    for size in ((1, 1), (1, 200), (200, 1), (2, 3)):
        batch = processor(products=[{"images": Image.new("RGB", size, "red")}])
        assert batch["mm_token_type_ids"].sum() == batch["image_grid_thw"].prod() // 4 >= 1


def test_an_error_does_not_hold_the_file_open(processor, files):
    before = len(list(Path("/proc/self/fd").iterdir())) if Path("/proc/self/fd").exists() else 0
    for _ in range(20):
        processor(products=[{"images": files["truncated JPEG"]}], on_error="skip")
    after = len(list(Path("/proc/self/fd").iterdir())) if Path("/proc/self/fd").exists() else 0
    assert after <= before + 2
