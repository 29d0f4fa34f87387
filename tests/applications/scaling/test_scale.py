"""moon3 scale: what a suite plans, refuses, runs, resumes and fits."""

import json
from pathlib import Path

import pytest
import yaml
from clicks import SMALL
from tiny_runs import TINY

from applications.ctr.simulation import simulate
from applications.scaling import study
from applications.scaling.power_law import ScalingError
from applications.scaling.study import HISTORY, NEGATIVES, TOKENS, run_scale
from applications.scaling.suite import read_scale_suite
from moon3.__main__ import main
from product_data.catalogue.making import write_catalogue
from product_data.impressions import write_impressions
from product_data.tables import load_tables
from training.recipe.arguments import RecipeError

ROOT = Path(__file__).resolve().parents[3]
KEYS = {
    "small_base": {
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_layers": 1,
        "vision_hidden_size": 32,
        "vision_depth": 2,
        "vocab_size": 400,
    },
    "moon": {"embedding_dim": 32},
    "evaluate_after": True,
    "hard_negatives": 0,
    "queue_steps": 0,
}


@pytest.fixture
def write_suite(tmp_path):
    def write(**changes):
        (tmp_path / "base.yaml").write_text(
            yaml.safe_dump({key: value for key, value in TINY.items() if key not in ("catalogue", "max_steps")})
        )
        suite = {"base": "base.yaml", "seeds": [0, 1], "keys": KEYS, "steps": [1, 2, 3, 4], "negatives": [1, 3, 7, 15]}
        suite = {key: value for key, value in (suite | changes).items() if value is not None}
        path = tmp_path / "suite.yaml"
        path.write_text(yaml.safe_dump(suite, sort_keys=False))
        return path

    return write


def test_a_star_measures_each_axis_at_the_largest_value_of_the_other(write_suite):
    suite, negatives = read_scale_suite(write_suite()), [1, 3, 7, 15]
    assert set(suite.cells.values()) == {(n, 15) for n in (1, 2, 3, 4)} | {(4, n) for n in negatives}
    assert len(read_scale_suite(write_suite(design="grid")).cells) == 16
    for cell, (steps, number) in suite.cells.items():
        keys = suite.trainings.keys_of(cell)
        assert keys["max_steps"] == steps
        assert keys["per_device_train_batch_size"] == number + 1
        assert keys["per_device_train_batch_size"] * keys["gradient_accumulation_steps"] == 16  # pairs of every step


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"steps": [1, 2, 3]}, ScalingError, "steps: found 3 values; expected at least 4"),
        ({"steps": [1, 2, 4, 3]}, RecipeError, "expected ascending numbers"),
        ({"negatives": [1, 2, 3, 4]}, RecipeError, "divides the largest batch 5"),
        ({"negatives": None}, RecipeError, "expected both, or history alone"),
        ({"seeds": [0, 0]}, RecipeError, "seeds"),
        ({"design": "cube"}, RecipeError, "expected star or grid"),
        ({"base": None}, RecipeError, "base: found None"),
        ({"keys": {**KEYS, "queue_steps": 2}}, RecipeError, "expected 0"),
        ({"history": {"log": "x"}}, RecipeError, "expected a mapping with log, vectors and lengths"),
        (
            {"history": {"log": "x", "vectors": "y", "lengths": [1, 2, 3, 4], "variant": "ids"}},
            RecipeError,
            "history: variant",
        ),
        ({"tokens": [1]}, RecipeError, "tokens"),
    ],
)
def test_a_suite_that_cannot_be_fitted_or_run_is_refused(write_suite, changes, error, said):
    with pytest.raises(error, match=said):
        read_scale_suite(write_suite(**changes))


def test_data_that_is_no_folder_is_refused_before_any_training(write_suite, tmp_path):
    with pytest.raises(RecipeError, match="expected folders of tables"):
        run_scale(write_suite(), tmp_path / "out")


@pytest.fixture
def finished(monkeypatch):
    """Replace trainings by results whose loss is 2 · pairs^−0.3 with a little noise; return what was trained."""
    trained = []

    def run_all(runs, data, workers, render):
        for run in runs:
            if run.result() is not None:
                continue
            trained.append(run.name)
            run.folder.mkdir(parents=True)
            pairs = run.wanted["max_steps"] * 16
            recall = 1 - pairs**-0.3 * (1 + 0.01 * run.seed)
            row = {"R@10": recall}
            result = {
                "cell": run.cell,
                "seed": run.seed,
                "keys": run.wanted,
                "scores": {"shop i→mm": row, "shop t→mm": row},
            }
            (run.folder / "cell.json").write_text(json.dumps(result))
        return []

    monkeypatch.setattr(study, "run_all", run_all)
    monkeypatch.setattr(study, "_tokens_per_pair", lambda suite, runs: 50.0)
    return trained


