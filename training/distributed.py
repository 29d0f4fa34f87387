"""Gathering vectors and ids from all processes, with the right gradient and with uneven sizes.

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
    """Return this process's number among those that train together."""
    return dist.get_rank() if world_size() > 1 else 0


@contextlib.contextmanager
def first_process_alone() -> Iterator[bool]:
    """Yield whether this is the first process, and let the others wait for it at the end, however long it takes.

    A plain barrier gives up after the process group's timeout (half an hour by default), which an evaluation of a large
    gallery may exceed. The group that waits is made beforehand, while all processes are at the same place.
    """
    if world_size() == 1:
        yield True
        return
    patient = dist.new_group(backend="gloo", timeout=datetime.timedelta(days=30))
    yield rank() == 0
    dist.barrier(group=patient)
    dist.destroy_process_group(patient)


def gather_sizes(rows: int, device: torch.device) -> list[int]:
    """Return the number of rows that each process holds, in order of rank."""
    if world_size() == 1:
        return [rows]
    own = torch.tensor([rows], device=device)
    sizes = [torch.zeros_like(own) for _ in range(world_size())]
    dist.all_gather(sizes, own)
    return [int(size) for size in sizes]


def gather_with_gradient(tensor: Tensor) -> Tensor:
    """Concatenate the rows of all processes; see `gather_all_with_gradient`.

    Shapes:
        (N, …) → (M, …), in order of rank. One process: the tensor itself.
    """
    return gather_all_with_gradient([tensor])[0]


def gather_all_with_gradient(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Concatenate the rows of all processes, so that every process's loss reaches every process's encoder.

    With per-process mean losses and gradients averaged over processes (as DDP does), the result is the gradient of
    the mean loss over the global batch. `accelerate.gather` carries no gradient, and a gather without gradient plus
    the own slice loses the other processes' pull on one's own candidates.

    All tensors travel in one exchange: the backward of several could come in another order in another process.

    Args:
        tensors: this process's rows of each; the number of rows may differ between processes and tensors.

    Shapes:
        each (N, …) → (M, …) of its own dtype, in order of rank; they travel in the widest of these, float32 at least.
        One process: the tensors themselves.
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
    """(S,) → (P, S), the same of all processes; the gradient of a row is the sum of all processes' for it."""

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
    """Return where this process's rows begin in the gathered tensor."""
    return sum(gather_sizes(rows, device)[: rank()])


def mean_rows(rows: int, device: torch.device) -> float:
    """Return the number of rows of all processes over the number of processes: the divisor of a process's sum, so that
    the average over processes is the mean over all rows."""
    return sum(gather_sizes(rows, device)) / world_size()


class _Touch(torch.autograd.Function):
    """Zero, with a gradient of zero for every argument."""

    @staticmethod
    def forward(ctx: Any, *parameters: Tensor) -> Tensor:
        ctx.save_for_backward(*parameters)
        return torch.zeros((), device=parameters[0].device)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        return tuple(parameter.new_zeros(()).expand(parameter.shape) for parameter in ctx.saved_tensors)


def touch_every_parameter(model: nn.Module) -> Tensor:
    """Zero, with a gradient of zero for every parameter that learns.

    DDP waits for the gradient of each parameter: also for the vision tower in a batch of texts, for experts' preferences
    that a loss leaves out. `find_unused_parameters` fails where a picture batch is followed by a text batch.
    """
    return _Touch.apply(*(parameter for parameter in model.parameters() if parameter.requires_grad))
