"""Parts that drawings of several product types share."""

from __future__ import annotations

from product_data.catalogue.drawing import Pen, contrast, darker
from product_data.catalogue.products import Design, Rgb

STEEL: Rgb = (188, 192, 200)
DARK: Rgb = (52, 50, 58)


def pattern_of(design: Design) -> str:
    """Return the pattern of a design; "plain" for a type without patterns."""
    return design.attributes.get("pattern", "plain")


def has(design: Design, key: str, value: str) -> bool:
    """Return whether an attribute of the design has this value."""
    return design.attributes[key] == value


def draw_logo(pen: Pen, design: Design, x: float, y: float, radius: float) -> None:
    """Draw the logo; on a patterned area it sits on a plain patch of the body's colour."""
    if pattern_of(design) != "plain":
        pen.oval(x, y, radius * 1.55, radius * 1.55, design.body, edge=darker(design.body))
    pen.logo(design.attributes["logo"], x, y, radius, contrast(design.body))
