"""Hold the result of encoding records: unit vectors, and what was skipped, shortened and written."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from processing_moon import Reasoning
from processing_moon.batch_moon import Shortened
from retrieval.model_kinds import CheckpointError


@dataclass(frozen=True)
class SkippedRecord:
    """A record that could not be encoded: its index in the input, its name, the field, and the reason."""

    index: int
    item: str
    field: str
    reason: str

    def as_dict(self) -> dict[str, Any]:
        """Return the entry of the results file."""
        return {"item": self.item, "field": self.field, "reason": self.reason}


@dataclass(frozen=True)
class Encoded:
    """Vectors of the records that could be encoded.

    `reasoning[r]` is the written or given reasoning of row r; `reasoning` is None without reasoning. `tokens[r]` is the
    number of tokens that the model wrote for row r, `</think>` included; `tokens` is None unless the model wrote them.
    `shortened` lists the texts that were cut and the pictures that were resized to keep the token budget, by the
    record's index in the input.

    Shapes: `vectors` (N_kept, D) float32, each of unit length; row r belongs to record `kept[r]`; `kept` is ascending.
    """

    vectors: np.ndarray
    kept: list[int]
    skipped: list[SkippedRecord]
    reasoning: list[Reasoning] | None = None
    tokens: list[int] | None = None
    shortened: list[Shortened] = field(default_factory=list)


def describe_skipped(records: str, encoded: Encoded) -> str:
    """Return a sentence that all records were skipped, with the reason for the first.

    Args:
        records: name of the records, such as "products".
        encoded: a result that has no vectors and at least one skipped record.
    """
    first = encoded.skipped[0]
    return (
        f"all {len(encoded.skipped)} {records} were skipped because they could not be read; "
        f"first: {first.item!r}, {first.field}: {first.reason}"
    )


def vectors_of(output: Any) -> torch.Tensor:
    """Return the vectors (B, D) of a model's output.

    Raises:
        ValueError: the output has no vectors, because the input lacks the tokens that the model reads them from.
    """
    if output.embeddings is None:
        raise ValueError(
            "the model returned no vectors: the inputs lack the tokens that it reads them from (such as <emb>); "
            "expected a batch from the checkpoint's processor"
        )
    return output.embeddings


def unit_vectors(vectors_ND: np.ndarray, kept: list[int]) -> np.ndarray:
    """Return vectors divided by their lengths, in float32.

    Args:
        vectors_ND: (N, D) vectors.
        kept: the index in the input of each row, for error messages.

    Raises:
        CheckpointError: vectors that are not finite.
    """
    bad = [kept[row] for row in np.flatnonzero(~np.isfinite(vectors_ND).all(axis=1))]
    if bad:
        raise CheckpointError(
            f"found vectors that are not finite for {len(bad)} records (indices {bad[:5]}); expected finite numbers"
        )
    norm_N1 = np.linalg.norm(vectors_ND, axis=1, keepdims=True)
    return (vectors_ND / np.maximum(norm_N1, 1e-12)).astype(np.float32)
