import math

import numpy as np
import pytest

from training.reasoning.reward_correlation import reward_correlations

FACTS = [{"rank": rank, "candidates": 8} for rank in (1.0, 2.0, 8.0, 1.0)]
SCORES = [1.0, 1 - math.log(2) / math.log(8), 0.0, 1.0]


def test_it_is_pearsons_with_the_score_of_the_retrieval_reward():
    values = [0.1, 0.9, 0.4, 0.2]
    found = reward_correlations({"format_reward": values, "length": SCORES}, FACTS)
    assert found["format"] == pytest.approx(np.corrcoef(values, SCORES)[0, 1])
    assert found["length"] == pytest.approx(1.0)


def test_the_retrieval_reward_is_compared_with_whether_the_positive_ranks_first():
    found = reward_correlations({"retrieval_reward": SCORES}, FACTS)
    assert found["retrieval"] == pytest.approx(np.corrcoef(SCORES, [1, 0, 0, 1])[0, 1])


def test_rollouts_without_a_reward_or_without_negatives_are_left_out():
    facts = [*FACTS, {"rank": 1.0, "candidates": 1}]
    values = [0.1, None, 0.4, math.nan, 0.7]
    found = reward_correlations({"margin": values}, facts)
    assert found == {"margin": pytest.approx(-1.0)}


@pytest.mark.parametrize(("values", "facts"), [([1.0] * 4, FACTS), ([0.1, 0.2], FACTS[::3]), ([], [])])
def test_a_constant_reward_or_recall_has_no_correlation(values, facts):
    assert reward_correlations({"format": values}, facts) == {}
