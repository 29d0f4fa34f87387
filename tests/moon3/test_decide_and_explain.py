"""`moon3 decide` and `moon3 explain` on a store: from candidates to label to a report; why products match."""

from __future__ import annotations

import csv
import json
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet
import pytest
from pictures import plain
from small_feeds import feed
from stored_products import units

from moon3.__main__ import main
from retrieval.embedding.embedding_options import EmbeddingOptions
from retrieval.embedding.job import embed_feed
from retrieval.stores.embedded import EmbeddedStore
from retrieval.stores.interface import StoredProduct

COLOURS = ("red", "blue", "green")


@pytest.fixture(scope="module")
def twins(tmp_path_factory):
    """A store of 400 listings: 2n and 2n + 1 are the same product; the first one has a picture, the last one no vector."""
    folder = tmp_path_factory.mktemp("twins")
    plain("red").save(folder / "red.png")
    vectors = np.repeat(units(200, dimension=24), 2, axis=0) + 0.5 * units(400, seed=1, dimension=24)
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    facts = [
        StoredProduct(f"p{n:04}", title=f"thing {n // 2} <b>", images=(str(folder / "red.png"),) if n % 2 else ())
        for n in range(401)
    ]
    text_alone = np.vstack([vectors, vectors[:1]])
    both = text_alone.copy()
    both[-1] = np.nan
    store = EmbeddedStore(folder / "store", 24, "model-1")
    store.upsert(facts, {"mm": both, "t": text_alone})
    store.close()
    return str(folder / "store")


def same(row):
    return int(row["left"][1:]) // 2 == int(row["right"][1:]) // 2


def test_from_pairs_to_label_to_decisions_and_to_the_next_catalogue(twins, tmp_path, capsys):
    first, second = tmp_path / "label", tmp_path / "decided"
    assert main(["decide", twins, "--output", str(first), "--to-label", "700"]) == 0
    assert "700 candidates to label" in capsys.readouterr().out
    page = (first / "to_label.html").read_text()
    assert page.count('class="pair"') == 700
    assert "thing 0 &lt;b&gt;" in page
    with (first / "to_label.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    labels = tmp_path / "labels.csv"
    labels.write_text("left,right,same\n" + "".join(f"{row['left']},{row['right']},{int(same(row))}\n" for row in rows))
    assert main(["decide", twins, "--labels", str(labels), "--output", str(second)]) == 0
    said = capsys.readouterr().out
    assert "of the pairs decided 'same', at least 95% are right, with 95% confidence" in said
    pairs = pyarrow.parquet.read_table(second / "pairs.parquet").to_pylist()
    chosen = [row for row in pairs if row["decision"] == "same"]
    assert np.mean([same(row) for row in chosen]) >= 0.95
    assert len(chosen) > 100
    report = (second / "report.html").read_text()
    assert "data:image/jpeg;base64," in report
    assert "Nothing is decided about 1 products without a vector." in report
    for heading in ("Same", "Different"):
        assert f"<h2>{heading}</h2>" in report
    again = tmp_path / "again"
    calibration = second / "calibration.json"
    assert main(["decide", twins, "--calibration", str(calibration), "--output", str(again)]) == 0
    assert pyarrow.parquet.read_table(again / "pairs.parquet").equals(
        pyarrow.parquet.read_table(second / "pairs.parquet")
    )
    assert main(["decide", twins, "--calibration", str(calibration), "--output", str(again), "--precision", ".9"]) == 2
    assert "found precision with it; expected none" in capsys.readouterr().err
    values = json.loads(calibration.read_text())
    calibration.write_text(json.dumps(values | {"fingerprint": "model-0"}))
    assert main(["decide", twins, "--calibration", str(calibration), "--output", str(again)]) == 2
    assert "found one for vectors of the model 'model-0'; expected 'model-1'" in capsys.readouterr().err


def test_options_of_decisions_change_them(twins, tmp_path, capsys):
    counts = {}
    for name, words in {
        "default": [],
        "more": ["--neighbours", "9"],
        "near": ["--min-cosine", "0.6"],
        "text": ["--form", "t"],
    }.items():
        assert main(["decide", twins, "--output", str(tmp_path / name), "--to-label", "100000", *words]) == 0
        counts[name] = len((tmp_path / name / "to_label.csv").read_text().splitlines())
    assert counts["near"] < counts["default"] < counts["more"]
    assert counts["text"] != counts["default"]  # one product has a vector of its text alone


def test_labels_that_do_not_suffice_are_said_plainly(twins, tmp_path, capsys):
    assert main(["decide", twins, "--output", str(tmp_path), "--to-label", "120"]) == 0
    with (tmp_path / "to_label.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    labels = tmp_path / "labels.csv"
    labels.write_text("left,right,same\n" + "".join(f"{row['left']},{row['right']},{int(same(row))}\n" for row in rows))
    capsys.readouterr()
    main(["decide", twins, "--labels", str(labels), "--output", str(tmp_path / "out")])
    assert "no threshold promises a precision of 95% for 'same'" in capsys.readouterr().out
    assert main(["decide", twins, "--labels", str(labels), "--output", str(tmp_path / "out"), "--precision", "95"]) == 2
    assert "precision: found 95.0; expected a number between 0 and 1" in capsys.readouterr().err
    assert main(["decide", twins, "--labels", str(tmp_path / "none.csv"), "--output", str(tmp_path / "out")]) == 2


@pytest.fixture(scope="module")
def shop(tmp_path_factory, tiny_moon):
    folder = tmp_path_factory.mktemp("shop")
    products = [feed(folder, [number], title=f"{COLOURS[number % 3]} shoe {number}")[0] for number in range(6)]
    model = str(tiny_moon(preset="moon3", trained=True))
    embed_feed(products, folder / "vectors", EmbeddingOptions(model, ("mm", "t")), report=lambda _: None)
    return SimpleNamespace(vectors=str(folder / "vectors"), photo=str(folder / "4-0.png"))


@pytest.mark.parametrize("words", [["--query", "red shoe"], ["--image", "PHOTO"], ["--with", "p0003"]])
def test_why_a_product_matches(shop, words, tmp_path, capsys):
    words = [shop.photo if word == "PHOTO" else word for word in words]
    assert main(["explain", shop.vectors, "p0000", *words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    parts = (
        sum(entry["contribution"] for entry in found["shared"])
        + found["different"]
        + found["residual"]
        + found["common"]
    )
    assert parts == pytest.approx(found["cosine"], abs=1e-4)
    assert found["form"] == "mm"
    assert main(["explain", shop.vectors, "p0000", *words, "--form", "t", "--output", str(tmp_path / "why.html")]) == 0
    table = capsys.readouterr().out
    assert "share of the cosine" in table
    assert "not described by these values (residual)" in table
    page = (tmp_path / "why.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 2  # a heat map of each side
    assert "what all have in common (means)" in page


def test_what_cannot_be_explained_is_refused(shop, tmp_path, capsys):
    assert main(["explain", shop.vectors, "nobody", "--query", "red"]) == 2
    assert "product: found id 'nobody'; expected the id of one of the 6 products" in capsys.readouterr().err
    assert main(["explain", shop.vectors, "p0000"]) == 2
    assert "found nothing to search for" in capsys.readouterr().err
    assert main(["explain", shop.vectors, "p0000", "--query", "red", "--output", str(tmp_path / "why.png")]) == 2
    assert "found .png; expected .html" in capsys.readouterr().err
