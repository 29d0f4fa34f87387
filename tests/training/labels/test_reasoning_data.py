"""What a model is to write about a product or a query: rules, budget, training pairs, and the tables that say it."""

from __future__ import annotations

import json
import pickle
from types import SimpleNamespace

import pytest
from transformers import AutoProcessor

from processing_moon.reasoning_moon import REASONING_KEYS, reasoning_text
from product_data.attribute_keys import Fact, facts_of, mbe_key
from product_data.catalogue.products import PRODUCT_TYPES, draw_family
from product_data.synonyms import ValueIndex, canonical_value, states
from product_data.tables import ProductRow, ProductTables, QueryRow, ValidationReport, load_tables
from training.batches.collate import PairCollator
from training.batches.pairs import PairDataset, PairSource, in_form
from training.labels.reasoning import ReasonedPairs, ReasoningTargets, form_of, known_values
from training.recipe.pairs import PairArguments

PICTURE = b"not opened here"
SHOE = ProductRow(
    "shoe",
    title="Fjell Running Shoe",
    category=("Fashion", "Shoes", "Sneakers"),
    attributes={"gender": ("Women",), "Brand_Name": ("Fjell",), "sole": ("white",), "color": ("red",), "sku": ("17",)},
    images=(PICTURE,),
)


def tables(*products: ProductRow, queries: tuple[QueryRow, ...] = (), name: str = "shop") -> ProductTables:
    report = ValidationReport(name, len(products), len(queries), {})
    return ProductTables(name, list(products), list(queries), report)


class Letters:
    """A tokenizer with one token a character."""

    added_tokens_decoder: dict = {}

    def __call__(self, text: str, **_: object) -> dict[str, list[str]]:
        return {"input_ids": list(text)}


def targets(*products: ProductRow, most: int = 1000) -> ReasoningTargets:
    return ReasoningTargets([tables(*products)], SimpleNamespace(max_reasoning_tokens=most, tokenizer=Letters()))


def test_every_attribute_key_of_the_catalogue_and_of_a_fashion_shop_has_one_of_the_ten_keys():
    drawn = {
        key
        for family in range(2 * len(PRODUCT_TYPES))
        for design in draw_family(0, family)
        for key in design.attributes
    }
    stated = drawn | {key for kind in PRODUCT_TYPES for key in kind.details}
    assert len(stated) > 25
    for key in stated | {"gender", "color", "season", "usage", "brand"}:
        assert mbe_key(key) in REASONING_KEYS, key
    assert mbe_key("year") is None


def test_keys_are_the_same_whatever_their_case_and_what_parts_their_words():
    assert mbe_key("Main_Color") == mbe_key("main-colour") == mbe_key(" main  colour ") == "colour"


def test_the_value_of_a_part_is_written_with_the_part():
    facts, unknown = facts_of(
        {"sole": ["white"], "knobs": ["1"], "buttons": ["3"], "pattern": ["striped"], "sku": ["17"]}
    )
    assert [fact.value for fact in facts] == ["white sole", "1 knob", "3 buttons", "striped pattern"]
    assert {fact.key for fact in facts} == {"style elements"}
    assert unknown == {"sku": ("17",)}


def test_a_value_that_holds_its_part_is_written_as_it_is():
    assert [fact.value for fact in facts_of({"sole": ["white sole"], "logo": ["star logo"]})[0]] == [
        "white sole",
        "star logo",
    ]


def test_the_last_level_of_the_path_is_the_category_where_no_attribute_names_one():
    assert facts_of({}, ("Fashion", "Shoes"))[0] == [Fact("category", "Shoes", "Shoes")]
    assert [fact.value for fact in facts_of({"type": ["boots"]}, ("Fashion", "Shoes"))[0]] == ["boots"]


