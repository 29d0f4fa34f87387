"""Negatives beyond the batch: the queue of past steps, its drift, and the masking of false negatives.

Shape suffixes: B queries, C candidates, K candidates of one block, D embedding width, P known positives of a query
(padded with NO_ID), N known negatives of a query (padded with NO_ID), M rows of a probe, U different products.
"""

import hashlib
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

NO_ID = -1


def stable_id(text: str) -> int:
    """Return the 63-bit integer id of a product or group name, which is the same in every process and run.

    Our design: a BLAKE2b digest instead of a table, so that ids in a saved queue remain valid on every rank, and when a
    data set grows. Two of a billion names collide with a probability of about 5 %, two of a million with 5e-8.

    Args:
        text: the full name, including the data set, such as "fashion/fa-10000".
    """
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


@dataclass
class Candidates:
    """The vectors with which queries are compared, with the ids of their products and variant groups.

    Shapes:
        vector_CD (C, D) float; product_C (C,) int64 ids from `stable_id`; group_C (C,) int64, NO_ID for a product
        without a variant group.
    """

    vector_CD: Tensor
    product_C: Tensor
    group_C: Tensor

    def __len__(self) -> int:
        return len(self.product_C)


class NegativeQueue:
    """The candidates of the last w steps, which are additional negatives without gradient.

    Source: MOON's temporal negatives, arXiv 2508.11999 §3.2: 2·P·B·(w+1) candidates in a step (P workers, B queries,
    each with a positive and a hard negative). The queue is a ring over steps, not over products, so all candidates of a
    step leave together even if steps differ in size. The rows are in a single buffer on the device, of at most twice
    the queue's size. Reading does not copy, and a row that a graph may still use is never overwritten.

    Args:
        max_steps: w, the number of past steps; 0 for an empty queue. A step is one forward pass: with gradient
            accumulation, every micro-batch counts.

    Raises:
        ValueError: `max_steps` is negative, the shapes of pushed tensors do not match each other or the queue, or a
            saved state belongs to a queue of a different length.
    """

    def __init__(self, max_steps: int) -> None:
        if max_steps < 0:
            raise ValueError(f"max_steps: found {max_steps}; expected 0 or more")
        self.max_steps = max_steps
        self._sizes: deque[int] = deque()
        self._buffer: Candidates | None = None
        self._first = 0

    def __len__(self) -> int:
        return sum(self._sizes)

    def push(self, step: Candidates) -> None:
        """Add the detached candidates of a step. If the queue is full, the oldest step is removed."""
        if step.vector_CD.dim() != 2 or not len(step.vector_CD) == len(step.product_C) == len(step.group_C):
            raise ValueError(
                f"step: found vectors {tuple(step.vector_CD.shape)} with {len(step.product_C)} product ids and "
                f"{len(step.group_C)} group ids; expected (C, D) with C of each"
            )
        kept = self.items()
        if kept is not None and kept.vector_CD.shape[1] != step.vector_CD.shape[1]:
            raise ValueError(
                f"step: found vectors of width {step.vector_CD.shape[1]}; "
                f"expected {kept.vector_CD.shape[1]}, as in the queue"
            )
        if not self.max_steps:
            return
        if len(self._sizes) == self.max_steps:
            self._first += self._sizes.popleft()
        buffer = self._with_room_for(step)
        end = self._first + len(self)
        for name, tensor in _tensors(buffer).items():
            # .data does not change the version of the buffer, so that graphs over its other rows remain valid.
            tensor.data[end : end + len(step)] = getattr(step, name).detach()
        self._sizes.append(len(step))

    def _with_room_for(self, step: Candidates) -> Candidates:
        """Return the buffer, or a new one of twice the needed size that begins with the rows of the queue."""
        kept = self.items()
        if self._buffer is not None and self._first + len(self) + len(step) <= len(self._buffer):
            return self._buffer
        tensors = {}
        for name, tensor in _tensors(step).items():
            tensors[name] = tensor.new_empty((2 * (len(self) + len(step)), *tensor.shape[1:])).detach()
            if kept is not None:
                tensors[name][: len(self)] = getattr(kept, name)
        self._buffer, self._first = Candidates(**tensors), 0
        return self._buffer

    def items(self) -> Candidates | None:
        """Return all candidates, the oldest step first, as views of the buffer; None if the queue is empty."""
        if not len(self) or self._buffer is None:
            return None
        part = slice(self._first, self._first + len(self))
        return Candidates(**{name: tensor[part] for name, tensor in _tensors(self._buffer).items()})

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the queue, from which `load_state_dict` continues exactly."""
        kept = self.items()
        parts = {} if kept is None else {name: t.split(list(self._sizes)) for name, t in _tensors(kept).items()}
        steps = [
            {name: part[number].to("cpu", copy=True) for name, part in parts.items()}
            for number in range(len(self._sizes) if parts else 0)
        ]
        return {"max_steps": self.max_steps, "steps": steps}

    def load_state_dict(self, state: dict[str, Any], device: torch.device | str = "cpu") -> None:
        """Restore a saved state.

        Args:
            state: the state from `state_dict`.
            device: the device of the vectors.
        """
        if state["max_steps"] != self.max_steps:
            raise ValueError(f"queue: found a saved queue of {state['max_steps']} steps; expected {self.max_steps}")
        self._sizes.clear()
        self._buffer, self._first = None, 0
        for step in state["steps"]:
            self.push(Candidates(*(step[name].to(device) for name in ("vector_CD", "product_C", "group_C"))))


def _tensors(candidates: Candidates) -> dict[str, Tensor]:
    return {"vector_CD": candidates.vector_CD, "product_C": candidates.product_C, "group_C": candidates.group_C}


class DriftProbe:
    """Measure how outdated the queue is, by encoding a few products again when their step is the oldest of the queue.

    `drift = mean_m (1 - cos(f_now(x_m), f_then(x_m)))` over products of a step, w steps later; then the probe starts
    again with a new step. Our design (precedent: the drift of features in cross-batch memory, arXiv 1912.06798). The
    cost is the encoding of M products every w steps.

    Args:
        max_age: w of the queue, in steps; 0 disables the probe.
        max_items: M, the number of products.
    """

    def __init__(self, max_age: int, max_items: int = 8) -> None:
        self.max_age, self.max_items = max_age, max_items
        self._watched: dict[str, Any] | None = None

    def step(
        self, take: Callable[[int], tuple[dict[str, Any], Tensor]], encode: Callable[[dict[str, Any]], Tensor]
    ) -> Tensor | None:
        """Count a step of the queue and return the drift if it is measured in this step, otherwise None.

        Args:
            take: called with M; returns the inputs of M products of this step and their vectors in the queue, (M, D).
            encode: returns the vectors (M, D) that the queue would receive for inputs now.
        """
        if not self.max_age:
            return None
        drift = None
        if self._watched is not None:
            self._watched["age"] += 1
            if self._watched["age"] < self.max_age:
                return None
            now_MD = encode(self._watched["inputs"]).detach().float()
            then_MD = self._watched["vector_MD"].to(now_MD.device).float()
            drift = (1 - functional.cosine_similarity(now_MD, then_MD)).mean()
        inputs, vector_MD = take(self.max_items)
        self._watched = {"age": 0, "inputs": inputs, "vector_MD": vector_MD.detach().clone()}
        return drift

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the probe, from which `load_state_dict` continues exactly."""
        return {"watched": _moved(self._watched, "cpu")}

    def load_state_dict(self, state: dict[str, Any], device: torch.device | str = "cpu") -> None:
        """Restore a saved state, with its tensors on a device."""
        self._watched = _moved(state["watched"], device)


