"""Compare frozen encoders with Moon and the dual tower on shops, over all tasks, with and without the core crop.

moon3 frozen-study --data ../shared/data --model fused=frozen=encoder.onnx+MiniLM Moon=training/checkpoints/moon1-catalogue \
    --beside results/shops_study.json --output results/frozen_baselines.json

The first model is the reference. A model that has no score for a row is left out of it. `--work` keeps the measured rows by shop,
model and crop: the same command continues after an interruption, and measures again if weights, data or code have changed.
"""

from __future__ import annotations

import functools
import json
import pickle
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate
from tqdm import tqdm

from evaluation.metrics import bootstrap_interval
from evaluation.paired_rows import MEAN_OF_KEYS, Row
from evaluation.provenance import provenance
from evaluation.report import ARROWS
from evaluation.run import core_crop_set
from evaluation.shops_study import SHOPS, Shop, cached_rows, code_digest, digest_of, measure
from evaluation.significance import paired_test
from product_data.atomic_files import write_atomically
from product_data.errors import OptionError
from product_data.tables import ProductTables
from retrieval.encode import config_digest, load_for_evaluation
from retrieval.vectors.fingerprint import model_fingerprint

CROP = " + crop"
"""What follows a model's name where it also reads the core crop."""
BESIDE = "queries", "choices"
"""What a row of another study must have in common with a row of this one, besides its key, to stand beside it."""


def run_study(
    models: Mapping[str, str],
    data: Path,
    work: Path,
    *,
    shops: Sequence[Shop] = SHOPS,
    beside: Mapping[str, Any] | None = None,
    batch_size: int = 32,
) -> dict[str, Any]:
    """Measure all models on each shop; where the data has core boxes, also with the core crop.

    Args:
        models: name → folder, hub id or KIND=PLACE. The others are compared with the first one, query by query.
        data: folder with the shops' folders. A shop whose folder is missing is refused.
        work: folder that keeps the measured rows by shop, model and crop.
        shops: the shops. Default: `SHOPS`.
        beside: the content of a results file of `moon3 shops-study`, whose models stand beside these; their differences are not
            paired. Default: none.
        batch_size (`int`): records per batch. Default 32.

    Returns: the content of the results file.
    """
    started = time.monotonic()
    loaded = {name: load_for_evaluation(place) for name, place in models.items()}
    prints = {name: model_fingerprint(place) for name, place in models.items()}
    code = code_digest(Path(__file__))
    results: dict[str, Any] = {"models": dict(models), "shops": {}}
    for shop in tqdm(shops, desc="shops", delay=3.0):
        tables = shop.read(data / shop.folder).select(shop.split)
        content = pickle.dumps((tables.products, tables.queries))
        cells: dict[str, list[Row]] = {}
        for crop in (False, True) if _has_boxes(tables) else (False,):
            for name, (model, processor) in loaded.items():
                known = (code, config_digest(model), prints[name], f"{crop}")
                digest = digest_of(*(part.encode() for part in known), content)
                make = functools.partial(measure, model, processor, tables, batch_size=batch_size)
                with core_crop_set(processor, crop):
                    path = work / f"{shop.name.replace(' ', '_')}-{digest}.pkl"
                    cells[name + CROP * crop] = cached_rows(path, make)
                print(f"{shop.name}: {name + CROP * crop} measured, {time.monotonic() - started:.0f} s", flush=True)
        others = _rows_beside(beside, shop.name)
        facts = {"what": shop.what, "split": shop.split, "core_boxes": _has_boxes(tables)}
        facts |= {"products": len(tables.products), "queries": len(tables.queries)}
        results["shops"][shop.name] = facts | {"rows": joined_rows(cells, others)}
    recipes = {name: getattr(model.config, "recipe", None) for name, (model, _) in loaded.items()}
    results |= {"recipes": recipes, "provenance": provenance(0, batch_size=batch_size)}
    return results


def _has_boxes(tables: ProductTables) -> bool:
    return any(row.core_box for row in tables.products) or any(row.box for row in tables.queries)


def _rows_beside(beside: Mapping[str, Any] | None, shop: str) -> list[Mapping[str, Any]]:
    return [] if beside is None or shop not in beside["shops"] else beside["shops"][shop]["rows"]


def joined_rows(cells: Mapping[str, Sequence[Row]], beside: Sequence[Mapping[str, Any]] = ()) -> list[dict[str, Any]]:
    """Return one entry for each row that any model has: its models' values, and their paired differences to the reference.

    Args:
        cells: name of the model (and crop) → its rows. The first is the reference.
        beside: rows of `moon3 shops-study` on the same data.

    Returns: for each row task, what, form, metric, queries, choices, chance and models: name → value, interval and, where the
        reference has the row, difference (this model minus the reference, see `evaluation.significance.paired_test`).

    Raises:
        ValueError: two models have different queries in a row.
    """
    by_key: dict[tuple[str, str, str, str], dict[str, Row]] = {}
    for name, rows in cells.items():
        for row in rows:
            by_key.setdefault(row.key, {})[name] = row
    reference = next(iter(cells))
    joined = []
    for key, of_models in by_key.items():
        first = next(iter(of_models.values()))
        if any(row.names != first.names for row in of_models.values()):
            raise ValueError(f"{key}: the models have different queries; expected the same queries for all")
        models = {name: _measured(row, of_models.get(reference)) for name, row in of_models.items()}
        if first.word_N is not None:
            models["BM25"] = _value(first.word_N)
        entry: dict[str, Any] = dict(zip(("task", "what", "form", "metric"), key, strict=True))
        entry |= {"queries": len(first.names), "choices": first.choices, "chance": first.chance}
        for other in beside:
            if all(other[name] == entry[name] for name in ("task", "what", "form", "metric", *BESIDE)):
                models |= {name: value for name, value in other["models"].items() if name not in models}
        joined.append(entry | {"models": models})
    return joined


