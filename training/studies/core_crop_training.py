"""Train a small model with boxes of each source, and write the study of core crops.

Our design: every source and seed has the same recipe and steps; only the tables' boxes differ. The models are compared on the
test photos of grocery, query by query, with the mean over seeds as the value of a query.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.core_crop_study import (
    NONE,
    SEARCH_SPLIT,
    SOURCES,
    compare_sources,
    detectors_of,
    measure_core_crop,
    results_text,
    search_rows,
    sentences,
)
from evaluation.paired_rows import Row
from evaluation.provenance import provenance
from product_data.atomic_files import write_atomically
from product_data.core_boxes.writing import BoxOptions, write_core_boxes
from product_data.tables import load_tables
from training.places import RECIPES
from training.recipe.files import read_recipe_file
from training.runs.folder import RunFolder
from training.studies.ablate import Run, run_all
from training.studies.ablation_suite import BOXES, check_seeds

RECIPE = "core_crop_grocery.yaml"


class UnfinishedError(ValueError):
    """Raised for a training of the study that did not finish; the same command continues it."""

    exit_status = 3


def train_by_source(
    data: Path, weights: Path, work: Path, seeds: Sequence[int], keys: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Train with each source of boxes and each seed, and compare the sources.

    Args:
        data: folder with the folder grocery.
        weights: the ONNX file of a U²-Net.
        work: folder that keeps boxes, tables and trainings; a finished training is not run again.
        seeds: seeds of the trainings.
        keys: changed keys of the recipe. Default: none.

    Returns: "seeds", "recipe", "rows" (see `compare_sources`, with the mean over seeds for each query) and "by_seed": source →
    row → the value of each seed.

    Raises:
        UnfinishedError: a training that did not finish; the same call continues it.
        RecipeError: seeds that stand twice, or finished trainings with boxes of other weights.
    """
    check_seeds("--seeds", seeds)
    wanted = {**read_recipe_file(RECIPES / RECIPE), **(keys or {})}
    wanted.pop("data")
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    rows_of: dict[str, list[Row]] = {}
    by_seed: dict[str, dict[str, list[float]]] = {}
    for source, detector in {NONE: None, **detectors_of(weights)}.items():
        if source not in SOURCES:
            continue
        folder = data / "grocery"
        if detector is not None:
            tables = work / "tables" / source.replace(" ", "_")
            write_core_boxes(folder, tables, detector, BoxOptions(replace=True, cache=work / "core_boxes.jsonl"))
            folder = tables
        runs = [
            Run(
                source,
                seed,
                work / "runs" / source.replace(" ", "_") / f"seed-{seed}",
                {**wanted, "seed": seed, BOXES: None if detector is None else {"source": source, "weights": digest}},
            )
            for seed in seeds
        ]
        missed = run_all(runs, [{"path": str(folder.resolve()), "mask_groups": False}], 1, lambda: None)
        if missed:
            raise UnfinishedError(f"{'; '.join(missed)}: not finished; the same command continues")
        test = load_tables(folder).select(SEARCH_SPLIT)
        of_seeds = [search_rows(str(RunFolder(run.folder).final), test) for run in runs]
        rows_of[source] = [
            replace(rows[0], value_N=np.mean([row.value_N for row in rows], axis=0))
            for rows in zip(*of_seeds, strict=True)
        ]
        by_seed[source] = {
            f"{rows[0].what} {rows[0].metric}": [float(row.value_N.mean()) for row in rows]
            for rows in zip(*of_seeds, strict=True)
        }
    return {"seeds": list(seeds), "recipe": wanted, "rows": compare_sources(rows_of), "by_seed": by_seed}


def write_core_crop_study(
    data: Path,
    weights: Path,
    models: Mapping[str, str],
    output: Path,
    work: Path,
    seeds: Sequence[int] = (),
    every: int = 1,
) -> list[str]:
    """Measure fit, frozen search and, with seeds, trainings; write the results file after each of them.

    Args:
        data: folder with the folders street and grocery.
        weights: the ONNX file of a U²-Net.
        models: name → place of a checkpoint.
        output: the results file.
        work: folder that keeps boxes and trainings.
        seeds: of the trainings. Default: no training.
        every (`int`): search with every `every`-th test photo; the trainings use all. Default 1.

    Returns: sentences that summarise the study.
    """

    def keep(results: dict[str, Any]) -> None:
        write_atomically(output, results_text({**results, "complete": False, "provenance": provenance(0)}))

    results = measure_core_crop(data, weights, models, work, every=every, keep=keep)
    if seeds:
        results["training"] = train_by_source(data, weights, work, seeds)
    results |= {"complete": True, "provenance": provenance(seeds[0] if seeds else 0)}
    write_atomically(output, results_text(results))
    return sentences(results)
