"""Public data sets by name: the registry, and rows shaped like MBE's from file to results."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from picture_server import PictureServer, picture_server, png
from table_files import write_table

from evaluation.data_sets import cutoffs_of, load_data_set, named_source, names, read_labels
from evaluation.run import load_benchmark
from moon3.__main__ import main
from product_data.errors import OptionError
from product_data.picture_files import PictureFetching
from product_data.table_files import TableError
from product_data.triplets import TripletOptions

COLOURS = {"红色": "red", "蓝色": "blue", "绿色": "green", "黄色": "yellow", "黑色": "black"}


def rows_like_mbe(server: PictureServer) -> list[dict[str, Any]]:
    """Sound rows with pictures from URLs, boxes, full-width signs and missing attributes."""
    rows = []
    for number, (colour, name) in enumerate(COLOURS.items()):
        kind = ("连衣裙", "半身裙")[number % 2]
        row = {
            "id": number,
            "query": f"{colour}{kind}",
            "query_image": server.url(name),
            "query bbox": "［2，2，30，36］" if number % 2 else [1, 1, 39, 39],
            "doc_title": f"{colour} 夏季 {kind}",
            "doc_image": server.url(name),
            "doc_industry_name": "服饰",
            "doc_cate1_name": "女装/女士精品",
            "doc_cate2_name": kind,
            "doc_attributes": None if number == 4 else f"颜色：{colour},,材质:{('棉', '麻')[number % 2]}!!!雪纺",
            "neg_doc_title": f"{colour} 冬季 外套 {number}",
            "neg_doc_image": server.url("grey"),
        }
        rows.append(row)
    return rows


def broken_rows(server: PictureServer) -> list[dict[str, Any]]:
    """Rows of which nothing may reach the scores of the others."""
    first, second, third, fourth = (row | {"id": f"x{row['id']}"} for row in rows_like_mbe(server)[:4])
    return [
        first | {"doc_image": server.url("missing"), "doc_title": "坏 一"},
        second | {"query_image": server.url("broken"), "doc_title": "坏 二", "doc_cate2_name": "坏类目"},
        third | {"query bbox": [9, 9, 1, 1], "doc_title": "坏 三"},
        fourth | {"doc_attributes": "颜色,,材质:坏", "doc_title": "坏 四"},
    ]


@pytest.fixture
def evaluated(tiny_moon: Callable[..., Path], tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Write rows, evaluate a tiny random checkpoint on them by command, and return its results."""

    def run(name: str, rows: list[dict[str, Any]], *arguments: str) -> dict[str, Any]:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        kind = "parquet" if any(isinstance(cell, bytes) for row in rows for cell in row.values()) else "jsonl"
        place = write_table(folder / f"rows.{kind}", rows)
        output = folder / "results.json"
        assert (
            main(
                [
                    "evaluate",
                    "--model",
                    str(tiny_moon()),
                    "--benchmark",
                    f"mbe={place}",
                    "--device",
                    "cpu",
                ]
                + [
                    "--output",
                    str(output),
                    "--picture-cache",
                    str(tmp_path / "pictures"),
                    "--allow-private-addresses",
                    *arguments,
                ]
            )
            == 0
        )
        return json.loads(output.read_text(encoding="utf-8"))

    return run


SCORES = ("scores", "image_only", "classification", "attributes", "absent")


def test_sound_rows_score_as_they_would_alone(evaluated: Callable[..., dict[str, Any]], capsys: Any) -> None:
    with picture_server() as server:
        sound = rows_like_mbe(server)
        alone = evaluated("alone", sound)
        capsys.readouterr()
        mixed = evaluated("mixed", [*sound[:2], *broken_rows(server), *sound[2:], sound[0]])
    report = capsys.readouterr().err
    assert alone["benchmark"] == mixed["benchmark"] == "mbe"
    assert alone["scores"]["t2mm"]["gallery"] == 10
    assert alone["scores"]["mm2mm"]["queries"] == alone["scores"]["i2t"]["queries"] == 5
    for part in SCORES:
        assert alone[part] == mixed[part], part
    assert "4 × rows left out: their query or product is incomplete or cannot be read (broken_rows)" in report
    assert "1 × rows left out: they repeat another row completely (repeated_rows)" in report
    assert "the server responded with 404" in report
    assert "query.box ← query bbox" in report