def _moved(value: Any, device: torch.device | str) -> Any:
    """Return a copy of nested dictionaries with all tensors on a device."""
    if isinstance(value, dict):
        return {name: _moved(part, device) for name, part in value.items()}
    return value.to(device, copy=True) if isinstance(value, Tensor) else value


@dataclass
class QueryFacts:
    """The products that are related to each query of a batch, for masking.

    Shapes:
        product_B (B,) the product that answers it; group_B (B,) that product's variant group, NO_ID to ignore
        groups; other_BP (B, P) other products that are not negatives (known positives, the reference product of a
        "same in blue" query); negative_BN (B, N) known negatives, which remain negatives even in the answer's group.
        All int64 ids, padded with NO_ID.
    """

    product_B: Tensor
    group_B: Tensor
    other_BP: Tensor
    negative_BN: Tensor


def false_negative_mask(
    queries: QueryFacts, product_C: Tensor, group_C: Tensor, target_B: Tensor | None = None
) -> Tensor:
    """Return a mask of the candidates that must not be negatives of a query.

    excluded(b, c) = same product as the answer, or a known positive of b, or the answer's variant group and not a
    known negative of b; never the answer's own row.

    Source: our design (precedent: the false-negative masks of Qwen3-VL-Embedding, arXiv 2601.04720). MOON does not
    mention it, but in a queue of past steps the same product occurs again within a few steps.

    Args:
        queries: the related products of each query.
        product_C: the product ids of the candidates.
        group_C: the group ids of the candidates, NO_ID for none.
        target_B: the row of each query's answer, if it is among the candidates.

    Shapes:
        product_C, group_C (C,) int64; target_B (B,) int64. Returns (B, C) bool.

    Raises:
        ValueError: product_C and group_C differ in length.
    """
    if product_C.shape != group_C.shape:
        raise ValueError(f"group_C: found {tuple(group_C.shape)}; expected {tuple(product_C.shape)}, as product_C")
    same_group_BC = (queries.group_B[:, None] == group_C[None, :]) & (group_C != NO_ID)[None, :]
    known_wrong_BC = contains(queries.negative_BN, product_C)
    excluded_BC = (queries.product_B[:, None] == product_C[None, :]) | contains(queries.other_BP, product_C)
    excluded_BC = excluded_BC | (same_group_BC & ~known_wrong_BC)
    if target_B is not None:
        excluded_BC = excluded_BC.scatter(1, target_B[:, None], False)
    return excluded_BC


