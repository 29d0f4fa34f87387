"""`moon3 detect-core`: what it prints, and that training, evaluation and the embedding job read its boxes."""

from __future__ import annotations

import json

import numpy as np
import pytest
from pictures import plain
from table_files import write_table

from moon3.__main__ import main
from product_data.feeds.reading import read_feed
from product_data.tables import load_tables
from retrieval.embedding.embedding_options import EmbeddingOptions
from retrieval.embedding.job import embed_feed
from retrieval.encode import VectorCache, load_for_evaluation
from retrieval.vectors.content_hash import content_hash
from training.batches.pairs import PairDataset, PairSource
from training.recipe.pairs import PairArguments

THING = (20, 30, 60, 80)


@pytest.fixture
def folders(tmp_path):
    """The folders of a shop without boxes, and of the same shop with those that the command found."""
    source, out = tmp_path / "shop", tmp_path / "boxed"
    source.mkdir()
    for name, colour in (("red", "red"), ("blue", "blue"), ("blank", "white")):
        image = plain("white", 100)
        image.paste(colour, THING)
        image.save(source / f"{name}.png")
    rows = [{"product_id": name, "title": f"{name} box", "images": f"{name}.png"} for name in ("red", "blue", "blank")]
    write_table(source / "products.jsonl", rows)
    photo = {"query_id": "q", "type": "image", "image": "red.png", "positives": ["red"], "derived": True}
    write_table(source / "queries.jsonl", [photo])
    assert main(["detect-core", str(source), "--detector", "largest-region", "--output", str(out)]) == 0
    return source, out


def test_the_command_prints_what_it_wrote_and_why_there_is_no_box(folders, tmp_path, capsys):
    source, out = folders[0], tmp_path / "again"
    again = ["detect-core", str(source), "--detector", "largest-region", "--output", str(out)]
    assert main(again) == 0
    printed = capsys.readouterr().out
    assert "products: 2 of 3 have a box (2 detected, 0 kept); 1 without a box: the detector is unsure" in printed
    assert "queries: 1 of 1 have a box (1 detected, 0 kept)" in printed
    assert f"{out}: 3 pictures were looked at, the others were known" in printed  # red is in both tables
    (source / "red.png").write_bytes(b"broken")
    assert main(again) == 1
    assert "'red': the picture cannot be opened" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words, found",
    [
        (["--detector", "saliency"], "found no weights; expected the ONNX file"),
        (["--detector", "saliency", "--weights", "nowhere.onnx"], "nowhere.onnx: no such file"),
        (
            ["--detector", "largest-region", "--threshold", "0.4"],
            "found saliency; expected it with the detector saliency",
        ),
        (["--detector", "largest-region", "--batch-size", "0"], "--batch-size: found 0; expected 1 or more"),
    ],
)
def test_options_that_do_not_fit_are_refused_in_one_line(words, found, folders, tmp_path, capsys):
    assert main(["detect-core", str(folders[0]), *words, "--output", str(tmp_path / "x")]) == 2
    said = capsys.readouterr().err
    assert said.startswith("moon3 detect-core: ")
    assert found in said
    assert said.count("\n") == 1


def test_training_reads_the_boxes(folders):
    boxes = []
    for folder in folders:
        pairs = PairDataset([PairSource(load_tables(folder))], PairArguments(), 5, 40)
        boxes.append(
            {json.dumps(pairs[place].query.get("core_box")) for place in range(40) if "image" in pairs[place].query}
        )
    without, with_boxes = boxes
    assert without == {"null"}
    found = np.array([json.loads(box) for box in with_boxes - {"null"}])
    assert len(found)
    assert np.abs(found - THING).max() <= 2


def test_evaluation_reads_the_boxes(folders, tiny_moon):
    model, processor = load_for_evaluation(str(tiny_moon("qwen3_vl", trained=True)))
    before, after = (
        VectorCache(model, processor, tables.products, tables.queries, progress=False).gallery("i").vectors
        for tables in map(load_tables, folders)
    )
    assert np.abs(before[:2] - after[:2]).max() > 1e-3
    np.testing.assert_allclose(before[2], after[2], atol=1e-5)  # a picture without a box


def test_the_embedding_job_embeds_what_has_a_new_box(folders, tiny_moon, tmp_path, one_thread):
    before, after = ([product.row for product in read_feed(folder)] for folder in folders)
    changed = [content_hash(one, "mm") != content_hash(other, "mm") for one, other in zip(before, after, strict=True)]
    assert changed == [True, True, False]
    options = EmbeddingOptions(str(tiny_moon("qwen3_vl", trained=True)))
    embed_feed(read_feed(folders[0]), tmp_path / "v", options, report=lambda _: None)
    done = embed_feed(read_feed(folders[1]), tmp_path / "v", options, report=lambda _: None)
    assert (done.embedded, done.kept) == (2, 1)
