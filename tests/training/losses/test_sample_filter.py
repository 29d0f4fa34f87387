import math

import pytest
import torch

from training.losses.sample_filter import SampleFilter, triplet_trust


def test_trust_is_the_formula_term_by_term():
    positive, negative = torch.tensor([0.9, 0.1, 0.5]), torch.tensor([0.2, 0.3, 0.5])
    wanted = [1 / (1 + math.exp(-7.0 * (p - n - 0.05))) for p, n in zip(positive, negative, strict=True)]
    assert torch.allclose(triplet_trust(positive, negative, 7.0, 0.05), torch.tensor(wanted), atol=1e-6)


def test_triplets_below_the_threshold_count_less_and_without_a_jump():
    edge = math.log(0.6 / 0.4) / 20
    positive = torch.tensor([edge + 0.1, edge + 1e-4, edge - 1e-4, edge - 0.1])
    weight, below = SampleFilter(start=0.0).weights(positive, torch.zeros(4), 0.0)
    assert below.tolist() == [False, False, True, True]
    assert weight[:2].tolist() == [1.0, 1.0]
    assert weight[2].item() == pytest.approx(1.0, abs=0.01)
    assert weight[3].item() == pytest.approx(1 / (1 + math.exp(-20 * (edge - 0.1))) / 0.6, abs=1e-6)


def test_a_constant_weight_replaces_the_soft_one():
    weight, below = SampleFilter(weight=0.0).weights(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]), 0.5)
    assert weight.tolist() == [1.0, 0.0]
    assert below.tolist() == [False, True]


def test_without_a_hard_negative_a_pair_is_trusted():
    weight, below = SampleFilter().weights(torch.tensor([-1.0]), torch.tensor([-math.inf]), 0.0)
    assert weight.tolist() == [1.0]
    assert not below.any()


@pytest.mark.parametrize(("schedule", "half"), [("cosine", 0.2), ("linear", 0.2), ("constant", 0.3)])
def test_the_margin_decays_so_that_harder_triplets_are_trusted_later(schedule, half):
    ours = SampleFilter(start=0.3, end=0.1, schedule=schedule)
    assert ours.margin_at(0.0) == ours.margin_at(-1.0) == pytest.approx(0.3)
    assert ours.margin_at(0.5) == pytest.approx(half)
    assert ours.margin_at(1.0) == ours.margin_at(2.0) == pytest.approx(0.3 if schedule == "constant" else 0.1)
    path = [ours.margin_at(step / 20) for step in range(21)]
    assert path == sorted(path, reverse=True)
    weights = [ours.weights(torch.tensor([0.25]), torch.tensor([0.0]), step / 20)[0].item() for step in range(21)]
    assert weights == sorted(weights)
    assert (weights[-1] > weights[0]) == (schedule != "constant")


def test_the_linear_schedule_is_a_line():
    assert SampleFilter(start=0.4, end=0.0, schedule="linear").margin_at(0.25) == pytest.approx(0.3)


def test_no_gradient_flows_through_the_weights():
    positive = torch.tensor([0.1], requires_grad=True)
    weight, _ = SampleFilter().weights(positive, torch.tensor([0.2]), 0.0)
    assert not weight.requires_grad


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"threshold": 0.0}, "threshold: found 0.0"),
        ({"threshold": 1.1}, "threshold: found 1.1"),
        ({"kappa": 0.0}, "kappa: found 0.0"),
        ({"kappa": math.inf}, "kappa: found inf"),
        ({"start": 0.0, "end": 0.1}, "start, end: found 0.0, 0.1"),
        ({"schedule": "steps"}, "schedule: found 'steps'; expected one of cosine, linear, constant"),
        ({"weight": -0.1}, "weight: found -0.1"),
    ],
)
def test_a_filter_that_cannot_work_is_refused(values, message):
    with pytest.raises(ValueError, match=message):
        SampleFilter(**values)
