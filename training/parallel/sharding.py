"""Sharded training (FSDP2): what the contrastive stage needs so that processes with unlike batches stay in step.

A sharded model gathers the weights of a layer from all processes whenever the layer runs. All processes have to run the same
layers in the same order; which modalities, forms and chunks a process encodes depends on its own batch. So the vision tower
stays in one piece with the root of the model, and a process with fewer forward passes than another makes up for them. Our design
(precedent: torch's Join for processes with unlike numbers of batches).

Shape suffixes: D embedding width.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy
from torch.distributed.tensor import DTensor, Replicate

from training.encoding.batch_encoding import BatchEncoder, BatchPart
from training.encoding.chunked_encoding import Vectors, slice_rows
from training.encoding.shared_pictures import vision_tower
from training.parallel.distributed import world_size

IDLE = "idle"
"""The name of the vectors (0, D) of forward passes that only keep a process in step with the others."""

_PRECISIONS = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def is_sharded(model: nn.Module) -> bool:
    """Return whether FSDP2 holds the parameters of a model."""
    return isinstance(model, FSDPModule)


def use_fsdp(accelerator: Accelerator, model: nn.Module) -> None:
    """Settle what accelerate's plugin leaves open, before `accelerator.prepare` shards the model.

    - Units of sharding are the text model's decoder layers, of those classes in `_no_split_modules` that the model has.
    - Gradients are summed over processes in float32 and outputs keep the type that the model gives them (vectors are float32);
      accelerate would take the type of the computation for both.
    - On a CPU accelerate passes over FSDP (torch does not): it is switched on here.
    - Where the token embeddings do not learn, what they give requires a gradient all the same: otherwise only a process with
      pictures would hand gradients through the first layers, and processes would leave one another's order.

    Args:
        accelerator: of a launch with FSDP.
        model: what will be sharded, with adapters where there are some.

    Raises:
        ValueError: FSDP1, a precision that is none of no, bf16 and fp16, or a model without decoder layers of its own.
    """
    state = accelerator.state
    if getattr(state, "fsdp_plugin", None) is None:
        state.fsdp_plugin = FullyShardedDataParallelPlugin()
        PartialState().distributed_type = state.distributed_type = DistributedType.FSDP  # kept in two places
    plugin = state.fsdp_plugin
    if plugin.fsdp_version != 2:
        raise ValueError(f"fsdp_version: found {plugin.fsdp_version}; expected 2, as in training/launch/fsdp2.yaml")
    plugin.transformer_cls_names_to_wrap = decoder_layers(model)
    if state.mixed_precision not in _PRECISIONS:
        raise ValueError(f"mixed_precision: found {state.mixed_precision} with FSDP; expected {', '.join(_PRECISIONS)}")
    dtype = _PRECISIONS[state.mixed_precision]
    if dtype is not None:
        plugin.mixed_precision_policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
    if not any(parameter.requires_grad for parameter in model.get_input_embeddings().parameters()):
        model.enable_input_require_grads()


def decoder_layers(model: nn.Module) -> list[str]:
    """Return the class names of `_no_split_modules` that a model has outside its vision tower.

    Raises:
        ValueError: there is none.
    """
    tower = vision_tower(model)
    seen = set() if tower is None else {id(module) for module in tower.modules()}
    there = {type(module).__name__ for module in model.modules() if id(module) not in seen}
    names = [name for name in getattr(model, "_no_split_modules", None) or () if name in there]
    if not names:
        raise ValueError(f"FSDP: found no decoder layers in {type(model).__name__}; expected architecture moon")
    return names


def keep_in_step(model: nn.Module) -> None:
    """Finish a model that FSDP2 has just sharded.

    Weights that a process's batch did not use take part in the sum of gradients with zeros, as others used them. Lists that
    layers append to (router statistics) reach the layers as they are: FSDP2 would hand over copies.

    Args:
        model: the sharded model.
    """
    model.set_reduce_scatter_unused_params(True)
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


@dataclass
class EvenPart(BatchPart):
    """A part of a batch beside which forward passes are made to keep in step.

    Args:
        empty: nothing of this part is encoded, it stands where another process has a part.
        idle: the number of these forward passes.
        row: the input of each of them.
    """

    empty: bool = False
    idle: int = 0
    row: Mapping[str, Tensor] | None = None


def even_parts(parts: Sequence[BatchPart], device: torch.device) -> list[EvenPart]:
    """Return parts with which each process makes as many forward passes as any other, part by part.

    Args:
        parts: those of this process.
        device: of the exchange.
    """
    own = torch.tensor([1 + len(part.forms) for part in parts], device=device)
    counts = [torch.zeros(1, dtype=torch.int64, device=device) for _ in range(world_size())]
    dist.all_gather(counts, torch.tensor([len(own)], device=device))
    most = torch.zeros(int(torch.cat(counts).max()), dtype=torch.int64, device=device)
    most[: len(own)] = own
    dist.all_reduce(most, op=dist.ReduceOp.MAX)
    row = slice_rows(parts[0].inputs, 0, 1)
    even = []
    for number, passes in enumerate(most.tolist()):
        if number < len(parts):
            part = parts[number]
            even.append(EvenPart(part.side, part.inputs, part.forms, idle=passes - 1 - len(part.forms), row=row))
        else:
            even.append(EvenPart(IDLE, {}, {}, empty=True, idle=passes, row=row))
    return even


class EvenEncoder(BatchEncoder):
    """BatchEncoder that also makes the forward passes of `EvenPart`, whose vectors "idle" (0, D) hold nothing but a graph."""

    def __call__(self, part: BatchPart) -> Vectors:
        empty, idle, row = getattr(part, "empty", False), getattr(part, "idle", 0), getattr(part, "row", None)
        found: Vectors = {} if empty else super().__call__(part)
        nothing = [self.model(**row).embeddings[:0] for _ in range(idle)]
        return {**found, IDLE: torch.cat(nothing)} if nothing else found


def reach_all(vectors: Vectors) -> Tensor:
    """Zero, with a gradient of zero for all vectors, so that the backward pass of every forward pass is made."""
    return torch.stack([0.0 * vector.float().sum() for vector in vectors.values() if vector.requires_grad]).sum()


class _Whole(torch.autograd.Function):
    """A sharded parameter as a whole tensor; its gradient is the mean of all processes', as FSDP2's is."""

    @staticmethod
    def forward(ctx: Any, parameter: Tensor) -> Tensor:
        ctx.mesh, ctx.placements = parameter.device_mesh, parameter.placements
        return parameter.full_tensor()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        mean = gradient.contiguous().clone()
        dist.all_reduce(mean)
        whole = DTensor.from_local(mean / world_size(), ctx.mesh, [Replicate()] * ctx.mesh.ndim, run_check=False)
        return whole.redistribute(placements=ctx.placements)


@contextlib.contextmanager
def whole_parameters(model: nn.Module, name: str) -> Iterator[None]:
    """Context in which modules show the parameters of a name whole, for what reads them outside a forward pass.

    Args:
        model: sharded or not; of one that is not, nothing changes.
        name: the attribute ("preference").
    """
    shown = []
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
