"""User text never becomes control tokens, and the token budget cuts text alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pictures import noise

from processing_moon import ProductError
from processing_moon.text_moon import control_token_pattern, plain_text

CONTROL = ["<|im_end|>", "<|im_start|>", "<|endoftext|>", "<|image_pad|>", "<|video_pad|>", "<|vision_start|>",
           "<|vision_end|>", "<|vision_pad|>", "<|category_start|>", "<|category_end|>", "<|attribute_start|>",
           "<|attribute_end|>", "<emb>"]  # fmt: skip


def added_counts(processor, batch, row=0):
    added = np.array(sorted(processor.tokenizer.added_tokens_decoder))
    ids = batch["input_ids"][row][batch["attention_mask"][row].bool()].numpy()
    return {int(token): int((ids == token).sum()) for token in added}


@pytest.mark.parametrize("token", CONTROL)
def test_a_control_token_in_any_field_stays_text(processor, token):
    clean = {"title": "a", "description": "b", "category": ["c", "d"], "attributes": {"e": ["f"]}}
    dirty = {
        "title": f"a{token}",
        "description": f"{token}{token} b",
        "category": ["c", token],
        "attributes": {f"e{token}": [token, "f"]},
    }
    batch = processor(products=[clean, dirty])
    assert added_counts(processor, batch, 1) == added_counts(processor, batch, 0)
    query = processor(queries=[{"text": "a"}, {"text": f"{token}a{token}"}])
    assert added_counts(processor, query, 1) == added_counts(processor, query, 0)
    batch = processor(queries=[{"text": "a"}], instruction=f"Do {token} now.")
    assert added_counts(processor, batch) == added_counts(processor, processor(queries=[{"text": "a"}]))
    assert f"{token[0]} {token[1:]}" in processor.decode(batch["input_ids"][0])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    pieces=st.lists(
        st.sampled_from([*CONTROL, "<|im_", "end|>", "<", "|>", "|", "em", "b>", " ", "\n", "a"]), max_size=12
    )
)  # within the budget
def test_no_mixture_of_pieces_makes_a_control_token(processor, pieces):
    text = "x" + "".join(pieces)
    batch = processor(queries=[{"text": "x"}, {"text": text}])
    assert added_counts(processor, batch, 0) == added_counts(processor, batch, 1)
    parts = {"title": text, "category": pieces or "x", "attributes": {text: text}, "description": text}
    clean = {"title": "x", "category": "x", "attributes": {"x": "x"}, "description": "x"}
    if not "".join(pieces).strip():
        parts["category"] = "x"
    batch = processor(products=[clean, parts])
    assert added_counts(processor, batch, 0) == added_counts(processor, batch, 1)


def test_tokens_that_a_user_adds_later_are_broken_too(tiny_base):
    from processing_moon import MoonProcessor

    own = MoonProcessor.from_base(tiny_base())
    own(queries=[{"text": "warm up"}])
    own.tokenizer.add_tokens(["<think>"])
    ids = own(queries=[{"text": "a <think> b"}])["input_ids"][0].tolist()
    assert own.tokenizer.convert_tokens_to_ids("<think>") not in ids
    own.tokenizer.add_tokens(["zalando"])
    ids = own(queries=[{"text": "a zalando b"}])["input_ids"][0].tolist()
    assert own.tokenizer.convert_tokens_to_ids("zalando") in ids


@pytest.mark.parametrize("token", ["#", " ", "  ", "# ", " #", "#  ", ""])
def test_a_token_that_no_space_breaks_is_left_alone(token):
    controls = control_token_pattern([token, "<|a|>", "< |b|>"])
    assert plain_text(f"x{token}y <|a|> < |b|>", controls) == f"x{token}y < |a|> <  |b|>"


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text(alphabet="ab ", min_size=1, max_size=4), max_size=4), st.text(alphabet="ab ", max_size=12))
def test_breaking_control_tokens_always_ends(tokens, text):
    controls = control_token_pattern(tokens)
    assert controls.search(plain_text(text, controls)) is None


def test_a_tokenizer_with_a_control_token_of_one_character_works(tiny_base):
    from processing_moon import MoonProcessor

    own = MoonProcessor.from_base(tiny_base())
    own.tokenizer.add_tokens(["#"], special_tokens=True)
    ids = own(queries=[{"text": "size #4"}])["input_ids"][0].tolist()
    assert ids.count(own.tokenizer.convert_tokens_to_ids("#")) == 1


def test_text_is_normalised_as_by_the_tokenizer_and_otherwise_left_alone(processor):
    for text in ("Café crème", "Cafe\u0301", " 靴 👟🏽 ", "a\r\n\tb", "a\x00"):
        wanted = processor.tokenizer(text)["input_ids"]
        ids = processor(queries=[{"text": text}])["input_ids"][0].tolist()
        assert any(ids[start : start + len(wanted)] == wanted for start in range(len(ids)))


@pytest.mark.parametrize("blank", ["\u200b", "\u200d\ufeff", "\u3164", "\u2800", "\u00ad ", "\x00", "\ufe0f"])
def test_text_of_signs_that_nobody_sees_is_no_text(processor, blank):
    for call in (
        {"queries": [{"text": blank}]},
        {"products": [{"title": blank, "category": [blank], "description": blank}]},
    ):
        with pytest.raises(ProductError, match="neither text nor an image"):
            processor(**call)
    with pytest.raises(ProductError, match="expected keys that are non-empty strings"):
        processor(products=[{"title": "x", "attributes": {blank: "red"}}])
    product = {"title": "hat", "attributes": {"colour": [blank, "red"]}, "description": blank}
    plain = {"title": "hat", "attributes": {"colour": "red"}}
    assert processor(products=[product])["input_ids"].tolist() == processor(products=[plain])["input_ids"].tolist()


LONG = {
    "title": "red running shoes for women",
    "category": ["Shoes", "Running", "Road"],
    "attributes": {"colour": "red", "material": "cotton", "size": ["M", "L"]},
    "description": "with a white sole and gold buckle " * 8,
}


def marker_counts(processor, batch):
    counts = added_counts(processor, batch)
    names = ("<|category_start|>", "<|category_end|>", "<|attribute_start|>", "<|attribute_end|>")
    return [counts[processor.tokenizer.convert_tokens_to_ids(name)] for name in names]


def test_the_budget_takes_description_then_attributes_then_title_then_category(processor):
    whole = processor(products=[LONG])["input_ids"].shape[1]
    bare = processor(products=[{"title": "a"}])["input_ids"].shape[1]
    order = ["description", "attributes", "title", "category"]
    seen = set()
    for budget in range(whole, bare, -3):
        batch = processor(products=[LONG], max_tokens=budget)
        assert batch["input_ids"].shape[1] <= budget
        cut = [one.field for one in batch.shortened]
        assert cut == order[: len(cut)]
        assert all(one.tokens_after == 0 for one in batch.shortened[:-1])
        assert all(one.tokens_before > one.tokens_after >= 0 for one in batch.shortened)
        counts = marker_counts(processor, batch)
        assert counts[0] == counts[1] <= 1
        assert counts[2] == counts[3] <= 1
        text = processor.decode(batch["input_ids"][0])
        assert text.startswith(f"<|im_start|>system\n{processor.instructions['product']}<|im_end|>\n<|im_start|>user\n")
        assert text.endswith("<|im_end|>\n<|im_start|>assistant\n")
        seen |= set(cut)
    assert seen == set(order)


def test_attributes_go_by_whole_pairs_the_longest_first(processor):
    attributes = {"colour": "red", "care": "wash it cold and by hand, never in a machine", "size": ["M", "L"]}
    product = {"title": LONG["title"], "attributes": attributes}
    whole = processor(products=[product])["input_ids"].shape[1]
    batch = processor(products=[product], max_tokens=whole - 1)
    assert "<|attribute_start|>colour: red; size: M, L<|attribute_end|>" in processor.decode(batch["input_ids"][0])
    assert [one.field for one in batch.shortened] == ["attributes"]


def test_a_description_of_which_too_little_would_stay_is_left_out_whole_before_any_attribute(processor):
    without = processor(products=[{key: LONG[key] for key in ("title", "category", "attributes")}])
    room = without["input_ids"].shape[1]
    for budget in range(room, room + 17):
        batch = processor(products=[LONG], max_tokens=budget)
        assert torch.equal(batch["input_ids"], without["input_ids"])
        ((part, after),) = [(one.field, one.tokens_after) for one in batch.shortened]
        assert (part, after) == ("description", 0)
    longer = processor(products=[LONG], max_tokens=room + 40)
    assert 16 <= longer.shortened[0].tokens_after <= 40


def hub_processor(tiny_base, **settings):
    """A processor whose image limits are those of Qwen's checkpoints on the hub: 64 to 16384 tokens a picture."""
    from processing_moon import MoonProcessor

    made = MoonProcessor.from_base(tiny_base(max_image_tokens=16384), **settings)
    made.image_processor.size = {"shortest_edge": 65536, "longest_edge": 16777216}
    return made


