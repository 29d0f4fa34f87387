"""Evaluate several models on the same data: Moons, dual towers and peers, one after the other, for one table.

moon3 evaluate --model run/final vlm_mean=Qwen/Qwen3-VL-2B-Instruct clip=patrickjohncyh/fashion-clip bm25
    --benchmark catalogue --only retrieval,matrix --output peers/

With an output folder, it also gets `significance.json` (each model against the reference, query by query) and `report.html`.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tabulate import tabulate

from evaluation.against_reference import against_reference, significance_rows, significance_sentences
from evaluation.provenance import provenance
from evaluation.report import comparison_table, results_table, short_name, shown_cutoff
from evaluation.results_page import page
from evaluation.run import EvaluationOptions, evaluate_benchmarks, has_scores, require_scores
from product_data.atomic_files import write_atomically
from product_data.errors import OptionError
from product_data.outputs import require_writable_folder
from product_data.tables import ProductTables
from retrieval.model_kinds import named_kind, require_loadable

SIGNIFICANCE, REPORT = "significance.json", "report.html"
"""What an output folder of several models holds besides a folder for each model."""


def evaluate_models(
    models: Sequence[str],
    benchmarks: Sequence[ProductTables],
    *,
    options: EvaluationOptions,
    output: Path | None = None,
    device: str | None = None,
) -> list[dict[str, Any]]:
    """Evaluate models on data sets, each as `evaluation.run.evaluate_benchmarks` does; one is in memory at a time.

    Args:
        models: folders, hub ids, or other kinds of models ("clip=PLACE", "bm25").
        benchmarks: the data sets.
        options: of all of them. The names of a sheet and of reasonings get the model's.
        output: with several models a folder, which gets a folder for each model and in it a results file for each data set; with
            one model as in `evaluate_benchmarks`. Default: nothing is written.
        device (`str` or `None`): default: the first GPU, or else the CPU.

    Returns:
        The results, those of the first model first.

    Raises:
        OptionError: a model named twice, the name of a file as output of several models, or peers where a side reasons.
        CheckpointError: a model that cannot be loaded; what can be known before the first evaluation is found before it.
    """
    if len(models) == 1:
        return evaluate_benchmarks(models[0], benchmarks, options=options, output=output, device=device)
    for model in models:
        require_loadable(model)
    if unknown := sorted(set(options.weights or ()) - set(models)):
        raise OptionError(f"--weights {', '.join(unknown)}; expected models as in --model: {', '.join(models)}")
    peers = [model for model in models if named_kind(model) is not None]
    if options.generates and peers:
        raise OptionError(f"reasoning with {', '.join(peers)}; expected models that reason, or reasoning 'none'")
    if output is not None and output.suffix == ".json":
        raise OptionError(f"--output {output}: looks like a file; expected a folder when there are several models")
    require_writable_folder("--output", output)
    results = []
    for model, folder in zip(models, folder_names(models), strict=True):
        own = replace(options, sheet=_with(options.sheet, folder), reasonings=_with(options.reasonings, folder))
        place = None if output is None else output / folder
        if place is not None and len(benchmarks) == 1:
            place = place / f"{benchmarks[0].name}.json"
        results += evaluate_benchmarks(model, benchmarks, options=own, output=place, device=device)
    return results


def folder_names(models: Sequence[str]) -> list[str]:
    """Return a name for each model's folder: its short name in characters that every file system takes.

    Raises:
        OptionError: a model that is named twice, or two whose names are the same.
    """
    names = [re.sub(r"[^\w.-]+", "_", short_name(model)).strip("_") for model in models]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise OptionError(f"several models are called {twice[0]!r}; expected different names, or one run for each")
    return names


def compare_models(
    results: Sequence[dict[str, Any]], *, reference: str | None = None, output: Path | None = None, seed: int = 0
) -> dict[str, Any]:
    """Compare each model with the reference, and write `significance.json` and `report.html` into the output folder.

    Args:
        results: of several models, from `evaluate_models`.
        reference: a model as it was given to `evaluate_models`, or its name in tables. Default: the first.
        output: the folder. Default: nothing is written.
        seed (`int`): of the bootstrap. Default 0.

    Returns: see `evaluation.against_reference.against_reference`.
    """
    found = against_reference(results, reference=None if reference is None else short_name(reference), seed=seed)
    if output is not None:
        facts = {"provenance": provenance(seed)}
        text = json.dumps(found | facts, indent=1, ensure_ascii=False, allow_nan=False)
        write_atomically(output / SIGNIFICANCE, text + "\n")
        names = [short_name(result["model"]) for result in results]
        write_atomically(output / REPORT, page(names, results, significance=found))
    return found


def require_reference(models: Sequence[str], reference: str | None) -> None:
    """Check that the reference is one of the models, before the first evaluation.

    Raises:
        OptionError: it is not, or there is a single model.
    """
    names = [short_name(model) for model in models]
    if reference is not None and (len(names) == 1 or short_name(reference) not in names):
        raise OptionError(f"--reference {reference}; expected one of several models: {', '.join(names)}")


def models_table(results: Sequence[dict[str, Any]], significance: Mapping[str, Any] | None = None) -> str:
    """Return all results as Markdown: one column a model, differences to the reference, everything, how each peer embeds.

    Args:
        results: of several models.
        significance: from `compare_models`. Default: without the differences.
    """
    cutoffs = [k for k in results[0].get("cutoffs", ()) if all(k in found.get("cutoffs", ()) for found in results)]
    parts = []
    if cutoffs:
        parts.append(scores_and_differences(results, significance, f"R@{shown_cutoff(cutoffs)}"))
    parts.append(results_table(results))
    for name in dict.fromkeys(found["benchmark"] for found in results):
        same = [found for found in results if found["benchmark"] == name]
        of_data = set.intersection(*(set(found.get("absent", {}).values()) for found in same))
        parts.append("\n".join(line for found in same for line in peer_lines(found, of_data)))
    return "\n\n".join(part for part in parts if part)


def scores_and_differences(
    results: Sequence[dict[str, Any]], significance: Mapping[str, Any] | None, metric: str
) -> str:
    """Return a metric of all models in columns, and below it the differences to the reference, as Markdown.

    Args:
        results: of several models.
        significance: from `compare_models`. Default: without the differences.
        metric: such as "R@10".
    """
    parts = [comparison_table(results, metric=metric)]
    if significance is not None:
        columns, rows = significance_rows(significance, metric)
        align = ["left", "left", *["right"] * (len(columns) - 2)]
        if rows:
            parts.append(tabulate(rows, headers=columns, tablefmt="github", disable_numparse=True, colalign=align))
        parts.append("\n".join(f"- {sentence}" for sentence in significance_sentences(significance, metric)))
    return "\n\n".join(parts)


def peer_lines(result: dict[str, Any], of_data: Collection[str] = ()) -> list[str]:
    """Say how a peer embeds text and picture together, and which directions it has no score for and why.

    Args:
        result: of one model on one data set; a Moon has no lines.
        of_data: reasons that are not said, because no model has these scores.
    """
    if not result.get("peer"):
        return []
    name, mm = f"{short_name(result['model'])} on {result['benchmark']}", result["peer"].get("mm")
    lines = [f"{name}: mm is {mm}."] if mm else []
    because: dict[str, list[str]] = {}
    for direction, why in result.get("absent", {}).items():
        because.setdefault(why, []).append(direction)
    return [*lines, *(f"{name}: no {', '.join(found)}: {why}." for why, found in because.items() if why not in of_data)]


def require_some_scores(results: Sequence[dict[str, Any]]) -> None:
    """Check that some model has a score on every data set; a text model alone need not.

    Args:
        results: of one or several models.

    Raises:
        NothingScoredError: names the data sets without.
    """
    scored = {found["benchmark"] for found in results if has_scores(found)}
    require_scores([found for found in results if found["benchmark"] not in scored])


def _with(path: str | Path | None, name: str) -> Path | None:
    path = None if path is None else Path(path)
    return None if path is None else path.with_name(f"{path.stem}-{name}{path.suffix}")
