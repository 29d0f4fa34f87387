"""The study of the joint stage: what it trains, what it reads of the trainings, and what it says."""

import fcntl
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from table_files import write_table

from moon3.__main__ import main
from training.places import PROJECT
from training.recipe.arguments import RecipeError
from training.studies import reasoning_study
from training.studies.ablate import LOCK_FILE
from training.studies.reasoning_study import CONTROL, JOINT, markdown, plan, render, seed_result, verdict

RECIPE = {
    "small_base": {"hidden_size": 64},
    "preset": "moon3",
    "moon": {"embedding_dim": 32},
    "stage": "grpo",
    "cold_start": {"max_steps": 5},
    "max_steps": 3,
    "evaluate_before": True,
    "evaluate_after": True,
}


@pytest.fixture
def recipe(tmp_path):
    def write(**changed):
        path = tmp_path / "study.yaml"
        path.write_text(yaml.safe_dump({**RECIPE, **changed}))
        return path

    return write


def results(folder: Path, when: str, recall: float, reward: float, name: str = ""):
    """Results files of a data set as `training/train.py` leaves them; reasoned vectors half as good as un-reasoned ones."""
    folder.mkdir(parents=True, exist_ok=True)
    for ending, share, mode in (("", 1.0, "none"), ("_generate", 0.5, "generate")):
        row = {"R@1": 0.0, "R@10": recall * share, "R@1_chance": 0.0, "R@10_chance": 0.1, "MRR": 0.1, "queries": 4}
        row |= {"rank_score": reward * share, "gallery": 9, "source": "queries"}
        found = {"benchmark": name or "catalogue", "image_only": {}, "scores": {"t2mm": row, "i2mm": row}}
        found["reasoning"] = {"query": mode, "product": mode}
        if mode == "generate":
            found["reasoning"]["written"] = {"query": {"written": 4, "well_formed": 1}}
            found["reasoning"]["agreement"] = {"t": {"f1": recall}}
        (folder / f"results_{when}{ending}{name and '-' + name}.json").write_text(json.dumps(found))


def finish(run, recall, reward):
    results(run.folder, "after", recall, reward)
    (run.folder / "cell.json").write_text(json.dumps({"keys": run.wanted, "seed": run.seed}))


def test_each_seed_is_trained_with_and_without_rewards_from_the_same_cold_start(recipe, tmp_path):
    joint, control, other, _ = plan(recipe(), [3, 4], tmp_path / "runs")
    assert (joint.cell, control.cell, joint.seed, other.seed) == (JOINT, CONTROL, 3, 4)
    assert joint.wanted["cold_start"] == {"max_steps": 5}
    assert control.wanted["base"] == str(joint.folder / "cold_start" / "final")
    assert (control.wanted["cold_start"], control.wanted["small_base"], control.wanted["moon"]) == (None, None, None)
    differing = {key for key in joint.wanted | control.wanted if joint.wanted.get(key) != control.wanted.get(key)}
    assert differing == {"cold_start", "small_base", "moon", "grpo_weight", "base", "evaluate_before"}


def test_a_folder_is_the_same_however_it_is_written(recipe, tmp_path, monkeypatch):
    finish(plan(recipe(), [0], tmp_path / "runs")[0], 0.6, 0.6)
    monkeypatch.chdir(tmp_path)
    joint, control = plan(recipe(), [0], Path("runs"))
    assert joint.result() is not None
    assert control.wanted["base"] == str(tmp_path / "runs" / "seed-0" / "joint" / "cold_start" / "final")


@pytest.mark.parametrize(
    "changed", [{"cold_start": None}, {"evaluate_after": False}, {"stage": "cold_start", "cold_start": None}]
)
def test_a_recipe_without_a_cold_start_or_an_evaluation_is_refused(recipe, tmp_path, capsys, changed):
    with pytest.raises(RecipeError, match="expected stage: grpo with a cold start, evaluated before and after"):
        plan(recipe(**changed), [0], tmp_path / "runs")
    assert main(["reasoning-study", str(recipe(**changed)), "--run-folder", str(tmp_path / "runs")]) == 2
    assert "expected stage: grpo" in capsys.readouterr().err


