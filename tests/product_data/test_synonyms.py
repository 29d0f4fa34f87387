import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from processing_moon import REASONING_KEYS
from product_data.synonyms import (
    TABLE,
    ValueIndex,
    canonical_attributes,
    canonical_key,
    canonical_value,
    common_words,
    mentions,
    spellings,
    states,
)
from product_data.words import words

TABLES = yaml.safe_load(TABLE.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("key", "one", "other"),
    [
        ("colour", "Grey", "gray"),
        ("colour", "navy", "Navy-Blue"),
        ("colour", " off  white ", "Off-White"),
        ("colour", "dark gray", "Dark Grey"),
        ("category", "T-shirts", "tee"),
        ("category", "Sneakers", "trainer"),
        ("category", "Dresses", "dress"),
        ("category", "Accessories", "accessory"),
        ("target demographic", "Women's", "ladies"),
        ("season/occasion", "Fall", "autumn"),
        ("size/specification", "50x50cm", "50 × 50 cm"),
        ("size/specification", "1,5 l", "1.5l"),
        ("material", "aluminum", "Aluminium"),
        ("brand", "Levi's", "LEVIS"),
        ("category", "Sunglasses", "sunglass"),
        ("category", "Kurtis", "kurti"),
        ("category", "Ties", "tie"),
        ("category", "hoodies", "hoody"),
        ("size/specification", "two litres", "2 liter"),
    ],
)
def test_spellings_and_words_for_one_thing_are_the_same(key, one, other):
    assert canonical_value(key, one) == canonical_value(key, other)


@pytest.mark.parametrize(
    ("key", "one", "other"),
    [
        ("colour", "navy", "dark blue"),
        ("colour", "white", "off-white"),
        ("colour", "maroon", "burgundy"),
        ("brand", "tee", "t-shirt"),  # synonyms hold under their key
        ("fashion style", "retro", "vintage"),
        ("size/specification", "1 l", "1.5 l"),
        ("material", "leather", "faux leather"),
        ("style elements", "☆", "★"),
    ],
)
def test_neighbouring_words_stay_apart(key, one, other):
    assert canonical_value(key, one) != canonical_value(key, other)


def test_a_key_is_known_in_its_spellings_and_another_stays_what_it_is():
    assert canonical_key("Color") == canonical_key("COLOURS") == "colour"
    assert canonical_key("season") == canonical_key("season / occasion") == "season/occasion"
    assert canonical_key("Battery life") == "battery life"
    assert all(canonical_key(key) == key for key in REASONING_KEYS)


def test_attributes_are_joined_under_one_key_and_empty_ones_left_out():
    given_attributes = {"color": ("Gray",), "colour": ("grey", "Red"), "brand": (" ",), "material": ()}
    assert canonical_attributes(given_attributes) == {"colour": frozenset({"grey", "red"})}


def test_a_text_names_whole_words_only():
    assert states("Noru Gray Hoodie", "colour", "grey")
    assert states("rucksack in violet", "category", "Backpacks")
    assert states("red dress for my wife", "target demographic", "women")
    assert not states("Hatred T-Shirt", "colour", "red")
    assert not states("", "colour", "red")
    assert not states("anything", "colour", "  ")


@pytest.mark.parametrize(
    ("text", "key", "value", "wanted"),
    [
        ("shirt in size M", "size/specification", "M", True),
        ("Size: m", "size/specification", "M", True),
        ("M size shirt", "size/specification", "M", True),
        ("M", "size/specification", "M", True),  # the text says nothing else
        ("Model M keyboard", "size/specification", "M", True),  # shops file models there, too
        ("the M shirt", "size/specification", "M", False),
        ("men's shirt, medium", "size/specification", "M", True),  # said in full
        ("chart inside, by M", "size/specification", "M", False),
        ("shirt, l", "size/specification", "large", False),
        ("pack of 5", "size/specification", "5", False),
        ("capacity 5", "size/specification", "5", True),
        ("speaker with 3 knobs", "style elements", "3 knobs", True),
        ("speaker with three knobs", "style elements", "3 knobs", True),
        ("3 speakers", "style elements", "3 knobs", False),
        ("mug with a star", "style elements", "star logo", True),
        ("mug with an N", "style elements", "N logo", False),
        ("mug with N logo", "style elements", "N logo", True),
        ("soles in white", "style elements", "white sole", True),
        ("white shoes", "style elements", "white sole", False),
        ("女士红连衣裙", "colour", "红", True),  # one character is a word there
    ],
)
def test_a_lone_letter_or_digit_counts_only_beside_a_name_and_a_part_only_with_its_part(text, key, value, wanted):
    assert states(text, key, value) is wanted
    found = ValueIndex({key: [value]}).stated(text)
    of_own = text in ("soles in white", "mug with a star")  # which says a value that the item is known to have
    assert found == ({key: {canonical_value(key, value)}} if wanted and not of_own else {})


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("pack of five in size 42", "size/specification", "5"),
        ("size chart inside, by M", "size/specification", "M"),
        ("3 speakers with knobs", "style elements", "3 knobs"),
        ("mug with N on it and a logo", "style elements", "N logo"),
        ("Long-handled Red Tote Bag", "style elements", "red handle"),
    ],
)
def test_what_may_say_an_item_s_own_value_says_no_value_of_another(text, key, value):
    assert states(text, key, value)
    assert ValueIndex({key: [value]}).stated(text) == {}


