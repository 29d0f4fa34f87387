"""Run a scaling suite and fit how the loss falls along each axis.

    moon3 scale SUITE.yaml --output results/scaling.json

Trainings are cells of `training.studies.ablate`, and click models those of `applications.ctr.study`: finished ones are kept
in the folder `work`, and the same command continues after an interruption.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from applications.ctr.metrics import click_scores
from applications.ctr.model import CtrSettings
from applications.ctr.study import CtrStudy, log_facts, model_name, read_data, run_cells
from applications.scaling.power_law import LEAST_POINTS, fit_with_intervals, sentence
from applications.scaling.suite import ScaleSuite, read_scale_suite
from evaluation.provenance import provenance
from processing_moon import MoonProcessor
from product_data.tables import load_tables
from training.assembly.token_budget import token_budget
from training.recipe.arguments import RecipeError
from training.runs.folder import RunFolder
from training.studies.ablate import Run, plan, run_all

TOKENS, NEGATIVES, HISTORY = "training tokens", "negatives", "clicks in the history"
IMAGE_SEARCH, ALL_DIRECTIONS, CLICKS = "1 − R@10, i→mm", "1 − R@10, mean of directions", "1 − AUC of clicks"


def run_scale(path: Path, output: Path, *, workers: int = 1, resamples: int = 500) -> tuple[dict[str, Any], list[str]]:
    """Train the unfinished cells of a suite and fit its laws.

    Args:
        path: the suite's file, see `applications.scaling.suite.read_scale_suite`.
        output: folder that keeps the trainings and click models.
        workers (`int`): trainings at a time. Default 1.
        resamples (`int`): of the bootstrap over seeds. Default 500.

    Returns: the content of the results file, and the names of the trainings that did not finish. An axis is fitted once at
        least four of its values have all seeds.

    Raises:
        RecipeError, ScalingError, TableError: a suite, log or vectors that cannot be used.
    """
    suite = read_scale_suite(path)
    _require_tables(suite)
    output.mkdir(parents=True, exist_ok=True)
    history = _history_losses(suite, output)  # first: a log that cannot be read is refused before the trainings
    runs = plan(suite.trainings, output) if suite.cells else []
    missed = run_all(runs, list(suite.trainings.recipe.get("data", [])), workers, lambda: None)
    measured = _training_losses(suite, runs)
    lines = [*_training_lines(suite, measured), *history["lines"]]
    results = {
        "suite": path.stem,
        "seeds": suite.seeds,
        **suite.facts,
        "tokens_per_pair": _tokens_per_pair(suite, runs),
        "missing": missed,
        "cells": measured,
        "history": {name: value for name, value in history.items() if name != "lines"},
        "fits": [],
        "provenance": provenance(suite.seeds[0], seeds=suite.seeds),
    }
    results["fits"] = [_fitted(line, results["tokens_per_pair"], resamples) for line in lines]
    results["words"] = [sentence(_title(one), one["fit"]) for one in results["fits"] if one["fit"] is not None]
    return results, missed


def _require_tables(suite: ScaleSuite) -> None:
    data = suite.trainings.recipe.get("data", [])
    if suite.cells and not all(
        Path(entry if isinstance(entry, str) else entry.get("path", "")).is_dir() for entry in data
    ):
        raise RecipeError(
            f"{suite.path}: data: found {data}; expected folders of tables, such as moon3 catalogue writes, so that all "
            "trainings read the same files"
        )


def _tokens_per_pair(suite: ScaleSuite, runs: Sequence[Run]) -> float | None:
    """Return the mean number of tokens of a query and its product, measured with the tokenizer of a trained model."""
    final = next((RunFolder(run.folder).final for run in runs if run.result() is not None), None)
    if final is None:
        return None
    entries = [entry if isinstance(entry, str) else entry["path"] for entry in suite.trainings.recipe["data"]]
    tables = [load_tables(entry).select("train") for entry in entries]
    lengths = token_budget(MoonProcessor.from_pretrained(final), tables).lengths
    return 2.0 * float(np.mean(lengths)) if lengths else None


def _training_losses(suite: ScaleSuite, runs: Sequence[Run]) -> dict[str, Any]:
    """Return cell → steps, negatives, pairs and the losses of each finished seed."""
    found: dict[str, Any] = {}
    for cell, (steps, negatives) in suite.cells.items():
        losses: dict[str, dict[str, float]] = {IMAGE_SEARCH: {}, ALL_DIRECTIONS: {}}
        for run in runs:
            if run.cell == cell and (result := run.result()) is not None:
                scores = {name: row["R@10"] for name, row in result["scores"].items()}
                image = [value for name, value in scores.items() if name.endswith(" i→mm")]
                if image:
                    losses[IMAGE_SEARCH][str(run.seed)] = 1.0 - float(np.mean(image))
                losses[ALL_DIRECTIONS][str(run.seed)] = 1.0 - float(np.mean(list(scores.values())))
        pairs = steps * (suite.negatives[-1] + 1)
        found[cell] = {"steps": steps, "negatives": negatives, "pairs": pairs, "losses": losses}
    return found


def _training_lines(suite: ScaleSuite, cells: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the lines to fit: each axis at every value of the other axis that has at least four cells."""
    lines = []
    for loss in (IMAGE_SEARCH, ALL_DIRECTIONS):
        for axis, key, other in ((TOKENS, "pairs", "negatives"), (NEGATIVES, "negatives", "steps")):
            for level in sorted({cell[other] for cell in cells.values()}, reverse=True):
                own = [
                    cell
                    for cell in cells.values()
                    if cell[other] == level and len(cell["losses"][loss]) == len(suite.seeds)
                ]
                if sum(cell[other] == level for cell in cells.values()) >= LEAST_POINTS:
                    points = {cell[key]: list(cell["losses"][loss].values()) for cell in own}
                    lines.append({"axis": axis, "loss": loss, "at": {other: level}, "points": points})
    return lines


