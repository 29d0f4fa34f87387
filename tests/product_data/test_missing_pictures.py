"""Pictures that are not there: looked for beside the table, counted once, and told from products without content."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from concepts import cache_of, shop
from PIL import Image
from table_files import write_table

from evaluation.benchmarks.retrieval import evaluate_retrieval
from moon3.__main__ import main
from product_data.tables import load_tables


def write_shop(folder: Path, pictures: str | None, products: int = 4) -> Path:
    folder.mkdir()
    if pictures is not None:
        (folder / pictures).mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(products):
        rows.append({"product_id": f"p{number}", "title": f"mug {number}", "image": f"{number}.png"})
        if pictures is not None:
            Image.new("RGB", (64, 64), (40 * number, 9, 99)).save(folder / pictures / f"{number}.png")
    write_table(folder / "products.jsonl", rows)
    queries = [
        {"query_id": f"q{number}", "text": f"mug {number}", "image": f"{number}.png", "positives": [f"p{number}"]}
        for number in range(products)
    ]
    write_table(folder / "queries.jsonl", queries)
    return folder


def test_a_folder_of_images_beside_the_table_is_looked_into_and_said(tmp_path: Path) -> None:
    folder = write_shop(tmp_path / "shop", "images")
    report = load_tables(folder, check_images=True).report
    assert (report.count("missing_images"), report.count("unreadable_images")) == (0, 0)
    assert "4 picture files were found in the folder 'images' beside the table" in str(report)
    tables = load_tables(folder / "products.jsonl")
    assert tables.products[1].images == (str(folder / "images" / "1.png"),)


def test_a_named_folder_is_the_only_one_that_counts(tmp_path: Path) -> None:
    folder = write_shop(tmp_path / "shop", "images")
    (folder / "other").mkdir()
    report = load_tables(folder, images_root=folder / "other").report
    assert not report.ok
    assert load_tables(folder, images_root=folder / "images").report.ok


def test_missing_files_are_counted_once_for_products_and_queries(tmp_path: Path) -> None:
    folder = write_shop(tmp_path / "shop", None)
    assert load_tables(folder).report.count("missing_images") == 4


def test_all_pictures_missing_is_refused_and_names_the_option(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_shop(tmp_path / "shop", "pictures")
    assert main(["evaluate", "--model", "nowhere", "--benchmark", str(folder)]) == 2
    said = capsys.readouterr().err
    assert "all 4 products with pictures: found no picture file" in said
    assert "--images-root FOLDER" in said


def test_one_product_that_can_be_read_is_no_reason_to_stop(tmp_path: Path) -> None:
    folder = write_shop(tmp_path / "shop", "images")
    (folder / "images" / "0.png").rename(folder / "0.png")
    for path in (folder / "images").iterdir():
        path.unlink()
    report = load_tables(folder).report
    assert report.ok
    assert report.count("missing_images") == 3


def test_skipped_is_told_from_absent() -> None:
    rows = [{"product_id": f"p{n}", "title": "unreadable", "images": ["https://example.org/x"]} for n in range(3)]
    results = evaluate_retrieval(cache_of(shop(products_rows=rows)))
    assert results["absent"]["t2mm"] == (
        "all 3 products with text or image were skipped because they could not be read; first: 'p0', images: unreadable"
    )
    queries = [{"query_id": "q", "text": "unreadable", "positives": ["p1"]}]
    results = evaluate_retrieval(cache_of(shop(queries_rows=queries)))
    assert results["absent"]["t2mm"] == (
        "all 1 queries of type 'text' were skipped because they could not be read; first: 'q', images: unreadable"
    )


def test_an_evaluation_without_a_score_is_no_success(
    tiny_moon: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_shop(tmp_path / "shop", "images")
    for path in (folder / "images").iterdir():
        path.write_bytes(b"no picture")
    output = tmp_path / "results.json"
    arguments = ["--model", str(tiny_moon()), "--benchmark", str(folder), "--output", str(output), "--device", "cpu"]
    assert main(["evaluate", *arguments]) == 2
    said = capsys.readouterr().err
    assert "no score for i2t: all 4" in said
    assert "found no scores for shop" in said
    assert json.loads(output.read_text())["scores"]["i2t"] is None
