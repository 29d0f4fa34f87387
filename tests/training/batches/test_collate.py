import dataclasses

import pytest
import torch
from pictures import file_of, noise
from torch.utils.data import DataLoader

from processing_moon import MoonProcessor, images_moon
from product_data.tables import ProductRow, ProductTables, ValidationReport, load_tables
from training.batches.collate import PairCollator, UnreadableBatchError
from training.batches.negatives import NO_ID
from training.batches.pairs import Pair, PairDataset, PairSource
from training.recipe.pairs import PairArguments


@pytest.fixture(scope="module")
def processor(tiny_moon):
    return MoonProcessor.from_pretrained(tiny_moon("qwen3_vl"), max_image_tokens=4)


def pair(number, query=None, images=(None, None), other=(), negative=()):
    records = [
        {"id": f"shop/p{number}{role}", "title": f"thing {number}", "images": [image or file_of(noise(seed=number))]}
        for role, image in zip("+-", images, strict=True)
    ]
    return Pair(
        query=query or {"id": f"q{number}", "text": f"a thing {number}"},
        products=records,
        names=[record["id"] for record in records],
        product_ids=[10 * number, 10 * number + 1],
        group_ids=[NO_ID, 5],
        query_group=number,
        other_ids=list(other),
        negative_ids=list(negative),
    )


def test_targets_and_ids_stand_beside_the_tensors(processor):
    batch = PairCollator(processor)([pair(1, other=[7, 8]), pair(2, negative=[9])])
    assert batch["queries"]["input_ids"].shape[0] == 2
    assert batch["products"]["input_ids"].shape[0] == 4
    assert batch["target"].tolist() == [0, 2]
    assert batch["product"].tolist() == [10, 11, 20, 21]
    assert batch["group"].tolist() == [NO_ID, 5, NO_ID, 5]
    assert batch["query_group"].tolist() == [1, 2]
    assert batch["other"].tolist() == [[7, 8], [NO_ID, NO_ID]]
    assert batch["negative"].tolist() == [[NO_ID], [9]]
    assert batch["items"] == [["q1", "shop/p1+"], ["q2", "shop/p2+"]]
    assert batch["skipped"] == batch["shortened"] == []


def test_what_was_cut_is_named_with_its_row_and_a_pair_that_took_another_ones_place_too(processor):
    long = "a thing of striped cotton " * 1000
    broken = pair(1, images=(None, b"no picture"))
    broken.products[0]["title"] = long
    cut = pair(2, query={"id": "q2", "text": long})
    other = pair(3)
    other.products[1]["title"] = long
    batch = PairCollator(processor, lambda position, attempt: other)([broken, cut])
    found = [(one["kind"], one["item"], one["field"], one["row"]) for one in batch["shortened"]]
    # The first pair could not be read; what it would have lost is not said.
    assert found == [("query", "q2", "text", 1), ("product", "shop/p3-", "title", 1)]
    assert all(one["tokens_before"] > one["tokens_after"] > 0 for one in batch["shortened"])


def test_positives_are_given_as_rows_and_as_ids_with_their_weights(processor):
    graded = dataclasses.replace(pair(1), positive_count=2, answers={10: 0.5, 11: 0.25, 99: 1.0})
    batch = PairCollator(processor)([pair(2), graded])
    assert batch["target"].tolist() == [0, 2]
    assert batch["positive"].tolist() == [[0, NO_ID], [2, 3]]
    assert batch["positive_weight"].tolist() == [[1.0, 0.0], [0.5, 0.25]]
    assert batch["known_positive"].tolist() == [[20, NO_ID, NO_ID], [10, 11, 99]]
    assert batch["known_weight"].tolist() == [[1.0, 0.0, 0.0], [0.5, 0.25, 1.0]]
    assert batch["positive"].dtype == batch["known_positive"].dtype == torch.int64
    assert batch["positive_weight"].dtype == batch["known_weight"].dtype == torch.float32


