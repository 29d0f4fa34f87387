"""Texts of every script on pictures: a font that has them, or words in their place, said once."""

from __future__ import annotations

import shutil
from pathlib import Path

import matplotlib
import pytest
from matplotlib.text import Text
from PIL import ImageDraw, ImageFont

from evaluation import fonts
from evaluation.benchmarks.retrieval import SearchExample
from evaluation.contact_sheets import contact_sheet
from evaluation.fonts import font_for, readable
from product_data.tables import ProductRow, QueryRow

THAI, CHINESE, FIRE = "รองเท้า", "红色连衣裙", "🔥"


@pytest.fixture(autouse=True)
def no_fonts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A system without any font but Pillow's own."""
    monkeypatch.setattr(fonts, "_SYSTEM_FONTS", ())
    monkeypatch.setattr(fonts, "_FOLDERS", ())
    monkeypatch.setattr(fonts, "_reported", set())
    fonts._best_font.cache_clear()


def test_what_no_font_has_is_put_into_words_and_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    text = f"Hot {FIRE}\ufe0f {THAI} {CHINESE} dress"
    _, lacking = font_for(text)
    assert {*THAI, *CHINESE, FIRE} == lacking
    assert readable(text, lacking) == "Hot [fire] [Thai: 7 letters] [Chinese: 5 letters] dress"
    said = capsys.readouterr().err
    assert "Chinese, Thai, symbols such as emoji" in said
    assert said.count("no font of this system") == 1
    font_for(f"again {THAI}")
    assert capsys.readouterr().err == ""


def test_an_emoji_of_several_parts_leaves_no_box_for_its_joiners() -> None:
    woman_cook = "👩\u200d🍳"
    _, lacking = font_for(woman_cook)
    assert readable(woman_cook, lacking) == "[woman][cooking]"
    assert readable("plain text", lacking) == "plain text"
    persian = "می\u200cخواهم"
    assert "\u200c" in readable(persian, frozenset())  # between letters it shapes them


def test_a_font_with_the_characters_is_found_wherever_the_system_keeps_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        dejavu = Path(ImageFont.truetype("DejaVuSans.ttf", 12).path)
    except OSError:
        pytest.skip("DejaVu Sans is not on this machine")
    georgian = "ფეხსაცმელი"
    assert font_for(georgian)[1] == frozenset(georgian)
    capsys.readouterr()
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "broken.ttf").write_bytes(b"no font")
    shutil.copy(dejavu, tmp_path / "deep" / "er" / "odd name.ttf")
    monkeypatch.setattr(fonts, "_FOLDERS", (str(tmp_path), str(tmp_path / "none")))
    fonts._best_font.cache_clear()
    font, lacking = font_for(georgian)
    assert lacking == frozenset()
    assert font(20).getname()[0] == "DejaVu Sans"
    assert capsys.readouterr().err == ""


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """All that is drawn in letters."""
    words: list[str] = []
    draw = ImageDraw.ImageDraw.text

    def noted(self: ImageDraw.ImageDraw, place: tuple[float, float], text: str, *rest: object, **how: object) -> None:
        words.append(text)
        draw(self, place, text, *rest, **how)  # type: ignore[arg-type]

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", noted)
    return words


def test_the_contact_sheet_draws_no_boxes(tmp_path: Path, written: list[str]) -> None:
    found = ((ProductRow("p-1", title=CHINESE), 0.5, True), (ProductRow("p-2", title="plain"), 0.4, False))
    examples = [SearchExample(QueryRow("q", "text", text=f"{THAI} {FIRE}"), found)]
    contact_sheet(examples, tmp_path / "sheet.png", title=f"Shop {FIRE}")
    everything = " ".join(" ".join(written).split())
    assert not set(everything) & {*THAI, *CHINESE, FIRE}
    assert "Shop [fire]" in everything
    assert "[Thai: 7 letters] [fire]" in everything
    assert "p-1: [Chinese: 5" in everything


def test_a_mark_that_the_font_lacks_is_lacking_like_its_letters(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A shaped mark alone is drawn on a dotted circle where the font has one, which is not the box of a lacking letter."""
    dejavu = Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
    font, lacking = font_for(f"Georgian ფ {THAI}", dejavu)
    assert lacking == frozenset(THAI)
    assert readable(THAI, lacking) == "[Thai: 7 letters]"


def test_the_charts_of_gate_and_ablation_write_names_of_any_script(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from evaluation.gate_report import draw_curves
    from training.studies.ablation_chart import draw_chart

    curve = [
        {"share": share, "R@10": 0.5, "R@10_coin": 0.5, "quantile": share, "threshold": 0.1} for share in (0.0, 1.0)
    ]
    written: list[str] = []
    set_text = Text.set_text
    monkeypatch.setattr(Text, "set_text", lambda self, text: (written.append(text), set_text(self, text))[1])
    directions = {"all": {"queries": 3, "curves": {"none": curve, "generate": curve}}}
    results = {"model": f"{CHINESE}-moon", "benchmark": THAI, "directions": directions}
    draw_curves(results, tmp_path / "gate.png")
    assert "Thinking when unsure: [Chinese: 5 letters]-moon on [Thai: 7 letters]" in written
    cell = {"mean": 0.5, "interval": [0.4, 0.6], "difference": None}
    suite = {
        "suite": CHINESE,
        "table": [{"metric": "R@10", "row": f"{THAI} t→mm", "cells": {f"cell {FIRE}": cell}}],
        "runs": {},
        "chance": {},
        "finished": 1,
        "planned": 1,
    }
    draw_chart(suite, tmp_path / "ablation.png")
    assert "Ablation [Chinese: 5 letters]: R@10, %, mean over seeds" in written
    assert "[Thai: 7 letters] t→mm" in written
    assert "cell\n[fire]" in written
    assert not set("".join(map(str, written))) & {*THAI, *CHINESE, FIRE}
