"""How each product type looks: one drawing function per leaf of the category tree.

Every function reads the design's attributes, so that what the tables state is what the picture shows; the eight
proportions of a family bend the outline without being attributes. `SHAPES` maps a type's name to its function.
"""

# Outlines are packed many points to a line; the formatter would give each point its own.
# fmt: off

from __future__ import annotations

import random
from collections.abc import Callable
from functools import lru_cache

from PIL import Image

from product_data.catalogue.drawing import SUPERSAMPLING, Pen, Point, contrast, darker, lighter, mirror
from product_data.catalogue.products import FAMILY_SIZE, GLOSS, TYPE_BY_NAME, WEAVE, Design, Rgb, sample_family

Draw = Callable[[Pen, Design], None]
STEEL: Rgb = (188, 192, 200)
DARK: Rgb = (52, 50, 58)


def draw_sprite(design: Design, size: int) -> Image.Image:
    """The product alone: RGBA, a square of `size` x SUPERSAMPLING pixels, transparent around it."""
    material = design.attributes["material"]
    finish = "gloss" if material in GLOSS else "weave" if material in WEAVE else "matt"
    pen = Pen(size, finish, scale=int(design.proportions[7] * 2.99))
    SHAPES[design.kind.name](pen, design)
    return pen.image


@lru_cache(maxsize=512)
def draw_distractor(name: str, variant: int, size: int) -> Image.Image:
    """One of the other objects that stand about in photos, of type `name`, the same in every catalogue: RGBA (size, size)."""
    rng = random.Random(f"distractor/{name}/{variant}")
    design = sample_family(TYPE_BY_NAME[name], rng)[rng.randrange(FAMILY_SIZE)]
    return draw_sprite(design, size).reduce(SUPERSAMPLING)


def _pattern(design: Design) -> str:
    return design.attributes.get("pattern", "plain")


def _is(design: Design, key: str, value: str) -> bool:
    return design.attributes[key] == value


def _logo(pen: Pen, design: Design, x: float, y: float, radius: float) -> None:
    """The logo; on a patterned area it sits on a plain patch of the body's colour."""
    if _pattern(design) != "plain":
        pen.oval(x, y, radius * 1.55, radius * 1.55, design.body, edge=darker(design.body))
    pen.logo(design.attributes["logo"], x, y, radius, contrast(design.body))


# ------------------------------------------------------------------------------------------------------- shoes


def sneakers(pen: Pen, d: Design) -> None:
    """From the side, the toe to the right."""
    high = _is(d, "category modifier", "high-top")
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
    if _is(d, "style elements", "lace-up"):
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
    """From the side, the toe to the right."""
    top = 8.0 if _is(d, "category modifier", "knee-high") else 34.0
    wide = d.vary(0, 42, 48)
    pen.area(
        [(18, 78), (18, 78), (17, 60), (18, top), (18, top), (wide, top), (wide, top), (wide + 2, 44), (54, 56), (74, 61),
         (86, 68), (88, 78), (88, 78)],
        d.body,
        form="round",
    )
    pen.area([(18, top), (wide, top), (wide, top + 6), (18, top + 6)], d.detail_rgb("trim"), curved=False)
    if _is(d, "style elements", "side zip"):
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
    """From the side, the toe to the right."""
    sole = d.detail_rgb("sole")
    if _is(d, "category modifier", "stiletto"):
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
        pattern=_pattern(d),
    )
    pen.line([(16, 37), (24, 51), (42, dip + 1), (56, dip + 5), (67, 69)], d.detail_rgb("trim"), 2.0)
    if _is(d, "style elements", "bow"):
        tone = lighter(d.body, 0.35)
        for side in (-1, 1):
            pen.area([(70, 70), (70, 70), (70 + side * 9, 62), (70 + side * 12, 69), (70 + side * 9, 77)], tone)
        pen.oval(70, 70, 2.6, 3.0, darker(tone, 0.2))
    else:
        pen.line([(10, 34), (20, 22), (31, 24), (34, 32), (26, 52)], darker(d.body, 0.3), 2.6)
        pen.oval(32, 27, 2.4, 2.4, (232, 206, 110), edge=DARK)


