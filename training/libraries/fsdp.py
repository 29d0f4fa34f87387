"""Reach what FSDP2 does inside a model: hooks of its layers, weights in parts, and the class that it gives the model.

Nothing else in `training/` relies on how FSDP2 is made. The names and signatures are those of torch 2.13;
`tests/training/libraries/test_fsdp.py` compares them with the installed version.
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
"""The method of torch 2.13 that lets the gradients of weights which a process's batch did not use be summed, too."""


def keep_in_step(model: nn.Module) -> None:
    """Finish a model that FSDP2 has just sharded.

    Weights that a process's batch did not use take part in the sum of gradients with zeros, as others used them. Lists that
    layers append to (router statistics) reach the layers as they are: FSDP2 would hand over copies.

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
    """A sharded parameter as a whole tensor; its gradient is the mean of all processes', as FSDP2's is."""

    @staticmethod
    def forward(ctx: Any, parameter: Any) -> Tensor:
        ctx.mesh, ctx.placements = parameter.device_mesh, parameter.placements
        return parameter.full_tensor()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        mean = gradient.contiguous().clone()
        dist.all_reduce(mean)
        of_all = mean / dist.get_world_size()
        whole = DTensor.from_local(of_all, ctx.mesh, [Replicate()] * ctx.mesh.ndim, run_check=False)
        return whole.redistribute(placements=ctx.placements)


@contextlib.contextmanager
def whole_parameters(model: nn.Module, name: str) -> Iterator[None]:
    """Context in which modules show the parameters of a name whole, for what reads them outside a forward pass.

    Args:
        model: sharded or not; of one that is not, nothing changes.
        name: the attribute ("preference").
    """
    shown: list[nn.Module] = []
    for module in model.modules():
        parameter = module._parameters.get(name)
        if isinstance(parameter, DTensor):
            module.__dict__[name] = _Whole.apply(parameter)  # found before the registered parameter
            shown.append(module)
    try:
        yield
    finally:
        for module in shown:
            del module.__dict__[name]


@contextlib.contextmanager
def under_its_own_class(model: nn.Module) -> Iterator[None]:
    """Context in which a sharded model is of the class that it had, whose code and name belong into a checkpoint.

    FSDP2 gives the model a class made of its own and the model's. For writing weights that are gathered already.

    Args:
        model: sharded or not.
    """
    made = type(model)
    if isinstance(model, FSDPModule):
        model.__class__ = next(kind for kind in made.__mro__[1:] if kind is not FSDPModule)  # type: ignore[assignment]
    try:
        yield
    finally:
        model.__class__ = made  # type: ignore[assignment]
