import pytest
import torch
from torch import nn

from training.model.parameter_groups import group_by_rate


def model_and_optimizer():
    torch.manual_seed(0)
    model = nn.ModuleDict({"visual": nn.Linear(2, 2), "router": nn.Linear(2, 2), "head": nn.Linear(2, 2)})
    model["visual"].bias.requires_grad_(False)
    weights = [one for one in model.parameters() if one.requires_grad and one.dim() == 2]
    biases = [one for one in model.parameters() if one.requires_grad and one.dim() == 1]
    groups = [{"params": weights, "weight_decay": 0.1}, {"params": biases, "weight_decay": 0.0}]
    return model, torch.optim.SGD(groups, lr=0.5)


def test_each_parameter_moves_by_the_rate_of_the_first_pattern_that_fits():
    model, optimizer = model_and_optimizer()
    group_by_rate(optimizer, model, {"*router*": 0.25, "*.weight": 0.125})
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for group in optimizer.param_groups:
        group["weight_decay"] = 0.0
    sum(parameter.sum() for parameter in model.parameters()).backward()
    optimizer.step()
    moved = {name: (before[name] - parameter).max().item() for name, parameter in model.named_parameters()}
    wanted = {"visual.weight": 0.125, "visual.bias": 0.0, "router.weight": 0.25, "router.bias": 0.25}
    assert moved == pytest.approx({**wanted, "head.weight": 0.125, "head.bias": 0.5})


def test_other_settings_stay_and_the_schedule_scales_every_rate():
    model, optimizer = model_and_optimizer()
    group_by_rate(optimizer, model, {"*visual*": 0.1})
    found = [(group["lr"], group["weight_decay"], len(group["params"])) for group in optimizer.param_groups]
    assert found == [(0.5, 0.1, 2), (0.1, 0.1, 1), (0.5, 0.0, 2)]
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    optimizer.step()
    schedule.step()
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 0.05, 0.25]


def test_patterns_that_fit_nothing_and_negative_rates_are_refused():
    model, optimizer = model_and_optimizer()
    for pattern in ("*expert*", "visual.bias"):
        with pytest.raises(ValueError, match="found no trainable parameter like"):
            group_by_rate(optimizer, model, {pattern: 0.1})
    with pytest.raises(ValueError, match="found -1 for 'head"):
        group_by_rate(optimizer, model, {"head*": -1})
