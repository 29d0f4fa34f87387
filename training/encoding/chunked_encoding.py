"""Big batches in little memory: encoding chunk by chunk with the gradient of the whole batch.

Shape suffixes: B rows of a batch, R chosen rows, T tokens of a row, G images of the batch.
"""

import contextlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

PICTURE_KEYS = ("pixel_values", "image_grid_thw")

Vectors = dict[str, Tensor]
"""What encoding gives, by name; each tensor has its rows along its first dimension."""


def number_of_rows(inputs: Mapping[str, Tensor]) -> int:
    """Return how many rows a batch of the processor (or of any tensors with rows along the first dimension) has."""
    return len(next(tensor for name, tensor in inputs.items() if name not in PICTURE_KEYS))


def images_per_row(inputs: Mapping[str, Tensor]) -> Tensor:
    """Return how many images stand in each row of a batch of the processor.

    An image of g patches takes g / m² image tokens, m² the same for all; so the order of images and the number of image
    tokens in each row decide.

    Shapes:
        (B,) int64.
    """
    token_B = (inputs["mm_token_type_ids"] == 1).sum(dim=1)
    if "image_grid_thw" not in inputs:
        return torch.zeros_like(token_B)
    patch_G = inputs["image_grid_thw"].prod(dim=1)
    token_G = patch_G * token_B.sum() // patch_G.sum()
    row_G = torch.searchsorted(token_B.cumsum(0), token_G.cumsum(0))
    return torch.bincount(row_G, minlength=len(token_B))


def select_rows(inputs: Mapping[str, Tensor], rows: Tensor) -> dict[str, Tensor]:
    """Return the batch of some rows, with their images, and without columns that then are padding in every row.

    Args:
        inputs: a batch of the processor, or any tensors with rows along the first dimension.
        rows: the chosen rows, ascending.

    Shapes:
        tensors (B, …) and rows (R,) int64 → tensors (R, …).

    Raises:
        ValueError: rows that do not ascend, or lie outside the batch.
    """
    count = number_of_rows(inputs)
    if len(rows) and (int(rows[0]) < 0 or int(rows[-1]) >= count or bool((rows.diff() <= 0).any())):
        raise ValueError(f"rows: found {rows.tolist()}; expected ascending numbers from 0 to {count - 1}")
    chosen = {name: tensor[rows] for name, tensor in inputs.items() if name not in PICTURE_KEYS}
    chosen = _without_padding(chosen)
    if "pixel_values" in inputs:
        image_B = images_per_row(inputs)
        row_G = torch.repeat_interleave(torch.arange(count, device=image_B.device), image_B)
        kept_G = torch.isin(row_G, rows)
        if bool(kept_G.any()):
            grid = inputs["image_grid_thw"]
            chosen["image_grid_thw"] = grid[kept_G]
            chosen["pixel_values"] = inputs["pixel_values"][torch.repeat_interleave(kept_G, grid.prod(dim=1))]
    return chosen


def slice_rows(inputs: Mapping[str, Tensor], start: int, stop: int) -> dict[str, Tensor]:
    """Return the batch of the rows from `start` to `stop`, as `select_rows` does, as views: nothing is copied.

    Args:
        inputs: a batch of the processor, or any tensors with rows along the first dimension.
        start, stop: the first row, and the one after the last.
    """
    part = slice(start, stop)
    chosen = _without_padding({name: tensor[part] for name, tensor in inputs.items() if name not in PICTURE_KEYS})
    if "pixel_values" in inputs:
        image_B = images_per_row(inputs)
        first, last = int(image_B[:start].sum()), int(image_B[:stop].sum())
        if last > first:
            patch_G = inputs["image_grid_thw"].prod(dim=1)
            chosen["image_grid_thw"] = inputs["image_grid_thw"][first:last]
            chosen["pixel_values"] = inputs["pixel_values"][int(patch_G[:first].sum()) : int(patch_G[:last].sum())]
    return chosen


