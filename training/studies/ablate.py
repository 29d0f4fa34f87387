"""Make an ablation table: train every cell of a suite with every seed.

moon3 ablate SUITE.yaml [--output runs/ablation] [--workers 1] [--cells NAME …] [--render-only]

Run the same command again to resume: a finished cell is not run again, and an interrupted cell continues from its last
checkpoint. After every cell, the table of the finished cells is written to ablation.json, ablation.md and ablation.png.
"""

import fcntl
import functools
import json
import operator
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from tqdm import tqdm

from evaluation.provenance import provenance
from processing_moon import ProductError, open_image
from processing_moon.cropping_moon import CoreDetector, LargestRegionDetector
from product_data.atomic_files import read_lines, write_atomically
from product_data.outputs import require_writable_folder
from product_data.tables import ProductTables, load_tables
from training.places import TRAIN
from training.recipe.arguments import RecipeError, known_keys, parse_recipe
from training.recipe.checking import check_keys
from training.recipe.data import TABLE_KEYS, reading_of
from training.recipe.files import merged, read_recipe_file
from training.recipe.old_names import with_new_names
from training.runs.folder import RunFolder
from training.studies.ablation_table import INTERVAL, METRICS, ablation_rows, draw_chart, in_words, markdown, row_scores

SUITE_KEYS = ("base", "seeds", "boxes", "cumulative", "keys", "cells")
DETECTORS: dict[str, type[CoreDetector]] = {"largest_region": LargestRegionDetector}
CELL_FILE, LOG_FILE, RECIPE_FILE, LOCK_FILE = "cell.json", "log", "recipe.yaml", "lock"
_BOXES_FILE = "boxes.json"
_TAIL_LINES = 12
_ATTEMPT = "=== "  # begins the log of every attempt
_PAUSE_SECONDS = 0.5


@dataclass(frozen=True)
class Suite:
    """The cells and seeds of an ablation.

    Args:
        path (`Path`): the suite's file.
        recipe (`dict`): the keys of every cell: those of the base recipe, overridden by the keys of the suite.
        cells (`dict`): name → changed keys, in order.
        seeds (`list[int]`): seeds of the runs of each cell.
        boxes (`str` or `None`): detector of core boxes for data without boxes, a name of `DETECTORS`.
        cumulative (`bool`): whether a cell keeps the changes of the cells before it. If not, each cell changes the first one.
            Default True.
    """

    path: Path
    recipe: dict[str, Any]
    cells: dict[str, dict[str, Any]]
    seeds: list[int]
    boxes: str | None = None
    cumulative: bool = True

    def keys_of(self, cell: str) -> dict[str, Any]:
        """Return the whole recipe of a cell, without its seed."""
        names = list(self.cells)
        changed = names[: names.index(cell) + 1] if self.cumulative else [cell]
        return functools.reduce(operator.or_, (self.cells[name] for name in changed), dict(self.recipe))


@dataclass(frozen=True, eq=False)
class Run:
    """One training run: a cell with a seed, in a separate folder.

    Args:
        cell (`str`): name of the cell.
        seed (`int`): seed of the training.
        folder (`Path`): folder of the training.
        wanted (`dict`): the keys that define the training; a result with other keys is refused.
    """

    cell: str
    seed: int
    folder: Path
    wanted: dict[str, Any]

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
            raise RecipeError(
                f"{path}: found the result of a different recipe ({', '.join(differing)} differ); "
                "expected the suite that it was run with, or another --output"
            )
        return found


def read_suite(path: Path) -> Suite:
    """Read and check a suite: every cell must be a recipe that can be run.

    Args:
        path: flat YAML: base (path of a recipe, relative to the suite's folder), seeds, cells (name → changed keys), and
            optionally boxes, cumulative and keys (of every cell; mappings are merged with those of the base key by key).

    Raises:
        RecipeError: a key is missing, unknown, of the wrong type or changes nothing, or a cell changes several parts.
    """
    values = read_recipe_file(path)
    check_keys(values, SUITE_KEYS, where=str(path))
    for key, kind, accepted in (
        ("base", str, "the path of a recipe"),
        ("seeds", list, "a list of whole numbers"),
        ("cells", dict, "a mapping of names to changed keys"),
    ):
        if not isinstance(values.get(key), kind) or not values[key]:
            raise RecipeError(f"{path}: {key}: found {values.get(key)!r}; expected {accepted}")
    seeds = values["seeds"]
    if not all(type(seed) is int and seed >= 0 for seed in seeds) or len(set(seeds)) < len(seeds):
        raise RecipeError(f"{path}: seeds: found {seeds}; expected different whole numbers of at least 0")
    if values.get("boxes") not in (None, *DETECTORS):
        raise RecipeError(f"{path}: boxes: found {values['boxes']!r}; expected one of {', '.join(DETECTORS)}, or none")
    if not isinstance(values.get("cumulative", True), bool):
        raise RecipeError(f"{path}: cumulative: found {values['cumulative']!r}; expected true or false")
    recipe = read_recipe_file(path.parent / values["base"])
    recipe = merged(recipe, with_new_names(values.get("keys") or {}, f"{path}: keys"))
    cells = {
        name: with_new_names(changed, f"{path}: cells: {name}") if isinstance(changed, dict) else changed
        for name, changed in values["cells"].items()
    }
    suite = Suite(path, recipe, cells, seeds, values.get("boxes"), values.get("cumulative", True))
    _check_cells(suite)
    return suite


