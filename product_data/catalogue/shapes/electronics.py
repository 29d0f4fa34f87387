"""Draw headphones, speakers, controllers and watches with the attributes of a design."""

# Outlines are packed many points to a line; the formatter would give each point its own.
# fmt: off

from __future__ import annotations

from product_data.catalogue.drawing import Pen, Point, contrast, darker, lighter, mirror
from product_data.catalogue.products import Design
from product_data.catalogue.shapes.parts import DARK, STEEL, has

# ------------------------------------------------------------------------------------------------- electronics


def headphones(pen: Pen, d: Design) -> None:
    """Draw headphones from the front, slightly turned."""
    rise, pads = d.vary(0, 6, 12), d.detail_rgb("ear pads")
    arch: list[Point] = [(17, 62), (15, 40), (28, rise + 7), (50, rise), (72, rise + 7), (85, 40), (83, 62)]
    if has(d, "style elements", "cable"):
        pen.line([(20, 80), (22, 94), (40, 96), (52, 90), (66, 95)], DARK, 1.8)
        pen.oval(68, 95, 2.4, 1.6, (226, 196, 100))
    pen.line(arch, darker(d.body, 0.5), 8.2)
    pen.line(arch, d.body, 6.4)
    pen.line(arch[1:-1], d.detail_rgb("headband stripe"), 2.2)
    large = 1.0 if has(d, "category modifier", "over-ear") else 0.72
    for s in (1, -1):
        x = 50 + s * 27
        pen.area(
            [

                (x - s * 6, 64 - 19 * large), (x + s * 5, 64 - 17 * large), (x + s * 7, 64), (x + s * 5, 64 + 17 * large),
                (x - s * 6, 64 + 19 * large), (x - s * 8, 64),
            ],
            pads,
        )
        cup = 50 + s * 36
        pen.area(
            [
                (cup, 64 - 18 * large), (cup + 9 * large, 64 - 12 * large), (cup + 11 * large, 64),
                (cup + 9 * large, 64 + 12 * large), (cup, 64 + 18 * large), (cup - 9 * large, 64 + 12 * large),
                (cup - 11 * large, 64), (cup - 9 * large, 64 - 12 * large),
            ],
            d.body,
            form="ball",
        )
        pen.logo(d.attributes["logo"], cup, 64, 6.4 if large == 1.0 else 5.4, contrast(d.body))


def speakers(pen: Pen, d: Design) -> None:
    """Draw speakers from the front."""
    portable = has(d, "category modifier", "portable")
    left, right, top, foot = (6.0, 94.0, 32.0, 80.0) if portable else (25.0, 75.0, 6.0, 94.0)
    two, cone = has(d, "style elements", "two drivers"), d.detail_rgb("cone")
    if portable:
        pen.line([(30, 33), (32, 20), (50, 16), (68, 20), (70, 33)], darker(d.body, 0.4), 3.6)
    pen.area(
        [
            (left, top + 4), (left + 4, top), (left + 4, top), (right - 4, top), (right - 4, top),
            (right, top + 4), (right, foot - 4), (right - 4, foot), (right - 4, foot), (left + 4, foot),
            (left + 4, foot), (left, foot - 4),
        ],
        d.body,
    )
    if portable:
        drivers = [(28.0, 58.0, 16.0), (68.0, 58.0, 16.0)] if two else [(42.0, 57.0, 20.0)]
    else:
        drivers = [(50.0, 35.0, 12.0), (50.0, 64.0, 16.0)] if two else [(50.0, 52.0, 20.0)]
    for x, y, radius in drivers:
        pen.oval(x, y, radius, radius, darker(d.body, 0.6), edge=(20, 20, 24))
        pen.oval(x, y, radius * 0.8, radius * 0.8, cone, edge=darker(cone, 0.5))
        pen.oval(x, y, radius * 0.34, radius * 0.34, darker(cone, 0.45))
        pen.oval(x - radius * 0.1, y - radius * 0.12, radius * 0.1, radius * 0.1, lighter(cone, 0.5))
    for k in range(int(d.attributes["knobs"])):
        x, y = (right - 8 - 8 * k, 38.0) if portable else (right - 9 - 10 * k, 87.0)
        pen.oval(x, y, 3.0, 3.0, STEEL, edge=DARK)
        pen.line([(x, y), (x + 1.4, y - 2)], DARK, 0.9)
    pen.logo(d.attributes["logo"], left + 9.5, 40 if portable else 15, 5.4, contrast(d.body))


