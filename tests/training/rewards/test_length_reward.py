import pytest

from processing_moon import read_reasoning
from training.rewards.length import default_target, length_reward

TARGET = (16, 24)


def reward(tokens: int, target=TARGET, text: str = "colour: red</think>") -> float:
    written = [list(range(tokens))]
    return length_reward([""], [text], written, reasonings=[read_reasoning(text)], target_tokens=[target])[0]


@pytest.mark.parametrize("tokens", [16, 17, 20, 24])
def test_within_the_target_it_is_one(tokens):
    assert reward(tokens) == 1.0


@pytest.mark.parametrize(("tokens", "wanted"), [(1, 1 / 16), (4, 0.25), (15, 15 / 16)])
def test_below_the_target_it_rises_on_a_line(tokens, wanted):
    assert reward(tokens) == pytest.approx(wanted)


@pytest.mark.parametrize(("tokens", "wanted"), [(25, 23 / 24), (30, 0.75), (36, 0.5), (48, 0.0), (49, 0.0), (999, 0.0)])
def test_beyond_the_target_it_falls_on_a_line_to_nothing_at_twice_its_end(tokens, wanted):
    assert reward(tokens) == pytest.approx(wanted)


def test_a_target_from_one_token_has_no_lower_line():
    assert reward(1, (1, 24)) == 1.0


@pytest.mark.parametrize("text", ["", "</think>", "   </think>", "colour: red", "colour: red; brand"])
def test_nothing_written_or_no_end_is_worth_nothing(text):
    assert reward(20, text=text) == 0.0


def test_a_malformed_reasoning_has_a_length_all_the_same():
    assert reward(20, text="no attributes here</think>") == 1.0


@pytest.mark.parametrize("target", [(0, 8), (-1, 8), (9, 8)])
def test_a_target_out_of_order_is_refused(target):
    with pytest.raises(ValueError, match=rf"target_tokens\[0\]: found {target[0]} to {target[1]}; expected 1 ≤"):
        reward(8, target)


@pytest.mark.parametrize(("limit", "target"), [(32, (16, 24)), (16, (8, 12)), (24, (12, 18)), (5, (3, 4)), (1, (1, 1))])
def test_the_default_target_ends_below_the_limit_of_generation(limit, target):
    assert default_target(limit) == target
    closed = [reward(tokens, target) for tokens in range(1, limit + 1)]
    assert len(set(closed)) > 1 or limit == 1  # informs about more than whether a reasoning is closed


def test_columns_of_other_lengths_are_refused():
    with pytest.raises(ValueError, match="shorter"):
        length_reward([], [], [[1], [2]], reasonings=[read_reasoning("")], target_tokens=[TARGET, TARGET])
