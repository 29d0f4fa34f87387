"""Sharded training (FSDP2): what the contrastive stage needs so that processes with unlike batches stay in step.

A sharded model gathers the weights of a layer from all processes whenever the layer runs. All processes have to run the same
layers in the same order; which modalities, forms and chunks a process encodes depends on its own batch. So the vision tower
stays in one piece with the root of the model, and a process with fewer forward passes than another makes up for them. Our design
(precedent: torch's Join for processes with unlike numbers of batches).

Shape suffixes: D embedding width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy

from training.encoding.batch_encoding import BatchEncoder, BatchPart
from training.encoding.chunked_encoding import Vectors, slice_rows
from training.encoding.shared_pictures import vision_tower
from training.libraries.accelerate_library import fsdp_plugin
from training.libraries.pretrained_model import no_split_layers
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
    plugin, precision = fsdp_plugin(accelerator), accelerator.state.mixed_precision
    if plugin.fsdp_version != 2:
        raise ValueError(f"fsdp_version: found {plugin.fsdp_version}; expected 2, as in training/launch/fsdp2.yaml")
    plugin.transformer_cls_names_to_wrap = decoder_layers(model)
    if precision not in _PRECISIONS:
        raise ValueError(f"mixed_precision: found {precision} with FSDP; expected {', '.join(_PRECISIONS)}")
    dtype = _PRECISIONS[precision]
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
    names = [name for name in no_split_layers(model) if name in there]
    if not names:
        raise ValueError(f"FSDP: found no decoder layers in {type(model).__name__}; expected architecture moon")
    return names


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
