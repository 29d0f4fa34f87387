"""Fine-tune a model on a shop's tables: mine hard negatives, train an adapter, and report recall before and after.

    moon3 shop --data my_shop --output runs/my_shop
    moon3 shop --products products.csv --interactions log.csv --images pictures/ --output runs/my_shop

The folder holds products.{csv,jsonl,parquet} and interactions.* (query, query_image, product_id, action, count, time) or
queries.*. --key value replaces any key of the recipe. Run the same command again to resume after an interruption.
OUTPUT/report.md lists what was read and left out, and recall before and after, with pictures of searches beside it.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate

from evaluation.benchmarks.retrieval import search_examples
from evaluation.contact_sheets import contact_sheet
from evaluation.report import comparison_table
from processing_moon import ProductError, open_image
from product_data.atomic_files import read_lines, write_atomically
from product_data.reading import ReadingOptions
from product_data.table_files import SUFFIXES
from product_data.tables import ProductRow, ProductTables, TableError, load_tables
from retrieval.encode import VectorCache, load_for_evaluation
from retrieval.shortened import describe_part, shortened_sentence, shortened_summary
from training.assembly.sources import with_held_out_queries
from training.assembly.starting_model import load_start, prepare_base
from training.mining.hard_negatives import MiningOptions
from training.mining.mine import QUERIES_FILE, MiningJob, mine, report_text, write_queries
from training.places import RECIPES
from training.recipe.arguments import Recipe, RecipeError, parse_recipe
from training.recipe.data import interaction_options
from training.runs.exact_resumption import ResumeError
from training.runs.folder import RunFolder
from training.runs.lock import alone_in
from training.runs.progress_bars import progress_bars
from training.runs.run import Run
from training.train import train

RECIPE = RECIPES / "shop.yaml"
REPORT_FILE = "report.md"
SIDES = ("before", "after")
_METRICS = ("R@1", "R@5", "R@10")
_LARGEST_PICTURED_GALLERY = 2000  # products in the gallery of the pictured searches
_PICTURED_SEARCHES = 6
_FEW_SEARCHES = 100  # the report warns about fewer held-out searches
_OUTPUT_DIR = re.compile(r"(?<![\w/.-])(?:--)?output_dir\b")  # the key in an error of the training, but not in a path
_LISTED = 50  # entries in one list of the report


def shop(
    source: str | Path | dict[str, str],
    output: Path,
    overrides: Sequence[str],
    mining: MiningOptions,
    reading: ReadingOptions | None = None,
) -> Path:
    """Mine hard negatives, train, and write the report; steps finished by an earlier call are kept.

    Args:
        source: a folder, or the tables by name, as `product_data.tables.load_tables` reads them.
        output: folder to write: mined/, run/ (run/final is the model, run/adapter the adapter), the report.
        overrides: recipe keys, `--key value`; `--overwrite` deletes the results of an earlier call.
        mining: the filters against false negatives.
        reading: options for reading cells. Default: `ReadingOptions()`.

    Returns:
        The path of the report.

    Raises:
        TableError: the tables cannot be used.
        RecipeError: a key cannot be used, or the output was made with other keys or is in use by another process.
        MiningError: the output was made with other tables.
    """
    with _errors_name_output_option():
        requested = parse_recipe([str(RECIPE), *overrides])
        with progress_bars(not requested.training.disable_tqdm), alone_in(output, requested.training):
            return _from_tables_to_report(source, output, overrides, mining, requested, reading or ReadingOptions())


def _from_tables_to_report(
    source: str | Path | dict[str, str],
    output: Path,
    overrides: Sequence[str],
    mining: MiningOptions,
    requested: Recipe,
    reading: ReadingOptions,
) -> Path:
    mined = output / "mined"
    print("1/5  Reading the tables and all pictures", flush=True)
    overwrite = requested.training.overwrite
    reading = replace(reading, interactions=interaction_options(requested.data))
    tables = read_shop(source, reading)
    print(tables.report, flush=True)
    if overwrite or not (mined / QUERIES_FILE).is_file():
        mined.mkdir(exist_ok=True)
        write_queries(tables.queries, {}, mined)  # the recipe names this file, and mining fills it
    recipe = _recipe(source, {"name": tables.name, **reading.as_entry()}, output, overrides)
    run = Run(recipe)
    with run.removed_on_failure():
        run.open()  # refuses other values, and clears the folder with --overwrite
        print("2/5  Preparing the base model", flush=True)
        start = prepare_base(run, [tables.select(recipe.data.split)])
        model, processor = load_start(run, start, on_gpu=torch.cuda.is_available())
    model = model.to(recipe.training.device)
    print("3/5  Mining hard negatives with the base model", flush=True)
    batch_size = recipe.training.per_device_eval_batch_size
    shown = not recipe.training.disable_tqdm
    job = MiningJob(mined, recipe.data.split, batch_size, overwrite=overwrite, options=mining, progress=shown)
    facts = mine(model, processor, tables, job, str(start))
    print(report_text(facts), flush=True)
    pictures = {"before": _draw(model, processor, tables, recipe, output, "before")}
    del model
    print("4/5  Training, and measuring recall before and after", flush=True)
    train(run)
    print("5/5  Writing the report", flush=True)
    pictures["after"] = _draw(*load_for_evaluation(run.folder.final), tables, recipe, output, "after")
    path = output / REPORT_FILE
    write_atomically(path, write_report(tables, facts, _results(run.folder), pictures, Models(run.folder, start)))
    return path


def read_shop(source: str | Path | dict[str, str], reading: ReadingOptions | None = None) -> ProductTables:
    """Read a shop's tables and open every picture; hold out a fifth of the searches if the tables have no splits.

    Args:
        source: a folder, or the tables by name.
        reading: options for reading cells, and for weighting interactions.

    Raises:
        TableError: the tables cannot be used, have no searches, or have no product whose pictures can be opened.
    """
    tables = load_tables(source, check_images=True, reading=reading)
    tables.report.raise_if_fatal()
    if not tables.queries:
        raise TableError(
            f"{tables.name}: found no searches; expected interactions.* or queries.* beside products.*; "
            "training/train.py can train without searches, on queries derived from products"
        )
    if not any(map(_can_be_opened, tables.products)):
        raise TableError(
            f"{tables.report}\n{tables.name}: found no product whose pictures can be opened; expected paths relative "
            "to the folder of the table, or with --products relative to the folder of --images"
        )
    tables = with_held_out_queries(tables)
    return replace(tables, report=replace(tables.report, splits=tables.splits))


def _can_be_opened(row: ProductRow) -> bool:
    try:
        for image in row.images:
            open_image(image)
    except ProductError:
        return False
    return True


def _recipe(
    source: str | Path | dict[str, str], entry: dict[str, Any], output: Path, overrides: Sequence[str]
) -> Recipe:
    """Write and parse the recipe with the shop's products and the mined queries."""
    if isinstance(source, dict):
        parts = {key: source[key] for key in ("products", "images") if key in source}
    else:
        parts = {"products": str(_products_of(Path(source))[0])}
    entry = {**parts, "queries": str(output / "mined" / QUERIES_FILE), **entry}
    recipe_file = output / "recipe.yaml"
    write_atomically(recipe_file, json.dumps({"extends": str(RECIPE), "data": [entry]}, indent=1) + "\n")
    return parse_recipe([str(recipe_file), "--output_dir", str(output / "run"), *overrides])


