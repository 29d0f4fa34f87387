"""Draw clothing, caps and umbrellas with the attributes of a design."""

# Outlines are packed many points to a line; the formatter would give each point its own.
# fmt: off

from __future__ import annotations

from product_data.catalogue.drawing import Pen, Point, contrast, darker, lighter, mirror
from product_data.catalogue.products import Design, Rgb
from product_data.catalogue.shapes.parts import DARK, STEEL, draw_logo, has, pattern_of

# ---------------------------------------------------------------------------------------------------- clothing


def _torso(pen: Pen, d: Design, *, long_sleeves: bool, half: float, neck: float = 10.0, hem: float = 90.0) -> None:
    """Draw body and sleeves of a top, from the front."""
    if long_sleeves:
        sleeve: list[Point] = [
            (50 + half, 16), (50 + half, 16), (half + 63, 30), (half + 68, 76), (half + 68, 76), (half + 58, 78),
            (half + 58, 78), (half + 50, 40),
        ]
    else:
        sleeve = [
            (50 + half * 0.9, 14), (50 + half * 0.9, 14), (half + 66, 33), (half + 66, 33), (half + 57, 42),
            (half + 57, 42), (half + 47, 34),
        ]
    for points in (sleeve, [(100 - x, y) for x, y in sleeve]):
        pen.area(points, d.body, pattern=pattern_of(d))
    body: list[Point] = [

        (50, 15), (50 + neck, 11), (50 + neck, 11), (50 + half, 17), (50 + half + 3, 30), (50 + half, 48), (50 + half, hem),
        (50 + half, hem), (50, hem + 1),
    ]
    pen.area(mirror(body), d.body, pattern=pattern_of(d))


def _cuffs(pen: Pen, colour: Rgb, *, long_sleeves: bool, half: float) -> None:
    for s in (1, -1):
        ends = ((half + 8, 76.5), (half + 18, 74.5)) if long_sleeves else ((half + 7.5, 41), (half + 15.5, 33))
        pen.line([(50 + s * x, y) for x, y in ends], colour, 3.2)


def t_shirts(pen: Pen, d: Design) -> None:
    """Draw T-shirts from the front."""
    long_sleeves, half, trim = has(d, "category modifier", "long-sleeved"), d.vary(0, 21, 26), d.detail_rgb("trim")
    _torso(pen, d, long_sleeves=long_sleeves, half=half)
    _cuffs(pen, trim, long_sleeves=long_sleeves, half=half)
    neck: list[Point] = [(40, 11), (43, 18), (50, 21), (57, 18), (60, 11)]
    if has(d, "style elements", "V-neck"):
        neck = [(40, 11), (40, 11), (50, 30), (50, 30), (60, 11), (60, 11)]
    pen.flat(neck, darker(d.body, 0.55))
    pen.line(neck, trim, 2.6, curved=len(neck) == 5)
    draw_logo(pen, d, 50, 47, 8.5)


def shirts(pen: Pen, d: Design) -> None:
    """Draw shirts from the front, buttoned up."""
    long_sleeves, half, trim = has(d, "category modifier", "long-sleeved"), d.vary(0, 22, 27), d.detail_rgb("trim")
    _torso(pen, d, long_sleeves=long_sleeves, half=half, hem=d.vary(1, 84, 92))
    _cuffs(pen, trim, long_sleeves=long_sleeves, half=half)
    pen.area([(46, 20), (54, 20), (54, 88), (46, 88)], d.body, curved=False)
    for s in (1, -1):
        collar: list[Point] = [(50, 19), (50 + s * 9, 9), (50 + s * 14, 15), (50 + s * 9, 27)]
        pen.area([p for point in collar for p in (point, point)], lighter(d.body, 0.25), curved=False)
        pen.line([(50, 19), (50 + s * 9, 27), (50 + s * 14, 15)], trim, 1.5, curved=False)
    if has(d, "style elements", "chest pocket"):
        pen.area([(58, 36), (70, 36), (70, 47), (64, 51), (58, 47)], d.body, curved=False)
        pen.line([(58, 38), (70, 38)], trim, 1.5)
    count = int(d.attributes["buttons"])
    for k in range(count):
        pen.oval(50, 30 + 50 * k / (count - 1), 2.1, 2.1, contrast(d.body), edge=DARK)


