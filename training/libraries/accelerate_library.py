"""Read and set what accelerate tells its processes by its environment and keeps in its state.

Nothing else in `training/` reads these. The names are those of accelerate 1.15;
`tests/training/libraries/test_accelerate_library.py` compares them with the installed version.
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


def is_on(variable: str) -> bool:
    """Return whether a variable of the environment is set to what accelerate takes for yes."""
    return os.environ.get(variable, "").lower() in ("1", "true", "yes")


def launched() -> Literal["fsdp", "deepspeed"] | None:
    """Return how the launcher's configuration shards the model: what `accelerate launch` puts into the environment."""
    if is_on(USE_FSDP):
        return "fsdp"
    return "deepspeed" if is_on(USE_DEEPSPEED) else None


def zero_stage() -> int:
    """Return DeepSpeed's ZeRO stage of this launch, 0 without DeepSpeed: 2 parts gradients and moments, 3 also weights."""
    return int(os.environ.get(_ZERO_STAGE, "2")) if launched() == "deepspeed" else 0


def fsdp_plugin(accelerator: Accelerator) -> FullyShardedDataParallelPlugin:
    """Return FSDP's plugin of an accelerator; where accelerate passed over FSDP, as it does on a CPU, switch it on.

    The kind of training is kept in two places, the shared state of processes and that of the accelerator.
    """
    state: Any = accelerator.state
    if getattr(state, "fsdp_plugin", None) is None:
        state.fsdp_plugin = FullyShardedDataParallelPlugin()
        PartialState().distributed_type = state.distributed_type = DistributedType.FSDP
    return state.fsdp_plugin


def skips_steps(accelerator: Accelerator) -> bool:
    """Return whether accelerate leaves steps with a gradient that is not finite out by itself, as it does in float16."""
    return accelerator.scaler is not None
