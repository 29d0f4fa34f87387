"""Read and set the environment variables and the state of accelerate.

No other file in `training/` reads these. accelerate 1.15 uses these names;
`tests/training/libraries/test_accelerate_library.py` checks them against the installed version.
"""

import os
from typing import Any, Literal

from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

USE_FSDP = "ACCELERATE_USE_FSDP"
USE_DEEPSPEED = "ACCELERATE_USE_DEEPSPEED"
USE_PARALLELISM_CONFIG = "ACCELERATE_USE_PARALLELISM_CONFIG"
DEEPSPEED_CONFIG_FILE = "ACCELERATE_DEEPSPEED_CONFIG_FILE"
_ZERO_STAGE = "ACCELERATE_DEEPSPEED_ZERO_STAGE"


def is_enabled(variable: str) -> bool:
    """Return whether an environment variable has a value that accelerate reads as true."""
    return os.environ.get(variable, "").lower() in ("1", "true", "yes")


def sharding_backend() -> Literal["fsdp", "deepspeed"] | None:
    """Return how `accelerate launch` shards the model, from the environment; None without sharding."""
    if is_enabled(USE_FSDP):
        return "fsdp"
    return "deepspeed" if is_enabled(USE_DEEPSPEED) else None


def zero_stage() -> int:
    """Return DeepSpeed's ZeRO stage: 2 shards gradients and moments, 3 also weights; 0 without DeepSpeed."""
    return int(os.environ.get(_ZERO_STAGE, "2")) if sharding_backend() == "deepspeed" else 0


def fsdp_plugin(accelerator: Accelerator) -> FullyShardedDataParallelPlugin:
    """Return the FSDP plugin of an accelerator, and enable FSDP if accelerate has ignored it, as it does on a CPU.

    accelerate stores the kind of training twice: in the shared state of the process and in that of the accelerator.
    """
    state: Any = accelerator.state
    if getattr(state, "fsdp_plugin", None) is None:
        state.fsdp_plugin = FullyShardedDataParallelPlugin()
        PartialState().distributed_type = state.distributed_type = DistributedType.FSDP
    return state.fsdp_plugin


def skips_steps(accelerator: Accelerator) -> bool:
    """Return whether accelerate skips steps with a non-finite gradient by itself, as it does in float16."""
    return accelerator.scaler is not None