# -------------------------------------------------------------------------------------------------------- bags


def backpacks(pen: Pen, d: Design) -> None:
    """From the front."""
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
    if _is(d, "category modifier", "roll-top"):
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
        if _is(d, "style elements", "one front pocket")
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
    """From the front."""
    rise = 6.0 if _is(d, "category modifier", "long-handled") else 20.0
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
    if _is(d, "style elements", "round corners"):
        outline = [
            (50, 36), (50 + w * 0.9, 36), (50 + w * 0.9, 36), (53 + w, 66), (50 + w * 0.8, 90), (50 + w * 0.4, 94),
            (50, 94),
        ]
    pen.area(mirror(outline), d.body, pattern=_pattern(d))
    pen.stitch([(52 - w * 0.9, 41), (48 + w * 0.9, 41)], d.detail_rgb("stitching"), 1.6)
    pen.stitch([(54 - w * 0.9, 87), (50, 88), (46 + w * 0.9, 87)], d.detail_rgb("stitching"), 1.6)
    _logo(pen, d, 50, 65, 9.5)


# ---------------------------------------------------------------------------------------------------- clothing


def _torso(pen: Pen, d: Design, *, long_sleeves: bool, half: float, neck: float = 10.0, hem: float = 90.0) -> None:
    """Body and sleeves of a top, from the front."""
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
        pen.area(points, d.body, pattern=_pattern(d))
    body: list[Point] = [

        (50, 15), (50 + neck, 11), (50 + neck, 11), (50 + half, 17), (50 + half + 3, 30), (50 + half, 48), (50 + half, hem),
        (50 + half, hem), (50, hem + 1),
    ]
    pen.area(mirror(body), d.body, pattern=_pattern(d))


def _cuffs(pen: Pen, colour: Rgb, *, long_sleeves: bool, half: float) -> None:
    for s in (1, -1):
        ends = ((half + 8, 76.5), (half + 18, 74.5)) if long_sleeves else ((half + 7.5, 41), (half + 15.5, 33))
        pen.line([(50 + s * x, y) for x, y in ends], colour, 3.2)


def t_shirts(pen: Pen, d: Design) -> None:
    """From the front."""
    long_sleeves, half, trim = _is(d, "category modifier", "long-sleeved"), d.vary(0, 21, 26), d.detail_rgb("trim")
    _torso(pen, d, long_sleeves=long_sleeves, half=half)
    _cuffs(pen, trim, long_sleeves=long_sleeves, half=half)
    neck: list[Point] = [(40, 11), (43, 18), (50, 21), (57, 18), (60, 11)]
    if _is(d, "style elements", "V-neck"):
        neck = [(40, 11), (40, 11), (50, 30), (50, 30), (60, 11), (60, 11)]
    pen.flat(neck, darker(d.body, 0.55))
    pen.line(neck, trim, 2.6, curved=len(neck) == 5)
    _logo(pen, d, 50, 47, 8.5)


def shirts(pen: Pen, d: Design) -> None:
    """From the front, buttoned up."""
    long_sleeves, half, trim = _is(d, "category modifier", "long-sleeved"), d.vary(0, 22, 27), d.detail_rgb("trim")
    _torso(pen, d, long_sleeves=long_sleeves, half=half, hem=d.vary(1, 84, 92))
    _cuffs(pen, trim, long_sleeves=long_sleeves, half=half)
    pen.area([(46, 20), (54, 20), (54, 88), (46, 88)], d.body, curved=False)
    for s in (1, -1):
        collar: list[Point] = [(50, 19), (50 + s * 9, 9), (50 + s * 14, 15), (50 + s * 9, 27)]
        pen.area([p for point in collar for p in (point, point)], lighter(d.body, 0.25), curved=False)
        pen.line([(50, 19), (50 + s * 9, 27), (50 + s * 14, 15)], trim, 1.5, curved=False)
    if _is(d, "style elements", "chest pocket"):
        pen.area([(58, 36), (70, 36), (70, 47), (64, 51), (58, 47)], d.body, curved=False)
        pen.line([(58, 38), (70, 38)], trim, 1.5)
    count = int(d.attributes["buttons"])
    for k in range(count):
        pen.oval(50, 30 + 50 * k / (count - 1), 2.1, 2.1, contrast(d.body), edge=DARK)