def controllers(pen: Pen, d: Design) -> None:
    """Draw controllers from above."""
    full = has(d, "category modifier", "full-size")
    half, grip = (43.0, 84.0) if full else (38.0, 73.0)
    stick, keys = d.detail_rgb("stick"), d.detail_rgb("keys")
    for s in (1, -1):
        pen.area([(50 + s * 18, 26), (50 + s * 33, 25), (50 + s * 35, 33), (50 + s * 18, 33)], darker(d.body, 0.5))
    pen.area(
        mirror([
            (50, 31), (50 + half * 0.5, 28), (50 + half * 0.9, 36), (51 + half, 58), (50 + half, grip),
            (50 + half * 0.82, grip + 3), (50 + half * 0.55, 69), (50, 66),
        ]),
        d.body,
        form="ball",
    )
    cross, spread = 50 - half * 0.6, 5.6
    for dx, dy in ((3.0, 7.6), (7.6, 3.0)):
        pen.flat([(cross - dx, 46 - dy), (cross + dx, 46 - dy), (cross + dx, 46 + dy), (cross - dx, 46 + dy)], contrast(d.body))
    for dx, dy in ((0, -1), (1, 0), (0, 1), (-1, 0)):
        pen.oval(50 + half * 0.6 + dx * spread, 46 + dy * spread, 3.2, 3.2, keys, edge=darker(keys, 0.6))
    for x in (36.0, 64.0) if has(d, "style elements", "two sticks") else (36.0,):
        pen.oval(x, 60, 6.6, 6.2, darker(d.body, 0.6), edge=DARK)
        pen.oval(x, 59, 4.8, 4.4, stick, edge=darker(stick, 0.6))
    pen.logo(d.attributes["logo"], 50, 45, d.vary(0, 5.4, 6.2), contrast(d.body))


def watches(pen: Pen, d: Design) -> None:
    """Draw watches from the front, the strap open above and below."""
    stitching, dial = d.detail_rgb("stitching"), d.detail_rgb("dial")
    w = d.vary(0, 11, 15)
    for s in (1, -1):
        pen.area(
            [
                (50 - w, 50 + s * 18), (50 + w, 50 + s * 18), (49 + w * 0.8, 50 + s * 45),
                (51 + w * 0.3, 50 + s * 48), (49 - w * 0.3, 50 + s * 48), (51 - w * 0.8, 50 + s * 45),
            ],
            d.body,
            curved=False,
        )
        for x in (1, -1):
            pen.stitch([(50 + x * (w - 2.6), 50 + s * 27), (50 + x * (w * 0.8 - 3), 50 + s * 45)], stitching, 1.5)
    pen.area([(73, 47), (79, 47), (79, 53), (73, 53)], (214, 184, 96), curved=False)
    if has(d, "category modifier", "round-dial"):
        pen.oval(50, 50, 26, 26, STEEL, edge=DARK)
        pen.oval(50, 50, 21.5, 21.5, dial, edge=DARK)
    else:
        for half, colour in ((24.0, STEEL), (19.5, dial)):
            pen.area(
                [(50 - half, 50 - half), (50 + half, 50 - half), (50 + half, 50 + half), (50 - half, 50 + half)],
                colour,
                curved=False,
            )
    ink, step = contrast(dial), (3 if has(d, "style elements", "four hour marks") else 1)
    pen.marks(50, 50, 15.5, 18.5, range(0, 360, 30 * step), ink)
    pen.line([(50, 50), (42, 44)], ink, 2.2)
    pen.line([(50, 50), (56, 37)], ink, 1.7)
    pen.line([(47, 55), (50, 50), (59, 59)], d.detail_rgb("second hand"), 1.3, curved=False)
    pen.oval(50, 50, 1.6, 1.6, ink)