@pytest.mark.parametrize("place", ["query", "positive", "negative"])
def test_an_unreadable_picture_takes_its_whole_pair_out_and_is_named(processor, place):
    broken = b"no picture"
    bad = {
        "query": pair(2, query={"id": "q2", "image": broken}),
        "positive": pair(2, images=(broken, None)),
        "negative": pair(2, images=(None, broken)),
    }[place]
    collator = PairCollator(processor)
    batch = collator([pair(1), bad, pair(3)])
    assert batch["product"].tolist() == [10, 11, 30, 31]
    assert batch["target"].tolist() == [0, 2]
    assert [skip["item"] for skip in batch["skipped"]] == [
        {"query": "q2", "positive": "shop/p2+", "negative": "shop/p2-"}[place]
    ]
    assert batch["skipped"][0]["reason"]
    clean = collator([pair(1), pair(3)])
    assert torch.equal(batch["products"]["input_ids"], clean["products"]["input_ids"])
    assert torch.equal(batch["products"]["pixel_values"], clean["products"]["pixel_values"])


def test_the_earlier_model_s_processor_prepares_the_same_products(processor, tiny_moon):
    earlier = MoonProcessor.from_pretrained(tiny_moon("qwen3_vl"), max_image_tokens=4, instructions={"product": "x"})
    pairs = [pair(1), pair(2, images=(b"no picture", None)), pair(3)]
    batch = PairCollator(processor, earlier=earlier)(pairs)
    kept = [record for index in (0, 2) for record in pairs[index].products]
    wanted = earlier(products=kept, form="mm")
    assert all(torch.equal(batch["earlier_products"][name], wanted[name]) for name in wanted)
    assert batch["earlier_products"]["input_ids"].shape != batch["products"]["input_ids"].shape
    assert [skip["item"] for skip in batch["skipped"]] == ["shop/p2+"]
    plain = PairCollator(processor)(pairs)
    assert "earlier_products" not in plain
    assert all(torch.equal(batch["products"][name], plain["products"][name]) for name in plain["products"])


def test_a_product_that_only_the_earlier_model_cannot_read_leaves_too(processor):
    def earlier(products, **options):
        titled = [dict(record, images=b"broken") if "2-" in record["id"] else record for record in products]
        return processor(products=titled, **options)

    batch = PairCollator(processor, earlier=earlier)([pair(1), pair(2), pair(3)])
    assert batch["product"].tolist() == [10, 11, 30, 31]
    assert [skip["item"] for skip in batch["skipped"]] == ["shop/p2-"]
    assert len(batch["earlier_products"]["input_ids"]) == 4


def test_a_batch_of_which_nothing_is_left_is_an_error_that_names_the_items(processor):
    with pytest.raises(
        UnreadableBatchError, match=r"batch: found no readable pair; expected at least one: q1: image: .*"
    ):
        PairCollator(processor)([pair(1, query={"id": "q1", "image": b""})])


def shop_with_broken_pictures(share):
    products = [
        ProductRow(f"p{n}", title=f"thing {n}", images=(b"no picture" if n < 20 * share else file_of(noise(seed=n)),))
        for n in range(20)
    ]
    tables = ProductTables("shop", products, [], ValidationReport("shop", 20, 0, {}))
    return PairDataset([PairSource(tables)], PairArguments(query_mix={"i": 1}, hard_negatives=0), seed=3, length=30)


def test_a_readable_pair_takes_the_place_of_an_unreadable_one_whatever_the_batch(processor):
    dataset = shop_with_broken_pictures(share=0.5)
    collator = PairCollator(processor, dataset.draw)
    alone = [collator([dataset[position]]) for position in range(8)]
    assert any(batch["skipped"] for batch in alone)
    assert not all(batch["skipped"] for batch in alone)
    for batch in alone:
        assert len(batch["items"]) == 1
        assert int(batch["items"][0][1].removeprefix("shop/p")) >= 10
    together = collator([dataset[position] for position in range(8)])
    assert together["items"] == [batch["items"][0] for batch in alone]
    named = sorted(skip["item"] for batch in alone for skip in batch["skipped"])
    assert sorted(skip["item"] for skip in together["skipped"]) == named


def test_where_no_substitute_can_be_read_either_the_batch_is_refused(processor):
    dataset = shop_with_broken_pictures(share=1)
    with pytest.raises(
        UnreadableBatchError, match="batch: found no readable pair; expected at least one: derived from shop/p"
    ):
        PairCollator(processor, dataset.draw)([dataset[0]])


def test_batches_do_not_depend_on_the_number_of_workers(processor):
    tables = load_tables("catalogue", products=40, image_size=64, progress=False).select("train")
    dataset = PairDataset([PairSource(tables)], PairArguments(), seed=1, length=12)
    batches = [
        list(DataLoader(dataset, batch_size=4, collate_fn=PairCollator(processor), num_workers=workers))
        for workers in (0, 2)
    ]
    assert len(batches[0]) == 3
    for one, two in zip(*batches, strict=True):
        assert one["items"] == two["items"]
        assert torch.equal(one["product"], two["product"])
        for part in ("queries", "products"):
            assert one[part].keys() == two[part].keys()
            assert all(torch.equal(one[part][name], two[part][name]) for name in one[part])


