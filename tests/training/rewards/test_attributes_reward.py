import pytest

from processing_moon import read_reasoning
from training.rewards.attributes import attributes_reward

LABELS = {"colour": ("navy",), "material": ("cotton", "linen"), "category": ("T-shirts",)}


KNOWN = {"colour": frozenset(["navy"]), "warranty": frozenset(["2 years"])}


def reward(text, labels=LABELS, known=KNOWN):
    columns = {"reasonings": [read_reasoning(text)], "labels": [labels], "known_values": [known]}
    return attributes_reward([""], [text], [[1]], **columns)[0]


@pytest.mark.parametrize(
    ("text", "right", "written"),
    [
        ("colour: navy; material: cotton, linen; category: T-shirts</think>", 4, 4),
        ("colour: navy</think>", 1, 1),
        ("colour: red</think>", 0, 1),
        ("colour: navy, red</think>", 1, 2),
        ("material: cotton, silk; category: dress</think>", 1, 3),
        ("colour: navy; material: linen, cotton, wool; category: T-shirts</think>", 4, 5),
    ],
)
def test_it_is_the_f1_of_pairs(text, right, written):
    precision, recall = right / written, right / 4
    wanted = 0.0 if not right else 2 * precision * recall / (precision + recall)
    assert reward(text) == pytest.approx(wanted)


def test_case_spaces_order_and_synonyms_do_not_matter():
    assert reward("Category:  tee ; COLOR: Navy-Blue; material: LINEN,  pure cotton</think>") == 1.0


def test_a_value_in_two_spellings_is_one_value():
    assert reward("colour: grey, gray, Grey</think>", {"colour": ("gray",)}) == 1.0
    assert reward("color: red; colour: blue</think>", {"colour": ("red", "blue")}) == 1.0


def test_a_known_key_that_the_labels_lack_is_neither_right_nor_wrong():
    alone = reward("colour: navy</think>")
    assert reward("colour: navy; brand: Noru; style elements: pockets; Gender: men; 颜色: navy</think>") == alone
    assert reward("colour: navy; warranty: 5 years</think>") == alone  # a key of this shop


@pytest.mark.parametrize("invented", ["price: 3", "sturdiness: high", "soul: none"])
def test_each_value_of_an_invented_key_costs_as_much_as_a_wrong_value(invented):
    assert reward(f"colour: navy; {invented}</think>") == reward("colour: navy, red</think>")
    assert reward(f"colour: navy; {invented}, 7</think>") == reward("colour: navy, red, pink</think>")
    assert reward("colour: navy; warranty: 5 years</think>", known={}) == reward("colour: navy, red</think>")


@pytest.mark.parametrize("text", ["", "</think>", "nothing to read</think>", "brand: Noru</think>"])
def test_writing_no_labelled_key_is_worth_nothing(text):
    assert reward(text) == 0.0


@pytest.mark.parametrize("labels", [None, {}, {"colour": ()}, {"colour": (" ",)}])
def test_without_labels_nothing_is_known(labels):
    assert reward("colour: navy</think>", labels) is None


def test_what_could_be_read_counts_without_an_end():
    assert reward("colour: navy; material", {"colour": ("navy",)}) == 1.0
