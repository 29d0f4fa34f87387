"""The teachers' losses against slow references, row by row."""

import math

import pytest
import torch

from training.losses.distillation import direct_loss, relation_loss


def cosine(one, two):
    return float(one @ two / (one.norm() * two.norm()))


def test_the_direct_loss_is_the_sum_of_distances_in_cosine():
    torch.manual_seed(0)
    state_RE, teacher_RE = torch.randn(5, 3), torch.randn(5, 3)
    expected = sum(1 - cosine(one, two) for one, two in zip(state_RE, teacher_RE, strict=True))
    assert float(direct_loss(state_RE, teacher_RE)) == pytest.approx(expected, rel=1e-5)
    assert float(direct_loss(3 * teacher_RE, teacher_RE)) == pytest.approx(0, abs=1e-5)


def slow_relations(state_C, teacher_C, own, temperature):
    total = 0.0
    for row in own:
        others = [place for place in range(len(state_C)) if place != row]
        shares = []
        for vectors in (teacher_C, state_C):
            weights = [math.exp(cosine(vectors[row], vectors[place]) / temperature) for place in others]
            shares.append([weight / sum(weights) for weight in weights])
        total += sum(p * math.log(p / q) for p, q in zip(*shares, strict=True))
    return total


@pytest.mark.parametrize("own", [[0, 1, 2, 3, 4], [3, 1], [2]])
def test_relations_are_compared_as_distributions_over_the_other_rows(own):
    torch.manual_seed(1)
    state_CS, teacher_CE = torch.randn(5, 4), torch.randn(5, 7)
    found = relation_loss(state_CS[own], state_CS, teacher_CE[own], teacher_CE, torch.tensor(own), 0.2)
    assert float(found) == pytest.approx(slow_relations(state_CS, teacher_CE, own, 0.2), rel=1e-4)
    assert float(found) > 0.01


def test_states_with_the_teachers_relations_have_no_loss_whatever_their_width():
    torch.manual_seed(2)
    teacher_CE = torch.randn(6, 3)
    turned, _ = torch.linalg.qr(torch.randn(8, 3))
    state_CS = 5 * teacher_CE @ turned.T
    every = torch.arange(6)
    assert float(relation_loss(state_CS, state_CS, teacher_CE, teacher_CE, every, 0.1)) == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize(("rows", "candidates"), [(0, 0), (0, 5), (1, 1), (2, 2)])
def test_too_few_rows_have_a_zero_with_a_gradient_for_every_state(rows, candidates):
    state_RS, state_CS = torch.randn(rows, 4, requires_grad=True), torch.randn(candidates, 4, requires_grad=True)
    own = torch.arange(rows)
    loss = relation_loss(state_RS, state_CS, torch.randn(rows, 3), torch.randn(candidates, 3), own, 0.1)
    loss.backward()
    assert loss.item() == 0
    assert state_RS.grad is not None
    assert state_CS.grad is not None
    assert float(direct_loss(torch.zeros(0, 3), torch.zeros(0, 3))) == 0
