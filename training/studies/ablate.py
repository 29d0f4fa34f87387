"""Make an ablation table: train every cell of a suite with every seed.

moon3 ablate SUITE.yaml [--output runs/ablation] [--workers 1] [--cells NAME …] [--render-only]

Run the same command again to resume: a finished cell is not run again, and an interrupted cell continues from its last
checkpoint. After every cell, the table of the finished cells is written to ablation.json, ablation.md and ablation.png.
"""

import fcntl
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

import yaml
from tqdm import tqdm

from evaluation.provenance import provenance
from product_data.atomic_files import read_lines, write_atomically
from product_data.outputs import require_writable_folder
from training.places import TRAIN
from training.recipe.arguments import RecipeError
from training.recipe.old_names import with_new_names
from training.runs.folder import RunFolder
from training.studies.ablation_boxes import data_with_boxes, detector_settings, name_of_data_set
from training.studies.ablation_chart import draw_chart
from training.studies.ablation_scores import label_scores, reference_scores, row_scores
from training.studies.ablation_suite import BOXES, Suite, read_suite, resolved_cell
from training.studies.ablation_table import (
    INTERVAL,
    METRICS,
    REASONED,
    ablation_rows,
    against_papers,
    in_words,
    label,
    label_rows,
    markdown,
    means_of,
)

MODES = ("none", "generate")
"""How an evaluation embeds queries and products: without and with reasoning."""
CELL_FILE, LOG_FILE, RECIPE_FILE, LOCK_FILE = "cell.json", "log", "recipe.yaml", "lock"
_REFERENCES = "references"
_TAIL_LINES = 12
_ATTEMPT = "=== "  # begins the log of every attempt
_PAUSE_SECONDS = 0.5


@dataclass(frozen=True, eq=False)
class Run:
    """One training run: a cell with a seed, in a separate folder.

    Args:
        cell (`str`): name of the cell.
        seed (`int`): seed of the training.
        folder (`Path`): folder of the training.
        wanted (`dict`): the keys that define the training; a result with other keys is refused.
        tables (`dict`): `data` and `evaluate_data` with core boxes, in place of those of the recipe. Default: none.
    """

    cell: str
    seed: int
    folder: Path
    wanted: dict[str, Any]
    tables: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The name of the run in messages."""
        return f"{self.cell}, seed {self.seed}"

    def result(self) -> dict[str, Any] | None:
        """Return the finished result, or None.

        Raises:
            RecipeError: the result was made with another recipe.
        """
        path = self.folder / CELL_FILE
        if not path.is_file():
            return None
        found = json.loads(path.read_text(encoding="utf-8"))
        keys = with_new_names(found["keys"])
        differing = sorted(key for key in keys.keys() | self.wanted.keys() if keys.get(key) != self.wanted.get(key))
        if differing:
            was, now = ({key: repr(of[key]) for key in differing if key in of} for of in (keys, self.wanted))
            values = "; ".join(f"{key}: {was.get(key, 'default')}, now {now.get(key, 'default')}" for key in differing)
            raise RecipeError(
                f"{path}: found the result of a different recipe ({values}); "
                "expected the recipe that it was run with, or another folder"
            )
        return found

    def evaluations(self, when: str) -> dict[str, list[Path]]:
        """Return the results files of each finished evaluation: how queries and products are embedded → one for each data set.

        An evaluation is finished if it has the file of each data set. Files of other data sets, which an earlier recipe had,
        do not count.

        Args:
            when: "before" or "after" training.
        """
        entries = self.wanted.get("evaluate_data") or self.tables.get("data") or self.wanted.get("data") or []
        names = [name_of_data_set(entry) for entry in entries]
        folder = RunFolder(self.folder)
        files = {
            mode: [folder.results(when, mode, name) for name in (names if len(names) > 1 else [None])] for mode in MODES
        }
        return {mode: paths for mode, paths in files.items() if all(path.is_file() for path in paths)}


# --- Running ---
def plan(suite: Suite, output: Path) -> list[Run]:
    """Return every run of a suite, seed by seed, so that all cells of the first seed finish first."""
    return [
        Run(
            cell,
            seed,
            output / "cells" / cell / f"seed-{seed}",
            {**suite.keys_of(cell), "seed": seed, BOXES: suite.boxes_of(cell)},
        )
        for seed in suite.seeds
        for cell in suite.cells
    ]


class BusyError(Exception):
    """Raised if the folder of a cell is in use by another process."""


@contextmanager
def _locked(folder: Path) -> Iterator[IO[str]]:
    """Hold the folder's lock, which the training process inherits, so that it lasts as long as the training."""
    with (folder / LOCK_FILE).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BusyError(folder) from error
        yield lock


