"""Read the data sets of a recipe, split tables without splits, and check for an overlap of training and evaluation.

A table without splits is split here, so that the evaluation after training uses products that were not trained on.
"""

import dataclasses
import functools
import hashlib
import json
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from product_data.duplicates import EqualProducts, classes
from product_data.tables import EVERY_SPLIT, ProductTables, TableError, load_tables
from training.batches.negatives import stable_id
from training.recipe.arguments import Recipe, RecipeError
from training.recipe.data import TABLE_KEYS, interaction_options, reading_of
from training.runs.run import Run

TRAIN, TEST = "train", "test"
_HELD_OUT_OF = 5  # one of five products (with its variants) is held out


def read_data(run: Run) -> list[ProductTables]:
    """Load every data set into memory and print its validation report.

    Args:
        run: the run. The `split` and `evaluate_split` of its recipe must have products. The keys "warnings" and
            "split_by_us" (the data sets that `with_splits` has split) are added to its facts.

    Raises:
        RecipeError: a data set does not have what the recipe requires.
        TableError: a data set cannot be used.
    """
    recipe = run.recipe
    tables: list[ProductTables] = []
    for entry in recipe.data.data:
        table = _named(recipe, entry, tables, "data")
        messages = [str(table.report)]
        if recipe.data.split != EVERY_SPLIT and set(table.splits) == {EVERY_SPLIT}:
            table = with_splits(table)
            run.facts.setdefault("split_by_us", []).append(table.name)
            messages.append(f"{table.name}: found no splits; split by group or product id: {_counts(table)}")
        messages += _check_splits(run, table)
        if run.is_first:
            print("\n".join(messages), flush=True)
        tables.append(table)
    return tables


def read_evaluated(run: Run) -> list[ProductTables]:
    """Load the data sets of `evaluate_data`, and print their validation reports.

    Args:
        run: the run. The `evaluate_split` of its recipe must have products.

    Raises:
        RecipeError: a data set does not have what the recipe requires.
        TableError: a data set cannot be used.
    """
    tables: list[ProductTables] = []
    for entry in run.recipe.data.evaluate_data or ():
        table = _named(run.recipe, entry, tables, "evaluate_data")
        _require_products(table, "evaluate_split", run.recipe.training.evaluate_split)
        run.say(str(table.report))
        tables.append(table)
    return tables


def evaluated_tables(recipe: Recipe) -> list[ProductTables]:
    """Load the data sets that the evaluations of a recipe use, without a run: those of `evaluate_data`, or of `data`.

    Args:
        recipe: the recipe. A table of `data` without splits is split as for a training.

    Raises:
        RecipeError: two data sets have one name.
        TableError: a data set cannot be used, or has no products in `evaluate_split`.
    """
    tables: list[ProductTables] = []
    key = "data" if recipe.data.evaluate_data is None else "evaluate_data"
    for entry in getattr(recipe.data, key):
        table = _named(recipe, entry, tables, key)
        if key == "data" and recipe.data.split != EVERY_SPLIT and set(table.splits) == {EVERY_SPLIT}:
            table = with_splits(table)
        _require_products(table, "evaluate_split", recipe.training.evaluate_split)
        tables.append(table)
    return tables


def _named(recipe: Recipe, entry: Any, others: Sequence[ProductTables], key: str) -> ProductTables:
    """Load a data set with its name, which no other may have."""
    source: Any = dict(entry) if isinstance(entry, dict) else {"path": entry}
    table = _load(recipe, source)
    table.report.raise_if_fatal()
    table = dataclasses.replace(table, name=source.get("name", table.name))
    if table.name in [other.name for other in others]:
        raise RecipeError(f"{key}: found two data sets named {table.name!r}; expected a name: for each of them")
    return table


def _load(recipe: Recipe, source: dict[str, Any]) -> ProductTables:
    if source.get("path") != "catalogue":
        parts = {key: source[key] for key in TABLE_KEYS if key in source}
        reading = reading_of(source, interaction_options(recipe.data))
        return load_tables(source.get("path") or parts, reading=reading)
    options: dict[str, Any] = dict(recipe.data.catalogue or {})  # type: ignore[arg-type]
    if recipe.training.disable_tqdm:
        options["progress"] = False
    try:
        return _catalogue(json.dumps(options, sort_keys=True))
    except (TypeError, ValueError) as error:
        raise RecipeError(f"catalogue: {error}") from error


@functools.lru_cache(maxsize=1)
def _catalogue(options: str) -> ProductTables:
    """Return the catalogue generated from these JSON options; it is cached for GRPO after its cold start."""
    return load_tables("catalogue", **json.loads(options))


def _check_splits(run: Run, table: ProductTables) -> list[str]:
    """Raise TableError for a split without products; return a warning if training and evaluation overlap."""
    recipe = run.recipe
    _require_products(table, "split", recipe.data.split)
    evaluates = recipe.training.evaluate_before or recipe.training.evaluate_after
    if not evaluates or recipe.data.evaluate_data is not None:
        return []
    _require_products(table, "evaluate_split", recipe.training.evaluate_split)
    warning = shared_with_evaluation(table, recipe.data.split, recipe.training.evaluate_split)
    if warning:
        run.facts.setdefault("warnings", []).append(warning)
    return [f"WARNING: {warning}"] if warning else []


