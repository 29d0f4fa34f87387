"""Compare two models on several shops, those that they were trained on and others, over all tasks, with paired intervals.

moon3 shops-study --data ../shared/data --first Moon=runs/shops_moon1/final \
    --second "dual tower=runs/shops_dual_tower/final" --output results/shops_study.json

Writes the rows as JSON, and as a Markdown table beside it. What was measured is kept by shop and model in `--work`: the same
command goes on where it stopped, and measures again what other weights, data or code would change.
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
        name (`str`): what it is called.
        folder (`str`): under the folder of the data.
        seen (`str`): "trained on" or "never seen".
        what (`str`): what is searched, in words.
        split (`str` or `None`): the rows that are evaluated; None: all.
        read: reads the folder. Default: `load_tables`.
    """

    name: str
    folder: str
    seen: str
    what: str
    split: str | None = None
    read: Callable[[Path], ProductTables] = load_tables


def _spree_variants(folder: Path) -> ProductTables:
    return read_spree(folder, variants=True)


SHOPS = (
    Shop("fashion", "fashion", TRAINED, "products that were not trained on; texts made by a script", "test"),
    Shop("grocery", "grocery", TRAINED, "phone photos that were not trained on, of the products that were", "test"),
    Shop("ikea", "ikea", UNSEEN, "rooms and words for one thing in them → products; texts made by a script"),
    Shop("spree", "spree", UNSEEN, "pictures of a product in other colours → product", read=read_spree),
    Shop("spree variants", "spree", UNSEEN, 'picture and "in white" → that variant', read=_spree_variants),
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
        models: name → folder of a checkpoint, the first and what it is measured against.
        data: the folder of the shops' folders.
        work: where what is measured is kept by shop and model.
        shops: which shops. Default: `SHOPS`.
        batch_size (`int`): records a batch. Default 32.

    Returns: the content of the results file.
    """
    started = time.monotonic()
    loaded = {name: load_for_evaluation(path) for name, path in models.items()}
    names = (list(models)[0], list(models)[1])
    files = (path for folder in _CODE for path in sorted((PROJECT_ROOT / folder).rglob("*.py")))
    code = _digest(*(path.read_bytes() for path in files if path.name != Path(__file__).name))
    results: dict[str, Any] = {"models": dict(models), "shops": {}}
    for shop in shops:
        tables = shop.read(data / shop.folder).select(shop.split)
        content = pickle.dumps((tables.products, tables.queries))
        rows = {}
        for name, (model, processor) in loaded.items():
            weights = (path.read_bytes() for path in sorted(Path(models[name]).glob("*.safetensors")))
            digest = _digest(code.encode(), config_digest(model).encode(), content, *weights)
            made = functools.partial(measure, model, processor, tables, batch_size=batch_size)
            rows[name] = _kept(work / f"{shop.name.replace(' ', '_')}-{digest}.pkl", made)
            print(f"{shop.name}: {name} measured, {time.monotonic() - started:.0f} s", flush=True)
        results["shops"][shop.name] = {
            "seen": shop.seen,
            "what": shop.what,
            "split": shop.split,
            "products": len(tables.products),
            "queries": len(tables.queries),
            "rows": compare_rows(rows[names[0]], rows[names[1]], names),
        }
    results["words"] = in_words(results)
    results["provenance"] = provenance(0, batch_size=batch_size)
    return results


def _digest(*parts: bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()[:16]


def _kept(path: Path, make: Callable[[], list[Row]]) -> list[Row]:
    """What was measured before, or now: written whole, then renamed."""
    if path.is_file():
        return pickle.loads(path.read_bytes())  # our own file
    rows = make()
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_bytes(pickle.dumps(rows))
    partial.replace(path)
    return rows


# ---------------------------------------------------------------------------------------------------------------------
# In words and as a table


def in_words(results: Mapping[str, Any]) -> list[str]:
    """Say in sentences, from the rows alone, how often each model is ahead: by what was seen, and by task."""
    first, second = results["models"]
    sentences = []
    for seen in (TRAINED, UNSEEN):
        rows = [row for shop in results["shops"].values() if shop["seen"] == seen for row in _counted(shop["rows"])]
        for task in ("retrieval", "classification", "attributes"):
            ahead = Counter(row["ahead"] for row in rows if row["task"] == task)
            if total := ahead.total():
                sentences.append(
                    f"Shops {seen}, {task}: of {total} rows {first} is ahead in {ahead[first]}, {second} in {ahead[second]}; in "
                    f"{ahead[None]} the paired interval holds 0."
                )
    return sentences


def _counted(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The rows that sentences count: R@10 of each search, each level of categories, the mean of the attribute keys."""
    return [
        row for row in rows if row["metric"] == "R@10" or row["task"] == "classification" or row["what"] == MEAN_OF_KEYS
    ]


def table(results: Mapping[str, Any], *, short: bool = False, style: str = "github") -> str:
    """One line a row: both models with their intervals, the paired difference and who is ahead.

    Args:
        results: as `run_study` returns them.
        short (`bool`): R@10 (nDCG@10 of graded answers), categories and the mean of the attribute keys alone. Default False.
        style (`str`): a format of tabulate.
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
                    f"{_what(row)}, {row['metric']}",
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


def _what(row: Mapping[str, Any]) -> str:
    if row["task"] == "retrieval":
        return ARROWS[row["what"]] + f" ({row['queries']} of {row['choices']})"
    labels = "" if row["choices"] is None else f", {row['choices']} labels"
    kind = "category" if row["task"] == "classification" else "attribute"
    return f"{kind} {row['what']}{labels}" + (", picture alone" if row["form"] == "i" else "")


def _percent(score: Mapping[str, Any]) -> str:
    low, high = score["interval"]
    return f"{100 * score['value']:.1f} ({100 * low:.1f}–{100 * high:.1f})"


def markdown(results: Mapping[str, Any]) -> str:
    """The page beside the results file."""
    first, second = results["models"]
    shops = [f"- {name} ({shop['seen']}): {shop['what']}." for name, shop in results["shops"].items()]
    return "\n".join(
        [
            f"# {first} and {second} on several shops",
            "",
            *shops,
            "",
            f"Values in per cent with 95 % bootstrap intervals. The difference is {first} minus {second}. Its interval is "
            "paired: queries (for labels: products) are drawn again for both models together. A model is ahead where that "
            "interval leaves out 0; of rows without a difference, about one in twenty does so by chance. A direction is "
            "followed by the number of queries and of products in the gallery. Rows of fewer than 20 queries are left out.",
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
        models: two, by what they are called → folder of the checkpoint.
        data: folder of the shops' folders.
        output: the results file, .json.
        work: keeps what is measured.
        names: of the shops that are measured. Default: all.

    Returns:
        The results.

    Raises:
        OptionError: another ending of `output`, or one name for both models.
    """
    if output.suffix != ".json":
        raise OptionError(f"--output {output}; expected a .json file")
    if len(models) < 2:
        raise OptionError("--first and --second have one name; expected two names")
    output.parent.mkdir(parents=True, exist_ok=True)
    results = run_study(models, data, work, shops=[shop for shop in SHOPS if not names or shop.name in names])
    text = json.dumps(results, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    output.write_text(text, encoding="utf-8")
    output.with_suffix(".md").write_text(markdown(results), encoding="utf-8")
    return results
