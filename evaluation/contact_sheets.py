"""Draw the results of searches as a picture: each query beside the products that were found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageOps

from evaluation.benchmarks.retrieval import SearchExample
from evaluation.fonts import Font, font_for, readable
from processing_moon import ProductError, open_image
from product_data.tables import ProductRow, QueryRow

TILE, GAP, MARGIN, _CAPTION, _QUERY_WIDTH, HEAD = 148, 14, 26, 46, 232, 64
INK, FAINT, GROUND, CARD = (32, 36, 44), (120, 126, 138), (244, 245, 248), (255, 255, 255)
RIGHT, WRONG, LINE = (34, 160, 84), (201, 205, 213), (226, 229, 235)


def contact_sheet(examples: Sequence[SearchExample], path: str | Path, *, title: str = "Search results") -> Path:
    """Draw queries with the products that a search found; right products have a green frame and a tick.

    Text is drawn in a font of the system that has its characters (`evaluation.fonts.font_for`). Characters that no font
    has are put into words, after the product's id.

    Args:
        examples: from `evaluation.benchmarks.retrieval.search_examples`.
        path: the PNG file to write; its folder is made.
        title (`str`): heading of the sheet. Default "Search results".

    Raises:
        ValueError: no examples.
    """
    if not examples:
        raise ValueError("examples: found none; expected at least one query")
    font, lacking = font_for(title + _all_text(examples))
    columns = max(1, max(len(example.results) for example in examples))
    row_height = TILE + _CAPTION + GAP
    width = 2 * MARGIN + _QUERY_WIDTH + columns * (TILE + GAP) + GAP
    sheet = Image.new("RGB", (width, HEAD + len(examples) * row_height + MARGIN), GROUND)
    draw = ImageDraw.Draw(sheet)
    draw.text((MARGIN, 20), readable(title, lacking), fill=INK, font=font(22))
    hits = sum(any(right for _, _, right in example.results) for example in examples)
    note = f"a right product among the first {columns}: {hits} of {len(examples)} queries"
    draw.text((width - MARGIN, 26), note, fill=FAINT, font=font(13), anchor="ra")
    for number, example in enumerate(examples):
        top = HEAD + number * row_height
        shown = readable(example.query.text, lacking)
        _draw_query(sheet, draw, replace(example.query, text=shown), (MARGIN, top), font)
        for column, (product, score, right) in enumerate(example.results):
            left = MARGIN + _QUERY_WIDTH + 2 * GAP + column * (TILE + GAP)
            picture = product.images[0] if product.images else None
            draw_tile(sheet, draw, picture, (left, top, TILE), font, frame=RIGHT if right else WRONG)
            if right:
                _draw_tick(draw, left + TILE - 15, top + 15)
            lines = wrap(draw, _caption(product, lacking), font(12), TILE, 2)
            draw.multiline_text((left, top + TILE + 5), "\n".join(lines), fill=INK, font=font(12), spacing=2)
            draw_pill(draw, f"{score:.2f}", (left + 8, top + TILE - 25), font(11))
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, "PNG", optimize=True)
    return path


def _caption(product: ProductRow, lacking: frozenset[str]) -> str:
    title = product.title or product.product_id
    return readable(title if lacking.isdisjoint(title) else f"{product.product_id}: {title}", lacking)


def _all_text(examples: Sequence[SearchExample]) -> str:
    titles = [product.title or product.product_id for example in examples for product, _, _ in example.results]
    return "".join([*titles, *(example.query.text for example in examples)])


def _draw_query(
    sheet: Image.Image, draw: ImageDraw.ImageDraw, query: QueryRow, corner: tuple[int, int], font: Font
) -> None:
    left, top = corner
    draw.rounded_rectangle((left, top, left + _QUERY_WIDTH, top + TILE), radius=10, fill=CARD, outline=LINE)
    record = query.record()
    text_width, text_left = _QUERY_WIDTH - 24, left + 12
    if "image" in record:
        picture_left = left if "text" in record else left + (_QUERY_WIDTH - TILE) // 2
        draw_tile(sheet, draw, record["image"], (picture_left, top, TILE), font, frame=None)
        text_left, text_width = left + TILE + 8, _QUERY_WIDTH - TILE - 14
    if "text" in record:
        sized = font(12 if "image" in record else 16)
        lines = wrap(draw, record["text"], sized, text_width, 6)
        draw.multiline_text((text_left, top + TILE / 2), "\n".join(lines), fill=INK, font=sized, spacing=4, anchor="lm")
    label = {"text": "text query", "image": "photo query", "both": "photo and text"}[query.type]
    draw.text((left + 2, top + TILE + 6), label, fill=FAINT, font=font(12))


def draw_tile(
    sheet: Image.Image,
    draw: ImageDraw.ImageDraw,
    source: Any,
    place: tuple[int, int, int],
    font: Font,
    *,
    frame: tuple[int, int, int] | None,
) -> None:
    """Draw a picture in a square tile, or a note that there is none.

    Args:
        sheet, draw: the picture to draw into, and its pen.
        source: what `open_image` opens; `None`: there is no picture.
        place: left, top and side, in pixels.
        font: font of the note.
        frame: colour of the frame; `None`: no frame.
    """
    left, top, side = place
    if frame is not None:
        draw.rounded_rectangle((left, top, left + side, top + side), radius=10, fill=CARD)
    inner = side - 12
    try:
        picture = open_image(source) if source is not None else None
        note = "no image"
    except ProductError:
        url = isinstance(source, str) and source.startswith(("http://", "https://"))
        picture, note = None, "not downloaded" if url else "unreadable"
    if picture is None:
        draw.text((left + side / 2, top + side / 2), note, fill=FAINT, font=font(12), anchor="mm")
    else:
        picture = ImageOps.contain(picture, (inner, inner), Image.Resampling.LANCZOS)
        sheet.paste(picture, (left + (side - picture.width) // 2, top + (side - picture.height) // 2))
    if frame is not None:
        width = 4 if frame == RIGHT else 2
        draw.rounded_rectangle((left, top, left + side, top + side), radius=10, outline=frame, width=width)


def draw_pill(draw: ImageDraw.ImageDraw, text: str, corner: tuple[int, int], font: Any) -> None:
    """Draw a short text on a rounded ground, from its upper left corner."""
    left, top = corner
    right = left + draw.textlength(text, font=font) + 10
    draw.rounded_rectangle((left, top, right, top + 17), radius=8, fill=CARD, outline=LINE)
    draw.text(((left + right) / 2, top + 8.5), text, fill=INK, font=font, anchor="mm")


def _draw_tick(draw: ImageDraw.ImageDraw, x: int, y: int) -> None:
    draw.ellipse((x - 11, y - 11, x + 11, y + 11), fill=RIGHT, outline=CARD, width=2)
    draw.line([(x - 5, y), (x - 1, y + 4), (x + 5, y - 4)], fill=CARD, width=3, joint="curve")


def wrap(draw: ImageDraw.ImageDraw, text: str, font: Any, width: float, most: int) -> list[str]:
    """Wrap a text to a width and at most `most` lines; a longer text ends in an ellipsis. Long words are broken."""
    lines: list[str] = []
    line = ""
    for word in text.split():
        while draw.textlength(word, font=font) > width:
            head = next(
                size
                for size in range(len(word), 0, -1)
                if size == 1 or draw.textlength(word[:size], font=font) <= width
            )
            lines, line, word = [*lines, *([line] if line else []), word[:head]], "", word[head:]
        joined = f"{line} {word}".strip()
        if draw.textlength(joined, font=font) <= width:
            line = joined
        else:
            lines, line = [*lines, line], word
    lines = [*lines, line] if line else lines
    if len(lines) <= most:
        return lines
    last = lines[most - 1]
    while last and draw.textlength(f"{last}…", font=font) > width:
        last = last[:-1]
    return [*lines[: most - 1], f"{last}…"]
