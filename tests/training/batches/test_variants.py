"""Variants of products in training pairs: which are drawn, how often, and that they stay the same product."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pictures import file_of, plain

from processing_moon import open_image
from product_data.co_augmentation.variant_files import CLEAN, SCENE, TITLE, Variant, VariantFolder, write_variants
from product_data.tables import ProductRow, ProductTables, QueryRow, TableError, ValidationReport
from training.batches.negatives import QueryFacts, false_negative_mask
from training.batches.pairs import PairDataset, PairSource
from training.batches.streams import RowPairs, StreamRow, StreamSource
from training.batches.variants import VariantDraws, open_variants
from training.recipe.data import CoAugmentation
from training.recipe.pairs import PairArguments

ROWS = [
    ProductRow(
        f"p{n}", title=f"thing {n}", category=("things",), images=(file_of(plain("red", 16)),), core_box=(1, 1, 9, 9)
    )
    for n in range(6)
]


def tables(rows=ROWS, queries=None) -> ProductTables:
    if queries is None:
        queries = [
            QueryRow(f"q{row.product_id}", "text", text=f"wish {row.title}", positives=(row.product_id,))
            for row in rows
        ]
    return ProductTables("shop", list(rows), queries, ValidationReport("shop", len(rows), len(queries), {}))


def variant_folder(folder: Path, data_set: str = "shop", ids=("p0", "p1", "p2", "p3", "p4")) -> VariantFolder:
    """Write variants of all products but the last; p4 has rejected ones only."""
    (folder / "pictures").mkdir(parents=True)
    variants = []
    for name in ids:
        (folder / "pictures" / f"{name}.png").write_bytes(file_of(plain("blue", 20)))
        accepted = name != "p4"
        reason = "" if accepted else "the consistency fell: 0.1, the original has 0.9"
        for number in range(2):
            variants.append(
                Variant(name, TITLE, number, title=f"new {number} {name}", accepted=accepted, reason=reason)
            )
        for kind, box in ((CLEAN, (2.0, 2.0, 18.0, 18.0)), (SCENE, None)):
            image = f"pictures/{name}.png"
            variants.append(Variant(name, kind, 0, image=image, core_box=box, accepted=accepted, reason=reason))
    write_variants(folder, variants)
    (folder / "co_augmentation.json").write_text(f'{{"complete": true, "data_set": "{data_set}", "settings": {{}}}}')
    return VariantFolder(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return variant_folder(tmp_path_factory.mktemp("variants") / "v")


def dataset(folder, titles=0.5, pictures=0.5, seed=7, length=400, **options) -> PairDataset:
    draws = None if folder is None else VariantDraws({"shop": folder}, titles, pictures)
    arguments = PairArguments(**({"query_mix": {"t": 1}, "derived_queries": False} | options))
    return PairDataset([PairSource(tables())], arguments, seed, length, draws)


def shown(record) -> tuple[str, str, object]:
    picture = open_image(record["images"][0])
    return record["title"], "blue" if picture.getpixel((0, 0)) == (0, 0, 255) else "red", record.get("core_box")


def test_products_take_variants_with_the_given_probabilities_and_only_accepted_ones(folder):
    pairs = [dataset(folder, 0.5, 0.25)[n] for n in range(400)]
    records = [record for pair in pairs for record in pair.products]
    drawn = {}
    for record in records:
        drawn.setdefault(record["id"].removeprefix("shop/"), []).append(shown(record))
    for name in ("p4", "p5"):  # only rejected variants, and none
        assert {(title, colour) for title, colour, _ in drawn[name]} == {(f"thing {name[1]}", "red")}
    known = [one for name in ("p0", "p1", "p2", "p3") for one in drawn[name]]
    assert np.mean([title.startswith("new ") for title, _, _ in known]) == pytest.approx(0.5, abs=0.07)
    assert np.mean([colour == "blue" for _, colour, _ in known]) == pytest.approx(0.25, abs=0.07)
    assert {title for title, _, _ in drawn["p0"]} == {"thing 0", "new 0 p0", "new 1 p0"}
    boxes = {(colour, tuple(box) if box else None) for _, colour, box in drawn["p0"]}
    assert boxes == {("red", (1, 1, 9, 9)), ("blue", (2.0, 2.0, 18.0, 18.0)), ("blue", None)}


def test_a_share_of_0_leaves_titles_or_pictures_as_they_are(folder):
    titles, pictures = dataset(folder, 1.0, 0.0), dataset(folder, 0.0, 1.0)
    for n in range(40):
        for record in titles[n].products:
            assert shown(record)[1] == "red"
        for record in pictures[n].products:
            assert shown(record)[0].startswith("thing ")
            assert shown(record)[1] == ("red" if record["id"] in ("shop/p4", "shop/p5") else "blue")


def test_the_same_queries_and_products_are_drawn_with_and_without_variants(folder):
    with_variants, without = dataset(folder), dataset(None)
    for n in range(60):
        one, other = with_variants[n], without[n]
        assert (one.query, one.names, one.product_ids, one.group_ids) == (
            other.query,
            other.names,
            other.product_ids,
            other.group_ids,
        )
        assert with_variants.outline(n) == without.outline(n)


def test_a_position_is_the_same_pair_in_every_process_and_after_a_resumption(folder):
    first = dataset(folder)
    copy = pickle.loads(pickle.dumps(first))
    later = [copy.draw(n) for n in range(30, 60)]
    assert later == [first[n] for n in range(30, 60)]
    assert [dataset(folder, seed=8)[n] for n in range(30, 60)] != later
    assert first.draw(3, attempt=1) == copy.draw(3, attempt=1) != first.draw(3)


def test_a_variant_is_never_a_negative_of_its_product(folder):
    import torch

    pairs = [dataset(folder, 1.0, 1.0)[n] for n in range(60)]
    answers = {pair.product_ids[0] for pair in pairs}
    for pair in pairs:
        facts = QueryFacts(
            torch.tensor([pair.product_ids[0]]),
            torch.tensor([pair.query_group]),
            torch.tensor([pair.other_ids or [-1]]),
            torch.tensor([pair.negative_ids or [-1]]),
        )
        everyone = [number for other in pairs for number in other.product_ids]
        mask = false_negative_mask(facts, torch.tensor(everyone), torch.full((len(everyone),), -1))[0]
        assert mask.tolist() == [number == pair.product_ids[0] for number in everyone]
        assert pair.product_ids[0] not in pair.product_ids[1:]
    assert len(answers) == 6


def test_queries_that_are_derived_from_a_product_also_show_variants(folder):
    derived = dataset(folder, 1.0, 1.0, query_mix={"t": 1, "i": 1}, derived_queries=True)
    source = derived.sources[0]
    source.queries = {form: [] for form in source.queries}
    derived = PairDataset([source], derived.options, 7, 400, derived.variants)
    texts = {pair.query["text"] for pair in map(derived.draw, range(200)) if "text" in pair.query}
    assert {"new 0 p0", "new 1 p0", "thing 5"} <= texts
    assert "thing 0" not in texts


def test_rows_of_a_stream_take_variants_by_the_ids_of_their_products(folder):
    from product_data.columns import find_columns

    names = ["query", "positive.id", "doc_title", "doc_image"]
    columns = find_columns(names, {"positive.id": "positive.id"})
    source = StreamSource("shop", None, columns)  # type: ignore[arg-type]
    cells = {"query": "wish", "positive.id": "p1", "doc_title": "thing 1", "doc_image": ROWS[1].images[0]}
    rows = [StreamRow(0, (0, 0, number), cells) for number in range(40)]
    options = PairArguments(query_mix={"t": 1}, hard_negatives=0)
    pairs = RowPairs([source], options, 3, 40, VariantDraws({"shop": folder}, 0.5, 0.5))
    found = [pairs.pair(row) for row in rows]
    assert {shown(pair.products[0])[:2] for pair in found} >= {
        ("thing 1", "red"),
        ("new 0 p1", "blue"),
        ("thing 1", "blue"),
    }
    assert found == [pairs.pair(row) for row in rows]
    plain_pairs = RowPairs([source], options, 3, 40)
    assert [pair.product_ids for pair in found] == [plain_pairs.pair(row).product_ids for row in rows]


def test_the_longest_title_of_each_product_counts_for_the_token_budget(folder):
    draws = VariantDraws({"shop": folder}, 0.5, 0.5)
    longer = draws.longest(tables())
    assert [row.title for row in longer.products[6:]] == ["new 0 p0", "new 0 p1", "new 0 p2", "new 0 p3"]
    assert len(VariantDraws({"shop": folder}, 0.0, 1.0).longest(tables()).products) == 6
    assert draws.known("shop", [row.product_id for row in ROWS]) == 4
    assert draws.known("other", ["p0"]) == 0


def test_folders_belong_to_data_sets_by_place_or_by_name(tmp_path):
    shop, other = tmp_path / "shop", tmp_path / "other"
    for place in (shop, other):
        place.mkdir()
    beside = variant_folder(shop / "co_augmentation")
    apart = variant_folder(tmp_path / "apart", "other")
    places = {"shop": shop, "other": other}
    assert list(open_variants(CoAugmentation(), places).titles) == ["shop"]
    explicit = open_variants(CoAugmentation((str(apart.path), str(beside.path))), places)
    assert set(explicit.titles) == {"shop", "other"}
    assert list(open_variants(CoAugmentation((str(apart.path),)), {"mine": None}).titles) == ["mine"]
    with pytest.raises(ValueError, match="found no folder 'co_augmentation' with variants in those of the data sets"):
        open_variants(CoAugmentation(), {"catalogue": None})
    with pytest.raises(ValueError, match="found a second folder of the data set 'shop'"):
        open_variants(CoAugmentation((str(beside.path), str(variant_folder(tmp_path / "again").path))), places)
    with pytest.raises(ValueError, match="found a folder of the data set 'third'"):
        open_variants(CoAugmentation((str(variant_folder(tmp_path / "third", "third").path),)), places)
    with pytest.raises(TableError, match="found no complete variants"):
        open_variants(CoAugmentation((str(other),)), places)


def test_the_digest_changes_with_the_variants(tmp_path):
    one, same = variant_folder(tmp_path / "one"), variant_folder(tmp_path / "same")
    less = variant_folder(tmp_path / "less", ids=("p0", "p1"))
    digests = [VariantDraws({"shop": folder}, 0.5, 0.5).digests["shop"] for folder in (one, same, less)]
    assert digests[0] == digests[1] != digests[2]
    assert replace(ROWS[0]) == ROWS[0]
