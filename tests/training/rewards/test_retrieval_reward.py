import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from training.rewards.retrieval import TIE, ranks, retrieval_reward

LEVELS = st.lists(st.integers(-8, 8).map(lambda level: level / 8), max_size=12)  # sums are exact, so that ties are


def reward(positive, negative):
    columns = {
        "positive_similarities": [torch.tensor(positive)],
        "negative_similarities": [torch.tensor(negative, dtype=torch.float32)],
    }
    return retrieval_reward([""], [""], [[1]], **columns)[0]


def slow_rank(positive, negative):
    """One comparison at a time."""
    mean = sum(positive) / len(positive)
    rank = 1.0
    for one in negative:
        rank += 1.0 if one - mean > TIE else 0.5 if abs(one - mean) <= TIE else 0.0
    return rank


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(-8, 8).map(lambda level: level / 8), min_size=1, max_size=4), LEVELS)
def test_it_is_the_formula(positive, negative):
    rank = slow_rank(positive, negative)
    assert ranks([torch.tensor(positive)], [torch.tensor(negative)]) == [pytest.approx(rank)]
    if not negative:
        assert reward(positive, negative) is None
    else:
        assert reward(positive, negative) == pytest.approx(1 - math.log(rank) / math.log(len(negative) + 1), abs=1e-6)


def test_first_is_one_last_is_nothing_and_each_halving_is_worth_the_same():
    assert reward([0.9, 0.7], [0.1, 0.2, 0.3]) == 1.0
    assert reward([0.0], [0.1, 0.2, 0.3]) == pytest.approx(0.0)
    negatives = torch.linspace(0, 1, 1023).tolist()
    found = [reward([negatives[-rank] + 1e-5], negatives) for rank in (1, 2, 4, 8, 512)]
    assert [found[0] - one for one in found] == pytest.approx([0, 0.1, 0.2, 0.3, 0.9], abs=1e-6)


def test_the_positive_is_the_mean_over_the_other_sides_rollouts():
    assert ranks([torch.tensor([1.0, 0.0])], [torch.tensor([0.6, 0.4])]) == [2.0]


def test_a_collapsed_model_ranks_in_the_middle_even_where_rounding_says_otherwise():
    torch.manual_seed(0)
    positive, negative = (1 + (torch.rand(size) - 0.5) * 4e-7 for size in (8, 1000))
    assert ranks([positive], [negative]) == [501.0]
    assert reward(positive.tolist(), negative.tolist()) < 0.11


def test_what_counts_as_a_tie():
    negatives = torch.tensor([1.5, 0.5, 0.0, -0.5, -1.5]) * TIE
    assert ranks([torch.tensor([0.0])], [negatives]) == [1 + 1 + 3 / 2]


def test_without_a_negative_nothing_is_known():
    assert reward([0.3], []) is None


def test_the_number_of_negatives_may_differ_between_rollouts():
    positives = [torch.tensor([0.5])] * 3
    negatives = [torch.tensor([0.6]), torch.tensor([]), torch.tensor([0.6, 0.7, 0.1])]
    assert ranks(positives, negatives) == [2.0, 1.0, 3.0]
    found = retrieval_reward(
        [""] * 3, [""] * 3, [[1]] * 3, positive_similarities=positives, negative_similarities=negatives
    )
    assert found == [pytest.approx(0.0), None, pytest.approx(1 - math.log(3) / math.log(4))]


def test_half_precision_is_compared_in_single():
    positive = torch.tensor([0.5, 0.25, 0.25], dtype=torch.bfloat16)
    assert ranks([positive], [torch.tensor([0.3359375], dtype=torch.bfloat16)]) == [2.0]
    assert ranks([positive], [torch.tensor([0.33203125], dtype=torch.bfloat16)]) == [1.0]


@pytest.mark.parametrize(
    ("positive", "negative", "said"),
    [
        ([[0.1], []], [[0.1], [0.1]], r"positive_similarities\[1\]: found no similarity"),
        ([[0.1], [math.nan]], [[0.1], [0.1]], r"positive_similarities\[1\]: found NaN or an infinite number"),
        ([[0.1]], [[0.1, math.inf]], r"negative_similarities\[0\]: found NaN or an infinite number"),
        ([[[0.1]]], [[0.1]], r"positive_similarities\[0\]: found shape \(1, 1\)"),
        ([0.1], [[0.1]], r"positive_similarities\[0\]: found shape \(\)"),
        ([[0.1]], [[[0.1]]], r"negative_similarities\[0\]: found shape \(1, 1\)"),
        ([[0.1], [0.2]], [[0.1]], r"negative_similarities: found 1 rows; expected 2"),
    ],
)
def test_what_cannot_be_compared_is_refused(positive, negative, said):
    with pytest.raises(ValueError, match=said):
        ranks([torch.tensor(one) for one in positive], [torch.tensor(one) for one in negative])
