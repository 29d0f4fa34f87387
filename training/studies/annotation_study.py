"""Measure what a chat model writes about real products: whether it can be parsed, whether it agrees with labels, its cost.

moon3 annotation-study --model MODEL --data FOLDER [FOLDER …] [--products 32] [--output FILE.json] [--run-folder DIR]

The model sees the title and the description of a product, and neither its category nor its attributes, which are the labels. Run
the same command again to resume: answers are in the journals of `training.labels.annotate`. After every data set, the results so
far are written as JSON and as Markdown beside it.

Shape suffixes: P products.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate

from evaluation.metrics import bootstrap_interval_of
from evaluation.provenance import provenance
from processing_moon.reasoning_moon import REASONING_KEYS
from product_data.atomic_files import read_lines, write_atomically
from product_data.attribute_keys import as_attributes, facts_of
from product_data.outputs import require_writable_file, require_writable_folder
from product_data.synonyms import ValueIndex, canonical_attributes, mentions, states
from product_data.tables import ProductRow, load_tables
from training.labels.annotate import JOURNAL_SUFFIX, Writer, WritingError, WritingJob, write_attributes

_PER = 1000
Canonical = Mapping[str, frozenset[str]]
_COUNTS = ("labels", "stated", "written", "right", "right_stated", "values", "unseen")


def chosen_products(products: Sequence[ProductRow], count: int, seed: int) -> list[ProductRow]:
    """Return products with a title or a description and with labels, drawn by `seed`, in the order of the table.

    Args:
        products: of a table.
        count: the number of products to draw; all, if there are fewer.
        seed: of the draw.

    Raises:
        WritingError: no product has both.
    """
    able = [row for row in products if shown_text(row) and facts_of(row.attributes, row.category)[0]]
    if not able:
        raise WritingError("data: found no product with a text and an attribute or category; expected at least one")
    drawn = sorted(np.random.default_rng(seed).permutation(len(able))[:count].tolist())
    return [able[place] for place in drawn]


def shown_text(row: ProductRow) -> str:
    """Return the text of a product that the model sees."""
    return "\n".join(part for part in (row.title, row.description) if part.strip())


def without_labels(row: ProductRow) -> ProductRow:
    """Return a product without what the model should write."""
    hidden: dict[str, Any] = {"category": (), "attributes": {}, "attributes_image": None, "attributes_text": None}
    return dataclasses.replace(row, **hidden)


def agreement(
    products: Sequence[ProductRow], written: Mapping[str, Canonical], resamples: int = 1000, seed: int = 0
) -> dict[str, Any]:
    """Compare written attributes with the labels of products.

    Keys and values are compared as in the attribute reward (`product_data.synonyms`). A product whose answer could not be parsed
    has written nothing. Our design (precedent: OpenTag, arXiv 1806.01264, evaluates extraction by precision, recall and F1).

    Args:
        products: with their labels.
        written: product id → key → values, both as in `canonical_attributes`.
        resamples, seed: of the bootstrap over products.

    Returns: "precision", of the written values whose key has a label; "recall" of all labels; "recall_stated", of the labels that
    the text states; "f1" of the first two; each with its 95 % interval; "unseen", the share of written values that do not occur
    in the text; "by_key": key → labels, written, right; and the counts of all.
    """
    counted = [_counts(row, written.get(row.product_id, {})) for row in products]
    count_PC = np.array([[one[name] for name in _COUNTS] for one in counted], dtype=np.float64)
    found: dict[str, Any] = {name: int(total) for name, total in zip(_COUNTS, count_PC.sum(axis=0), strict=True)}
    found["products"] = len(products)
    for name, (part, whole) in _SHARES.items():
        statistic = _share(part, whole)
        interval = bootstrap_interval_of(statistic, count_PC, resamples=resamples, seed=seed)
        found[name] = {"mean": statistic(count_PC), "interval": list(interval)}
    interval = bootstrap_interval_of(_f1, count_PC, resamples=resamples, seed=seed)
    found["f1"] = {"mean": _f1(count_PC), "interval": list(interval)}
    keys = {key: [one["by_key"][key] for one in counted if key in one["by_key"]] for key in REASONING_KEYS}
    names = ("labels", "written", "right")
    found["by_key"] = {
        key: dict(zip(names, map(int, np.sum(rows, axis=0)), strict=True)) for key, rows in keys.items() if rows
    }
    return found


_SHARES = {
    "precision": ("right", "written"),
    "recall": ("right", "labels"),
    "recall_stated": ("right_stated", "stated"),
    "unseen": ("unseen", "values"),
}


def _share(part: str, whole: str) -> Callable[[np.ndarray], float]:
    first, second = _COUNTS.index(part), _COUNTS.index(whole)

    def share(count_PC: np.ndarray) -> float:
        total = count_PC[:, second].sum()
        return float(count_PC[:, first].sum() / total) if total else 0.0

    return share


def _f1(count_PC: np.ndarray) -> float:
    right, total = (count_PC[:, _COUNTS.index(name)].sum() for name in ("right", "labels"))
    total += count_PC[:, _COUNTS.index("written")].sum()
    return float(2 * right / total) if total else 0.0


def _counts(row: ProductRow, written: Canonical) -> dict[str, Any]:
    text, labels = shown_text(row), labels_of(row)
    pairs = {(key, value) for key, values in labels.items() for value in values}
    stated = {(key, value) for key, value in pairs if states(text, key, value)}
    compared = {(key, value) for key in labels for value in written.get(key, ())}
    values = [(key, value) for key, values in written.items() for value in values]
    by_key = {
        key: (len(labels[key]), len(written.get(key, ())), len(labels[key] & written.get(key, frozenset())))
        for key in labels
    }
    return {
        "labels": len(pairs),
        "stated": len(stated),
        "written": len(compared),
        "right": len(pairs & compared),
        "right_stated": len(stated & compared),
        "values": len(values),
        "unseen": sum(not mentions(text, key, value) for key, value in values),
        "by_key": by_key,
    }


def labels_of(row: ProductRow) -> Canonical:
    """Return the labels of a product under the ten keys of MBE, as in `canonical_attributes`."""
    return canonical_attributes(as_attributes(facts_of(row.attributes, row.category)[0]))


def cost(journal: Path, ids: Sequence[str]) -> dict[str, Any]:
    """Return the share of answers that could be parsed, and the cost of 1,000 products, from a journal.

    Args:
        journal: of `training.labels.annotate`; products that look the same have a single answer.
        ids: the products that were asked about.
    """
    lines = [line for line in read_lines(journal)[1:] if line["product_id"] in set(ids)]
    first = [line for line in lines if line["attempt"] == 1]
    last = {line["shown"]: line for line in lines}
    total = {name: sum(line[name] for line in lines) for name in ("seconds", "prompt_tokens", "tokens")}
    return {
        "answers": len(last),
        "attempts": len(lines),
        "well_formed_first": sum(not line["problem"] for line in first) / len(first),
        "well_formed": sum(not line["problem"] for line in last.values()) / len(last),
        "problems": _common_problems([line["problem"] for line in lines if line["problem"]]),
    } | {f"{name}_per_1000": _PER * value / len(last) for name, value in total.items()}


def _common_problems(problems: Sequence[str]) -> dict[str, int]:
    """Return the kinds of problems, by the words before a quotation, the most frequent first."""
    kinds: dict[str, int] = {}
    for problem in problems:
        kind = problem.partition("'")[0].partition(":")[0].strip()
        kinds[kind] = kinds.get(kind, 0) + 1
    return dict(sorted(kinds.items(), key=lambda entry: -entry[1])[:5])


@dataclasses.dataclass(frozen=True)
class AnnotationStudy:
    """The options of a study.

    Args:
        model (`str`): the name of the model.
        products (`int`): the number of products of each data set. Default: 32.
        attempts, batch_size, seed: see `training.labels.annotate.WritingJob`. Default: 2, 8 and 0.
        overwrite (`bool`): start again. Default: False.
    """

    model: str
    products: int = 32
    attempts: int = 2
    batch_size: int = 8
    seed: int = 0
    overwrite: bool = False


def measure(data: str, writer: Writer, options: AnnotationStudy, folder: Path) -> dict[str, Any]:
    """Let a model write attributes of a data set's products, and return what was measured.

    Args:
        data: a data folder or products file.
        writer: answers questions about texts.
        options: of the study.
        folder: for the table and its journal.

    Returns: "name", "products", "model" and "rule": see `agreement`; the rule writes all values of the whole data set that the
    text states (`ValueIndex`), which a model does not know; "cost": see `cost`.

    Raises:
        WritingError: no product with a text and labels.
    """
    tables = load_tables(data)
    tables.report.raise_if_fatal()
    products = chosen_products(tables.products, options.products, options.seed)
    job = WritingJob(
        output=folder / f"{tables.name}.parquet",
        model=options.model,
        forms=("text",),
        batch_size=options.batch_size,
        attempts=options.attempts,
        seed=options.seed,
        overwrite=options.overwrite,
    )
    write_attributes([without_labels(row) for row in products], writer, job)
    journal = job.output.with_name(job.output.name + JOURNAL_SUFFIX)
    written = _written(job.output)
    known: dict[str, set[str]] = {key: set() for key in REASONING_KEYS}
    for row in tables.products:
        for fact in facts_of(row.attributes, row.category)[0]:
            known[fact.key].add(fact.value)
    index = ValueIndex(known)
    ruled = {row.product_id: index.stated(shown_text(row)) for row in products}
    return {
        "name": tables.name,
        "products": len(products),
        "model": agreement(products, written, seed=options.seed),
        "rule": agreement(products, ruled, seed=options.seed),
        "cost": cost(journal, [row.product_id for row in products]),
    }


def _written(table: Path) -> dict[str, Canonical]:
    import pyarrow.parquet

    found = {}
    for row in pyarrow.parquet.read_table(table).to_pylist():
        attributes: dict[str, list[str]] = {}
        for pair in row["attributes_text"] or ():
            attributes.setdefault(pair["key"], []).append(pair["value"])
        found[row["product_id"]] = canonical_attributes(attributes)
    return found


def study(
    data: Sequence[str], load: Callable[[], Writer], options: AnnotationStudy, output: Path, folder: Path
) -> dict[str, Any]:
    """Measure all data sets and write the results after each.

    Args:
        data: data folders or products files.
        load: returns the writer; called once, after the outputs are checked.
        options: of the study.
        output: JSON file; the Markdown file is written beside it.
        folder: for tables and journals.

    Raises:
        OutputError: a file cannot be written.
        WritingError: see `measure`.
    """
    for path in (output, output.with_suffix(".md")):
        require_writable_file("--output", path)
    require_writable_folder("--run-folder", folder)
    folder.mkdir(parents=True, exist_ok=True)
    writer = load()
    results: dict[str, Any] = {"model": options.model, "settings": dict(getattr(writer, "settings", {})), "data": []}
    results["settings"] |= {name: getattr(options, name) for name in ("products", "attempts", "batch_size")}
    for source in data:
        results["data"].append(measure(source, writer, options, folder))
        results["provenance"] = provenance(options.seed)
        output.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(output, json.dumps(results, indent=1, ensure_ascii=False) + "\n")
        write_atomically(output.with_suffix(".md"), markdown(results))
    return results


def markdown(results: Mapping[str, Any]) -> str:
    """Return the results as a page.

    Args:
        results: content of the JSON file.
    """
    rows, costs = [], []
    for one in results["data"]:
        for name in ("model", "rule"):
            found = one[name]
            cells = [_percent(found[share]) for share in ("precision", "recall_stated", "recall", "f1", "unseen")]
            rows.append([one["name"], name, one["products"], *cells])
        spent = one["cost"]
        shares = [f"{100 * spent[name]:.0f}" for name in ("well_formed_first", "well_formed")]
        numbers = [f"{spent[f'{name}_per_1000']:,.0f}" for name in ("seconds", "prompt_tokens", "tokens")]
        costs.append([one["name"], spent["answers"], spent["attempts"], *shares, *numbers])
    head = ["data", "writer", "products", "precision, %", "recall of stated labels, %", "recall of labels, %", "F1, %"]
    cost_head = [
        "data",
        "answers",
        "attempts",
        "parsed at first, %",
        "parsed, %",
        "seconds / 1,000",
        "tokens read / 1,000",
    ]
    tables = [
        tabulate(rows, [*head, "values not in the text, %"], tablefmt="github", disable_numparse=True),
        tabulate(costs, [*cost_head, "tokens written / 1,000"], tablefmt="github", disable_numparse=True),
    ]
    note = (
        "The model sees title and description; category and attributes are the labels. The rule writes every value of the whole "
        "data set that the text states. Brackets: 95 % intervals over products. Seconds are of this machine, see the JSON file."
    )
    return f"# Attributes written by {results['model']}\n\n{note}\n\n" + "\n\n".join(tables) + "\n"


def _percent(found: Mapping[str, Any]) -> str:
    low, high = found["interval"]
    return f"{100 * found['mean']:.0f} [{100 * low:.0f}, {100 * high:.0f}]"
