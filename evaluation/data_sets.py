"""Find and open public data sets by name: each file of `evaluation/benchmarks/` with a function `load` is a data set.

moon3 evaluate --model DIR --benchmark mbe mbe=rows.jsonl triplets=my_rows.parquet [--columns query.title=keyword]
    [--sample 1000] [--no-fetch] [--cutoffs 1,5,10]

Each file defines `HUB` (the id of the data set on the hub, or None), `CUTOFFS` (the k of R@k that its papers report)
and `load(place, options) -> ProductTables`.
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
    modules = [module.name for module in pkgutil.iter_modules(evaluation.benchmarks.__path__)]
    return [name for name in modules if hasattr(_module(name), "load")]


def named_source(source: str) -> tuple[str, str | None] | None:
    """Return (name, place) of "mbe" or "mbe=PLACE"; None if the name is not that of a data set.

    An existing file or folder with the name of a data set takes precedence over the data set.
    """
    name, _, place = source.partition("=")
    if name not in names() or (not place and Path(source).exists()):
        return None
    return name, place or None


def load_data_set(source: str, options: TripletOptions | None = None, *, labels: Path | None = None) -> ProductTables:
    """Open a data set by name.

    Args:
        source: "mbe", which is opened from the hub, or "mbe=PLACE": a file, a folder or another id on the hub.
        options: options for reading its rows.
        labels: a JSON file {"categories": [[level, …], …], "attributes": {key: [value, …]}} with additional labels.

    Raises:
        OptionError: no such data set, or a data set that is not on the hub and for which no place is given.
        TableError: a data set that cannot be opened.
    """
    name_and_place = named_source(source)
    if name_and_place is None:
        raise OptionError(f"benchmark: found {source!r}; expected one of {', '.join(names())}")
    name, place = name_and_place
    module = _module(name)
    if place is None and module.HUB is None:
        raise OptionError(f"benchmark {name!r} has no known place on the hub; expected {name}=FILE, FOLDER or ID")
    tables: ProductTables = module.load(place or module.HUB, options or TripletOptions())
    return replace(tables, labels=(*tables.labels, *read_labels(labels))) if labels is not None else tables


def cutoffs_of(name: str) -> tuple[int, ...] | None:
    """Return the k of R@k that the papers of a data set report, or None for any other data set."""
    return _module(name).CUTOFFS if name in names() else None


def read_labels(path: Path) -> tuple[ProductRow, ...]:
    """Return the labels of a file as products without other fields; see `load_data_set`.

    Raises:
        TableError: a missing file, or a file in an unknown format.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        categories = [tuple(map(str, levels)) for levels in content.get("categories", [])]
        attributes = {str(key): tuple(map(str, values)) for key, values in content.get("attributes", {}).items()}
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise TableError(
            f"{path}: {error}; expected JSON {{'categories': [[level, …], …], 'attributes': {{key: [value, …]}}}}"
        ) from error
    return (*(ProductRow("", category=levels) for levels in categories), ProductRow("", attributes=attributes))


def _module(name: str) -> ModuleType:
    return importlib.import_module(f"evaluation.benchmarks.{name}")
