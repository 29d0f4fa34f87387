"""A preparation: what it removes, moves and weighs, what it writes, and how it goes on after being stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from pictures import file_of, noise
from table_files import write_table

from product_data.errors import OptionError
from product_data.preparation import job
from product_data.preparation.job import PreparationOptions, PreparedFolder, prepare
from product_data.preparation.near_duplicates import DuplicateOptions
from product_data.preparation.pair_filter import PairOptions, read_pairs
from product_data.preparation.prepared_tables import WritingOptions, read_restored
from product_data.table_files import TableError, read_rows
from product_data.tables import load_tables

ROOT = Path(__file__).resolve().parents[3]


def product(name, title, number, split, *, colour="red", group=None, **more):
    """A row whose picture is number `number`, compressed on its own for each product."""
    picture = noise(8, 8, number).resize((96, 96))
    return {
        "product_id": name,
        "title": title,
        "category_path": ["Fashion", "Shoes"],
        "attributes": [{"key": "colour", "value": colour}, {"key": "brand", "value": "Noru"}],
        "images": [{"bytes": file_of(picture, "JPEG", quality=95 - len(name)), "path": None}],
        "split": split,
        "group": group,
        "price": 9.5,
    } | more


PRODUCTS = [
    product("a", "Noru red trail shoes", 1, "test"),
    product("a-copy", "trail shoes red by Noru", 1, "train", attributes=[{"key": "colour", "value": "red"}]),
    product("blue", "Noru trail shoes", 1, "train", colour="blue"),
    product("other", "Noru town shoes", 2, "train", group="town"),
    product("hat", "Veldt straw hat", 3, "train", category_path=["Fashion", "Hats"], colour="straw"),
]
QUERIES = [
    {"query_id": "q0", "type": "text", "text": "red trail shoes", "positives": ["a-copy"], "split": "train"},
    {"query_id": "q1", "type": "text", "text": "hat of straw", "positives": ["other"], "split": "train"},
    {"query_id": "q2", "type": "text", "text": "hello there", "positives": ["hat"], "split": "train"},
    {"query_id": "q3", "type": "text", "text": "blue shoes", "positives": ["blue", "a-copy"], "split": "train"},
    {"query_id": "q4", "type": "text", "text": "straw hats", "positives": ["hat", "other"], "split": "train"},
]
for query in QUERIES:
    query["negatives"] = ["a-copy"] if query["query_id"] == "q2" else []


@pytest.fixture(params=[".parquet"])
def shop(tmp_path, request):
    folder = tmp_path / "shop"
    folder.mkdir()
    write_table(folder / f"products{request.param}", PRODUCTS)
    write_table(folder / f"queries{request.param}", QUERIES)
    return folder


def run(shop, output, **options):
    writing = {name: options.pop(name) for name in ("duplicates", "pairs", "restored") if name in options}
    given = PreparationOptions(
        duplicates=DuplicateOptions(**options), writing=WritingOptions(**writing), progress=False
    )
    return prepare(shop, output, given, page=lambda done: f"<html>{done.tables.name}</html>")


def rows_of(path):
    return {row[next(iter(row))]: row for row in read_rows(path)}


def test_a_duplicate_is_removed_and_its_answers_and_split_follow_the_product_that_stays(shop, tmp_path):
    before = {path.name: path.read_bytes() for path in shop.iterdir()}
    done = run(shop, tmp_path / "out")
    assert {path.name: path.read_bytes() for path in shop.iterdir()} == before
    tables = load_tables(tmp_path / "out")
    assert tables.report.ok
    assert [row.product_id for row in tables.products] == ["a", "blue", "other", "hat"]
    assert {row.product_id: row.split for row in tables.products}["a"] == "test"
    queries = {row.query_id: row for row in tables.queries}
    assert (queries["q0"].positives, queries["q0"].split) == (("a",), "test")
    assert (queries["q3"].positives, queries["q3"].split) == (("blue",), "train")  # a is in another split
    assert queries["q2"].negatives == ("a",)
    assert done.counts["duplicates"]["groups"] == 1
    assert done.counts["splits"]["groups in several splits"] == 1
    assert "unknown_columns" not in {issue.kind for issue in tables.report.issues} or all(
        "price" in str(issue) for issue in tables.report.issues if issue.kind == "unknown_columns"
    )
    for query in tables.queries:
        splits = {row.split for row in tables.products if row.product_id in query.positives}
        assert splits == {query.split}


def test_all_columns_stay_and_two_name_the_source_row_and_the_changes(shop, tmp_path):
    run(shop, tmp_path / "out")
    products = rows_of(tmp_path / "out" / "products.parquet")
    assert products["a"]["price"] == 9.5
    assert {name: row["source_row"] for name, row in products.items()} == {"a": 0, "blue": 2, "other": 3, "hat": 4}
    assert products["a"]["prepared"] == "duplicates: stays for a-copy"
    assert products["blue"]["prepared"] == ""
    queries = rows_of(tmp_path / "out" / "queries.parquet")
    assert "a-copy replaced (by a)" in queries["q0"]["prepared"]
    assert "split: train → test" in queries["q0"]["prepared"]
    changes = read_rows(tmp_path / "out" / "changes.csv")
    removed = [row for row in changes if row["action"] == "removed" and row["table"] == "products"]
    assert [(row["row"], row["id"]) for row in removed] == [("1", "a-copy")]
    assert removed[0]["reason"].startswith("duplicate of a (pictures, ")


def test_a_pair_without_a_shared_entity_counts_less_and_one_without_known_words_stays(shop, tmp_path):
    done = run(shop, tmp_path / "out", pairs=PairOptions("down_weight", 0.2))
    verdicts = {(pair.query_id, pair.product_id): pair.verdict for pair in read_pairs(done.folder.pairs)}
    assert verdicts["q1", "other"] == "none"
    assert verdicts["q2", "hat"] == "unknown"
    assert verdicts["q4", "hat"] == "shared"
    assert done.counts["pairs"]["unknown"] == 1
    queries = {row.query_id: row for row in load_tables(tmp_path / "out").queries}
    assert queries["q1"].answers == {"other": 0.2}
    assert queries["q4"].answers == {"hat": 1.0, "other": 0.2}
    assert queries["q2"].answers == {"hat": 1.0}
    dropped = run(shop, tmp_path / "dropped", pairs=PairOptions("drop"))
    queries = {row.query_id: row for row in load_tables(tmp_path / "dropped").queries}
    assert queries.keys() == {"q0", "q2", "q3", "q4"}
    assert queries["q4"].answers == {"hat": 1.0}
    assert dropped.counts["tables"]["changes"]["queries removed (pairs)"] == 1
    kept = run(shop, tmp_path / "kept", pairs=PairOptions("keep"))
    assert not any("(pairs)" in name for name in kept.counts["tables"]["changes"])


def test_what_a_file_lists_is_restored(shop, tmp_path):
    run(shop, tmp_path / "out", pairs=PairOptions("drop"))
    restored = read_restored(tmp_path / "out" / "changes.csv")
    run(shop, tmp_path / "out", pairs=PairOptions("drop"), restored=restored)
    tables = load_tables(tmp_path / "out")
    assert {row.product_id for row in tables.products} == {row["product_id"] for row in PRODUCTS}
    assert {row.product_id: row.split for row in tables.products}["a-copy"] == "test"  # still in one split
    assert {row.query_id: row.positives for row in tables.queries}["q1"] == ("other",)


def test_kept_duplicates_share_split_and_group_so_that_they_are_no_negatives_of_each_other(shop, tmp_path):
    run(shop, tmp_path / "out", duplicates="keep")
    products = {row.product_id: row for row in load_tables(tmp_path / "out").products}
    assert products["a"].group == products["a-copy"].group == "duplicates of a"
    assert products["a"].split == products["a-copy"].split == "test"
    assert products["other"].group == "town"


def test_a_finished_step_is_not_done_again_and_other_options_redo_only_later_steps(shop, tmp_path):
    assert run(shop, tmp_path / "out").made == job.STEPS
    assert run(shop, tmp_path / "out").made == ()
    assert run(shop, tmp_path / "out", pairs=PairOptions("drop")).made == ("tables", "report")
    assert run(shop, tmp_path / "out", picture_distance=1.0).made == ("duplicates", "splits", "tables", "report")
    (tmp_path / "out" / "queries.parquet").unlink()
    assert run(shop, tmp_path / "out", picture_distance=1.0).made == ("tables",)
    (tmp_path / "out" / "steps" / "pictures" / "000000.npz").write_bytes(b"torn")
    assert run(shop, tmp_path / "out", picture_distance=1.0).made == ("pictures",)
    record = json.loads((tmp_path / "out" / "prepare.json").read_text())
    assert record["complete"] is True
    assert record["options"]["picture_distance"] == 1.0
    write_table(shop / "queries.parquet", QUERIES[:2])
    assert run(shop, tmp_path / "out", picture_distance=1.0).made[0] == "duplicates"


KILLED = """
import os, signal, sys
from pathlib import Path
from product_data import atomic_files
left = int(sys.argv[3])
replace = os.replace
def replacing(*names):
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    replace(*names)
os.replace = replacing
from product_data.preparation.job import PreparationOptions, prepare
prepare(sys.argv[1], Path(sys.argv[2]), PreparationOptions(progress=False), page=lambda done: "<html></html>")
"""


def contents(folder):
    names = ("products.parquet", "queries.parquet", "changes.csv", "duplicates.csv", "pairs.parquet", "report.html")
    return {name: (folder / name).read_bytes() for name in names}


@pytest.mark.slow
def test_a_preparation_that_is_killed_at_any_write_goes_on_to_the_same_files(shop, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    for number in (*range(0, 40, 3), 10**6):
        words = [sys.executable, "-c", KILLED, str(shop), str(broken), str(number)]
        status = subprocess.run(words, env=environment, check=False).returncode
        assert status in (0, -signal.SIGKILL)
        if status == 0:
            break
        assert not json.loads((broken / "prepare.json").read_text())["complete"] if number else True
    run(shop, whole)
    run(shop, broken)
    found, expected = contents(broken), contents(whole)
    assert {name: found[name] == expected[name] for name in found if name != "report.html"} == dict.fromkeys(
        set(found) - {"report.html"}, True
    )


def test_a_run_that_stops_in_a_step_goes_on_with_that_step(shop, tmp_path, monkeypatch):
    def stopped(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(job, "judge_pairs", stopped)
    with pytest.raises(KeyboardInterrupt):
        run(shop, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "prepare.json").read_text())["complete"] is False
    assert not (tmp_path / "out" / "products.parquet").exists()
    monkeypatch.undo()
    assert run(shop, tmp_path / "out").made == ("pairs", "tables", "report")


def test_a_log_becomes_queries_with_weights(tmp_path):
    folder = tmp_path / "shop"
    folder.mkdir()
    write_table(folder / "products.jsonl", [{key: row[key] for key in ("product_id", "title")} for row in PRODUCTS])
    log = [
        {"query": "straw hat", "product_id": "hat", "action": "purchase"},
        {"query": "straw hat", "product_id": "other", "action": "click"},
    ]
    write_table(folder / "interactions.csv", log)
    run(folder, tmp_path / "out")
    tables = load_tables(tmp_path / "out")
    assert not (tmp_path / "out" / "interactions.csv").exists()
    assert [row.text for row in tables.queries] == ["straw hat"]
    assert tables.queries[0].answers.keys() == {"hat", "other"}


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_tables_of_texts_keep_their_format(tmp_path, suffix):
    folder = tmp_path / "shop"
    folder.mkdir()
    (folder / "images").mkdir()
    rows = []
    for row in PRODUCTS:
        (folder / "images" / f"{row['product_id']}.jpg").write_bytes(row["images"][0]["bytes"])
        text = "; ".join(f"{entry['key']}: {entry['value']}" for entry in row["attributes"])
        rows.append(
            row | {"images": f"images/{row['product_id']}.jpg", "attributes": text, "group": row["group"] or ""}
        )
        rows[-1]["category_path"] = " > ".join(row["category_path"])
    write_table(folder / f"products{suffix}", rows)
    write_table(folder / f"queries{suffix}", QUERIES)
    run(folder, tmp_path / "out")
    tables = load_tables(tmp_path / "out", check_images=True)
    assert [row.product_id for row in tables.products] == ["a", "blue", "other", "hat"]
    assert "missing_images" not in {issue.kind for issue in tables.report.issues}
    assert {row.query_id: row.answers for row in tables.queries}["q4"] == {"hat": 1.0, "other": 0.25}


def test_what_cannot_be_prepared_is_refused(shop, tmp_path):
    with pytest.raises(OptionError, match="found the folder of the source; expected another folder"):
        prepare(shop, shop)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "products.csv").write_text("product_id,title\n1,x\n")
    with pytest.raises(OptionError, match=r"found products.csv; expected a new folder"):
        prepare(shop, tmp_path / "mine")
    with pytest.raises(TableError, match="moon3 catalogue --output FOLDER writes it"):
        prepare("catalogue", tmp_path / "x")
    write_table(shop / "products.parquet", [*PRODUCTS, PRODUCTS[0]])
    with pytest.raises(TableError, match="used by more than one product"):
        prepare(shop, tmp_path / "x")
    for options, why in (
        ({"duplicates": "drop"}, "duplicates: found 'drop'; expected remove or keep"),
        ({"pairs": ("lose", 0.5)}, "unrelated: found 'lose'"),
        ({"pairs": ("drop", 1.0)}, "weight: found 1.0; expected a number between 0 and 1"),
    ):
        with pytest.raises(OptionError, match=why):
            WritingOptions(**options | ({"pairs": PairOptions(*options["pairs"])} if "pairs" in options else {}))
    with pytest.raises(OptionError, match="cosine: found 2; expected a number from -1 to 1"):
        DuplicateOptions(cosine=2)
    with pytest.raises(TableError, match="found no column 'table'"):
        read_restored(write_table(tmp_path / "list.csv", [{"id": "a"}]))


def test_a_picture_that_cannot_be_opened_is_counted_and_its_product_stays(shop, tmp_path):
    broken = PRODUCTS[4] | {"images": [{"bytes": b"no picture", "path": None}]}
    write_table(shop / "products.parquet", [*PRODUCTS[:4], broken])
    done = run(shop, tmp_path / "out")
    assert done.counts["pictures"]["unreadable"] == 1
    assert done.counts["pictures"]["examples"][0].startswith("hat: ")
    assert "hat" in rows_of(tmp_path / "out" / "products.parquet")
    assert PreparedFolder(tmp_path / "out").report.is_file()
