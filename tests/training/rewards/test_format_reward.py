import pytest

from processing_moon import REASONING_KEYS, read_reasoning, write_reasoning
from training.rewards.format import format_reward


def reward(text: str) -> float:
    return format_reward([""], [text], [[1]], reasonings=[read_reasoning(text)])[0]


def test_a_well_formed_reasoning_with_known_keys_is_worth_one():
    assert reward("colour: red</think>") == 1.0
    assert reward(write_reasoning({key: ["a", "b"] for key in REASONING_KEYS})) == 1.0


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("colour: red; price: 3</think>", 1 / 2),  # an unknown key
        ("colour: red; nice</think>", 1 / 2),  # a part that cannot be read
        ("colour: red; brand: Noru; nice; colour: blue</think>", 2 / 4),  # a key twice, too
        ("color: red</think>", 0.0),  # the template's own spelling is asked for
        ("Colour: red; brand: Noru</think>", 1 / 2),
        ("red shoes</think>", 0.0),
        ("colour: red,</think>", 1 / 2),  # an empty value
    ],
)
def test_each_part_of_the_format_counts(text, wanted):
    assert reward(text) == pytest.approx(wanted)


@pytest.mark.parametrize("text", ["", "</think>", "  ;</think>", "colour: red", "colour: red; brand: Noru"])
def test_an_empty_or_unclosed_reasoning_is_worth_nothing(text):
    assert reward(text) == 0.0


def test_it_is_one_exactly_where_the_form_is_right():
    for text in (
        "colour: red</think>",
        "colour: red; x</think>",
        "size: M</think>",
        "colour: red",
        "material: a\\;b</think>",
    ):
        reading = read_reasoning(text)
        right = reading.well_formed and set(reading.attributes) <= set(REASONING_KEYS)
        assert (reward(text) == 1.0) == right
