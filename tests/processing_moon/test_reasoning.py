"""Reading and writing `<think>key: value; key: v1, v2</think>`: no string makes the reader fail, and nothing is lost."""

from __future__ import annotations

import re

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from processing_moon import REASONING_KEYS, Reasoning, read_reasoning, write_reasoning
from processing_moon.reasoning_moon import strip_tags

WORDS = "colour: red, white; material: leather"
READ = {"colour": ("red", "white"), "material": ("leather",)}


@pytest.mark.parametrize("text", [f"<think>{WORDS}</think>", f"{WORDS}</think>", f" <think>{WORDS}; </think><emb>",
                                  f"<think> {WORDS.replace(' ', '')};</think> <emb> ",
                                  "<think>colour :red\n, white ;\tmaterial:leather</think>"])  # fmt: skip
def test_the_template_is_read_with_or_without_its_opening_tag(text):
    found = read_reasoning(text)
    assert found.attributes == READ
    assert list(found.attributes) == ["colour", "material"]
    assert found.closed
    assert found.well_formed
    assert found.unparsed == ()


def test_the_text_is_kept_as_it_was_written():
    assert read_reasoning("<think> a:  b </think><emb>").text == " a:  b "
    assert read_reasoning("a: b").text == "a: b"


@pytest.mark.parametrize(
    ("text", "attributes", "words"),
    [
        ("<think>a: b; red shoes</think>", {"a": ("b",)}, "no 'key: value' in 'red shoes'"),
        ("<think>a: b;; c: d</think>", {"a": ("b",), "c": ("d",)}, "no 'key: value' in ''"),
        ("<think>: b; c: d</think>", {"c": ("d",)}, "no key in ': b'"),
        ("<think>a: ; c: d</think>", {"c": ("d",)}, "no value in 'a:'"),
        ("<think>a: , ,; c: d</think>", {"c": ("d",)}, "no value in 'a: , ,'"),
        ("<think>a: b, , c</think>", {"a": ("b", "c")}, "an empty value in 'a: b, , c'"),
        ("<think>a: b; a: c</think>", {"a": ("b",)}, "the key 'a' comes again in 'a: c'"),
        ("so: then <think>a: b</think>", {"a": ("b",)}, "before <think>: 'so: then'"),
        ("<think>a: b</think> c: d", {"a": ("b",)}, "after </think>: 'c: d'"),
        ("<think>a: b</think><emb><emb>", {"a": ("b",)}, "after </think>: '<emb>'"),
        ("<think>a: b</think></think>", {"a": ("b",)}, "after </think>: '</think>'"),
        ("<think>a: b<think>; c: d</think>", {"c": ("d",)}, "the control token <think> in 'a: b<think>'"),
        ("<think>a: b; c: <|im_end|></think>", {"a": ("b",)}, "the control token <|im_end|> in 'c: <|im_end|>'"),
        ("<think>a: <emb>; c: d</think>", {"c": ("d",)}, "the control token <emb> in 'a: <emb>'"),
        ("</think><think>a: b", {}, "after </think>: '<think>a: b'"),
        (f"<think>a: b; {'x' * 500}</think>", {"a": ("b",)}, f"no 'key: value' in '{'x' * 60}…'"),
    ],
)
def test_what_cannot_be_read_is_reported_with_its_words_and_the_rest_is_read(text, attributes, words):
    found = read_reasoning(text)
    assert found.attributes == attributes
    assert found.unparsed == (words,)
    assert found.closed
    assert not found.well_formed


def test_tags_are_stripped_once_and_only_at_the_ends():
    assert (
        strip_tags(" <think> a: b </think> <emb> ") == strip_tags("a: b </think><emb>") == strip_tags("a: b") == "a: b"
    )
    assert strip_tags("<think><think>a</think></think>") == "<think>a</think>"
    assert strip_tags("a: <emb>") == "a: <emb>"
    assert strip_tags("a</think>: b") == "a</think>: b"


@pytest.mark.parametrize("text", ["", " ", "<think>", "<think> \n"])
def test_nothing_written_is_nothing_read(text):
    assert read_reasoning(text) == Reasoning(text.replace("<think>", ""), {}, (), False)
    assert not read_reasoning(f"{text}</think>").well_formed
    assert read_reasoning(f"{text}</think>").closed


