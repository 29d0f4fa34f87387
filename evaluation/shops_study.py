"""Compare two models on several shops, seen and unseen in training, over all tasks and with paired intervals.

moon3 shops-study --data ../shared/data --first Moon=runs/shops_moon1/final \
    --second "dual tower=runs/shops_dual_tower/final" --output results/shops_study.json

The rows are written as JSON, and as a Markdown table beside it. `--work` keeps the measured rows by shop and model: the
same command continues after an interruption, and measures again if weights, data or code have changed.
"""

from __future__ import annotations

import functools
import hashlib
import json
import pickle
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tabulate import tabulate

from evaluation.paired_rows import MEAN_OF_KEYS, Row, all_rows, compare_rows
from evaluation.provenance import PROJECT_ROOT, provenance
from evaluation.report import ARROWS
from product_data.errors import OptionError
from product_data.spree import read_spree
from product_data.tables import ProductTables, load_tables
from retrieval.encode import VectorCache, config_digest, load_for_evaluation

_CODE = ("modeling_moon", "processing_moon", "product_data", "retrieval", "evaluation")
TRAINED, UNSEEN = "trained on", "never seen"


@dataclass(frozen=True)
class Shop:
    """One data set of the study.

    Args:
        name (`str`): name of the shop.
        folder (`str`): folder inside the folder of the data.
        seen (`str`): "trained on" or "never seen".
        what (`str`): description of the search.
        split (`str` or `None`): the split to evaluate. Default `None`: all products and queries.
        read: function that reads the folder. Default: `load_tables`.
    """

    name: str
    folder: str
    seen: str
    what: str
    split: str | None = None
    read: Callable[[Path], ProductTables] = load_tables


SHOPS = (
    Shop("fashion", "fashion", TRAINED, "products that were not trained on; texts made by a script", "test"),
    Shop("grocery", "grocery", TRAINED, "phone photos that were not trained on, of the products that were", "test"),
    Shop("ikea", "ikea", UNSEEN, "rooms and words for one thing in them → products; texts made by a script"),
    Shop("spree", "spree", UNSEEN, "pictures of a product in other colours → product", read=read_spree),
    Shop(
        "spree variants",
        "spree",
        UNSEEN,
        'picture and "in white" → that variant',
        read=functools.partial(read_spree, variants=True),
    ),
    Shop("chorus", "chorus", UNSEEN, "words that people searched for → products, graded by people; no pictures"),
)


def measure(model: Any, processor: Any, tables: ProductTables, *, batch_size: int = 32) -> list[Row]:
    """Return the rows of one model on one shop."""
    return all_rows(VectorCache(model, processor, tables.products, tables.queries, batch_size=batch_size))


def run_study(
    models: Mapping[str, str], data: Path, work: Path, *, shops: Sequence[Shop] = SHOPS, batch_size: int = 32
) -> dict[str, Any]:
    """Measure both models on each shop and compare them.

    Args:
        models: name → folder of a checkpoint: the first model and its reference.
        data: folder with the shops' folders.
        work: folder that keeps the measured rows by shop and model.
        shops: the shops. Default: `SHOPS`.
        batch_size (`int`): records per batch. Default 32.

    Returns: the content of the results file.
    """
    started = time.monotonic()
    loaded = {name: load_for_evaluation(path) for name, path in models.items()}
    names = (list(models)[0], list(models)[1])
    code = code_digest(Path(__file__))
    results: dict[str, Any] = {"models": dict(models), "shops": {}}
    for shop in shops:
        tables = shop.read(data / shop.folder).select(shop.split)
        content = pickle.dumps((tables.products, tables.queries))
        rows = {}
        for name, (model, processor) in loaded.items():
            weights = (path.read_bytes() for path in sorted(Path(models[name]).glob("*.safetensors")))
            digest = digest_of(code.encode(), config_digest(model).encode(), content, *weights)
            make = functools.partial(measure, model, processor, tables, batch_size=batch_size)
            rows[name] = cached_rows(work / f"{shop.name.replace(' ', '_')}-{digest}.pkl", make)
            print(f"{shop.name}: {name} measured, {time.monotonic() - started:.0f} s", flush=True)
        results["shops"][shop.name] = {
            "seen": shop.seen,
            "what": shop.what,
            "split": shop.split,
            "products": len(tables.products),
            "queries": len(tables.queries),
            "rows": compare_rows(rows[names[0]], rows[names[1]], names),
        }
    results["words"] = summary_sentences(results)
    results["provenance"] = provenance(0, batch_size=batch_size)
    return results


def code_digest(study: Path) -> str:
    """Return the digest of the code that measured rows depend on: everything up to evaluation, without the study's own file."""
    files = (path for folder in _CODE for path in sorted((PROJECT_ROOT / folder).rglob("*.py")))
    return digest_of(*(path.read_bytes() for path in files if path.name != study.name))