def _check_cells(suite: Suite) -> None:
    """Refuse cells that change several parts (keys of one part begin with the same word) or keys that the command sets."""
    for place, (cell, changed) in enumerate(suite.cells.items()):
        if not str(cell).isidentifier():
            raise RecipeError(f"{suite.path}: cells: found the name {cell!r}; expected letters, digits and _")
        parts = {str(key).split("_")[0] for key in changed} if isinstance(changed, dict) else set()
        if not isinstance(changed, dict) or len(parts) != (1 if place else 0):
            accepted = "one changed key, or several of one part (queue_steps, queue_warmup_steps)"
            accepted = accepted if place else "no changed key ({}) in the first cell"
            raise RecipeError(f"{suite.path}: cells: {cell}: found {changed!r}; expected {accepted}")
        check_keys(changed, known_keys(), where=f"{suite.path}: cells: {cell}")
        recipe = suite.keys_of(cell)
        fixed = {"data", "evaluate_data", "evaluate_split", "max_steps"}
        for key in ({"seed", "output_dir"} & recipe.keys()) | (fixed & changed.keys()):
            raise RecipeError(
                f"{suite.path}: cells: {cell}: {key} cannot be set here; list the seeds under 'seeds', choose the folder "
                "with --output, and use the same data, evaluation and max_steps in all cells"
            )
    resolved = [resolved_cell(suite, cell) for cell in suite.cells]
    references = resolved if suite.cumulative else [resolved[0]] * len(resolved)
    for cell, before, after in zip(list(suite.cells)[1:], references, resolved[1:], strict=False):
        if before == after:
            raise RecipeError(f"{suite.path}: cells: {cell}: {suite.cells[cell]} changes nothing; expected a new value")


