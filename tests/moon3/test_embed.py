"""moon3 embed: a feed in a file, what is printed, the exit status, and what is refused."""

from __future__ import annotations

import json

import pytest
from pictures import noise

from moon3.__main__ import main
from retrieval.vectors.vector_files import VectorFolder

pytestmark = pytest.mark.usefixtures("one_thread")


def write_feed(folder, numbers):
    (folder / "images").mkdir(exist_ok=True)
    for number in numbers:
        noise(32, 32, number).save(folder / "images" / f"{number}.png")
    rows = [
        {"product_id": f"p{number}", "title": f"shoe {number}", "images": [f"images/{number}.png"], "price": "9.50 EUR"}
        for number in numbers
    ]
    (folder / "products.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder / "products.jsonl")


def test_a_feed_is_embedded_and_errors_are_listed(tmp_path, tiny_moon, capsys):
    feed, output = write_feed(tmp_path, range(9)), tmp_path / "vectors"
    (tmp_path / "images" / "3.png").write_bytes(b"not a picture")
    (tmp_path / "images" / "5.png").unlink()
    command = ["embed", feed, "--model", str(tiny_moon("qwen3_vl")), "--output", str(output), "--batch-size", "2"]
    assert main(command) == 1
    said = capsys.readouterr().out
    assert "9 products: 9 to embed (9 vectors, 9 pictures), 0 to keep, 0 to remove" in said
    assert "embedded 7, kept 0, removed 0, failed 2 in " in said
    (missing,) = [line for line in said.splitlines() if line.startswith("failed: product 'p5', form mm: images[0]")]
    assert "no such file" in missing
    assert f"{tmp_path}/images/5.png" in missing
    assert main(["embed", "--errors", str(output)]) == 1
    assert {line.split("\t")[0] for line in capsys.readouterr().out.splitlines()} == {"p3", "p5"}
    assert [product.price for product in VectorFolder(output).products()] == [9.5] * 9

    write_feed(tmp_path, range(9))
    assert main(command) == 0
    assert "embedded 2, kept 7, removed 0, failed 0 in " in capsys.readouterr().out
    assert main(["embed", "--errors", str(output)]) == 0
    assert capsys.readouterr().out == ""

    write_feed(tmp_path, range(2))
    assert main(command) == 2
    assert "found 2 products, and 7 of the 9 in" in capsys.readouterr().err
    assert main([*command, "--allow-removal", "--dtype", "int8"]) == 0
    said = capsys.readouterr().out
    assert "all products are embedded again, because this has changed: dtype float32 → int8" in said
    assert "embedded 2, kept 0, removed 7, failed 0 in " in said


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ([], "expected a feed, --model and --output; or --errors VECTORS"),
        (["--forms", "t", "t"], "forms: found t t; expected some of mm t i, each once"),
        (["--batch-size", "0"], "batch_size=0; expected 1 or more"),
        (["--workers", "-1"], "workers=-1 with executor='local'; expected 0 or more"),
        (["--workers", "0", "--executor", "ray"], "workers=0 with executor='ray'; expected 1 or more"),
        (["--errors", "nowhere"], "nowhere: found neither complete.json nor job.json"),
    ],
)
def test_options_that_cannot_be_used_are_refused_in_a_sentence(tmp_path, capsys, words, why):
    given = [] if not words else ["feed.csv", "--model", "m", "--output", str(tmp_path / "v")]
    assert main(["embed", *given, *words]) == 2
    assert why in capsys.readouterr().err
    assert not (tmp_path / "v").exists()


def test_a_feed_of_which_every_row_is_left_out_says_why(tmp_path, tiny_moon, capsys):
    (tmp_path / "products.csv").write_text("product_id,title\n,hat\n,shoe\n")
    words = ["embed", str(tmp_path), "--model", str(tiny_moon("qwen3_vl")), "--output", str(tmp_path / "v")]
    assert main(words) == 2
    said = capsys.readouterr()
    assert "left out: 2 × rows without the id of a product (missing_id)" in said.out
    assert "found no products; expected at least one" in said.err


def test_an_output_that_is_a_link_to_nothing_is_refused(tmp_path, capsys):
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    assert main(["embed", "feed.csv", "--model", "m", "--output", str(tmp_path / "link")]) == 2
    assert "link: found a link to nothing; expected a folder" in capsys.readouterr().err


def test_the_own_table_says_which_of_its_columns_only_embed_reads(tmp_path, capsys):
    (tmp_path / "products.csv").write_text("product_id,title,price\n1,hat,3\n")
    assert main(["tables", str(tmp_path)]) == 0
    assert "products: 'price' (moon3 embed reads it)" in capsys.readouterr().out


def test_a_file_that_neither_reader_can_read_is_explained_once(tmp_path, capsys):
    (tmp_path / "products.parquet").write_bytes(b"x")
    assert main(["tables", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("not a readable parquet file") == 1
