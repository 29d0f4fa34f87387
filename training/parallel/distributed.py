"""Gather vectors and ids of all processes, with the correct gradient and for uneven sizes.

Shape suffixes: N rows of this process, M rows of all processes together.
"""

import contextlib
import datetime
import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


def world_size() -> int:
    """Return the number of processes that train together; 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return the index of this process among those that train together."""
    return dist.get_rank() if world_size() > 1 else 0


@contextlib.contextmanager
def first_process_alone() -> Iterator[bool]:
    """Yield whether this is the first process, and make the others wait for it at the end, however long it takes.

    A plain barrier fails after the timeout of the process group (half an hour by default), which the evaluation of a
    large gallery may exceed. The group with the longer timeout is created first, while all processes are at the same
    point.
    """
    if world_size() == 1:
        yield True
        return
    waiting = dist.new_group(backend="gloo", timeout=datetime.timedelta(days=30))
    yield rank() == 0
    dist.barrier(group=waiting)
    dist.destroy_process_group(waiting)


def gather_sizes(rows: int, device: torch.device) -> list[int]:
    """Return the number of rows of each process, in order of rank."""
    if world_size() == 1:
        return [rows]
    own = torch.tensor([rows], device=device)
    sizes = [torch.zeros_like(own) for _ in range(world_size())]
    dist.all_gather(sizes, own)
    return [int(size) for size in sizes]


def gather_with_gradient(tensor: Tensor) -> Tensor:
    """Concatenate the rows of all processes; see `gather_all_with_gradient`.

    Shapes:
        (N, …) → (M, …), in order of rank. With one process, the tensor itself.
    """
    return gather_all_with_gradient([tensor])[0]


def gather_all_with_gradient(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Concatenate the rows of all processes, so that the loss of each process has a gradient in all encoders.

    With the mean loss of each process and gradients averaged over processes (as in DDP), the result is the gradient of
    the mean loss over the global batch. `accelerate.gather` does not have a gradient, and a gather without gradient, in
    which a process replaces its own slice, lacks the gradient of the other processes' losses.

    All tensors are sent in a single collective, because processes could run several backward passes in different order.

    Args:
        tensors: tensors with rows of this process. The number of rows may differ between processes and tensors.

    Shapes:
        each (N, …) → (M, …) of the same dtype, in order of rank; sent in the widest of the dtypes, at least float32.
        With one process, the tensors themselves.
    """
    if world_size() == 1 or not tensors:
        return list(tensors)
    own = torch.tensor([len(tensor) for tensor in tensors], device=tensors[0].device)
    counts = [torch.zeros_like(own) for _ in range(world_size())]
    dist.all_gather(counts, own)
    widths = [math.prod(tensor.shape[1:]) for tensor in tensors]
    sizes = [sum(rows * width for rows, width in zip(count.tolist(), widths, strict=True)) for count in counts]
    wide = functools.reduce(torch.promote_types, [tensor.dtype for tensor in tensors], torch.float32)
    flat = torch.cat([tensor.to(wide).reshape(-1) for tensor in tensors])
    flat = torch.cat([flat, flat.new_zeros(max(sizes) - len(flat))])
    parts: list[list[Tensor]] = [[] for _ in tensors]
    for received, count in zip(_AllGather.apply(flat), counts, strict=True):
        start = 0
        for place, (tensor, rows, width) in enumerate(zip(tensors, count.tolist(), widths, strict=True)):
            piece = received[start : start + rows * width]
            parts[place].append(piece.reshape(rows, *tensor.shape[1:]).to(tensor.dtype))
            start += rows * width
    return [torch.cat(part) for part in parts]


class _AllGather(torch.autograd.Function):
    """Gather (S,) into (P, S) over P processes. The gradient of a row is the sum of the gradients of all processes."""

    @staticmethod
    def forward(ctx: Any, own: Tensor) -> Tensor:
        rows = [torch.empty_like(own) for _ in range(world_size())]
        dist.all_gather(rows, own.contiguous())
        return torch.stack(rows)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.contiguous().clone()
        dist.all_reduce(total)
        return total[rank()]


def gather_ids(ids: Tensor) -> Tensor:
    """Concatenate the integer rows of all processes, without gradient; see `gather_with_gradient`.

    Shapes:
        (N,) int64 → (M,) int64.
    """
    if world_size() == 1:
        return ids
    sizes = gather_sizes(len(ids), ids.device)
    padded = torch.cat([ids, ids.new_zeros(max(sizes) - len(ids))])
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded)
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])


def first_row(rows: int, device: torch.device) -> int:
    """Return the index of the first row of this process in the gathered tensor."""
    return sum(gather_sizes(rows, device)[: rank()])


def mean_rows(rows: int, device: torch.device) -> float:
    """Return the number of rows of all processes divided by the number of processes.

    A sum over the rows of a process is divided by it, so that the average over processes is the mean over all rows.
    """
    return sum(gather_sizes(rows, device)) / world_size()


class _Touch(torch.autograd.Function):
    """Return zero, with a zero gradient for every argument."""

    @staticmethod
    def forward(ctx: Any, *parameters: Tensor) -> Tensor:
        ctx.save_for_backward(*parameters)
        return torch.zeros((), device=parameters[0].device)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        return tuple(parameter.new_zeros(()).expand(parameter.shape) for parameter in ctx.saved_tensors)


def touch_every_parameter(model: nn.Module) -> Tensor:
    """Return zero, with a zero gradient for every trainable parameter.

    DDP waits for the gradient of each parameter, including those of the vision tower in a batch of texts, and
    preferences of experts that the loss does not use. `find_unused_parameters` fails if a batch of texts follows one
    with pictures.
    """
    return _Touch.apply(*(parameter for parameter in model.parameters() if parameter.requires_grad))