def _history_losses(suite: ScaleSuite, output: Path) -> dict[str, Any]:
    """Train the click models of all lengths, and return their AUC and the line to fit."""
    if suite.history is None:
        return {"lines": []}
    history, found, facts = suite.history, {}, {}
    vectors = {"vectors": Path(history.vectors)}
    base = CtrStudy(history.log, vectors, [history.variant], suite.seeds)
    data = read_data(base)
    for length in history.lengths:
        study = replace(base, settings=replace(CtrSettings(), history=length))
        cells = run_cells(study, data, output / "clicks")
        aucs = []
        for seed in suite.seeds:
            log, test = data[seed].log, data[seed].periods.test
            trained = cells[model_name(history.variant, "vectors"), seed]
            scores = click_scores(log.clicked_N[test], trained.probability_N, log.user_N[test])
            aucs.append(scores["AUC"] if scores else float("nan"))
        found[length] = aucs
    facts = {str(seed): log_facts(own) for seed, own in data.items()}
    line = {
        "axis": HISTORY,
        "loss": CLICKS,
        "at": {},
        "points": {n: [1 - auc for auc in own] for n, own in found.items()},
    }
    return {"log": facts, "variant": history.variant, "AUC": {str(n): own for n, own in found.items()}, "lines": [line]}


def _fitted(line: Mapping[str, Any], tokens_per_pair: float | None, resamples: int) -> dict[str, Any]:
    """Return a line with its fit, or with `None` and the reason if too few values are finished."""
    scale = (tokens_per_pair or 1.0) if line["axis"] == TOKENS else 1.0
    x = [scale * value for value in line["points"]]
    losses = list(line["points"].values())
    fit, why = None, None
    if len(x) < LEAST_POINTS:
        why = f"{len(x)} finished values; at least {LEAST_POINTS} are needed"
    elif min(map(min, losses)) <= 0:
        why = "a loss of 0, which has no logarithm"
    else:
        fit = fit_with_intervals(x, losses, resamples=resamples)
    kept = {name: line[name] for name in ("axis", "loss", "at")}
    return {**kept, "x": x, "losses": losses, "fit": fit, "not_fitted": why}


def _title(line: Mapping[str, Any]) -> str:
    at = ", ".join(f"{value} {name}" for name, value in line["at"].items())
    return f"{line['axis']} ({line['loss']}{f'; {at}' if at else ''})"
