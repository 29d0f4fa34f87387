"""Draw what co-augmentation made of products: original and new pictures with their scores, and titles before and after."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from evaluation.contact_sheets import FAINT, GAP, GROUND, HEAD, INK, MARGIN, RIGHT, draw_pill, draw_tile, wrap
from evaluation.fonts import Font, font_for, readable
from product_data.co_augmentation.variant_files import TITLE, Variant, VariantFolder
from product_data.tables import ProductRow

REJECTED = (204, 72, 58)
_TILE, _CAPTION, _LINE = 150, 44, 18


def variant_sheet(folder: VariantFolder, products: Sequence[ProductRow], path: str | Path, *, most: int = 12) -> Path:
    """Draw a row for each product: the original, the clean picture and the scenes, and below them the titles.

    An accepted variant has a green frame or mark, a rejected one a red one with the reason. Products with a rejected variant come
    first, at most half of the sheet; the others are evenly spaced.

    Args:
        folder: the variants.
        products: their products.
        path: the PNG file to write; its folder is made.
        most (`int`): the largest number of products. Default 12.

    Raises:
        ValueError: no product has variants.
    """
    of_product = folder.variants()
    rows = _chosen([row for row in products if row.product_id in of_product], of_product, most)
    if not rows:
        raise ValueError(f"{folder.path}: found no variants of these products; expected those of the same tables")
    texts = [text for row in rows for text in (row.title, *_texts(of_product[row.product_id]))]
    font, lacking = font_for("".join(texts) + "original, clean, scene ✓ ✗")
    columns = 1 + max(len([one for one in of_product[row.product_id] if one.kind != TITLE]) for row in rows)
    columns = max(4, columns)
    heights = [_TILE + _CAPTION + _LINE * (2 + len(_titles(of_product[row.product_id]))) + GAP for row in rows]
    width = 2 * MARGIN + columns * (_TILE + GAP)
    sheet = Image.new("RGB", (width, HEAD + sum(heights) + MARGIN), GROUND)
    draw = ImageDraw.Draw(sheet)
    draw.text((MARGIN, 18), "Variants for training", fill=INK, font=font(20))
    every = [variant for variants in of_product.values() for variant in variants]
    note = f"{sum(variant.accepted for variant in every)} of {len(every)} variants accepted"
    draw.text((width - MARGIN, 24), note, fill=FAINT, font=font(13), anchor="ra")
    top = HEAD
    for row, height in zip(rows, heights, strict=True):
        _draw_product(sheet, draw, (folder, row, of_product[row.product_id]), top, font, lacking)
        top += height
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, "PNG", optimize=True)
    return path


def _chosen(rows: list[ProductRow], of_product: dict[str, list[Variant]], most: int) -> list[ProductRow]:
    rejected = [row for row in rows if any(not one.accepted for one in of_product[row.product_id])]
    first = rejected[:: max(1, len(rejected) // max(1, most // 2))][: most // 2]
    taken = {row.product_id for row in first}
    others = [row for row in rows if row.product_id not in taken]
    left = most - len(first)
    return first + others[:: max(1, len(others) // max(1, left))][:left]


def _titles(variants: Sequence[Variant]) -> list[Variant]:
    return [variant for variant in variants if variant.kind == TITLE]


def _texts(variants: Sequence[Variant]) -> list[str]:
    return [text for variant in variants for text in (variant.title, variant.reason)]


def _draw_product(
    sheet: Image.Image,
    draw: ImageDraw.ImageDraw,
    of_row: tuple[VariantFolder, ProductRow, list[Variant]],
    top: int,
    font: Font,
    lacking: frozenset[str],
) -> None:
    folder, row, variants = of_row
    original = next((one.original_score for one in variants if one.original_score is not None), None)
    draw_tile(sheet, draw, row.images[0] if row.images else None, (MARGIN, top, _TILE), font, frame=FAINT)
    draw.text((MARGIN, top + _TILE + 4), "original", fill=FAINT, font=font(11))
    if original is not None:
        draw_pill(draw, f"{original:.2f}", (MARGIN + 8, top + _TILE - 25), font(11))
    left = MARGIN + _TILE + GAP
    for variant in (one for one in variants if one.kind != TITLE):
        picture = folder.picture(variant) if variant.image else None
        draw_tile(sheet, draw, picture, (left, top, _TILE), font, frame=RIGHT if variant.accepted else REJECTED)
        if variant.score is not None:
            draw_pill(draw, f"{variant.score:.2f}", (left + 8, top + _TILE - 25), font(11))
        caption = variant.kind if variant.accepted else f"{variant.kind}: {variant.reason}"
        lines = wrap(draw, readable(caption, lacking), font(11), _TILE, 2)
        colour = FAINT if variant.accepted else REJECTED
        draw.multiline_text((left, top + _TILE + 4), "\n".join(lines), fill=colour, font=font(11), spacing=2)
        left += _TILE + GAP
    line, width = top + _TILE + _CAPTION - 6, sheet.width - 2 * MARGIN
    draw.text((MARGIN, line), wrap(draw, readable(row.title, lacking), font(13), width, 1)[0], fill=INK, font=font(13))
    for variant in _titles(variants):
        line += _LINE
        score = "" if variant.score is None else f"{variant.score:.2f}  "
        reason = "" if variant.accepted else f"  ({variant.reason})"
        shown = wrap(draw, readable(f"{score}{variant.title}{reason}", lacking), font(12), width - 16, 1)
        draw.ellipse((MARGIN + 2, line + 5, MARGIN + 9, line + 12), fill=RIGHT if variant.accepted else REJECTED)
        draw.text((MARGIN + 16, line), "".join(shown), fill=INK if variant.accepted else REJECTED, font=font(12))
