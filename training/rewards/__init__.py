"""Find rewards by name: each file of this folder holds one reward, `x.py` with its `x_reward`."""

import math
import pkgutil
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

RewardFunction = Callable[..., list[float | None]]
"""TRL's signature: (prompts, completions, completion_ids, **columns) → for each rollout a number or None."""


def reward_names() -> list[str]:
    """Return the names of all rewards, sorted."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def reward_function(name: str) -> RewardFunction:
    """Return a reward function. TRL logs it under its `__name__`, `<name>_reward`.

    Args:
        name: one of `reward_names`.

    Raises:
        ValueError: the name is unknown.
    """
    if name not in reward_names():
        raise ValueError(f"rewards: found {name!r}; expected one of {', '.join(reward_names())}")
    return getattr(import_module(f"{__name__}.{name}"), f"{name}_reward")


def reward_weights(weights: Mapping[str, Any]) -> dict[str, float]:
    """Check the weights of rewards and return them as floats, in the same order.

    Args:
        weights: name of a reward → weight, a finite number. A reward with weight 0 is computed and logged, but does not
            change the advantages.

    Raises:
        ValueError: a reward is unknown, a weight is not a finite number, or all weights are 0.
    """
    known = reward_names()
    for name, weight in weights.items():
        if name not in known:
            raise ValueError(f"rewards: found {name!r}; expected one of {', '.join(known)}")
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight):
            raise ValueError(f"rewards.{name}: found {weight!r}; expected a finite number")
    if not any(weights.values()):
        raise ValueError(f"rewards: found {dict(weights)}; expected at least one weight that is not 0")
    return {name: float(weight) for name, weight in weights.items()}
