"""Open the data of a run: tables in memory, or streams."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from product_data.tables import ProductTables
from training.assembly.sources import digest_of, read_data, read_evaluated, unanswered_queries
from training.assembly.stream_sources import open_streams, sample_tables
from training.batches.streams import StreamSource
from training.batches.variants import VariantDraws, open_variants
from training.recipe.arguments import AUTO, RecipeError
from training.recipe.data import co_augmentation_of
from training.runs.run import Run


@dataclass(frozen=True)
class RunData:
    """The data of a run's training and evaluation.

    Args:
        tables: the data sets with all their splits; empty for streams.
        training: the training split of each data set, or the streams.
        evaluated: the data sets to evaluate, with all their splits.
        is_sampled: whether rows of streams are read for a tokenizer or a token budget.
        variants: variants of the training products, which training draws and evaluation never reads; None for none.
    """

    tables: list[ProductTables]
    training: list[ProductTables] | list[StreamSource]
    evaluated: list[ProductTables]
    is_sampled: bool = False
    variants: VariantDraws | None = None

    @functools.cached_property
    def sample(self) -> list[ProductTables]:
        """Return the data for a tokenizer and a token budget: the training split, or the first rows of each stream.

        With variants, it also contains the products with their longest enriched titles.

        Raises:
            RecipeError: a stream does not have rows.
        """
        streams: Any = self.training
        found = streams if self.tables else sample_tables(streams) if self.is_sampled else []
        return found if self.variants is None else [self.variants.longest(table) for table in found]


def open_data(run: Run) -> RunData:
    """Read every data set or open every stream, and record digests of the data that decide which pairs are drawn.

    Raises:
        RecipeError: a data set does not have what the recipe requires.
        TableError: a data set cannot be used.
    """
    recipe = run.recipe
    if recipe.data.streaming:
        run.facts["data_digests"] = {}
        is_sampled = recipe.model.small_base is not None or recipe.data.max_tokens == AUTO
        streams = open_streams(recipe)
        return RunData([], streams, [], is_sampled, _variants(run, [source.name for source in streams]))
    tables = read_data(run)
    training = [table.select(recipe.data.split) for table in tables]
    run.facts["data_digests"] = {table.name: digest_of(table) for table in training}
    if unanswered := unanswered_queries(training):
        run.facts["queries_without_an_answer_in_the_split"] = unanswered
        run.say(f"queries are not drawn if their answers are not in the split; their number by type: {unanswered}")
    variants = _variants(run, [table.name for table in tables])
    for table in training if variants is not None else ():
        ids = [row.product_id for row in table.products]
        run.say(
            f"co_augmentation: {variants.known(table.name, ids)} of {len(ids)} products of {table.name} have variants"
        )
    if variants is not None and not any(
        variants.known(table.name, [row.product_id for row in table.products]) for table in training
    ):
        raise RecipeError(
            "co_augmentation: found variants of none of the products; expected those of the training's tables"
        )
    return RunData(tables, training, evaluated_of(run, tables), variants=variants)


def evaluated_of(run: Run, tables: list[ProductTables]) -> list[ProductTables]:
    """Return the data sets that a run evaluates: those of `evaluate_data`, or those of `data`, which are given; none if the
    recipe evaluates nothing."""
    training = run.recipe.training
    if not (training.evaluate_before or training.evaluate_after):
        return []
    return tables if run.recipe.data.evaluate_data is None else read_evaluated(run)


def _variants(run: Run, names: Sequence[str]) -> VariantDraws | None:
    """Return the variants of a recipe, and record their digests with those of the data.

    Raises:
        RecipeError: the recipe's folders do not belong to its data sets.
    """
    options = co_augmentation_of(run.recipe.data)
    if options is None:
        return None
    entries = [entry if isinstance(entry, dict) else {"path": entry} for entry in run.recipe.data.data]
    places = {name: _folder_of(entry) for name, entry in zip(names, entries, strict=True)}
    try:
        variants = open_variants(options, places)
    except ValueError as error:
        raise RecipeError(str(error)) from error
    run.variants = variants
    run.facts["data_digests"] |= {f"{name}, co_augmentation": digest for name, digest in variants.digests.items()}
    return variants


def _folder_of(entry: dict[str, Any]) -> Path | None:
    """Return the folder of an entry of `data`, None for the drawn catalogue, the Hub, and patterns."""
    place = next((entry[key] for key in ("path", "products", "parquet") if isinstance(entry.get(key), str)), None)
    if place is None or place == "catalogue" or not Path(place).exists():
        return None
    return Path(place) if Path(place).is_dir() else Path(place).parent
