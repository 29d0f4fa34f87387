"""Prompts with title markers and with reasoning, and reading the ids that a model wrote."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pictures import noise
from transformers import AddedToken, AutoTokenizer

from processing_moon import MoonProcessor, ProductError, Reasoning

MOON3 = {"readout": "emb", "title_markers": True, "max_reasoning_tokens": 32}
SHOE = {"title": "red shoes", "category": ["Shoes"], "attributes": {"colour": "red"}, "description": "white sole"}
GIVEN = {**SHOE, "reasoning": "colour: red"}


@pytest.fixture(scope="module")
def moon3(make_processor):
    return make_processor(**MOON3)


def text_of(processor, batch, row=0):
    return processor.decode(batch["input_ids"][row][batch["attention_mask"][row].bool()])


def counts_of(processor, batch, row=0):
    ids = batch["input_ids"][row][batch["attention_mask"][row].bool()].tolist()
    return {token: ids.count(number) for number, token in ((n, t.content) for n, t in
            processor.tokenizer.added_tokens_decoder.items())}  # fmt: skip


def encoded_length(processor, text):
    return len(processor.tokenizer(text)["input_ids"])


# ---------------------------------------------------------------------------------------------------------------------
# Tokens and settings


def test_only_the_settings_add_their_tokens_and_all_other_ids_stay(tiny_base):
    base = AutoTokenizer.from_pretrained(tiny_base()).get_vocab()
    plain = MoonProcessor.from_base(tiny_base()).tokenizer.get_vocab()
    assert set(plain) - set(base) == {"<|category_start|>", "<|category_end|>", "<|attribute_start|>",
                                      "<|attribute_end|>", "<emb>"}  # fmt: skip
    titles = MoonProcessor.from_base(tiny_base(), title_markers=True).tokenizer.get_vocab()
    assert set(titles) - set(plain) == {"<|title_start|>", "<|title_end|>"}
    thinks = MoonProcessor.from_base(tiny_base(), readout="emb", max_reasoning_tokens=8).tokenizer.get_vocab()
    assert set(thinks) - set(plain) == {"<think>", "</think>"}
    for vocabulary in (titles, thinks):
        assert {token: vocabulary[token] for token in plain} == plain


def test_think_tokens_that_a_tokenizer_has_are_used_as_they_are(tiny_base, monkeypatch):
    load = AutoTokenizer.from_pretrained

    def load_with_thinks(*args, **kwargs):
        tokenizer = load(*args, **kwargs)
        tokenizer.add_tokens([AddedToken(one, special=False, normalized=False) for one in ("<think>", "</think>")])
        return tokenizer

    before = load_with_thinks(tiny_base()).get_vocab()
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", load_with_thinks)
    own = MoonProcessor.from_base(tiny_base(), **MOON3)
    for token in ("<think>", "</think>"):
        number = own.tokenizer.convert_tokens_to_ids(token)
        assert number == before[token]
        assert not own.tokenizer.added_tokens_decoder[number].special


def test_added_think_tokens_are_kept_by_a_decoding_without_special_tokens(moon3):
    ids = moon3(products=[GIVEN], reasoning="given")["input_ids"][0]
    assert "<think>colour: red</think>" in moon3.decode(ids, skip_special_tokens=True)
    assert "<|title_start|>" not in moon3.decode(ids, skip_special_tokens=True)


def test_the_settings_are_saved_and_restored(moon3, tmp_path):
    moon3.save_pretrained(tmp_path)
    restored = MoonProcessor.from_pretrained(tmp_path)
    written = json.loads((tmp_path / "processor_config.json").read_text())
    assert (restored.title_markers, restored.max_reasoning_tokens) == (True, 32)
    assert (written["title_markers"], written["max_reasoning_tokens"]) == (True, 32)
    assert (tmp_path / "reasoning_moon.py").exists()
    for options in ({}, {"reasoning": "generate"}, {"reasoning": "given"}):
        first, second = (one(products=[GIVEN], **options) for one in (moon3, restored))
        assert torch.equal(first["input_ids"], second["input_ids"])
    changed = MoonProcessor.from_pretrained(tmp_path, max_reasoning_tokens=3)
    assert changed(products=[{**SHOE, "reasoning": "a: b " * 9}], reasoning="given").shortened[0].tokens_after <= 3


def test_a_file_without_the_new_settings_loads_with_their_defaults(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    path = tmp_path / "processor_config.json"
    written = json.loads(path.read_text())
    for name in ("title_markers", "max_reasoning_tokens"):
        written.pop(name, None)
    path.write_text(json.dumps(written))
    restored = MoonProcessor.from_pretrained(tmp_path)
    assert (restored.title_markers, restored.max_reasoning_tokens) == (False, None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_reasoning_tokens": 32}, "max_reasoning_tokens=32 requires readout='emb'; found readout='mean'"),
        ({"max_reasoning_tokens": 0, "readout": "emb"}, "max_reasoning_tokens=0; expected a positive whole number"),
        ({"max_reasoning_tokens": True, "readout": "emb"}, "max_reasoning_tokens=True"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(tiny_base, options, message):
    with pytest.raises(ValueError, match=message):
        MoonProcessor.from_base(tiny_base(), **options)


def test_a_tokenizer_without_the_tokens_of_a_setting_is_refused(make_processor):
    bare = make_processor(readout="emb")
    with pytest.raises(ValueError, match="the tokenizer lacks <think>, </think>"):
        MoonProcessor(bare.image_processor, bare.tokenizer, readout="emb", max_reasoning_tokens=8)
    with pytest.raises(ValueError, match=r"the tokenizer lacks <\|title_start\|>, <\|title_end\|>"):
        MoonProcessor(bare.image_processor, bare.tokenizer, title_markers=True)


# ---------------------------------------------------------------------------------------------------------------------
# Title markers


def test_title_markers_surround_the_title_of_a_product_and_the_text_of_a_query(moon3):
    batch = moon3(records=[SHOE, {"text": "same in green "}])
    assert "user\n<|title_start|>red shoes<|title_end|>\n<|category_start|>Shoes" in text_of(moon3, batch)
    assert "user\n<|title_start|>same in green <|title_end|><|im_end|>" in text_of(moon3, batch, 1)


def test_an_absent_title_has_no_markers(moon3):
    batch = moon3(
        records=[{"description": "white sole"}, {"image": noise(96, 64)}, {"title": " ", "category": "Shoes"}]
    )
    for row in range(3):
        assert counts_of(moon3, batch, row)["<|title_start|>"] == counts_of(moon3, batch, row)["<|title_end|>"] == 0


def test_a_shortened_title_keeps_both_markers_and_a_vanished_one_none(moon3):
    product = {"title": "red running shoes for women " * 3, "category": "Shoes"}
    whole = moon3(products=[product])["input_ids"].shape[1]
    seen = set()
    for budget in range(whole, whole - 80, -1):
        try:
            batch = moon3(products=[product], max_tokens=budget)
        except ProductError:
            break
        counts = counts_of(moon3, batch)
        assert batch["input_ids"].shape[1] <= budget
        assert counts["<|title_start|>"] == counts["<|title_end|>"]
        seen.add(counts["<|title_start|>"])
    assert seen == {0, 1}


def test_title_markers_change_nothing_but_the_markers(make_processor, moon3):
    without = make_processor(readout="emb", max_reasoning_tokens=32)
    for options in ({}, {"reasoning": "generate"}, {"reasoning": "given"}):
        marked = text_of(moon3, moon3(products=[GIVEN], **options))
        bare = marked.replace("<|title_start|>", "").replace("<|title_end|>", "")
        assert bare == text_of(without, without(products=[GIVEN], **options)) != marked


# ---------------------------------------------------------------------------------------------------------------------
# Reasoning


def test_the_three_endings_follow_one_and_the_same_prompt(moon3):
    for record in (GIVEN, {"text": "red", "reasoning": "colour: red"}, {**GIVEN, "images": noise(96, 64)}):
        none, generate, reasoned = (text_of(moon3, moon3(records=[record], reasoning=one)) for one in
                                    ("none", "generate", "given"))  # fmt: skip
        assert none.endswith("<|im_start|>assistant\n<emb>")
        prompt = none.removesuffix("<emb>")
        assert generate == f"{prompt}<think>"
        assert reasoned == f"{prompt}<think>colour: red</think><emb>"
        assert text_of(moon3, moon3(records=[record])) == none


def test_generated_prompts_are_padded_on_the_left_unless_the_call_says_otherwise(tiny_base):
    own = MoonProcessor.from_base(tiny_base(), **MOON3)
    own.tokenizer.padding_side = "right"
    records = [{"text": "red"}, {"text": "brown leather tote bag, gold buckle"}]
    think = own.tokenizer.convert_tokens_to_ids("<think>")
    left = own(queries=records, reasoning="generate")
    assert left["input_ids"][:, -1].tolist() == [think, think]
    right = own(queries=records, reasoning="generate", padding_side="right")
    assert right["attention_mask"][0, 0] == 1
    assert right["attention_mask"][0, -1] == 0
    assert own(queries=records)["attention_mask"][0, -1] == 0


@pytest.mark.parametrize("words", ["colour: red", " colour: red\n", "<think>colour: red</think>", "colour: red</think>",
                                   "<think>\ncolour: red\n</think>\n", "<think>colour: red</think> <emb>", {"colour": "red"},
                                   {"colour": ["red"], "size": [], "brand": None, "material": ["", " "]}])  # fmt: skip
def test_a_string_with_or_without_tags_and_a_mapping_give_the_same(moon3, words):
    wanted = moon3(products=[GIVEN], reasoning="given")
    assert torch.equal(
        moon3(products=[{**SHOE, "reasoning": words}], reasoning="given")["input_ids"], wanted["input_ids"]
    )


def test_a_mapping_is_written_as_the_reader_reads_it(moon3):
    attributes = {"size": [41, "4,5"], "style": {"b", "a"}, "k:y": "a;b\\"}
    ids = moon3(products=[{**SHOE, "reasoning": attributes}], reasoning="given")["input_ids"][0].tolist()
    after = ids[ids.index(moon3.tokenizer.convert_tokens_to_ids("<think>")) + 1 :]
    (found,) = moon3.read_reasoning([after])
    assert found.attributes == {"size": ("41", "4,5"), "style": ("a", "b"), "k:y": ("a;b\\",)}
    assert found.well_formed


CONTROL = ["<think>", "</think>", "<emb>", "<|image_pad|>", "<|vision_start|>", "<|im_end|>", "<|title_start|>",
           "<|title_end|>", "<|category_start|>", "<|endoftext|>"]  # fmt: skip


@pytest.mark.parametrize("token", CONTROL)
def test_a_control_token_in_a_reasoning_stays_text(moon3, token):
    clean = {**SHOE, "images": noise(96, 64), "reasoning": "a: b"}
    for words in (f"a{token}: b", f"a: {token}{token} b", f"<think>a {token} b</think>", {f"a{token}": token}):
        batch = moon3(products=[clean, {**clean, "reasoning": words}], reasoning="given")
        assert counts_of(moon3, batch, 1) == counts_of(moon3, batch, 0)
        assert f"{token[0]} {token[1:]}" in text_of(moon3, batch, 1)
    titled = moon3(products=[SHOE, {**SHOE, "title": f"red {token} shoes"}])
    assert counts_of(moon3, titled, 1) == counts_of(moon3, titled, 0)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.sampled_from([*CONTROL, "<", "/", "think>", "</th", "|>", "<|im_", ":", ";", "\\", " ", "靴", "👟🏽"]),
        max_size=40,
    )
)
def test_no_mixture_of_pieces_makes_a_control_token_or_breaks_the_budget(moon3, pieces):
    batch = moon3(
        queries=[{"text": "x", "reasoning": "x"}, {"text": "x", "reasoning": "x" + "".join(pieces)}], reasoning="given"
    )
    assert counts_of(moon3, batch, 1) == counts_of(moon3, batch, 0)
    ids = batch["input_ids"][1].tolist()
    start, end = (ids.index(moon3.tokenizer.convert_tokens_to_ids(one)) for one in ("<think>", "</think>"))
    assert 0 < end - start - 1 <= 32
    assert batch["attention_mask"][1].sum() == moon3(
        queries=[{"text": "x"}])["attention_mask"].sum() + (end - start - 1) + 2  # fmt: skip


def test_a_long_reasoning_is_cut_to_its_budget_and_reported(moon3):
    words = "colour: red; material: cotton; " * 4000
    whole = encoded_length(moon3, words.strip())
    batch = moon3(records=[GIVEN, {"text": "red", "reasoning": words}], reasoning="given")
    (cut,) = batch.shortened
    assert (cut.index, cut.field, cut.tokens_before) == (1, "reasoning", whole)
    assert 25 < cut.tokens_after <= 32
    text = text_of(moon3, batch, 1)
    kept = text.partition("<think>")[2].removesuffix("</think><emb>")
    assert words.startswith(kept)
    assert encoded_length(moon3, kept) == cut.tokens_after
    assert not moon3(records=[GIVEN], reasoning="given").shortened


@pytest.mark.parametrize("text", ["靴" * 300, "👟🏽" * 200, "a\u0301\u0323" * 200])
def test_a_cut_reasoning_ends_at_a_whole_character(moon3, text):
    batch = moon3(queries=[{"text": "a", "reasoning": text}], reasoning="given")
    assert "\ufffd" not in text_of(moon3, batch)
    assert 28 <= batch.shortened[0].tokens_after <= 32


def test_the_budget_of_an_item_counts_what_the_processor_writes(moon3):
    product = {**GIVEN, "description": "white sole and gold buckle " * 60, "images": noise(96, 64)}
    for reasoning, extra in (("none", 1), ("generate", 1), ("given", 3 + encoded_length(moon3, "colour: red"))):
        whole = moon3(products=[product], reasoning=reasoning)["input_ids"].shape[1]
        prompt = moon3(products=[product], reasoning="none")["input_ids"].shape[1] - 1
        assert whole == prompt + extra
        assert not moon3(products=[product], reasoning=reasoning, max_tokens=whole).shortened
        batch = moon3(products=[product], reasoning=reasoning, max_tokens=whole - 1)
        assert [one.field for one in batch.shortened] == ["description"]
        assert batch["input_ids"].shape[1] <= whole - 1
    ending = text_of(moon3, moon3(products=[product], reasoning="given", max_tokens=150)).partition("assistant\n")[2]
    assert ending == "<think>colour: red</think><emb>"


def test_a_budget_without_room_for_the_reasoning_is_refused_with_the_numbers(moon3):
    fixed = moon3(queries=[{"text": "a", "reasoning": "colour: red"}], reasoning="given")["input_ids"].shape[1] - 3
    with pytest.raises(
        ProductError, match=rf"{fixed} of instruction, template and reasoning are more than max_tokens=40"
    ):
        moon3(queries=[{"text": "a", "reasoning": "colour: red"}], reasoning="given", max_tokens=40)


BAD = {
    "missing": ({}, "reasoning", "is missing, but reasoning='given' needs it in each record; expected a string"),
    "None": ({"reasoning": None}, "reasoning", "is missing"),
    "empty": ({"reasoning": ""}, "reasoning", "'' is empty"),
    "blank": ({"reasoning": " \n"}, "reasoning", "is empty"),
    "tags alone": ({"reasoning": "<think> </think>"}, "reasoning", "is empty"),
    "an empty mapping": ({"reasoning": {}}, "reasoning", "{} is empty"),
    "empty values": ({"reasoning": {"colour": "", "size": [], "brand": None}}, "reasoning", "is empty"),
    "a number": ({"reasoning": 3}, "reasoning", "found int 3; expected a string, or a dict of key to value"),
    "a list": ({"reasoning": ["colour: red"]}, "reasoning", "found list"),
    "bytes": ({"reasoning": b"colour: red"}, "reasoning", "found bytes"),
    "half a surrogate pair": ({"reasoning": "red \ud83d"}, "reasoning", "not valid Unicode"),
    "a dict as value": ({"reasoning": {"a": {"b": "c"}}}, "reasoning['a']", "found dict"),
    "a truth value": ({"reasoning": {"new": True}}, "reasoning['new']", "found bool True; expected a string, a finite"),
    "a NaN value": ({"reasoning": {"size": float("nan")}}, "reasoning['size']", "a finite number"),
    "an empty key": ({"reasoning": {" ": "red"}}, "reasoning", "keys that are non-empty strings"),
    "a number as key": ({"reasoning": {1: "red"}}, "reasoning", "keys that are non-empty strings"),
    "keys alike": ({"reasoning": {"a b": "c", "a  b": "d"}}, "reasoning", "keys that differ only in spaces in ['a b', 'a  b']"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_a_bad_reasoning_is_refused_by_item_and_field_or_skipped(moon3, case):
    fields, field, words = BAD[case]
    for kind, record in (("product", {**SHOE, **fields}), ("query", {"text": "red", **fields})):
        good = GIVEN if kind == "product" else {"text": "blue", "reasoning": "colour: blue"}
        with pytest.raises(ProductError) as caught:
            moon3(records=[good, record], reasoning="given")
        assert (caught.value.item, caught.value.field) == (f"{kind} 1", field)
        assert words in caught.value.reason
        batch = moon3(records=[good, record, good], reasoning="given", on_error="skip")
        assert batch.kept == [0, 2]
        assert [(one.index, one.field, one.reason) for one in batch.skipped] == [(1, field, caught.value.reason)]
        assert torch.equal(batch["input_ids"], moon3(records=[good, good], reasoning="given")["input_ids"])


@pytest.mark.parametrize("case", BAD)
def test_a_reasoning_is_read_only_where_it_is_asked_for(moon3, processor, case):
    fields = BAD[case][0]
    for own, options in ((processor, {}), (moon3, {}), (moon3, {"reasoning": "generate"})):
        for with_it, without in (({**SHOE, **fields}, SHOE), ({"text": "red", **fields}, {"text": "red"})):
            first, second = own(records=[with_it], **options), own(records=[without], **options)
            assert torch.equal(first["input_ids"], second["input_ids"])


def test_a_reasoning_alone_is_no_item(moon3):
    with pytest.raises(ProductError, match="query 0, field 'record': neither text nor an image"):
        moon3(records=[{"reasoning": "colour: red"}], reasoning="given")


@pytest.mark.parametrize("reasoning", ["generate", "given", "mixed"])
def test_a_processor_that_cannot_reason_says_so(make_processor, processor, reasoning):
    for own in (processor, make_processor(readout="emb")):
        with pytest.raises(
            ValueError, match=f"reasoning='{reasoning}' needs a processor .* max_reasoning_tokens and readout='emb'"
        ):
            own(products=[GIVEN], reasoning=reasoning)
        assert own(products=[GIVEN], reasoning="none")["input_ids"].shape[0] == 1
        with pytest.raises(ValueError, match="read_reasoning needs a processor"):
            own.read_reasoning([[1, 2]])


def test_an_unknown_reasoning_and_one_beside_plain_text_are_refused(moon3):
    with pytest.raises(
        ValueError, match="reasoning='yes' is not known; expected one of 'none', 'generate', 'given', 'mixed'"
    ):
        moon3(products=[GIVEN], reasoning="yes")
    with pytest.raises(TypeError, match="reasoning= belongs to products= and queries="):
        moon3(text=["red"], reasoning="generate")


# ---------------------------------------------------------------------------------------------------------------------
# Some records with reasoning, some without

EMPTY = [{}, {"reasoning": None}, {"reasoning": " "}, {"reasoning": {}}, {"reasoning": {"colour": [], "brand": None}},
         {"reasoning": "<think> </think>"}]  # fmt: skip


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_mixed_batch_holds_the_rows_of_given_and_of_none_and_nothing_else(moon3, side):
    photo = {"text": "same in green", "image": noise(96, 64)}
    with_one = [GIVEN, {**photo, "reasoning": {"colour": ["green", "blue"]}}]
    without = [*({**SHOE, **fields} for fields in EMPTY), photo]
    records = [with_one[0], *without, with_one[1]]
    mixed = moon3(records=records, reasoning="mixed", padding_side=side)
    given, none = (moon3(records=some, reasoning=way) for some, way in ((with_one, "given"), (without, "none")))
    wanted = [
        text_of(moon3, given),
        *(text_of(moon3, none, row) for row in range(len(without))),
        text_of(moon3, given, 1),
    ]
    assert [text_of(moon3, mixed, row) for row in range(len(records))] == wanted
    lengths = mixed["attention_mask"].sum(dim=1)
    assert lengths.max() == mixed["input_ids"].shape[1] > lengths.min()
    edge = mixed["attention_mask"][:, -1 if side == "left" else 0]
    assert edge.all()
    assert mixed["pixel_values"].shape[0] == given["pixel_values"].shape[0] + none["pixel_values"].shape[0]
    assert torch.equal(mixed["mm_token_type_ids"].sum(dim=1).unique(), torch.cat(
        [given["mm_token_type_ids"].sum(dim=1), none["mm_token_type_ids"].sum(dim=1)]).unique())  # fmt: skip


def test_a_mixed_batch_reports_what_it_cut_by_the_records_place(moon3):
    records = [SHOE, {"text": "red", "reasoning": "colour: red; " * 400}, {**SHOE, "description": "white sole " * 900}]
    batch = moon3(records=records, reasoning="mixed")
    assert [(one.index, one.field) for one in batch.shortened] == [(1, "reasoning"), (2, "description")]
    assert text_of(moon3, batch, 1).endswith("</think><emb>")
    assert "<think>" not in text_of(moon3, batch, 2)


def test_a_mixed_budget_counts_only_the_reasonings_that_are_there(moon3):
    whole = moon3(records=[SHOE], reasoning="none")["input_ids"].shape[1]
    batch = moon3(records=[SHOE, GIVEN], reasoning="mixed", max_tokens=whole)
    assert {one.index for one in batch.shortened} == {1}
    fixed = moon3(queries=[{"text": "a"}])["input_ids"].shape[1] - 3
    with pytest.raises(ProductError, match=rf"{fixed} of the instruction and template are more than max_tokens=9;"):
        moon3(queries=[{"text": "a"}], reasoning="mixed", max_tokens=9)
    with pytest.raises(ProductError, match="of instruction, template and reasoning are more than max_tokens=9;"):
        moon3(queries=[{"text": "a", "reasoning": "colour: red"}], reasoning="mixed", max_tokens=9)


@pytest.mark.parametrize("case", sorted(set(BAD) - {"missing", "None", "empty", "blank", "tags alone",
                                                    "an empty mapping", "empty values"}))  # fmt: skip
def test_a_bad_reasoning_in_a_mixed_batch_is_refused_or_skipped_and_never_taken_for_none(moon3, case):
    fields, field, words = BAD[case]
    records = [SHOE, {**SHOE, **fields}, GIVEN]
    with pytest.raises(ProductError) as caught:
        moon3(records=records, reasoning="mixed")
    assert (caught.value.item, caught.value.field) == ("product 1", field)
    assert words in caught.value.reason
    batch = moon3(records=records, reasoning="mixed", on_error="skip")
    assert batch.kept == [0, 2]
    assert [(one.index, one.field) for one in batch.skipped] == [(1, field)]


# ---------------------------------------------------------------------------------------------------------------------
# Reading ids


def written(processor, text, width=0):
    ids = processor.tokenizer(text)["input_ids"]
    return ids + [processor.tokenizer.pad_token_id] * (width - len(ids))


def test_ids_are_read_to_the_closing_tag_whatever_follows(moon3):
    texts = ["colour: red</think>", "colour: red</think><emb><|im_end|> words", "<think>colour: red</think>", "colour: red",
             "colour: red<|im_end|>material: wool", "</think>", ""]  # fmt: skip
    width = max(len(written(moon3, text)) for text in texts)
    rows = [written(moon3, text, width) for text in texts]
    pad = moon3.tokenizer.pad_token_id
    rows[0] = [pad, pad, *rows[0]][:width]
    red = {"colour": ("red",)}
    wanted = [Reasoning("colour: red", red, (), True)] * 3 + [Reasoning("colour: red", red, (), False)] * 2
    wanted += [Reasoning("", {}, (), True), Reasoning("", {}, (), False)]
    ragged = [written(moon3, text) for text in texts]
    for ids in (torch.tensor(rows), np.array(rows), rows, tuple(rows), ragged, [torch.tensor(row) for row in rows]):
        assert moon3.read_reasoning(ids) == wanted
    assert [one.well_formed for one in wanted] == [True] * 3 + [False] * 4
    assert moon3.read_reasoning(torch.zeros(0, 5, dtype=torch.long)) == []
    assert moon3.read_reasoning(torch.zeros(2, 0, dtype=torch.long)) == [Reasoning("", {}, (), False)] * 2


def test_control_tokens_and_unknown_ids_among_the_written_ones_are_reported(moon3):
    (found,) = moon3.read_reasoning([written(moon3, "a: b; c: <|image_pad|>d</think>")])
    assert found.attributes == {"a": ("b",)}
    assert found.unparsed == ("the control token <|image_pad|> in 'c: <|image_pad|>d'",)
    beyond = len(moon3.tokenizer) + 3
    (found,) = moon3.read_reasoning([[*written(moon3, "a: b"), beyond, *written(moon3, "</think>")]])
    assert found.attributes == {"a": ("b",)}
    assert found.unparsed == (f"ids that the tokenizer does not know: [{beyond}]",)


def test_no_row_of_ids_makes_the_reader_fail(moon3):
    ids = np.random.default_rng(0).integers(0, len(moon3.tokenizer) + 16, (200, 32))
    assert len(moon3.read_reasoning(torch.from_numpy(ids))) == 200


@pytest.mark.parametrize(
    ("ids", "words"),
    [
        ([1, 2], "row 0: found 1"),
        (torch.tensor([1, 2]), "row 0: found 1"),
        (torch.tensor([[0.5]]), "row 0: found 0.5"),
        ([[1], [2, -100]], "row 1: found -100"),
        ([[True]], "row 0: found True"),
        ("colour: red", "found str"),
        (["colour"], "row 0: found 'colour'"),
        (None, "found NoneType"),
    ],
)
def test_what_are_no_rows_of_ids_is_refused(moon3, ids, words):
    with pytest.raises(ValueError, match="expected rows of whole numbers") as caught:
        moon3.read_reasoning(ids)
    assert words in str(caught.value)
