"""`moon3 search` on a folder that the embedding job wrote: every kind of query, what it prints, writes and refuses."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from small_feeds import feed

from moon3.__main__ import main
from retrieval.embedding.embedding_options import EmbeddingOptions
from retrieval.embedding.job import embed_feed
from retrieval.encode import encode, load_for_evaluation
from retrieval.vectors.vector_files import VectorFolder

COLOURS = ("red", "blue", "green")


@pytest.fixture(scope="module")
def shop(tmp_path_factory, tiny_moon):
    """Twelve products in three forms, at 1 to 12 euros; the model is named in the folder."""
    folder = tmp_path_factory.mktemp("shop")
    model = str(tiny_moon(preset="moon3", trained=True))
    products = [
        feed(folder, [number], title=f"{COLOURS[number % 3]} shoe {number}", price=number + 1.0)[0]
        for number in range(12)
    ]
    embed_feed(products, folder / "vectors", EmbeddingOptions(model, ("mm", "t", "i")), report=lambda _: None)
    return SimpleNamespace(
        vectors=str(folder / "vectors"), model=model, photo=str(folder / "4-0.png"), ids=[f"p{n:04}" for n in range(12)]
    )


def search(capsys, *words: str) -> dict:
    capsys.readouterr()
    assert main(["search", *words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def found(answer: dict) -> list[str]:
    return [hit["product_id"] for hit in answer["hits"]]


def ranking(shop, record: dict, forms=("mm", "t", "i")) -> list[str]:
    """Return the ids by brute force over the vectors of the folder."""
    model, processor = load_for_evaluation(shop.model, device="cpu")
    query_1D = encode(model, processor, [record], kind="query", progress=False).vectors
    folder = VectorFolder(shop.vectors)
    best: dict[str, float] = {}
    for form in forms:
        for ids, vector_ND in folder.vectors(form):
            for product_id, cosine in zip(ids, (vector_ND @ query_1D[0]).tolist(), strict=True):
                best[product_id] = max(cosine, best.get(product_id, -2))
    return sorted(best, key=lambda one: (-best[one], one))


@pytest.mark.parametrize(
    ("words", "record"),
    [
        (["red shoe"], {"text": "red shoe"}),
        (["--image", "PHOTO"], {"image": "PHOTO"}),
        (["--image", "PHOTO", "--box", "4,4,20,20"], {"image": "PHOTO", "core_box": [4.0, 4.0, 20.0, 20.0]}),
        (["in blue", "--image", "PHOTO"], {"text": "in blue", "image": "PHOTO"}),
    ],
)
def test_words_and_pictures_find_what_brute_force_finds(shop, capsys, words, record):
    record = {name: shop.photo if value == "PHOTO" else value for name, value in record.items()}
    words = [shop.photo if word == "PHOTO" else word for word in words]
    assert found(search(capsys, shop.vectors, *words, "--k", "5")) == ranking(shop, record)[:5]


def test_every_option_changes_what_is_found(shop, capsys):
    ids = found(search(capsys, shop.vectors, "red shoe", "--k", "12"))
    assert sorted(ids) == shop.ids
    page = search(capsys, shop.vectors, "red shoe", "--k", "3", "--offset", "4")
    assert (found(page), [hit["rank"] for hit in page["hits"]]) == (ids[4:7], [5, 6, 7])
    cheap = search(capsys, shop.vectors, "red shoe", "--where", "price < 4.5")
    assert found(cheap) == [one for one in ids if one in shop.ids[:4]]
    assert (
        found(search(capsys, shop.vectors, "red shoe", "--forms", "i"))
        == ranking(shop, {"text": "red shoe"}, ["i"])[:10]
    )
    alone = search(capsys, shop.vectors, "green shoe 8", "--k", "12")
    by_words = search(capsys, shop.vectors, "green shoe 8", "--k", "12", "--words")
    assert found(by_words) != found(alone)
    assert found(by_words).index("p0008") <= found(alone).index("p0008")
    assert by_words["hits"][0]["score"] < 0.04
    liked = search(capsys, shop.vectors, "--like", "p0003", "--k", "12")
    assert sorted(found(liked)) == [one for one in shop.ids if one != "p0003"]
    moved = search(capsys, shop.vectors, "blue", "--like", "p0003", "--weight", "0.9", "--k", "12")
    assert found(moved) != found(liked)
    assert search(capsys, shop.vectors, "red shoe", "--reasoning", "generate")["reasoned"]
    auto = search(capsys, shop.vectors, "red shoe", "--reasoning", "auto")
    assert auto["reasoned"] == (auto["margin"] < 0.05)


def test_the_table_names_the_query_and_how_it_was_searched(shop, capsys):
    assert main(["search", shop.vectors, "red shoe", "--k", "2"]) == 0
    said = capsys.readouterr()
    assert said.out.splitlines()[0].split()[:2] == ["rank", "score"]
    assert len(said.out.splitlines()) == 4
    assert "“red shoe”: 2 products; exact search in memory over the 12 products" in said.err
    assert "encode" in said.err


def test_nothing_found_is_an_empty_answer(shop, capsys):
    assert search(capsys, shop.vectors, "red", "--where", "price > 1000")["hits"] == []


@pytest.mark.parametrize("name", ["hits.json", "hits.html", "hits.jpg"])
def test_the_products_are_written(shop, capsys, tmp_path, name):
    path = tmp_path / name
    assert main(["search", shop.vectors, "--like", "p0004", "--k", "3", "--output", str(path)]) == 0
    assert f"wrote {path}" in capsys.readouterr().err
    if name == "hits.json":
        assert len(json.loads(path.read_text())["hits"]) == 3
    elif name == "hits.html":
        assert path.read_text().count("data:image/jpeg") == 4  # the product that is the query, too
    else:
        with Image.open(path) as sheet:
            assert np.asarray(sheet.convert("RGB")).std(axis=(0, 1)).min() > 10


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "query: found nothing to search for; expected words, a picture or a product id"),
        (["--image", "nowhere.jpg"], "image 'nowhere.jpg': found no such file; expected the file of a picture"),
        (["--image", "."], "image '.': found a folder; expected the file of a picture"),
        (["--image", "https://shop.example/a.jpg"], "found a URL; expected the file of a picture"),
        (["red", "--k", "9" * 20], "expected a whole number from 1 to 1000000000"),
        (["red", "--offset", "9" * 20], "expected a whole number from 0 to 1000000000"),
        (["red", "--where", "availability = sold"], "found 'sold'; expected one of in_stock, out_of_stock, preorder"),
        (["red", "--box", "1,2,3,4"], "box: found a box without a picture"),
        (["red", "--box", "1,2"], "box: found '1,2'; expected x0,y0,x1,y1"),
        (["--like", "p9999"], "like: found product id 'p9999'; expected the id of one of the 12 products"),
        (["red", "--like", "p0001"], "expected a weight"),
        (["red", "--k", "0"], "k: found 0; expected a whole number from 1 to 1000000000"),
        (
            ["red", "--where", "colour = red"],
            "filter 'colour = red', character 1: found 'colour = red'; expected one of price",
        ),
        (["red", "--forms", "video"], "expected some of mm, t, i"),
        (["--like", "p0001", "--words"], "words: found a query of the form 'like'"),
        (["red", "--output", "hits.gif"], "--output hits.gif: found .gif; expected one of .json, .html"),
    ],
)
def test_what_cannot_be_searched_is_one_line_and_status_2(shop, capsys, words, message):
    assert main(["search", shop.vectors, *words]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    *progress, last = said.err.splitlines()
    assert last.startswith("moon3 search: ")
    assert message in last
    assert all(line.startswith("Loading weights") or not line for line in progress)


def test_another_model_is_refused_with_both_fingerprints(shop, capsys, tiny_moon):
    assert main(["search", shop.vectors, "red", "--model", str(tiny_moon())]) == 2
    said = capsys.readouterr().err
    assert f"expected '{VectorFolder(shop.vectors).fingerprint}'" in said
    assert "found fingerprint" in said
    assert main(["search", shop.vectors, "red", "--model", shop.model]) == 0


@pytest.fixture(scope="module")
def indexed(shop, tmp_path_factory):
    """The places of two stores with the vectors of the shop: a folder, and a collection of Qdrant in a folder."""
    folder = tmp_path_factory.mktemp("stores")
    places = [str(folder / "store"), f"qdrant={folder / 'qdrant'}/shop"]
    for place in places:
        assert main(["index", shop.vectors, "--store", place]) == 0
    return places


@pytest.mark.parametrize("kind", [0, 1])
def test_a_store_elsewhere_gives_the_same_answer_and_needs_the_name_of_the_model(shop, indexed, capsys, kind):
    expected = search(capsys, shop.vectors, "red shoe", "--where", "price < 8")
    answer = search(capsys, indexed[kind], "red shoe", "--where", "price < 8", "--model", shop.model)
    assert found(answer) == found(expected)
    assert answer["store"] != expected["store"]
    assert main(["search", indexed[kind], "red shoe"]) == 2
    assert "found no name of a model; expected --model" in capsys.readouterr().err


def test_a_model_that_has_moved_is_asked_for(shop, capsys, tmp_path):
    shutil.copytree(shop.vectors, tmp_path / "vectors")
    for name in ("job.json", "complete.json"):
        path = tmp_path / "vectors" / name
        path.write_text(path.read_text().replace(shop.model, "runs/elsewhere/final"))
    assert main(["search", str(tmp_path / "vectors"), "red shoe"]) == 2
    said = capsys.readouterr().err
    assert "was made with the model 'runs/elsewhere/final', which is not here" in said
    assert found(search(capsys, str(tmp_path / "vectors"), "red shoe", "--model", shop.model)) == found(
        search(capsys, shop.vectors, "red shoe")
    )


def test_a_place_that_is_no_store_is_refused(shop, capsys, tmp_path):
    assert main(["search", str(tmp_path / "nowhere"), "red"]) == 2
    assert "moon3 search: " in capsys.readouterr().err