def _require_products(table: ProductTables, key: str, split: str) -> None:
    if not table.select(split).products:
        raise TableError(f"{table.name}: {key}: found no products in split {split!r}; expected at least one")


def _counts(table: ProductTables) -> str:
    return ", ".join(f"{split} {products}/{queries}" for split, (products, queries) in sorted(table.splits.items()))


def with_splits(table: ProductTables) -> ProductTables:
    """Split a table without splits: a fifth of the products for "test", the rest for "train".

    The hash of a product's group, or of its id without a group, decides its split, so variants stay together and a
    product keeps its split when the shop grows. A query has the split of its first known answer. Our design.

    Args:
        table: a table whose rows all have the split "all".

    Returns:
        The table with splits; unchanged if it has fewer than two products or groups.
    """
    unit_of = {
        row.product_id: f"group {row.group}" if row.group else f"product {row.product_id}" for row in table.products
    }
    units: dict[str, int] = {unit: stable_id(unit) for unit in unit_of.values()}
    if len(units) < 2:
        return table
    by_hash = sorted(units, key=lambda unit: units[unit])
    held_out = {unit for unit in by_hash if units[unit] % _HELD_OUT_OF == 0} or {by_hash[0]}
    held_out -= set() if len(held_out) < len(units) else {by_hash[-1]}
    side = {product_id: TEST if unit in held_out else TRAIN for product_id, unit in unit_of.items()}

    def side_of(positives: tuple[str, ...]) -> str:
        return next((side[product_id] for product_id in positives if product_id in side), TRAIN)

    return dataclasses.replace(
        table,
        products=[dataclasses.replace(row, split=side[row.product_id]) for row in table.products],
        queries=[dataclasses.replace(row, split=side_of(row.positives)) for row in table.queries],
    )


def with_held_out_queries(table: ProductTables) -> ProductTables:
    """Split the queries of a table without splits: a fifth for "test", the rest for "train". Both have all products.

    This is for a shop that searches its present products: the gallery is the whole catalogue, and searches are held
    out. The hash of a query's id decides its split. Our design.

    Args:
        table: any table.

    Returns:
        The table with split queries; unchanged if products or queries have splits.

    Raises:
        TableError: fewer than two queries have an answer among the products.
    """
    if set(table.splits) - {EVERY_SPLIT}:
        return table
    products = {row.product_id for row in table.products}
    answerable = {
        row.query_id: stable_id(row.query_id) for row in table.queries if not products.isdisjoint(row.positives)
    }
    if len(answerable) < 2:
        raise TableError(
            f"{table.name}: found {len(answerable)} queries with an answer among the products; "
            "expected at least two, for training and for testing"
        )
    by_hash = sorted(answerable, key=lambda query_id: answerable[query_id])
    held_out = {query_id for query_id in by_hash if answerable[query_id] % _HELD_OUT_OF == 0} or {by_hash[0]}
    held_out -= set() if len(held_out) < len(answerable) else {by_hash[-1]}
    queries = [dataclasses.replace(row, split=TEST if row.query_id in held_out else TRAIN) for row in table.queries]
    return dataclasses.replace(table, queries=queries)


def shared_with_evaluation(table: ProductTables, split: str, evaluate_split: str) -> str | None:
    """Return a warning about queries and products of both training and evaluation, or None.

    Products of the split "all" belong to the gallery of every split by design. They count only if the evaluation does
    not have queries.

    Args:
        table: the data set, with all its splits.
        split: the split for training.
        evaluate_split: the split for evaluation.
    """
    trained, tested = table.select(split), table.select(evaluate_split)
    trained_queries = {row.query_id for row in trained.queries}
    queries = sum(row.query_id in trained_queries for row in tested.queries)
    trained_products = {row.product_id for row in trained.products}
    products = sum(
        row.product_id in trained_products for row in tested.products if row.split != EVERY_SPLIT or not tested.queries
    )
    if not queries and not products:
        return None
    return (
        f"{table.name}: {queries} of {len(tested.queries)} queries and {products} of {len(tested.products)} products of "
        f"evaluate_split {evaluate_split!r} are also in the training split {split!r}; the recalls do not measure "
        "performance on unseen products"
    )


def digest_of(table: ProductTables) -> str:
    """Return a digest of everything that determines which pairs are drawn: products, queries, order, answers, and equal
    products.

    Args:
        table: the training split of a data set.
    """
    digest = hashlib.blake2b(digest_size=8)
    for product in table.products:
        digest.update(repr((product.product_id, product.group, product.category)).encode())
    for query in table.queries:
        digest.update(repr((query.query_id, query.type, query.answers, query.negatives)).encode())
    equal = EqualProducts(table.products)
    for places in (*classes(equal.identical()), *classes(equal.same_looks)):
        digest.update(repr(places).encode())
    return digest.hexdigest()


def unanswered_queries(tables: list[ProductTables]) -> dict[str, int]:
    """Count, by type, the queries that are not drawn because none of their answers is in the training split."""
    counts: dict[str, int] = defaultdict(int)
    for table in tables:
        products = {row.product_id for row in table.products}
        for query in table.queries:
            counts[query.type] += products.isdisjoint(query.positives)
    return {kind: count for kind, count in counts.items() if count}