def _products_of(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.glob("products.*")) if path.suffix in SUFFIXES]


def _draw(model: Any, processor: Any, tables: ProductTables, recipe: Recipe, output: Path, when: str) -> Path | None:
    """Draw some held-out searches and their nearest products; return None if no held-out search has an answer."""
    part = tables.select(recipe.training.evaluate_split)
    answers = {name for query in part.queries for name in query.positives}
    products = sorted(part.products, key=lambda row: row.product_id not in answers)[:_LARGEST_PICTURED_GALLERY]
    settings = {"batch_size": recipe.training.per_device_eval_batch_size, "progress": not recipe.training.disable_tqdm}
    cache = VectorCache(model, processor, products, part.queries, **settings)
    examples = search_examples(cache, count=_PICTURED_SEARCHES)
    if not examples:
        return None
    return contact_sheet(examples, output / f"searches_{when}.png", title=f"Held-out searches, {when} training")


def _results(run: RunFolder) -> list[dict[str, Any]]:
    """Return the results before and after training that the run holds."""
    paths = [run.results(when) for when in SIDES]
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths if path.is_file()]


@dataclass(frozen=True)
class Models:
    """The models that a report lists, with paths relative to the folder of the report.

    Args:
        run: folder of the training.
        start: the model that the training started from.
    """

    run: RunFolder
    start: Path

    def describe(self) -> list[str]:
        """Return how to load the trained model, and its adapter if it has one."""
        final, adapter = self._from_report(self.run.final), self.run.adapter
        lines = [
            f"- Fine-tuned model: `{final}`. Load it with `SentenceTransformer({final!r}, trust_remote_code=True)` "
            f"(sentence_transformers) or `AutoModel.from_pretrained({final!r}, trust_remote_code=True)` (transformers)."
        ]
        if adapter.is_dir():
            base, path = self._from_report(self.start), self._from_report(adapter)
            lines.append(
                f"- Adapter: `{path}`. Load it with `PeftModel.from_pretrained(AutoModel.from_pretrained({base!r}, "
                f"trust_remote_code=True), {path!r})` (peft). It is already merged into the fine-tuned model."
            )
        return lines

    def _from_report(self, path: Path) -> str:
        """Return a path relative to the report's folder, or unchanged if it is outside this folder."""
        report, path = self.run.path.parent.resolve(), path if not path.exists() else path.resolve()
        return str(path.relative_to(report)) if path.is_relative_to(report) else str(path)


