"""Draw an overview picture of the embedded catalogue for the README, from the tables of `make_catalogue`."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from product_data.catalogue.products import FAMILY_SIZE, PRODUCT_TYPES

Row = dict[str, Any]
WIDTH, MARGIN, GAP = 1200, 24, 8
PAPER, INK, GREY, FRAME = (252, 251, 248), (38, 36, 48), (120, 118, 128), (222, 219, 212)
GOOD, BAD, BOX = (44, 140, 84), (196, 74, 64), (230, 40, 60)
PICTURE = 144


def draw_sheet(products: list[Row], queries: list[Row]) -> Image.Image:
    """Draw an RGB picture 1,200 pixels wide: every type, photos with boxes, near-twins, and queries with their answers.

    Args:
        products, queries: a catalogue with a family of each type, in pictures of `PICTURE` pixels.
    """
    sections = (
        ("Product types in a three-level category tree", _types(products)),
        (
            "The same product as shops show it and as shoppers photograph it; the core box is known",
            _photos(products, queries),
        ),
        ("Near-twins: same category, exactly one attribute differs", _twins(products)),
        ("Queries: what is asked, the answers (green) and hard negatives (red)", _questions(products, queries)),
    )
    sheet = Image.new("RGB", (WIDTH, MARGIN + sum(body.height + 56 for _, body in sections)), PAPER)
    y = MARGIN
    for heading, body in sections:
        ImageDraw.Draw(sheet).text((MARGIN, y), heading, INK, _font(20))
        sheet.paste(body, (MARGIN, y + 34))
        y += body.height + 56
    return sheet


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _open(
    data: bytes, size: int, box: Sequence[float] | None = None, frame: tuple[int, int, int] = FRAME
) -> Image.Image:
    """Open a picture at (size, size), and draw a frame and the core box, if it is given."""
    picture = Image.open(io.BytesIO(data)).convert("RGB").resize((size, size), Image.Resampling.LANCZOS)
    pen = ImageDraw.Draw(picture)
    if box:
        x0, y0, x1, y1 = (v * size / PICTURE for v in box)
        pen.rectangle((x0, y0, x1 - 1, y1 - 1), outline=BOX, width=2)
    pen.rectangle((0, 0, size - 1, size - 1), outline=frame, width=1 if frame == FRAME else 3)
    return picture


def _panel(height: int) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    panel = Image.new("RGB", (WIDTH - 2 * MARGIN, height), PAPER)
    return panel, ImageDraw.Draw(panel)


def _caption(
    pen: ImageDraw.ImageDraw, x: float, y: float, text: str, size: int = 13, colour: tuple[int, int, int] = INK
) -> None:
    pen.text((x, y), text, colour, _font(size), anchor="ma")


def _firsts(products: Sequence[Row]) -> list[Row]:
    """Return one product of each type, in the order of the category tree."""
    first: dict[str, Row] = {}
    for product in products:
        first.setdefault(product["category_path"][-1], product)
    return [first[kind.name] for kind in PRODUCT_TYPES]


def _types(products: Sequence[Row]) -> Image.Image:
    columns, side = 8, PICTURE - GAP + 2
    shown = _firsts(products)
    panel, pen = _panel(-(-len(shown) // columns) * (side + 42))
    for k, product in enumerate(shown):
        x, y = (k % columns) * (PICTURE + 1), (k // columns) * (side + 42)
        panel.paste(_open(product["images"][0], side), (x, y))
        _caption(pen, x + side / 2, y + side + 3, product["category_path"][-1], 14)
        _caption(pen, x + side / 2, y + side + 20, " > ".join(product["category_path"][:2]), 11, GREY)
    return panel


def _photos(products: Sequence[Row], queries: Sequence[Row]) -> Image.Image:
    columns, side = 8, PICTURE - GAP + 2
    photos: dict[str, list[Row]] = {}
    for query in queries:
        if query["type"] == "image" or query["kind"] == "pointed":
            photos.setdefault(query["positives"][0], []).append(query)
    shown = [p for k in range(FAMILY_SIZE) for p in products[k::FAMILY_SIZE] if len(photos[p["product_id"]]) > 1]
    shown = list({p["category_path"][-1]: p for p in reversed(shown)}.values())[::-1][:columns]
    panel, _ = _panel(3 * (side + 5))
    for k, product in enumerate(shown):
        x = k * (PICTURE + 1)
        panel.paste(_open(product["images"][0], side), (x, 0))
        for row, query in enumerate(photos[product["product_id"]][:2]):
            panel.paste(_open(query["image"], side, query["bbox"]), (x, (row + 1) * (side + 5)))
    return panel


def _attributes(product: Row) -> dict[str, str]:
    return {pair["key"]: pair["value"] for pair in product["attributes"]}


def _twins(products: Sequence[Row]) -> Image.Image:
    columns, side = 5, 109
    pairs: list[tuple[Row, Row, str]] = []
    for start in range(0, len(products), FAMILY_SIZE):
        first, second = products[start], products[start + 2]
        a, b = _attributes(first), _attributes(second)
        key = next(key for key in a if a[key] != b[key])
        if sum(k == key for _, _, k in pairs) < 2:
            pairs.append((first, second, key))
    pairs = pairs[: 2 * columns]
    panel, pen = _panel(-(-len(pairs) // columns) * (side + 44))
    for k, (first, second, key) in enumerate(pairs):
        x, y = (k % columns) * 232, (k // columns) * (side + 44)
        for column, product in enumerate((first, second)):
            panel.paste(_open(product["images"][0], side), (x + column * (side + 2), y))
            _caption(pen, x + column * (side + 2) + side / 2, y + side + 3, _attributes(product)[key], 13)
        _caption(pen, x + side + 1, y + side + 19, f"what differs: {key}", 11, GREY)
    return panel


def _questions(products: Sequence[Row], queries: Sequence[Row]) -> Image.Image:
    by_id = {product["product_id"]: product for product in products}
    kinds = (
        "colloquial",
        "same_in_colour",
        "colloquial",
        "same_with_detail",
        "colloquial",
        "pointed",
        "colloquial",
        "photo",
    )
    shown: list[Row] = []
    for number, kind in enumerate(kinds):
        usable = [
            q for q in queries if q["kind"] == kind and q["negatives"] and (kind != "colloquial" or len(q["text"]) > 36)
        ]
        shown.append(usable[(number * 7 + 3) % len(usable)])
    side, row_height = 84, 122
    panel, pen = _panel(-(-len(shown) // 2) * row_height)
    for k, query in enumerate(shown):
        x, y = (k % 2) * (WIDTH // 2 - MARGIN + 6), (k // 2) * row_height
        text = f"“{query['text']}”" if query["text"] else "(photo only)"
        pen.text((x, y), text, INK, _font(15))
        if query["image"]:
            panel.paste(_open(query["image"], side, query["bbox"]), (x, y + 24))
        left = x + (side + 26 if query["image"] else 0)
        if query["image"]:
            pen.polygon([(left - 19, y + 58), (left - 7, y + 66), (left - 19, y + 74)], GREY)
        answers = [(p, GOOD) for p in query["positives"][:3]]
        answers += [(n, BAD) for n in query["negatives"]][: (5 if query["image"] else 6) - len(answers)]
        for column, (product_id, frame) in enumerate(answers):
            picture = _open(by_id[product_id]["images"][0], side, frame=frame)
            panel.paste(picture, (left + column * (side + 5), y + 24))
    return panel
