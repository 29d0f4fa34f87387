"""Compare two models on several shops, those that they were trained on and others, over all tasks, with paired intervals.

python -m evaluation.shops_study --data ../shared/data --first Moon=runs/shops_moon1/final \
    --second "dual tower=runs/shops_dual_tower/final" --output results/shops_study.json

Writes the rows as JSON, and as a Markdown table beside it. What was measured is kept by shop and model in `--work`: the same
command goes on where it stopped, and measures again what other weights, data or code would change.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import pickle
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tabulate import tabulate

from evaluation.data.spree import read_spree
from evaluation.data.tables import ProductTables, load_tables
from evaluation.encode import VectorCache, config_digest, load_for_evaluation
from evaluation.paired_rows import MEAN_OF_KEYS, Row, all_rows, compare_rows
from evaluation.provenance import PROJECT_ROOT, provenance

_CODE = ("modeling_moon", "processing_moon", "evaluation")
TRAINED, UNSEEN = "trained on", "never seen"
_ARROWS = {"t2mm": "t→mm", "i2mm": "i→mm", "mm2mm": "mm→mm", "t2i": "t→i", "i2t": "i→t", "i2i": "i→i", "mm2i": "mm→i"}


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
        return _ARROWS[row["what"]] + f" ({row['queries']} of {row['choices']})"
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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m evaluation.shops_study", description="Compare two models on several shops."
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of the shops' folders")
    parser.add_argument("--first", required=True, metavar="NAME=FOLDER", help="a checkpoint and what it is called")
    parser.add_argument("--second", required=True, metavar="NAME=FOLDER", help="what it is measured against")
    parser.add_argument("--shops", nargs="+", choices=[shop.name for shop in SHOPS], help="some of them (default: all)")
    parser.add_argument(
        "--output", type=Path, required=True, help="results file (.json); the page is written beside it"
    )
    parser.add_argument("--work", type=Path, default=Path("runs/shops_study"), help="keeps what is measured")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the study from the command line; returns the exit status, 2 for what the user can put right."""
    chosen = _parser().parse_args(arguments)
    try:
        return _run(chosen)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _run(chosen: argparse.Namespace) -> int:
    if chosen.output.suffix != ".json":
        raise ValueError(f"--output {chosen.output}; accepted: a .json file")
    models = dict(_named(option, value) for option, value in (("--first", chosen.first), ("--second", chosen.second)))
    if len(models) < 2:
        raise ValueError(f"--first {chosen.first} and --second {chosen.second} have one name; accepted: two names")
    chosen.output.parent.mkdir(parents=True, exist_ok=True)
    shops = [shop for shop in SHOPS if not chosen.shops or shop.name in chosen.shops]
    results = run_study(models, chosen.data, chosen.work, shops=shops)
    text = json.dumps(results, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    chosen.output.write_text(text, encoding="utf-8")
    chosen.output.with_suffix(".md").write_text(markdown(results), encoding="utf-8")
    print(table(results, short=True), *results["words"], sep="\n")
    return 0


def _named(option: str, value: str) -> tuple[str, str]:
    name, separator, folder = value.partition("=")
    if not (name and separator and folder):
        raise ValueError(f"{option} {value}; accepted: NAME=FOLDER")
    return name, folder


if __name__ == "__main__":
    sys.exit(main())