def test_forms_stand_beside_the_items_and_each_picture_is_decoded_once(processor, monkeypatch):
    opened = []
    decode = images_moon._decode
    monkeypatch.setattr(images_moon, "_decode", lambda *arguments: opened.append(1) or decode(*arguments))
    both = pair(1, query={"id": "q1", "text": "in blue", "image": file_of(noise(seed=9)), "core_box": [0, 0, 20, 20]})
    image = pair(2, query={"id": "q2", "image": file_of(noise(seed=8))})
    text = pair(3)
    lone = dataclasses.replace(
        text, products=[{"id": "shop/p3+", "title": "x"}, {"id": "-", "images": [file_of(noise(seed=7))]}]
    )
    plain = PairCollator(processor)([both, image, lone])
    assert len(opened) == 7
    opened.clear()
    batch = PairCollator(processor, forms=True)([both, image, lone])
    assert len(opened) == 7  # two queries, four products with both, one with a picture alone
    for side in ("queries", "products"):
        for name, tensor in plain[side].items():
            assert torch.equal(tensor, batch[side][name])
    forms = batch["query_forms"]
    assert forms["has_text"].tolist() == [True, False, True]
    assert forms["has_image"].tolist() == [True, True, False]
    assert forms["t"]["rows"].tolist() == forms["i"]["rows"].tolist() == [0]
    assert batch["product_forms"]["has_text"].tolist() == [True, True, True, True, True, False]
    assert batch["product_forms"]["i"]["rows"].tolist() == [0, 1, 2, 3]
    for form, records in (
        ("t", [{"text": "in blue"}]),
        ("i", [{"image": file_of(noise(seed=9)), "core_box": [0, 0, 20, 20]}]),
    ):
        expected = processor(queries=records)
        assert forms[form]["inputs"].keys() == expected.keys()
        assert all(torch.equal(forms[form]["inputs"][name], tensor) for name, tensor in expected.items())
    records = [record for one in (both, image) for record in one.products]
    for form in ("t", "i"):
        expected = processor(products=records, form=form)
        found = batch["product_forms"][form]["inputs"]
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    grid = batch["product_forms"]["i"]["inputs"]["image_grid_thw"]
    assert torch.equal(grid, batch["products"]["image_grid_thw"][:4])


def test_without_an_item_of_both_the_forms_are_empty(processor):
    lone = dataclasses.replace(pair(1), products=[{"id": "a", "title": "x"}, {"id": "b", "title": "y"}])
    batch = PairCollator(processor, forms=True)([lone])
    for side, count in (("query_forms", 1), ("product_forms", 2)):
        assert batch[side]["has_text"].tolist() == [True] * count
        for form in ("t", "i"):
            assert batch[side][form]["rows"].shape == (0,)
            assert batch[side][form]["rows"].dtype == torch.int64
            assert batch[side][form]["inputs"] is None


def test_with_forms_an_unreadable_picture_is_named_and_replaced_as_without(processor):
    dataset = shop_with_broken_pictures(share=0.5)
    plain, forms = (PairCollator(processor, dataset.draw, forms=forms) for forms in (False, True))
    for position in range(6):
        one, two = plain([dataset[position]]), forms([dataset[position]])
        assert one["skipped"] == two["skipped"]
        assert torch.equal(one["queries"]["input_ids"], two["queries"]["input_ids"])
        assert torch.equal(one["products"]["pixel_values"], two["products"]["pixel_values"])


@pytest.mark.parametrize("forms", [False, True])
def test_pictures_are_fetched_from_addresses_only_where_that_is_allowed(processor, monkeypatch, forms):
    fetched = []
    monkeypatch.setattr(images_moon, "fetch", lambda url, **limits: fetched.append(url) or file_of(noise(seed=3)))
    remote = pair(1, images=("https://shop.example/1.png", None))
    batch = PairCollator(processor, allow_urls=True, forms=forms)([remote])
    assert fetched == ["https://shop.example/1.png"]
    assert not batch["skipped"]
    with pytest.raises(UnreadableBatchError, match="not fetched unless allow_urls=True"):
        PairCollator(processor, forms=forms)([remote])
