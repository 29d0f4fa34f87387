"""A shop's report: which numbers stand in which column, and in what order a run's results are read."""

import json
from dataclasses import replace
from pathlib import Path

from table_files import write_table

from moon3.__main__ import main
from product_data.tables import ProductRow, ProductTables, QueryRow, ValidationReport
from retrieval.shortened import shortened_summary
from training.recipe.arguments import RecipeError
from training.runs.folder import RunFolder
from training.shop import Models, _results, write_report

UNCUT = {"shortened": {"items": 0, "fields": {}, "first": []}, "max_tokens": 80}


def result(recall, **more):
    scores = {f"R@{k}": recall for k in (1, 5, 10)} | {f"R@{k}_chance": 0.02 for k in (1, 5, 10)}
    named = {"model": "m", "benchmark": "shop", "skipped": [], "warnings": []}
    return {**named, "scores": {"t2mm": scores}, "provenance": {"split": "test"}, **more}


def test_before_stands_left_of_after_and_a_run_is_read_in_that_order(tmp_path):
    for when, recall in (("after", 0.75), ("before", 0.25)):
        (tmp_path / f"results_{when}.json").write_text(json.dumps(result(recall)))
    results = _results(RunFolder(tmp_path))
    assert [found["scores"]["t2mm"]["R@10"] for found in results] == [0.25, 0.75]
    queries = [QueryRow(f"q{n}", "text", "x", positives=("p",), split="test" if n else "train") for n in range(4)]
    tables = ProductTables("shop", [ProductRow("p", title="x")], queries, ValidationReport("shop", 1, 4, {}))
    mined = {"negatives": {"2": 1}, "reasons": {"too near to the positive": 1}, "unreadable": {"product": []}, **UNCUT}
    text = write_report(
        tables,
        mined,
        results,
        {"before": tmp_path / "searches_before.png", "after": None},
        Models(RunFolder(tmp_path), tmp_path),
    )
    header, row = _table_of(text, "R@10, %")
    assert [cell.strip() for cell in header.split("|")][3:6] == ["before", "after", "chance"]
    assert [cell.strip() for cell in row.split("|")][3:6] == ["25.0", "75.0", "2.0"]
    assert "Only 3 searches are held out" in text
    assert "![before](searches_before.png)" in text
    assert "![after]" not in text


def test_the_report_says_where_model_and_adapter_lie_and_how_they_are_loaded(tmp_path):
    (tmp_path / "run" / "final").mkdir(parents=True)
    (tmp_path / "run" / "base").mkdir()
    models = Models(RunFolder(tmp_path / "run"), tmp_path / "run" / "base")
    (alone,) = models.describe()
    assert "`run/final`" in alone
    assert "SentenceTransformer('run/final', trust_remote_code=True)" in alone
    (tmp_path / "run" / "adapter").mkdir()
    _, adapter = models.describe()
    assert (
        "PeftModel.from_pretrained(AutoModel.from_pretrained('run/base', trust_remote_code=True), 'run/adapter')"
        in adapter
    )
    assert "from_pretrained('some/hub-id', " in Models(RunFolder(tmp_path / "run"), Path("some/hub-id")).describe()[1]


def test_refusals_name_the_key_of_this_command(tmp_path, capsys, monkeypatch):
    def refuse(*_):
        raise RecipeError(
            f"{tmp_path}/output_dir/run holds a run of another recipe; expected another output_dir, or --overwrite"
        )

    monkeypatch.setattr("training.shop._from_tables_to_report", refuse)
    (tmp_path / "products.csv").write_text("product_id,title\n1,x\n")
    assert main(["shop", "--data", str(tmp_path), "--output", str(tmp_path / "out")]) == 2
    message = capsys.readouterr().err
    assert "expected another --output, or --overwrite" in message
    assert f"{tmp_path}/output_dir/run holds" in message


def _section(text, title):
    return text.split(f"## {title}")[1].split("\n## ")[0]


def test_what_was_cut_in_mining_training_and_evaluation_is_counted_and_each_item_named_once(tmp_path):
    cut = [
        {"kind": "product", "item": name, "field": "title", "tokens_before": 90, "tokens_after": 40} for name in "pqr"
    ]
    tables = ProductTables("shop", [ProductRow("p", title="x")], [], ValidationReport("shop", 1, 0, {}))
    mined = {"negatives": {}, "reasons": {}, "unreadable": {}, **UNCUT}
    sides = {"before": None, "after": None}
    assert _section(
        write_report(tables, mined, [], sides, Models(RunFolder(tmp_path), tmp_path)), "What was cut"
    ).endswith("\n\nNothing.\n")
    mined["shortened"] = shortened_summary(cut[:2])
    write_table(tmp_path / "shortened.jsonl", cut[:1])
    results = [result(0.5), result(0.5, shortened=shortened_summary(cut[1:]), warnings=["2 items are over"])]
    text = write_report(tables, mined, results, sides, Models(RunFolder(tmp_path), tmp_path))
    assert _section(text, "What was cut").strip().splitlines()[2:] == [
        "- mining: 2 items are over max_tokens=80: title cut in 2; first: product 'p', title: 90 → 40 tokens",
        "- training: 1 item is over max_tokens=80: title cut in 1; first: product 'p', title: 90 → 40 tokens",
        *(f"- product '{name}', title: 90 → 40 tokens" for name in "pqr"),
    ]
    assert "WARNING: 2 items are over" in text


def _table_of(text, metric):
    lines = text.splitlines()
    place = next(number for number, line in enumerate(lines) if metric in line)
    return lines[place], lines[place + 2]


def test_each_item_that_could_not_be_encoded_is_named_once_whoever_met_it(tmp_path):
    broken = {"item": "p", "field": "images[0]", "reason": "truncated"}
    skipped = [{"kind": "product", "id": "p", "field": "images[0]", "reason": "truncated"}]
    skipped += [{"kind": "query", "id": "q", "field": "image", "reason": "gone"}]
    mined = {"negatives": {}, "reasons": {}, "unreadable": {"product": [broken], "query": []}, **UNCUT}
    tables = ProductTables("shop", [ProductRow("p", title="x")], [], ValidationReport("shop", 1, 0, {}))
    tables = replace(tables, queries=[QueryRow("q", "text", "x", positives=("p",), split="test")])
    results = [result(0.5, skipped=skipped), result(0.5, skipped=skipped)]
    text = write_report(tables, mined, results, {"before": None, "after": None}, Models(RunFolder(tmp_path), tmp_path))
    left_out = _section(text, "What could not be encoded").strip().splitlines()
    assert left_out == ["- product p, images[0]: truncated", "- query q, image: gone"]
    assert "No held-out answer." in text