@pytest.mark.parametrize(
    ("text", "attributes", "named"),
    [
        ("a red dress", {"colour": "Red"}, True),
        ("a tired face", {"colour": "red"}, False),
        ("tote bags", {"category": "Tote bag"}, True),
        ("two dresses", {"category": "dress"}, True),
        ("bag, tote", {"category": "tote bag"}, False),
        ("white shoes", {"sole": "white"}, False),
        ("white shoes, red soles", {"sole": "white"}, True),  # whose colour it is is not understood
        ("shirt with three buttons", {"buttons": "3"}, True),
        ("shirt in 3 colours", {"buttons": "3"}, False),
        ("belted in white", {"belt": "white"}, True),
        ("mug with a star", {"logo": "star"}, True),
        ("shirt in size M", {"size": "M"}, True),
        ("M and S shirts", {"size": "M"}, False),
        ("women's boots", {"gender": "Women"}, True),
        ("mens boots", {"gender": "Women"}, False),
        ("", {"colour": "red"}, False),
    ],
)
def test_a_text_names_a_value_by_its_words_and_its_part(text: str, attributes: dict[str, str], named: bool):
    (fact,) = facts_of({key: [value] for key, value in attributes.items()})[0]
    assert states(text, fact.key, fact.value, synonyms=False) is named


@pytest.mark.parametrize(
    "text", ["sneakers for women, by M", "women's sneaker in size M", "a Sneaker of size m", "M", "by M and others"]
)
def test_labels_of_queries_follow_the_rule_of_what_titles_state(text):
    row = ProductRow("s", title="x", attributes={"gender": ("Women",), "type": ("Sneakers",), "size": ("M",)})
    found = targets(row).labels_of_query({"id": "q", "text": text}, ["shop/s"]) or {}
    stated = ValueIndex(known_values([tables(row)])).stated(text)
    assert {key: {canonical_value(key, value) for value in values} for key, values in found.items()} == stated


def test_a_query_is_not_made_to_say_a_synonym_that_it_does_not_say():
    row = ProductRow("s", title="x", attributes={"type": ("Sneakers",), "color": ("red",)})
    assert targets(row).labels_of_query({"id": "q", "text": "red kicks"}, ["shop/s"]) == {"colour": ("red",)}


def test_an_image_supports_the_visual_keys_a_text_all_stated_ones_and_both_the_union():
    found = targets(SHOE)
    image = {"colour": ("red",), "category": ("Sneakers",), "style elements": ("white sole",)}
    text = {"colour": ("red",), "category": ("Sneakers",), "brand": ("Fjell",), "style elements": ("white sole",)}
    text["target demographic"] = ("Women",)
    assert found.of_product("shop/shoe", "i") == image
    assert found.of_product("shop/shoe", "t") == found.of_product("shop/shoe", "mm") == text
    assert [list(found.of_product("shop/shoe", form) or ()) for form in ("i", "mm")] == [list(image), list(text)]


def test_the_sets_of_the_tables_are_taken_where_they_are_there():
    row = ProductRow(
        "p",
        title="x",
        attributes={"colour": ("red",)},
        images=(PICTURE,),
        attributes_image={"color": ("dark red", "DARK  RED"), "material": ("suede",)},
        attributes_text={"brand": ("Fjell",), "color": ("red",)},
    )
    found = targets(row)
    assert found.of_product("shop/p", "i") == {"colour": ("dark red",), "material": ("suede",)}
    assert found.of_product("shop/p", "t") == {"colour": ("red",), "brand": ("Fjell",)}
    assert found.of_product("shop/p", "mm") == {
        "colour": ("dark red", "red"),
        "brand": ("Fjell",),
        "material": ("suede",),
    }


def test_a_set_that_is_empty_supports_nothing_and_is_not_derived():
    row = ProductRow("p", title="x", attributes={"colour": ("red",)}, images=(PICTURE,), attributes_image={})
    assert targets(row).of_product("shop/p", "i") is None
    assert targets(row).of_product("shop/p", "t") == {"colour": ("red",)}


def test_without_a_picture_both_is_the_text_alone():
    row = ProductRow("p", title="x", attributes_text={"brand": ("Fjell",)}, attributes_image={"colour": ("red",)})
    assert targets(row).of_product("shop/p", "mm") == {"brand": ("Fjell",)}


def test_attributes_of_other_keys_are_counted_and_named_once():
    report = targets(SHOE, ProductRow("other", title="x", attributes={"sku": ("1",), "ean": ("2",)})).report
    assert "1 of 2 products" in report
    assert "'sku' (2), 'ean' (1)" in report


