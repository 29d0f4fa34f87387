"""Learning rates by parameter name."""

import fnmatch
from collections.abc import Mapping

import torch
from torch import nn


def group_by_rate(optimizer: torch.optim.Optimizer, model: nn.Module, rates: Mapping[str, float]) -> None:
    """Give parameters whose name fits a pattern a learning rate of their own.

    Every group of the optimizer is parted by rate and keeps its other settings, such as weight decay; the schedule then
    scales each rate alike. Our design (precedent: layer-wise rates, arXiv 1801.06146 §3.2).

    Args:
        optimizer: fresh, before its first step.
        model: whose parameters it learns.
        rates: shell pattern of names → learning rate; the first pattern that fits a name counts.

    Raises:
        ValueError: a pattern that fits no learning parameter, or a rate that is negative.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters() if parameter.requires_grad}
    for pattern, rate in rates.items():
        if not rate >= 0:
            raise ValueError(f"learning_rates: found {rate} for {pattern!r}; expected 0 or more")
        if not fnmatch.filter(names.values(), pattern):
            raise ValueError(
                f"learning_rates: found no learning parameter like {pattern!r}; expected a pattern such as '*visual*'"
            )
    parted = []
    for group in optimizer.param_groups:
        by_rate: dict[float, list[nn.Parameter]] = {group["lr"]: []}  # the common rate first: that is what is logged
        for parameter in group["params"]:
            by_rate.setdefault(_rate_of(names[id(parameter)], rates, group["lr"]), []).append(parameter)
        parted += [{**group, "lr": rate, "params": parameters} for rate, parameters in by_rate.items()]
    kept = [group for group in parted if group["params"]]
    optimizer.param_groups[:] = kept or parted


def _rate_of(name: str, rates: Mapping[str, float], common: float) -> float:
    return next((rate for pattern, rate in rates.items() if fnmatch.fnmatchcase(name, pattern)), common)
