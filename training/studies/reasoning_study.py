"""Measure what GRPO gains over its cold start, with several seeds.

moon3 reasoning-study [RECIPE] [--controls] [--seeds 0 1 2] [--workers 3]
        [--output FILE.json] [--run-folder DIR]

For each seed, a cold start is trained, and `stage: grpo` starts from it. With `--controls`, the stage is also trained
from the same cold start with grpo_weight 0 (without the loss of GRPO: neither rewards nor the KL term), which separates
its effect from the effect of more training. Run the same command again to resume: a finished training run is not
repeated. After every training run, the results so far are written as JSON and as Markdown beside it, with the duration
of every call of the command.
"""

import json
import statistics
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tabulate import tabulate

from evaluation.provenance import provenance
from evaluation.reasoning_control import NONE, OWN, SWAPPED, WAYS
from product_data.atomic_files import append_line, mend_lines, read_lines, write_atomically
from product_data.outputs import require_writable_file
from training.places import RECIPES
from training.recipe.arguments import RecipeError, parse_recipe
from training.recipe.files import read_recipe_file
from training.recipe.reasoning import GRPO
from training.runs.folder import RunFolder
from training.studies.ablate import MODES, Run, run_all
from training.studies.ablation_scores import row_scores
from training.studies.ablation_suite import check_seeds
from training.studies.ablation_table import t_interval

RECIPE = RECIPES / "study_moon3.yaml"
JOINT, CONTROL = "joint", "no_reward"
"""Names of the two GRPO runs in folders and results: with rewards, and without."""
STARTS_FILE = "starts.jsonl"
_TENTH = 10
_AGREED = "F1 with labels"
_CORRELATION = "reward_correlation/"
_REWARD = "rewards/retrieval_reward/mean"


def plan(recipe: Path, seeds: Sequence[int], folder: Path) -> list[Run]:
    """Return the runs of a study: for each seed, GRPO with its cold start, and the control from the same cold start.

    Args:
        recipe: a recipe with `stage: grpo` and a cold start, evaluated before and after.
        seeds: seeds of the training runs.
        folder: folder for the training runs.

    Raises:
        RecipeError: the recipe is of a different kind.
    """
    found = parse_recipe([str(recipe), "--output_dir", str(folder)])
    args, reasoning = found.training, found.reasoning
    if reasoning.stage != GRPO or not reasoning.cold_start or not (args.evaluate_before and args.evaluate_after):
        raise RecipeError(
            f"{recipe}: found stage {reasoning.stage!r}, cold_start {reasoning.cold_start}, evaluate_before "
            f"{args.evaluate_before}, evaluate_after {args.evaluate_after}; expected stage: grpo with a cold start, "
            "evaluated before and after"
        )
    check_seeds("--seeds", seeds)
    runs = []
    for seed in seeds:
        place = folder.resolve() / f"seed-{seed}"
        keys = {**read_recipe_file(recipe), "data": found.resolved["data"], "seed": seed, "boxes": None}
        control = {**keys, "cold_start": None, "small_base": None, "moon": None, "grpo_weight": 0.0}
        control |= {"base": str(RunFolder(place / JOINT).cold_start.final), "evaluate_before": False}
        runs += [Run(JOINT, seed, place / JOINT, keys), Run(CONTROL, seed, place / CONTROL, control)]
    return runs