def _without_padding(rows: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rows without the columns that are padding in each of them."""
    mask_RT = rows.get("attention_mask")
    if mask_RT is None or not len(mask_RT):
        return rows
    used = mask_RT.any(dim=0).nonzero()[:, 0]
    columns = slice(int(used[0]), int(used[-1]) + 1) if len(used) else slice(None)
    return {name: tensor[:, columns] if tensor.shape == mask_RT.shape else tensor for name, tensor in rows.items()}


class ChunkedEncoding:
    """Encodes a batch in chunks so that only one chunk's graph is alive at a time, with the gradient of the whole batch.

    First pass: vectors without graph, the state of the random generators kept for each chunk. The caller computes the loss
    of all vectors and its gradient ∂L/∂v. Second pass: each chunk once more, from the same random state, and the backward
    of `Σ v·∂L/∂v`, whose gradient is the loss's by the chain rule. The last chunk keeps its graph from the first pass, and
    is the first of the second: one chunk's graph is alive at any time, and that chunk is encoded once.

    Source: GradCache, arXiv 2101.06983; the kept graph is our design. A second forward of the other chunks is the price;
    dropout and adapters' dropout repeat themselves.

    Args:
        encode: gives the vectors of a chunk, with gradient; all chunks give the same width under the same name, a chunk may
            lack a name.
        chunks: what `encode` takes, in order.
        without_sync: context that keeps a distributed model from averaging gradients; entered for all backward passes
            but the last, and the forward passes that belong to them.

    Raises:
        ValueError: no chunk.
        RuntimeError: `backward` without the gradient of any vector.

    Relations:
        `slice_rows` cuts chunks out of a batch of the processor.
    """

    def __init__(
        self,
        encode: Callable[[Any], Vectors],
        chunks: Sequence[Any],
        without_sync: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext,
    ) -> None:
        if not chunks:
            raise ValueError("chunks: found none; expected at least one")
        self.encode, self.chunks, self.without_sync = encode, list(chunks), without_sync
        self._states: list[_RandomState] = []
        self._rows: list[dict[str, int]] = []
        self._vectors: Vectors = {}
        self._last: Vectors = {}

    def vectors(self) -> Vectors:
        """First pass: the vectors of all chunks, leaves of the caller's graph. The last chunk keeps its graph."""
        parts: dict[str, list[Tensor]] = defaultdict(list)
        for chunk in self.chunks[:-1]:
            self._states.append(_RandomState())
            with torch.no_grad():
                self._keep(self.encode(chunk), parts)
        with self.without_sync() if self._states else contextlib.nullcontext():
            self._last = self.encode(self.chunks[-1])
        self._keep(self._last, parts)
        self._vectors = {name: torch.cat(tensors).requires_grad_() for name, tensors in parts.items()}
        return self._vectors

    def _keep(self, found: Vectors, parts: dict[str, list[Tensor]]) -> None:
        self._rows.append({name: len(tensor) for name, tensor in found.items()})
        for name, tensor in found.items():
            parts[name].append(tensor.detach())

    def backward(self, last: Callable[[], Tensor] | None = None) -> None:
        """Second pass: add the gradient of all parameters, once the caller has computed that of the vectors.

        Args:
            last: gives a further term of the last backward, such as zeros that reach every parameter.
        """
        gradients = {name: tensor.grad for name, tensor in self._vectors.items() if tensor.grad is not None}
        if not gradients:
            raise RuntimeError("chunked encoding: found no gradient of any vector; expected after the loss's backward")
        self._vectors = {}
        pieces = {
            name: gradient.split([rows[name] for rows in self._rows if name in rows])
            for name, gradient in gradients.items()
        }
        taken = {name: iter(parts) for name, parts in pieces.items()}
        of_chunk = [{name: next(taken[name]) for name in rows if name in taken} for rows in self._rows]
        last_chunk, self._last = self._last, {}
        order = [len(self.chunks) - 1, *range(len(self.chunks) - 1)]  # the graph that is there already goes first
        for place, number in enumerate(order):
            ends = place == len(order) - 1
            with contextlib.nullcontext() if ends else self.without_sync():
                if place:
                    with self._states[number].replayed():
                        found = self.encode(self.chunks[number])
                else:
                    found, last_chunk = last_chunk, {}
                terms = [last()] if ends and last is not None else []
                terms += [(found[name] * part.to(found[name].dtype)).sum() for name, part in of_chunk[number].items()]
                if any(term.requires_grad for term in terms):
                    sum(terms).backward()
                del found, terms


class _RandomState:
    """The state of the random generators, to be played again."""

    def __init__(self) -> None:
        self.cpu = torch.get_rng_state()
        self.gpu = torch.cuda.get_rng_state() if torch.cuda.is_available() else None

    @contextlib.contextmanager
    def replayed(self) -> Iterator[None]:
        devices = [] if self.gpu is None else [torch.cuda.current_device()]
        with torch.random.fork_rng(devices=devices):
            torch.set_rng_state(self.cpu)
            if self.gpu is not None:
                torch.cuda.set_rng_state(self.gpu)
            yield