def dresses(pen: Pen, d: Design) -> None:
    """From the front."""
    hem = 92.0 if _is(d, "category modifier", "midi") else 76.0
    flare, pattern = d.vary(0, 26, 36), _pattern(d)
    if _is(d, "style elements", "puff sleeves"):
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
    """From the front."""
    wide = _is(d, "category modifier", "wide-leg")
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
        if _is(d, "style elements", "turned-up hem"):
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
    """From the front, hood up behind the neck."""
    half, trim = d.vary(0, 23, 27), d.detail_rgb("trim")
    _torso(pen, d, long_sleeves=True, half=half, neck=12, hem=86)
    _cuffs(pen, trim, long_sleeves=True, half=half)
    pen.area([(50 - half, 84), (50 + half, 84), (50 + half - 1, 91), (51 - half, 91)], trim, curved=False)
    pen.area(mirror([(50, 3), (60, 5), (68, 15), (64, 24), (50, 31)]), d.body, form="ball")
    pen.area(mirror([(50, 8), (58, 10), (61, 17), (50, 27)]), darker(d.body, 0.55))
    if _is(d, "style elements", "kangaroo pocket"):
        pen.area([(38, 64), (62, 64), (70, 80), (70, 83), (30, 83), (30, 80)], lighter(d.body, 0.1), curved=False)
    else:
        for s in (1, -1):
            pen.line([(50 + s * 14, 64), (50 + s * 19, 80)], darker(d.body, 0.55), 2.0)
    zipped = _is(d, "category modifier", "zip-up")
    if zipped:
        pen.line([(50, 30), (50, 90)], STEEL, 1.6)
    for s in (1, -1):
        pen.line([(50 + s * 4, 27), (50 + s * 5.5, 36), (50 + s * 5, 42)], d.detail_rgb("drawstring"), 1.7)
        pen.oval(50 + s * 5, 43, 1.5, 2.0, d.detail_rgb("drawstring"))
    pen.logo(d.attributes["logo"], 62 if zipped else 50, 52, 6.4 if zipped else 7.6, contrast(d.body))


def caps(pen: Pen, d: Design) -> None:
    """From the side, the brim to the right."""
    brim, stitching, high = d.detail_rgb("brim"), d.detail_rgb("stitching"), d.vary(0, 20, 27)
    pen.area(
        [
            (10, 66), (10, 66), (12, 42), (28, high + 3), (44, high), (60, high + 8), (68, 46), (70, 66), (70, 66),
            (40, 69),
        ],
        d.body,
        form="ball",
    )
    if _is(d, "style elements", "mesh back"):
        for k in range(5):
            pen.line([(13 + 4.4 * k, 64), (15 + 4.6 * k, 46 - 3 * k)], darker(d.body, 0.6), 0.9)
        for y in (48, 54, 60):
            pen.line([(12, y), (31, y)], darker(d.body, 0.6), 0.9)
    pen.stitch([(42, high + 1), (35, 44), (34, 66)], stitching, 1.5)
    pen.stitch([(12, 62), (40, 65), (69, 62)], stitching, 1.5)
    pen.oval(43, high - 0.5, 3.6, 2.2, darker(d.body, 0.35))
    if _is(d, "category modifier", "curved-brim"):
        points: list[Point] = [(66, 58), (66, 58), (82, 61), (95, 72), (95, 78), (82, 72), (64, 69), (64, 69)]
    else:
        points = [(66, 59), (66, 59), (97, 58), (97, 58), (98, 64), (98, 64), (64, 69), (64, 69)]
    pen.area(points, brim)
    pen.logo(d.attributes["logo"], 54, 47, 7.2, contrast(d.body))