def embedded(row: dict[str, Any], **pictures: bytes) -> dict[str, Any]:
    """Return a row with its pictures as the bytes of files, as parquet holds them, and boxes as text."""
    own = {column: png(row[column].rsplit("/")[-1]) for column in PICTURES}
    return row | {"query bbox": "[1, 1, 39, 39]", "id": str(row["id"])} | own | pictures


PICTURES = ("query_image", "doc_image", "neg_doc_image")


def test_embedded_pictures_that_cannot_be_decoded_cost_their_row_and_no_other(
    evaluated: Callable[..., dict[str, Any]], capsys: Any
) -> None:
    with picture_server() as server:
        rows = rows_like_mbe(server)
    sound = [embedded(row) for row in rows]
    alone = evaluated("alone", sound)
    assert "left out" not in capsys.readouterr().err
    extra = [embedded(row | {"id": f"x{row['id']}", "doc_title": f"坏 {row['id']}"}) for row in rows[:3]]
    truncated, no_picture = png("red")[:60], b"<html>not a picture</html>"
    broken = [
        extra[0] | {"query_image": truncated},
        extra[1] | {"doc_image": no_picture},
        extra[2] | {"doc_image": truncated},
    ]
    # Of a sound row, only the negative has no picture that can be read.
    without = [{key: cell for key, cell in row.items() if not key.startswith("neg")} for row in sound]
    mixed = evaluated("mixed", [*sound[:2], *broken, *sound[2:]])
    report = capsys.readouterr().err
    assert alone["scores"]["t2mm"]["gallery"] == 10
    assert alone["scores"]["i2mm"]["queries"] == 5
    for part in SCORES:
        assert alone[part] == mixed[part], part
    assert "3 × rows left out: their query or product is incomplete or cannot be read (broken_rows)" in report
    assert "row 2, query: embedded picture: " in report
    assert "row 3, product: embedded picture: " in report
    fewer = evaluated("fewer", without)
    capsys.readouterr()
    negatives = evaluated("negatives", [row | {"neg_doc_image": truncated} for row in sound])
    assert "5 × hard negatives left out" in capsys.readouterr().err
    assert negatives["scores"] == fewer["scores"]


def test_renamed_columns_score_the_same(evaluated: Callable[..., dict[str, Any]]) -> None:
    with picture_server() as server:
        rows = rows_like_mbe(server)
        renamed = [
            {("kw" if name == "query" else name.replace("doc_", "item.")): cell for name, cell in row.items()}
            for row in rows
        ]
        first = evaluated("first", rows, "--only", "retrieval")
        second = evaluated("second", renamed, "--only", "retrieval", "--columns", "query.title=kw")
    assert first["scores"] == second["scores"]


def test_every_data_set_is_listed_with_its_cutoffs() -> None:
    assert set(names()) >= {"mbe", "mbe2", "mbe3", "m5product", "fashion200k", "glami", "abo", "triplets"}
    assert not {"retrieval", "classification"} & set(names())
    assert cutoffs_of("m5product") == (10, 100, 500)
    assert cutoffs_of("my shop") is None


def test_a_data_set_is_named_with_or_without_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert named_source("mbe") == ("mbe", None)
    assert named_source("mbe=rows.jsonl") == ("mbe", "rows.jsonl")
    assert named_source("catalogue") is None
    monkeypatch.chdir(tmp_path)
    (tmp_path / "abo").mkdir()
    assert named_source("abo") is None
    with pytest.raises(OptionError, match="benchmark 'glami' has no known place on the hub; expected glami="):
        load_data_set("glami")
    with pytest.raises(OptionError, match="benchmark: found 'xyz'; expected one of abo, fashion200k"):
        load_data_set("xyz")


