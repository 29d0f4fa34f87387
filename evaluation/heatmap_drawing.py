"""Draw explanations: heat over pictures and words, shares, modality gates, written attributes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from evaluation.explanation import Explanation, PictureHeat
from evaluation.fonts import Font, font_for, readable

Colour = tuple[int, int, int]

WIDTH, MARGIN, PAD, GAP = 1120, 28, 20, 14
INNER = WIDTH - 2 * MARGIN - 2 * PAD
_PICTURE_HEIGHT, _PICTURE_WIDTH = 236, 380
_INK, _FAINT, _GROUND, _CARD, _LINE = (32, 36, 44), (112, 118, 130), (244, 245, 248), (255, 255, 255), (224, 227, 234)
_HEAT = ((255, 252, 233), (254, 217, 118), (253, 141, 60), (227, 45, 32), (128, 0, 38))  # ColorBrewer's YlOrRd
_GATES: tuple[tuple[str, Colour], ...] = (
    ("itself", (124, 132, 148)),
    ("pictures", (54, 128, 202)),
    ("title", (236, 148, 44)),
)
_SETS: dict[str, Colour] = {
    "picture": (54, 128, 202),
    "core crop": (24, 78, 148),
    "title": (236, 148, 44),
    "text": (236, 148, 44),
    "category": (206, 92, 60),
    "attributes": (170, 72, 128),
    "description": (120, 84, 160),
    "reasoning": (46, 150, 110),
    "read-out token": (124, 132, 148),
    "instruction": (164, 171, 186),
    "template and markers": (194, 200, 211),
    "first token": (216, 220, 228),
}
# Values above this quantile have the full colour: a token with most of the attention does not hide the others.
_FULL_COLOUR_QUANTILE = 0.98


def draw_explanation(explanation: Explanation, *, font: str | Path | None = None) -> Image.Image:
    """Draw an explanation: heat over pictures and words, shares, and, if present, gates and written attributes.

    Heat and words have separate scales, from zero to the 98th percentile within the record. Our design.

    Args:
        explanation: from `evaluation.heatmap.explain`.
        font: a TrueType or OpenType file. Default: Pillow's font, which has English letters only; if it lacks
            characters of the explanation, the font of the system that has most of them. Characters that the font lacks
            are put into words (`evaluation.fonts.readable`).

    Raises:
        OSError: a font file that cannot be read.

    Returns: RGB, 1,120 pixels wide, as high as needed.
    """
    sized, lacking = font_for(_all_text(explanation), font)
    explanation = _legible(explanation, lacking)
    cards = [("Where the attention goes", _shares(explanation, sized))]
    if explanation.pictures:
        cards.append(("Pictures, as the model saw them, and their heat", _pictures(explanation, sized)))
    if explanation.words:
        cards.append(("Words", _words(explanation, sized)))
    if explanation.gates is not None:
        cards.append(("Modality gates, a bar for each head", _gates(explanation.gates, sized)))
    if explanation.reasoning is not None:
        cards.append(("Written attributes", _reasoning(explanation.reasoning, sized)))
    heading = _heading(explanation, sized, lacking)
    height = MARGIN + heading.height + sum(body.height + 62 + GAP for _, body in cards) + MARGIN - GAP
    sheet = Image.new("RGB", (WIDTH, height), _GROUND)
    sheet.paste(heading, (MARGIN, MARGIN))
    draw, top = ImageDraw.Draw(sheet), MARGIN + heading.height
    for name, body in cards:
        card = (MARGIN, top, WIDTH - MARGIN - 1, top + body.height + 61)
        draw.rounded_rectangle(card, radius=12, fill=_CARD, outline=_LINE)
        draw.text((MARGIN + PAD, top + 15), name, fill=_INK, font=sized(16))
        sheet.paste(body, (MARGIN + PAD, top + 44))
        top += body.height + 62 + GAP
    return sheet


def draw_beside(whole: Explanation, pictures_alone: Explanation, *, font: str | Path | None = None) -> Image.Image:
    """Draw what a vector of the whole record looks at beside what a vector of its pictures alone looks at.

    Source: MOON, arXiv 2508.11999 §5.4, which shows heat maps of a product with and without its text.

    Args:
        whole: the explanation of the record.
        pictures_alone: that of the same record without its text.
        font: as in `draw_explanation`.

    Returns: RGB, 2,240 pixels wide, as high as the higher of both.
    """
    sheets = [draw_explanation(one, font=font) for one in (whole, pictures_alone)]
    sized, _ = font_for("")
    head = MARGIN + 30
    beside = Image.new("RGB", (2 * WIDTH, head + max(sheet.height for sheet in sheets)), _GROUND)
    draw = ImageDraw.Draw(beside)
    for place, (title, sheet) in enumerate(zip(("With text", "Without text"), sheets, strict=True)):
        draw.text((place * WIDTH + MARGIN, MARGIN), title, fill=_INK, font=sized(24))
        beside.paste(sheet, (place * WIDTH, head))
    return beside


def _legible(explanation: Explanation, lacking: frozenset[str]) -> Explanation:
    """Put the characters that the font lacks into words, in all texts."""
    if not lacking:
        return explanation
    reasoning = explanation.reasoning
    if reasoning is not None:
        attributes = {
            readable(key, lacking): tuple(readable(value, lacking) for value in values)
            for key, values in reasoning.attributes.items()
        }
        unparsed = tuple(readable(piece, lacking) for piece in reasoning.unparsed)
        reasoning = replace(reasoning, attributes=attributes, unparsed=unparsed)
    words = tuple(readable(word, lacking) for word in explanation.words)
    return replace(explanation, record_id=readable(explanation.record_id, lacking), words=words, reasoning=reasoning)


def _all_text(explanation: Explanation) -> str:
    written = "" if explanation.reasoning is None else explanation.reasoning.text
    return "".join([explanation.record_id, *explanation.words, written])


def _panel(height: int, ground: Colour = _CARD, width: int = INNER) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    panel = Image.new("RGB", (width, max(1, height)), ground)
    return panel, ImageDraw.Draw(panel)


def _heading(explanation: Explanation, font: Font, lacking: frozenset[str]) -> Image.Image:
    panel, draw = _panel(68, _GROUND, WIDTH - 2 * MARGIN)
    note = f"read-out: {_READOUTS[explanation.readout]}  ·  decoder {_layer_names(explanation.layers)}, mean over heads"
    if explanation.relative:
        note += "  ·  relative to uniform attention"
    if lacking:
        note += f"  ·  characters that the font lacks: {len(lacking)}"
    draw.text((0, 0), _cut(draw, f"{explanation.kind} {explanation.record_id}", font(24), panel.width), _INK, font(24))
    draw.text((0, 36), _cut(draw, note, font(14), panel.width), _FAINT, font(14))
    return panel


_READOUTS = {"mean": "mean over its tokens", "emb": "<emb>", "last": "last token"}


def _layer_names(layers: Sequence[int]) -> str:
    if len(layers) > 1 and list(layers) == list(range(layers[0], layers[-1] + 1)):
        return f"layers {layers[0]} to {layers[-1]}"
    return f"layer{'s' if len(layers) > 1 else ''} {', '.join(map(str, layers))}"


def _cut(draw: ImageDraw.ImageDraw, text: str, font: Any, width: float) -> str:
    """Cut a text to `width`, with an ellipsis at the end."""
    if draw.textlength(text, font=font) <= width:
        return text
    while text and draw.textlength(f"{text}…", font=font) > width:
        text = text[:-1]
    return f"{text}…"


# ---------------------------------------------------------------------------------------------------------------------
# Shares
# ---------------------------------------------------------------------------------------------------------------------
def _shares(explanation: Explanation, font: Font) -> Image.Image:
    """Draw one bar of the whole attention, and the names of its sections."""
    order = [name for name in explanation.shares if _order(name) == 0]
    order += sorted((name for name in explanation.shares if _order(name)), key=_order)
    entries = [(name, explanation.shares[name]) for name in order]
    labels = [f"{name}  {100 * share:.1f} %" for name, share in entries]
    _, ruler = _panel(1)
    places, x, y = [], 0.0, 0
    for label in labels:
        width = ruler.textlength(label, font=font(14)) + 42
        if x and x + width > INNER:
            x, y = 0.0, y + 25
        places.append((x, y))
        x += width
    panel, draw = _panel(38 + y + 22)
    left = 0.0
    for (name, share), label, (x, y) in zip(entries, labels, places, strict=True):
        colour = _set_colour(name)
        _bar(draw, (left, 0, left + share * INNER, 25), colour)
        draw.rounded_rectangle((x, 41 + y, x + 12, 53 + y), radius=3, fill=colour)
        draw.text((x + 19, 47 + y), label, fill=_INK, font=font(14), anchor="lm")
        left += share * INNER
    return panel


def _bar(draw: ImageDraw.ImageDraw, box: tuple[float, float, float, float], colour: Colour) -> None:
    """Draw one section of a bar, followed by a gap of one pixel; draw nothing if the section is narrower than the gap."""
    left, top, right, bottom = (round(side) for side in box)
    if right - left > 1:
        draw.rectangle((left, top, right - 2, bottom), fill=colour)


def _order(name: str) -> int:
    """Return the position of a section: 0 for parts of the record; other sections come last."""
    last = ("read-out token", "instruction", "template and markers", "first token")
    return last.index(name) + 1 if name in last else 0


def _set_colour(name: str) -> Colour:
    return _SETS["picture" if name.startswith("picture") else name]


# ---------------------------------------------------------------------------------------------------------------------
# Pictures
# ---------------------------------------------------------------------------------------------------------------------
def _full_colour(weights: np.ndarray) -> float:
    return max(float(np.quantile(weights, _FULL_COLOUR_QUANTILE)), 1e-12) if weights.size else 1.0


def _heat_colours(value: np.ndarray) -> np.ndarray:
    """Map values in [0, 1] of any shape to (..., 3) float colours."""
    stops = np.linspace(0, 1, len(_HEAT))
    return np.stack([np.interp(value, stops, [colour[c] for colour in _HEAT]) for c in range(3)], axis=-1)


def _overlay(picture: PictureHeat, size: tuple[int, int], full: float) -> Image.Image:
    """Draw a picture in grey under its heat; stronger heat has more colour."""
    level = Image.fromarray((picture.heat / full).clip(0, 1).astype(np.float32))
    value = np.asarray(level.resize(size, Image.Resampling.BICUBIC)).clip(0, 1)[..., None]
    plain = Image.fromarray(picture.pixels).convert("L").resize(size, Image.Resampling.LANCZOS)
    grey = 255 - 0.82 * (255 - np.asarray(plain, dtype=np.float32)[..., None])
    strength = 0.12 + 0.66 * value
    mixed = grey * (1 - strength) + _heat_colours(value[..., 0]) * strength
    return Image.fromarray(np.rint(mixed).clip(0, 255).astype(np.uint8))


def _pictures(explanation: Explanation, font: Font) -> Image.Image:
    """Draw each picture beside its heat, with as many pairs per row as fit."""
    full = _full_colour(np.concatenate([picture.heat.ravel() for picture in explanation.pictures]))
    rows: list[list[tuple[PictureHeat, tuple[int, int]]]] = [[]]
    x = 0
    for picture in explanation.pictures:
        height, width = picture.pixels.shape[:2]
        scale = min(_PICTURE_HEIGHT / height, _PICTURE_WIDTH / width)
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        if x and x + 2 * size[0] + 6 > INNER:
            rows.append([])
            x = 0
        rows[-1].append((picture, size))
        x += max(2 * size[0] + 6, 210) + 26
    heights = [max(height for _, (_, height) in row) for row in rows]
    panel, draw = _panel(sum(heights) + 34 * len(rows) + 22)
    top = 0
    for row, tallest in zip(rows, heights, strict=True):
        x = 0
        for picture, size in row:
            plain = Image.fromarray(picture.pixels).resize(size, Image.Resampling.LANCZOS)
            panel.paste(plain, (x, top))
            panel.paste(_overlay(picture, size, full), (x + size[0] + 6, top))
            for left in (x, x + size[0] + 6):
                draw.rectangle((left, top, left + size[0] - 1, top + size[1] - 1), outline=_LINE)
            rows_of_tokens, columns_of_tokens = picture.heat.shape
            share = f"{100 * explanation.shares[picture.name]:.1f} %"
            note = f"{picture.name}  ·  {share}  ·  {columns_of_tokens} by {rows_of_tokens} tokens"
            width = max(2 * size[0] + 6, 210)
            draw.text((x, top + size[1] + 8), _cut(draw, note, font(13), width), fill=_INK, font=font(13))
            x += width + 26
        top += tallest + 34
    _scale(panel, draw, top + 2, "no attention", "strongest within the pictures", font)
    return panel


def _scale(panel: Image.Image, draw: ImageDraw.ImageDraw, top: int, low: str, high: str, font: Font) -> None:
    """Draw the legend of the heat's colours."""
    draw.text((0, top + 8), low, fill=_FAINT, font=font(12), anchor="lm")
    left = round(draw.textlength(low, font=font(12))) + 8
    colours = np.broadcast_to(_heat_colours(np.linspace(0, 1, 120)), (12, 120, 3))
    panel.paste(Image.fromarray(np.rint(colours).astype(np.uint8)), (left, top + 2))
    draw.text((left + 128, top + 8), high, fill=_FAINT, font=font(12), anchor="lm")


