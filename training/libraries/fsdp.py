"""Adapt a model that FSDP2 shards: the hooks of its layers, its sharded weights, and its class.

No other file in `training/` relies on the internals of FSDP2. torch 2.13 uses these names and signatures;
`tests/training/libraries/test_fsdp.py` checks them against the installed version.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, Replicate

SUMS_UNUSED = "set_reduce_scatter_unused_params"
"""The method of torch 2.13 that includes weights without a gradient in the sum of gradients."""


def prepare_sharded_model(model: nn.Module) -> None:
    """Prepare a model that FSDP2 has just sharded for training.

    Weights that the batch of this process did not use enter the sum of gradients as zeros, because other processes may
    have used them. Lists to which layers append (router statistics) are passed to the layers unchanged; FSDP2 would
    pass copies.

    Args:
        model: the sharded model.
    """
    getattr(model, SUMS_UNUSED)(True)
    for module in model.modules():
        if isinstance(module, FSDPModule) and module is not model:
            _hand_over_lists(module)


def _hand_over_lists(layer: nn.Module) -> None:
    kept: dict[str, list] = {}

    def before(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        kept.clear()
        kept.update({name: value for name, value in kwargs.items() if isinstance(value, list)})

    def after(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        return args, {**kwargs, **kept}

    layer.register_forward_pre_hook(before, prepend=True, with_kwargs=True)  # before FSDP2's own hook
    layer.register_forward_pre_hook(after, with_kwargs=True)


class _Whole(torch.autograd.Function):
    """Gather a sharded parameter into a whole tensor. Its gradient is the mean over all processes, as in FSDP2."""

    @staticmethod
    def forward(ctx: Any, parameter: Any) -> Tensor:
        ctx.mesh, ctx.placements = parameter.device_mesh, parameter.placements
        return parameter.full_tensor()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.contiguous().clone()
        dist.all_reduce(total)
        mean = total / dist.get_world_size()
        whole = DTensor.from_local(mean, ctx.mesh, [Replicate()] * ctx.mesh.ndim, run_check=False)
        return whole.redistribute(placements=ctx.placements)


@contextlib.contextmanager
def whole_parameters(model: nn.Module, name: str) -> Iterator[None]:
    """Replace the parameters with a given name by whole tensors in a context, for code that reads them outside a
    forward pass.

    Args:
        model: the model. A model that is not sharded does not change.
        name: the attribute, such as "preference".
    """
    shown: list[nn.Module] = []
    for module in model.modules():
        parameter = module._parameters.get(name)
        if isinstance(parameter, DTensor):
            module.__dict__[name] = _Whole.apply(parameter)  # hides the registered parameter
            shown.append(module)
    try:
        yield
    finally:
        for module in shown:
            del module.__dict__[name]


@contextlib.contextmanager
def with_original_class(model: nn.Module) -> Iterator[None]:
    """Give a sharded model its original class in a context, because its code and name belong in a checkpoint.

    FSDP2 replaces the class of a model by a subclass of it. Use the context to write weights that have been gathered.

    Args:
        model: sharded or not.
    """
    sharded = type(model)
    if isinstance(model, FSDPModule):
        model.__class__ = next(kind for kind in sharded.__mro__[1:] if kind is not FSDPModule)  # type: ignore[assignment]
    try:
        yield
    finally:
        model.__class__ = sharded  # type: ignore[assignment]
