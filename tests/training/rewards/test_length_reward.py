import pytest

from processing_moon import read_reasoning
from training.rewards.length import length_reward


def reward(tokens: int, budget: int, text: str = "colour: red</think>") -> float:
    written = [list(range(tokens))]
    return length_reward([""], [text], written, reasonings=[read_reasoning(text)], max_reasoning_tokens=[budget])[0]


@pytest.mark.parametrize("tokens", [1, 5, 16, 31, 32])
def test_within_the_budget_it_is_one(tokens):
    assert reward(tokens, 32) == 1.0


@pytest.mark.parametrize(("tokens", "wanted"), [(33, 31 / 32), (40, 0.75), (48, 0.5), (64, 0.0), (65, 0.0), (999, 0.0)])
def test_beyond_the_budget_it_falls_on_a_line_to_nothing_at_twice_the_budget(tokens, wanted):
    assert reward(tokens, 32) == pytest.approx(wanted)


@pytest.mark.parametrize("text", ["", "</think>", "   </think>", "colour: red", "colour: red; brand"])
def test_nothing_written_or_no_end_is_worth_nothing(text):
    assert reward(8, 32, text) == 0.0


def test_a_malformed_reasoning_has_a_length_all_the_same():
    assert reward(8, 32, "no attributes here</think>") == 1.0


@pytest.mark.parametrize("budget", [0, -1])
def test_a_budget_without_room_is_refused(budget):
    with pytest.raises(ValueError, match=rf"max_reasoning_tokens\[0\]: found {budget}; expected an integer"):
        reward(8, budget)


def test_columns_of_other_lengths_are_refused():
    with pytest.raises(ValueError, match="shorter"):
        length_reward([], [], [[1], [2]], reasonings=[read_reasoning("")], max_reasoning_tokens=[3, 3])