def test_a_product_that_is_in_no_table_and_another_form_are_refused():
    with pytest.raises(ValueError, match="'shop/none'.*1 products of the tables"):
        targets(SHOE).of_product("shop/none", "mm")
    with pytest.raises(ValueError, match="form: found 'both'; expected one of mm, t, i"):
        targets(SHOE).of_product("shop/shoe", "both")


def test_a_processor_that_does_not_reason_is_refused_without_a_budget():
    silent = SimpleNamespace(max_reasoning_tokens=None, tokenizer=Letters())
    with pytest.raises(ValueError, match="max_reasoning_tokens=None; expected a number of at least 1"):
        ReasoningTargets([tables(SHOE)], silent)
    with pytest.raises(ValueError, match="max_tokens: found 0"):
        ReasoningTargets([tables(SHOE)], silent, max_tokens=0)
    assert ReasoningTargets([tables(SHOE)], silent, max_tokens=12).max_tokens == 12


def test_what_does_not_fit_is_dropped_from_the_end_in_whole_attributes():
    whole = targets(SHOE).of_product("shop/shoe", "mm")
    assert whole is not None
    keys = list(whole)
    for count in range(len(keys) + 1):
        kept = {key: whole[key] for key in keys[:count]}
        room = len(reasoning_text(kept))
        assert targets(SHOE, most=max(room, 1)).of_product("shop/shoe", "mm") == (kept or None)
        if count:
            fewer = {key: whole[key] for key in keys[: count - 1]}
            assert targets(SHOE, most=room - 1).of_product("shop/shoe", "mm") == (fewer or None)


def test_labels_are_whole_whatever_the_budget():
    assert targets(SHOE, most=1).labels_of_product("shop/shoe", "mm") == targets(SHOE).of_product("shop/shoe", "mm")
    assert targets(SHOE, most=1).labels_of_query({"text": "red sneakers"}, ["shop/shoe"]) is not None


def test_a_query_of_text_supports_what_its_text_names():
    found = targets(SHOE)
    named = found.of_query({"text": "red sneaker for women, cheap"}, ["shop/shoe"])
    assert named == {"colour": ("red",), "category": ("Sneakers",), "target demographic": ("Women",)}
    assert found.of_query({"text": "something nice"}, ["shop/shoe"]) is None


def test_a_query_with_an_image_supports_what_all_its_answers_show():
    blue = ProductRow("blue", category=SHOE.category, attributes={"colour": ("blue",)}, images=(PICTURE,))
    found = targets(SHOE, blue)
    assert found.of_query({"image": PICTURE}, ["shop/shoe"]) == found.of_product("shop/shoe", "i")
    assert found.of_query({"image": PICTURE}, ["shop/shoe", "shop/blue"]) == {"category": ("Sneakers",)}
    both = {"image": PICTURE, "text": "the red ones by Fjell"}
    assert found.of_query(both, ["shop/shoe", "shop/blue"]) == {
        "colour": ("red",),
        "category": ("Sneakers",),
        "brand": ("Fjell",),
    }
    with pytest.raises(ValueError, match="answers: found none"):
        found.of_query({"image": PICTURE}, [])


def test_the_form_of_a_record_is_read_off_its_fields():
    assert [form_of(SHOE.record(form)) for form in ("mm", "t", "i")] == ["mm", "t", "i"]


def test_the_known_values_are_those_that_a_reasoning_may_write():
    other = ProductRow("other", title="x", attributes={"colour": ("blue",)}, attributes_text={"material": ("linen",)})
    values = known_values([tables(SHOE), tables(other, name="second")])
    assert tuple(values) == REASONING_KEYS
    assert values["colour"] == {"red"}  # the second shop says itself what its text shows
    assert values["material"] == {"linen"}
    assert values["style elements"] == {"white sole"}
    assert values["season/occasion"] == frozenset()


# Training pairs


@pytest.fixture(scope="module")
def catalogue() -> ProductTables:
    return load_tables("catalogue", products=48, progress=False)


@pytest.fixture(scope="module")
def processor(tiny_moon):
    return AutoProcessor.from_pretrained(
        tiny_moon("qwen3_vl", preset="moon3", readout="emb", max_reasoning_tokens=48), trust_remote_code=False
    )