def seed_result(joint: Run, control: Run) -> dict[str, Any]:
    """Return the results of a seed so far.

    Args:
        joint: GRPO with rewards.
        control: GRPO without rewards.

    Returns:
        For each of "cold_start", "joint" and "no_reward" that is evaluated: mode ("none", "generate") → direction → scores;
        "seconds" of each training run; "trained_at_commit"; "reward_correlations": the mean over the steps of GRPO of
        each reward's correlation with recall; "training": means of the retrieval reward over the first and the last
        tenth of the logged steps of GRPO.
    """
    found: dict[str, Any] = {"seed": joint.seed}
    for name, run, when in (("cold_start", joint, "before"), (JOINT, joint, "after"), (CONTROL, control, "after")):
        if evaluations := run.evaluations(when):
            found[name] = {mode: _scores(files) for mode, files in evaluations.items()}
    found["seconds"] = {run.cell: (run.result() or {}).get("seconds") for run in (joint, control)}
    facts = RunFolder(joint.folder).provenance
    if facts.is_file():
        found["trained_at_commit"] = json.loads(facts.read_text(encoding="utf-8"))["commit"]
    metrics = [line for line in read_lines(RunFolder(joint.folder).metrics) if _REWARD in line]
    if joint.result() is not None and metrics:
        tenth = max(1, len(metrics) // _TENTH)
        first, last = ([line[_REWARD] for line in part] for part in (metrics[:tenth], metrics[-tenth:]))
        degenerate = [line["frac_reward_zero_std"] for line in metrics]
        correlations = sorted({name for line in metrics for name in line if name.startswith(_CORRELATION)})
        found["reward_correlations"] = {
            name.removeprefix(_CORRELATION): statistics.fmean(line[name] for line in metrics if name in line)
            for name in correlations
        }
        found["training"] = {
            "steps": metrics[-1]["step"],
            "retrieval_reward_first_tenth": statistics.fmean(first),
            "retrieval_reward_last_tenth": statistics.fmean(last),
            "degenerate_groups_share": statistics.fmean(degenerate),
        }
    return found


def _scores(files: Sequence[Path]) -> dict[str, Any]:
    """Return the scores of all data sets by row, their means over all rows, and the mean F1 with the labels by data set."""
    kept = ("R@1", "R@10", "rank_score", "queries", "gallery")
    results = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    rows = {name: row for result in results for name, row in row_scores(result).items()}
    means = {key: statistics.fmean(row[key] for row in rows.values()) for key in ("R@1", "R@10", "rank_score")}
    reasoning = [result["reasoning"] for result in results]
    means |= _control_means([one["control"] for one in reasoning if one.get("control")])
    agreed = {
        result["benchmark"]: statistics.fmean(form["f1"] for form in result["reasoning"]["agreement"].values())
        for result in results
        if result["reasoning"].get("agreement")
    }
    if agreed:
        means["label_f1"] = statistics.fmean(agreed.values())
    written = [side for one in reasoning for side in (one.get("written") or {}).values()]
    if total := sum(side["written"] for side in written):
        means["well_formed_share"] = sum(side["well_formed"] for side in written) / total
    scores = {name: {key: row[key] for key in kept} for name, row in rows.items()}
    return {"mean of all rows": means, **({_AGREED: agreed} if agreed else {}), **scores}


def _control_means(controls: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the means over all directions of R@10 by the reasoning that was given, and of the cosines over both sides."""
    rows = [row for control in controls for row in control["recall"].values()]
    if not rows:
        return {}
    means = {f"R@10_{way}": statistics.fmean(row[way]["R@10"] for row in rows) for way in WAYS}
    for name in (SWAPPED, NONE, "other"):
        sides = [side[name]["mean"] for control in controls for side in control["cosine"].values()]
        means |= {f"cosine_{name}": statistics.fmean(sides)} if sides else {}
    return means


def verdict(seeds: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return sentences on the gain of GRPO over the cold start, and over the control.

    Args:
        seeds: from `seed_result`.
    """
    whole = [seed for seed in seeds if _is_evaluated(seed, "cold_start") and _is_evaluated(seed, JOINT)]
    if not whole:
        return ["No seed is finished yet."]
    sentences = []
    for words, key, scale, unit in (
        ("held-out R@10", "R@10", 100, " points"),
        ("held-out retrieval reward", "rank_score", 1, ""),
    ):
        for mode, kind in (("generate", "reasoned"), ("none", "un-reasoned")):
            rise = [scale * (_mean(seed, JOINT, mode, key) - _mean(seed, "cold_start", mode, key)) for seed in whole]
            listed = _listed(rise, unit, decimals=1 if scale > 1 else 3)
            sentences.append(f"{words} of {kind} vectors, mean of all directions, against the cold start: {listed}.")
    for name, model in (("cold_start", "the cold start"), (JOINT, "GRPO")):
        gain = [100 * (_mean(seed, name, "generate", "R@10") - _mean(seed, name, "none", "R@10")) for seed in whole]
        sentences.append(
            f"R@10 of reasoned vectors of {model} against its un-reasoned ones: {_listed(gain, ' points')}."
        )
    both = [seed for seed in whole if _is_evaluated(seed, CONTROL)]
    if both:
        gain = [
            100 * (_mean(seed, JOINT, "generate", "R@10") - _mean(seed, CONTROL, "generate", "R@10")) for seed in both
        ]
        sentences.append(
            f"R@10 of reasoned vectors against the same steps without rewards: {_listed(gain, ' points')}."
        )
    sentences += [*_agreement(whole), *_use_of_attributes(whole)]
    names = sorted({name for seed in whole for name in seed.get("reward_correlations", {})})
    if names:
        means = {
            name: statistics.fmean(
                seed["reward_correlations"][name] for seed in whole if name in seed.get("reward_correlations", {})
            )
            for name in names
        }
        listed = ", ".join(f"{name} {value:+.2f}" for name, value in means.items())
        sentences.append(
            f"Correlation of each reward with recall over the rollouts, mean of steps and seeds: {listed}."
        )
    trained = [seed["training"] for seed in whole if "training" in seed]
    if trained:
        rise = [facts["retrieval_reward_last_tenth"] - facts["retrieval_reward_first_tenth"] for facts in trained]
        listed = ", ".join(f"{value:+.3f}" for value in rise)
        sentences.append(
            f"Retrieval reward on the training's rollouts, last tenth of the steps against the first: {listed}."
        )
    return sentences


def _agreement(seeds: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return sentences on the F1 of the written attributes with the labels of each data set."""
    sentences = []
    for name, words in (("cold_start", "the cold start"), (JOINT, "GRPO")):
        found = [seed[name]["generate"].get(_AGREED, {}) for seed in seeds]
        listed = [
            f"{data_set} " + ", ".join(f"{100 * one[data_set]:.0f}" for one in found)
            for data_set in found[0]
            if all(data_set in one for one in found)
        ]
        if listed:
            sentences.append(f"F1 of what {words} writes with the labels, %: {'; '.join(listed)}.")
    return sentences


def _listed(differences: Sequence[float], unit: str, *, decimals: int = 1) -> str:
    """Return the differences of all seeds, in how many they are positive, and their mean with a 95 % t-interval."""
    listed = ", ".join(f"{value:+.{decimals}f}" for value in differences)
    text = f"{listed}{unit}: higher in {sum(value > 0 for value in differences)} of {len(differences)} seeds"
    interval = t_interval(differences)
    if interval is None:
        return text
    mean, low, high = (f"{value:+.{decimals}f}" for value in (statistics.fmean(differences), *interval))
    return f"{text}, mean {mean} (95 % t-interval {low} to {high})"


def _use_of_attributes(seeds: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return sentences on the control: how R@10 changes with the attributes of another record, or without."""
    sentences = []
    for name, words in (("cold_start", "the cold start"), (JOINT, "GRPO")):
        means = [seed[name]["generate"]["mean of all rows"] for seed in seeds]
        means = [one for one in means if f"R@10_{OWN}" in one]
        for way, with_what in ((SWAPPED, "with the attributes of another record"), (NONE, "without attributes")):
            change = [100 * (one[f"R@10_{way}"] - one[f"R@10_{OWN}"]) for one in means]
            if change:
                cosine = statistics.fmean(one.get(f"cosine_{way}", float("nan")) for one in means)
                sentences.append(
                    f"R@10 of {words} {with_what} in place of its own: {_listed(change, ' points')}; "
                    f"cosine of the two vectors {cosine:.3f}."
                )
    return sentences


def _is_evaluated(seed: Mapping[str, Any], name: str) -> bool:
    """Return whether the evaluation of a model is finished in all modes."""
    return set(MODES) <= seed.get(name, {}).keys()


def _mean(seed: Mapping[str, Any], name: str, mode: str, key: str) -> float:
    return float(seed[name][mode]["mean of all rows"][key])


def markdown(study: Mapping[str, Any]) -> str:
    """Return the study as a page.

    Args:
        study: content of the JSON file.
    """
    lines = [f"# GRPO against its cold start: {study['recipe']}", ""]
    lines += [f"- {sentence}" for sentence in study["verdict"]]
    for start in study["starts"]:
        finished = "; ".join(start["finished"]) or "no training run"
        lines.append(
            f"- {start['seconds'] / 60:.1f} minutes, {start['workers']} training runs at a time, finished {finished}."
        )
    lines += [f"- {study['note']}", "", models_table(study)]
    return "\n".join(lines) + "\n"


def models_table(study: Mapping[str, Any]) -> str:
    """Return a Markdown table with a line for each evaluated model and mode.

    Args:
        study: content of the JSON file.
    """
    rows = []
    for seed in study["seeds"]:
        for name in ("cold_start", CONTROL, JOINT):
            for mode in MODES if name in seed else ():
                found = seed[name].get(mode, {}).get("mean of all rows")
                if found:
                    agreed = found.get("label_f1")
                    share, swapped = found.get("well_formed_share"), found.get(f"R@10_{SWAPPED}")
                    rows.append(
                        [seed["seed"], name.replace("_", " "), "reasoned" if mode == "generate" else "un-reasoned"]
                        + [f"{100 * found[key]:.1f}" for key in ("R@1", "R@10")]
                        + [f"{found['rank_score']:.3f}", "" if share is None else f"{100 * share:.0f}"]
                        + ["" if agreed is None else f"{100 * agreed:.0f}"]
                        + ["" if swapped is None else f"{100 * swapped:.1f}"]
                    )
    head = ["seed", "model", "vectors", "R@1, %", "R@10, %", "retrieval reward", "well formed, %"]
    head += ["F1 with labels, %", "R@10 with another's attributes, %"]
    return tabulate(rows, head, tablefmt="github", disable_numparse=True)


def render(recipe: Path, runs: Sequence[Run], output: Path, folder: Path) -> None:
    """Write the results so far.

    Args:
        recipe: a recipe with `stage: grpo`.
        runs: from `plan`; a control counts as planned if its folder exists.
        output: JSON file; the Markdown file is written beside it.
        folder: folder of the training runs, with `starts.jsonl`, which lists each completed call of the command, its
            duration in seconds and the runs it finished.
    """
    pairs = zip(runs[::2], runs[1::2], strict=True)
    seeds = [seed_result(joint, control) for joint, control in pairs]
    study = {
        "recipe": recipe.name,
        "finished": sum(run.result() is not None for run in runs),
        "planned": sum(run.cell == JOINT or run.folder.exists() for run in runs),
        "note": "Means over all retrieval directions of the held-out split.",
        "verdict": verdict(seeds),
        "starts": read_lines(folder / STARTS_FILE),
        "seeds": seeds,
        "provenance": provenance(runs[0].seed),
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(output, json.dumps(study, indent=1, ensure_ascii=False) + "\n")
    write_atomically(output.with_suffix(".md"), markdown(study))


def study(
    recipe: Path,
    output: Path,
    folder: Path,
    *,
    seeds: Sequence[int] = (0, 1, 2),
    controls: bool = False,
    workers: int = 3,
) -> list[str]:
    """Train the missing runs and write the study.

    Args:
        recipe: a recipe with `stage: grpo`.
        output: JSON file; the Markdown file is written beside it.
        folder: folder of the training runs.
        seeds: seeds of the training runs.
        controls: also train the same steps without rewards.
        workers: number of training runs at a time.

    Returns:
        The names of the training runs that did not finish.

    Raises:
        RecipeError: the recipe is of a different kind.
        OutputError: a file cannot be written.
    """
    began = time.monotonic()
    for path in (output, output.with_suffix(".md")):
        require_writable_file("--output", path)
    runs = plan(recipe, seeds, folder)
    found = {run.name for run in runs if run.result() is not None}
    missed: list[str] = []
    try:
        for name in (JOINT, CONTROL) if controls else (JOINT,):  # a control starts from the cold start of the other run
            ready = [run for run in runs if run.cell == name]
            missed += run_all(ready, runs[0].wanted["data"], workers, lambda: render(recipe, runs, output, folder))
    finally:
        finished = [run.name for run in runs if run.result() is not None and run.name not in found]
        folder.mkdir(parents=True, exist_ok=True)
        mend_lines(folder / STARTS_FILE)
        start = {"time": datetime.now(UTC).isoformat(timespec="seconds"), "seconds": round(time.monotonic() - began, 1)}
        append_line(folder / STARTS_FILE, {**start, "workers": workers, "finished": finished})
    render(recipe, runs, output, folder)
    return missed
