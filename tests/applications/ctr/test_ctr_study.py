"""moon3 ctr: from simulated clicks to a results file; finished cells are not trained again."""

import json

import pytest
from clicks import SMALL, attribute_vectors, clicks, shop, vectors_of_shop
from stored_products import units

from applications.ctr import report, study
from applications.ctr.model import CtrSettings
from applications.ctr.study import CtrStudy, run_study
from moon3.__main__ import main
from product_data.errors import OptionError
from product_data.impressions import write_impressions

SETTINGS = CtrSettings(history=5, size=4, tiers=4, hidden=8, batch_size=128, epochs=1)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Two logs, vectors that say what the products are, and vectors that do not."""
    folder = tmp_path_factory.mktemp("ctr")
    products = shop()
    vectors_of_shop(folder / "good", products, attribute_vectors(products))
    vectors_of_shop(folder / "noise", products, units(len(products)))
    for seed in (0, 1):
        write_impressions(clicks(seed), folder / f"log-{seed}.parquet")
    return folder


def study_of(files, **changes):
    values = {
        "log": str(files / "log-{seed}.parquet"),
        "vectors": {"good": files / "good", "noise": files / "noise"},
        "variants": ("ids", "vectors"),
        "seeds": (0, 1),
        "settings": SETTINGS,
    }
    return CtrStudy(**values | changes)


@pytest.fixture(scope="module")
def results(files, tmp_path_factory):
    return run_study(study_of(files), tmp_path_factory.mktemp("cells"), resamples=40)


def test_the_results_hold_every_model_seed_and_kind_of_product(results):
    assert list(results["models"]) == ["ids", "good: vectors", "noise: vectors"]
    for model in results["models"].values():
        assert list(model["seeds"]) == ["0", "1"]
        for cell in model["seeds"].values():
            scores = cell["scores"]
            assert scores["all"]["rows"] == scores["known"]["rows"] + scores["new"]["rows"]
            assert all(0 < scores[subset]["AUC"] < 1 for subset in scores)
    assert all(log["simulated"] for log in results["log"].values())
    assert results["log"]["0"]["digest"] != results["log"]["1"]["digest"]
    assert results["log"]["0"]["best_possible_AUC"]["all"] > 0.7


def test_differences_are_those_of_the_seeds_and_lie_in_their_interval(results):
    good, ids = results["models"]["good: vectors"], results["models"]["ids"]
    assert list(good["against"]) == ["ids", "noise: vectors"]
    change = good["against"]["ids"]["all"]
    by_seed = [good["seeds"][s]["scores"]["all"]["AUC"] - ids["seeds"][s]["scores"]["all"]["AUC"] for s in ("0", "1")]
    assert change["seeds"] == pytest.approx(by_seed)
    assert change["mean"] == pytest.approx(sum(by_seed) / 2)
    assert change["interval"][0] <= change["mean"] <= change["interval"][1]
    assert not results["models"]["ids"]["against"]


def test_the_report_says_simulated_and_keeps_to_the_intervals(results, tmp_path):
    whole = report.write(results, tmp_path / "ctr.json")
    assert json.loads((tmp_path / "ctr.json").read_text())["models"] == whole["models"]
    text = (tmp_path / "ctr.md").read_text()
    assert "SIMULATED" in text
    assert (tmp_path / "ctr.png").stat().st_size > 10_000
    for name, model in whole["models"].items():
        for other, subsets in model["against"].items():
            low, high = subsets["new"]["interval"]
            (line,) = [line for line in whole["words"] if f"{name} against {other}:" in line]
            verdict = ", higher;" if low > 0 else ", lower;" if high < 0 else ", not clearly different;"
            assert verdict in line


def test_a_finished_cell_is_not_trained_again_and_a_changed_one_is(files, tmp_path, monkeypatch):
    trained = []
    real = study.train

    def counted(rows, variant, settings, *, seed):
        trained.append((variant, seed))
        if len(trained) == 3:
            raise KeyboardInterrupt
        return real(rows, variant, settings, seed=seed)

    monkeypatch.setattr(study, "train", counted)
    own = study_of(files, vectors={"good": files / "good"})
    with pytest.raises(KeyboardInterrupt):
        run_study(own, tmp_path, resamples=5)
    first = run_study(own, tmp_path, resamples=5)
    assert trained == [("ids", 0), ("vectors", 0), ("ids", 1), ("ids", 1), ("vectors", 1)]
    again = run_study(own, tmp_path, resamples=5)
    assert len(trained) == 5
    assert again["models"] == first["models"]
    run_study(study_of(files, vectors={"good": files / "noise"}, seeds=(1,)), tmp_path, resamples=5)
    assert trained[5:] == [("vectors", 1)]  # other vectors under the same name


def test_the_command_simulates_and_trains(files, tmp_path, capsys):
    assert main(["ctr", "simulate", "catalogue", "--output", str(tmp_path / "x.csv")]) == 2
    assert "expected a .parquet file" in capsys.readouterr().err
    words = ["ctr", "train", "--log", str(files / "log-0.parquet"), "--vectors", f"good={files / 'good'}"]
    small = [f"--{name.replace('_', '-')}={value}" for name, value in vars(SETTINGS).items()]
    output = tmp_path / "r.json"
    more = ["--seeds", "0", "--variants", "ids", "vectors", "--output", str(output), "--work", str(tmp_path / "w")]
    assert main([*words, *small, *more]) == 0
    said = capsys.readouterr().out
    assert "SIMULATED behaviour" in said
    assert "good: vectors" in said
    results = json.loads(output.read_text())
    assert results["settings"] == vars(SETTINGS)
    assert results["log"]["0"]["simulation"]["users"] == SMALL.users


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seeds": ()}, "--seeds"),
        ({"seeds": (1, 1)}, "--seeds"),
        ({"variants": ("all",)}, "found 'all'"),
        ({"vectors": {}}, "--vectors: found none"),
    ],
)
def test_a_study_that_cannot_run_is_refused(files, changes, said):
    with pytest.raises(OptionError, match=said):
        study_of(files, **changes)


@pytest.mark.parametrize("word", ["folder", "=folder", "a=", ""])
def test_vectors_without_a_name_are_refused(word, tmp_path, capsys):
    assert main(["ctr", "train", "--log", "x", "--vectors", word, "--output", str(tmp_path / "r.json")]) == 2
    assert "expected NAME=FOLDER" in capsys.readouterr().err
