"""Set learning rates by parameter name."""

import fnmatch
from collections.abc import Mapping

import torch
from torch import nn


def group_by_rate(optimizer: torch.optim.Optimizer, model: nn.Module, rates: Mapping[str, float]) -> None:
    """Set the learning rate of parameters whose name matches a pattern.

    Every group of the optimizer is split by learning rate. The new groups keep its other settings, such as weight
    decay, and the schedule scales all rates by the same factor. Our design (precedent: layer-wise rates, arXiv
    1801.06146 §3.2).

    Args:
        optimizer: a new optimizer, before its first step.
        model: the model with its parameters.
        rates: shell pattern of parameter names → learning rate. The first matching pattern counts.

    Raises:
        ValueError: a pattern does not match a trainable parameter, or a rate is negative.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters() if parameter.requires_grad}
    for pattern, rate in rates.items():
        if not rate >= 0:
            raise ValueError(f"learning_rates: found {rate} for {pattern!r}; expected 0 or more")
        if not fnmatch.filter(names.values(), pattern):
            raise ValueError(
                f"learning_rates: found no trainable parameter like {pattern!r}; expected a pattern such as '*visual*'"
            )
    split = []
    for group in optimizer.param_groups:
        by_rate: dict[float, list[nn.Parameter]] = {group["lr"]: []}  # the first group's rate is logged
        for parameter in group["params"]:
            by_rate.setdefault(_rate_of(names[id(parameter)], rates, group["lr"]), []).append(parameter)
        split += [{**group, "lr": rate, "params": parameters} for rate, parameters in by_rate.items()]
    kept = [group for group in split if group["params"]]
    optimizer.param_groups[:] = kept or split


def _rate_of(name: str, rates: Mapping[str, float], common: float) -> float:
    return next((rate for pattern, rate in rates.items() if fnmatch.fnmatchcase(name, pattern)), common)
