"""Check that each query in training is compared with more than its own answer."""

from collections.abc import Sequence
from typing import Any

from product_data.tables import ProductTables
from training.recipe.loss import queue_length


def check_candidates(
    pairs: Any, loss: Any, training: Any, contrastive_weight: float, rows_have_negatives: bool = True
) -> None:
    """Raise ValueError for a recipe in which each query is compared only with its own answer.

    The softmax over a single candidate is 1, so the loss is 0 and the model does not learn. Our design.

    Args:
        pairs, loss, training: the groups of the recipe.
        contrastive_weight: the weight of the InfoNCE in the stage. With weight 0, the recipe is accepted.
        rows_have_negatives (`bool`): whether a table of a stream has a column of hard negatives. Default: True.

    Raises:
        ValueError: all processes together draw one pair, without hard negatives or a queue that is used.
    """
    warmup = loss.queue_warmup_steps
    if training.max_steps > 0 and warmup >= 1:
        warmup = warmup / training.max_steps
    steps = queue_length(loss.queue_steps, training.world_size)
    queued = steps > 0 and (warmup < 1 or training.max_steps < 1)
    count = training.per_device_train_batch_size * (training.world_size if loss.spatial_negatives else 1)
    if not contrastive_weight or count > 1 or queued or (pairs.hard_negatives and rows_have_negatives):
        return
    queue = f"queue_steps {loss.queue_steps}" + (" (never past its queue_warmup_steps)" if steps else "")
    hard = _hard_negatives(pairs, rows_have_negatives)
    processes = "in one process" if training.world_size == 1 else "with spatial_negatives: false"
    raise ValueError(
        f"per_device_train_batch_size: found 1 {processes} with {hard} and {queue}: the only candidate of each query "
        "is its own answer, and the loss is 0; expected a batch of at least 2 (gradient_accumulation_steps does not "
        "count), hard_negatives of at least 1, or queue_steps of at least 1"
    )


def check_sample_filter(pairs: Any, loss: Any, *, rows_have_negatives: bool = True) -> None:
    """Raise ValueError for a sample filter without the hard negatives whose similarity it compares.

    Args:
        pairs, loss: the groups of the recipe.
        rows_have_negatives: as in `check_candidates`.

    Raises:
        ValueError: the filter would give every pair the same weight.
    """
    if loss.sample_filter and not (pairs.hard_negatives and rows_have_negatives):
        raise ValueError(
            f"sample_filter: found true with {_hard_negatives(pairs, rows_have_negatives)}, where it does nothing, because it "
            "compares the positive of a query with its hard negative; expected hard_negatives of at least 1, or sample_filter: "
            "false"
        )


def _hard_negatives(pairs: Any, rows_have_negatives: bool) -> str:
    return f"hard_negatives {pairs.hard_negatives}" + ("" if rows_have_negatives else " and no column of them")


def check_products(tables: Sequence[ProductTables], masked: Sequence[bool]) -> None:
    """Raise ValueError for data in which queries do not have negatives.

    Args:
        tables: the training split of each data set.
        masked: for each data set, whether variants of a query's answer are excluded from its negatives.

    Raises:
        ValueError: the data has one product, or only excluded variants of one product, and no query with negatives.
    """
    distinct = {
        (number, row.group if mask and row.group else None, None if mask and row.group else row.product_id)
        for number, (table, mask) in enumerate(zip(tables, masked, strict=True))
        for row in table.products
    }
    if len(distinct) > 1 or any(query.negatives for table in tables for query in table.queries):
        return
    count = sum(len(table.products) for table in tables)
    found = "1 product" if count == 1 else f"{count} products, all of one group, with mask_groups: true"
    raise ValueError(
        f"data: found {found} to train on: no query has a negative, and the loss is 0; expected at least two products"
        + ("" if count == 1 else " of different groups, or mask_groups: false")
    )
