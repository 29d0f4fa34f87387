"""Say why products are given one category label: how narrow their vectors are, which label they take, and what centring changes.

moon3 label-collapse --model NAME=CHECKPOINT … --data TABLES --split valid --output results/label_collapse.json

If all pictures have nearly one vector, the label that is nearest to it takes nearly all of them, and top-1 is the share of that
label, however small. Centring removes what is common to all vectors of a side; a score near chance after it says that
the vectors tell no labels apart, and not that one label is too near.

Shape suffixes: N products, L labels, D vector size.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate

from evaluation.provenance import provenance
from product_data.atomic_files import write_atomically
from product_data.errors import OptionError
from product_data.tables import ProductTables
from retrieval.encode import VectorCache, load_for_evaluation

FORMS = ("i", "t", "mm")


def label_collapse(item_ND: np.ndarray, label_LD: np.ndarray, truth_N: np.ndarray) -> dict[str, Any]:
    """Return how a model's label vectors divide its product vectors.

    Args:
        item_ND, label_LD: unit vectors.
        truth_N: index of each product's label.

    Returns: "narrowness", the length of the mean of the products' vectors (1: all are one vector); "top1" and "centred_top1",
    without and with both sides' means subtracted; "predicted" and "centred_predicted", the products of each label index;
    "label_gap", the cosine of the mean product and the mean label.
    """
    centred_ND, centred_LD = _centred(item_ND), _centred(label_LD)
    predicted_N = (item_ND @ label_LD.T).argmax(axis=1)
    again_N = (centred_ND @ centred_LD.T).argmax(axis=1)
    mean_D, middle_D = item_ND.mean(axis=0), label_LD.mean(axis=0)
    lengths = float(np.linalg.norm(mean_D) * np.linalg.norm(middle_D))
    return {
        "narrowness": float(np.linalg.norm(mean_D)),
        "label_gap": float(mean_D @ middle_D) / max(lengths, 1e-12),
        "top1": float((predicted_N == truth_N).mean()),
        "predicted": dict(Counter(predicted_N.tolist()).most_common()),
        "centred_top1": float((again_N == truth_N).mean()),
        "centred_predicted": dict(Counter(again_N.tolist()).most_common()),
    }


def _centred(vector_ND: np.ndarray) -> np.ndarray:
    moved_ND = vector_ND - vector_ND.mean(axis=0)
    return moved_ND / np.maximum(np.linalg.norm(moved_ND, axis=1, keepdims=True), 1e-12)


def measure(place: str, tables: ProductTables) -> dict[str, Any]:
    """Return `label_collapse` of the first category level for each form of the products of one model.

    Args:
        place: a checkpoint or KIND=PLACE.
        tables: the products to evaluate.

    Raises:
        OptionError: fewer than two labels.
    """
    products = [row for row in tables.products if row.category]
    names = sorted({row.category[0] for row in products})
    if len(names) < 2:
        raise OptionError(f"{tables.name}: found {len(names)} category labels; expected at least two")
    model, processor = load_for_evaluation(place)
    cache = VectorCache(model, processor, products, [], batch_size=32)
    label_LD = cache.labels(names, "category")
    found: dict[str, Any] = {}
    for form in FORMS:
        gallery = cache.gallery(form)
        truth_N = np.array([names.index(products[index].category[0]) for index in gallery.kept])
        result = label_collapse(gallery.vectors, label_LD, truth_N)
        for key in ("predicted", "centred_predicted"):
            result[key] = {names[label]: count for label, count in result[key].items()}
        found[form] = result | {"products": len(truth_N)}
    return {"labels": dict(Counter(row.category[0] for row in products).most_common()), "forms": found}


def write_label_study(models: Mapping[str, str], tables: ProductTables, output: Path) -> dict[str, Any]:
    """Measure all models and write the results file.

    Args:
        models: name → checkpoint or KIND=PLACE.
        tables: the products to evaluate.
        output: the results file.
    """
    results = {
        "data": tables.name,
        "chance": 1 / len({row.category[0] for row in tables.products if row.category}),
        "models": {name: measure(place, tables) for name, place in models.items()},
        "provenance": provenance(0),
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(output, json.dumps(results, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    return results


def label_table(results: Mapping[str, Any]) -> str:
    """Return the results as a Markdown table.

    Args:
        results: from `write_label_study`.
    """
    lines: list[Sequence[Any]] = []
    for name, model in results["models"].items():
        for form, found in model["forms"].items():
            label, count = next(iter(found["predicted"].items()))
            share, true = (100 * number / found["products"] for number in (count, model["labels"].get(label, 0)))
            lines.append(
                [
                    name,
                    form,
                    f"{found['narrowness']:.2f}",
                    f"{found['label_gap']:.2f}",
                    f"{100 * found['top1']:.1f}",
                    f"{label}: {share:.0f}, true {true:.0f}",
                    f"{100 * found['centred_top1']:.1f}",
                ]
            )
    heads = ["model", "form", "narrowness", "label gap", "top-1, %", "most predicted, %", "centred top-1, %"]
    return tabulate(lines, headers=heads, tablefmt="github", disable_numparse=True)
