"""Encode large batches in little memory: chunk by chunk, with the gradient of the whole batch.

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
"""The output of an encoder, by name. The first dimension of each tensor counts its rows."""


def number_of_rows(inputs: Mapping[str, Tensor]) -> int:
    """Return the number of rows of a batch from the processor, or of any tensors with rows along the first dimension."""
    return len(next(tensor for name, tensor in inputs.items() if name not in PICTURE_KEYS))


def images_per_row(inputs: Mapping[str, Tensor]) -> Tensor:
    """Return the number of images in each row of a batch from the processor.

    An image of g patches takes g / m² image tokens, with the same m² for all images. The number of image tokens of each
    row and the order of the images therefore determine the result.

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
    """Select rows of a batch with their images, and drop the columns that are padding in every selected row.

    Args:
        inputs: a batch from the processor, or any tensors with rows along the first dimension.
        rows: the selected rows, ascending.

    Shapes:
        tensors (B, …) and rows (R,) int64 → tensors (R, …).

    Raises:
        ValueError: the rows are not ascending or not in the batch.
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
    """Select the rows from `start` to `stop` like `select_rows`, but as views, without a copy.

    Args:
        inputs: a batch from the processor, or any tensors with rows along the first dimension.
        start, stop: the first row, and the row after the last.
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
    """Return the rows without the columns that are padding in every row."""
    mask_RT = rows.get("attention_mask")
    if mask_RT is None or not len(mask_RT):
        return rows
    used = mask_RT.any(dim=0).nonzero()[:, 0]
    columns = slice(int(used[0]), int(used[-1]) + 1) if len(used) else slice(None)
    return {name: tensor[:, columns] if tensor.shape == mask_RT.shape else tensor for name, tensor in rows.items()}


class ChunkedEncoding:
    """Encode a batch in chunks, with the gradient of the whole batch and the graph of only one chunk in memory.

    The first pass encodes each chunk without a graph and stores the state of the random generators. The caller then
    computes the loss of all vectors and its gradient ∂L/∂v. The second pass encodes each chunk again from the same
    random state and runs the backward pass of `Σ v·∂L/∂v`, whose gradient is that of the loss by the chain rule. The
    last chunk keeps its graph from the first pass and is the first chunk of the second pass, so it is encoded only
    once.

    Source: GradCache, arXiv 2101.06983; the kept graph is our design. The cost is a second forward pass of the other
    chunks. Dropout, including that of adapters, repeats exactly.

    Args:
        encode: returns the vectors of a chunk, with gradient. Vectors of the same name have the same width in all
            chunks; a chunk does not need to return every name.
        chunks: the arguments of `encode`, in order.
        without_sync: context in which a distributed model does not average gradients. It surrounds all backward passes
            except the last, and their forward passes.

    Raises:
        ValueError: `chunks` is empty.
        RuntimeError: `backward` is called before any vector has a gradient.

    Relations:
        `slice_rows` returns a chunk of a batch from the processor.
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
        """Run the first pass and return the vectors of all chunks, which are leaves of the caller's graph."""
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

    def _keep(self, vectors: Vectors, parts: dict[str, list[Tensor]]) -> None:
        self._rows.append({name: len(tensor) for name, tensor in vectors.items()})
        for name, tensor in vectors.items():
            parts[name].append(tensor.detach())

    def backward(self, last: Callable[[], Tensor] | None = None) -> None:
        """Run the second pass: add the gradient of all parameters, after the caller has computed that of the vectors.

        Args:
            last: returns an additional term of the last backward pass, such as a zero that depends on every parameter.
        """
        gradients = {name: tensor.grad for name, tensor in self._vectors.items() if tensor.grad is not None}
        if not gradients:
            raise RuntimeError("chunked encoding: found no vector with a gradient; call loss.backward() first")
        self._vectors = {}
        pieces = {
            name: gradient.split([rows[name] for rows in self._rows if name in rows])
            for name, gradient in gradients.items()
        }
        taken = {name: iter(parts) for name, parts in pieces.items()}
        of_chunk = [{name: next(taken[name]) for name in rows if name in taken} for rows in self._rows]
        last_chunk, self._last = self._last, {}
        order = [len(self.chunks) - 1, *range(len(self.chunks) - 1)]  # the kept graph first
        for place, number in enumerate(order):
            is_last = place == len(order) - 1
            with contextlib.nullcontext() if is_last else self.without_sync():
                if place:
                    with self._states[number].replayed():
                        vectors = self.encode(self.chunks[number])
                else:
                    vectors, last_chunk = last_chunk, {}
                terms = [last()] if is_last and last is not None else []
                terms += [
                    (vectors[name] * part.to(vectors[name].dtype)).sum() for name, part in of_chunk[number].items()
                ]
                if any(term.requires_grad for term in terms):
                    sum(terms).backward()
                del vectors, terms


class _RandomState:
    """The state of the random generators, which `replayed` restores."""

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
