import dataclasses
import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from evaluation.data.tables import ProductRow, ProductTables, ValidationReport, load_tables
from processing_moon import MoonProcessor
from training.data.collate import PairCollator, UnreadableBatchError
from training.data.pairs import Pair, PairDataset, PairOptions, PairSource
from training.negatives import NO_ID


@pytest.fixture(scope="module")
def processor(tiny_moon):
    processor = MoonProcessor.from_pretrained(tiny_moon("qwen3_vl"))
    processor.max_image_tokens = 4
    return processor


def picture(seed=0):
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def pair(number, query=None, images=(None, None), other=(), negative=()):
    records = [
        {"id": f"shop/p{number}{role}", "title": f"thing {number}", "images": [image or picture(number)]}
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
    assert batch["skipped"] == []


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


def test_a_batch_of_which_nothing_is_left_is_an_error_that_names_the_items(processor):
    with pytest.raises(UnreadableBatchError, match=r"no pair of this batch can be read: q1: image: .*"):
        PairCollator(processor)([pair(1, query={"id": "q1", "image": b""})])


def shop_with_broken_pictures(share):
    products = [
        ProductRow(f"p{n}", title=f"thing {n}", images=(b"no picture" if n < 20 * share else picture(n),))
        for n in range(20)
    ]
    tables = ProductTables("shop", products, [], ValidationReport("shop", 20, 0, {}))
    return PairDataset([PairSource(tables)], PairOptions(query_mix={"image": 1}, hard_negatives=0), seed=3, length=30)


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
    with pytest.raises(UnreadableBatchError, match="no pair of this batch can be read: derived from shop/p"):
        PairCollator(processor, dataset.draw)([dataset[0]])


def test_batches_do_not_depend_on_the_number_of_workers(processor):
    tables = load_tables("catalogue", products=40, image_size=64, progress=False).select("train")
    dataset = PairDataset([PairSource(tables)], PairOptions(), seed=1, length=12)
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
