"""One command compares two checkpoints on several shops and says where one is ahead."""

import json

import pytest

from evaluation import shops_study
from evaluation.shops_study import SHOPS, TRAINED, UNSEEN, Shop, markdown, table
from moon3.__main__ import main
from product_data.catalogue.making import write_catalogue


@pytest.fixture
def study(tiny_moon, tmp_path, monkeypatch):
    for seed, name in enumerate(("mine", "other")):
        write_catalogue(tmp_path / "data" / name, products=24, image_size=64, seed=seed, progress=False)
    shops = (Shop("mine", "mine", TRAINED, "own"), Shop("other", "other", UNSEEN, "another's"))
    monkeypatch.setattr(shops_study, "SHOPS", shops)
    first, second = tiny_moon("qwen3_vl", trained=True), tiny_moon("qwen3_vl", preset="moon2", trained=True)

    def run(*arguments, second=second):
        common = ["--data", str(tmp_path / "data"), "--work", str(tmp_path / "work")]
        models = ["--first", f"A={first}", "--second", f"B={second}"]
        return main(["shops-study", *common, *models, "--output", str(tmp_path / "study.json"), *arguments])

    run.first = first
    return run


def test_one_command_writes_rows_sentences_and_a_page(study, tmp_path, capsys):
    assert study() == 0
    results = json.loads((tmp_path / "study.json").read_text())
    assert [shop["seen"] for shop in results["shops"].values()] == [TRAINED, UNSEEN]
    assert results["provenance"]["commit"]
    tasks = {row["task"] for row in results["shops"]["other"]["rows"]}
    assert tasks == {"retrieval", "classification", "attributes"}
    for shop in results["shops"].values():
        for row in shop["rows"]:
            low, high = row["difference"]["interval"]
            assert row["ahead"] == ("A" if low > 0 else "B" if high < 0 else None)
    counted = [
        int(word.strip(";,")) for line in results["words"] for word in line.split() if word.strip(";,").isdigit()
    ]
    for total, ahead, behind, open_rows in zip(*[iter(counted)] * 4, strict=True):
        assert total == ahead + behind + open_rows > 0
    page = (tmp_path / "study.md").read_text()
    assert page == markdown(results)
    assert all(sentence in page for sentence in results["words"])
    assert len(table(results, short=True).splitlines()) < len(table(results).splitlines())
    assert results["words"][0] in capsys.readouterr().out


@pytest.mark.slow
def test_what_was_measured_is_not_measured_again_unless_the_weights_differ(study, tiny_moon, monkeypatch):
    calls = []
    measure = shops_study.measure
    monkeypatch.setattr(shops_study, "measure", lambda *given, **named: calls.append(1) or measure(*given, **named))
    assert study("--shops", "mine") == 0
    assert study("--shops", "mine") == 0
    assert len(calls) == 2
    assert study("--shops", "mine", second=tiny_moon("qwen3_vl", preset="moon2")) == 0
    assert len(calls) == 3


def test_a_model_is_never_ahead_of_itself(study, tmp_path):
    assert study("--shops", "mine", second=study.first) == 0
    results = json.loads((tmp_path / "study.json").read_text())
    assert {row["ahead"] for row in results["shops"]["mine"]["rows"]} == {None}


def test_what_cannot_be_compared_is_refused(study, capsys):
    assert study("--output", "study.txt") == 2
    assert "expected a .json file" in capsys.readouterr().err
    assert study("--second", "A=x") == 2
    assert "expected two names" in capsys.readouterr().err
    assert study("--second", "x") == 2
    assert "--second: found 'x'; expected NAME=FOLDER" in capsys.readouterr().err


def test_the_shops_are_some_that_were_trained_on_and_some_that_were_not():
    assert {shop.name for shop in SHOPS if shop.seen == TRAINED} == {"fashion", "grocery"}
    assert {shop.folder for shop in SHOPS if shop.seen == UNSEEN} == {"ikea", "spree", "chorus"}