def umbrellas(pen: Pen, d: Design) -> None:
    """Open, from the side."""
    wide = _is(d, "category modifier", "wide")
    half, rise = (46.0, 16.0) if wide else (37.0, 8.0)
    hem, trim, handle = 52.0 + d.vary(0, -3, 3), d.detail_rgb("trim"), d.detail_rgb("handle")
    pen.line([(50, 6), (50, 82)], DARK, 1.8)
    if _is(d, "style elements", "crook handle"):
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
    pen.area(outline, d.body, pattern=_pattern(d), form="ball")
    for rib in (-0.6, -0.2, 0.2, 0.6):
        pen.line([(50, rise), (50 + rib * half * 0.8, rise + 18), (50 + rib * half, hem)], darker(d.body, 0.4), 0.9)
    for k in range(5):
        left = 50 - half + k * 2 * half / 5
        pen.line([(left, hem - 0.5), (left + half / 5, hem - 5.5), (left + 2 * half / 5, hem - 0.5)], trim, 2.6)
    pen.line([(50, rise), (50, rise - 5)], DARK, 2.4)


# ----------------------------------------------------------------------------------------------------- kitchen


def mugs(pen: Pen, d: Design) -> None:
    """From the front, the handle to the right."""
    tall = _is(d, "category modifier", "tall")
    top, half = (16.0, 24.0) if tall else (30.0, 31.0)
    foot = half - d.vary(0, 0, 6)
    x, right, middle = 42.0, 42 + half, (top + 88) / 2
    handle: list[Point] = [
        (right - 4, middle - 17), (right + 14, middle - 15), (right + 18, middle), (right + 12, middle + 15),
        (right - 5, middle + 17),
    ]
    if _is(d, "style elements", "square handle"):
        handle = [
            (right - 4, middle - 16), (right + 16, middle - 16), (right + 16, middle + 16),
            (right - 5, middle + 16),
        ]
    rounded = len(handle) == 5
    pen.line(handle, darker(d.body, 0.45), 8.4, curved=rounded)
    pen.line(handle, d.body, 6.4, curved=rounded)
    outline: list[Point] = [(x, top), (right, top), (right, top), (x + foot + 1, 80), (x + foot - 5, 90), (x, 92)]
    pen.area(mirror(outline, x), d.body, pattern=_pattern(d), form="round")
    pen.oval(x, top, half, 6.4, d.detail_rgb("rim"), edge=darker(d.detail_rgb("rim"), 0.5))
    pen.oval(x, top + 0.7, half - 3.4, 4.2, (84, 52, 34), edge=darker(d.body, 0.5))
    _logo(pen, d, x, middle + 3, 9.0)