def test_rises_over_the_cold_start_and_over_the_control_are_told_apart(recipe, tmp_path):
    runs = plan(recipe(), [0, 1], tmp_path / "runs")
    for joint, control, after in zip(runs[::2], runs[1::2], (0.6, 0.3), strict=True):
        results(joint.folder, "before", 0.4, 0.5)
        finish(joint, after, after)
        finish(control, 0.5, 0.5)
        rows = [
            {"step": step, "rewards/retrieval_reward/mean": step / 40, "frac_reward_zero_std": 0.25}
            for step in range(1, 21)
        ]
        write_table(joint.folder / "metrics.jsonl", rows)
    seeds = [seed_result(joint, control) for joint, control in zip(runs[::2], runs[1::2], strict=True)]
    training = seeds[0]["training"]
    assert training["retrieval_reward_first_tenth"] == pytest.approx(1.5 / 40)
    assert training["retrieval_reward_last_tenth"] == pytest.approx(19.5 / 40)
    assert (training["steps"], training["degenerate_groups_share"]) == (20, 0.25)
    assert seeds[0][JOINT]["generate"]["mean of all rows"] == pytest.approx(
        {"R@1": 0.0, "R@10": 0.3, "rank_score": 0.3, "well_formed_share": 0.25, "label_f1": 0.6}
    )
    said = "\n".join(verdict(seeds))
    assert (
        "held-out R@10 of reasoned vectors, mean of all directions, against the cold start: +10.0, -5.0 points" in said
    )
    assert "higher in 1 of 2 seeds, mean +2.5 (95 % t-interval -92.8 to +97.8)." in said  # t(1) = 12.706, s = 10.607
    assert "R@10 of reasoned vectors against the same steps without rewards: +5.0, -10.0 points" in said
    assert "R@10 of reasoned vectors of the cold start against its un-reasoned ones: -20.0, -20.0 points" in said
    assert (
        "R@10 of reasoned vectors of GRPO against its un-reasoned ones: -30.0, -15.0 points: higher in 0 of 2" in said
    )
    assert "last tenth of the steps against the first: +0.450, +0.450" in said


def test_a_study_that_is_half_finished_is_rendered(recipe, tmp_path):
    runs = plan(recipe(), [0, 1], tmp_path / "runs")
    results(runs[0].folder, "before", 0.4, 0.5)
    finish(runs[0], 0.6, 0.6)
    results(runs[2].folder, "before", 0.4, 0.5)
    results(runs[2].folder, "after", 0.4, 0.5)
    (runs[2].folder / "results_after_generate.json").unlink()  # this one is being evaluated
    output = tmp_path / "study.json"
    render(recipe(), runs, output, tmp_path / "runs")
    study = json.loads(output.read_text())
    assert (study["planned"], study["finished"], study["starts"]) == (2, 1, [])
    page = output.with_suffix(".md").read_text()
    assert page == markdown(study)
    assert "| 0      | joint      | reasoned    | 0.0      | 30.0      | 0.300" in page
    assert "no reward" not in page
    assert "higher in 1 of 1 seeds" in page
    assert verdict([{"seed": 1}]) == ["No seed is finished yet."]