# ---------------------------------------------------------------------------------------------------------------------
# Words
# ---------------------------------------------------------------------------------------------------------------------
_LABEL_WIDTH, _LINE_HEIGHT = 108, 30


def _words(explanation: Explanation, font: Font) -> Image.Image:
    """Draw the text in its parts, each word on a background in the colour of its weight."""
    _, ruler = _panel(1)
    places, bottom = _word_places(explanation, ruler, font)
    full = _full_colour(explanation.word_weights)
    panel, draw = _panel(bottom + 26)
    seen = ""
    for word, part, weight, (x, y, width) in places:
        if part != seen:
            draw.text((0, y + 13), part, fill=_FAINT, font=font(14), anchor="lm")
            share = f"{100 * explanation.shares.get(part, 0):.1f} %"
            draw.text((0, y + 30), share, fill=_FAINT, font=font(12), anchor="lm")
            seen = part
        value = min(1.0, float(weight) / full)
        ground = tuple(int(round(channel)) for channel in _heat_colours(np.asarray(value)))
        draw.rounded_rectangle((x, y, x + width, y + 25), radius=5, fill=ground)
        draw.text((x + width / 2, y + 13), word, fill=_CARD if value > 0.72 else _INK, font=font(16), anchor="mm")
    _scale(panel, draw, bottom + 8, "no attention", "strongest within the words", font)
    return panel


