"""What a search found: as a table, as a picture, as a page and as JSON."""

from __future__ import annotations

import html.parser
import json
from pathlib import Path

import pytest
from pictures import file_of, plain
from PIL import Image

from evaluation.hits_sheet import describe_query, draw_hits, hits_page, hits_table, price_of, require_sheet, write_hits
from product_data.outputs import OutputError
from retrieval.queries import Query
from retrieval.search import Answer
from retrieval.stores.interface import Hit, StoredProduct

RED, BLUE = (255, 0, 0), (0, 0, 255)


@pytest.fixture
def answer(tmp_path: Path) -> Answer:
    """Seven products: red pictures, one without a picture, one at a URL, and one with markup in its title."""
    path = tmp_path / "red.png"
    path.write_bytes(file_of(plain("red", 100)))
    images = [(str(path),)] * 5 + [(), ("https://example.org/bag.jpg",)]
    products = [
        StoredProduct(f"p-{place}", title=f"bag {place}", price=1234.5, currency="EUR", images=images[place])
        for place in range(6)
    ]
    products.append(
        StoredProduct("p-<6>", title="<script>alert(1)</script>", url="javascript:alert(1)", images=images[6])
    )
    hits = tuple(Hit(product, 0.9 - place / 10, 0.5, "mm") for place, product in enumerate(products))
    return Answer(hits, offset=10, form="t", reasoned=True, reasoning=("colour: red",), milliseconds={"encode": 1.6})


@pytest.mark.parametrize(
    ("query", "words"),
    [
        (Query("red bag"), "“red bag”"),
        (Query(image="a/photo.jpg"), "photo.jpg"),
        (Query("in blue", "photo.jpg", (1, 2, 3.5, 4)), "“in blue” with photo.jpg, region 1,2,3.5,4"),
        (Query("in blue", b"x", weight=0.25), "“in blue” with a picture (weight of the words 0.25)"),
        (Query(like="p-1"), "like product p-1"),
    ],
)
def test_a_query_is_described_by_its_parts(query, words):
    assert describe_query(query) == words


def test_the_table_has_a_line_for_each_product(answer):
    lines = hits_table(answer).splitlines()
    assert lines[0].split() == ["rank", "score", "nearest", "by", "product", "title", "price", "availability"]
    assert len(lines) == 9
    assert lines[2].split()[:2] == ["11", "0.900"]
    assert "1,234.50 EUR" in lines[2]
    assert price_of(answer.hits[6].product) == ""
    assert hits_table(Answer(())) == "no product was found"


def colours(sheet: Image.Image) -> dict[tuple[int, ...], int]:
    return {colour: count for count, colour in sheet.convert("RGB").getcolors(2**24)}


def test_the_picture_shows_every_product_and_the_query(answer):
    assert colours(draw_hits(Query("red bag"), answer))[RED] > 5 * 130**2
    shown = colours(draw_hits(Query(image=plain("blue")), answer, plain("blue")))
    assert shown[BLUE] > 130**2
    assert shown[RED] > 5 * 130**2
    assert RED not in colours(draw_hits(Query("red bag"), Answer(())))


class Tags(html.parser.HTMLParser):
    """The tags of a page with their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


def test_the_page_shows_pictures_inline_and_runs_nothing(answer):
    text = hits_page(Query("<b>bag</b>", plain("blue")), answer, plain("blue"))
    tags = Tags(text).found
    sources = [attributes["src"] for tag, attributes in tags if tag == "img"]
    assert len(sources) == 6
    assert all(source.startswith("data:image/jpeg;base64,") for source in sources)
    assert not [tag for tag, _ in tags if tag in ("script", "b", "a")]
    assert "colour: red" in text
    assert text.count("picture is not on this machine") == 1
    assert text.count(">no picture<") == 1
    assert "No product was found." in hits_page(Query("bag"), Answer(()))


@pytest.mark.parametrize("name", ["hits.json", "new/hits.html", "hits.jpg", "hits.png"])
def test_the_suffix_decides_what_is_written(answer, tmp_path, name):
    path = write_hits(Query("bag"), answer, tmp_path / name)
    if name.endswith("json"):
        assert [hit["product_id"] for hit in json.loads(path.read_text())["hits"]][-1] == "p-<6>"
    elif name.endswith("html"):
        assert path.read_text().startswith("<!doctype html>")
    else:
        with Image.open(path) as sheet:
            assert sheet.format == ("PNG" if name.endswith("png") else "JPEG")


@pytest.mark.parametrize("name", ["hits.gif", "hits"])
def test_another_suffix_is_refused(answer, tmp_path, name):
    with pytest.raises(OutputError, match=r"expected one of \.json, \.html, \.png, \.jpg, \.jpeg"):
        write_hits(Query("bag"), answer, tmp_path / name)
    with pytest.raises(OutputError, match="--output"):
        require_sheet("--output", tmp_path / name)