def _value(value_N: Any) -> dict[str, Any]:
    return {"value": float(value_N.mean()), "interval": list(bootstrap_interval(value_N, resamples=1000, seed=0))}


def _measured(row: Row, reference: Row | None) -> dict[str, Any]:
    if reference is None or reference is row:
        return _value(row.value_N)
    return _value(row.value_N) | {"difference": paired_test(reference.value_N, row.value_N, resamples=1000, seed=0)}


def table(results: Mapping[str, Any], *, style: str = "github") -> str:
    """Return a table of R@10 of each search, each category level and the mean of the attribute keys, one column for each model.

    Args:
        results: from `run_study`.
        style (`str`): a tabulate format. Default "github".
    """
    rows = [(name, row) for name, shop in results["shops"].items() for row in shop["rows"]]
    rows = [
        (name, row)
        for name, row in rows
        if row["metric"] == "R@10" or row["task"] == "classification" or row["what"] == MEAN_OF_KEYS
    ]
    columns = list(dict.fromkeys(model for _, row in rows for model in row["models"]))
    lines = [[name, _row_name(row), *(percent(row["models"].get(model)) for model in columns)] for name, row in rows]
    return tabulate(lines, headers=["shop", "row, %", *columns], tablefmt=style, disable_numparse=True)


def search_table(results: Mapping[str, Any], rows: Sequence[tuple[str, str, str]]) -> str:
    """Return a Markdown table of single searches; a model with the core crop has a line of its own below the one without.

    Args:
        results: from `run_study`.
        rows: shop, search and metric of each line, such as ("grocery", "i2mm", "R@1").
    """
    found = {(shop, row["what"], row["metric"]): row for shop, own in results["shops"].items() for row in own["rows"]}
    models = dict.fromkeys(model for row in found.values() for model in row["models"])
    plain = [model for model in models if not model.endswith(CROP)]
    lines = []
    for shop, what, metric in rows:
        row = found[shop, what, metric]
        chance = f"{100 * row['chance']:.1f}"
        name = f"{shop} {_row_name(row)}"
        lines.append([name, metric, *(percent(row["models"].get(model)) for model in plain), chance])
        if any(model + CROP in row["models"] for model in plain):
            lines.append(["+ crop", metric, *(percent(row["models"].get(model + CROP)) for model in plain), chance])
    return tabulate(lines, headers=["search", "metric", *plain, "chance"], tablefmt="github", disable_numparse=True)


def _row_name(row: Mapping[str, Any]) -> str:
    if row["task"] == "retrieval":
        return f"{ARROWS[row['what']]} ({row['queries']} of {row['choices']})"
    return f"{row['task']} {row['what']}" + (", picture alone" if row["form"] == "i" else "")


def percent(score: Mapping[str, Any] | None) -> str:
    """Return a value and its interval in percent, or a dash without a score."""
    if score is None:
        return "–"
    low, high = score["interval"]
    return f"{100 * score['value']:.1f} ({100 * low:.1f}–{100 * high:.1f})"


def write_study(
    models: Mapping[str, str],
    data: Path,
    output: Path,
    work: Path,
    names: Sequence[str] | None = None,
    beside: Path | None = None,
) -> dict[str, Any]:
    """Run the study and write its results.

    Args:
        models: name → folder, hub id or KIND=PLACE, at least two.
        data: folder with the shops' folders.
        output: the results file, .json.
        work: folder that keeps the measured rows.
        names: names of the shops. Default: all.
        beside: a results file of `moon3 shops-study`. Default: none.

    Returns:
        The results.

    Raises:
        OptionError: an `output` that is not a .json file, fewer than two models, or `beside` is not such a file.
    """
    if output.suffix != ".json":
        raise OptionError(f"--output {output}; expected a .json file")
    if len(models) < 2:
        raise OptionError(f"--model: found {len(models)} name; expected two or more models with different names")
    output.parent.mkdir(parents=True, exist_ok=True)
    shops = [shop for shop in SHOPS if not names or shop.name in names]
    results = run_study(models, data, work, shops=shops, beside=None if beside is None else _read(beside))
    write_atomically(output, json.dumps(results, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    return results


def _read(path: Path) -> dict[str, Any]:
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise OptionError(f"--beside {path}: {error}; expected a results file of moon3 shops-study") from error
    if not isinstance(results, dict) or not {"models", "shops"} <= results.keys():
        raise OptionError(f"--beside {path}: found no shops; expected a results file of moon3 shops-study")
    return results