def tokens_by_image(batch):
    return (batch["image_grid_thw"].prod(1) // 4).tolist()


@pytest.mark.parametrize("settings", [{}, {"max_image_tokens": None}, {"max_image_tokens": 900}])
def test_an_ordinary_photo_fits_a_base_with_the_hubs_limits(tiny_base, settings):
    own = hub_processor(tiny_base, **settings)
    photo = noise(1024, 1024)
    words = {"title": "red running shoes", "description": "white sole and gold buckle " * 200}
    with_box = {"images": photo, "core_box": [100, 100, 900, 900]}
    for record, images in (({"images": photo}, 1), (with_box, 2), ({"images": [photo] * 6}, 6)):
        for item in (record, {**record, **words}, {**record, "title": "red"}):
            batch = own(products=[{"title": "first"}, item])
            assert int(batch["attention_mask"].sum(1)[1]) <= own.max_tokens
            tokens = tokens_by_image(batch)
            assert len(tokens) == images
            assert min(tokens) >= 100
            assert max(tokens) - min(tokens) <= 2
            reported = {one.field: one for one in batch.shortened}
            most = own.max_image_tokens or 1024
            if sum(tokens) < len(tokens) * most * 0.9:
                assert reported["images"].index == 1
                assert reported["images"].tokens_after == sum(tokens) < reported["images"].tokens_before
            text = own.decode(batch["input_ids"][1])
            assert "description" not in item or text.count("white sole") > 20
            assert "title" not in item or "red" in text


def test_images_leave_the_text_its_tokens_or_a_quarter_of_the_budget(tiny_base):
    own = hub_processor(tiny_base, max_image_tokens=None)
    photo = noise(1024, 1024)
    empty = own(products=[{"images": photo}], max_tokens=2000)
    fixed = empty["input_ids"].shape[1] - 1024
    assert not empty.shortened
    assert not own(products=[{"images": photo}], max_tokens=1024 + fixed).shortened
    batch = own(products=[{"images": photo, "title": "shoe " * 4000}], max_tokens=1024 + fixed)
    side = int((1024 + fixed - fixed - (1024 + fixed) // 4) ** 0.5)
    assert tokens_by_image(batch) == [side**2]
    assert batch["input_ids"].shape[1] == 1024 + fixed
    assert [(one.index, one.field) for one in batch.shortened] == [(0, "images"), (0, "title")]
    query = own(queries=[{"image": photo, "text": "shoe " * 4000}], max_tokens=1024 + fixed)
    assert [one.field for one in query.shortened] == ["images", "text"]


def test_a_small_image_keeps_its_size_and_leaves_the_rest_to_the_others(tiny_base):
    own = hub_processor(tiny_base, max_image_tokens=None)
    images = [noise(1024, 1024, 1), noise(256, 256, 2), noise(1024, 1024, 3)]
    batch = own(products=[{"images": images}])
    fixed = batch["input_ids"].shape[1] - sum(tokens_by_image(batch))
    side = int(((1024 - fixed - 64) // 2) ** 0.5)
    assert tokens_by_image(batch) == [side**2, 64, side**2]
    alone = own(products=[{"images": images[1]}])
    assert torch.equal(batch["pixel_values"][side**2 * 4 : side**2 * 4 + 256], alone["pixel_values"])
    resized = own(products=[{"images": images[0]}], max_image_tokens=side**2)
    assert torch.equal(batch["pixel_values"][: side**2 * 4], resized["pixel_values"])


def test_a_detectors_box_gives_the_same_images_as_a_given_one(tiny_base):
    class Fixed:
        def detect(self, images, titles):
            return [(100, 100, 900, 900)]

    own = hub_processor(tiny_base)
    record = {"title": "shoe", "images": [noise(1024, 1024, 1), noise(1000, 900, 2), noise(400, 900, 3)]}
    found = own(products=[record], detector=Fixed())
    given = own(products=[{**record, "core_box": [100, 100, 900, 900]}])
    assert all(torch.equal(found[name], given[name]) for name in given)
    assert found.shortened == given.shortened != []


def test_images_take_at_least_a_token_each_and_more_are_refused_with_the_numbers(processor):
    product = {**LONG, "images": [noise(200, 200), noise(180, 180, 1)]}
    whole = processor(products=[product])
    fixed = processor(products=[{"images": product["images"]}])["input_ids"].shape[1] - int(
        whole["mm_token_type_ids"].sum()
    )
    tight = processor(products=[product], max_tokens=fixed + 2)
    assert tokens_by_image(tight) == [1, 1]
    assert [one.field for one in tight.shortened] == ["images", "description", "attributes", "title", "category"]
    assert [one.tokens_after for one in tight.shortened] == [2, 0, 0, 0, 0]
    with pytest.raises(
        ProductError, match=f"2 image tokens .* and {fixed} of .* max_tokens={fixed + 1}; .* fewer images"
    ):
        processor(products=[product], max_tokens=fixed + 1)


def test_the_budgets_of_a_base_and_of_an_embedder_have_their_own_defaults(tiny_base):
    from processing_moon import MoonProcessor

    def budgets(tokens, **settings):
        made = MoonProcessor.from_base(tiny_base(max_image_tokens=tokens), **settings)
        return made.max_tokens, made.max_image_tokens

    embedder = {"readout": "last", "markers": False}
    assert budgets(16384) == budgets(16384, readout="last") == budgets(16384, markers=False) == (1024, 256)
    assert budgets(16384, **embedder) == (8192, 1800)
    assert budgets(64) == budgets(256) == (1024, None)
    assert budgets(1800, **embedder) == (8192, None)
    assert budgets(16384, max_tokens=50, max_image_tokens=None) == (50, None)
    assert budgets(16384, max_image_tokens=400, **embedder) == (8192, 400)


def test_text_that_would_vanish_wholly_is_refused(processor):
    bare = processor(queries=[{"text": "a"}])["input_ids"].shape[1] - 1
    with pytest.raises(ProductError, match="leaves no room for text"):
        processor(queries=[{"text": "red shoes"}], max_tokens=bare)
    batch = processor(queries=[{"text": "aaaa bbbb cccc"}], max_tokens=bare + 1)
    assert batch.shortened[0].field == "text"


def test_huge_text_is_cut_to_the_budget_and_reported(processor):
    batch = processor(products=[{"title": "mug", "description": "pale blue " * 50_000}, {"title": "x" * 200_000}])
    assert batch["input_ids"].shape[1] <= processor.max_tokens
    assert [(one.index, one.field) for one in batch.shortened] == [(0, "description"), (1, "title")]
    assert batch.shortened[0].tokens_before > 100_000 > processor.max_tokens > batch.shortened[0].tokens_after > 500


@pytest.mark.parametrize("text", ["靴" * 300, "👟🏽" * 200, "é" * 400, "a\u0301\u0323" * 200])
def test_cut_text_stays_valid_and_ends_at_a_whole_character(processor, text):
    batch = processor(queries=[{"text": text}], max_tokens=101)
    decoded = processor.decode(batch["input_ids"][0])
    assert "\ufffd" not in decoded
    assert 98 <= batch["input_ids"].shape[1] <= 101  # a character is at most four tokens here


@pytest.mark.parametrize("limit", [1, 4, 9, 30])
def test_each_image_keeps_its_own_budget_whatever_its_shape(processor, limit):
    sizes = [(96, 64), (700, 500), (1, 1), (1, 150), (3, 500), (900, 5), (64, 64)]
    batch = processor(products=[{"images": noise(*size)} for size in sizes], max_image_tokens=limit)
    tokens = (batch["image_grid_thw"].prod(1) // 4).tolist()
    assert max(tokens) <= limit
    assert batch["mm_token_type_ids"].sum(1).tolist() == tokens
    assert tokens[1] >= max(1, limit // 2)


def test_budgets_are_settings_of_the_processor_too(make_processor):
    small = make_processor(max_tokens=150, max_image_tokens=4)
    batch = small(products=[{"title": "shoe " * 400, "images": noise(300, 300)}])
    assert batch["input_ids"].shape[1] <= 150
    assert batch["mm_token_type_ids"].sum() == 4
    assert small(products=[{"images": noise(300, 300)}], max_image_tokens=9)["mm_token_type_ids"].sum() == 9
