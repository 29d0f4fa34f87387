"""The command line from checkpoint to results file, and the tables and pictures made of results."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pictures import file_of, plain
from PIL import Image
from table_files import write_table

from evaluation.benchmarks.retrieval import SearchExample
from evaluation.contact_sheets import contact_sheet
from evaluation.fonts import font_for
from evaluation.report import comparison_table, read_results, results_table
from moon3.__main__ import main
from product_data.tables import ProductRow, QueryRow

COLOURS = ("red", "blue", "green", "yellow")


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    folder = tmp_path / "shop"
    folder.mkdir()
    products, queries = [], []
    for number, colour in enumerate(COLOURS):
        picture = file_of(plain(colour, 40, 30))
        (folder / f"{colour}.png").write_bytes(picture if colour != "yellow" else picture[:50])
        products.append(
            {
                "id": f"p{number}",
                "name": f"{colour} shoe",
                "category": f"Home > Shoes > {'Sneakers' if number % 2 else 'Boots'}",
                "attributes": f"colour: {colour}; material: leather",
                "image": f"{colour}.png",
            }
        )
        queries.append({"id": f"t{number}", "text": f"a {colour} shoe", "positives": [f"p{number}"]})
        queries.append({"id": f"i{number}", "image": f"{colour}.png", "positives": [f"p{number}"]})
    write_table(folder / "products.jsonl", products)
    write_table(folder / "queries.jsonl", queries)
    return folder


def test_the_command_line_evaluates_a_users_shop(
    tiny_moon: Callable[..., Path], shop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, sheet = tmp_path / "out" / "results.json", tmp_path / "out" / "sheet.png"
    arguments = ["--model", str(tiny_moon()), "--benchmark", str(shop), "--output", str(output), "--sheet", str(sheet)]
    assert main(["evaluate", *arguments, "--batch-size", "3", "--device", "cpu", "--no-core-crop"]) == 0
    printed = capsys.readouterr()
    assert "t→mm" in printed.out
    assert "records skipped" in printed.err
    assert (
        "shop has no splits: all products are used, even those that the model may have been trained on" in printed.err
    )
    results = json.loads(output.read_text())
    assert (results["model"], results["benchmark"]) == (str(tiny_moon()), "shop")
    assert set(results["scores"]) == {"t2mm", "i2mm", "mm2mm", "t2i", "i2t"}
    assert results["scores"]["mm2mm"] is None
    assert results["absent"]["mm2mm"] == "the data has no queries of type 'both'"
    for name in ("t2mm", "i2mm"):
        scores = results["scores"][name]
        assert 0 <= scores["R@1"] <= scores["R@5"] <= scores["R@10"] <= 1
        # The yellow product's picture is damaged: it is in no gallery with images, and its query has no answer.
        assert (scores["queries"], scores["gallery"]) == (3, 3)
    assert results["scores"]["t2mm"]["unanswerable"] == {"count": 1, "examples": ["t3"]}
    assert {(record["kind"], record["id"]) for record in results["skipped"]} == {("product", "p3"), ("query", "i3")}
    assert results["classification"]["mm"]["deepest"]["labels"] == 2
    assert results["attributes"]["mm"]["single_valued"] == ["material"]
    origin = results["provenance"]
    assert {"commit", "versions", "seed", "command", "time", "config_digest", "split", "products"} <= set(origin)
    assert (origin["core_crop"], origin["split"], origin["products"]) == (False, "test", 4)
    with Image.open(sheet) as image:
        assert image.width > 600


def test_a_title_that_is_cut_is_counted_named_and_said_in_the_results_and_in_the_tables(
    tiny_moon: Callable[..., Path], shop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [json.loads(line) for line in (shop / "products.jsonl").read_text().splitlines()]
    arguments = ["--model", str(tiny_moon()), "--benchmark", str(shop), "--output", str(tmp_path / "r.json")]
    assert main(["evaluate", *arguments, "--only", "retrieval", "--device", "cpu"]) == 0
    results = json.loads((tmp_path / "r.json").read_text())
    assert (results["shortened"], results["warnings"]) == ({"items": 0, "fields": {}, "first": []}, [])
    assert "WARNING" not in capsys.readouterr().out
    rows[0]["name"] = "red shoe, striped cotton, navy " * 400
    write_table(shop / "products.jsonl", rows)
    assert main(["evaluate", *arguments, "--only", "retrieval", "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    results = json.loads((tmp_path / "r.json").read_text())
    assert results["shortened"]["items"] == 1
    assert results["shortened"]["fields"]["title"] == 1
    assert {one["item"] for one in results["shortened"]["first"]} == {"p0"}
    (warning,) = results["warnings"]
    assert "1 of 11 items (9.1 %) is over max_tokens=" in warning
    assert f"on shop: {warning}" in printed
    assert main(["report", str(tmp_path / "r.json"), "--compare", "R@10"]) == 0
    assert warning in capsys.readouterr().out


def test_several_benchmarks_are_written_to_a_folder_and_repeat_exactly(
    tiny_moon: Callable[..., Path], shop: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for file in shop.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    arguments = ["--model", str(tiny_moon()), "--benchmark", str(shop), str(other), "--only", "retrieval"]
    assert (
        main(
            [
                "evaluate",
                *arguments,
                "--output",
                str(tmp_path / "all"),
                "--sheet",
                str(tmp_path / "s.png"),
                "--device",
                "cpu",
            ]
        )
        == 0
    )
    first, second = (json.loads((tmp_path / "all" / f"{name}.json").read_text()) for name in ("shop", "other"))
    assert first["scores"] == second["scores"]
    assert "classification" not in first
    assert (tmp_path / "s-shop.png").is_file()
    assert (tmp_path / "s-other.png").is_file()


def test_the_embedded_catalogue_is_evaluated_on_its_test_split(tiny_moon: Callable[..., Path], tmp_path: Path) -> None:
    output = tmp_path / "results.json"
    arguments = ["--benchmark", "catalogue", "--catalogue-products", "24", "--output", str(output), "--device", "cpu"]
    assert main(["evaluate", "--model", str(tiny_moon()), *arguments]) == 0
    results = json.loads(output.read_text())
    assert results["benchmark"] == "catalogue"
    assert all(scores["queries"] > 0 for scores in results["scores"].values())
    assert results["scores"]["t2mm"]["gallery"] == results["provenance"]["products"] < 24
    assert {"top1", "top10", "precision", "recall", "f1"} <= set(results["attributes"]["i"]["mean"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--benchmark", "nowhere"], "nowhere: no such file or folder"),
        (["--split", "tset"], "no split 'tset'; expected one of all, test, train"),
        (["--only", "recall"], "expected one of retrieval, classification, attributes"),
        (["--batch-size", "0"], "batch_size=0; expected 1 or more"),
        (["--model", "nowhere/at/all"], "nowhere/at/all"),
    ],
)
def test_what_the_user_can_put_right_ends_in_one_line(
    shop: Path, capsys: pytest.CaptureFixture[str], change: list[str], message: str
) -> None:
    rows = [json.loads(line) for line in (shop / "products.jsonl").read_text().splitlines()]
    splits = ("train", "test", "test", "test")
    (shop / "products.jsonl").write_text(
        "".join(json.dumps(row | {"split": split}) + "\n" for row, split in zip(rows, splits, strict=True))
    )
    defaults = {"--model": str(shop), "--benchmark": str(shop)} | dict(zip(change[::2], change[1::2], strict=True))
    assert main(["evaluate", *(part for pair in defaults.items() for part in pair)]) == 2
    assert message in capsys.readouterr().err


def test_results_of_several_benchmarks_need_a_folder_and_different_names(
    shop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--model", "nowhere", "--benchmark", str(shop), str(shop), "--output"]
    assert main(["evaluate", *arguments, str(tmp_path / "results.json")]) == 2
    assert "expected a folder for several" in capsys.readouterr().err
    assert main(["evaluate", *arguments, str(tmp_path / "results")]) == 2
    assert "benchmarks: found the names shop, shop" in capsys.readouterr().err


def test_fatal_tables_stop_before_the_model_is_loaded(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with (shop / "products.jsonl").open("a") as file:
        file.write('{"id": "p0", "name": "again"}\n')
    assert main(["evaluate", "--model", "nowhere", "--benchmark", str(shop)]) == 2
    assert "'p0' (2 times)" in capsys.readouterr().err


def scores(value: float, **more: Any) -> dict[str, Any]:
    cells = {f"R@{k}": value for k in (1, 5, 10)} | {f"R@{k}_interval": [value - 0.1, value + 0.1] for k in (1, 5, 10)}
    return cells | {"MRR": value, "R@10_chance": 0.02, "queries": 7, "gallery": 500, "source": "queries"} | more


def result(model: str, value: float) -> dict[str, Any]:
    directions = {"t2mm": scores(value), "i2mm": None, "t2i": scores(value, source="products")}
    labels = {"top1": 0.5, "top10": None, "precision": 0.1, "recall": 0.2, "f1": 0.3, "items": 9, "labels": 3}
    return {
        "model": model,
        "benchmark": "shop",
        "scores": directions,
        "image_only": {"t2i": directions["t2i"], "i2i": scores(0.25)},
        "classification": {"mm": {"level_1": labels, "deepest": labels, "level_9": None}},
        "attributes": {"mm": {"keys": {"colour": labels}, "mean": labels | {"keys": 1}, "single_valued": []}},
    }


def test_the_results_table_shows_every_score_once() -> None:
    table = results_table([result("runs/moon", 0.5)])
    lines = {line.split("|")[3].strip(): line for line in table.splitlines() if line.startswith("| moon")}
    assert list(lines) == [
        "t→mm",
        "i→mm",
        "t→i, own parts",
        "i→i, image only",
        "category, level 1",
        "category, deepest",
        "attributes, mean of 1 keys",
    ]
    assert "50.0 (40.0–60.0)" in lines["t→mm"]
    assert "2.0" in lines["t→mm"]
    assert lines["i→mm"].count("–") == 6
    assert results_table([]) == "no scores"


def test_the_comparison_has_a_column_for_each_model() -> None:
    before, after = result("moon", 0.1), result("moon", 0.9)
    table = comparison_table([before, after], names=["before", "after"], metric="R@1")
    head, _, first, *_ = table.splitlines()
    assert [cell.strip() for cell in head.split("|")[1:-1]] == ["benchmark", "R@1, %", "before", "after", "chance"]
    assert "10.0 (0.0–20.0)" in first
    assert "90.0 (80.0–100.0)" in first
    with pytest.raises(ValueError, match="expected one of R@1, R@5, R@10, MRR"):
        comparison_table([before], metric="recall")
    with pytest.raises(ValueError, match="one name per result"):
        comparison_table([before], names=[])


def test_results_files_are_read_alone_and_as_before_and_after(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alone, pair = tmp_path / "alone.json", tmp_path / "pair.json"
    alone.write_text(json.dumps(result("moon", 0.5)))
    pair.write_text(json.dumps({"before": result("moon", 0.1), "after": result("moon", 0.8)}))
    assert [name for name, _ in read_results(pair)] == ["moon before", "moon after"]
    assert main(["report", str(alone), str(pair)]) == 0
    assert "moon after" in capsys.readouterr().out
    assert main(["report", str(pair), "--compare", "R@10"]) == 0
    assert "80.0" in capsys.readouterr().out
    alone.write_text("{}")
    assert main(["report", str(alone)]) == 2
    assert "no 'scores'" in capsys.readouterr().err


def test_models_that_are_all_called_final_are_told_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second, again = (tmp_path / name for name in ("a.json", "b.json", "c.json"))
    first.write_text(json.dumps(result("runs/one/final", 0.1)))
    second.write_text(json.dumps(result("runs/two/run/final", 0.8)))
    again.write_text(json.dumps(result("runs/one/final", 0.3)))
    for more in ([], ["--compare", "R@10"]):
        assert main(["report", str(first), str(second), *more]) == 0
        table = capsys.readouterr().out
        assert (" one " in table, " two " in table, "final" in table) == (True, True, False)
        assert main(["report", str(first), str(second), str(again), *more]) == 0
        table = capsys.readouterr().out
        for words in (
            f"one [{tmp_path.name} a.json]",
            f"one [{tmp_path.name} c.json]",
            " two ",
            "10.0",
            "30.0",
            "80.0",
        ):
            assert words in table
    with pytest.raises(ValueError, match="two results on shop have the name 'one'"):
        comparison_table([result("runs/one/final", 0.1), result("elsewhere/one", 0.2)])


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
