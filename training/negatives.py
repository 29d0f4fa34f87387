# ruff: noqa: N815  (shape suffixes are part of a field's name)
"""Negatives beyond the batch: the queue of past steps, and the mask of candidates that are no negatives.

Shape suffixes: B queries, C candidates, D embedding width, P known positives of a query (padded with NO_ID),
N known negatives of a query (padded with NO_ID).
"""

import hashlib
from collections import deque
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

NO_ID = -1


def stable_id(text: str) -> int:
    """Return the 63-bit integer that stands for a product or group name, the same in every process and run.

    Our design: a BLAKE2b digest instead of a table, so that ids in a saved queue stay right on every rank and when
    a data set grows. Two of a billion names collide with a probability of about 5 %, two of a million with 5e-8.

    Args:
        text: the full name, with the data set in front ("fashion/fa-10000").
    """
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


@dataclass
class Candidates:
    """Vectors that queries are compared with, and what is known about each.

    Shapes:
        vector_CD (C, D) float; product_C (C,) int64 ids from `stable_id`; group_C (C,) int64, NO_ID where a product
        belongs to no variant group.
    """

    vector_CD: Tensor
    product_C: Tensor
    group_C: Tensor

    def __len__(self) -> int:
        return len(self.product_C)


class NegativeQueue:
    """The candidates of the last w steps, as further negatives without gradient.

    Source: MOON's temporal negatives, arXiv 2508.11999: 2·P·B·(w+1) candidates a step (P workers, B queries, one
    positive and one hard negative each). A ring over steps, not over items, so that every step's items leave
    together even where steps differ in size.

    Args:
        max_steps: w, the number of past steps kept; 0 keeps none. A step is one forward pass: with gradient
            accumulation every micro-batch counts.

    Raises:
        ValueError: `max_steps` is negative; the pushed tensors do not fit each other or what is already kept; or a
            saved state belongs to a queue of another length.
    """

    def __init__(self, max_steps: int) -> None:
        if max_steps < 0:
            raise ValueError(f"max_steps: found {max_steps}; accepted: 0 or more")
        self.max_steps = max_steps
        self._steps: deque[Candidates] = deque(maxlen=max_steps)

    def __len__(self) -> int:
        return sum(len(step) for step in self._steps)

    def push(self, step: Candidates) -> None:
        """Keep one step's candidates, detached; the oldest step leaves when the queue is full."""
        if step.vector_CD.dim() != 2 or not len(step.vector_CD) == len(step.product_C) == len(step.group_C):
            raise ValueError(
                f"step: found vectors {tuple(step.vector_CD.shape)} with {len(step.product_C)} product ids and "
                f"{len(step.group_C)} group ids; accepted: (C, D) with C of each"
            )
        if self._steps and self._steps[0].vector_CD.shape[1] != step.vector_CD.shape[1]:
            raise ValueError(
                f"step: found vectors of width {step.vector_CD.shape[1]}; "
                f"accepted: {self._steps[0].vector_CD.shape[1]}, as in the queue"
            )
        if self.max_steps:
            kept = (tensor.detach().clone() for tensor in (step.vector_CD, step.product_C, step.group_C))
            self._steps.append(Candidates(*kept))

    def items(self) -> Candidates | None:
        """Return everything kept, the oldest step first, or None while nothing is."""
        if not len(self):
            return None
        return Candidates(
            torch.cat([step.vector_CD for step in self._steps]),
            torch.cat([step.product_C for step in self._steps]),
            torch.cat([step.group_C for step in self._steps]),
        )

    def state_dict(self) -> dict[str, Any]:
        """Return what `load_state_dict` needs to continue exactly."""
        steps = [
            {"vector_CD": step.vector_CD.cpu(), "product_C": step.product_C.cpu(), "group_C": step.group_C.cpu()}
            for step in self._steps
        ]
        return {"max_steps": self.max_steps, "steps": steps}

    def load_state_dict(self, state: dict[str, Any], device: torch.device | str = "cpu") -> None:
        """Take over a saved state.

        Args:
            state: what `state_dict` returned.
            device: where the vectors shall lie.
        """
        if state["max_steps"] != self.max_steps:
            raise ValueError(f"queue: found a saved queue of {state['max_steps']} steps; accepted: {self.max_steps}")
        self._steps.clear()
        for step in state["steps"]:
            self._steps.append(Candidates(*(step[name].to(device) for name in ("vector_CD", "product_C", "group_C"))))


@dataclass
class QueryFacts:
    """What is known about each query of a batch, as far as masking needs it.

    Shapes:
        product_B (B,) the product that answers it; group_B (B,) that product's variant group, NO_ID to ignore
        groups; other_BP (B, P) further products that are no negatives (known positives, the reference product of a
        "same in blue" query); negative_BN (B, N) products known to be wrong, which a shared group does not excuse.
        All int64 ids, padded with NO_ID.
    """

    product_B: Tensor
    group_B: Tensor
    other_BP: Tensor
    negative_BN: Tensor


def false_negative_mask(
    queries: QueryFacts, product_C: Tensor, group_C: Tensor, target_B: Tensor | None = None
) -> Tensor:
    """Mark the candidates that must not count as negatives of a query.

    excluded(b, c) = same product as the answer, or a known positive of b, or the answer's variant group and not a
    known negative of b; never the answer's own row.

    Source: our design (precedent: the false-negative masks of Qwen3-VL-Embedding, arXiv 2601.04720). The paper
    is silent, but with a queue of past steps the same product comes back within a few steps.

    Args:
        queries: what is known about each query.
        product_C: the candidates' product ids.
        group_C: the candidates' group ids, NO_ID for none.
        target_B: the row of each query's own answer, where it is among the candidates.

    Shapes:
        product_C, group_C (C,) int64; target_B (B,) int64. Returns (B, C) bool.

    Raises:
        ValueError: product_C and group_C differ in length.
    """
    if product_C.shape != group_C.shape:
        raise ValueError(f"group_C: found {tuple(group_C.shape)}; accepted: {tuple(product_C.shape)}, as product_C")
    same_group_BC = (queries.group_B[:, None] == group_C[None, :]) & (group_C != NO_ID)[None, :]
    known_wrong_BC = _contains(queries.negative_BN, product_C)
    excluded_BC = (queries.product_B[:, None] == product_C[None, :]) | _contains(queries.other_BP, product_C)
    excluded_BC = excluded_BC | (same_group_BC & ~known_wrong_BC)
    if target_B is not None:
        excluded_BC = excluded_BC.scatter(1, target_B[:, None], False)
    return excluded_BC


def _contains(ids_BK: Tensor, product_C: Tensor) -> Tensor:
    """Return (B, C): whether row b of the padded ids holds product c. Row by row: K can be thousands."""
    if not len(ids_BK):
        return torch.zeros((0, len(product_C)), dtype=torch.bool, device=product_C.device)
    return torch.stack([torch.isin(product_C, row[row != NO_ID]) for row in ids_BK])
