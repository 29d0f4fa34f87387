import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from processing_moon import REASONING_KEYS
from training.data.synonyms import (
    TABLE,
    ValueIndex,
    canonical_attributes,
    canonical_key,
    canonical_value,
    spellings,
    states,
    words,
)

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
def test_neighbours_stay_apart(key, one, other):
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
    assert states(text, key, text) == bool(text.strip())


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
        said = [words(one) for kept, others in table.items() for one in (kept, *others)]
        assert sorted({one for one in said if said.count(one) > 1}) == []
    for key, others in TABLES["keys"].items():
        assert all(canonical_key(one) == key for one in others)