def test_text_without_its_end_is_read_as_far_as_it_goes_and_not_well_formed():
    found = read_reasoning("<think>colour: red; mater")
    assert found.attributes == {"colour": ("red",)}
    assert found.unparsed == ("no 'key: value' in 'mater'",)
    assert not found.closed
    assert not read_reasoning("<think>colour: red").well_formed


def test_a_value_may_hold_colons_and_separators_after_a_backslash():
    assert read_reasoning(r"size: 10:20, 4\,5 cm; note: a\;b, c\\; k\:y: \n").attributes == {
        "size": ("10:20", "4,5 cm"),
        "note": ("a;b", "c\\"),
        "k:y": ("\\n",),
    }


@settings(max_examples=400, deadline=None)
@given(st.lists(st.sampled_from(["<think>", "</think>", "<emb>", "<|im_end|>", ":", ";", ",", "\\", " ", "\n", "x", "y",
                                 "\ud83d", "靴"])).map("".join) | st.text())  # fmt: skip
def test_no_string_makes_the_reader_fail_and_every_word_is_somewhere(text):
    found = read_reasoning(text)
    assert found.closed == ("</think>" in text)
    assert found.well_formed == (found.closed and bool(found.attributes) and not found.unparsed)
    assert all(key == " ".join(key.split()) != "" for key in found.attributes)
    assert all(values and all(values) for values in found.attributes.values())
    if len(text) < 40:  # below the length at which a report is cut
        told = "".join([*found.unparsed, *(key + "".join(values) for key, values in found.attributes.items())])
        assert {letter for letter in text if letter in "xy靴"} <= set(told)


def test_long_text_is_read_in_time_that_grows_with_its_length():
    for piece in ("a: b; ", "\\", "\\;", ",", ":", "<think>", "x"):
        found = read_reasoning(piece * 100_000)
        assert not found.well_formed
    assert len(read_reasoning("a; " * 50_000 + "</think>").unparsed) == 50_000


TEXT = st.text(alphabet=st.characters(codec="utf-8"), max_size=12) | st.text(alphabet=r"ab :;,\<>|", max_size=8)


def _clean(text):
    return " ".join(text.split())


@settings(max_examples=400, deadline=None)
@given(st.dictionaries(TEXT.filter(_clean), st.lists(TEXT, max_size=4), max_size=5))
def test_what_is_written_is_read_back(attributes):
    assume(len({_clean(key) for key in attributes}) == len(attributes))
    words = "\n".join(_clean(one) for key, values in attributes.items() for one in (key, *values))
    assume(not re.search(r"<\|\S*\|>|</?think>|<emb>", words))
    text = write_reasoning(attributes)
    wanted = {_clean(key): tuple(_clean(one) for one in values if _clean(one)) for key, values in attributes.items()}
    wanted = {key: values for key, values in wanted.items() if values}
    found = read_reasoning(text)
    assert found.attributes == wanted
    assert list(found.attributes) == list(wanted)
    assert found.unparsed == ()
    assert found.closed
    assert write_reasoning(found.attributes) == text
    assert strip_tags(text) == _clean(found.text)


def test_the_ten_keys_are_written_plainly():
    text = write_reasoning({key: "x" for key in REASONING_KEYS})
    assert len(REASONING_KEYS) == len(set(REASONING_KEYS)) == 10
    assert text.startswith("<think>colour: x; category: x; category modifier: x; brand: x; size/specification: x; ")
    assert "\\" not in text
    assert write_reasoning({"colour": ["red", "white"], "brand": ()}) == "<think>colour: red, white</think>"


@pytest.mark.parametrize(
    ("attributes", "words"),
    [
        ({" ": "a"}, "key ''; expected keys that are non-empty strings"),
        ({3: "a"}, "key 3; expected"),
        ({"a": 3}, "3 as a value of 'a'; expected a string or several"),
        ({"a": ["b", None]}, "None as a value of 'a'"),
        ({"a": "b", "a ": "c"}, "found the key 'a' twice"),
        ({"a": "b</think>"}, "the control token '</think>' in 'a: b</think>'"),
        ({"a<|im_end|>": "b"}, "the control token '<|im_end|>'"),
    ],
)
def test_what_could_not_be_read_back_is_not_written(attributes, words):
    with pytest.raises(ValueError, match="reasoning: ") as caught:
        write_reasoning(attributes)
    assert words in str(caught.value)
