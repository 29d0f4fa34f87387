"""Train the cold start: the model learns to write attributes, together with the contrastive objective.

Shape suffixes: B rows of one forward pass, T tokens of a row, N tokens to be written, D embedding width, V vocabulary.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from training.batches.reasoning_labels import IGNORED
from training.contrastive.streamed_trainer import StreamedTrainer
from training.contrastive.terms import Terms
from training.contrastive.trainer import ContrastiveTrainer
from training.encoding.batch_encoding import (
    CROSS_ENTROPY,
    REASONED_ROWS,
    RIGHT_TOKENS,
    WRITTEN_TOKENS,
    BatchEncoder,
    encoded_rows,
)
from training.encoding.chunked_encoding import Vectors
from training.parallel.distributed import mean_rows

_ONLY_VECTORS: dict[str, Any] = {"output_embeddings": True, "logits_to_keep": None}


@dataclass
class Written:
    """The output of a forward pass of `WritingEncoder`.

    Args:
        embeddings: (B, D), from the model.
        last_hidden_state: (B, T, hidden width), from the model, which teachers read.
        router_loss, expert_gates: the model's router loss and expert gates, or None if they were not requested.
        sums: name → (1,) float32, sums over the rows: "written_tokens" and "reasoned_rows", and with the cross-entropy
            "cross_entropy" (with gradient) and "right_tokens".
    """

    embeddings: Tensor
    last_hidden_state: Tensor
    router_loss: Tensor | None
    expert_gates: Tensor | None = None
    sums: dict[str, Tensor] = field(default_factory=dict)


class WritingEncoder:
    """Compute vectors and the cross-entropy of the labels in a single forward pass.

    `Σ_n −log p(label_n | all tokens before it)`. Logits are computed only at positions that predict a label.

    Args:
        model: a `MoonForConditionalGeneration`, wrapped or not.
        cross_entropy: whether to compute the cross-entropy. Otherwise the output layer is not used.

    Shapes:
        Called with "labels" (B, T) int64, see `training.batches.reasoning_labels`, and the processor's tensors, it
        returns `Written`.
    """

    def __init__(self, model: nn.Module, cross_entropy: bool) -> None:
        self.model, self.cross_entropy = model, cross_entropy

    def named_modules(self) -> Iterator[tuple[str, nn.Module]]:
        """Return the modules of the model, among which the batch encoder looks for the vision tower."""
        return self.model.named_modules()

    def __call__(self, *, labels: Tensor, **inputs: Any) -> Written:
        is_label_BT = labels != IGNORED
        predicts_BT = is_label_BT.roll(-1, dims=1)
        predicts_BT[:, -1] = False  # the first token is not predicted
        kept = predicts_BT if self.cross_entropy else None
        output = self.model(**inputs, output_embeddings=True, logits_to_keep=kept)
        sums = {WRITTEN_TOKENS: is_label_BT.sum(), REASONED_ROWS: is_label_BT.any(dim=1).sum()}
        if self.cross_entropy:
            target_N = labels[:, 1:][is_label_BT[:, 1:]]
            sums[CROSS_ENTROPY] = functional.cross_entropy(output.logits.float(), target_N, reduction="sum")
            sums[RIGHT_TOKENS] = (output.logits.detach().argmax(dim=-1) == target_N).sum()
        sums = {name: value.float().reshape(1) for name, value in sums.items()}
        states = (output.embeddings, output.last_hidden_state)
        return Written(*states, output.router_loss, output.expert_gates, sums)


class ColdStartTrainer(ContrastiveTrainer):
    """ContrastiveTrainer whose model also learns to write the reasoning texts in the batches.

    `L = α · L_CE + β · L_contrastive`, with `L_CE = −1/N · Σ_n log p(y_n | y_<n, x)` over the N tokens of all reasoning
    texts, with their `</think>`, of queries and products of all processes, in all forms with dual alignment. L_contrastive is
    the objective of ContrastiveTrainer, with all its terms, and with the vectors after the reasoning.

    Source: LREM, arXiv 2510.14321, cold start (α = 0.1, β = 1); the cold start of MOON3.0, arXiv 2604.00513, is not
    published. Reasoning texts for both queries and products, and the mean over all tokens, are our design. With
    gradient accumulation, each micro-batch has its own N.

    Args:
        ce_weight: α, at least 0. Default: 0.1. 0: the output layer is not used.
        contrastive_weight: β, at least 0. Default: 1.0.
        **kwargs: arguments of ContrastiveTrainer, with a `MoonForConditionalGeneration` (with or without adapters) as
            model and a `training.batches.collate.PairCollator` with reasoning "given" or "mixed".

    Raises:
        ValueError: a weight is out of range, the model does not generate or reason, or the batches do not have labels.

    Relations:
        Use `StreamedColdStartTrainer` for streams. It also logs loss_contrastive, loss_ce, ce_accuracy (the share of
        correctly predicted tokens) and reasoned_share (of queries and products; each form counts). GRPO starts from its
        checkpoints.
    """

    def __init__(self, *, ce_weight: float = 0.1, contrastive_weight: float = 1.0, **kwargs: Any) -> None:
        for name, weight in (("ce_weight", ce_weight), ("contrastive_weight", contrastive_weight)):
            if not 0 <= weight < math.inf:
                raise ValueError(f"{name}: found {weight}; expected a finite number of at least 0")
        if not ce_weight + contrastive_weight:
            raise ValueError("ce_weight, contrastive_weight: found 0 for both; expected at least one above 0")
        super().__init__(**kwargs)
        bare: Any = self._bare_model()
        budget = getattr(bare.config, "max_reasoning_tokens", None)
        if not hasattr(bare, "lm_head") or budget is None:
            raise ValueError(
                f"model: found {type(kwargs['model']).__name__} with max_reasoning_tokens={budget}; expected a "
                "MoonForConditionalGeneration that reasons"
            )
        self.ce_weight, self.contrastive_weight = float(ce_weight), float(contrastive_weight)

    def _encoder(self, model: nn.Module) -> BatchEncoder:
        return super()._encoder(WritingEncoder(model, self.ce_weight > 0))  # type: ignore[arg-type]

    def _encode_for_queue(self, inputs: dict[str, Any]) -> Tensor:
        unlabelled = {name: tensor for name, tensor in inputs.items() if name != "labels"}
        return super()._encode_for_queue({**unlabelled, **_ONLY_VECTORS})

    def _parts(self, inputs: Mapping[str, Any]) -> list[Any]:
        missing = [side for side in ("queries", "products") if "labels" not in inputs[side]]
        if missing:
            raise ValueError(
                f"batch: found no labels for {' and '.join(missing)}; expected a collator with reasoning 'given' or "
                "'mixed'"
            )
        return super()._parts(inputs)

    def _whole_objective(self, parts: dict[str, Tensor], vectors: Vectors) -> dict[str, Tensor]:
        contrastive = parts["loss"]
        parts = {**parts, "loss": self.contrastive_weight * contrastive, "loss_contrastive": contrastive}
        count = mean_rows(int(vectors[WRITTEN_TOKENS].detach().sum()), contrastive.device) if self.ce_weight else 0
        if not count:
            return parts
        ce = vectors[CROSS_ENTROPY].sum() / count
        return {**parts, "loss": parts["loss"] + self.ce_weight * ce, "loss_ce": ce}

    def _measure(self, vectors: Vectors, inputs: Mapping[str, Any], terms: Terms, parts: Mapping[str, Tensor]) -> None:
        super()._measure(vectors, inputs, terms, parts)
        if RIGHT_TOKENS in vectors:
            self._meters.add("ce_accuracy", vectors[RIGHT_TOKENS].sum(), vectors[WRITTEN_TOKENS].sum())
        self._meters.add("reasoned_share", vectors[REASONED_ROWS].sum(), encoded_rows(vectors))


class StreamedColdStartTrainer(StreamedTrainer, ColdStartTrainer):
    """ColdStartTrainer for streams, which resumes exactly within an epoch like `StreamedTrainer`.

    Args:
        batches: see `StreamedTrainer`; their `pairs` are `training.labels.reasoning.ReasonedRows`.
        **kwargs: arguments of ColdStartTrainer, with a `training.batches.streams.StreamCollator` with reasoning "given"
            or "mixed".
    """