def dresses(pen: Pen, d: Design) -> None:
    """Draw dresses from the front."""
    hem = 92.0 if has(d, "category modifier", "midi") else 76.0
    flare, pattern = d.vary(0, 26, 36), pattern_of(d)
    if has(d, "style elements", "puff sleeves"):
        for s in (1, -1):
            pen.area(
                [(50 + s * 12, 13), (50 + s * 24, 12), (50 + s * 29, 21), (50 + s * 23, 28), (50 + s * 14, 26)],
                d.body,
                pattern=pattern,
                form="ball",
            )
    skirt: list[Point] = [
        (50, 43), (62, 43), (62, 43), (50 + flare * 0.7, 62), (50 + flare, hem), (50 + flare, hem),
        (50 + flare * 0.5, hem + 2), (50, hem + 3),
    ]
    pen.area(mirror(skirt), d.body, pattern=pattern)
    for x in (-0.45, 0.0, 0.45):
        pen.line([(50 + 14 * x, 48), (50 + flare * x * 1.3, hem)], darker(d.body, 0.25), 0.8)
    top: list[Point] = [
        (50, 20), (57, 17), (59, 8), (59, 8), (64, 8), (64, 8), (66, 22), (62, 44), (62, 44), (50, 45),
    ]
    pen.area(mirror(top), d.body, pattern=pattern)
    if pattern != "plain":
        pen.area(mirror([(50, 20), (54, 19), (54, 42), (50, 42)]), d.body, curved=False, edge=False)
    count = int(d.attributes["buttons"])
    for k in range(count):
        pen.oval(50, 24 + 14 * k / (count - 1), 1.9, 1.9, contrast(d.body), edge=DARK)
    belt = d.detail_rgb("belt")
    pen.area([(37, 42), (63, 42), (63, 47.5), (37, 47.5)], belt, curved=False)
    pen.oval(50, 44.8, 2.6, 2.4, (236, 212, 120), edge=DARK)


def trousers(pen: Pen, d: Design) -> None:
    """Draw trousers from the front."""
    wide = has(d, "category modifier", "wide-leg")
    out, gap = (35.0, 4.0) if wide else (25.0, 6.0)
    out += d.vary(0, -2, 2)
    stitching = d.detail_rgb("stitching")
    for s in (1, -1):
        leg: list[Point] = [
            (50, 12), (50, 12), (50 + s * 21, 12), (50 + s * 21, 12), (50 + s * 25, 34), (50 + s * out, 94),
            (50 + s * out, 94), (50 + s * gap, 94), (50 + s * gap, 94), (50, 40), (50, 40),
        ]
        pen.area(leg, d.body, form="round")
        pen.stitch([(50 + s * 20, 36), (50 + s * (out - 3), 91)], stitching, 1.4)
        pen.stitch([(50 + s * 8, 19), (50 + s * 11, 27), (50 + s * 22, 29)], stitching, 1.4)
        if has(d, "style elements", "turned-up hem"):
            pen.area(
                [
                    (50 + s * (gap - 1), 88), (50 + s * (out + 1), 88), (50 + s * (out + 1.5), 95),
                    (50 + s * (gap - 1), 95),
                ],
                lighter(d.body, 0.45),
                curved=False,
            )
    pen.stitch([(51.5, 19), (52, 36)], stitching, 1.2)
    pen.area([(28, 9), (72, 9), (72, 16), (28, 16)], d.detail_rgb("belt"), curved=False)
    pen.area([(46, 8), (54, 8), (54, 17), (46, 17)], (232, 208, 120), curved=False)
    pen.logo(d.attributes["logo"], 64 if not wide else 66, 50, 5.6, contrast(d.body))


