"""Ablation suites: what is refused, what runs, what is run again, and what the table says."""

import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from moon3.__main__ import main
from product_data.catalogue.making import write_catalogue
from training.recipe import arguments
from training.recipe.arguments import RecipeError
from training.studies.ablate import (
    CELL_FILE,
    LOCK_FILE,
    LOG_FILE,
    BusyError,
    Run,
    _share_done,
    collect,
    plan,
    run_all,
    run_suite,
    start,
)
from training.studies.ablation_chart import draw_chart
from training.studies.ablation_suite import changed_parts, read_suite
from training.studies.ablation_table import ALL_ROWS, ablation_rows, in_words, markdown, t_interval, verdict

ROOT = Path(__file__).resolve().parents[3]
SUITES = sorted((ROOT / "training" / "recipes" / "ablations" / "suites").glob("*.yaml"))
TINY = {
    "small_base": {
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_layers": 1,
        "vision_hidden_size": 32,
        "vision_depth": 2,
        "vocab_size": 400,
    },
    "moon": {"embedding_dim": 32},
    "catalogue": {"products": 18, "image_size": 64},
    "max_image_tokens": 2,
    "max_steps": 2,
    "save_steps": 1,
    "per_device_train_batch_size": 4,
    "hard_negatives": 0,
    "queue_steps": 0,
    "evaluate_after": True,
    "logging_steps": 1,
}


@pytest.fixture
def write_suite(tmp_path):
    """A suite file of two cells on the embedded catalogue, with some of its keys replaced."""

    def write(**changes):
        (tmp_path / "base.yaml").write_text(yaml.safe_dump({"data": ["catalogue"]}))
        cells = {"plain": {}, "hard": {"hard_negatives": 1}}
        suite = {"base": "base.yaml", "seeds": [0, 1], "keys": TINY, "cells": cells} | changes
        path = tmp_path / "suite.yaml"
        path.write_text(yaml.safe_dump(suite, sort_keys=False))
        return path

    return write