def test_a_table_of_triplets_is_called_like_its_file(tmp_path: Path) -> None:
    path = tmp_path / "my_rows.jsonl"
    path.write_text(json.dumps({"query": "包", "doc_title": "黑色 包"}), encoding="utf-8")
    assert load_benchmark(f"triplets={path}").name == "my_rows"


def test_attributes_of_picture_and_text_are_read_and_joined(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    row = {
        "query": "包",
        "doc_title": "黑色 包",
        "doc_image_attributes": "颜色:黑色",
        "doc_text_attributes": "材质:皮,,颜色:墨黑",
    }
    path.write_text(json.dumps(row), encoding="utf-8")
    other = {"query": "鞋", "doc_title": "鞋", "doc_image_attributes": "颜色:白色", "doc_text_attributes": "材质:布"}
    sampled = tmp_path / "sampled.jsonl"
    sampled.write_text("\n".join(map(json.dumps, (row, other))), encoding="utf-8")
    tables = load_data_set(f"mbe3={sampled}", TripletOptions(sample=1))
    values = {value for one in (*tables.products, *tables.labels) for value in one.attributes["颜色"]}
    assert values == {"黑色", "墨黑", "白色"}
    assert {value for one in tables.labels for value in one.attributes_image["颜色"]} in ({"白色"}, {"黑色"})
    (product,) = load_data_set(f"mbe3={path}").products
    assert product.attributes_image == {"颜色": ("黑色",)}
    assert product.attributes_text == {"材质": ("皮",), "颜色": ("墨黑",)}
    assert product.attributes == {"材质": ("皮",), "颜色": ("墨黑", "黑色")}


def test_labels_of_a_file_are_labels_too(tmp_path: Path) -> None:
    path, labels = tmp_path / "rows.jsonl", tmp_path / "labels.json"
    path.write_text(
        json.dumps({"query": "包", "doc_title": "黑色 包", "doc_attributes": "颜色:黑色"}), encoding="utf-8"
    )
    labels.write_text(
        json.dumps({"categories": [["箱包", "女包"]], "attributes": {"颜色": ["白色"]}}), encoding="utf-8"
    )
    tables = load_data_set(f"mbe={path}", labels=labels)
    assert [row.category for row in tables.labels] == [("箱包", "女包"), ()]
    assert tables.labels[1].attributes == {"颜色": ("白色",)}
    labels.write_text("[]", encoding="utf-8")
    with pytest.raises(TableError, match="expected JSON"):
        read_labels(labels)


def test_options_that_cannot_be_used_are_refused(tmp_path: Path, capsys: Any) -> None:
    arguments = ["evaluate", "--model", "nowhere", "--benchmark", "mbe=nowhere.jsonl"]
    assert main([*arguments, "--columns", "query.title"]) == 2
    assert "--columns: found 'query.title'; expected ROLE=COLUMN" in capsys.readouterr().err
    assert main([*arguments, "--fetch-seconds", "0"]) == 2
    assert "total_seconds: found 0.0; expected a positive number" in capsys.readouterr().err
    assert main(arguments) == 2
    assert "nowhere.jsonl: no such file or folder" in capsys.readouterr().err


def test_without_fetching_only_what_is_there_is_read(tmp_path: Path) -> None:
    with picture_server() as server:
        path = tmp_path / "rows.jsonl"
        rows = [{"query": "包", "doc_title": f"包 {name}", "doc_image": server.url(name)} for name in ("red", "blue")]
        path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
        fetching = PictureFetching(folder=tmp_path / "cache", fetch=False)
        tables = load_data_set(f"mbe={path}", TripletOptions(pictures=fetching))
    assert not server.asked
    assert tables.report.count("broken_rows") == 2