def test_losses_of_finished_trainings_are_fitted_and_drawn(write_suite, tmp_path, finished, capsys):
    write_catalogue(tmp_path / "shop", products=24, image_size=64, progress=False)
    path = write_suite(keys={**KEYS, "data": [str(tmp_path / "shop")]})
    output = tmp_path / "scaling.json"
    words = ["scale", str(path), "--output", str(output), "--work", str(tmp_path / "work")]
    assert main(words) == 0
    results = json.loads(output.read_text())
    tokens, negatives = (next(line for line in results["fits"] if line["axis"] == axis) for axis in (TOKENS, NEGATIVES))
    assert tokens["x"] == [800.0, 1600.0, 2400.0, 3200.0]
    assert tokens["fit"]["b"]["value"] == pytest.approx(0.3, abs=0.02)
    assert tokens["fit"]["falls"]
    assert negatives["fit"]["b"]["value"] == pytest.approx(0, abs=1e-6)
    assert len(finished) == 7 * 2
    said = capsys.readouterr().out
    assert "the loss falls with training tokens" in said
    assert "the interval contains 0" in said
    assert output.with_suffix(".png").stat().st_size > 10_000
    assert main(words) == 0
    assert len(finished) == 7 * 2


def test_an_unfinished_axis_is_not_fitted(write_suite, tmp_path, monkeypatch):
    write_catalogue(tmp_path / "shop", products=24, image_size=64, progress=False)
    monkeypatch.setattr(study, "run_all", lambda runs, data, workers, render: [run.name for run in runs])
    path = write_suite(keys={**KEYS, "data": [str(tmp_path / "shop")]})
    results, missed = run_scale(path, tmp_path / "work")
    assert len(missed) == 14
    assert all(line["fit"] is None and "0 finished values" in line["not_fitted"] for line in results["fits"])


def test_history_alone_needs_no_training(write_suite, tmp_path):
    from clicks import attribute_vectors, vectors_of_shop

    write_catalogue(tmp_path / "shop", products=60, image_size=64, progress=False)
    products = load_tables(tmp_path / "shop").products
    write_impressions(simulate(products, settings=SMALL), tmp_path / "log.parquet")
    vectors_of_shop(tmp_path / "vectors", products, attribute_vectors(products))
    history = {"log": str(tmp_path / "log.parquet"), "vectors": str(tmp_path / "vectors"), "lengths": [1, 2, 4, 8]}
    alone = {"base": None, "keys": None, "steps": None, "negatives": None, "history": history}
    results, missed = run_scale(write_suite(**alone), tmp_path / "work", resamples=30)
    assert not missed
    (line,) = results["fits"]
    assert line["axis"] == HISTORY
    assert line["x"] == [1, 2, 4, 8]
    assert line["losses"] == [[pytest.approx(1 - auc) for auc in own] for own in results["history"]["AUC"].values()]
    assert line["fit"]["b"]["interval"] is not None
    assert results["history"]["log"]["0"]["simulated"]


@pytest.mark.slow
def test_real_trainings_end_in_a_results_file(write_suite, tmp_path):
    write_catalogue(tmp_path / "shop", products=72, image_size=64, progress=False)
    path = write_suite(keys={**KEYS, "data": [str(tmp_path / "shop")]}, seeds=[0])
    results, missed = run_scale(path, tmp_path / "work")
    assert not missed
    assert results["tokens_per_pair"] > 10
    assert all(cell["losses"][study.IMAGE_SEARCH] for cell in results["cells"].values())


def test_the_shipped_suite_is_a_star_with_three_seeds(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    write_catalogue(tmp_path / "runs" / "ctr" / "products", products=20, image_size=64, progress=False)
    suite = read_scale_suite(ROOT / "training" / "recipes" / "scaling" / "small.yaml")
    assert suite.seeds == [0, 1, 2]
    assert len(suite.cells) == len(suite.steps) + len(suite.negatives) - 1
    assert suite.history is not None