def hoodies(pen: Pen, d: Design) -> None:
    """Draw hoodies from the front, hood up behind the neck."""
    half, trim = d.vary(0, 23, 27), d.detail_rgb("trim")
    _torso(pen, d, long_sleeves=True, half=half, neck=12, hem=86)
    _cuffs(pen, trim, long_sleeves=True, half=half)
    pen.area([(50 - half, 84), (50 + half, 84), (50 + half - 1, 91), (51 - half, 91)], trim, curved=False)
    pen.area(mirror([(50, 3), (60, 5), (68, 15), (64, 24), (50, 31)]), d.body, form="ball")
    pen.area(mirror([(50, 8), (58, 10), (61, 17), (50, 27)]), darker(d.body, 0.55))
    if has(d, "style elements", "kangaroo pocket"):
        pen.area([(38, 64), (62, 64), (70, 80), (70, 83), (30, 83), (30, 80)], lighter(d.body, 0.1), curved=False)
    else:
        for s in (1, -1):
            pen.line([(50 + s * 14, 64), (50 + s * 19, 80)], darker(d.body, 0.55), 2.0)
    zipped = has(d, "category modifier", "zip-up")
    if zipped:
        pen.line([(50, 30), (50, 90)], STEEL, 1.6)
    for s in (1, -1):
        pen.line([(50 + s * 4, 27), (50 + s * 5.5, 36), (50 + s * 5, 42)], d.detail_rgb("drawstring"), 1.7)
        pen.oval(50 + s * 5, 43, 1.5, 2.0, d.detail_rgb("drawstring"))
    pen.logo(d.attributes["logo"], 62 if zipped else 50, 52, 6.4 if zipped else 7.6, contrast(d.body))


def caps(pen: Pen, d: Design) -> None:
    """Draw caps from the side, the brim to the right."""
    brim, stitching, high = d.detail_rgb("brim"), d.detail_rgb("stitching"), d.vary(0, 20, 27)
    pen.area(
        [
            (10, 66), (10, 66), (12, 42), (28, high + 3), (44, high), (60, high + 8), (68, 46), (70, 66), (70, 66),
            (40, 69),
        ],
        d.body,
        form="ball",
    )
    if has(d, "style elements", "mesh back"):
        for k in range(5):
            pen.line([(13 + 4.4 * k, 64), (15 + 4.6 * k, 46 - 3 * k)], darker(d.body, 0.6), 0.9)
        for y in (48, 54, 60):
            pen.line([(12, y), (31, y)], darker(d.body, 0.6), 0.9)
    pen.stitch([(42, high + 1), (35, 44), (34, 66)], stitching, 1.5)
    pen.stitch([(12, 62), (40, 65), (69, 62)], stitching, 1.5)
    pen.oval(43, high - 0.5, 3.6, 2.2, darker(d.body, 0.35))
    if has(d, "category modifier", "curved-brim"):
        points: list[Point] = [(66, 58), (66, 58), (82, 61), (95, 72), (95, 78), (82, 72), (64, 69), (64, 69)]
    else:
        points = [(66, 59), (66, 59), (97, 58), (97, 58), (98, 64), (98, 64), (64, 69), (64, 69)]
    pen.area(points, brim)
    pen.logo(d.attributes["logo"], 54, 47, 7.2, contrast(d.body))


def umbrellas(pen: Pen, d: Design) -> None:
    """Draw umbrellas open, from the side."""
    wide = has(d, "category modifier", "wide")
    half, rise = (46.0, 16.0) if wide else (37.0, 8.0)
    hem, trim, handle = 52.0 + d.vary(0, -3, 3), d.detail_rgb("trim"), d.detail_rgb("handle")
    pen.line([(50, 6), (50, 82)], DARK, 1.8)
    if has(d, "style elements", "crook handle"):
        grip: list[Point] = [(50, 68), (50, 86), (54, 93), (61, 93), (64, 86)]
    else:
        grip = [(50, 68), (50, 82), (50, 95)]
    pen.line(grip, darker(handle, 0.5), 6.0)
    pen.line(grip, handle, 4.4)
    scallops: list[Point] = [(50 + half, hem), (50 + half, hem)]
    for k in range(5):
        left = half - (k + 1) * 2 * half / 5
        scallops += [(50 + left + half / 5, hem - 5), (50 + left, hem), (50 + left, hem)]
    dome: list[Point] = [(50 - half * 0.86, rise + 20), (50 - half * 0.45, rise + 4), (50, rise)]
    outline = [*scallops, *dome, *((100 - x, y) for x, y in dome[-2::-1])]
    pen.area(outline, d.body, pattern=pattern_of(d), form="ball")
    for rib in (-0.6, -0.2, 0.2, 0.6):
        pen.line([(50, rise), (50 + rib * half * 0.8, rise + 18), (50 + rib * half, hem)], darker(d.body, 0.4), 0.9)
    for k in range(5):
        left = 50 - half + k * 2 * half / 5
        pen.line([(left, hem - 0.5), (left + half / 5, hem - 5.5), (left + 2 * half / 5, hem - 0.5)], trim, 2.6)
    pen.line([(50, rise), (50, rise - 5)], DARK, 2.4)
