"""Shard the contrastive stage with FSDP2, although processes have batches of different content.

A sharded model gathers the weights of a layer from all processes whenever the layer runs, so all processes must run the
same layers in the same order. The modalities, forms and chunks that a process encodes depend on its batch. The vision
tower is therefore not sharded by itself but with the root of the model, and a process with fewer forward passes than
others runs additional idle passes. Our design (precedent: torch's Join for processes with different numbers of
batches).

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
"""The name of the vectors (0, D) of idle forward passes, which a process runs because others run more passes."""

_PRECISIONS = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def is_sharded(model: nn.Module) -> bool:
    """Return whether FSDP2 holds the parameters of a model."""
    return isinstance(model, FSDPModule)


def use_fsdp(accelerator: Accelerator, model: nn.Module) -> None:
    """Configure the FSDP plugin of accelerate, before `accelerator.prepare` shards the model.

    - The units of sharding are the decoder layers of the text model: its classes in `_no_split_modules`.
    - Gradients are summed over processes in float32, and outputs keep the dtype of the model (float32 for vectors).
      accelerate would use the dtype of the computation for both.
    - On a CPU, accelerate ignores FSDP, although torch supports it. It is enabled here.
    - If the token embeddings are frozen, their output still requires a gradient. Otherwise only processes with pictures
      would run the backward pass of the first layers, and the order of the processes would differ.

    Args:
        accelerator: the accelerator of a launch with FSDP.
        model: the model to be sharded, with its adapters.

    Raises:
        ValueError: FSDP1, a precision other than no, bf16 and fp16, or a model without decoder layers.
    """
    plugin, precision = fsdp_plugin(accelerator), accelerator.state.mixed_precision
    if plugin.fsdp_version != 2:
        raise ValueError(f"fsdp_version: found {plugin.fsdp_version}; expected 2, as in training/launch/fsdp2.yaml")
    plugin.transformer_cls_names_to_wrap = decoder_layers(model)
    if precision not in _PRECISIONS:
        raise ValueError(
            f"mixed_precision: {precision} does not work with FSDP; expected one of {', '.join(_PRECISIONS)}"
        )
    dtype = _PRECISIONS[precision]
    if dtype is not None:
        plugin.mixed_precision_policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
    if not any(parameter.requires_grad for parameter in model.get_input_embeddings().parameters()):
        model.enable_input_require_grads()


def decoder_layers(model: nn.Module) -> list[str]:
    """Return the class names of `_no_split_modules` that a model has outside its vision tower.

    Raises:
        ValueError: the model has none.
    """
    tower = vision_tower(model)
    seen = set() if tower is None else {id(module) for module in tower.modules()}
    classes = {type(module).__name__ for module in model.modules() if id(module) not in seen}
    names = [name for name in no_split_layers(model) if name in classes]
    if not names:
        raise ValueError(f"FSDP: found no decoder layers in {type(model).__name__}; expected architecture moon")
    return names


@dataclass
class EvenPart(BatchPart):
    """A part of a batch, with the idle forward passes that follow it.

    Args:
        empty: whether the part has no rows, because only other processes have a part at this position.
        idle: the number of idle forward passes.
        row: the input of each idle pass.
    """

    empty: bool = False
    idle: int = 0
    row: Mapping[str, Tensor] | None = None


def even_parts(parts: Sequence[BatchPart], device: torch.device) -> list[EvenPart]:
    """Return the parts with idle passes, so that all processes run the same number of forward passes for each part.

    Args:
        parts: the parts of this process.
        device: the device of the collectives.
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
    """BatchEncoder that also runs the idle passes of `EvenPart`, whose vectors "idle" (0, D) only carry a graph."""

    def __call__(self, part: BatchPart) -> Vectors:
        empty, idle, row = getattr(part, "empty", False), getattr(part, "idle", 0), getattr(part, "row", None)
        vectors: Vectors = {} if empty else super().__call__(part)
        idle_vectors = [self.model(**row).embeddings[:0] for _ in range(idle)]
        return {**vectors, IDLE: torch.cat(idle_vectors)} if idle_vectors else vectors


def reach_all(vectors: Vectors) -> Tensor:
    """Return zero, with a zero gradient for all vectors, so that every forward pass has a backward pass."""
    return torch.stack([0.0 * vector.float().sum() for vector in vectors.values() if vector.requires_grad]).sum()