@pytest.mark.parametrize("path", SUITES, ids=lambda path: path.stem)
def test_a_shipped_suite_changes_one_part_a_cell_with_three_seeds(path, shared_data, monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    text = path.read_text()
    recipe = (path.parent / yaml.safe_load(text)["base"]).resolve()
    while recipe.is_file():
        text += recipe.read_text()
        recipe = recipe.parent / yaml.safe_load(recipe.read_text()).get("extends", "nothing")
    if written := re.findall(
        r"(runs/(?:evidence/)?(?:catalogue|base|variants/\w+|reference/(?:base|tables/[\w/]+)|suite/cells/plain/seed-0/final))[,\]}\n]",
        text,
    ):  # other commands write the tables
        project = tmp_path / "project"
        (tmp_path / "shared").symlink_to(shared_data.parent)
        monkeypatch.setattr("training.recipe.data.is_variant_folder", lambda folder: True)
        for folder in written:
            (project / folder).mkdir(parents=True, exist_ok=True)
        monkeypatch.chdir(project)
        monkeypatch.setattr(arguments, "is_vector_folder", lambda folder: True)
    suite = read_suite(path)
    assert len(suite.seeds) == 3
    parts = [changed_parts(suite.own_keys(cell)) for cell in suite.cells]
    assert [len(one) for one in parts] == [0] + [1] * (len(suite.cells) - 1)


def test_cells_keep_what_those_before_them_changed(write_suite):
    cells = {"plain": {}, "hard": {"hard_negatives": 1}, "queue": {"queue_steps": 2}}
    suite = read_suite(write_suite(cells=cells))
    found = [
        (keys["hard_negatives"], keys["queue_steps"]) for keys in (suite.keys_of(cell) for cell in ("plain", *cells))
    ]
    assert found[1:] == [(0, 0), (1, 0), (1, 2)]


def test_cells_that_are_not_cumulative_change_the_first_one(write_suite):
    cells = {"plain": {}, "hard": {"hard_negatives": 1}, "queue": {"queue_steps": 2}}
    suite = read_suite(write_suite(cells=cells, cumulative=False))
    found = [(suite.keys_of(cell)["hard_negatives"], suite.keys_of(cell)["queue_steps"]) for cell in cells]
    assert found == [(0, 0), (1, 0), (0, 2)]
    with pytest.raises(RecipeError, match="same: .* changes nothing"):
        read_suite(write_suite(cells=cells | {"same": {"queue_steps": 0}}, cumulative=False))


def test_a_cell_changes_one_part_of_the_cell_that_it_is_compared_with(write_suite):
    cells = {"plain": {}, "hard": {"hard_negatives": 1}, "filtered": {"hard_negatives": 1, "sample_filter": True}}
    suite = read_suite(write_suite(cells=cells, cumulative=False, compared_with={"filtered": "hard"}))
    assert suite.keys_of("filtered")["sample_filter"] is True
    with pytest.raises(RecipeError, match="filtered: found .* one changed key"):
        read_suite(write_suite(cells=cells, cumulative=False))
    without = {"plain": {}, "hard": {"hard_negatives": 1}, "queue": {"queue_steps": 2}}
    with pytest.raises(RecipeError, match="queue: found .* one changed key"):  # against "hard" it changes two parts
        read_suite(write_suite(cells=without, cumulative=False, compared_with={"queue": "hard"}))
    same = {**cells, "filtered": {"hard_negatives": 1, "queue_steps": 0}}
    with pytest.raises(RecipeError, match="filtered: .* changes nothing"):
        read_suite(write_suite(cells=same, cumulative=False, compared_with={"filtered": "hard"}))


def test_the_differences_of_cells_that_are_not_cumulative_are_to_the_first_one():
    cells = {
        cell: {seed: {"shop t→mm": {"R@10": value + int(seed) / 100, "R@1": 0.0}} for seed in "012"}
        for cell, value in (("plain", 0.2), ("up", 0.5), ("down", 0.1))
    }
    rows = [row for row in ablation_rows(cells, cumulative=False) if row["metric"] == "R@10"]
    for row in rows:
        assert row["cells"]["up"]["difference"]["mean"] == pytest.approx(0.3)
        assert row["cells"]["down"]["difference"]["mean"] == pytest.approx(-0.1)
    assert ablation_rows(cells)[0]["cells"]["down"]["difference"]["mean"] == pytest.approx(-0.4)
    chance = {"shop t→mm": {"R@10": 0.9, "R@1": 0.1}}
    up, down = in_words(rows, chance, cumulative=False)
    assert up.startswith("up: R@10 +30.0 points")
    assert down.startswith("down: R@10 −10.0 points")
    against = {"cumulative": False, "compared_with": {"down": "up"}}
    rows = [row for row in ablation_rows(cells, **against) if row["metric"] == "R@10"]
    assert rows[0]["cells"]["up"]["difference"]["mean"] == pytest.approx(0.3)
    assert rows[0]["cells"]["down"]["difference"]["mean"] == pytest.approx(-0.4)
    up, down = in_words(rows, chance, **against)
    assert up.startswith("up: R@10 +30.0 points")
    assert down.startswith("down (compared with up): R@10 −40.0 points")
    up_above_chance = in_words(rows, {"shop t→mm": {"R@10": 0.4, "R@1": 0.1}}, **against)[1]
    assert "the cell that it is compared with includes chance" not in up_above_chance
    assert "the cell that it is compared with includes chance" in down


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"cels": {}}, "unknown key 'cels'"),
        ({"cumulative": "no"}, "cumulative: found 'no'; expected true or false"),
        ({"cells": {"plain": {}, "other": {"evaluate_split": "valid"}}}, "evaluate_split cannot be set here"),
        ({"seeds": [0, 0]}, "seeds: found"),
        ({"seeds": []}, "seeds: found"),
        ({"boxes": "guess"}, "boxes: found 'guess'; expected one of saliency, largest-region"),
        ({"cells": {"plain": {"hard_negatives": 1}}}, "plain: found .* expected no changed key"),
        ({"cells": {"plain": {}, "two": {"hard_negatives": 1, "queue_steps": 1}}}, "two: found .* one changed key"),
        ({"cells": {"plain": {}, "same": {"hard_negatives": 0}}}, "same: .* changes nothing"),
        ({"cells": {"plain": {}, "typo": {"hard_negative": 1}}}, "nearest known key is 'hard_negatives'"),
        ({"cells": {"plain": {}, "bad": {"queue_steps": -1}}}, "bad: queue_steps: found -1"),
        ({"cells": {"plain": {}, "longer": {"max_steps": 3}}}, "longer: max_steps cannot be set here; .* the same"),
        ({"cells": {"plain": {}, "a b": {"queue_steps": 1}}}, "found the name 'a b'"),
        ({"keys": {**TINY, "evaluate_after": False}}, "expected evaluate_after: true"),
        ({"boxes": {"detector": "saliency"}}, "expected detector: saliency and weights: a path"),
        ({"cells": {"plain": {}, "a": {"boxes": "guess"}}}, "cells: a: boxes: found 'guess'"),
        ({"published": {"plain": {"sign": "+", "source": "s"}}}, "published: plain: .* expected one of hard"),
        ({"published": {"hard": {"sign": "up", "source": "s"}}}, "published: hard: found .* expected sign: one of"),
        ({"cumulative": True, "compared_with": {"hard": "plain"}}, "compared_with: expected cumulative: false"),
        (
            {"cumulative": False, "compared_with": {"hard": "hard"}},
            "compared_with: found 'hard': 'hard'; expected one of",
        ),
        (
            {"cumulative": False, "compared_with": {"plain": "hard"}},
            "compared_with: found 'plain': 'hard'; expected one",
        ),
        ({"cumulative": False, "compared_with": ["hard"]}, "compared_with: found None: \\['hard'\\]; expected one of"),
        ({"references": "bm25"}, "references: found 'bm25'; expected a list of models"),
        ({"keys": {**TINY, "seed": 3}}, "seed cannot be set here; list the seeds"),
    ],
)
def test_a_suite_that_cannot_work_is_refused_before_anything_runs(changes, message, write_suite):
    with pytest.raises(RecipeError, match=message):
        read_suite(write_suite(**changes))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A suite of one seed and two cells that was run, of which the second cell fails: its vectors are narrower."""
    folder = tmp_path_factory.mktemp("suite")
    (folder / "base.yaml").write_text(yaml.safe_dump({"data": ["catalogue"]}))
    cells = {"plain": {}, "broken": {"matryoshka_dims": [4096]}, "hard": {"hard_negatives": 1}}
    suite = {"base": "base.yaml", "seeds": [0], "keys": TINY, "cells": cells}
    (folder / "suite.yaml").write_text(yaml.safe_dump(suite, sort_keys=False))
    arguments = [str(folder / "suite.yaml"), "--output", str(folder / "out"), "--cells", "plain", "broken"]
    return folder / "out", arguments, main(["ablate", *arguments])


@pytest.mark.slow
def test_a_cell_that_fails_is_reported_and_the_others_go_on(finished, capsys):
    output, arguments, status = finished
    results = json.loads((output / "ablation.json").read_text())
    log = (output / "cells" / "broken" / "seed-0" / LOG_FILE).read_text()
    assert status == 3
    assert list(results["runs"]["plain"]) == ["0"]
    assert results["missing"] == ["broken, seed 0", "hard, seed 0"]
    assert main(["ablate", *arguments]) == 3
    assert log.strip().splitlines()[-1] in capsys.readouterr().err


@pytest.mark.slow
def test_a_result_holds_scores_steps_and_where_they_come_from(finished):
    run = json.loads((finished[0] / "ablation.json").read_text())["runs"]["plain"]["0"]
    assert run["steps"] == 2
    assert {"commit", "versions", "training_seed", "steps"} <= run["provenance"]["catalogue"].keys()
    assert all(0 <= row["R@10"] <= 1 for row in run["scores"].values())
    assert "catalogue i→i" in run["scores"]
    assert len(run["scores"]["catalogue i→i"]["R@10_interval"]) == 2
    assert {"catalogue category mm", "catalogue attributes i"} <= run["labels"].keys()


@pytest.mark.slow
def test_a_finished_cell_is_never_run_again(finished, monkeypatch):
    output, arguments, _ = finished
    started = []
    monkeypatch.setattr("training.studies.ablate.start", lambda run, data: started.append(run.name))
    before = (output / "cells" / "plain" / "seed-0" / CELL_FILE).stat().st_mtime_ns
    assert main(["ablate", *arguments[:4], "plain"]) == 0
    assert started == []
    assert (output / "cells" / "plain" / "seed-0" / CELL_FILE).stat().st_mtime_ns == before


@pytest.mark.slow
def test_a_partial_table_is_rendered_without_training(finished, monkeypatch, capsys):
    output, arguments, _ = finished
    for name in ("ablation.json", "ablation.md", "ablation.png"):
        (output / name).unlink()
    monkeypatch.setattr("training.studies.ablate.start", lambda run, data: pytest.fail("a training was started"))
    assert main(["ablate", *arguments[:3], "--render-only"]) == 0
    text = (output / "ablation.md").read_text()
    assert "1 of 3 cells × seeds are finished; missing: broken, seed 0, hard, seed 0." in text
    assert text == markdown(json.loads((output / "ablation.json").read_text()))
    assert Image.open(output / "ablation.png").width > 1000
    assert text in capsys.readouterr().out


def test_a_result_of_another_recipe_is_not_taken(finished, tmp_path, capsys):
    output, arguments, _ = finished
    suite = yaml.safe_load(Path(arguments[0]).read_text())
    suite["keys"]["temperature"] = 0.07
    other = Path(arguments[0]).with_name("other.yaml")
    other.write_text(yaml.safe_dump(suite, sort_keys=False))
    assert main(["ablate", str(other), *arguments[1:]]) == 2
    assert "result of a different recipe (temperature: default, now 0.07)" in capsys.readouterr().err


def test_a_result_that_was_stored_under_old_names_is_taken(tmp_path):
    stored = {
        "query_mix": {"image": 1},
        "target_mix": {"both": 1},
        "stage": "reasoning",
        "rollout_top_p": 1.0,
        "seed": 0,
    }
    (tmp_path / CELL_FILE).write_text(json.dumps({"keys": stored}))
    wanted = {"query_mix": {"i": 1}, "product_mix": {"mm": 1}, "stage": "grpo", "seed": 0}
    assert Run("plain", 0, tmp_path, wanted).result() is not None


def test_a_cell_that_is_in_use_elsewhere_is_left_alone(write_suite, tmp_path):
    run = plan(read_suite(write_suite()), tmp_path / "out")[0]
    run.folder.mkdir(parents=True)
    with (run.folder / LOCK_FILE).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(BusyError):
            start(run, ["catalogue"])
        assert run_all([run], ["catalogue"], 1, lambda: None) == [run.name]
    assert not (run.folder / LOG_FILE).exists()


@pytest.mark.parametrize("given, workers, expected", [(None, 3, "2"), (None, 9, "1"), ("4", 3, "4")])
def test_trainings_share_the_cores_unless_told_how_many(write_suite, tmp_path, monkeypatch, given, workers, expected):
    started = []
    monkeypatch.setattr(
        "training.studies.ablate.subprocess.Popen", lambda command, **options: started.append(options["env"])
    )
    monkeypatch.setattr("training.studies.ablate.os.cpu_count", lambda: 6)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if given:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
    start(plan(read_suite(write_suite()), tmp_path / "out")[0], ["catalogue"], workers)
    assert started[0]["OMP_NUM_THREADS"] == expected


def test_the_bar_counts_the_cold_start_and_the_steps_of_a_run(write_suite, tmp_path):
    plain = plan(read_suite(write_suite()), tmp_path / "out")[0]
    joint = replace(plain, wanted={**plain.wanted, "max_steps": 10, "cold_start": {"max_steps": 4}})
    assert (_share_done(plain), _share_done(joint)) == (0.0, 0.0)
    (joint.folder / "cold_start").mkdir(parents=True)
    (joint.folder / "cold_start" / "metrics.jsonl").write_text('{"step": 2}\n')
    assert _share_done(joint) == pytest.approx(1 / 6)
    (joint.folder / "cold_start" / "metrics.jsonl").write_text('{"step": 2}\n{"step": 4}\n')
    (joint.folder / "metrics.jsonl").write_text('{"step": 10}\n')
    assert _share_done(joint) == pytest.approx(0.9)


@pytest.mark.slow
def test_a_stopped_command_stops_its_training_and_goes_on_from_the_checkpoint(write_suite, tmp_path):
    path = write_suite(seeds=[0], cells={"plain": {}}, keys={**TINY, "max_steps": 400})
    command = [sys.executable, "-m", "moon3", "ablate", str(path), "--output", str(tmp_path / "out")]
    folder = tmp_path / "out" / "cells" / "plain" / "seed-0"
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    give_up = time.monotonic() + 300
    while not list(folder.glob("checkpoint-*/complete.json")) and time.monotonic() < give_up:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "the same command resumes" in errors
    with (folder / LOCK_FILE).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # nobody trains any more
    suite = read_suite(path)
    continued = start(plan(suite, tmp_path / "out")[0], ["catalogue"])
    while "resuming from" not in (folder / LOG_FILE).read_text() and time.monotonic() < give_up:
        time.sleep(0.1)
    os.kill(continued.pid, signal.SIGKILL)
    continued.wait()
    assert "resuming from" in (folder / LOG_FILE).read_text()


def test_a_run_that_another_process_has_finished_meanwhile_is_not_started(write_suite, tmp_path, monkeypatch):
    suite = read_suite(write_suite(cells={"plain": {}}, seeds=[0, 1]))
    first, second = plan(suite, tmp_path / "out")
    started = []

    def started_run(run, data, workers=1):
        started.append(run.name)
        second.folder.mkdir(parents=True)
        (second.folder / "cell.json").write_text(json.dumps({"keys": second.wanted}))
        return subprocess.Popen([sys.executable, "-c", ""])

    monkeypatch.setattr("training.studies.ablate.start", started_run)
    monkeypatch.setattr("training.studies.ablate.collect", lambda run, seconds: {})
    rendered = []
    assert run_all([first, second], ["catalogue"], 1, lambda: rendered.append(1)) == []
    assert (started, rendered) == ([first.name], [1])
    with pytest.raises(RecipeError, match="--workers: found 0; expected 1 or more"):
        run_all([first], ["catalogue"], 0, lambda: None)


def test_no_worker_is_refused_before_any_box_is_detected(write_suite, tmp_path, monkeypatch):
    monkeypatch.setattr("training.studies.ablate.data_with_boxes", lambda *_, **__: pytest.fail("boxes were detected"))
    with pytest.raises(RecipeError, match="--workers: found 0; expected 1 or more"):
        run_suite(write_suite(boxes="largest-region"), tmp_path / "out", workers=0)
    assert not (tmp_path / "out").exists()


def test_only_the_results_of_the_recipes_data_sets_are_collected(write_suite, tmp_path):
    keys = {**TINY, "evaluate_data": ["catalogue", {"path": "catalogue", "name": "other"}]}
    run = plan(read_suite(write_suite(keys=keys)), tmp_path / "out")[0]
    run.folder.mkdir(parents=True)
    row = {"R@1": 0.1, "R@10": 0.5, "source": "queries"}
    for name in ("catalogue", "removed"):
        found = {"benchmark": name, "image_only": {}, "scores": {"t2mm": row}, "skipped": [], "warnings": []}
        text = json.dumps(found | {"provenance": {"commit": "a"}})
        (run.folder / f"results_after-{name}.json").write_text(text)
    with pytest.raises(RecipeError, match="found no results_after….json for each data set"):
        collect(run, 1.0)
    (run.folder / "metrics.jsonl").write_text('{"step": 2, "loss": 1.0}\n')
    (run.folder / "finished.json").write_text('{"steps": 2}')
    (run.folder / "results_after-other.json").write_text(text.replace("removed", "other"))
    assert collect(run, 1.0)["scores"].keys() == {"catalogue t→mm", "other t→mm"}


def test_a_training_without_results_is_an_error(write_suite, tmp_path):
    run = plan(read_suite(write_suite()), tmp_path / "out")[0]
    run.folder.mkdir(parents=True)
    with pytest.raises(RecipeError, match="found no results_after"):
        collect(run, 1.0)


def test_a_cell_with_boxes_reads_tables_of_its_own_and_the_others_do_not(write_suite, tmp_path, monkeypatch):
    write_catalogue(tmp_path / "shop", products=18, image_size=64)
    keys = {**TINY, "data": [{"path": str(tmp_path / "shop"), "weight": 2}], "evaluate_data": [str(tmp_path / "shop")]}
    cells = {"plain": {}, "crop": {"core_crop": True, "boxes": "largest_region"}, "queue": {"queue_steps": 1}}
    keys["core_crop"] = False
    path = write_suite(cells=cells, keys=keys, cumulative=False, seeds=[0])
    found = []
    monkeypatch.setattr("training.studies.ablate.run_all", lambda runs, *_: found.extend(runs) or [])
    with monkeypatch.context() as without_detector:
        refused = "boxes are detected for a cell that is not requested"
        without_detector.setattr("training.studies.ablation_boxes.open_detector", lambda *_, **__: pytest.fail(refused))
        assert run_suite(path, tmp_path / "out", cells=["plain"])[0]["boxes"] == {"crop": {}}
    assert [run.cell for run in found] == ["plain"]
    found.clear()
    results, _ = run_suite(path, tmp_path / "out")
    plain, crop, queue = found
    assert plain.tables == queue.tables == {}
    assert crop.tables["data"][0]["weight"] == 2
    assert crop.tables["data"][0]["path"] == crop.tables["evaluate_data"][0]["path"] != str(tmp_path / "shop")
    assert (plain.wanted["boxes"], crop.wanted["boxes"]) == (None, "largest_region")
    assert results["boxes"]["crop"]["shop"]["products_with_box"] > 9
    monkeypatch.setattr("training.studies.ablation_boxes.open_detector", lambda *_, **__: pytest.fail("detected again"))
    assert run_suite(path, tmp_path / "out")[0]["boxes"] == results["boxes"]


def test_a_stage_is_one_part_with_settings_of_its_own_and_the_same_steps(write_suite):
    moon = {"embedding_dim": 32, "readout": "emb", "max_reasoning_tokens": 8}
    grpo = {"stage": "grpo", "moon": moon, "cold_start": {"max_steps": 1}, "max_steps": 1, "rollouts": 2}
    suite = read_suite(write_suite(cells={"plain": {}, "grpo": grpo}, cumulative=False))
    assert suite.keys_of("grpo")["max_steps"] == 1
    assert changed_parts(grpo) == {"stage"}
    for steps in ({"max_steps": 2}, {}):
        with pytest.raises(RecipeError, match="grpo: found .* steps, those of its cold start included; expected 2"):
            read_suite(write_suite(cells={"plain": {}, "grpo": {**grpo, "cold_start": steps}}, cumulative=False))


# --- the table -------------------------------------------------------------------------------------------------------


def scores_of(values):
    """cell → seed → one row with these R@10."""
    return {
        cell: {str(seed): {"shop t→mm": {"R@10": value, "R@1": value / 2}} for seed, value in enumerate(own)}
        for cell, own in values.items()
    }


def test_the_interval_is_the_one_from_the_formula():
    values = [0.2, 0.5, 0.3]
    half = 4.302652729911275 * np.std(values, ddof=1) / np.sqrt(3)  # t of 0.975 with two degrees of freedom
    assert t_interval(values) == pytest.approx((np.mean(values) - half, np.mean(values) + half))
    assert t_interval([0.3]) is None


def test_differences_are_taken_seed_by_seed():
    rows = ablation_rows(scores_of({"plain": [0.1, 0.5, 0.3], "hard": [0.2, 0.6, 0.41]}))
    change = next(row for row in rows if row["metric"] == "R@10")["cells"]["hard"]["difference"]
    assert change["mean"] == pytest.approx(0.31 / 3)
    assert change["interval"] == pytest.approx(t_interval([0.1, 0.1, 0.11]))
    assert change["verdict"] == "better"


def test_only_seeds_of_both_cells_are_compared_and_a_missing_cell_is_not_skipped_over():
    rows = ablation_rows(scores_of({"plain": [0.1, 0.2], "hard": [], "queue": [0.3, 0.4], "crop": [0.5]}))
    cells = next(row for row in rows if row["metric"] == "R@10")["cells"]
    assert cells["hard"]["mean"] is None
    assert cells["queue"]["difference"] is None
    assert cells["crop"]["difference"]["seeds"] == 1
    assert cells["crop"]["difference"]["interval"] is None


def test_the_mean_of_all_rows_leaves_out_seeds_that_lack_a_row():
    cells = scores_of({"plain": [0.1, 0.2]})
    cells["plain"]["1"]["shop i→mm"] = {"R@10": 0.6, "R@1": 0.3}
    row = next(row for row in ablation_rows(cells) if (row["metric"], row["row"]) == ("R@10", ALL_ROWS))
    assert row["cells"]["plain"]["seeds"] == 1
    assert row["cells"]["plain"]["mean"] == pytest.approx(0.4)


@pytest.mark.parametrize(
    "interval, said",
    [((0.1, 0.2), "better"), ((-0.2, -0.1), "worse"), ((-0.1, 0.1), "unclear"), ((0, 0), "unclear"), (None, "unclear")],
)
def test_a_verdict_follows_from_the_interval_alone(interval, said):
    assert verdict(interval) == said


def test_what_does_not_help_is_said_in_words():
    values = {"plain": [0.1, 0.2, 0.3], "a": [0.3, 0.4, 0.51], "b": [0.2, 0.3, 0.4], "c": [0.1, 0.4, 0.4], "d": [0.5]}
    sentences = in_words(ablation_rows(scores_of(values)))
    for sentence, part in zip(
        sentences,
        ("a: R@10 +20.3 points", "b: R@10 −10.3 points", "c: R@10 +0.0 points", "d: +40.0 points with one seed"),
        strict=True,
    ):
        assert sentence.startswith(part)
    assert "helps" in sentences[0]
    assert "better in shop t→mm, worse in none" in sentences[0]
    assert "hurts" in sentences[1]
    assert "these seeds do not show an effect" in sentences[2]
    assert "no verdict yet" in sentences[3]


def test_differences_between_models_that_learned_nothing_are_called_so():
    values = {"plain": [0.5, 0.51, 0.52], "queue": [0.1, 0.11, 0.1], "crop": [0.11, 0.1, 0.1], "a": [0.6, 0.6, 0.61]}
    rows = ablation_rows(scores_of(values))
    learned, from_nothing, again = in_words(rows, {"shop t→mm": {"R@10": 0.1, "R@1": 0.01}})
    assert "hurts" in learned
    assert "the interval of this cell includes chance (10.0 %)" in learned
    assert "the cell that it is compared with includes chance (10.0 %)" in from_nothing
    assert "the cell that it is compared with includes chance" in again
    assert not any("chance" in sentence for sentence in in_words(rows))


def test_the_chart_draws_cells_that_are_not_run_yet(tmp_path):
    cells = {"plain": [0.2, 0.3], "hard": [0.4, 0.5], "crop": []}
    scores = scores_of(cells)
    runs = {cell: {seed: {"scores": one} for seed, one in own.items()} for cell, own in scores.items()}
    chance = {"shop t→mm": {"R@10": 0.1, "R@1": 0.01}}
    results = {
        "suite": "s",
        "finished": 4,
        "planned": 6,
        "chance": chance,
        "table": ablation_rows(scores),
        "runs": runs,
    }
    with Image.open(draw_chart(results, tmp_path / "chart.png")) as chart:
        colours = {colour for _, colour in chart.convert("RGB").getcolors(1 << 20)}
    assert (34, 160, 84) in colours  # both seeds gain the same
    assert (150, 178, 214) in colours