def resolved_cell(suite: Suite, cell: str) -> dict[str, Any]:
    """Return the recipe of a cell as `train.py` resolves and checks it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / RECIPE_FILE
        path.write_text(yaml.safe_dump(suite.keys_of(cell)), encoding="utf-8")
        try:
            recipe = parse_recipe([str(path), "--output_dir", "resolved"])
        except RecipeError as error:
            raise RecipeError(f"{suite.path}: cells: {cell}: {error}") from error
    if not recipe.training.evaluate_after or recipe.training.max_steps < 1 or recipe.training.train_minutes:
        raise RecipeError(
            f"{suite.path}: cells: {cell}: found evaluate_after {recipe.training.evaluate_after}, max_steps "
            f"{recipe.training.max_steps}, train_minutes {recipe.training.train_minutes}; expected evaluate_after: true and "
            "max_steps alone, so that all cells take the same steps"
        )
    return recipe.resolved


# --- Core boxes ---
def tables_with_boxes(
    entry: Any, folder: Path, detector_name: str, progress: bool = True
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Write a copy of a data set's products and queries with detected core boxes for those without a box.

    Our design, for data without boxes; MOON (arXiv 2508.11999 §3.1) uses a grounding model. The first picture counts.

    Args:
        entry: an entry of a recipe's `data` with a folder of parquet tables as its path.
        folder: folder to write; complete tables in it are kept.
        detector_name: a name of `DETECTORS`.
        progress: whether to show a progress bar.

    Returns:
        The entry with the new tables, and the numbers of products and query photos with a box.

    Raises:
        RecipeError: the entry is not a folder with products.parquet and queries.parquet.
    """
    entry = dict(entry) if isinstance(entry, dict) else {"path": entry}
    source = Path(entry.pop("path", ""))
    if not all((source / f"{name}.parquet").is_file() for name in ("products", "queries")) or "products" in entry:
        raise RecipeError(f"data: cannot detect boxes in {entry or source}; expected path: a folder of parquet tables")
    if not (folder / _BOXES_FILE).is_file():
        partial = folder.with_name(folder.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        tables = load_tables(source, reading=reading_of(entry))
        boxes, facts = _detect(tables, DETECTORS[detector_name](), progress)
        for name, key, column in (("products", "product_id", "core_box"), ("queries", "query_id", "bbox")):
            _write_with_boxes(source, partial, (name, key, column), boxes[name])
        write_atomically(partial / _BOXES_FILE, json.dumps({"detector": detector_name, **facts}) + "\n")
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    facts = json.loads((folder / _BOXES_FILE).read_text(encoding="utf-8"))
    if facts["detector"] != detector_name:
        raise RecipeError(
            f"{folder}: found boxes from {facts['detector']}; expected {detector_name}, or another --output"
        )
    tables_of = {name: str(folder / f"{name}.parquet") for name in ("products", "queries")}
    others = [name for name in TABLE_KEYS if name not in tables_of and (source / f"{name}.parquet").is_file()]
    tables_of |= {name: str(source / f"{name}.parquet") for name in others}
    return {"name": source.name, **entry, **tables_of}, facts


def _detect(
    tables: ProductTables, detector: CoreDetector, progress: bool
) -> tuple[dict[str, dict[str, list[float]]], dict[str, Any]]:
    """Return boxes by id of products and queries, and counts."""
    pictured = [row for row in tables.products if row.images]
    photos = [row for row in tables.queries if "image" in row.record()]
    found: dict[str, dict[str, list[float]]] = {"products": {}, "queries": {}}
    shares: list[float] = []
    work: list[tuple[str, str, Any, Any]] = [
        ("products", row.product_id, row.images[0], row.core_box) for row in pictured
    ]
    work += [("queries", row.query_id, row.record()["image"], row.record().get("core_box")) for row in photos]
    for table, name, picture, known in tqdm(work, desc=f"core boxes of {tables.name}", disable=not progress):
        try:
            image = open_image(picture)
        except ProductError:
            continue  # no box; training and evaluation report this picture
        box = known or detector.detect([image], [None])[0]
        if box is not None:
            found[table][name] = [float(side) for side in box]
            shares.append((box[2] - box[0]) * (box[3] - box[1]) / (image.width * image.height))
    facts = {
        "products": len(pictured),
        "products_with_box": len(found["products"]),
        "photos": len(photos),
        "queries_with_box": len(found["queries"]),
        "median_share_of_picture": round(statistics.median(shares), 3) if shares else None,
    }
    return found, facts


def _write_with_boxes(
    source: Path, folder: Path, names: tuple[str, str, str], boxes: Mapping[str, list[float]]
) -> None:
    name, key, column = names
    table = pq.read_table(source / f"{name}.parquet")
    if key not in table.column_names:
        raise RecipeError(
            f"{source / name}.parquet: found no column {key}; expected this column, because boxes are set"
        )
    values = pa.array([boxes.get(str(name)) for name in table[key].to_pylist()], type=pa.list_(pa.float64()))
    if column in table.column_names:
        table = table.drop_columns([column])
    pq.write_table(table.append_column(column, values), folder / f"{name}.parquet")


# --- Running ---
def plan(suite: Suite, output: Path) -> list[Run]:
    """Return every run of a suite, seed by seed, so that all cells of the first seed finish first."""
    return [
        Run(
            cell,
            seed,
            output / "cells" / cell / f"seed-{seed}",
            {**suite.keys_of(cell), "seed": seed, "boxes": suite.boxes},
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
        data: the recipe's data sets, with their boxes.
        workers: number of training runs that share the machine; each uses its share of the cores, unless
            OMP_NUM_THREADS is set.

    Raises:
        BusyError: another process is training the run.
    """
    run.folder.mkdir(parents=True, exist_ok=True)
    with _locked(run.folder) as lock, (run.folder / LOG_FILE).open("a") as log:
        keys = {name: value for name, value in run.wanted.items() if name != "boxes"}
        keys |= {"data": data, "output_dir": str(run.folder)}
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
    files = RunFolder(run.folder).all_results("after")
    if not files:
        raise RecipeError(f"{run.folder}: found no results_after….json; expected evaluate_after: true")
    scores: dict[str, Any] = {}
    facts: dict[str, Any] = {}
    for file in files:
        found = json.loads(file.read_text(encoding="utf-8"))
        scores |= row_scores(found)
        facts[found["benchmark"]] = {
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
        "last_metrics": metrics[-1] if metrics else None,
        "provenance": facts,
    }
    write_atomically(run.folder / CELL_FILE, json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    return result


def run_all(runs: Sequence[Run], data: list[Any], workers: int, render: Any) -> list[str]:
    """Run the unfinished runs, several at a time, and return the names of those that failed or are in use elsewhere.

    Args:
        runs: the runs, in the order of their start.
        data: the recipe's data sets, with their boxes.
        workers: number of training runs at a time.
        render: called after every finished run.
    """
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
def write_results(suite: Suite, runs: Sequence[Run], output: Path, boxes: Mapping[str, Any]) -> dict[str, Any]:
    """Write the table of the finished runs: ablation.json, and ablation.md and ablation.png rendered from it.

    Args:
        suite: the suite.
        runs: all runs of the suite.
        output: folder of the suite.
        boxes: facts about core boxes by data set.

    Returns:
        The content of ablation.json.
    """
    finished = {run: found for run in runs if (found := run.result()) is not None}
    by_cell: dict[str, dict[str, Any]] = {}
    for cell in suite.cells:
        by_cell[cell] = {str(run.seed): found for run, found in finished.items() if run.cell == cell}
    scores_of = {cell: {seed: run["scores"] for seed, run in own.items()} for cell, own in by_cell.items()}
    rows = ablation_rows(scores_of, cumulative=suite.cumulative)
    scores = [run["scores"] for own in by_cell.values() for run in own.values()]
    chance = {
        name: {metric: row[f"{metric}_chance"] for metric in METRICS}
        for by_row in scores
        for name, row in by_row.items()
    }
    compared = [cell["difference"] for row in rows for cell in row["cells"].values()]
    sources = [facts for own in by_cell.values() for run in own.values() for facts in run["provenance"].values()]
    results = {
        "suite": suite.path.stem,
        "planned": len(runs),
        "finished": len(finished),
        "missing": [run.name for run in runs if run not in finished],
        "steps": suite.recipe["max_steps"],
        "interval": INTERVAL,
        "comparisons": sum(change is not None and change["interval"] is not None for change in compared),
        "cumulative": suite.cumulative,
        "boxes_by": suite.boxes,
        "boxes": dict(boxes),
        "cells": suite.cells,
        "base": suite.recipe,
        "words": in_words(rows, chance, cumulative=suite.cumulative),
        "table": rows,
        "chance": chance,
        "runs": {
            cell: {seed: {key: run[key] for key in run if key != "keys"} for seed, run in own.items()}
            for cell, own in by_cell.items()
        },
        "provenance": provenance(suite.seeds[0], seeds=suite.seeds)
        | {"commits": sorted({str(facts["commit"]) for facts in sources})},
    }
    text = json.dumps(results, indent=1, ensure_ascii=False, allow_nan=False)
    write_atomically(output / "ablation.json", text + "\n")
    results = json.loads(text)
    write_atomically(output / "ablation.md", markdown(results))
    draw_chart(results, output / "ablation.png")
    return results


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
    if workers < 1:
        raise RecipeError(f"--workers: found {workers}; expected 1 or more")
    suite = read_suite(path)
    unknown = [name for name in cells or () if name not in suite.cells]
    if unknown:
        raise RecipeError(f"--cells: found {unknown[0]!r}; expected one of {', '.join(suite.cells)}")
    require_writable_folder("--output", output)
    output.mkdir(parents=True, exist_ok=True)
    runs = plan(suite, output)
    data, boxes = list(suite.recipe.get("data", [])), {}
    if suite.boxes is not None:
        data, boxes = _data_with_boxes(suite, output, render_only)
    missed: list[str] = []
    if not render_only:
        requested = [run for run in runs if not cells or run.cell in cells]
        missed = run_all(requested, data, workers, lambda: write_results(suite, runs, output, boxes))
    return write_results(suite, runs, output, boxes), missed


@contextmanager
def terminated_as_interrupted() -> Iterator[None]:
    """Let SIGTERM raise KeyboardInterrupt, so that training runs in progress are stopped too."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _data_with_boxes(suite: Suite, output: Path, render_only: bool) -> tuple[list[Any], dict[str, Any]]:
    """Return the data sets with their boxes; with `render_only`, only those with existing boxes."""
    data, boxes = [], {}
    for entry in suite.recipe["data"]:
        name = Path(entry["path"] if isinstance(entry, dict) and "path" in entry else str(entry)).name
        folder = output / "boxes" / name
        if not render_only or (folder / _BOXES_FILE).is_file():
            made, boxes[name] = tables_with_boxes(entry, folder, suite.boxes or "")
            data.append(made)
    return data, boxes
