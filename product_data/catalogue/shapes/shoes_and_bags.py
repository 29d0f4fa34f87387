"""Draw shoes and bags with the attributes of a design."""

# Outlines are packed many points to a line; the formatter would give each point its own.
# fmt: off

from __future__ import annotations

from product_data.catalogue.drawing import Pen, Point, contrast, darker, lighter, mirror
from product_data.catalogue.products import Design
from product_data.catalogue.shapes.parts import DARK, STEEL, draw_logo, has, pattern_of

# ------------------------------------------------------------------------------------------------------- shoes


def sneakers(pen: Pen, d: Design) -> None:
    """Draw sneakers from the side, the toe to the right."""
    high = has(d, "category modifier", "high-top")
    top, toe = (24.0 if high else 42.0), d.vary(0, 60, 66)
    upper: list[Point] = [
        (9, 74), (9, 74), (10, 58), (12, top + 2), (17, top - 1), (26, top + 5), (36, top + 3), (42, top + 5),
        (50, 50), (66, 57), (82, toe), (91, 70), (91, 74), (91, 74),
    ]
    pen.area(upper, d.body)
    pen.area(
        [(13, top + 2), (18, top), (27, top + 6), (37, top + 4), (41, top + 6), (30, top + 12), (17, top + 8)],
        darker(d.body),
    )
    pen.area([(74, 74), (74, 74), (76, 64), (84, toe + 3), (91, 71), (91, 74), (91, 74)], lighter(d.body, 0.5))
    if has(d, "style elements", "lace-up"):
        for k in range(5 if high else 4):
            x, y = 66 - 7 * k, 58 - (3.2 * k if k < 3 else 6.4 + (k - 2) * (10 if high else 3))
            pen.line([(x - 6, y + 5), (x + 2, y - 2)], (250, 250, 250), 2.0)
    else:
        for x, y in ((44, 50), (58, 57)):
            strap = [
                (x - 9, y + 12), (x - 9, y + 12), (x + 1, y - 3), (x + 1, y - 3), (x + 8, y), (x + 8, y),
                (x - 1, y + 15), (x - 1, y + 15),
            ]
            pen.area(strap, lighter(d.body, 0.3), curved=False)
    pen.logo(d.attributes["logo"], 27, 60, 6.6, contrast(d.body))
    stitching = d.detail_rgb("stitching")
    pen.stitch([(12, 70), (40, 71), (71, 71)], stitching, 1.3)
    pen.stitch([(72, 72), (73, 64), (77, 58)], stitching, 1.3)
    sole: list[Point] = [
        (7, 73), (7, 73), (50, 74), (90, 72), (94, 73), (93, 79), (88, 83), (50, 83), (12, 83), (7, 80),
    ]
    pen.area(sole, d.detail_rgb("sole"))
    pen.line([(9, 79), (91, 79)], darker(d.detail_rgb("sole"), 0.25), 0.8)


def boots(pen: Pen, d: Design) -> None:
    """Draw boots from the side, the toe to the right."""
    top = 8.0 if has(d, "category modifier", "knee-high") else 34.0
    wide = d.vary(0, 42, 48)
    pen.area(
        [(18, 78), (18, 78), (17, 60), (18, top), (18, top), (wide, top), (wide, top), (wide + 2, 44), (54, 56), (74, 61),
         (86, 68), (88, 78), (88, 78)],
        d.body,
        form="round",
    )
    pen.area([(18, top), (wide, top), (wide, top + 6), (18, top + 6)], d.detail_rgb("trim"), curved=False)
    if has(d, "style elements", "side zip"):
        pen.line([(31, top + 9), (31, 68)], darker(d.body, 0.6), 3.4)
        pen.line([(31, top + 9), (31, 68)], STEEL, 1.2)
        pen.oval(31, top + 11, 1.8, 2.4, (230, 214, 140), edge=DARK)
    else:
        pen.area([(17.5, 55), (50, 53), (51, 59), (17.5, 61)], darker(d.body, 0.45), curved=False)
        pen.oval(38, 57, 4.2, 4.2, (232, 206, 110), edge=DARK)
        pen.oval(38, 57, 2.0, 2.0, darker(d.body, 0.45))
    stitching = d.detail_rgb("stitching")
    pen.stitch([(20, 74), (50, 75), (86, 75)], stitching, 1.5)
    pen.stitch([(56, 58), (57, 66), (54, 74)], stitching, 1.5)
    sole = d.detail_rgb("sole")
    pen.area([(16, 77), (90, 77), (90, 82), (88, 85), (40, 84), (38, 84), (37, 91), (16, 91)], sole, curved=False)
    for x in range(45, 88, 7):
        pen.line([(x, 82), (x, 85)], darker(sole, 0.4), 1.2)