def teapots(pen: Pen, d: Design) -> None:
    """From the side, the spout to the right."""
    tall = _is(d, "category modifier", "tall")
    top, half = (30.0, 24.0) if tall else (38.0, 30.0)
    pen.line([(24, top + 10), (8, top + 8), (5, 62), (14, 78), (26, 76)], darker(d.body, 0.45), 6.6)
    pen.line([(24, top + 10), (8, top + 8), (5, 62), (14, 78), (26, 76)], d.body, 4.6)
    if _is(d, "style elements", "curved spout"):
        spout: list[Point] = [
            (60, 78), (60, 78), (80, 70), (82, 54), (88, 42), (96, 40), (96, 40), (91, 52), (90, 70), (72, 87),
            (60, 86),
        ]
    else:
        spout = [(58, 74), (58, 74), (92, 38), (92, 38), (98, 42), (98, 42), (66, 86), (66, 86)]
    pen.area(spout, d.body, form="round")
    outline: list[Point] = [
        (46, top), (56, top), (46 + half, 58), (46 + half - 1, 74), (62, 90), (60, 92), (60, 92), (46, 92),
    ]
    pen.area(mirror(outline, 46), d.body, pattern=_pattern(d), form="ball")
    dome = d.vary(0, 9, 15)
    pen.area(
        mirror([(46, top - dome), (56, top - dome * 0.7), (63, top + 1), (63, top + 1), (46, top + 4)], 46),
        lighter(d.body, 0.15),
        form="ball",
    )
    knob = d.detail_rgb("lid knob")
    pen.oval(46, top - dome - 3.6, 5.2, 4.8, knob, edge=darker(knob, 0.5))
    pen.oval(44.4, top - dome - 5, 1.4, 1.2, lighter(knob, 0.6))
    _logo(pen, d, 46, 66, 9.0)


def pans(pen: Pen, d: Design) -> None:
    """From the side, the handle to the right."""
    deep = _is(d, "category modifier", "deep")
    top, foot, y = (38.0, 84.0, 46.0) if deep else (52.0, 76.0, 58.0)
    x, half = 34.0, d.vary(0, 25, 29)
    lidded = _is(d, "style elements", "glass lid")
    if lidded:
        pen.area(
            mirror([(x, top - 15), (x + half * 0.6, top - 11), (x + half, top), (x + half, top), (x, top + 2)], x),
            (206, 222, 230),
            form="ball",
        )
        pen.oval(x, top - 17, 4.4, 3.4, DARK)
    handle = d.detail_rgb("handle")
    tip = y - d.vary(1, 2, 12)
    pen.area(
        [
            (x + half - 2, y - 2), (x + half - 2, y - 2), (76, (y + tip) / 2 - 3), (94, tip - 4), (97, tip),
            (94, tip + 4), (76, (y + tip) / 2 + 4), (x + half - 2, y + 4), (x + half - 2, y + 4),
        ],
        handle,
    )
    pen.oval(92, tip, 1.8, 1.4, darker(handle, 0.6))
    outline: list[Point] = [
        (x, top), (x + half, top), (x + half, top), (x + half - 1, foot - 8), (x + half - 8, foot), (x, foot + 1),
    ]
    pen.area(mirror(outline, x), d.body, form="round")
    pen.area(
        mirror([(x, foot - 13), (x + half, foot - 13), (x + half - 1, foot - 7), (x, foot - 7)], x),
        d.detail_rgb("band"),
        form="round",
        curved=False,
    )
    if not lidded:
        pen.oval(x, top, half, 4.6, darker(d.body, 0.3), edge=darker(d.body, 0.6))
        pen.oval(x, top + 0.8, half - 3, 2.8, darker(d.body, 0.6))
        pen.area([(x - half - 4, top - 2), (x - half + 4, top - 2), (x - half + 3, top + 7)], d.body, curved=False)
    for k in range(int(d.attributes["rivets"])):
        pen.oval(x + half - 5 - 6.2 * k, y + 0.5, 2.1, 2.1, (232, 234, 240), edge=DARK)


