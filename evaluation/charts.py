"""Draw charts with matplotlib: pictures of panels in one style, and SVG drawings that use the colours of their page.

This file does not use pyplot: it opens no window, shares no state, and draws the same without a screen.
"""

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ft2font import FT2Font
from matplotlib.patches import FancyBboxPatch

from evaluation.fonts import font_for, readable

INK, FAINT, LINE, BLUE, GREEN, RED = "#20242c", "#787e8a", "#e2e5eb", "#426eb4", "#22a054", "#cc443c"
_GROUND, _CARD = "#f4f5f8", "#ffffff"
# Sizes of a panel and its surroundings, in inches of `_PIXELS` pixels.
_COLUMNS, _WIDE, _HIGH, _GAP, _MARGIN, _HEAD, _PIXELS = 3, 4.0, 3.0, 0.18, 0.28, 0.84, 150
_LEFT, _RIGHT, _TOP = 0.5, 0.26, 0.56  # margins of the plot in its panel
_STYLE: dict[Any, Any] = {
    "text.parse_math": False,  # "$" in a name is a "$"
    "text.color": INK,
    "axes.facecolor": _CARD,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": LINE,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "xtick.major.size": 0,
    "xtick.major.pad": 6,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "legend.fontsize": 10,
    "svg.fonttype": "none",  # letters remain text
    "svg.hashsalt": "moon",  # the same drawing is always the same text
} | {f"axes.spines.{side}": False for side in ("left", "right", "top", "bottom")}


@dataclass(frozen=True)
class Panels:
    """The figure that `panels` opens, to draw into.

    Args:
        figure: the figure, for parts outside the panels such as a legend.
        axes: the axes of each panel.
        lacking: the characters that are in no font.
    """

    figure: Figure
    axes: Sequence[Axes]
    lacking: frozenset[str]

    def readable(self, text: str) -> str:
        """Put the characters that no font has into words, see `evaluation.fonts.readable`."""
        return readable(text, self.lacking)


@contextmanager
def panels(
    path: str | Path,
    heading: str,
    note: str,
    titles: Sequence[str],
    *,
    labels: str = "",
    foot: float = 0.4,
    left: float = _LEFT,
    high: float = _HIGH,
) -> Iterator[Panels]:
    """Open a picture of panels, three per row; the end of the `with` block writes it as PNG.

    Args:
        path: the PNG file to write.
        heading: one line above all panels.
        note: a smaller line below it.
        titles: title of each panel.
        labels: all other text of the picture; fonts with its characters are chosen. Default: none.
        foot: space below each plot for its labels, in inches. Default: 0.4.
        left: space to the left of each plot for its labels, in inches. Default: 0.5.
        high: height of a panel, in inches. Default: 3.
    """
    families, lacking = _fonts("".join([heading, note, *titles, labels]))
    rows = max(1, -(-len(titles) // _COLUMNS))
    width = 2 * _MARGIN + _COLUMNS * (_WIDE + _GAP) - _GAP
    height = _HEAD + rows * (high + _GAP) - _GAP + _MARGIN
    with matplotlib.rc_context(_STYLE | {"font.family": families}):
        figure = Figure(figsize=(width, height), facecolor=_GROUND)
        place: dict[str, Any] = {"transform": figure.dpi_scale_trans, "va": "top"}
        figure.text(_MARGIN, height - 0.18, readable(heading, lacking), fontsize=16, **place)
        figure.text(_MARGIN, height - 0.53, readable(note, lacking), fontsize=9.5, color=FAINT, **place)
        axes = []
        for number, title in enumerate(titles):
            side = _MARGIN + number % _COLUMNS * (_WIDE + _GAP)
            bottom = height - _HEAD - number // _COLUMNS * (high + _GAP) - high
            card = FancyBboxPatch((side, bottom), _WIDE, high, "round,pad=0,rounding_size=0.1", fc=_CARD, ec=LINE)
            card.set(transform=figure.dpi_scale_trans, zorder=-1)
            figure.add_artist(card)
            size = (_WIDE - left - _RIGHT) / width, (high - _TOP - foot) / height
            axes.append(figure.add_axes(((side + left) / width, (bottom + foot) / height, *size)))
            figure.text(side + 0.16, bottom + high - 0.14, readable(title, lacking), fontsize=11, **place)
        yield Panels(figure, axes, lacking)
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, format="png", dpi=_PIXELS, pil_kwargs={"optimize": True})


def _fonts(text: str) -> tuple[list[str], frozenset[str]]:
    """Return the font families to try for each character, matplotlib's first, and the characters that none has."""
    own = Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
    known = FT2Font(str(own)).get_charmap()
    others = "".join(character for character in text if ord(character) not in known)
    font, lacking = font_for(others)
    file = getattr(font(12), "path", None)
    if set(others) <= lacking or not isinstance(file, str):
        return ["DejaVu Sans"], lacking
    font_manager.fontManager.addfont(file)
    return ["DejaVu Sans", font_manager.FontProperties(fname=file).get_name()], lacking


@contextmanager
def drawing(width: int, height: int) -> Iterator[tuple[Figure, Axes]]:
    """Open a figure of one plot in the style of all charts, for `inline_svg`.

    Args:
        width, height: size in CSS pixels; 46 on the left and 24 at the bottom are for labels of 11 pixels.
    """
    own: dict[Any, Any] = {"xtick.labelsize": 11, "ytick.labelsize": 11, "path.simplify": False}
    with matplotlib.rc_context(_STYLE | own):
        figure = Figure(figsize=(width / 72, height / 72))  # SVG counts 72 units an inch
        axes = figure.add_axes((46 / width, 24 / height, (width - 56) / width, (height - 40) / height))
        axes.patch.set_visible(False)
        yield figure, axes


def inline_svg(figure: Figure, name: str, colours: Mapping[str, str]) -> str:
    """Return a figure as an `<svg>` element for an HTML page, which may contain several.

    Letters remain text, in the font of the page. Ids are unique to the figure. The page sets width and height.

    Args:
        figure: from `drawing`, inside its `with` block.
        name: a name that is unique on the page and valid in an id.
        colours: "#rrggbb", as drawn, → its replacement, such as "var(--line)", which adapts to a dark page.
    """
    stream = io.StringIO()
    no_metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(stream, format="svg", transparent=True, metadata=no_metadata)
    text = stream.getvalue()
    text = text[text.index("<svg") :].strip()  # HTML does not allow the XML declaration and doctype
    text = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", text, count=1, flags=re.DOTALL)
    text = re.sub(r' xmlns\S*="[^"]*"| (?:width|height)="[\d.]+pt"| font-family: [^;"]*;', "", text)
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", text)
    for drawn, replacement in colours.items():
        text = text.replace(drawn, replacement)
    return re.sub(r"\s*\n\s*", " ", text)