def _word_places(
    explanation: Explanation, ruler: ImageDraw.ImageDraw, font: Font
) -> tuple[list[tuple[str, str, float, tuple[float, float, float]]], int]:
    """Return left, top and width of each word, and the bottom of the last line; words wider than a line are split."""
    room = INNER - _LABEL_WIDTH
    places: list[tuple[str, str, float, tuple[float, float, float]]] = []
    x, y, seen, first_line = 0.0, 0.0, "", 0.0
    for whole, part, weight in zip(
        explanation.words, explanation.word_parts, explanation.word_weights.tolist(), strict=True
    ):
        if part != seen:
            y = max(y + _LINE_HEIGHT, first_line + 42) + 4 if seen else 0.0
            x, seen, first_line = 0.0, part, y
        for word in _pieces(ruler, whole, font(16), room - 10):
            width = ruler.textlength(word, font=font(16)) + 10
            if x and x + width > room:
                x, y = 0.0, y + _LINE_HEIGHT
            places.append((word, part, weight, (_LABEL_WIDTH + x, y, width)))
            x += width + 3
    return places, round(max(y + _LINE_HEIGHT, first_line + 42))


def _pieces(ruler: ImageDraw.ImageDraw, word: str, font: Any, width: float) -> list[str]:
    pieces = []
    while ruler.textlength(word, font=font) > width:
        size = next(n for n in range(len(word) - 1, 0, -1) if n == 1 or ruler.textlength(word[:n], font=font) <= width)
        pieces.append(word[:size])
        word = word[size:]
    return [*pieces, word]


