"""What the processor makes of product and query records."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from pictures import file_of, noise
from transformers import AutoTokenizer, Qwen2VLImageProcessorPil

from processing_moon import MOON_TOKENS, MoonBatch, MoonProcessor, ProductError

SHOE = {
    "id": "s1",
    "title": "red running shoes",
    "description": "for women with a white sole",
    "category": ["Shoes", "Running", "Road"],
    "attributes": {"colour": ["red", "white"], "size": 41},
}


def text_of(processor, batch, row=0):
    ids = batch["input_ids"][row][batch["attention_mask"][row].bool()].tolist()
    ids = [one for one, after in zip(ids, [*ids[1:], -1], strict=True) if not one == after == processor.image_token_id]
    return processor.decode(ids)


def prompt(instruction, user, end=""):
    return (
        f"<|im_start|>system\n{instruction}<|im_end|>\n<|im_start|>user\n{user}<|im_end|>\n<|im_start|>assistant\n{end}"
    )


IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
TEXT = (
    "red running shoes\n<|category_start|>Shoes > Running > Road<|category_end|>\n"
    "<|attribute_start|>colour: red, white; size: 41<|attribute_end|>\nfor women with a white sole"
)


def test_a_product_is_written_as_instruction_images_title_category_attributes_description(processor):
    batch = processor(products=[{**SHOE, "images": [noise(96, 64), noise(64, 64, 1)]}])
    assert text_of(processor, batch) == prompt(processor.instructions["product"], IMAGE * 2 + TEXT)
    assert processor(products=[SHOE])["input_ids"].shape[0] == 1
    assert text_of(processor, processor(products=SHOE)) == prompt(processor.instructions["product"], TEXT)


def test_without_markers_the_same_text_stands_without_marker_tokens(make_processor):
    plain = make_processor(markers=False)
    bare = TEXT
    for token in MOON_TOKENS:
        bare = bare.replace(token, "")
    assert text_of(plain, plain(products=[SHOE])) == prompt(plain.instructions["product"], bare)


@pytest.mark.parametrize("absent", ["title", "description", "category", "attributes"])
@pytest.mark.parametrize("empty", [None, ""])
def test_an_absent_field_leaves_no_trace(processor, absent, empty):
    value = {} if absent == "attributes" and empty == "" else empty
    without = {key: entry for key, entry in SHOE.items() if key != absent}
    first, second = processor(products=[without]), processor(products=[{**SHOE, absent: value}])
    assert torch.equal(first["input_ids"], second["input_ids"])
    assert first["input_ids"].shape[1] < processor(products=[SHOE])["input_ids"].shape[1]


def test_category_as_one_string_equals_the_path_written_out(processor):
    first = processor(products=[{"category": "Shoes > Running"}])
    assert torch.equal(first["input_ids"], processor(products=[{"category": ("Shoes", "Running")}])["input_ids"])


def test_a_set_of_attribute_values_is_written_in_alphabetical_order(processor):
    values = ["white", "red", "amber", 41, "blue"]
    wanted = processor(products=[{"attributes": {"colour": ["41", "amber", "blue", "red", "white"]}}])
    for given in (set(values), frozenset(values)):
        batch = processor(products=[{"attributes": {"colour": given}}])
        assert torch.equal(batch["input_ids"], wanted["input_ids"])


def test_an_array_of_paths_or_objects_is_a_list_of_images(processor, tmp_path):
    paths = [str(tmp_path / "a.png"), str(tmp_path / "b.png")]
    for seed, path in enumerate(paths):
        noise(96, 64, seed).save(path)
    wanted = processor(products=[{"images": paths}])
    objects = np.empty(2, dtype=object)
    objects[0], objects[1] = paths[0], file_of(noise(96, 64, 1))
    for given in (np.array(paths), np.array(paths, dtype=object), objects):
        batch = processor(products=[{"images": given}])
        assert torch.equal(batch["pixel_values"], wanted["pixel_values"])
        plain = processor(text=[""] * 2, images=given, padding=True, return_tensors="pt")
        assert torch.equal(plain["image_grid_thw"], wanted["image_grid_thw"])
    with pytest.raises(ProductError, match=r"field 'images\[1\]': .*no such file"):
        processor(products=[{"images": np.array([paths[0], "missing.png"])}])
    with pytest.raises(ProductError, match="field 'image': found a ndarray; expected one image"):
        processor(queries=[{"image": np.array(paths)}])


def test_queries_have_text_or_image_or_both(processor):
    batch = processor(
        queries=[{"text": "red shoes"}, {"image": noise(96, 64)}, {"text": "same in green", "image": noise(96, 64)}]
    )
    instruction = processor.instructions["query"]
    assert [text_of(processor, batch, row) for row in range(3)] == [
        prompt(instruction, "red shoes"),
        prompt(instruction, IMAGE),
        prompt(instruction, IMAGE + "same in green"),
    ]


def test_the_emb_token_ends_every_prompt_of_an_emb_read_out(make_processor):
    emb = make_processor(readout="emb")
    batch = emb(queries=[{"text": "red"}, {"image": noise(96, 64)}], padding_side="left")
    assert (batch["input_ids"][:, -1] == emb.tokenizer.convert_tokens_to_ids("<emb>")).all()
    assert text_of(emb, batch) == prompt(emb.instructions["query"], "red", "<emb>")


def test_forms_keep_text_or_images_alone(processor):
    product = {**SHOE, "images": noise(96, 64), "core_box": [0, 0, 20, 20]}
    only_text, only_image = processor(products=[product], form="t"), processor(products=[product], form="i")
    assert torch.equal(only_text["input_ids"], processor(products=[SHOE])["input_ids"])
    assert "pixel_values" not in only_text
    assert text_of(processor, only_image) == prompt(processor.instructions["product"], IMAGE * 2)
    with pytest.raises(ProductError, match="no image"):
        processor(products=[SHOE], form="i")
    with pytest.raises(ProductError, match="no text"):
        processor(products=[{"images": noise(96, 64)}], form="t")


def test_mixed_records_are_told_apart_by_their_fields(processor):
    batch = processor(records=[{"text": "red"}, SHOE, {"image": noise(96, 64)}, {"images": [noise(96, 64)]}])
    product, query = processor.instructions["product"], processor.instructions["query"]
    assert [text_of(processor, batch, row) for row in range(4)] == [
        prompt(query, "red"),
        prompt(product, TEXT),
        prompt(query, IMAGE),
        prompt(product, IMAGE),
    ]


@pytest.mark.parametrize("task", ["product", "query", "category", "attribute"])
def test_each_task_has_an_instruction_and_a_call_can_give_its_own(processor, task):
    batch = processor(queries=[{"text": "red"}], task=task)
    assert text_of(processor, batch) == prompt(processor.instructions[task], "red")
    own = processor(queries=[{"text": "red"}], task=task, instruction=" Find the colour ")
    assert text_of(processor, own) == prompt("Find the colour.", "red")


def test_an_unknown_task_is_refused_with_the_known_ones(processor):
    with pytest.raises(
        ValueError, match="task 'brand' is not known; expected one of product, query, category, attribute"
    ):
        processor(queries=[{"text": "red"}], task="brand")


def test_tensors_have_the_documented_shapes_and_types(processor):
    batch = processor(products=[{"title": "red", "images": noise(96, 64)}, {"title": "a longer title of brown bags"}])
    rows, width = batch["input_ids"].shape
    assert rows == 2
    for name in ("input_ids", "attention_mask", "mm_token_type_ids"):
        assert batch[name].shape == (rows, width)
        assert batch[name].dtype == torch.int64
    assert batch["pixel_values"].dtype == torch.float32
    assert batch["pixel_values"].shape == (24, 3 * 2 * 16 * 16)
    assert batch["image_grid_thw"].tolist() == [[1, 4, 6]]
    assert torch.equal(batch["mm_token_type_ids"], (batch["input_ids"] == processor.image_token_id).long())
    assert batch["mm_token_type_ids"].sum() == 6
    assert set(batch) <= set(processor.model_input_names)
    assert set(processor(queries=[{"text": "red"}])) == {"input_ids", "attention_mask", "mm_token_type_ids"}


@pytest.mark.parametrize("backbone", ["qwen3_vl", "qwen2_5_vl"])
def test_patches_equal_those_of_the_bases_own_image_processor(make_processor, tiny_base, backbone):
    own = Qwen2VLImageProcessorPil.from_pretrained(tiny_base(backbone))
    images = [noise(96, 64, 1), noise(300, 411, 2), noise(1, 1, 3), noise(9, 700, 4), noise(28, 28, 5)]
    batch = make_processor(backbone)(products=[{"images": images}])
    wanted = own(images, return_tensors="pt")
    assert torch.equal(batch["image_grid_thw"], wanted["image_grid_thw"])
    assert torch.equal(batch["pixel_values"], wanted["pixel_values"])


def test_padding_side_and_width_follow_the_call(processor):
    records = [{"text": "red"}, {"text": "brown leather tote bag, gold buckle"}]
    left, right = processor(queries=records, padding_side="left"), processor(queries=records, padding_side="right")
    lengths = left["attention_mask"].sum(1)
    pad = processor.tokenizer.pad_token_id
    width = int(lengths.max())
    assert left["input_ids"].shape[1] == right["input_ids"].shape[1] == width
    short = int(lengths[0])
    assert left["input_ids"][0, width - short :].tolist() == right["input_ids"][0, :short].tolist()
    assert set(left["input_ids"][0, : width - short].tolist()) == {pad}
    assert right["attention_mask"][0].tolist() == [1] * short + [0] * (width - short)
    assert processor(queries=records, padding="max_length", max_tokens=200)["input_ids"].shape[1] == 200
    assert processor(queries=records, pad_to_multiple_of=64)["input_ids"].shape[1] % 64 == 0
    default = processor(queries=records)
    same = left if processor.tokenizer.padding_side == "left" else right
    assert torch.equal(default["input_ids"], same["input_ids"])


def test_return_tensors_may_come_at_any_level(processor):
    record = {"text": "red", "image": noise(96, 64)}
    wanted = processor(queries=[record])
    for options in ({"return_tensors": "np"}, {"common_kwargs": {"return_tensors": "np"}},
                    {"text_kwargs": {"return_tensors": "np", "padding": True, "truncation": True}}):  # fmt: skip
        batch = processor(queries=[record], **options)
        assert all(isinstance(value, np.ndarray) for value in batch.values())
        assert all(np.array_equal(batch[name], wanted[name].numpy()) for name in wanted)
    lists = processor(queries=[record, {"text": "a"}], return_tensors=None, padding=False)
    assert isinstance(lists["input_ids"][0], list)
    assert len(lists["input_ids"][0]) > len(lists["input_ids"][1]) == len(lists["attention_mask"][1])


def test_ragged_rows_are_refused_as_tensors(processor):
    with pytest.raises(ValueError, match="rows of different lengths"):
        processor(queries=[{"text": "red"}, {"text": "a much longer query"}], padding=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"form": "text"}, "form='text' is not known; expected one of 'mm', 't', 'i'"),
        ({"on_error": "ignore"}, "on_error='ignore'"),
        ({"max_tokens": 0}, "max_tokens=0"),
        ({"max_image_tokens": -1}, "max_image_tokens=-1"),
        ({"padding": "long"}, "padding='long'"),
        ({"padding_side": "top"}, "padding_side='top'"),
        ({"return_tensors": "tf"}, "return_tensors='tf'"),
        ({"core_crop": "yes"}, "core_crop='yes'"),
        ({"timeout_seconds": 0}, "timeout_seconds=0"),
        ({"allow_urls": "yes"}, "allow_urls='yes'"),
        ({"instruction": "  "}, "instruction='  '"),
    ],
)
def test_an_option_out_of_range_is_refused_by_name(processor, options, message):
    with pytest.raises(ValueError, match=message):
        processor(products=[SHOE], **options)


def test_unknown_options_and_several_inputs_are_refused(processor):
    with pytest.raises(TypeError, match="unknown option 'max_token'; did you mean 'max_tokens'"):
        processor(products=[SHOE], max_token=5)
    with pytest.raises(TypeError, match="takes one of"):
        processor(products=[SHOE], queries=[{"text": "red"}])
    with pytest.raises(TypeError, match="takes one of"):
        processor()
    with pytest.raises(TypeError, match="products: found str"):
        processor(products="red shoes")
    with pytest.raises(ValueError, match="queries is empty"):
        processor(queries=[])
    with pytest.raises(TypeError, match="form= belongs to products="):
        processor(queries=[{"text": "red"}], form="t")


def test_a_batch_keeps_its_lists_through_to_and_pickle(processor):
    batch = processor(products=[SHOE, {"title": 3}, {"images": noise(96, 64)}], on_error="skip", max_tokens=120)
    moved = batch.to("cpu")
    copied = pickle.loads(pickle.dumps(batch))
    for one in (moved, copied):
        assert isinstance(one, MoonBatch)
        assert one.kept == [0, 2]
        assert [skipped.index for skipped in one.skipped] == [1]
        assert one.shortened == batch.shortened
        assert torch.equal(one["input_ids"], batch["input_ids"])
    assert not {"kept", "skipped", "shortened"} & set(batch)
    assert batch.to(torch.bfloat16)["pixel_values"].dtype == torch.bfloat16


def test_a_row_does_not_depend_on_its_neighbours(processor):
    records = [{**SHOE, "images": noise(96, 64, 1)}, {"title": "mug"}, {"images": [noise(96, 64, 2), noise(40, 40, 3)]}]
    together = processor(products=records, padding_side="right")
    patches = 0
    for row, record in enumerate(records):
        alone = processor(products=[record], padding_side="right")
        length = alone["input_ids"].shape[1]
        assert torch.equal(alone["input_ids"][0], together["input_ids"][row, :length])
        if "pixel_values" in alone:
            size = len(alone["pixel_values"])
            assert torch.equal(alone["pixel_values"], together["pixel_values"][patches : patches + size])
            patches += size
    assert patches == len(together["pixel_values"])


@pytest.mark.parametrize("instruction", [None, "Find the product", "  Finde das Produkt! ", "商品を探す。"])
@pytest.mark.parametrize("query", [{"text": "red shoes"}, {"image": 1}, {"text": " same\n in green ", "image": 1}])
def test_prompts_of_an_embedder_equal_its_own_recipe(make_processor, tiny_base, instruction, query):
    """Qwen3-VL-Embedding: instruction as system message, a full stop if no punctuation ends it, image before text."""
    import unicodedata

    ours = make_processor(readout="last", markers=False)
    query = {**query, "image": noise(96, 64)} if "image" in query else query
    tokenizer = AutoTokenizer.from_pretrained(tiny_base())
    image_processor = Qwen2VLImageProcessorPil.from_pretrained(tiny_base())
    system = (instruction or "Represent the user's input.").strip()
    if not unicodedata.category(system[-1]).startswith("P"):
        system = system + "."
    content = ([{"type": "image"}] if "image" in query else []) + (
        [{"type": "text", "text": query["text"]}] if "text" in query else []
    )
    recipe = tokenizer.apply_chat_template(
        [{"role": "system", "content": [{"type": "text", "text": system}]}, {"role": "user", "content": content}],
        tokenize=False,
        add_generation_prompt=True,
    )
    if "image" in query:
        grid = image_processor(query["image"], return_tensors="pt")["image_grid_thw"][0]
        recipe = recipe.replace("<|image_pad|>", "<|image_pad|>" * (int(grid.prod()) // 4))
    batch = ours(queries=[query], instruction=instruction)
    assert batch["input_ids"][0].tolist() == tokenizer(recipe)["input_ids"]


def test_moon_tokens_are_single_ids_and_all_others_stay(processor, tiny_base):
    base = AutoTokenizer.from_pretrained(tiny_base())
    vocabulary = processor.tokenizer.get_vocab()
    assert {token: vocabulary[token] for token in base.get_vocab()} == base.get_vocab()
    for token in MOON_TOKENS:
        assert processor.tokenizer(token)["input_ids"] == [vocabulary[token]]
        assert vocabulary[token] >= len(base)


def test_a_tokenizer_without_moons_tokens_is_refused(tiny_base):
    image_processor = Qwen2VLImageProcessorPil.from_pretrained(tiny_base())
    tokenizer = AutoTokenizer.from_pretrained(tiny_base())
    with pytest.raises(ValueError, match=r"the tokenizer lacks <\|category_start\|>"):
        MoonProcessor(image_processor, tokenizer)
    with pytest.raises(ValueError, match="lacks <emb>"):
        MoonProcessor(image_processor, tokenizer, markers=False, readout="emb")
    with pytest.raises(ValueError, match="readout='max' is not known"):
        MoonProcessor(image_processor, tokenizer, readout="max")
    with pytest.raises(ValueError, match=r"instructions\['product'\]=''"):
        MoonProcessor.from_base(tiny_base(), instructions={"product": ""})
    with pytest.raises(TypeError, match="colour"):
        MoonProcessor.from_base(tiny_base(), colour="red")


def test_own_instructions_replace_defaults_and_add_tasks(tiny_base):
    own = MoonProcessor.from_base(tiny_base(), instructions={"query": "Find it", "brand": "Name the brand"})
    assert text_of(own, own(queries=[{"text": "red"}])) == prompt("Find it.", "red")
    assert text_of(own, own(queries=[{"text": "red"}], task="brand")) == prompt("Name the brand.", "red")
    assert text_of(own, own(products=[{"title": "a"}])) == prompt(own.instructions["product"], "a")
