import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from training.rewards.margin import margin_reward

LEVEL = st.integers(-4, 4).map(lambda level: level / 4)


def reward(positive, negative):
    columns = {
        "positive_similarities": [torch.tensor(positive)],
        "negative_similarities": [torch.tensor(negative, dtype=torch.float32)],
    }
    return margin_reward([""], [""], [[1]], **columns)[0]


def slow_margin(positive, negative):
    """The share is the mean over all orders in which ties could be broken."""
    marked = [(one, True) for one in positive] + [(one, False) for one in negative]
    shares = []
    for order in itertools.permutations(marked):
        best = sorted(order, key=lambda one: -one[0])[: len(positive)]  # a stable sort keeps the order of ties
        shares.append(sum(mine for _, mine in best) / len(positive))
    gap = sum(positive) / len(positive) - sum(negative) / len(negative)
    return sum(shares) / len(shares) * gap


@settings(max_examples=60, deadline=None)
@given(st.lists(LEVEL, min_size=1, max_size=3), st.lists(LEVEL, min_size=1, max_size=3))
def test_it_is_the_formula_with_ties_broken_at_random(positive, negative):
    assert reward(positive, negative) == pytest.approx(slow_margin(positive, negative), abs=1e-6)


def test_share_and_gap_multiply():
    assert reward([0.9, 0.8], [0.1, 0.3]) == pytest.approx(0.65)
    assert reward([0.9, 0.2], [0.1, 0.5, 0.3]) == pytest.approx(0.5 * 0.25)
    assert reward([0.1, 0.2], [0.9, 0.8]) == 0.0


def test_when_ranks_saturate_the_gap_still_differs():
    assert 0 < reward([0.5, 0.5], [0.4, 0.4]) < reward([0.9, 0.9], [0.1, 0.1])


def test_a_collapsed_model_earns_nothing():
    assert reward([1.0] * 8, [1.0] * 100) == pytest.approx(0.0)


def test_the_ends_of_the_range_are_reached_and_rounding_does_not_leave_it():
    assert reward([1.0] * 3, [-1.0] * 5) == 2.0
    assert reward([1.0000001] * 3, [-1.0000001] * 5) == 2.0
    assert reward([-1.0] * 50, [1.0]) == pytest.approx(-2 * 49 / 50)


def test_fewer_negatives_than_positives_are_enough_and_none_is_unknown():
    assert reward([0.9, 0.1, 0.5], [0.2]) == pytest.approx(2 / 3 * 0.3)
    assert reward([0.9], []) is None


def test_rows_with_and_without_negatives_keep_their_places():
    positives = [torch.tensor([0.5])] * 3
    negatives = [torch.tensor([]), torch.tensor([0.1]), torch.tensor([])]
    found = margin_reward(
        [""] * 3, [""] * 3, [[1]] * 3, positive_similarities=positives, negative_similarities=negatives
    )
    assert found == [None, pytest.approx(0.4), None]


def test_a_similarity_that_is_no_number_is_refused():
    with pytest.raises(ValueError, match=r"negative_similarities\[0\]: found NaN"):
        reward([0.1], [float("nan")])