# ---------------------------------------------------------------------------------------------------------------------
# Gates and reasoning
# ---------------------------------------------------------------------------------------------------------------------
def _gates(gates: np.ndarray, font: Font) -> Image.Image:
    """Draw a bar for each head and one for their mean, divided among the read-out's state, pictures and title."""
    rows = [(f"head {head + 1}", gates[head]) for head in range(len(gates))] + [("mean", gates.mean(axis=0))]
    panel, draw = _panel(26 * len(rows) + 34)
    left, length = 70, INNER - 70
    for number, (name, values) in enumerate(rows):
        top = number * 26 + (6 if name == "mean" else 0)
        draw.text((0, top + 10), name, fill=_INK if name == "mean" else _FAINT, font=font(14), anchor="lm")
        x = float(left)
        for (_, colour), value in zip(_GATES, values.tolist(), strict=True):
            _bar(draw, (x, top, x + value * length, top + 20), colour)
            if value > 0.06:
                text = f"{100 * value:.0f} %"
                draw.text((x + value * length / 2, top + 10), text, fill=_CARD, font=font(13), anchor="mm")
            x += value * length
    x, top = float(left), 26 * len(rows) + 22
    for name, colour in _GATES:
        draw.rounded_rectangle((x, top - 6, x + 12, top + 6), radius=3, fill=colour)
        draw.text((x + 19, top), name, fill=_INK, font=font(14), anchor="lm")
        x += draw.textlength(name, font=font(14)) + 42
    return panel


