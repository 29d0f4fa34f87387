"""Draw kitchen and living-room products with the attributes of a design."""

# Outlines are packed many points to a line; the formatter would give each point its own.
# fmt: off

from __future__ import annotations

from product_data.catalogue.drawing import Pen, Point, contrast, darker, lighter, mirror
from product_data.catalogue.products import Design
from product_data.catalogue.shapes.parts import DARK, draw_logo, has, pattern_of

# ----------------------------------------------------------------------------------------------------- kitchen


def mugs(pen: Pen, d: Design) -> None:
    """Draw mugs from the front, the handle to the right."""
    tall = has(d, "category modifier", "tall")
    top, half = (16.0, 24.0) if tall else (30.0, 31.0)
    foot = half - d.vary(0, 0, 6)
    x, right, middle = 42.0, 42 + half, (top + 88) / 2
    handle: list[Point] = [
        (right - 4, middle - 17), (right + 14, middle - 15), (right + 18, middle), (right + 12, middle + 15),
        (right - 5, middle + 17),
    ]
    if has(d, "style elements", "square handle"):
        handle = [
            (right - 4, middle - 16), (right + 16, middle - 16), (right + 16, middle + 16),
            (right - 5, middle + 16),
        ]
    rounded = len(handle) == 5
    pen.line(handle, darker(d.body, 0.45), 8.4, curved=rounded)
    pen.line(handle, d.body, 6.4, curved=rounded)
    outline: list[Point] = [(x, top), (right, top), (right, top), (x + foot + 1, 80), (x + foot - 5, 90), (x, 92)]
    pen.area(mirror(outline, x), d.body, pattern=pattern_of(d), form="round")
    pen.oval(x, top, half, 6.4, d.detail_rgb("rim"), edge=darker(d.detail_rgb("rim"), 0.5))
    pen.oval(x, top + 0.7, half - 3.4, 4.2, (84, 52, 34), edge=darker(d.body, 0.5))
    draw_logo(pen, d, x, middle + 3, 9.0)


def teapots(pen: Pen, d: Design) -> None:
    """Draw teapots from the side, the spout to the right."""
    tall = has(d, "category modifier", "tall")
    top, half = (30.0, 24.0) if tall else (38.0, 30.0)
    pen.line([(24, top + 10), (8, top + 8), (5, 62), (14, 78), (26, 76)], darker(d.body, 0.45), 6.6)
    pen.line([(24, top + 10), (8, top + 8), (5, 62), (14, 78), (26, 76)], d.body, 4.6)
    if has(d, "style elements", "curved spout"):
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
    pen.area(mirror(outline, 46), d.body, pattern=pattern_of(d), form="ball")
    dome = d.vary(0, 9, 15)
    pen.area(
        mirror([(46, top - dome), (56, top - dome * 0.7), (63, top + 1), (63, top + 1), (46, top + 4)], 46),
        lighter(d.body, 0.15),
        form="ball",
    )
    knob = d.detail_rgb("lid knob")
    pen.oval(46, top - dome - 3.6, 5.2, 4.8, knob, edge=darker(knob, 0.5))
    pen.oval(44.4, top - dome - 5, 1.4, 1.2, lighter(knob, 0.6))
    draw_logo(pen, d, 46, 66, 9.0)


def pans(pen: Pen, d: Design) -> None:
    """Draw pans from the side, the handle to the right."""
    deep = has(d, "category modifier", "deep")
    top, foot, y = (38.0, 84.0, 46.0) if deep else (52.0, 76.0, 58.0)
    x, half = 34.0, d.vary(0, 25, 29)
    lidded = has(d, "style elements", "glass lid")
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
    """Draw bottles upright, from the front."""
    wide = has(d, "category modifier", "wide-mouth")
    half, neck = (21.0, 15.0) if wide else (16.0, 8.0)
    shoulder, cap = d.vary(0, 32, 38), d.detail_rgb("cap")
    if has(d, "style elements", "carry loop"):
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
    """Draw table lamps from the front."""
    base, fringe = d.detail_rgb("base"), d.detail_rgb("fringe")
    top = 12.0 if has(d, "category modifier", "cone-shade") else 27.0
    wide = d.vary(0, 30, 36)
    if has(d, "style elements", "ball base"):
        pen.area(mirror([(50, 54), (54, 56), (68, 70), (64, 86), (56, 90), (50, 90)]), base, form="ball")
    else:
        pen.area(mirror([(50, 50), (53, 50), (53, 88), (50, 88)]), base, form="round", curved=False)
    pen.area(mirror([(50, 87), (66, 88), (70, 93), (70, 93), (50, 95)]), base, form="round")
    shade: list[Point] = [(50, 8), (50 + top, 8), (50 + top, 8), (50 + wide, 52), (50 + wide, 52), (50, 53)]
    pen.area(mirror(shade), d.body, pattern=pattern_of(d), form="round")
    pen.area(mirror([(50, 51), (50 + wide, 51), (50 + wide + 0.6, 54), (50, 54)]), fringe, curved=False, edge=False)
    for k in range(13):
        x = 50 - wide + 2 + (2 * wide - 4) * k / 12
        pen.line([(x, 53), (x, 58.5)], fringe, 1.8)


def chairs(pen: Pen, d: Design) -> None:
    """Draw chairs from the front, slightly above."""
    legs, wood = d.detail_rgb("legs"), d.body
    foot = 5.0 if has(d, "style elements", "straight legs") else -3.0
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
    if has(d, "category modifier", "round-back"):
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
    pen.area(mirror(seat), wood, pattern=pattern_of(d))
    pen.line([(23, 70), (50, 71.5), (77, 70)], darker(wood, 0.4), 1.6)


def vases(pen: Pen, d: Design) -> None:
    """Draw vases from the front."""
    slim = has(d, "category modifier", "slim-neck")
    neck, belly, low = (6.0, 24.0, 70.0) if slim else (13.0, 31.0, 58.0)
    belly += d.vary(0, -2, 3)
    lip, rim = neck + d.vary(1, 2, 7), d.detail_rgb("rim")
    if has(d, "style elements", "two handles"):
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
    pen.area(mirror(outline), d.body, pattern=pattern_of(d), form="ball")
    count = int(d.attributes["bands"])
    if pattern_of(d) != "plain":
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
    """Draw cushions from the front."""
    piping = d.detail_rgb("piping")
    size = d.vary(0, 36, 40)
    if has(d, "category modifier", "square"):
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
    if has(d, "style elements", "tassels"):
        for x, y in tips:
            s, t = (1 if x > 50 else -1), (1 if y > 50 else -1)
            for spread in (-3, 0, 3):
                pen.line(
                    [(x - s * 2, y - t * 2), (x + s * 6 + spread, y + t * 6 - spread * s * t)],
                    darker(d.body, 0.35),
                    1.6,
                )
    pen.area(points, d.body, pattern=pattern_of(d), form="ball")
    pen.line([*points, points[0], points[1]], piping, 2.4)
    draw_logo(pen, d, 50, 50, 11.0)
