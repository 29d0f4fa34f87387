"""Whether a training has anything to compare a query's answer with."""

from collections.abc import Sequence
from typing import Any

from product_data.tables import ProductTables
from training.recipe.loss import queue_length


def check_candidates(
    pairs: Any, loss: Any, training: Any, contrastive_weight: float, rows_have_negatives: bool = True
) -> None:
    """Refuse a recipe whose queries have their own answer as the only candidate.

    The softmax over one candidate is 1, so that the loss is 0 and nothing is learned. Our design.

    Args:
        pairs, loss, training: the recipe's groups.
        contrastive_weight: of the stage; where it is 0, vectors are not compared at all.
        rows_have_negatives (`bool`): of streams, whether a table has a column of hard negatives. Default True.

    Raises:
        ValueError: one pair over all processes, no hard negatives, and no queue that is ever compared with.
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
    hard = f"hard_negatives {pairs.hard_negatives}" + (" and no column of them" if not rows_have_negatives else "")
    processes = "in one process" if training.world_size == 1 else "with spatial_negatives: false"
    raise ValueError(
        f"per_device_train_batch_size: found 1 {processes} with {hard} and {queue}: each query has its own "
        "answer as the only candidate, and the loss is 0; expected a batch of at least 2 (gradient_accumulation_steps does "
        "not count), hard_negatives of at least 1, or queue_steps of at least 1"
    )


def check_products(tables: Sequence[ProductTables], masked: Sequence[bool]) -> None:
    """Refuse data in which no product is a negative of another.

    Args:
        tables: the training split of each data set.
        masked: of each, whether variants of a query's answer are no negatives for it.

    Raises:
        ValueError: one product, or variants of one that are no negatives, and no query that names a wrong answer.
    """
    apart = {
        (number, row.group if mask and row.group else None, None if mask and row.group else row.product_id)
        for number, (table, mask) in enumerate(zip(tables, masked, strict=True))
        for row in table.products
    }
    if len(apart) > 1 or any(query.negatives for table in tables for query in table.queries):
        return
    count = sum(len(table.products) for table in tables)
    found = "1 product" if count == 1 else f"{count} products, all of one group, with mask_groups: true"
    raise ValueError(
        f"data: found {found} to train on: no query has a negative, and the loss is 0; expected at least two products"
        + ("" if count == 1 else " of different groups, or mask_groups: false")
    )
