"""The recipe's keys of the loss: its negatives, its terms, and how a batch is encoded for it."""

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator
from pydantic.dataclasses import dataclass

from training.recipe.checking import CONFIG, Count, NotNegative, Positive, Weights

AUTO = "auto"
"""As `queue_steps`: the queue's length follows from the number of processes; as `max_tokens`: the budget from the data."""
PUBLISHED_MULTIPLE = 200
"""How many times the candidates of one process MOON compares a query with (arXiv 2508.11999 §3.2, "nearly 200")."""


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class LossArguments:
    """The loss, its negatives, and how a batch is encoded for it.

    Args:
        temperature: τ of InfoNCE, no unit. The paper gives none; 0.05 is our choice.
        queue_steps: w, the number of past steps whose candidates stay negatives (temporal negatives); 0: none. "auto": w follows
            from the number P of processes, so that P · (w + 1) is as near to MOON's 200 as can be: 2 with 64 processes, 199
            with one; see `queue_length`.
        spatial_negatives: candidates of the other processes, and their past ones, are negatives too; false: each process
            compares its queries with its own products alone.
        queue_warmup_steps: steps during which the queue is filled and not yet compared with (precedent: the warm-up of
            cross-batch memory, arXiv 1912.06798); below 1 a share of all steps.
        queue_momentum: m of a momentum encoder (MoCo) that fills the queue, such as 0.999; None: the model itself does.
        negative_margin: negatives that are nearer than the positive by more than this cosine similarity are left out, such
            as 0.1; None: only known positives and variants are.
        several_positives: known positives of a query among the items of all processes are positives, each by its weight;
            otherwise they are only no negatives. Those encoded for the query (positives_per_query) always are positives.
        loss_block_size: candidates compared at a time, for a loss whose memory does not grow with their number; None: all.
        matryoshka_dims: further widths at which each contrastive term is taken, beside the full one, all with weight 1.
        sample_filter: triplets that the model does not trust count less; see `training.losses.sample_filter`.
        filter_threshold: φ below which a triplet counts less. The paper's is 0.6.
        dual_alignment: queries and products are encoded as text, as image and as both; see
            `training.losses.dual_alignment`.
        alignment_weights: constant ω of the forms, {t: 1, i: 1, mm: 1}; None: those of the model (moon2), or 1.
        intra_weight: weight of the alignment of each product's image with its text.
        symmetric_intra: texts also look for their images.
        router_loss_weight: ρ of the load-balancing loss L_aux, balanced within each forward pass of each process; 0 leaves
            it out.
        sparsity_weight: ς of the entropy L_sparsity of moon2's preference matrix; 0 leaves it out.
        encode_chunk_size: the largest number of queries, or of products, encoded with one graph (GradCache): for big
            batches in little memory, at the price of a second forward; None: all at once.
    """

    temperature: Positive = 0.05
    queue_steps: Annotated[int, Field(ge=0)] | Literal["auto"] = 8
    spatial_negatives: bool = True
    queue_warmup_steps: NotNegative = 0.0
    queue_momentum: Annotated[float, Field(ge=0, lt=1)] | None = None
    negative_margin: NotNegative | None = None
    several_positives: bool = False
    loss_block_size: Count | None = None
    matryoshka_dims: list[Count] = Field(default_factory=list)
    sample_filter: bool = False
    filter_threshold: Annotated[float, Field(gt=0, le=1)] = 0.6
    dual_alignment: bool = False
    alignment_weights: Weights | None = None
    intra_weight: NotNegative = 1.0
    symmetric_intra: bool = False
    router_loss_weight: NotNegative = 0.0
    sparsity_weight: NotNegative = 0.0
    encode_chunk_size: Count | None = None

    @property
    def aligns_images(self) -> bool:
        """Whether the images of products look for their texts."""
        return self.dual_alignment and self.intra_weight > 0

    @field_validator("matryoshka_dims")
    @classmethod
    def _check_widths(cls, dims: list[int]) -> list[int]:
        if len(set(dims)) < len(dims):
            raise ValueError(f"found {dims}; expected different whole numbers of at least 1")
        return dims

    @model_validator(mode="after")
    def _check_queue(self) -> Self:
        if not self.queue_steps and (self.queue_momentum is not None or self.queue_warmup_steps):
            raise ValueError("queue_momentum, queue_warmup_steps: found without a queue; expected queue_steps above 0")
        return self

    @model_validator(mode="after")
    def _check_alignment(self) -> Self:
        """What only dual alignment reads stays as it is without it."""
        unread = {"alignment_weights": None, "symmetric_intra": False, "intra_weight": 1.0}
        for key, default in unread.items():
            if not self.dual_alignment and getattr(self, key) != default:
                raise ValueError(f"{key}: found {getattr(self, key)!r}; expected only with dual_alignment: true")
        return self


def queue_length(queue_steps: int | str, processes: int) -> int:
    """Return w, the number of past steps that the queue keeps.

    `w = max(round(200 / P), 1) - 1` where the recipe says "auto", so that P · (w + 1) stays near 200 for any number P of
    processes. Source: MOON, arXiv 2508.11999 §3.2, with P = 64 and w = 2; for other P our reading, that the multiple is
    what matters.

    Args:
        queue_steps (`int` or `"auto"`): of the recipe; a number is returned as it is.
        processes: P, the number of processes that train together.

    Raises:
        ValueError: another word.
    """
    if isinstance(queue_steps, int):
        return queue_steps
    if queue_steps != AUTO:
        raise ValueError(f"queue_steps: found {queue_steps!r}; expected {AUTO}, or a whole number of at least 0")
    return max(round(PUBLISHED_MULTIPLE / processes), 1) - 1