def bottles(pen: Pen, d: Design) -> None:
    """Upright, from the front."""
    wide = _is(d, "category modifier", "wide-mouth")
    half, neck = (21.0, 15.0) if wide else (16.0, 8.0)
    shoulder, cap = d.vary(0, 32, 38), d.detail_rgb("cap")
    if _is(d, "style elements", "carry loop"):
        pen.line([(43, 12), (42, 4), (50, 2), (58, 4), (57, 12)], darker(cap, 0.45), 4.2)
        pen.line([(43, 12), (42, 4), (50, 2), (58, 4), (57, 12)], cap, 2.6)
    outline: list[Point] = [
        (50, 20), (50 + neck, 20), (50 + neck, 20), (50 + neck, 25), (50 + half, shoulder), (50 + half, 90),
        (46 + half, 95), (50, 96),
    ]
    pen.area(mirror(outline), d.body, form="round")
    pen.area(mirror([(50, 9), (52 + neck, 9), (52 + neck, 22), (50, 22)]), cap, form="round", curved=False)
    for x in range(-2, 3):
        pen.line([(50 + x * neck * 0.42, 12), (50 + x * neck * 0.42, 20)], darker(cap, 0.3), 0.8)
    band = d.detail_rgb("band")
    pen.area(
        mirror([(50, 78), (50 + half, 78), (50 + half, 84), (50, 84)]), band, form="round", curved=False, edge=False
    )
    pen.logo(d.attributes["logo"], 50, 57, 8.2, contrast(d.body))


# ------------------------------------------------------------------------------------------------------ living


def lamps(pen: Pen, d: Design) -> None:
    """A table lamp from the front."""
    base, fringe = d.detail_rgb("base"), d.detail_rgb("fringe")
    top = 12.0 if _is(d, "category modifier", "cone-shade") else 27.0
    wide = d.vary(0, 30, 36)
    if _is(d, "style elements", "ball base"):
        pen.area(mirror([(50, 54), (54, 56), (68, 70), (64, 86), (56, 90), (50, 90)]), base, form="ball")
    else:
        pen.area(mirror([(50, 50), (53, 50), (53, 88), (50, 88)]), base, form="round", curved=False)
    pen.area(mirror([(50, 87), (66, 88), (70, 93), (70, 93), (50, 95)]), base, form="round")
    shade: list[Point] = [(50, 8), (50 + top, 8), (50 + top, 8), (50 + wide, 52), (50 + wide, 52), (50, 53)]
    pen.area(mirror(shade), d.body, pattern=_pattern(d), form="round")
    pen.area(mirror([(50, 51), (50 + wide, 51), (50 + wide + 0.6, 54), (50, 54)]), fringe, curved=False, edge=False)
    for k in range(13):
        x = 50 - wide + 2 + (2 * wide - 4) * k / 12
        pen.line([(x, 53), (x, 58.5)], fringe, 1.8)


def chairs(pen: Pen, d: Design) -> None:
    """From the front, slightly above."""
    legs, wood = d.detail_rgb("legs"), d.body
    foot = 5.0 if _is(d, "style elements", "straight legs") else -3.0
    for s in (1, -1):
        for x, top, end in ((17.0, 60.0, 84.0), (24.0, 64.0, 96.0)):
            lean = x + (4 - foot if foot < 0 else 0)
            width = 2.6 if foot > 0 else 1.5
            pen.area(
                [
                    (50 + s * (x - 2.6), top), (50 + s * (x + 2.6), top), (50 + s * (lean + width), end),
                    (50 + s * (lean - width), end),
                ],
                legs if end > 90 else darker(legs, 0.25),
                curved=False,
            )
    half = d.vary(0, 19, 23)
    if _is(d, "category modifier", "round-back"):
        pen.line(
            [
                (50 - half, 60), (50 - half - 2, 30), (50 - half * 0.6, 9), (50, 5), (50 + half * 0.6, 9),
                (52 + half, 30), (50 + half, 60),
            ],
            darker(wood, 0.4),
            5.6,
        )
        pen.line(
            [
                (50 - half, 60), (50 - half - 2, 30), (50 - half * 0.6, 9), (50, 5), (50 + half * 0.6, 9),
                (52 + half, 30), (50 + half, 60),
            ],
            wood,
            4.0,
        )
    else:
        for s in (1, -1):
            pen.area(
                [(50 + s * half, 6), (50 + s * (half + 5), 6), (50 + s * (half + 4), 60), (50 + s * half, 60)],
                wood,
                curved=False,
            )
        pen.area(mirror([(50, 4), (55 + half, 4), (55 + half, 13), (50, 13)]), wood, curved=False)
    count = int(d.attributes["slats"])
    for k in range(count):
        x = 50 + (k - (count - 1) / 2) * 9.6
        pen.area([(x - 2.1, 9), (x + 2.1, 9), (x + 2.1, 60), (x - 2.1, 60)], lighter(wood, 0.2), curved=False)
    seat: list[Point] = [(50, 56), (72, 56), (78, 66), (77, 70), (50, 71)]
    pen.area(mirror(seat), wood, pattern=_pattern(d))
    pen.line([(23, 70), (50, 71.5), (77, 70)], darker(wood, 0.4), 1.6)


