"""From a recipe to the trainer of its stage: contrastive, cold start, or GRPO with rewards."""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from processing_moon import MoonProcessor
from product_data.tables import ProductTables
from training.assembly.objective import filter_of, loss_of
from training.assembly.stream_sources import stream_batches
from training.batches.buckets import BucketedPairs
from training.batches.collate import PairCollator
from training.batches.negatives import NegativeQueue
from training.batches.pairs import PairDataset, PairSource
from training.batches.streams import StreamCollator, StreamSource, sample_of
from training.contrastive.streamed_trainer import StreamedTrainer
from training.contrastive.trainer import ContrastiveTrainer
from training.labels.reasoning import ReasonedPairs, ReasonedRows, ReasoningTargets, known_values
from training.reasoning.cold_start_trainer import ColdStartTrainer, StreamedColdStartTrainer
from training.recipe.arguments import Recipe, RecipeError
from training.recipe.candidates import check_candidates, check_products
from training.recipe.loss import AUTO, queue_length
from training.recipe.reasoning import COLD_START, GRPO

MakeTrainer = Callable[[Any, int], Any]
"""(training arguments, steps) → a trainer with a fresh queue, so that measuring leaves no trace."""
_REPORTED_ROWS = 200  # of each stream, by which a cold start says what there is to write


def trainer_factory(
    recipe: Recipe,
    model: nn.Module,
    processor: MoonProcessor,
    data: Sequence[ProductTables | StreamSource],
    save_records: Callable[[Path], None],
) -> MakeTrainer:
    """Return a function (arguments, steps) → trainer of the recipe's stage.

    Args:
        recipe: what to train how.
        model: what learns.
        processor: its processor.
        data: the tables of the training split, or the streams.
        save_records: called with each checkpoint folder.

    Raises:
        RecipeError: data without any negative.
    """
    try:
        _check_negatives(recipe, data)
    except ValueError as error:
        raise RecipeError(str(error)) from error
    _note_queue(recipe)
    stage = {COLD_START: _cold_start, GRPO: _grpo}.get(recipe.reasoning.stage)
    if stage is not None:
        return functools.partial(stage, recipe, model, processor, data, save_records)
    make = _streamed if recipe.data.streaming else _contrastive
    return functools.partial(make, recipe, model, processor, data, save_records)


def _note_queue(recipe: Recipe) -> None:
    """Note, and say, how long the queue is where that follows from the number of processes."""
    if recipe.loss.queue_steps != AUTO:
        return
    processes = recipe.training.world_size
    steps = recipe.facts["queue_steps"] = queue_length(AUTO, processes)
    _say_once(recipe, f"queue_steps: {AUTO} is {steps} with {processes} process{'es' * (processes > 1)}")


def _say_once(recipe: Recipe, text: str) -> None:
    """Print what a trainer's data is like, in the first process, and not again for the trainer after the measurement."""
    if recipe.training.process_index == 0 and text not in recipe.said:
        recipe.said.add(text)
        print(text)


def _check_negatives(recipe: Recipe, data: Sequence[Any]) -> None:
    """Refuse data in which each query has its own answer as the only candidate."""
    weight = recipe.reasoning.infonce_weight
    if recipe.data.streaming:
        there = any(source.columns.has("negative") for source in data)
        check_candidates(recipe.pairs, recipe.loss, recipe.training, weight, there)
    elif weight:
        given = [entry if isinstance(entry, dict) else {} for entry in recipe.data.data]
        check_products(data, [entry.get("mask_groups", recipe.data.mask_groups) for entry in given])


def _shared(recipe: Recipe, model: nn.Module, processor: MoonProcessor, args: Any, save_records: Any) -> dict[str, Any]:
    return {
        "model": model,
        "args": args,
        "loss": loss_of(recipe.loss),
        "queue": NegativeQueue(queue_length(recipe.loss.queue_steps, args.world_size)),
        "options": recipe.loss,
        "sample_filter": filter_of(recipe.loss),
        "learning_rates": recipe.model.learning_rates,
        "save_records": save_records,
        "save_processor": processor.save_pretrained,
    }


def _streamed(
    recipe: Recipe, model: nn.Module, processor: MoonProcessor, data: Any, save_records: Any, args: Any, steps: int
) -> StreamedTrainer:
    batches = stream_batches(recipe, args, data, recipe.pairs, steps)
    collator = StreamCollator(
        processor, batches.pairs, allow_urls=recipe.data.allow_urls, forms=recipe.loss.dual_alignment
    )
    shared = _shared(recipe, model, processor, args, save_records)
    return StreamedTrainer(batches=batches, data_collator=collator, **shared)