def test_of_any_item_s_values_a_text_states_no_part_s_colour_that_it_gives_another_thing():
    known = {"style elements": ["black sole", "red sole", "star logo"], "colour": ["black", "red"]}
    found = ValueIndex(known).stated("black shoes with red soles and a star")
    assert found == {"colour": {"black"}, "style elements": {"red sole"}}


def test_synonyms_can_be_left_out():
    assert states("kicks for my wife", "category", "sneakers")
    assert not states("kicks for my wife", "category", "sneakers", synonyms=False)
    assert states("a Sneaker", "category", "sneakers", synonyms=False)
    assert not states("shirt, l", "size/specification", "l", synonyms=False)
    assert states("same in gray", "colour", "grey")
    assert not states("same in gray", "colour", "grey", synonyms=False)


def test_what_a_text_states_it_mentions_but_for_parts_and_not_the_other_way():
    assert mentions("the M shirt", "size/specification", "medium")
    assert mentions("pack of 5", "size/specification", "five")
    assert not mentions("pack of 15", "size/specification", "5")


def test_the_ways_to_say_a_value_are_the_words_of_its_line():
    assert spellings("season/occasion", "fall") == [("autumn",), ("fall",)]
    assert spellings("brand", "fall") == [("fall",)]
    assert spellings("colour", "Navy blue") == spellings("colour", "navy") == [("navy",), ("navy", "blue")]
    assert spellings("colour", "") == []


def test_scripts_without_spaces_are_read_by_characters():
    assert states("女士红色连衣裙夏季", "colour", "红色")
    assert not states("女士红色连衣裙夏季", "colour", "蓝色")
    found = ValueIndex({"colour": ["红色", "蓝色"], "category": ["连衣裙"]}).stated("女士红色连衣裙")
    assert found == {"colour": {canonical_value("colour", "红色")}, "category": {canonical_value("category", "连衣裙")}}


def test_an_index_finds_all_known_values_and_no_part_of_a_longer_one():
    index = ValueIndex({"colour": ["Red", "Blue", "Navy Blue"], "brand": ["Red Tape", "Puma"], "season": ["Autumn"]})
    assert index.stated("Red Tape Men Navy Blue Shoes") == {"brand": {"red tape"}, "colour": {"navy"}}
    assert index.stated("Red Tape, red, for fall") == {
        "brand": {"red tape"},
        "colour": {"red"},
        "season/occasion": {"autumn"},
    }
    assert index.stated("") == ValueIndex({}).stated("red") == {}


def test_two_meanings_of_the_same_words_are_both_found():
    found = ValueIndex({"colour": ["Orange"], "category": ["Orange"]}).stated("an orange")
    assert found == {"colour": {"orange"}, "category": {"orange"}}


@given(st.text(max_size=40), st.sampled_from(REASONING_KEYS))
def test_any_text_has_a_canonical_form_that_case_and_spaces_do_not_change(text, key):
    assert bool(words(text)) == bool(text.strip())
    assert canonical_value(key, f"  {text} ") == canonical_value(key, text)
    assert states(text, key, text) == mentions(text, key, text) == bool(text.strip())


def test_the_table_names_known_keys_and_each_word_once():
    assert set(TABLES) == {"spellings", "keys", "values"}
    assert set(TABLES["keys"]) | set(TABLES["values"]) <= set(REASONING_KEYS)
    tables = [TABLES["spellings"], TABLES["keys"], *TABLES["values"].values()]
    for table in tables:
        for kept, others in table.items():
            assert isinstance(kept, str)
            assert others
            assert all(isinstance(one, str) for one in others)
    for table in TABLES["values"].values():
        said = [common_words(one) for kept, others in table.items() for one in (kept, *others)]
        assert sorted({one for one in said if said.count(one) > 1}) == []
    for key, others in TABLES["keys"].items():
        assert all(canonical_key(one) == key for one in others)
