"""Gathering vectors and ids from all processes, with the right gradient and with uneven sizes.

Shape suffixes: N rows of this process, M rows of all processes together.
"""

import torch
import torch.distributed as dist
import torch.distributed.nn.functional as dist_nn
from torch import Tensor


def world_size() -> int:
    """Return the number of processes that train together; 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return this process's number among those that train together."""
    return dist.get_rank() if world_size() > 1 else 0


def gather_sizes(rows: int, device: torch.device) -> list[int]:
    """Return the number of rows that each process holds, in order of rank."""
    if world_size() == 1:
        return [rows]
    own = torch.tensor([rows], device=device)
    sizes = [torch.zeros_like(own) for _ in range(world_size())]
    dist.all_gather(sizes, own)
    return [int(size) for size in sizes]


def gather_with_gradient(tensor: Tensor) -> Tensor:
    """Concatenate the rows of all processes, so that every process's loss reaches every process's encoder.

    With per-process mean losses and gradients averaged over processes (as DDP does), the result is the gradient of
    the mean loss over the global batch. `accelerate.gather` carries no gradient, and a gather without gradient plus
    the own slice loses the other processes' pull on one's own candidates.

    Args:
        tensor: this process's rows; the number of rows may differ between processes.

    Shapes:
        (N, …) → (M, …), in order of rank. One process: the tensor itself.
    """
    if world_size() == 1:
        return tensor
    sizes = gather_sizes(len(tensor), tensor.device)
    padding = tensor.new_zeros((max(sizes) - len(tensor), *tensor.shape[1:]))
    parts = dist_nn.all_gather(torch.cat([tensor, padding]).contiguous())
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])


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
