"""Find and open the public data sets by name: each file of `evaluation/benchmarks/` with a function `load` is one.

moon3 evaluate --model DIR --benchmark mbe mbe=rows.jsonl triplets=my_rows.parquet [--columns query.title=keyword]
    [--sample 1000] [--no-fetch] [--cutoffs 1,5,10]

A file has `HUB`, the id of the data set on the hub or None, `CUTOFFS`, the k of R@k that its papers report, and
`load(place, options) -> ProductTables`.
"""

from __future__ import annotations

import importlib
import json
import pkgutil
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import evaluation.benchmarks
from product_data.errors import OptionError
from product_data.rows import ProductRow
from product_data.tables import ProductTables, TableError
from product_data.triplets import TripletOptions


def names() -> list[str]:
    """Return the names of the data sets."""
    found = [module.name for module in pkgutil.iter_modules(evaluation.benchmarks.__path__)]
    return [name for name in found if hasattr(_module(name), "load")]


def named_source(source: str) -> tuple[str, str | None] | None:
    """Return (name, place) of "mbe" or "mbe=PLACE"; None for what is no data set's name.

    A file or folder that is there and is called like a data set is a file or folder.
    """
    name, _, place = source.partition("=")
    if name not in names() or (not place and Path(source).exists()):
        return None
    return name, place or None


def load_data_set(source: str, options: TripletOptions | None = None, *, labels: Path | None = None) -> ProductTables:
    """Open a data set by name.

    Args:
        source: "mbe", which is opened from the hub, or "mbe=PLACE": a file, a folder or another id of the hub.
        options: how its rows are read.
        labels: a JSON file {"categories": [[level, …], …], "attributes": {key: [value, …]}} whose labels count too.

    Raises:
        OptionError: no such data set, or one that has no place on the hub and was given none.
        TableError: what cannot be opened.
    """
    found = named_source(source)
    if found is None:
        raise OptionError(f"benchmark {source!r}; expected one of {', '.join(names())}")
    name, place = found
    module = _module(name)
    if place is None and module.HUB is None:
        raise OptionError(
            f"benchmark {name!r} has no place on the hub that is known here; expected {name}=FILE, FOLDER or ID"
        )
    tables: ProductTables = module.load(place or module.HUB, options or TripletOptions())
    return replace(tables, labels=(*tables.labels, *read_labels(labels))) if labels is not None else tables


def cutoffs_of(name: str) -> tuple[int, ...] | None:
    """Return the k of R@k that the papers of a data set report, or None for one that is not among them."""
    return _module(name).CUTOFFS if name in names() else None


def read_labels(path: Path) -> tuple[ProductRow, ...]:
    """Return the labels of a file as rows that have nothing else; see `load_data_set`.

    Raises:
        TableError: a file that is not there or not of this form.
    """
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
        categories = [tuple(map(str, levels)) for levels in said.get("categories", [])]
        attributes = {str(key): tuple(map(str, values)) for key, values in said.get("attributes", {}).items()}
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise TableError(
            f"{path}: {error}; expected JSON {{'categories': [[level, …], …], 'attributes': {{key: [value, …]}}}}"
        ) from error
    return (*(ProductRow("", category=levels) for levels in categories), ProductRow("", attributes=attributes))


def _module(name: str) -> ModuleType:
    return importlib.import_module(f"evaluation.benchmarks.{name}")
