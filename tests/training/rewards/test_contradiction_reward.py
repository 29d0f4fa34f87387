import pytest

from processing_moon import read_reasoning
from training.rewards.contradiction import contradiction_reward

KNOWN = {
    "colour": frozenset({"red", "blue", "navy blue", "white", "gray"}),
    "brand": frozenset({"Red Tape", "Noru"}),
    "category": frozenset({"T-shirts", "sneakers"}),
    "material": frozenset({"cotton", "leather"}),
}


def reward(text, title, known=KNOWN, labels=None):
    columns = {"reasonings": [read_reasoning(text)], "titles": [title], "known_values": [known], "labels": [labels]}
    return contradiction_reward([""], [text], [[1]], **columns)[0]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("colour: red; brand: Noru; category: tee</think>", 0.0),
        ("colour: blue; brand: Noru; category: tee</think>", -1 / 3),
        ("colour: blue; brand: Red Tape; category: tee</think>", -2 / 3),
        ("colour: blue; brand: Red Tape; category: sneakers</think>", -1.0),
        ("colour: blue</think>", -1.0),
        ("colour: blue; material: leather; season/occasion: winter</think>", -1.0),  # only the colour can be checked
        ("material: leather; season/occasion: winter</think>", 0.0),  # the title says nothing of these
        ("color: blue; colour: red</think>", 0.0),  # one key, one right value
        ("", 0.0),
        ("</think>", 0.0),
        ("colour: blue; brand: Noru", -1 / 2),  # what was read counts without an end
    ],
)
def test_it_is_the_share_of_checkable_keys_that_the_title_denies(text, wanted):
    assert reward(text, "Noru Red T-Shirt") == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("text", "title"),
    [
        ("colour: grey</think>", "Noru Gray Sneakers"),  # a spelling
        ("category: trainers</think>", "Red sneakers"),  # a synonym
        ("colour: blue</think>", "Navy blue tee"),  # in the title
        ("colour: dark blue</think>", "Blue tee"),  # refines the title's
        ("colour: dark navy blue</think>", "Navy tee"),
        ("colour: white, red</think>", "Red tee"),  # one of several
        ("colour: green</think>", "Red Tape men tee"),  # a brand, no colour
        ("colour: green</think>", "Hatred tee"),  # half a word
        ("colour: green</think>", "Purple tee"),  # no value that is known
        ("nonsense: green</think>", "Red tee"),
    ],
)
def test_what_agrees_refines_or_cannot_be_checked_is_not_punished(text, title):
    assert reward(text, title) == 0.0


def test_a_list_of_words_is_no_refinement():
    assert reward("colour: red white blue green</think>", "Red tee") == -1.0


@pytest.mark.parametrize("title", [None, "", "  "])
def test_without_a_title_nothing_is_punished(title):
    assert reward("colour: blue</think>", title) == 0.0


def test_a_label_is_right_whatever_the_title_names():
    title = "Noru sneakers with white sole"
    assert reward("colour: red</think>", title, labels={"colour": ("Red",)}) == 0.0
    assert reward("colour: red</think>", title, labels={"colour": ("blue",)}) == -1.0


def test_other_known_values_are_read_anew():
    assert reward("colour: blue</think>", "Lilac tee") == 0.0
    assert reward("colour: blue</think>", "Lilac tee", {"colour": frozenset({"lilac"})}) == -1.0
    assert reward("colour: blue</think>", "Lilac tee", {}) == 0.0


SIZES = {
    "size/specification": frozenset({"M", "5", "large", "42"}),
    "style elements": frozenset({"3 knobs", "white sole", "star logo"}),
    "colour": frozenset({"white", "red"}),
}


@pytest.mark.parametrize(
    ("text", "title"),
    [
        ("size/specification: XL</think>", "Men's M series jacket"),
        ("size/specification: XL</think>", "Pack of 5 shirts"),
        ("size/specification: XL</think>", "L-shaped sofa"),  # "large" is also said "l"
        ("size/specification: small</think>", "The 5 o'clock mug"),
        ("style elements: 4 knobs</think>", "3 radios with knobs"),
        ("style elements: striped</think>", "White shoes with a black sole"),  # no white sole
        ("style elements: star logo</think>", "Radio with 3 knobs and a star"),  # refined
        ("size/specification: M</think>", "Shirt M, of our size 42 range"),  # stands there, were it by accident
    ],
)
def test_a_lone_letter_or_digit_contradicts_nothing_by_accident(text, title):
    assert reward(text, title, SIZES) == 0.0


@pytest.mark.parametrize(
    ("text", "title"),
    [
        ("size/specification: XL</think>", "Shirt, size M"),
        ("size/specification: 7</think>", "Boots size five"),
        ("style elements: 4 knobs</think>", "Radio with 3 knobs"),
        ("style elements: black sole</think>", "Trainers with a white sole"),
    ],
)
def test_what_a_title_states_can_be_contradicted(text, title):
    assert reward(text, title, SIZES) == -1.0
