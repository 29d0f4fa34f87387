"""Open the data of a run: tables in memory, or streams."""

import functools
from dataclasses import dataclass
from typing import Any

from product_data.tables import ProductTables
from training.assembly.sources import digest_of, read_data, read_evaluated, unanswered_queries
from training.assembly.stream_sources import open_streams, sample_tables
from training.batches.streams import StreamSource
from training.recipe.arguments import AUTO
from training.runs.run import Run


@dataclass(frozen=True)
class RunData:
    """The data of a run's training and evaluation.

    Args:
        tables: the data sets with all their splits; empty for streams.
        training: the training split of each data set, or the streams.
        evaluated: the data sets to evaluate, with all their splits.
        is_sampled: whether rows of streams are read for a tokenizer or a token budget.
    """

    tables: list[ProductTables]
    training: list[ProductTables] | list[StreamSource]
    evaluated: list[ProductTables]
    is_sampled: bool = False

    @functools.cached_property
    def sample(self) -> list[ProductTables]:
        """Return the data for a tokenizer and a token budget: the training split, or the first rows of each stream.

        Raises:
            RecipeError: a stream does not have rows.
        """
        streams: Any = self.training
        if self.tables:
            return streams
        return sample_tables(streams) if self.is_sampled else []


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
        return RunData([], open_streams(recipe), [], is_sampled)
    tables = read_data(run)
    training = [table.select(recipe.data.split) for table in tables]
    run.facts["data_digests"] = {table.name: digest_of(table) for table in training}
    if unanswered := unanswered_queries(training):
        run.facts["queries_without_an_answer_in_the_split"] = unanswered
        run.say(f"queries are not drawn if their answers are not in the split; their number by type: {unanswered}")
    return RunData(tables, training, evaluated_of(run, tables))


def evaluated_of(run: Run, tables: list[ProductTables]) -> list[ProductTables]:
    """Return the data sets that a run evaluates: those of `evaluate_data`, or those of `data`, which are given; none if the
    recipe evaluates nothing."""
    training = run.recipe.training
    if not (training.evaluate_before or training.evaluate_after):
        return []
    return tables if run.recipe.data.evaluate_data is None else read_evaluated(run)
