"""Charts: one style, names of any kind, and drawings that stand beside others in a page."""

import re
from pathlib import Path

import pytest
from PIL import Image

from evaluation import charts
from evaluation.charts import GREEN, LINE, drawing, inline_svg, panels

pytestmark = pytest.mark.lowest


def test_panels_stand_three_in_a_row_and_each_takes_what_is_drawn_into_it(tmp_path: Path) -> None:
    sizes = []
    for count in (1, 3, 4):
        with panels(tmp_path / "new" / "chart.png", "Heading", "note", [f"panel {k}" for k in range(count)]) as chart:
            assert len(chart.axes) == count
            for axes in chart.axes:
                axes.bar([0, 1], [1, 2], color=GREEN)
        with Image.open(tmp_path / "new" / "chart.png") as picture:
            sizes.append(picture.size)
            assert (34, 160, 84) in {colour for _, colour in picture.convert("RGB").getcolors(1 << 20) or ()}
    assert sizes[0] == sizes[1]
    assert sizes[2][0] == sizes[1][0]
    assert sizes[2][1] == sizes[1][1] + round(150 * 3.18)


def test_a_dollar_sign_in_a_name_is_drawn_as_it_stands(tmp_path: Path) -> None:
    """As mathematics, "$ \\x $" cannot be read at all."""
    with panels(tmp_path / "chart.png", r"From $5 \x to $9", r"$\undefined{$", [r"$\frac$"]) as chart:
        chart.axes[0].set_xticks([0], [r"$\x$"])
    assert (tmp_path / "chart.png").is_file()


def test_a_chart_leaves_no_setting_behind_and_opens_no_window(tmp_path: Path) -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    with pytest.raises(RuntimeError), panels(tmp_path / "chart.png", "Heading", "note", ["one"]):
        raise RuntimeError
    assert dict(matplotlib.rcParams) == before
    assert not (tmp_path / "chart.png").exists()
    house = Path(charts.__file__).parents[1]
    sources = [path.read_text() for room in ("evaluation", "training") for path in (house / room).rglob("*.py")]
    assert len(sources) > 50
    assert not [text for text in sources if re.search(r"import.*pyplot", text)]


def test_two_drawings_of_a_page_share_no_id_and_take_its_colours() -> None:
    texts = []
    for name in ("curve-0", "curve-1"):
        with drawing(380, 190) as (figure, axes):
            axes.plot([1, 2, 5], [-1.0, 0.25, 1.0], marker="o", color=LINE)
            texts.append(inline_svg(figure, name, {LINE: "var(--line)"}))
    for text in texts:
        assert text.startswith("<svg ")
        assert text.endswith("</svg>")
        assert 'viewBox="0 0 380 190"' in text
        assert "var(--line)" in text
        assert LINE not in text
        assert "−1.0" in text  # letters stay letters
        assert not re.search(r"<style|<\?xml|<!|xmlns|//|font-family|\d+pt", text)
    ids = [set(re.findall(r'\bid="([^"]+)"', text)) for text in texts]
    used = [set(re.findall(r'(?:href="#|url\(#)([^")]+)', text)) for text in texts]
    assert used[0] <= ids[0]
    assert used[1] <= ids[1]
    assert used[0]
    assert not ids[0] & ids[1]
    assert texts[0].replace("curve-0", "curve-1") == texts[1]  # the same drawing is the same text