def vases(pen: Pen, d: Design) -> None:
    """From the front."""
    slim = _is(d, "category modifier", "slim-neck")
    neck, belly, low = (6.0, 24.0, 70.0) if slim else (13.0, 31.0, 58.0)
    belly += d.vary(0, -2, 3)
    lip, rim = neck + d.vary(1, 2, 7), d.detail_rgb("rim")
    if _is(d, "style elements", "two handles"):
        for s in (1, -1):
            path: list[Point] = [
                (50 + s * neck, 22), (50 + s * (neck + 14), 22), (50 + s * (neck + 17), 36),
                (50 + s * (belly - 4), 48),
            ]
            pen.line(path, darker(d.body, 0.5), 5.2)
            pen.line(path, d.body, 3.4)
    outline: list[Point] = [
        (50, 10), (50 + lip, 10), (50 + lip, 10), (50 + neck, 22), (50 + neck + 2, 34), (50 + belly, low),
        (50 + belly * 0.7, 88), (50 + belly * 0.5, 94), (50 + belly * 0.5, 94), (50, 95),
    ]
    pen.area(mirror(outline), d.body, pattern=_pattern(d), form="ball")
    count = int(d.attributes["bands"])
    if _pattern(d) != "plain":
        reach = count * 4.25 + 1.5
        pen.area(mirror([
            (50, low - reach), (49 + belly, low - reach), (49 + belly, low + reach), (50, low + reach + 2),
        ]), d.body, form="ball", edge=False)
    for k in range(count):
        y = low + (k - (count - 1) / 2) * 8.5
        half = belly * (1 - ((y - low) / 48) ** 2) - 0.6
        pen.line([(50 - half, y - 1), (50, y + 1.6), (50 + half, y - 1)], contrast(d.body), 2.3)
    pen.oval(50, 10, lip, 3.8, rim, edge=darker(rim, 0.5))
    pen.oval(50, 10.4, lip - 2.4, 2.1, (30, 26, 36))


def cushions(pen: Pen, d: Design) -> None:
    """From the front."""
    piping = d.detail_rgb("piping")
    size = d.vary(0, 36, 40)
    if _is(d, "category modifier", "square"):
        points: list[Point] = mirror(
            [
                (50, 53 - size), (46 + size, 49 - size), (54 + size, 46 - size), (51 + size, 54 - size),
                (48 + size, 50), (51 + size, 46 + size), (54 + size, 54 + size), (46 + size, 51 + size),
                (50, 47 + size),
            ]
        )
        tips = [(50 + s * (size + 3), 50 + t * (size + 3)) for s in (1, -1) for t in (1, -1)]
    else:
        points = mirror(
            [
                (50, 50 - size), (50 + size * 0.72, 50 - size * 0.72), (50 + size, 50),
                (50 + size * 0.72, 50 + size * 0.72), (50, 50 + size),
            ]
        )
        tips = [(50 + s * size * 0.75, 50 + t * size * 0.75) for s in (1, -1) for t in (1, -1)]
    if _is(d, "style elements", "tassels"):
        for x, y in tips:
            s, t = (1 if x > 50 else -1), (1 if y > 50 else -1)
            for spread in (-3, 0, 3):
                pen.line(
                    [(x - s * 2, y - t * 2), (x + s * 6 + spread, y + t * 6 - spread * s * t)],
                    darker(d.body, 0.35),
                    1.6,
                )
    pen.area(points, d.body, pattern=_pattern(d), form="ball")
    pen.line([*points, points[0], points[1]], piping, 2.4)
    _logo(pen, d, 50, 50, 11.0)