def reasoned(catalogue: ProductTables, processor: object, share: float = 0.5, **options: object) -> ReasonedPairs:
    mix = {"query_mix": {"i": 1, "t": 1, "mm": 1}, "hard_negatives": 1} | options
    pairs = PairDataset([PairSource(catalogue)], PairArguments(**mix), seed=3, length=60)
    return ReasonedPairs(pairs, ReasoningTargets([catalogue], processor), share, seed=3)


def test_pairs_are_those_of_the_wrapped_data_set_with_reasonings_and_labels_beside(catalogue, processor):
    found = reasoned(catalogue, processor)
    assert len(found) == 60
    for position in range(20):
        pair, bare = found[position], found.pairs[position]
        assert pair.names == bare.names
        assert pair.answers == bare.answers
        assert pair.position == position
        for record, plain in zip([pair.query, *pair.products], [bare.query, *bare.products], strict=True):
            assert record.keys() - {"reasoning"} == plain.keys()
        assert pair.product_labels == found.targets.labels_of_product(pair.names[0], form_of(pair.products[0]))
    with pytest.raises(IndexError):
        found[60]


def test_a_reasoning_holds_only_what_the_form_of_its_record_supports(catalogue, processor):
    found = reasoned(catalogue, processor, 0.0, product_mix={"mm": 1, "i": 1, "t": 1}, derived_queries=True)
    forms = set()
    for position in range(60):
        pair = found[position]
        for name, record in zip(pair.names, pair.products, strict=True):
            target = found.targets.of_product(name, form_of(record))
            forms.add(form_of(record))
            assert record.get("reasoning") == (target and {key: list(values) for key, values in target.items()})
        written = pair.query.get("reasoning", {})
        if "image" not in pair.query:
            text = pair.query["text"]
            row = found.targets._row(pair.names[0])
            facts = facts_of(row.attributes, row.category)[0]
            named = {fact.value for fact in facts if states(text, fact.key, fact.value)}
            assert {value for values in written.values() for value in values} <= named
        elif "text" not in pair.query:
            assert not written.keys() & {"brand", "size/specification", "target demographic", "season/occasion"}
    assert forms == {"mm", "t", "i"}


def test_pairs_are_pure_functions_of_seed_position_and_attempt(catalogue, processor):
    first, again = reasoned(catalogue, processor), reasoned(catalogue, processor)
    carried = pickle.loads(pickle.dumps(again))

    def parts(pair) -> list:
        return [record.get("reasoning") for record in [pair.query, *pair.products]]

    for position in (7, 0, 31):
        assert parts(first[position]) == parts(again.draw(position)) == parts(carried[position])
        assert first.draw(position, 2).names == again.draw(position, 2).names
        assert parts(first.draw(position, 2)) == parts(again.draw(position, 2))
    drawn = [
        ["reasoning" in record for record in [first[position].query, *first[position].products]]
        for position in range(40)
    ]
    assert len({tuple(row) for row in drawn}) > 4  # the records of a pair are drawn apart


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_a_share_of_the_records_goes_without(catalogue, processor, share):
    found = reasoned(catalogue, processor, share, query_mix={"i": 1})
    records = [record for position in range(60) for record in (found[position].query, *found[position].products)]
    without = sum("reasoning" not in record for record in records) / len(records)
    assert without == pytest.approx(share, abs=0 if share in (0, 1) else 0.12)
    assert all(found[position].query_labels for position in range(60))