def write_report(
    tables: ProductTables,
    mined: dict[str, Any],
    results: Sequence[dict[str, Any]],
    pictures: dict[str, Path | None],
    models: Models,
) -> str:
    """Return the report as Markdown.

    Args:
        tables: the shop's tables.
        mined: the report of mining.
        results: the results before and after training.
        pictures: the sheets of searches before and after training.
        models: the models of the training.
    """
    splits = Counter(row.split for row in tables.queries)
    lines = [f"# {tables.name}", "", "## The model", "", *models.describe(), "", "## What was read", ""]
    lines += [f"{len(tables.products)} products, {tables.interactions} interactions, {len(tables.queries)} searches"]
    lines[-1] += f" ({', '.join(f'{split}: {count}' for split, count in sorted(splits.items()))})."
    lines += ["", *(f"- {issue}" for issue in tables.report.issues)] if tables.report.issues else []
    lines += ["", "## Hard negatives", ""]
    rows = [[f"{count} negatives", queries] for count, queries in mined["negatives"].items()]
    rows += [[f"fewer than requested: {reason}", queries] for reason, queries in mined["reasons"].items()]
    lines += [tabulate(rows, headers=["training searches with", "number"], tablefmt="github")]
    lines += ["", "## Before and after", ""]
    if len(results) == len(SIDES):
        lines += _tables_of(results, splits[results[-1]["provenance"]["split"]])
    else:
        lines += ["Not measured: evaluate_before or evaluate_after is off."]
    left_out = _left_out(mined, results)
    lines += ["", "## What could not be encoded", ""]
    lines += [f"- {entry}" for entry in left_out[:_LISTED]] or ["Nothing."]
    lines += [f"- … and {len(left_out) - _LISTED} more"] if len(left_out) > _LISTED else []
    lines += ["", "## What was cut to fit the token budget", "", *_cut(mined, results, models.run)]
    lines += ["", "## Searches", ""]
    lines += [f"![{when}]({path.name})" for when, path in pictures.items() if path is not None] or [
        "No held-out answer."
    ]
    return "\n".join(lines) + "\n"


def _tables_of(results: Sequence[dict[str, Any]], held_out: int) -> list[str]:
    lines = ["Recall over the held-out searches and by chance, in per cent with 95 % intervals.", ""]
    if held_out < _FEW_SEARCHES:
        lines += [f"Only {held_out} searches are held out: differences within the intervals are not significant.", ""]
    for metric in _METRICS:
        lines += [comparison_table(results, names=SIDES, metric=metric), ""]
    return [*lines, *(f"WARNING: {warning}" for warning in results[-1].get("warnings", []))]


def _left_out(mined: dict[str, Any], results: Sequence[dict[str, Any]]) -> list[str]:
    """Return each product or search that mining or the evaluation could not encode, without duplicates."""
    unread = [(kind, entry["item"], entry) for kind, entries in mined["unreadable"].items() for entry in entries]
    unread += [(entry["kind"], entry["id"], entry) for result in results for entry in result["skipped"]]
    lines = {(kind, name): f"{kind} {name}, {entry['field']}: {entry['reason']}" for kind, name, entry in unread}
    return list(lines.values())


def _cut(mined: dict[str, Any], results: Sequence[dict[str, Any]], run: RunFolder) -> list[str]:
    """Return sentences on how many queries and products were cut in mining and in training, with the first of them."""
    stages = {"mining": mined["shortened"], "training": shortened_summary(read_lines(run.shortened))}
    stages |= {f"evaluation {when}": found.get("shortened") for when, found in zip(SIDES, results, strict=False)}
    cut = {stage: summary for stage, summary in stages.items() if summary and summary["items"]}
    lines = [
        f"- {stage}: {shortened_sentence(summary, mined['max_tokens'])}"
        for stage, summary in cut.items()
        if stage in ("mining", "training")  # the sentence of the evaluation is beside its recall
    ]
    first = shortened_summary(entry for summary in cut.values() for entry in summary["first"])["first"]
    return [*lines, *(f"- {describe_part(entry)}" for entry in first)] or ["Nothing."]


def tables_of(folder: str | None, tables: dict[str, str]) -> str | dict[str, str]:
    """Return the source of a shop's tables: their folder, or the tables by name.

    Raises:
        RecipeError: both or neither of them are given, or the tables or the folder lack products.
    """
    if (folder is None) == (not tables):
        raise RecipeError("give either --data FOLDER, or --products FILE …; not both")
    if folder is None and "products" not in tables:
        raise RecipeError(f"found {', '.join(tables)} without products; expected --products as well")
    if folder is not None and not _products_of(Path(folder)):
        raise RecipeError(f"{folder}: found no products{{{','.join(SUFFIXES)}}}; expected a folder with this file")
    return folder or tables


@contextmanager
def _errors_name_output_option() -> Iterator[None]:
    """Replace the key output_dir in error messages of the training by `--output`, the option of this command."""
    try:
        yield
    except (RecipeError, ResumeError) as error:
        raise type(error)(re.sub(_OUTPUT_DIR, "--output", str(error))) from error
