"""moon3 exchange-rate on a training of a few steps."""

import json
from dataclasses import replace

import pytest
from clicks import SMALL
from tiny_runs import write_recipe

from applications.ctr.simulation import simulate
from applications.exchange_rate import study
from applications.exchange_rate.study import IMAGE_SEARCH, models_of
from moon3.__main__ import main
from product_data.catalogue.making import write_catalogue
from product_data.errors import OptionError
from product_data.impressions import write_impressions
from product_data.tables import load_tables

SMALL_BASE = {"hidden_size": 32, "intermediate_size": 32, "num_layers": 1, "vision_hidden_size": 32, "vocab_size": 400}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A training with the models of steps 0 to 4, its products and a log of simulated clicks on them."""
    folder = tmp_path_factory.mktemp("exchange")
    write_catalogue(folder / "shop", products=72, image_size=64, seed=2, progress=False)
    tables = load_tables(folder / "shop")
    log = simulate(tables.products, tables.queries, replace(SMALL, users=80), seed=0)
    write_impressions(log, folder / "log.parquet")
    keys = {"small_base": {**SMALL_BASE, "vision_depth": 2}, "moon": {"embedding_dim": 32}, "save_steps": 1}
    recipe = write_recipe(
        folder / "recipe.yaml", **keys, data=[str(folder / "shop")], catalogue=None, save_total_limit=10
    )
    assert main(["train", str(recipe), "--output_dir", str(folder / "run")]) == 0
    return folder


def test_the_models_of_a_run_are_its_base_its_checkpoints_and_the_trained_model(run):
    assert [(step, path.name) for step, path in models_of(run / "run").items()] == [
        (0, "base"),
        (1, "checkpoint-1"),
        (2, "checkpoint-2"),
        (3, "checkpoint-3"),
        (4, "final"),
    ]


def test_a_run_with_few_models_and_a_folder_without_a_run_are_refused(run, tmp_path):
    with pytest.raises(OptionError, match="found no resolved_recipe.yaml"):
        models_of(tmp_path)
    (run / "run" / "checkpoint-3" / "complete.json").rename(run / "run" / "checkpoint-3" / "hidden")
    try:
        with pytest.raises(OptionError, match="found 4 models .*save_total_limit"):
            models_of(run / "run")
    finally:
        (run / "run" / "checkpoint-3" / "hidden").rename(run / "run" / "checkpoint-3" / "complete.json")


def test_the_command_measures_every_checkpoint_once(run, tmp_path, capsys, monkeypatch):
    output = tmp_path / "rate.json"
    words = ["exchange-rate", str(run / "run"), "--products", str(run / "shop"), "--log", str(run / "log.parquet")]
    words += [
        "--split",
        "all",
        "--seeds",
        "0",
        "--variant",
        "vectors",
        "--output",
        str(output),
        "--work",
        str(tmp_path / "w"),
    ]
    assert main(words) == 0
    said = capsys.readouterr().out
    results = json.loads(output.read_text())
    assert results["steps"] == [0, 1, 2, 3, 4]
    assert IMAGE_SEARCH in results["values"]
    assert "i→mm alignment" in results["values"]
    assert any(name.startswith("classification") for name in results["values"])
    for subset in ("all", "new"):
        found = results[subset]
        assert len(found["AUC"]) == 5
        assert set(found["metrics"]) == set(results["values"])
        assert set(found["ranking"]) <= set(found["metrics"])
    assert "SIMULATED" in said
    assert "do not choose a metric by this alone" in said
    assert output.with_suffix(".png").stat().st_size > 10_000

    def never(*_, **__):
        raise AssertionError("measured again")

    monkeypatch.setattr(study, "intermediate_rows", never)
    monkeypatch.setattr("applications.ctr.study.train", never)
    assert main(words) == 0
    assert json.loads(output.read_text())["all"] == results["all"]
