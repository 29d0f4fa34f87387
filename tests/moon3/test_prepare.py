"""moon3 prepare: what it prints, its page, vectors beside pictures, and tables that the other commands read."""

from __future__ import annotations

import json

import pytest

from evaluation.preparation_page import preparation_page
from moon3.__main__ import main
from product_data.catalogue.making import make_catalogue
from product_data.catalogue.planted_duplicates import plant
from product_data.preparation.job import PreparationOptions, prepare
from product_data.query_files import write_query_rows
from product_data.table_files import read_rows
from product_data.tables import load_tables
from retrieval.vectors.vector_files import VectorFolder

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """A drawn shop with copies and wrong answers, as files: the pictures beside products.jsonl."""
    folder = tmp_path_factory.mktemp("shop")
    planted = plant(*make_catalogue(products=48, seed=4, image_size=96, progress=False), seed=4, copied=0.4, wrong=0.5)
    (folder / "images").mkdir()
    rows = []
    for row in planted.products:
        (folder / "images" / f"{row['product_id']}.jpg").write_bytes(row["images"][0])
        rows.append(row | {"images": [f"images/{row['product_id']}.jpg"]})
    (folder / "products.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    queries = load_tables({"products": planted.products, "queries": planted.queries}).queries
    write_query_rows(folder / "queries.parquet", queries)
    return folder, planted


def test_what_is_printed_and_written_and_a_second_run_has_nothing_to_do(shop, tmp_path, capsys):
    folder, planted = shop
    words = ["prepare", str(folder), "--output", str(tmp_path / "out"), "--quiet"]
    assert main(words) == 0
    said = capsys.readouterr().out
    found = json.loads((tmp_path / "out" / "steps" / "duplicates.json").read_text(encoding="utf-8"))["counts"]["groups"]
    assert 0.9 * len(set(planted.copies.values())) <= found <= len(set(planted.copies.values()))
    assert f"duplicates: {found} groups of " in said
    assert "steps done now: pictures, duplicates, splits, pairs, tables, report" in said
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/jpeg;base64,") > len(planted.copies)
    assert "down-weighted" in page
    assert "the query names" in page
    record = json.loads((tmp_path / "out" / "prepare.json").read_text(encoding="utf-8"))
    assert record["complete"]
    assert record["provenance"]["versions"]["pillow"]
    assert main(words) == 0
    assert "nothing to do: every step was done" in capsys.readouterr().out
    assert main(["tables", str(tmp_path / "out")]) == 0
    assert "unknown_columns" not in capsys.readouterr().out


def test_groups_hold_the_planted_copies_and_no_query_answers_across_splits(shop, tmp_path):
    folder, planted = shop
    done = prepare(folder, tmp_path / "out", PreparationOptions(progress=False), page=preparation_page)
    rows = read_rows(tmp_path / "out" / "duplicates.csv")
    groups = {}
    for row in rows:
        groups.setdefault(row["group"], set()).add(planted.copies.get(row["product_id"], row["product_id"]))
    assert all(len(products) == 1 for products in groups.values())
    tables = load_tables(tmp_path / "out")
    split_of = {row.product_id: row.split for row in tables.products}
    assert all(split_of[name] == query.split for query in tables.queries for name in query.positives)
    assert done.counts["splits"]["groups in several splits"] > 0
    listed = {
        (row["id"], row["product_id"]) for row in read_rows(tmp_path / "out" / "changes.csv") if row["step"] == "pairs"
    }
    assert len(planted.wrong & listed) > len(planted.wrong) / 2  # others share a colour or a style by chance


def test_vectors_of_the_same_tables_are_compared_and_the_prepared_tables_embedded(shop, tmp_path, tiny_moon, capsys):
    folder, planted = shop
    model = str(tiny_moon("qwen3_vl"))
    assert main(["embed", str(folder / "products.jsonl"), "--model", model, "--output", str(tmp_path / "v")]) == 0
    output = tmp_path / "out"
    words = ["prepare", str(folder), "--output", str(output), "--vectors", str(tmp_path / "v"), "--quiet"]
    assert main([*words, "--picture-distance", "0", "--cosine", "0.9"]) == 0
    assert " by vectors" in capsys.readouterr().out
    pairs = [row for row in read_rows(output / "duplicate_pairs.csv") if row["reason"] == "vectors"]
    assert pairs
    assert min(float(row["score"]) for row in pairs) >= 0.9
    assert main(["embed", str(output), "--model", model, "--output", str(tmp_path / "after")]) == 0
    removed = [
        row["id"]
        for row in read_rows(output / "changes.csv")
        if row["action"] == "removed" and row["table"] == "products"
    ]
    assert VectorFolder(tmp_path / "after").state.products == len(planted.products) - len(removed)


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--cosine", "0.9"], "--cosine: found no --vectors; expected both"),
        (["--pair-weight", "0.5", "--unrelated-pairs", "drop"], "--pair-weight: found --unrelated-pairs drop"),
        (["--pair-weight", "2"], "weight: found 2.0; expected a number between 0 and 1"),
        (["--structure", "3"], "structure: found 3.0; expected a number from -1 to 1"),
        (["--restore", "nowhere.csv"], "nowhere.csv: no such file"),
    ],
)
def test_options_that_cannot_be_used_are_refused(shop, tmp_path, capsys, words, why):
    assert main(["prepare", str(shop[0]), "--output", str(tmp_path / "out"), *words]) == 2
    assert why in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_vectors_of_another_catalogue_are_refused(shop, tmp_path, tiny_moon, capsys):
    (tmp_path / "products.csv").write_text("product_id,title\n1,hat\n2,shoe\n")
    model = str(tiny_moon("qwen3_vl"))
    assert main(["embed", str(tmp_path / "products.csv"), "--model", model, "--output", str(tmp_path / "v")]) == 0
    words = ["prepare", str(shop[0]), "--output", str(tmp_path / "out"), "--vectors", str(tmp_path / "v"), "--quiet"]
    assert main(words) == 2
    assert "found vectors of 0 of " in capsys.readouterr().err