def digest_of(*parts: bytes) -> str:
    """Return 16 hex digits that identify bytes in this order."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()[:16]


def cached_rows(path: Path, make: Callable[[], list[Row]]) -> list[Row]:
    """Return the rows of a file, or make them and write the file."""
    if path.is_file():
        return pickle.loads(path.read_bytes())  # written by this function
    rows = make()
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_bytes(pickle.dumps(rows))
    partial.replace(path)
    return rows


# ---------------------------------------------------------------------------------------------------------------------
# Sentences and table


def summary_sentences(results: Mapping[str, Any]) -> list[str]:
    """Summarise in sentences how often each model is ahead, for seen and unseen shops and by task."""
    first, second = results["models"]
    sentences = []
    for seen in (TRAINED, UNSEEN):
        rows = [row for shop in results["shops"].values() if shop["seen"] == seen for row in _main_rows(shop["rows"])]
        for task in ("retrieval", "classification", "attributes"):
            ahead = Counter(row["ahead"] for row in rows if row["task"] == task)
            if total := ahead.total():
                sentences.append(
                    f"Shops {seen}, {task}: of {total} rows {first} is ahead in {ahead[first]}, {second} in "
                    f"{ahead[second]}; in {ahead[None]} the paired interval contains 0."
                )
    return sentences


def _main_rows(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the rows that the summary counts: R@10 of each search, each category level, the mean of attribute keys."""
    return [
        row for row in rows if row["metric"] == "R@10" or row["task"] == "classification" or row["what"] == MEAN_OF_KEYS
    ]


def table(results: Mapping[str, Any], *, short: bool = False, style: str = "github") -> str:
    """Return a table with one line per row: both models with their intervals, the paired difference and the model that is ahead.

    Args:
        results: from `run_study`.
        short (`bool`): only R@10 (nDCG@10 of graded answers), categories and the mean of the attribute keys. Default
        False.
        style (`str`): a tabulate format. Default "github".
    """
    first, second = results["models"]
    lines = []
    for name, shop in results["shops"].items():
        for row in shop["rows"]:
            if short and (row["metric"] == "R@1" or (row["task"] == "attributes" and row["what"] != MEAN_OF_KEYS)):
                continue
            models = row["models"]
            difference = row["difference"]
            low, high = difference["interval"]
            lines.append(
                [
                    f"{name} ({shop['seen']})",
                    f"{_row_name(row)}, {row['metric']}",
                    _percent(models[first]),
                    _percent(models[second]),
                    _percent(models["BM25"]) if "BM25" in models else "–",
                    "–" if row["chance"] is None else f"{100 * row['chance']:.1f}",
                    f"{100 * difference['difference']:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})",
                    row["ahead"] or "–",
                ]
            )
    head = ["shop", "row, %", first, second, "BM25", "chance", f"{first} - {second}, points", "ahead"]
    return tabulate(lines, headers=head, tablefmt=style, disable_numparse=True, colalign=("left",) * 2 + ("right",) * 6)


def _row_name(row: Mapping[str, Any]) -> str:
    if row["task"] == "retrieval":
        return ARROWS[row["what"]] + f" ({row['queries']} of {row['choices']})"
    labels = "" if row["choices"] is None else f", {row['choices']} labels"
    kind = "category" if row["task"] == "classification" else "attribute"
    return f"{kind} {row['what']}{labels}" + (", picture alone" if row["form"] == "i" else "")


def _percent(score: Mapping[str, Any]) -> str:
    low, high = score["interval"]
    return f"{100 * score['value']:.1f} ({100 * low:.1f}–{100 * high:.1f})"


def markdown(results: Mapping[str, Any]) -> str:
    """Return the results as Markdown."""
    first, second = results["models"]
    shops = [f"- {name} ({shop['seen']}): {shop['what']}." for name, shop in results["shops"].items()]
    return "\n".join(
        [
            f"# {first} and {second} on several shops",
            "",
            *shops,
            "",
            f"Values in per cent with 95 % bootstrap intervals. The difference is {first} minus {second}. Its interval "
            "is paired: the bootstrap draws queries (for labels: products) for both models together. A model is ahead "
            "if that interval excludes 0; about one in twenty rows without a difference does so by chance. A direction "
            "is followed by the number of queries and of products in the gallery. Rows of fewer than 20 queries are "
            "left out.",
            "",
            *[f"- {sentence}" for sentence in results["words"]],
            "",
            table(results),
            "",
        ]
    )


def write_study(
    models: Mapping[str, str], data: Path, output: Path, work: Path, names: Sequence[str] | None = None
) -> dict[str, Any]:
    """Run the study and write its results as JSON, and the page beside it.

    Args:
        models: name → folder of a checkpoint, for two models.
        data: folder with the shops' folders.
        output: the results file, .json.
        work: folder that keeps the measured rows.
        names: names of the shops to measure. Default: all.

    Returns:
        The results.

    Raises:
        OptionError: an `output` that is not a .json file, or one name for both models.
    """
    if output.suffix != ".json":
        raise OptionError(f"--output {output}; expected a .json file")
    if len(models) < 2:
        raise OptionError("--first, --second: both have the same name; expected two names")
    output.parent.mkdir(parents=True, exist_ok=True)
    results = run_study(models, data, work, shops=[shop for shop in SHOPS if not names or shop.name in names])
    text = json.dumps(results, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    output.write_text(text, encoding="utf-8")
    output.with_suffix(".md").write_text(markdown(results), encoding="utf-8")
    return results
