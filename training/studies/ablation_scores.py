"""Collect the scores of results files for tables that compare trainings, and those of models without training."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evaluation.run import EvaluationOptions, evaluate_benchmarks
from product_data.atomic_files import write_atomically
from training.assembly.sources import evaluated_tables
from training.recipe.arguments import Recipe
from training.studies.ablation_table import OWN_PARTS, REASONED

_KEPT = (
    *("R@1", "R@10", "R@1_interval", "R@10_interval", "R@1_chance", "R@10_chance"),
    *("MRR", "rank_score", "queries", "gallery"),
)
_DEEPEST, _LABEL_SCORES = "deepest", ("top1", "top1_interval", "top10", "f1")


def row_scores(result: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return "data set direction" → scores of a results file from `moon3 evaluate`, including image-only directions."""
    rows = {}
    for group in ("image_only", "scores"):
        for direction, scores in result[group].items():
            if scores is not None:
                own = OWN_PARTS if scores["source"] == "products" else ""
                name = f"{result['benchmark']} {direction.replace('2', '→')}{own}{_reasoned(result)}"
                rows[name] = {key: scores[key] for key in _KEPT if key in scores}
    return dict(sorted(rows.items()))


def label_scores(result: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return "data set category mm" and "data set attributes i" → scores of a results file from `moon3 evaluate`.

    The category is the deepest of each product, and the attributes are the mean over keys; "mm" and "i" are the forms of the
    products. A score that the data does not have (the ten best of fewer labels) is left out.
    """
    rows = {}
    for form, levels in (result.get("classification") or {}).items():
        rows[f"category {form}"] = levels.get(_DEEPEST)
    for form, found in (result.get("attributes") or {}).items():
        rows[f"attributes {form}"] = (found or {}).get("mean")
    return {
        f"{result['benchmark']} {name}{_reasoned(result)}": {
            key: scores[key] for key in _LABEL_SCORES if scores.get(key) is not None
        }
        for name, scores in rows.items()
        if scores
    }


def _reasoned(result: Mapping[str, Any]) -> str:
    return REASONED if (result.get("reasoning") or {}).get("query") == "generate" else ""


def reference_scores(model: str, recipe: Recipe, folder: Path) -> dict[str, dict[str, Any]]:
    """Evaluate a model without training on the evaluation data of a recipe; existing results files are kept.

    Args:
        model: as `moon3 evaluate --model` takes it, such as "bm25".
        recipe: names the data sets, the split and the number of products.
        folder: folder of the results files.

    Returns: rows as `row_scores` returns them. A data set that the model cannot score has none: BM25 reads no pictures.
    """
    args = recipe.training
    options = EvaluationOptions(split=args.evaluate_split, limit=args.evaluate_products, only=("retrieval",))
    rows: dict[str, dict[str, Any]] = {}
    listed = folder / "tables.json"
    names = json.loads(listed.read_text(encoding="utf-8")) if listed.is_file() else None
    if names is None or not all(_results_file(folder, name).is_file() for name in names):
        names = _evaluate(model, recipe, folder, options)
    for name in names:
        rows |= row_scores(json.loads(_results_file(folder, name).read_text(encoding="utf-8")))
    return rows


def _evaluate(model: str, recipe: Recipe, folder: Path, options: EvaluationOptions) -> Sequence[str]:
    folder.mkdir(parents=True, exist_ok=True)
    tables = evaluated_tables(recipe)
    for table in tables:
        path = _results_file(folder, table.name)
        if not path.is_file():
            evaluate_benchmarks(model, [table], options=options, output=path)
    names = [table.name for table in tables]
    write_atomically(folder / "tables.json", json.dumps(names) + "\n")
    return names


def _results_file(folder: Path, name: str) -> Path:
    return folder / f"{name}.json"