class FalseNegatives:
    """Mask the false negatives of a batch in blocks of candidates, without storing a (B, C) mask.

    excluded(b, c) as in `false_negative_mask`, and with a margin also if `q_b·c > q_b·positive + margin`: a candidate
    that is so much nearer than the positive probably answers the query, too. Known negatives are never excluded by the
    margin. Source of the margin: Qwen3-VL-Embedding, arXiv 2601.04720 (0.1); off by default.

    It is an `Exclusion` for the losses of `training.losses.info_nce`, and counts the excluded candidates in the first
    pass over them (with several widths, the pass over the widest vectors).

    Args:
        queries: the related products of each query.
        product_C, group_C: the ids and groups of all candidates, in the order in which the loss compares them.
        target_B: the row of each query's answer.
        margin: a difference of cosine similarities, from 0 to 2. None: exclude by ids only.

    Raises:
        ValueError: the margin is negative.
    """

    def __init__(
        self,
        queries: QueryFacts,
        product_C: Tensor,
        group_C: Tensor,
        target_B: Tensor,
        margin: float | None = None,
    ) -> None:
        if margin is not None and not margin >= 0:
            raise ValueError(f"margin: found {margin}; expected 0 or more, or None")
        self.facts, self.product_C, self.group_C = queries, product_C, group_C
        self.target_B, self.margin = target_B, margin
        self._counts: dict[int, Tensor] = {}

    def __call__(self, start: int, similarity_BK: Tensor, positive_B: Tensor) -> Tensor:
        """Return (B, K) bool for the candidates from `start` on; see `Exclusion` in `training.losses.info_nce`."""
        part = slice(start, start + similarity_BK.shape[1])
        product_K, group_K = self.product_C[part], self.group_C[part]
        excluded_BK = false_negative_mask(self.facts, product_K, group_K)
        if self.margin is not None:
            too_near_BK = similarity_BK > positive_B[:, None] + self.margin
            excluded_BK = excluded_BK | (too_near_BK & ~contains(self.facts.negative_BN, product_K))
        here_B = (self.target_B >= start) & (self.target_B < part.stop)
        excluded_BK[here_B.nonzero()[:, 0], self.target_B[here_B] - start] = False
        self._counts.setdefault(start, excluded_BK.sum())
        return excluded_BK

    def __len__(self) -> int:
        """Return the number of queries."""
        return len(self.facts.product_B)

    def excluded(self) -> Tensor:
        """Return the number of excluded (query, candidate) pairs; 0 until a loss has compared the candidates."""
        return sum(self._counts.values(), torch.zeros((), dtype=torch.int64, device=self.product_C.device))


def contains(ids_BK: Tensor, product_C: Tensor) -> Tensor:
    """Return (B, C) bool: whether row b of the ids, padded with NO_ID, contains product c."""
    row, _, column = places(ids_BK, product_C)
    found_BC = torch.zeros((len(ids_BK), len(product_C)), dtype=torch.bool, device=product_C.device)
    found_BC[row, column] = True
    return found_BC


def places(ids_BK: Tensor, product_C: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the positions of ids among products as lists, whose memory grows with the matches, not with B·K·C.

    Args:
        ids_BK: ids, padded with NO_ID, which does not match.
        product_C: the ids of products, possibly repeated.

    Shapes:
        (B, K), (C,) int64 → three (matches,) int64: the row b, the column k, and the index c of the product.
    """
    sorted_C, order_C = product_C.sort(stable=True)
    flat = ids_BK.reshape(-1)
    first = torch.searchsorted(sorted_C, flat)
    count = (torch.searchsorted(sorted_C, flat, right=True) - first).masked_fill(flat == NO_ID, 0)
    which = torch.repeat_interleave(torch.arange(len(flat), device=flat.device), count)
    nth = torch.arange(len(which), device=flat.device) - (count.cumsum(0) - count)[which]
    width = max(ids_BK.shape[1], 1)
    return which // width, which % width, order_C[first[which] + nth]


def false_negatives_among(queries: QueryFacts, row_N: Tensor, product_N: Tensor, group_N: Tensor) -> Tensor:
    """Return whether the candidate of each (query, candidate) pair is a false negative; see `false_negative_mask`.

    Args:
        queries: the related products of each query.
        row_N: the query of each pair.
        product_N, group_N: the product id and group id of each pair's candidate.

    Shapes:
        (N,) int64 each → (N,) bool.
    """
    known_wrong_N = (queries.negative_BN[row_N] == product_N[:, None]).any(dim=1)
    known_positive_N = (queries.other_BP[row_N] == product_N[:, None]).any(dim=1)
    same_group_N = (queries.group_B[row_N] == group_N) & (group_N != NO_ID)
    return (queries.product_B[row_N] == product_N) | known_positive_N | (same_group_N & ~known_wrong_N)