def heels(pen: Pen, d: Design) -> None:
    """Draw heels from the side, the toe to the right."""
    sole = d.detail_rgb("sole")
    if has(d, "category modifier", "stiletto"):
        heel: list[Point] = [
            (9, 50), (9, 50), (21, 52), (21, 52), (15, 70), (13.5, 87), (13.5, 87), (9.5, 87), (9.5, 87), (10, 66),
        ]
    else:
        heel = [(8, 50), (8, 50), (27, 54), (27, 54), (25, 87), (25, 87), (9, 87), (9, 87)]
    pen.area(heel, darker(d.body, 0.15), curved=False)
    pen.area(
        [
            (9, 52), (9, 52), (28, 57), (48, 74), (66, 84), (92, 86), (93, 88), (93, 90), (60, 89), (40, 79),
            (24, 62), (9, 57),
        ],
        sole,
    )
    dip = d.vary(0, 60, 66)
    pen.area(
        [
            (8, 53), (8, 53), (7, 38), (11, 32), (17, 36), (24, 50), (42, dip), (56, dip + 4), (68, 68), (82, 78),
            (94, 85), (92, 87), (66, 84), (48, 74), (28, 57),
        ],
        d.body,
        pattern=pattern_of(d),
    )
    pen.line([(16, 37), (24, 51), (42, dip + 1), (56, dip + 5), (67, 69)], d.detail_rgb("trim"), 2.0)
    if has(d, "style elements", "bow"):
        tone = lighter(d.body, 0.35)
        for side in (-1, 1):
            pen.area([(70, 70), (70, 70), (70 + side * 9, 62), (70 + side * 12, 69), (70 + side * 9, 77)], tone)
        pen.oval(70, 70, 2.6, 3.0, darker(tone, 0.2))
    else:
        pen.line([(10, 34), (20, 22), (31, 24), (34, 32), (26, 52)], darker(d.body, 0.3), 2.6)
        pen.oval(32, 27, 2.4, 2.4, (232, 206, 110), edge=DARK)


# -------------------------------------------------------------------------------------------------------- bags


def backpacks(pen: Pen, d: Design) -> None:
    """Draw backpacks from the front."""
    dark, stitching = darker(d.body, 0.3), d.detail_rgb("stitching")
    pen.line([(42, 13), (44, 5), (56, 5), (58, 13)], dark, 3.2)
    for points in ([(22, 30), (12, 48), (18, 80)], [(78, 30), (88, 48), (82, 80)]):
        pen.line(points, dark, 5.0)
    w = d.vary(0, 28, 33)
    pen.area(
        mirror([
            (50, 10), (50 + w * 0.7, 13), (50 + w, 30), (51 + w, 70), (49 + w, 90), (50 + w * 0.6, 93), (50, 93),
        ]),
        d.body,
        form="round",
    )
    if has(d, "category modifier", "roll-top"):
        for y in (15, 21, 27):
            pen.area(
                mirror([(50, y - 4), (48 + w * 0.9, y - 4), (51 + w * 0.9, y), (48 + w * 0.9, y + 4), (50, y + 4)]),
                d.body,
            )
        pen.area([(46, 9), (54, 9), (54, 38), (46, 38)], dark, curved=False)
        pen.oval(50, 35, 3, 2, STEEL, edge=DARK)
        pen.line([(50 - w * 0.8, 42), (50, 40.5), (50 + w * 0.8, 42)], d.detail_rgb("zip"), 2.2)
    else:
        pen.line(
            [(51 - w, 42), (52 - w * 0.9, 24), (50, 16), (48 + w * 0.9, 24), (49 + w, 42)], d.detail_rgb("zip"), 2.2
        )
        pen.oval(49 + w, 43, 2, 2.8, d.detail_rgb("zip"), edge=DARK)
    pockets = (
        [(50.0, w * 0.78)]
        if has(d, "style elements", "one front pocket")
        else [(50 - w * 0.45, w * 0.42), (50 + w * 0.45, w * 0.42)]
    )
    for x, half in pockets:
        pen.area(
            mirror([(x, 50), (x + half, 51), (x + half, 84), (x + half * 0.8, 87), (x, 87)], x), lighter(d.body, 0.12)
        )
        pen.stitch([(x - half + 2, 55), (x + half - 2, 55)], stitching, 1.4)
        pen.stitch([
            (x - half + 2, 56), (x - half + 2.5, 83), (x + half - 2.5, 83), (x + half - 2, 56),
        ], stitching, 1.4)
    pen.logo(d.attributes["logo"], pockets[-1][0], 70, 7.0 if len(pockets) == 1 else 6.0, contrast(d.body))


def tote_bags(pen: Pen, d: Design) -> None:
    """Draw tote bags from the front."""
    rise = 6.0 if has(d, "category modifier", "long-handled") else 20.0
    for shift, tone in ((3.0, darker(d.body, 0.5)), (0.0, darker(d.body, 0.3))):
        pen.line(
            [
                (33 + shift, 40), (34 + shift, rise + 10), (50 + shift, rise), (64 + shift, rise + 10),
                (65 + shift, 40),
            ],
            tone,
            3.4,
        )
    w = d.vary(0, 31, 37)
    outline: list[Point] = [(50, 36), (50 + w, 36), (50 + w, 36), (52 + w, 64), (50 + w, 92), (50 + w, 92), (50, 93)]
    if has(d, "style elements", "round corners"):
        outline = [
            (50, 36), (50 + w * 0.9, 36), (50 + w * 0.9, 36), (53 + w, 66), (50 + w * 0.8, 90), (50 + w * 0.4, 94),
            (50, 94),
        ]
    pen.area(mirror(outline), d.body, pattern=pattern_of(d))
    pen.stitch([(52 - w * 0.9, 41), (48 + w * 0.9, 41)], d.detail_rgb("stitching"), 1.6)
    pen.stitch([(54 - w * 0.9, 87), (50, 88), (46 + w * 0.9, 87)], d.detail_rgb("stitching"), 1.6)
    draw_logo(pen, d, 50, 65, 9.5)