# ------------------------------------------------------------------------------------------------- electronics


def headphones(pen: Pen, d: Design) -> None:
    """From the front, slightly turned."""
    rise, pads = d.vary(0, 6, 12), d.detail_rgb("ear pads")
    arch: list[Point] = [(17, 62), (15, 40), (28, rise + 7), (50, rise), (72, rise + 7), (85, 40), (83, 62)]
    if _is(d, "style elements", "cable"):
        pen.line([(20, 80), (22, 94), (40, 96), (52, 90), (66, 95)], DARK, 1.8)
        pen.oval(68, 95, 2.4, 1.6, (226, 196, 100))
    pen.line(arch, darker(d.body, 0.5), 8.2)
    pen.line(arch, d.body, 6.4)
    pen.line(arch[1:-1], d.detail_rgb("headband stripe"), 2.2)
    large = 1.0 if _is(d, "category modifier", "over-ear") else 0.72
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
    """From the front."""
    portable = _is(d, "category modifier", "portable")
    left, right, top, foot = (6.0, 94.0, 32.0, 80.0) if portable else (25.0, 75.0, 6.0, 94.0)
    two, cone = _is(d, "style elements", "two drivers"), d.detail_rgb("cone")
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
    """From above."""
    full = _is(d, "category modifier", "full-size")
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
    for x in (36.0, 64.0) if _is(d, "style elements", "two sticks") else (36.0,):
        pen.oval(x, 60, 6.6, 6.2, darker(d.body, 0.6), edge=DARK)
        pen.oval(x, 59, 4.8, 4.4, stick, edge=darker(stick, 0.6))
    pen.logo(d.attributes["logo"], 50, 45, d.vary(0, 5.4, 6.2), contrast(d.body))


def watches(pen: Pen, d: Design) -> None:
    """From the front, the strap open above and below."""
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
    if _is(d, "category modifier", "round-dial"):
        pen.oval(50, 50, 26, 26, STEEL, edge=DARK)
        pen.oval(50, 50, 21.5, 21.5, dial, edge=DARK)
    else:
        for half, colour in ((24.0, STEEL), (19.5, dial)):
            pen.area(
                [(50 - half, 50 - half), (50 + half, 50 - half), (50 + half, 50 + half), (50 - half, 50 + half)],
                colour,
                curved=False,
            )
    ink, step = contrast(dial), (3 if _is(d, "style elements", "four hour marks") else 1)
    pen.marks(50, 50, 15.5, 18.5, range(0, 360, 30 * step), ink)
    pen.line([(50, 50), (42, 44)], ink, 2.2)
    pen.line([(50, 50), (56, 37)], ink, 1.7)
    pen.line([(47, 55), (50, 50), (59, 59)], d.detail_rgb("second hand"), 1.3, curved=False)
    pen.oval(50, 50, 1.6, 1.6, ink)


SHAPES: dict[str, Draw] = {
    "Sneakers": sneakers,
    "Boots": boots,
    "Heels": heels,
    "Backpacks": backpacks,
    "Tote bags": tote_bags,
    "T-shirts": t_shirts,
    "Shirts": shirts,
    "Dresses": dresses,
    "Trousers": trousers,
    "Hoodies": hoodies,
    "Caps": caps,
    "Umbrellas": umbrellas,
    "Mugs": mugs,
    "Teapots": teapots,
    "Pans": pans,
    "Bottles": bottles,
    "Lamps": lamps,
    "Chairs": chairs,
    "Vases": vases,
    "Cushions": cushions,
    "Headphones": headphones,
    "Speakers": speakers,
    "Controllers": controllers,
    "Watches": watches,
}
