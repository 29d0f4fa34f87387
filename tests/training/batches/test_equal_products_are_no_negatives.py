"""Identical products, and those with the answer's title and picture: neither drawn, mined, in the batch nor in the queue."""

import pytest
import torch
from pictures import file_of, noise

from product_data.tables import ProductRow, ProductTables, QueryRow, ValidationReport
from training.assembly.sources import digest_of
from training.batches.negatives import NO_ID, QueryFacts, false_negative_mask, stable_id
from training.batches.pairs import PairDataset, PairSource
from training.batches.streams import RowPairs, StreamRow, StreamSource
from training.mining.hard_negatives import MiningOptions, ProductIndex
from training.recipe.pairs import PairArguments

SHOES, SIZES = 6, 12


def shoe(number, size, sized=False):
    return ProductRow(
        product_id=f"s{number}-{size}",
        title=f"Shoe {number}",
        category=("Shoes",),
        attributes={"size": (str(36 + size),)} if sized else {},
        images=(file_of(noise(seed=number)),),
    )


def tables(products, queries=()):
    return ProductTables(
        "shop", list(products), list(queries), ValidationReport("shop", len(products), len(queries), {})
    )


def shop(sized=False, **query):
    products = [shoe(number, size, sized) for number in range(SHOES) for size in range(SIZES)]
    queries = [
        QueryRow(f"q{n}", "text", f"wish {n}", positives=(f"s{n}-3",), **{k: f(n) for k, f in query.items()})
        for n in range(SHOES)
    ]
    return tables(products, queries)


def pairs_of(table, mask_groups=True, **options):
    options = {"query_mix": {"t": 1}, "derived_queries": False} | options
    return PairDataset([PairSource(table, mask_groups=mask_groups)], PairArguments(**options), 0, 400)


def shoe_of(name):
    return name.removeprefix("shop/").partition("-")[0]


def excluded(pair, other):
    """Whether another pair's products may not be negatives of this pair's query."""

    def padded(ids):
        return torch.tensor([[*ids, NO_ID]])

    facts = QueryFacts(
        torch.tensor([pair.product_ids[0]]),
        torch.tensor([pair.query_group]),
        padded(pair.other_ids),
        padded(pair.negative_ids),
    )
    return false_negative_mask(facts, torch.tensor(other.product_ids), torch.tensor(other.group_ids))[0].tolist()


@pytest.mark.parametrize("mask_groups", [True, False])
@pytest.mark.parametrize("sized", [False, True])
def test_no_size_of_a_shoe_is_drawn_as_a_hard_negative_or_met_as_another_pairs(sized, mask_groups):
    pairs = pairs_of(shop(sized), mask_groups, hard_negatives=2)
    drawn = [pairs[position] for position in range(120)]
    for pair in drawn:
        positive, *negatives = map(shoe_of, pair.names)
        assert len(negatives) == 2
        assert positive not in negatives
    for pair in drawn[:20]:
        for other in drawn:
            same = [shoe_of(name) == shoe_of(pair.names[0]) for name in other.names]
            assert excluded(pair, other) == same


def test_a_given_negative_that_is_identical_to_the_answer_or_the_reference_is_not_taken():
    table = shop(negatives=lambda n: (f"s{n}-5", f"s{(n + 1) % SHOES}-2"))
    for position in range(60):
        pair = pairs_of(table)[position]
        positive, negative = (int(shoe_of(name)[1:]) for name in pair.names)
        assert negative == (positive + 1) % SHOES
        assert pair.product_ids[0] not in pair.negative_ids
    referred = shop(
        negatives=lambda n: (f"s{(n + 1) % SHOES}-2",), reference_product_id=lambda n: f"s{(n + 1) % SHOES}-9"
    )
    for position in range(60):
        pair = pairs_of(referred)[position]
        positive, negative = (int(shoe_of(name)[1:]) for name in pair.names)
        assert negative not in (positive, (positive + 1) % SHOES)


def test_identical_answers_are_one_answer_with_the_greatest_weight():
    products = [shoe(number, size) for number in range(2) for size in range(2)]
    query = QueryRow("q", "text", "either", positives=("s0-0", "s0-1", "s1-0"), positive_weights=(0.2, 0.9, 0.5))
    pairs = pairs_of(tables(products, [query]), positives_per_query=3)
    for position in range(20):
        pair = pairs[position]
        assert pair.positive_count == 2
        assert pair.answers == {stable_id("shop/s0-0"): 0.9, stable_id("shop/s1-0"): 0.5}
        assert list(pair.answers)[:2] == pair.product_ids[:2]


def test_a_query_that_names_its_variant_still_learns_from_the_other_sizes_of_a_sized_shoe():
    table = shop(sized=True, reference_product_id=lambda n: f"s{n}-0")
    pair = pairs_of(table)[0]
    assert pair.query_group == NO_ID
    assert stable_id(f"shop/{shoe_of(pair.names[0])}-0") in pair.other_ids


@pytest.mark.parametrize("sized", [False, True])
@pytest.mark.parametrize("mask_groups", [False, True])
def test_no_size_of_a_shoe_is_mined(sized, mask_groups):
    table = shop(sized)
    index = ProductIndex(table.products, MiningOptions(mask_groups=mask_groups))
    allowed = index.allowed(table.queries, slice(0, len(table.products)))
    for number, query in enumerate(table.queries):
        names = [row.product_id for row, may in zip(table.products, allowed[number], strict=True) if may]
        assert {shoe_of(name) for name in names} == {f"s{n}" for n in range(SHOES)} - {shoe_of(query.positives[0])}


def test_nothing_identical_to_the_reference_is_mined():
    products = [shoe(number, size) for number in range(3) for size in range(3)]
    query = QueryRow("q", "text", "like this", positives=("s0-0",), reference_product_id="s1-0")
    allowed = ProductIndex(products, MiningOptions()).allowed([query], slice(0, 9))[0]
    assert [row.product_id for row, may in zip(products, allowed, strict=True) if may] == ["s2-0", "s2-1", "s2-2"]


def test_what_is_equal_is_part_of_the_data_that_a_resumed_run_must_find_again():
    table = shop()
    renamed = tables([ProductRow(**{**_fields(row), "title": row.product_id}) for row in table.products], table.queries)
    assert digest_of(table) != digest_of(renamed)
    assert digest_of(table) == digest_of(shop())


def _fields(row):
    return {name: getattr(row, name) for name in ("product_id", "title", "category", "attributes", "images")}


@pytest.mark.parametrize("mask_groups", [False, True])
def test_rows_of_a_stream_with_other_ids_and_one_content_are_no_negatives_of_each_other(mask_groups):
    import datasets

    from product_data.columns import find_columns

    rows = [
        {
            "query": f"wish {n}",
            "positive_id": f"s{n % 3}-{n}",
            "positive_title": f"Shoe {n % 3}",
            "positive_image": file_of(noise(seed=n % 3)),
        }
        for n in range(9)
    ]
    stream = datasets.Dataset.from_list(rows).to_iterable_dataset()
    columns = find_columns(list(rows[0]))
    source = StreamSource("shop", stream, columns, mask_groups=mask_groups)
    pairs = [
        RowPairs([source], PairArguments(hard_negatives=0), 0, 9).pair(StreamRow(0, (0, 0, n), row))
        for n, row in enumerate(rows)
    ]
    for n, pair in enumerate(pairs):
        assert [excluded(pair, other)[0] for other in pairs] == [other % 3 == n % 3 for other in range(9)]