def _contrastive(
    recipe: Recipe, model: nn.Module, processor: MoonProcessor, data: Any, save_records: Any, args: Any, steps: int
) -> ContrastiveTrainer:
    dataset = pair_dataset(recipe, args, data, steps)
    collator = PairCollator(
        processor, dataset.draw, allow_urls=recipe.data.allow_urls, forms=recipe.loss.dual_alignment
    )
    shared = _shared(recipe, model, processor, args, save_records)
    return ContrastiveTrainer(train_dataset=dataset, data_collator=collator, **shared)


def _cold_start(
    recipe: Recipe, model: nn.Module, processor: MoonProcessor, data: Any, save_records: Any, args: Any, steps: int
) -> ColdStartTrainer:
    settings = _shared(recipe, model, processor, args, save_records) | {
        "ce_weight": recipe.reasoning.ce_weight,
        "contrastive_weight": recipe.reasoning.infonce_weight,
    }
    reading: dict[str, Any] = {"allow_urls": recipe.data.allow_urls, "reasoning": "mixed"}
    if recipe.data.streaming:
        targets = ReasoningTargets([sample_of(source, _REPORTED_ROWS) for source in data], processor)
        _say_once(recipe, f"of the first {_REPORTED_ROWS} rows of each stream: {targets.report}")
        make_pairs = functools.partial(
            ReasonedRows, targets=targets, unreasoned_share=recipe.reasoning.unreasoned_share
        )
        batches = stream_batches(recipe, args, data, recipe.pairs, steps, make_pairs)
        collator = StreamCollator(processor, batches.pairs, **reading)
        return StreamedColdStartTrainer(batches=batches, data_collator=collator, **settings)
    pairs = _reasoned(recipe, pair_dataset(recipe, args, data, steps), processor, data, args)
    return ColdStartTrainer(
        train_dataset=pairs, data_collator=PairCollator(processor, pairs.draw, **reading), **settings
    )


def _grpo(
    recipe: Recipe, model: nn.Module, processor: MoonProcessor, data: Any, save_records: Any, args: Any, steps: int
) -> Any:
    from training.reasoning.grpo_trainer import MoonGRPOTrainer, grpo_arguments  # TRL takes seconds to import

    reasoning = recipe.reasoning
    pairs = _reasoned(recipe, pair_dataset(recipe, args, data, steps), processor, data, args)
    return MoonGRPOTrainer(
        model=model,
        args=grpo_arguments(args, reasoning, model.config, processor.tokenizer),
        pairs=pairs,
        processor=processor,
        loss=loss_of(recipe.loss).contrastive,
        queue=NegativeQueue(queue_length(recipe.loss.queue_steps, args.world_size)),
        rewards=reasoning.rewards,
        known_values=known_values(data),
        reasoning=reasoning,
        options=recipe.loss,
        allow_urls=recipe.data.allow_urls,
        save_records=save_records,
    )


def _reasoned(recipe: Recipe, pairs: Any, processor: MoonProcessor, data: Any, args: Any) -> ReasonedPairs:
    """The pairs with what is known of their attributes."""
    targets = ReasoningTargets(data, processor)
    if targets.report:
        _say_once(recipe, targets.report)
    return ReasonedPairs(pairs, targets, recipe.reasoning.unreasoned_share, args.seed)


def pair_dataset(recipe: Recipe, args: Any, tables: Sequence[ProductTables], steps: int) -> PairDataset | BucketedPairs:
    """Return the pairs of a number of steps.

    Args:
        recipe: its data sets, and whether to bucket.
        args: batch size, seed and number of processes.
        tables: the training split of each data set.
        steps: optimizer steps.

    Raises:
        RecipeError: no pair can be drawn.
    """
    data = recipe.data
    given = [entry if isinstance(entry, dict) else {} for entry in data.data]
    batch = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    try:
        sources = [
            PairSource(table, entry.get("weight"), entry.get("mask_groups", data.mask_groups))
            for entry, table in zip(given, tables, strict=True)
        ]
        dataset = PairDataset(sources, recipe.pairs, args.seed, length=steps * batch)
    except ValueError as error:
        raise RecipeError(str(error)) from error
    for form in dataset.missing_forms():
        _say_once(recipe, f"query_mix: no data set has queries of the form {form!r}; none are drawn")
    if not data.bucket_batches:
        return dataset
    return BucketedPairs(dataset, args.per_device_train_batch_size, data.bucket_batches)