def test_a_study_of_several_data_sets_reads_the_files_of_all_of_them(recipe, tmp_path):
    path = recipe(data=["catalogue"], evaluate_data=["catalogue", {"path": "catalogue", "name": "shop"}])
    joint, control = plan(path, [0], tmp_path / "runs")
    results(joint.folder, "before", 0.2, 0.2, "catalogue")
    assert "cold_start" not in seed_result(joint, control)  # the second data set is being evaluated
    results(joint.folder, "before", 0.6, 0.4, "shop")
    results(joint.folder, "before", 0.9, 0.9, "shop_of_an_earlier_recipe")
    found = seed_result(joint, control)["cold_start"]
    assert found["none"]["mean of all rows"]["R@10"] == pytest.approx(0.4)
    assert found["generate"]["mean of all rows"] == pytest.approx(
        {"R@1": 0.0, "R@10": 0.2, "rank_score": 0.15, "well_formed_share": 0.25, "label_f1": 0.4}
    )
    assert {row.split(" ")[0] for row in found["none"]} == {"mean", "catalogue", "shop"}
    assert found["generate"]["F1 with labels"] == pytest.approx({"catalogue": 0.2, "shop": 0.6})
    for name, recall in (("catalogue", 0.3), ("shop", 0.5)):
        results(joint.folder, "after", recall, 0.5, name)
    said = verdict([seed_result(joint, control)])
    assert "F1 of what the cold start writes with the labels, %: catalogue 20; shop 60." in said
    assert "F1 of what GRPO writes with the labels, %: catalogue 30; shop 50." in said


@pytest.mark.parametrize("seeds", [[0, 1, 1], [-1]])
def test_seeds_that_would_count_twice_are_refused(recipe, tmp_path, seeds):
    with pytest.raises(RecipeError, match="--seeds: found .* expected different whole numbers of at least 0"):
        plan(recipe(), seeds, tmp_path / "runs")


def test_each_start_is_timed_and_controls_are_trained_on_request(recipe, tmp_path, monkeypatch, capsys):
    trained: list[str] = []

    def run_all(runs, data, workers, render):
        for run in runs:
            if run.result() is None:
                trained.append(run.name)
                if run.cell == JOINT:
                    results(run.folder, "before", 0.4, 0.5)
                finish(run, 0.6, 0.6)
                render()
        return []

    monkeypatch.setattr(reasoning_study, "run_all", run_all)
    command = [str(recipe()), "--seeds", "0", "1", "--run-folder", str(tmp_path / "runs")]
    command += ["--output", str(tmp_path / "study.json")]
    joint, controls = ["joint, seed 0", "joint, seed 1"], ["no_reward, seed 0", "no_reward, seed 1"]
    for arguments, expected in ((command, joint), ([*command, "--controls"], controls), (command, [])):
        trained.clear()
        assert main(["reasoning-study", *arguments]) == 0
        assert trained == expected
        assert json.loads((tmp_path / "study.json").read_text())["starts"][-1]["finished"] == expected
    page = capsys.readouterr().out
    assert "minutes, 3 training runs at a time, finished no training run." in page
    study = json.loads((tmp_path / "study.json").read_text())
    assert len(study["starts"]) == 3
    assert all(start["seconds"] >= 0 for start in study["starts"])
    assert (study["planned"], study["finished"]) == (4, 4)


@pytest.mark.slow
def test_a_terminated_study_stops_its_training(recipe, tmp_path):
    shop = {"data": ["catalogue"], "catalogue": {"products": 18, "image_size": 64}, "per_device_train_batch_size": 4}
    path = recipe(**shop, cold_start={"max_steps": 5000}, logging_steps=1, save_steps=5000)
    command = [sys.executable, "-m", "moon3", "reasoning-study", str(path), "--seeds", "0", "--workers", "1"]
    command += ["--run-folder", str(tmp_path / "runs"), "--output", str(tmp_path / "study.json")]
    folder = tmp_path / "runs" / "seed-0" / JOINT
    with subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as study:
        give_up = time.monotonic() + 300
        while not (folder / "cold_start" / "metrics.jsonl").exists() and time.monotonic() < give_up:
            time.sleep(0.1)
        study.send_signal(signal.SIGTERM)
        _, errors = study.communicate(timeout=60)
    assert study.returncode == 130
    assert "moon3 reasoning-study: interrupted; the same command resumes" in errors
    with (folder / LOCK_FILE).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # nobody trains any more
