"""Queries beside the products that a search found, as a picture."""

from __future__ import annotations

from pathlib import Path

import pytest
from pictures import file_of, plain
from PIL import Image

from evaluation.benchmarks.retrieval import SearchExample
from evaluation.contact_sheets import contact_sheet
from evaluation.fonts import font_for
from product_data.tables import ProductRow, QueryRow


def test_the_contact_sheet_frames_right_products_and_survives_bad_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = Image.new("RGB", (300, 20), "red")
    products = [
        ProductRow("a", title="a title so long that it needs more than the two lines it has " * 2, images=(opened,)),
        ProductRow("b", images=(b"nonsense",)),
        ProductRow("c", title="unbrokenwordwithoutanyspaceinitthatisfartoolongforonelineofthesheet"),
    ]
    queries = [
        QueryRow("t", "text", text="words " * 40),
        QueryRow("i", "image", image=file_of(plain("blue", 40, 30))),
        QueryRow("m", "both", text="in blue", image=file_of(plain("blue", 40, 30))),
    ]
    found = tuple((product, 0.5, product.product_id == "a") for product in products)
    asked_for: list[str] = []
    monkeypatch.setattr("evaluation.contact_sheets.font_for", lambda text: asked_for.append(text) or font_for(text))
    path = contact_sheet(
        [SearchExample(query, found) for query in queries], tmp_path / "new" / "sheet.png", title="Moon"
    )
    with Image.open(path) as sheet:
        greens = [count for count, colour in sheet.convert("RGB").getcolors(2**24) if colour == (34, 160, 84)]
    assert greens
    assert greens[0] > 3000
    assert opened.size == (300, 20)
    words = "".join([*(row.title or row.product_id for row in products), *(query.text for query in queries)])
    assert set(words) <= set("".join(asked_for))
    with pytest.raises(ValueError, match="examples: found none"):
        contact_sheet([], tmp_path / "none.png")
