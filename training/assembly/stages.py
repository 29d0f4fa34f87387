"""Create the trainer of a recipe's stage: contrastive, cold start, or GRPO."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from processing_moon import MoonProcessor
from product_data.tables import ProductTables
from training.assembly.objective import earlier_of, filter_of, loss_of, teachers_of
from training.assembly.stream_sources import stream_batches
from training.batches.buckets import BucketedPairs
from training.batches.called_teacher import CalledTeacher
from training.batches.collate import PairCollator
from training.batches.negatives import NegativeQueue
from training.batches.pairs import PairDataset, PairSource
from training.batches.streams import RowPairs, StreamCollator, StreamSource, sample_of
from training.contrastive.distiller import FrozenModels, Teacher
from training.contrastive.streamed_trainer import StreamedTrainer
from training.contrastive.trainer import ContrastiveTrainer
from training.labels.reasoning import ReasonedPairs, ReasonedRows, ReasoningTargets, known_values
from training.reasoning.cold_start_trainer import ColdStartTrainer, StreamedColdStartTrainer
from training.recipe.arguments import Recipe, RecipeError
from training.recipe.candidates import check_candidates, check_products, check_sample_filter
from training.recipe.loss import AUTO, queue_length
from training.recipe.reasoning import COLD_START, GRPO, target_of
from training.runs.run import Run

MakeTrainer = Callable[[Any, int], Any]
"""(training arguments, steps) → a trainer with a new queue, so that measuring steps does not change the training."""
_REPORTED_ROWS = 200  # rows of each stream for the report on its attributes


def trainer_factory(
    run: Run, model: nn.Module, processor: MoonProcessor, data: Sequence[ProductTables] | Sequence[StreamSource]
) -> MakeTrainer:
    """Return a function (arguments, steps) → trainer of the recipe's stage.

    Args:
        run: the run.
        model: the model to train.
        processor: its processor.
        data: the tables of the training split, or the streams.

    Raises:
        RecipeError: the data does not contain negatives.
    """
    recipe = run.recipe
    try:
        _check_negatives(recipe, data)
    except ValueError as error:
        raise RecipeError(str(error)) from error
    _note_queue(run)
    streamed = _streamed if recipe.data.streaming else _contrastive
    make: Any = {COLD_START: _cold_start, GRPO: _grpo}.get(recipe.reasoning.stage, streamed)
    earlier = earlier_of(recipe.loss, model, recipe.training.device)
    tables: Any = () if recipe.data.streaming else data
    teachers = teachers_of(recipe.loss, tables)
    _note_teachers(run, teachers, data)
    return functools.partial(make, run, model, processor, data, FrozenModels(earlier, teachers))


def _note_teachers(run: Run, teachers: list[Teacher], data: Sequence[Any]) -> None:
    """Print how many products each teacher knows; refuse a teacher that knows none. Rows of a stream are not counted."""
    if run.recipe.data.streaming:
        return
    ids = [row.product_id for tables in data for row in tables.products]
    for number, teacher in enumerate(teachers):
        if isinstance(teacher.vectors, CalledTeacher):
            run.say(f"teachers[{number}]: {teacher.kind}, embeds the queries and products of each batch")
            continue
        known = teacher.vectors.known(ids)
        if not known:
            raise RecipeError(
                f"teachers[{number}]: found vectors of none of {len(ids)} products; expected the ids of the training's tables"
            )
        run.say(f"teachers[{number}]: {teacher.kind}, knows {known} of {len(ids)} products")


def _note_queue(run: Run) -> None:
    """Record and print the length of the queue if it follows from the number of processes."""
    if run.recipe.loss.queue_steps != AUTO:
        return
    processes = run.recipe.training.world_size
    steps = run.facts["queue_steps"] = queue_length(AUTO, processes)
    run.say(f"queue_steps: {AUTO} is {steps} with {processes} process{'es' * (processes > 1)}")


def _check_negatives(recipe: Recipe, data: Sequence[Any]) -> None:
    """Raise ValueError for data in which each query is compared only with its own answer."""
    weight = recipe.reasoning.infonce_weight
    if recipe.data.streaming:
        has_negatives = any(source.columns.has("negative") for source in data)
        check_candidates(recipe.pairs, recipe.loss, recipe.training, weight, has_negatives)
        check_sample_filter(recipe.pairs, recipe.loss, rows_have_negatives=has_negatives)
    elif weight:
        entries = [entry if isinstance(entry, dict) else {} for entry in recipe.data.data]
        check_products(data, [entry.get("mask_groups", recipe.data.mask_groups) for entry in entries])


def _shared(run: Run, model: nn.Module, processor: MoonProcessor, args: Any) -> dict[str, Any]:
    recipe = run.recipe
    return {
        "model": model,
        "args": args,
        "loss": loss_of(recipe.loss),
        "queue": NegativeQueue(queue_length(recipe.loss.queue_steps, args.world_size)),
        "options": recipe.loss,
        "sample_filter": filter_of(recipe.loss),
        "learning_rates": recipe.model.learning_rates,
        "save_records": run.write_records,
        "save_processor": processor.save_pretrained,
    }


def _streamed(
    run: Run,
    model: nn.Module,
    processor: MoonProcessor,
    data: Any,
    frozen: FrozenModels,
    args: Any,
    steps: int,
) -> StreamedTrainer:
    recipe = run.recipe
    batches = stream_batches(recipe, args, data, recipe.pairs, steps, _row_pairs(run))
    collator = StreamCollator(processor, batches.pairs, **_reading(run, frozen))
    shared = _shared(run, model, processor, args)
    return StreamedTrainer(batches=batches, data_collator=collator, frozen=frozen, **shared)


def _row_pairs(run: Run) -> Callable[..., RowPairs]:
    return functools.partial(RowPairs, variants=run.variants)


def _contrastive(
    run: Run,
    model: nn.Module,
    processor: MoonProcessor,
    data: Any,
    frozen: FrozenModels,
    args: Any,
    steps: int,
) -> ContrastiveTrainer:
    dataset = pair_dataset(run, args, data, steps)
    collator = PairCollator(processor, dataset.draw, **_reading(run, frozen))
    shared = _shared(run, model, processor, args)
    return ContrastiveTrainer(train_dataset=dataset, data_collator=collator, frozen=frozen, **shared)


def _reading(run: Run, frozen: FrozenModels) -> dict[str, Any]:
    recipe = run.recipe
    return {"allow_urls": recipe.data.allow_urls, "forms": recipe.loss.dual_alignment, **frozen.reading()}


def _cold_start(
    run: Run,
    model: nn.Module,
    processor: MoonProcessor,
    data: Any,
    frozen: FrozenModels,
    args: Any,
    steps: int,
) -> ColdStartTrainer:
    recipe = run.recipe
    settings = _shared(run, model, processor, args) | {
        "ce_weight": recipe.reasoning.ce_weight,
        "contrastive_weight": recipe.reasoning.infonce_weight,
        "frozen": frozen,
    }
    reading = _reading(run, frozen) | {"reasoning": "mixed"}
    if recipe.data.streaming:
        targets = ReasoningTargets([sample_of(source, _REPORTED_ROWS) for source in data], processor)
        run.say(f"of the first {_REPORTED_ROWS} rows of each stream: {targets.report}")
        share, forms = recipe.reasoning.unreasoned_share, recipe.loss.dual_alignment
        reasoned = {"variants": run.variants, "targets": targets, "unreasoned_share": share, "forms": forms}
        make_pairs = functools.partial(ReasonedRows, **reasoned)
        batches = stream_batches(recipe, args, data, recipe.pairs, steps, make_pairs)
        collator = StreamCollator(processor, batches.pairs, **reading)
        return StreamedColdStartTrainer(batches=batches, data_collator=collator, **settings)
    pairs = _reasoned(run, pair_dataset(run, args, data, steps), processor, data, args)
    return ColdStartTrainer(
        train_dataset=pairs, data_collator=PairCollator(processor, pairs.draw, **reading), **settings
    )


def _grpo(
    run: Run,
    model: nn.Module,
    processor: MoonProcessor,
    data: Any,
    frozen: FrozenModels,
    args: Any,
    steps: int,
) -> Any:
    from training.reasoning.grpo_trainer import (  # TRL takes seconds to import
        MoonGRPOTrainer,
        grpo_arguments,
    )

    recipe, reasoning = run.recipe, run.recipe.reasoning
    try:
        target_of(reasoning, model.config.max_reasoning_tokens)
    except ValueError as error:
        raise RecipeError(str(error)) from error
    pairs = _reasoned(run, pair_dataset(run, args, data, steps), processor, data, args)
    return MoonGRPOTrainer(
        model=model,
        args=grpo_arguments(args, reasoning, model.config, processor.tokenizer),
        pairs=pairs,
        processor=processor,
        loss=loss_of(recipe.loss),
        queue=NegativeQueue(queue_length(recipe.loss.queue_steps, args.world_size)),
        rewards=reasoning.rewards,
        known_values=known_values(data),
        earlier=frozen.earlier,
        sample_filter=filter_of(recipe.loss),
        reasoning=reasoning,
        options=recipe.loss,
        allow_urls=recipe.data.allow_urls,
        save_records=run.write_records,
    )


def _reasoned(run: Run, pairs: Any, processor: MoonProcessor, data: Any, args: Any) -> ReasonedPairs:
    """Return the pairs with the reasoning that the model learns to write."""
    targets = ReasoningTargets(data, processor)
    if targets.report:
        run.say(targets.report)
    recipe = run.recipe
    return ReasonedPairs(pairs, targets, recipe.reasoning.unreasoned_share, args.seed, recipe.loss.dual_alignment)


def pair_dataset(run: Run, args: Any, tables: Sequence[ProductTables], steps: int) -> PairDataset | BucketedPairs:
    """Return the pairs of a number of steps.

    Args:
        run: the run, whose recipe has the data sets and `bucket_batches`.
        args: the training arguments, with batch size, seed and number of processes.
        tables: the training split of each data set.
        steps: the number of optimizer steps.

    Raises:
        RecipeError: pairs cannot be drawn from the data.
    """
    recipe, data = run.recipe, run.recipe.data
    entries = [entry if isinstance(entry, dict) else {} for entry in data.data]
    batch = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    try:
        sources = [
            PairSource(table, entry.get("weight"), entry.get("mask_groups", data.mask_groups))
            for entry, table in zip(entries, tables, strict=True)
        ]
        dataset = PairDataset(sources, recipe.pairs, args.seed, steps * batch, run.variants)
    except ValueError as error:
        raise RecipeError(str(error)) from error
    for form in dataset.missing_forms():
        run.say(f"query_mix: found no queries of the form {form!r}; this form is not drawn")
    if not data.bucket_batches:
        return dataset
    return BucketedPairs(dataset, args.per_device_train_batch_size, data.bucket_batches)