def test_each_form_of_a_record_gets_the_reasoning_that_the_form_supports(catalogue, processor):
    bare = reasoned(catalogue, processor, 0.3)
    found = ReasonedPairs(bare.pairs, bare.targets, 0.3, seed=3, forms=True)
    drawn, rolled = set(), {"query": set(), "product": set()}
    for position in range(60):
        pair, plain = found[position], bare[position]
        assert (pair.query, pair.products) == (plain.query, plain.products)  # the draw of "mm" stays as it was
        for slot, (record, own) in enumerate(zip([pair.query, *pair.products], pair.form_reasonings, strict=True)):
            if slot == 0 and {"text", "image"} - record.keys():
                assert own == {}  # it has a single form
                continue
            for form, written in own.items():
                answers = [pair.names[0], *found.targets.names_of(pair.answers)]
                labels = (
                    found.targets.of_query(in_form(record, form), answers)
                    if slot == 0
                    else found.targets.of_product(pair.names[slot - 1], form)
                )
                assert written == {key: list(values) for key, values in labels.items()}
            drawn.add(frozenset(own))
        query, product = pair.rolled
        form = form_of(product)
        assert pair.product_labels == found.targets.labels_of_product(pair.names[0], form)
        assert "reasoning" not in query.keys() | product.keys()
        rolled["product"].add(form)
        rolled["query"].add(tuple(sorted(query.keys() & {"text", "image"})))
    assert drawn == {frozenset(), frozenset("t"), frozenset("i"), frozenset("ti")}
    assert rolled == {"query": {("text",), ("image",), ("image", "text")}, "product": {"t", "i", "mm"}}


@pytest.mark.parametrize("share", [-0.1, 1.5])
def test_a_share_out_of_range_is_refused(catalogue, processor, share):
    with pytest.raises(ValueError, match="unreasoned_share: found .*; expected a number from 0 to 1"):
        reasoned(catalogue, processor, share)


def test_the_processor_writes_every_target_whole_and_a_batch_may_mix_records_with_and_without(catalogue, processor):
    found = reasoned(catalogue, processor, 0.4)
    pairs = [found[position] for position in range(6)]
    records = [record for pair in pairs for record in pair.products]
    batch = processor(products=records, form="mm", reasoning="mixed")
    assert 0 < sum("reasoning" in record for record in records) < len(records)
    assert not [one for one in batch.shortened if one.field == "reasoning"]
    collated = PairCollator(processor, found.draw, reasoning="mixed")(pairs)
    learned = (collated["products"]["labels"] != -100).any(dim=1).tolist()
    assert learned == ["reasoning" in record for record in records]


# The tables


def product(name: str, **cells: object) -> dict:
    return {"product_id": name, "title": f"product {name}", "attributes": {"colour": "red"}} | cells


def test_the_sets_are_read_in_every_spelling_of_attributes_and_an_absent_cell_is_not_an_empty_one():
    rows = [
        product("a", attributes_image=[{"key": "colour", "value": "red"}], attributes_text="brand: Fjell; size: M | L"),
        product("b", attributes_image=[], attributes_text="[]"),
        product("c", attributes_image=None, attributes_text=""),
        product("d", attributes_text="nonsense"),
    ]
    read = load_tables({"products": rows})
    a, b, c, d = read.products
    assert a.attributes_image == {"colour": ("red",)}
    assert a.attributes_text == {"brand": ("Fjell",), "size": ("M", "L")}
    assert b.attributes_image == {}
    assert b.attributes_text == {}
    assert c.attributes_image is None
    assert c.attributes_text is None
    assert d.attributes_text is None
    assert read.report.count("malformed_cells") == 1
    assert "attributes_image" not in a.record()


def test_a_folder_s_written_attributes_fill_the_cells_that_its_products_lack(tmp_path):
    lines = [product("a", attributes_text={"brand": "Own"}), product("b"), product("c")]
    (tmp_path / "products.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    written = [
        {"product_id": "a", "attributes_image": {"colour": "red"}, "attributes_text": {"brand": "Written"}},
        {"product_id": "b", "attributes_image": [], "attributes_text": None},
        {"product_id": "b", "attributes_image": {"colour": "blue"}, "attributes_text": None},
        {"product_id": "gone", "attributes_image": None, "attributes_text": None},
    ]
    (tmp_path / "written_attributes.jsonl").write_text("\n".join(map(json.dumps, written)), encoding="utf-8")
    read = load_tables(tmp_path)
    a, b, c = read.products
    assert a.attributes_image == {"colour": ("red",)}
    assert a.attributes_text == {"brand": ("Own",)}
    assert b.attributes_image == {}
    assert b.attributes_text is None
    assert c.attributes_image is None
    assert read.report.count("duplicate_written_attributes") == 1
    assert read.report.count("dangling_written_attributes") == 1
    assert read.report.ok
