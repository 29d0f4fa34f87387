import math

import pytest
import torch
from torch.nn.functional import normalize

from training.losses.info_nce import InfoNCELoss, info_nce


def slow_info_nce(query, candidate, target, temperature, excluded):
    """The formula, one query and one candidate at a time, in float64."""
    losses = []
    for b in range(len(query)):
        terms = []
        for c in range(len(candidate)):
            score = sum(query[b, d] * candidate[c, d] for d in range(query.shape[1])) / temperature
            if c == target[b]:
                own = score
            elif excluded is not None and excluded[b, c]:
                continue
            terms.append(score.exp())
        losses.append(-(own.exp() / sum(terms)).log())
    return torch.stack(losses)


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(3)
    query = normalize(torch.randn(4, 6, generator=generator), dim=1)
    candidate = normalize(torch.randn(9, 6, generator=generator), dim=1)
    target = torch.tensor([2, 0, 7, 7])
    excluded = torch.rand(4, 9, generator=generator) < 0.4
    return query, candidate, target, excluded


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_value_and_gradient_equal_the_formula(batch, masked, reduction):
    query, candidate, target, excluded = batch
    excluded = excluded if masked else None
    fast = [query.clone().requires_grad_(), candidate.clone().requires_grad_()]
    slow = [query.double().requires_grad_(), candidate.double().requires_grad_()]
    ours = info_nce(*fast, target, 0.1, excluded, reduction)
    reference = slow_info_nce(*slow, target, 0.1, excluded)
    reference = {"mean": reference.mean(), "sum": reference.sum(), "none": reference}[reduction]
    assert ours.dtype == torch.float32
    assert torch.allclose(ours.double(), reference, atol=1e-5)
    ours.sum().backward()
    reference.sum().backward()
    for got, wanted in zip(fast, slow, strict=True):
        assert wanted.grad.abs().max() > 0.01
        assert torch.allclose(got.grad.double(), wanted.grad, atol=1e-5)


def test_the_target_counts_even_when_the_mask_names_it(batch):
    query, candidate, target, _ = batch
    everything = torch.ones(4, 9, dtype=torch.bool)
    assert torch.allclose(info_nce(query, candidate, target, 0.1, everything), torch.tensor(0.0), atol=1e-6)


def test_a_masked_candidate_gets_no_gradient(batch):
    query, candidate, target, _ = batch
    candidate = candidate.clone().requires_grad_()
    excluded = torch.zeros(4, 9, dtype=torch.bool)
    excluded[:, 5] = True
    info_nce(query, candidate, target, 0.1, excluded).backward()
    assert torch.equal(candidate.grad[5], torch.zeros(6))
    assert candidate.grad[4].abs().max() > 0


def test_a_small_temperature_neither_overflows_nor_loses_precision_under_autocast(batch):
    query, candidate, target, _ = batch
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = info_nce(query, candidate, target, 0.001)
    assert torch.isfinite(inside)
    assert torch.equal(inside, info_nce(query, candidate, target, 0.001))


def test_equal_scores_cost_the_logarithm_of_the_number_of_candidates():
    loss = info_nce(torch.ones(2, 3), torch.ones(8, 3), torch.tensor([0, 5]), 0.05)
    assert loss.item() == pytest.approx(math.log(8), abs=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query_BD": torch.ones(2, 4)}, "one width D"),
        ({"query_BD": torch.ones(2, 3, 1)}, "one width D"),
        ({"query_BD": torch.ones(0, 3), "target_B": torch.zeros(0, dtype=torch.int64)}, "at least one query"),
        ({"target_B": torch.tensor([0])}, "target_B: found shape"),
        ({"target_B": torch.tensor([0.0, 1.0])}, "int64"),
        ({"target_B": torch.tensor([0, 5])}, "found values from 0 to 5; accepted: 0 to 4"),
        ({"target_B": torch.tensor([-1, 0])}, "accepted: 0 to 4"),
        ({"temperature": 0.0}, "temperature: found 0.0"),
        ({"temperature": float("nan")}, "temperature: found nan"),
        ({"temperature": float("inf")}, "temperature: found inf"),
        ({"excluded_BC": torch.zeros(2, 4, dtype=torch.bool)}, "excluded_BC: found shape"),
        ({"excluded_BC": torch.zeros(2, 5)}, "bool"),
        ({"reduction": "median"}, "reduction: found 'median'"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(change, message):
    arguments = {"query_BD": torch.ones(2, 3), "candidate_CD": torch.ones(5, 3), "target_B": torch.tensor([0, 1])}
    with pytest.raises(ValueError, match=message):
        info_nce(**{**arguments, "temperature": 0.1, **change})


def test_the_loss_object_is_the_function_with_its_temperature(batch):
    query, candidate, target, excluded = batch
    ours = InfoNCELoss(temperature=0.2)(query, candidate, target, excluded)
    assert torch.equal(ours, info_nce(query, candidate, target, 0.2, excluded))
    with pytest.raises(ValueError, match="temperature: found -1"):
        InfoNCELoss(temperature=-1)
