import math

import pytest
import torch
from torch.nn.functional import normalize

from training.losses.info_nce import InfoNCELoss
from training.losses.matryoshka import MatryoshkaLoss


def cut(vector, width):
    return vector if width == len(vector) else vector[:width] / vector[:width].norm()


def slow_matryoshka(query, candidate, target, temperature, dims, weights):
    """The formula, one width, one query and one candidate at a time."""
    total = 0.0
    for width, weight in zip(dims, weights, strict=True):
        for b in range(len(query)):
            scores = [cut(query[b], width) @ cut(row, width) / temperature for row in candidate]
            total = total + weight * (torch.stack(scores).exp().sum().log() - scores[target[b]]) / len(query)
    return total / sum(weights)


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(5)
    query, candidate = (normalize(torch.randn(rows, 8, generator=generator), dim=1) for rows in (3, 7))
    return query, candidate, torch.tensor([1, 4, 0])


@pytest.mark.parametrize("block_size", [None, 3])
@pytest.mark.parametrize("weights", [None, [0.5, 2.0]])
@pytest.mark.parametrize("name_the_full_width", [False, True])
def test_the_loss_is_the_weighted_mean_over_prefixes(batch, block_size, weights, name_the_full_width):
    query, candidate, target = batch
    dims, all_weights = [2, 5], (weights or [1.0, 1.0])
    given = [*dims, 8] if name_the_full_width else dims
    given_weights = None if weights is None else [*weights, 1.0][: len(given)]
    fast = [query.clone().requires_grad_(), candidate.clone().requires_grad_()]
    slow = [query.double().requires_grad_(), candidate.double().requires_grad_()]
    ours = MatryoshkaLoss(InfoNCELoss(0.1, block_size), given, given_weights)
    loss = ours(fast[0], [fast[1][:5], fast[1][5:]], target)
    wanted = slow_matryoshka(*slow, target, 0.1, [*dims, 8], [*all_weights, 1.0])
    assert loss.item() == pytest.approx(wanted.item(), abs=1e-5)
    assert ours.temperature == 0.1
    loss.backward()
    wanted.backward()
    for got, reference in zip(fast, slow, strict=True):
        assert reference.grad.abs().max() > 0.01
        assert torch.allclose(got.grad.double(), reference.grad, atol=1e-5)


def test_masks_and_weights_hold_at_every_width(batch):
    query, candidate, target = batch
    excluded = torch.zeros(3, 7, dtype=torch.bool)
    excluded[:, 6] = True
    weight = torch.tensor([1.0, 0.0, 0.5])
    ours = MatryoshkaLoss(InfoNCELoss(0.1), [4])
    loss = ours(query, candidate, target, excluded, weight, reduction="none")
    assert loss[1] == 0
    parts = [
        InfoNCELoss(0.1)(normalize(query[:, :d], dim=1), normalize(candidate[:6, :d], dim=1), target, None, weight)
        for d in (4, 8)
    ]
    assert loss.mean().item() == pytest.approx(sum(part.item() for part in parts) / 2, abs=1e-6)


@pytest.mark.parametrize(
    ("dims", "weights", "message"),
    [
        ([], None, "dims: found"),
        ([0, 4], None, r"dims: found \[0, 4\]"),
        ([4, 4], None, r"dims: found \[4, 4\]"),
        ([4], [1.0, 2.0], "expected 1 numbers above 0"),
        ([4], [0.0], "numbers above 0"),
        ([4], [math.nan], "numbers above 0"),
    ],
)
def test_widths_that_cannot_work_are_refused(dims, weights, message):
    with pytest.raises(ValueError, match=message):
        MatryoshkaLoss(InfoNCELoss(), dims, weights)


def test_a_width_above_the_vectors_is_refused(batch):
    with pytest.raises(ValueError, match="found 9 for vectors of width 8"):
        MatryoshkaLoss(InfoNCELoss(), [9])(*batch)