def _reasoning(reasoning: Any, font: Font) -> Image.Image:
    """Draw the written attributes: keys and values, then unparsed text."""
    lines = [(key, ", ".join(values), _INK) for key, values in reasoning.attributes.items()]
    lines += [("unparsed", piece, (186, 56, 44)) for piece in reasoning.unparsed]
    if not reasoning.closed:
        lines.append(("", "the reasoning was not closed", _FAINT))
    if not lines:
        lines = [("", "nothing was written", _FAINT)]
    _, ruler = _panel(1)
    laid = [
        (key if number == 0 else "", line, colour)
        for key, text, colour in lines
        for number, line in enumerate(_lines(ruler, text, font(16), INNER - 190))
    ]
    panel, draw = _panel(28 * len(laid) + 4)
    for number, (key, line, colour) in enumerate(laid):
        draw.text((0, 28 * number + 12), _cut(draw, key, font(14), 176), fill=_FAINT, font=font(14), anchor="lm")
        draw.text((190, 28 * number + 12), line, fill=colour, font=font(16), anchor="lm")
    return panel


def _lines(ruler: ImageDraw.ImageDraw, text: str, font: Any, width: float) -> list[str]:
    lines = [""]
    for whole in text.split():
        for word in _pieces(ruler, whole, font, width):
            joined = f"{lines[-1]} {word}".strip()
            if ruler.textlength(joined, font=font) <= width:
                lines[-1] = joined
            else:
                lines.append(word)
    return lines


def save_explanation(
    explanation: Explanation,
    path: str | Path,
    font: str | Path | None = None,
    pictures_alone: Explanation | None = None,
) -> Path:
    """Draw an explanation, and write it as PNG atomically; the folder is made if missing.

    Args:
        explanation: from `evaluation.heatmap.explain`.
        path: the PNG file.
        font: as in `draw_explanation`.
        pictures_alone: the explanation of the same record without its text, drawn beside it. Default: none.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.unfinished")
    if pictures_alone is None:
        sheet = draw_explanation(explanation, font=font)
    else:
        sheet = draw_beside(explanation, pictures_alone, font=font)
    sheet.save(unfinished, "PNG", optimize=True)
    os.replace(unfinished, path)
    return path
