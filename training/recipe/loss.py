"""Recipe keys of the loss: its negatives, its terms, and how a batch is encoded for it."""

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator
from pydantic.dataclasses import dataclass

from training.recipe.checking import CONFIG, Count, NotNegative, Positive, Weights, mapping_of

AUTO = "auto"
"""Value of `queue_steps` (computed from the number of processes) and of `max_tokens` (measured on the data)."""
TEACHER = {
    "vectors": str | list[str],
    "encoder": str,
    "form": Literal["t", "i", "mm"],
    "weight": Positive,
    "kind": Literal["direct", "relations"],
}
"""Keys of a teacher; `weight` is 1 and `kind` "direct" by default."""
PUBLISHED_MULTIPLE = 200
"""Candidates of a query, as a multiple of those of one process and step (arXiv 2508.11999 §3.2, "nearly 200")."""


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class LossArguments:
    """Loss: its terms, its negatives, and how a batch is encoded for it.

    Args:
        temperature: τ of InfoNCE, without a unit. The paper does not publish it; the default is our choice.
        queue_steps: w, the number of past steps whose candidates remain negatives (temporal negatives). 0: no queue.
            "auto": the w for which P · (w + 1) is nearest to MOON's 200, P being the number of processes: 199 with one
            process, 2 with 64.
        spatial_negatives: also use the candidates of the other processes, present and past, as negatives. false: each
            process compares its queries with its own products only.
        queue_warmup_steps: the number of first steps in which the queue is filled but not used (precedent: the warm-up
            of cross-batch memory, arXiv 1912.06798). A value below 1 is a share of all steps.
        queue_momentum: m of a momentum encoder (MoCo) that encodes products for the queue, such as 0.999. null: the
            queue holds the vectors of the model itself.
        negative_margin: exclude negatives whose cosine similarity with the query exceeds that of the positive by more
            than this margin, such as 0.1. null: exclude only known positives and variants.
        several_positives: use every known positive of a query among the products of all processes as a positive, by its
            weight. false: exclude them from the negatives. Positives that are encoded with the query
            (`positives_per_query`) are always used.
        loss_block_size: the number of candidates that are compared at a time, so that memory does not grow with the
            number of candidates. null: all at once.
        matryoshka_dims: smaller widths at which each contrastive term is also computed. Each has weight 1, like the
            full width.
        sample_filter: lower the weight of triplets in which the model has little trust (MOON2.0).
        filter_threshold: the trust φ below which a triplet counts less. The paper's is 0.6.
        dual_alignment: encode queries and products as text, as image and as both, and align each form (MOON2.0).
        alignment_weights: constant ω of the forms, such as {t: 1, i: 1, mm: 1}. null: the weights of the model (moon2),
            or 1. Only with `dual_alignment`.
        intra_weight: λ, the weight of the alignment of each product's image with its text. Only with `dual_alignment`.
        symmetric_intra: also align each product's text with its image. Only with `dual_alignment`.
        router_loss_weight: ρ, the weight of the load-balancing loss L_aux, which is computed for each forward pass of
            each process. 0: not computed.
        sparsity_weight: ς, the weight of the entropy L_sparsity of moon2's preference matrix. 0: not computed.
        compatible_with: a folder or hub id of an earlier checkpoint, whose product vectors the queries of the new model
            can still search (backward-compatible training). It is not trained; its vectors have the same width. null:
            train without an earlier model. See docs/upgrade.md.
        compatible_weight: the weight of that term, above 0. Only with `compatible_with`.
        teachers: frozen encoders whose vectors pull the model's states of products, each {vectors: FOLDER or a list of
            them, form: i, weight: 1.0, kind: direct}. `moon3 embed` writes a folder. {encoder: KIND=PLACE, …} in place of
            `vectors` embeds the products and queries of each batch, with their altered pictures; with form "mm" all that
            each of them has. The form is what the teacher reads:
            "i" pulls the vision tower's output, "t" the states of the words, "mm" the vector. kind "direct": cosine
            through a learned linear map; "relations": the similarities within the batch. Products without a vector are
            not pulled. [] : no teachers.
        teachers_alone_steps: the number of first steps in which the teachers' term is the whole loss; the queue is
            filled meanwhile. A value below 1 is a share of all steps. Only with `teachers`.
        encode_chunk_size: the largest number of queries, or of products, that are encoded at once (GradCache), for
            large batches in little memory. It costs a second forward pass. null: all at once.
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
    compatible_with: str | None = None
    compatible_weight: Positive = 1.0
    teachers: list[mapping_of(TEACHER)] = Field(default_factory=list)  # type: ignore[valid-type]
    teachers_alone_steps: NotNegative = 0.0
    encode_chunk_size: Count | None = None

    @property
    def aligns_images(self) -> bool:
        """Return whether images of products are aligned with their texts."""
        return self.dual_alignment and self.intra_weight > 0

    @field_validator("matryoshka_dims")
    @classmethod
    def _check_widths(cls, dims: list[int]) -> list[int]:
        if len(set(dims)) < len(dims):
            raise ValueError(f"found {dims}; expected different integers of at least 1")
        return dims

    @model_validator(mode="after")
    def _check_queue(self) -> Self:
        if not self.queue_steps and (self.queue_momentum is not None or self.queue_warmup_steps):
            raise ValueError(
                "queue_momentum, queue_warmup_steps: have no effect with queue_steps 0; expected queue_steps above 0"
            )
        return self

    @model_validator(mode="after")
    def _check_compatible(self) -> Self:
        if self.compatible_with is None and self.compatible_weight != 1.0:
            raise ValueError(f"compatible_weight: found {self.compatible_weight}; expected only with compatible_with")
        return self

    @model_validator(mode="after")
    def _check_teachers(self) -> Self:
        for number, teacher in enumerate(self.teachers):
            missing = [part for part in ("vectors", "form") if not teacher.get(part)]
            missing = [part for part in missing if part != "vectors" or not teacher.get("encoder")]
            if missing:
                raise ValueError(
                    f"teachers[{number}]: found no {missing[0]}; expected vectors: FOLDER and form: t, i or mm, or an "
                    "encoder in place of vectors"
                )
            if "vectors" in teacher and "encoder" in teacher:
                raise ValueError(f"teachers[{number}]: found vectors and encoder; expected one of them")
        if self.teachers_alone_steps and not self.teachers:
            raise ValueError(f"teachers_alone_steps: found {self.teachers_alone_steps}; expected only with teachers")
        return self

    @model_validator(mode="after")
    def _check_alignment(self) -> Self:
        """Raise ValueError for keys of dual alignment without dual_alignment."""
        unread = {"alignment_weights": None, "symmetric_intra": False, "intra_weight": 1.0}
        for key, default in unread.items():
            if not self.dual_alignment and getattr(self, key) != default:
                raise ValueError(f"{key}: found {getattr(self, key)!r}; expected only with dual_alignment: true")
        return self


def queue_length(queue_steps: int | str, processes: int) -> int:
    """Return w, the number of past steps that the queue keeps.

    `w = max(round(200 / P), 1) - 1` for "auto", so that P · (w + 1) stays near 200 for any number P of processes.
    Source: MOON, arXiv 2508.11999 §3.2, with P = 64 and w = 2. For other P, we assume that only the multiple matters.

    Args:
        queue_steps (`int` or `"auto"`): the recipe's value. A number is returned unchanged.
        processes: P, the number of processes that train together.

    Raises:
        ValueError: `queue_steps` is a word other than "auto".
    """
    if isinstance(queue_steps, int):
        return queue_steps
    if queue_steps != AUTO:
        raise ValueError(f"queue_steps: found {queue_steps!r}; expected {AUTO}, or an integer of at least 0")
    return max(round(PUBLISHED_MULTIPLE / processes), 1) - 1