def start(run: Run, data: list[Any], workers: int = 1) -> subprocess.Popen:
    """Start or resume the training of a run as a process that writes to the log of its folder.

    Args:
        run: the run to start.
        data: the recipe's data sets, unless the run has its own.
        workers: number of training runs that share the machine; each uses its share of the cores, unless
            OMP_NUM_THREADS is set.

    Raises:
        BusyError: another process is training the run.
    """
    run.folder.mkdir(parents=True, exist_ok=True)
    with _locked(run.folder) as lock, (run.folder / LOG_FILE).open("a") as log:
        keys = {name: value for name, value in run.wanted.items() if name != BOXES}
        keys |= {"data": data, **run.tables, "output_dir": str(run.folder)}
        write_atomically(
            run.folder / RECIPE_FILE, yaml.safe_dump(keys, sort_keys=False, allow_unicode=True, width=1000)
        )
        command = [sys.executable, str(TRAIN), str(run.folder / RECIPE_FILE)]
        print(f"{_ATTEMPT}{' '.join(command)}", file=log, flush=True)
        return subprocess.Popen(
            command,
            env={"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // workers)), **os.environ},
            stdout=log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            pass_fds=(lock.fileno(),),
        )


def collect(run: Run, seconds: float) -> dict[str, Any]:
    """Write and return the result of a finished run.

    Args:
        run: a run whose training succeeded.
        seconds: duration of the training in this process; a resumed training counts from its resumption.

    Raises:
        RecipeError: the run has no results of an evaluation.
    """
    evaluations = run.evaluations("after")
    if not evaluations:
        raise RecipeError(
            f"{run.folder}: found no results_after….json for each data set; expected evaluate_after: true"
        )
    scores: dict[str, Any] = {}
    labels: dict[str, Any] = {}
    facts: dict[str, Any] = {}
    for mode, files in evaluations.items():
        for file in files:
            found = json.loads(file.read_text(encoding="utf-8"))
            scores |= row_scores(found)
            labels |= label_scores(found)
            facts[found["benchmark"] + REASONED * (mode != MODES[0])] = {
                "skipped": len(found["skipped"]),
                "warnings": found["warnings"],
                **found["provenance"],
            }
    steps = RunFolder(run.folder).steps()
    metrics = read_lines(RunFolder(run.folder).metrics)
    result = {
        "cell": run.cell,
        "seed": run.seed,
        "steps": steps,
        "seconds": round(seconds, 1),
        "keys": run.wanted,
        "scores": scores,
        "labels": labels,
        "last_metrics": metrics[-1] if metrics else None,
        "provenance": facts,
    }
    write_atomically(run.folder / CELL_FILE, json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    return result


def run_all(runs: Sequence[Run], data: list[Any], workers: int, render: Any) -> list[str]:
    """Run the unfinished runs, several at a time, and return the names of those that failed or are in use elsewhere.

    Args:
        runs: the runs, in the order of their start.
        data: the recipe's data sets, of runs without their own.
        workers: number of training runs at a time.
        render: called after every finished run.

    Raises:
        RecipeError: fewer than one worker, or a finished result of a different recipe.
    """
    _check_workers(workers)
    waiting = [run for run in runs if run.result() is None]
    running: dict[int, tuple[Run, subprocess.Popen, float]] = {}
    missed: list[str] = []
    form = "{desc}: {percentage:3.0f}%|{bar}| {n:.1f}/{total} cells [{elapsed}, {remaining} left{postfix}]"
    quiet = not sys.stderr.isatty()
    with tqdm(total=len(waiting), desc="ablation", bar_format=form, smoothing=0, mininterval=30 if quiet else 1) as bar:
        try:
            done = 0
            while waiting or running:
                while waiting and len(running) < workers:
                    if waiting[0].result() is not None:  # another process of this command has trained it meanwhile
                        waiting.pop(0)
                        done += 1
                    else:
                        _start_next(waiting, running, missed, data, workers)
                time.sleep(_PAUSE_SECONDS)
                for number, (run, process, began) in list(running.items()):
                    if process.poll() is None:
                        continue
                    del running[number]
                    if _collect_or_report(run, process, time.monotonic() - began):
                        done += 1
                        render()
                    else:
                        missed.append(run.name)
                bar.n = done + len(missed) + sum(_share_done(run) for run, _, _ in running.values())
                bar.set_postfix_str("; ".join(run.name for run, _, _ in running.values()), refresh=False)
                bar.update(0)
        finally:
            for _, process, _ in running.values():
                process.terminate()
            for _, process, _ in running.values():
                process.wait()
    return missed


def _check_workers(workers: int) -> None:
    if workers < 1:
        raise RecipeError(f"--workers: found {workers}; expected 1 or more")


def _start_next(waiting: list[Run], running: dict[int, Any], missed: list[str], data: list[Any], workers: int) -> None:
    run = waiting.pop(0)
    try:
        process = start(run, data, workers)
    except BusyError:
        tqdm.write(f"{run.name}: skipped, because another process is training it", file=sys.stderr)
        missed.append(run.name)
        return
    running[process.pid] = (run, process, time.monotonic())


def _collect_or_report(run: Run, process: subprocess.Popen, seconds: float) -> bool:
    """Collect the result of a run whose training succeeded; otherwise print the end of its log. Return whether it succeeded."""
    if process.returncode == 0:
        collect(run, seconds)
        return True
    log = run.folder / LOG_FILE
    last = log.read_text(encoding="utf-8", errors="replace").rpartition(_ATTEMPT)[2]
    shown = [line.rpartition("\r")[2] for line in last.split("\n")[1:]]  # the last state of a progress bar
    tail = [line for line in shown if line.strip()][-_TAIL_LINES:]
    lines = [f"{run.name}: its training failed with status {process.returncode}; the end of {log}:", *tail]
    tqdm.write("\n  ".join(lines), file=sys.stderr)
    return False


def _share_done(run: Run) -> float:
    """Return the finished share of a run, from its metrics; the evaluation counts a tenth, a cold start a third."""
    first = run.wanted.get("cold_start")
    if not first:
        return 0.9 * _share_of_steps(RunFolder(run.folder), run.wanted["max_steps"])
    cold = _share_of_steps(RunFolder(run.folder).cold_start, first.get("max_steps"))
    return cold / 3 + (0.9 - 1 / 3) * _share_of_steps(RunFolder(run.folder), run.wanted["max_steps"])


def _share_of_steps(folder: RunFolder, steps: int | None) -> float:
    metrics = read_lines(folder.metrics)
    return metrics[-1]["step"] / steps if metrics and steps else 0.0


# --- Results ---
def write_results(
    suite: Suite,
    runs: Sequence[Run],
    output: Path,
    boxes: Mapping[str, Any],
    references: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    """Write the table of the finished runs: ablation.json, and ablation.md and ablation.png rendered from it.

    Args:
        suite: the suite.
        runs: all runs of the suite.
        output: folder of the suite.
        boxes: names of cells → facts about their core boxes by data set.
        references: model without training → its scores by row. Default: none.

    Returns:
        The content of ablation.json.
    """
    finished = {run: found for run in runs if (found := run.result()) is not None}
    by_cell: dict[str, dict[str, Any]] = {}
    for cell in suite.cells:
        by_cell[cell] = {str(run.seed): found for run, found in finished.items() if run.cell == cell}
    by_row = [run["scores"] for own in by_cell.values() for run in own.values()]
    chance = {
        name: {metric: row[f"{metric}_chance"] for metric in METRICS} for rows in by_row for name, row in rows.items()
    }
    against: dict[str, Any] = {"cumulative": suite.cumulative, "compared_with": suite.compared_with}
    rows = ablation_rows(_of_runs(by_cell, "scores"), **against, means=_means(suite, list(chance)))
    labels = label_rows(_of_runs(by_cell, "labels"), **against)
    compared = [cell["difference"] for row in (*rows, *labels) for cell in row["cells"].values()]
    results = {
        "suite": suite.path.stem,
        "planned": len(runs),
        "finished": len(finished),
        "missing": [run.name for run in runs if run not in finished],
        "steps": suite.recipe["max_steps"],
        "interval": INTERVAL,
        "comparisons": sum(change is not None and change["interval"] is not None for change in compared),
        **against,
        "boxes": dict(boxes),
        "cells": suite.cells,
        "base": suite.recipe,
        "words": in_words(rows, chance, **against, published=suite.published),
        "published": suite.published,
        "against_papers": against_papers(rows, suite.published),
        "table": rows,
        "labels": labels,
        "chance": chance,
        "references": dict(references or {}),
        "facts": {cell: _facts(own) for cell, own in by_cell.items()},
        "runs": {
            cell: {seed: {key: run[key] for key in run if key != "keys"} for seed, run in own.items()}
            for cell, own in by_cell.items()
        },
        "provenance": provenance(suite.seeds[0], seeds=suite.seeds)
        | {"commits": sorted({commit for own in by_cell.values() for commit in _facts(own)["commits"]})},
    }
    text = json.dumps(results, indent=1, ensure_ascii=False, allow_nan=False)
    write_atomically(output / "ablation.json", text + "\n")
    results = json.loads(text)
    write_atomically(output / "ablation.md", markdown(results))
    draw_chart(results, output / "ablation.png")
    return results


def _of_runs(by_cell: Mapping[str, Mapping[str, Any]], kind: str) -> dict[str, dict[str, Any]]:
    """Return cell → seed → scores; results of earlier versions have no labels."""
    return {cell: {seed: run.get(kind, {}) for seed, run in own.items()} for cell, own in by_cell.items()}


def _facts(by_seed: Mapping[str, Any]) -> dict[str, Any]:
    """Return the seeds of a cell, the minutes of their trainings, and the commits that trained them."""
    commits = {str(facts["commit"]) for run in by_seed.values() for facts in run["provenance"].values()}
    minutes = [round(run["seconds"] / 60, 2) for run in by_seed.values()]
    return {"seeds": list(by_seed), "minutes": minutes, "commits": sorted(commits)}


def _means(suite: Suite, rows: Sequence[str]) -> dict[str, list[str]]:
    """Return the means of a suite's table; one for each data set only if cells are compared with the first one."""
    evaluated, left_out = suite.data_sets()
    return means_of(rows, () if suite.cumulative else evaluated, left_out if len(left_out) < len(evaluated) else ())


def run_suite(
    path: Path, output: Path, *, workers: int = 1, cells: Sequence[str] | None = None, render_only: bool = False
) -> tuple[dict[str, Any], list[str]]:
    """Train the unfinished runs of a suite and write its table after every cell.

    Args:
        path: file of the suite, see training/recipes/ablations/suites.
        output: folder of the suite.
        workers: number of training runs at a time.
        cells: names of the cells to train. Default: all.
        render_only: train nothing, and write the table of the finished runs.

    Returns:
        The content of ablation.json, and the names of the runs that did not finish.

    Raises:
        RecipeError, TableError, OutputError: a cell cannot be run, a table read or a file written; raised before the first
            training.
    """
    _check_workers(workers)
    suite = read_suite(path)
    unknown = [name for name in cells or () if name not in suite.cells]
    if unknown:
        raise RecipeError(f"--cells: found {unknown[0]!r}; expected one of {', '.join(suite.cells)}")
    require_writable_folder("--output", output)
    output.mkdir(parents=True, exist_ok=True)
    runs = plan(suite, output)
    detected_for = () if render_only else tuple(cells or suite.cells)
    tables, boxes = _tables_with_boxes(suite, output, detected_for)
    runs = [replace(run, tables=tables[run.cell]) for run in runs]
    references = {} if render_only and not (output / _REFERENCES).is_dir() else _references(suite, output)
    missed: list[str] = []
    if not render_only:
        requested = [run for run in runs if not cells or run.cell in cells]
        data = list(suite.recipe.get("data", []))
        missed = run_all(requested, data, workers, lambda: write_results(suite, runs, output, boxes, references))
    return write_results(suite, runs, output, boxes, references), missed


def _tables_with_boxes(
    suite: Suite, output: Path, detected_for: Sequence[str]
) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
    """Return for each cell the data with its core boxes, and facts about boxes by the names of the cells that use them.

    Boxes are detected for the cells in `detected_for`; of the others, only existing tables count.
    """
    tables: dict[str, dict[str, Any]] = {cell: {} for cell in suite.cells}
    users: dict[str, list[str]] = {}
    for cell in suite.cells:
        if suite.boxes_of(cell) is not None:
            users.setdefault(json.dumps(suite.boxes_of(cell), sort_keys=True), []).append(cell)
    facts: dict[str, dict[str, Any]] = {}
    for cells in users.values():
        settings = detector_settings(suite.boxes_of(cells[0]), "boxes") or {}
        words = "all cells" if cells == list(suite.cells) else ", ".join(map(label, cells))
        facts[words] = {}
        for key in ("data", "evaluate_data"):
            if suite.recipe.get(key):
                write = any(cell in detected_for for cell in cells)
                entries, found = data_with_boxes(suite.recipe[key], settings, output, write=write)
                facts[words] |= found
                for cell in cells:
                    tables[cell][key] = entries
    return tables, facts


def _references(suite: Suite, output: Path) -> dict[str, Any]:
    """Return the scores of the suite's models without training; those that are missing are computed."""
    recipe = resolved_cell(suite, next(iter(suite.cells))) if suite.references else None
    return {
        model: reference_scores(model, recipe, output / _REFERENCES / re.sub(r"\W+", "_", model))
        for model in suite.references
        if recipe is not None
    }
