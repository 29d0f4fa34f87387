"""The embedded catalogue: what the tables state is what the pictures show, and a seed decides everything."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import os
import random
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from moon3.__main__ import main
from product_data.catalogue import making
from product_data.catalogue.drawing import SUPERSAMPLING, covered_share, mirror, smooth
from product_data.catalogue.making import (
    contact_sheet,
    make_catalogue,
    photograph,
    picture_rate,
    plan_products,
    split_sequence,
    write_catalogue,
    write_query,
)
from product_data.catalogue.products import (
    COLOUR_WORDS,
    COLOURS,
    COUNTS,
    DEMOGRAPHIC_WORDS,
    FAMILY_SIZE,
    MBE_KEYS,
    PATTERN_WORDS,
    PRODUCT_TYPES,
    ProductType,
    draw_family,
    sample_family,
)
from product_data.catalogue.shapes import SHAPES, draw_sprite

ROOT = Path(__file__).resolve().parents[3]
PRODUCT_COLUMNS = {"product_id", "title", "description", "category_path", "attributes", "images", "split", "group"}
QUERY_COLUMNS = {
    "query_id", "type", "text", "image", "bbox", "positives", "negatives", "split", "kind", "derived", "reference_product_id",
}  # fmt: skip


@pytest.fixture(scope="module")
def small():
    """120 products with one query of each type."""
    return make_catalogue(products=120, seed=5, image_size=96, progress=False)


def attributes(product):
    return {pair["key"]: pair["value"] for pair in product["attributes"]}


def by_id(products):
    return {product["product_id"]: product for product in products}


def differing(first, second):
    a, b = attributes(first), attributes(second)
    return [key for key in {**a, **b} if a.get(key) != b.get(key)]


def changed_pixels(first: Image.Image, second: Image.Image, least: int = 50) -> np.ndarray:
    a, b = (np.asarray(image.convert("RGB"), dtype=np.int16) for image in (first, second))
    return np.abs(a - b).max(axis=2) >= least


# ------------------------------------------------------------------------------------------------- determinism


@pytest.mark.slow
def test_another_process_with_another_hash_seed_draws_the_same_bytes():
    program = (
        "import hashlib, pickle; from product_data.catalogue.making import make_catalogue;"
        "print(hashlib.sha256(repr(make_catalogue(products=18, seed=3, image_size=64, progress=False)).encode()).hexdigest())"
    )
    seed = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"
    environment = {**os.environ, "PYTHONHASHSEED": seed}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    drawn = repr(make_catalogue(products=18, seed=3, image_size=64, progress=False))
    assert done.stdout.strip() == hashlib.sha256(drawn.encode()).hexdigest()


def test_different_seeds_give_different_products_and_pictures():
    first, second = (
        make_catalogue(products=18, seed=s, image_size=64, queries_per_product=0, progress=False)[0] for s in (0, 1)
    )
    assert [p["title"] for p in first] != [p["title"] for p in second]
    assert not {p["images"][0] for p in first} & {p["images"][0] for p in second}


def test_the_first_products_of_a_seed_do_not_depend_on_how_many_are_asked_for():
    few, few_queries = make_catalogue(products=36, seed=2, image_size=64, progress=False)
    more, more_queries = make_catalogue(products=60, seed=2, image_size=64, progress=False)
    assert few == more[:36]
    shared = [(q["query_id"], q["text"], q["image"], q["bbox"]) for q in more_queries[: len(few_queries)]]
    assert [(q["query_id"], q["text"], q["image"], q["bbox"]) for q in few_queries] == shared


# ---------------------------------------------------------------------------------------------------- products


def test_there_are_at_least_sixteen_types_in_a_tree_of_three_levels(small):
    paths = {tuple(p["category_path"]) for p in make_rows_of_every_type()}
    assert len(paths) == len(PRODUCT_TYPES) >= 16
    assert all(len(path) == 3 for path in paths)
    assert len({path[0] for path in paths}) < len({path[:2] for path in paths}) < len(paths)
    assert set(SHAPES) == {kind.name for kind in PRODUCT_TYPES}


def make_rows_of_every_type():
    count = len(PRODUCT_TYPES) * FAMILY_SIZE
    return make_catalogue(products=count, image_size=64, queries_per_product=0, progress=False)[0]


def test_rows_have_the_documented_columns(small):
    products, queries = small
    assert all(set(p) == PRODUCT_COLUMNS for p in products)
    assert all(set(q) == QUERY_COLUMNS for q in queries)
    picture = Image.open(io.BytesIO(products[0]["images"][0]))
    assert (picture.format, picture.size, picture.mode) == ("JPEG", (96, 96), "RGB")


def test_the_ten_attribute_keys_of_mbe_all_occur_and_six_are_on_every_product(small):
    products, _ = small
    keys = [set(attributes(p)) for p in products]
    assert set(MBE_KEYS) <= set().union(*keys)
    everywhere = {"colour", "category", "category modifier", "brand", "size/specification", "material"}
    assert all(everywhere <= k for k in keys)
    assert all(len(k - set(MBE_KEYS)) >= 3 for k in keys), "every product has fine details beside the ten keys"


def test_titles_name_the_brand_but_never_every_attribute(small):
    for product in small[0]:
        values = attributes(product)
        title = product["title"].lower()
        assert title.startswith(values["brand"].lower())
        assert any(value.lower() not in title for value in values.values())


def test_groups_hold_one_design_in_different_colours(small):
    groups = defaultdict(list)
    for product in small[0]:
        groups[product["group"]].append(product)
    for members in groups.values():
        assert len(members) == 3
        assert all(differing(members[0], other) == ["colour"] for other in members[1:])
        assert len({p["split"] for p in members}) == 1


def test_splits_share_no_group_and_all_hold_every_query_type():
    products, queries = make_catalogue(products=18, seed=1, image_size=64, progress=False)
    splits_of_group = defaultdict(set)
    for product in products:
        splits_of_group[product["group"]].add(product["split"])
    assert all(len(splits) == 1 for splits in splits_of_group.values())
    types = {split: {q["type"] for q in queries if q["split"] == split} for split in ("train", "valid", "test")}
    assert types == dict.fromkeys(("train", "valid", "test"), {"text", "image", "both"})


def test_split_shares_are_met_in_the_long_run():
    sequence = split_sequence((("train", 0.8), ("valid", 0.05), ("test", 0.15)))
    given = [next(sequence) for _ in range(600)]
    assert [given.count(name) for name in ("train", "valid", "test")] == [480, 30, 90]
    assert set(given[:3]) == {"train", "valid", "test"}
    unseen = [i for i in plan_products(3400) if i.split == "test"]
    assert len(unseen) >= 500


def test_bad_counts_sizes_and_splits_are_refused_with_what_is_accepted():
    for options, words in (
        ({"products": 12}, "at least 6 for each"),
        ({"image_size": 32}, "64 or more"),
        ({"queries_per_product": -1}, "0 or more"),
        ({"splits": (("train", 0.0),)}, "share above 0"),
        ({"splits": (("a", 0.5), ("a", 0.5))}, "different names"),
    ):
        with pytest.raises(ValueError, match=words):
            make_catalogue(**{"progress": False, **options})


# ------------------------------------------------------------------------------------- what the drawings show


@pytest.mark.parametrize("kind", PRODUCT_TYPES, ids=lambda kind: kind.name)
def test_every_detail_modifier_and_element_changes_the_drawing(kind: ProductType):
    visible = {"category modifier": kind.modifiers, "style elements": kind.elements, **kind.details}
    for trial in range(2):
        design = sample_family(kind, random.Random(trial))[0]
        drawn = draw_sprite(design, 128).reduce(SUPERSAMPLING)
        for key, values in visible.items():
            other = next(
                (d.attributes[key] for n in range(200) for d in sample_family(kind, random.Random(n))
                 if d.attributes[key] != design.attributes[key] and d.attributes["colour"] == design.attributes["colour"]),
                next(v for v in values if v != design.attributes[key]),
            )  # fmt: skip
            changed = dataclasses.replace(design, attributes={**design.attributes, key: other})
            difference = changed_pixels(drawn, draw_sprite(changed, 128).reduce(SUPERSAMPLING), least=40)
            assert difference.sum() >= 8, f"{key}: {design.attributes[key]} and {other} look alike"


def test_the_drawings_are_the_same_pixel_for_pixel_as_in_earlier_versions():
    """Stored catalogues and results stay comparable; a new drawing, or a Pillow that draws otherwise, renews the hash."""
    digest = hashlib.sha256()
    for kind in PRODUCT_TYPES:
        for family in range(3):
            for design in sample_family(kind, random.Random(family))[:2]:
                digest.update(draw_sprite(design, 48).tobytes())
    assert digest.hexdigest() == "0484afe0908d743a76bf2c9f97808847f4ae92cf91c55730f4ee125ea79b20ef"


def test_near_twins_differ_in_one_small_part_of_the_drawing():
    for family in range(len(PRODUCT_TYPES)):
        first, _, second, *_ = draw_family(11, family)
        keys = [k for k in first.attributes if first.attributes[k] != second.attributes[k]]
        assert len(keys) == 1
        assert keys[0] in first.kind.details
        difference = changed_pixels(draw_sprite(first, 128).reduce(2), draw_sprite(second, 128).reduce(2), least=40)
        assert 8 <= difference.sum() < 0.5 * difference.size


def test_the_stated_colour_is_the_colour_of_the_largest_area():
    for family in range(2 * len(PRODUCT_TYPES)):
        design = draw_family(4, family)[0]
        sprite = np.asarray(draw_sprite(design, 64), dtype=np.float64)
        body = np.abs(sprite[..., :3] - design.body).max(axis=2) < 70
        assert (body & (sprite[..., 3] > 0)).sum() > 0.2 * (sprite[..., 3] > 0).sum(), design
        assert np.abs(np.subtract(design.body, COLOURS[design.attributes["colour"]])).max() <= 9


def test_boxes_hold_the_product_exactly_and_nothing_else_changes_with_it():
    for number in range(24):
        first, second = draw_family(6, number)[:2]
        pictures = []
        for design in (first, second):
            picture, box, mask = photograph(design, draw_sprite(design, 96), random.Random(number), 96)
            pictures.append(picture)
        x0, y0, x1, y1 = box
        assert 0 <= x0 < x1 <= 96
        assert 0 <= y0 < y1 <= 96
        assert mask.getbbox() == tuple(box)
        difference = changed_pixels(*pictures, least=40)
        inside = difference[y0:y1, x0:x1].sum()
        assert inside == difference.sum(), "only the product itself differs between photos of two colour variants"
        assert inside > 0.25 * (np.asarray(mask) > 0).sum()


def test_photos_of_one_product_differ_and_are_cluttered(small):
    products, queries = small
    images = [q["image"] for q in queries if q["image"]]
    assert len(set(images)) == len(images)
    plain, photo = (
        np.mean([np.asarray(Image.open(io.BytesIO(data)).convert("L"), dtype=float)[-9:, -9:].std() for data in some])
        for some in ([p["images"][0] for p in products], images)
    )
    assert photo > 3 * plain


def test_covered_share_counts_the_hidden_part_of_the_product():
    product, other = Image.new("RGBA", (10, 10)), Image.new("RGBA", (10, 10))
    product.paste((255, 0, 0, 255), (0, 0, 10, 5))
    other.paste((0, 0, 255, 255), (0, 0, 5, 10))
    assert covered_share(product, other) == 0.5


def test_smooth_curves_pass_through_their_points_and_keep_doubled_points_sharp():
    curve = np.array(smooth([(0, 0), (0, 0), (10, 0), (10, 0), (10, 10), (10, 10), (0, 10), (0, 10)]))
    assert np.abs(curve - 5).max() <= 5 + 1e-9, "straight between sharp corners"
    circle = smooth(mirror([(50, 0), (85, 15), (100, 50), (85, 85), (50, 100)]))
    assert {(50.0, 0.0), (100.0, 50.0), (0.0, 50.0)} <= set(circle)


# ------------------------------------------------------------------------------------------------------ queries


def test_every_query_refers_to_products_of_its_own_split(small):
    products, queries = small
    split = {p["product_id"]: p["split"] for p in products}
    assert len({q["query_id"] for q in queries}) == len(queries)
    for query in queries:
        mentioned = [*query["positives"], *query["negatives"], *filter(None, [query["reference_product_id"]])]
        assert query["positives"]
        assert {split[product_id] for product_id in mentioned} == {query["split"]}
        assert not set(query["positives"]) & set(query["negatives"])


def test_queries_carry_what_their_type_says(small):
    for query in small[1]:
        assert bool(query["text"]) == (query["type"] in ("text", "both"))
        assert bool(query["image"]) == (query["type"] in ("image", "both")) == (query["bbox"] is not None)
        assert query["derived"] == (query["type"] != "image")


def test_a_text_query_is_answered_by_all_products_that_satisfy_it_and_no_other(monkeypatch):
    said = []

    def listen(item, rng):
        said.append(write_query(item, rng))
        return said[-1]

    monkeypatch.setattr(making, "write_query", listen)
    products, queries = make_catalogue(products=360, seed=8, image_size=64, progress=False, queries_per_product=1)
    texts = [q for q in queries if q["type"] == "text"]
    assert len(texts) == len(said) == 120
    several = 0
    for query, (text, stated) in zip(texts, said, strict=True):
        assert query["text"] == text
        kind = by_id(products)[query["positives"][0]]["category_path"]
        fitting = {
            p["product_id"]
            for p in products
            if p["split"] == query["split"] and p["category_path"] == kind and stated.items() <= attributes(p).items()
        }
        assert set(query["positives"]) == fitting
        several += len(fitting) > 1
    assert several > 10, "texts that fit several products occur"


def test_a_text_says_every_value_that_it_is_judged_by():
    synonyms = {**COLOUR_WORDS, **PATTERN_WORDS, **DEMOGRAPHIC_WORDS}
    for item in plan_products(600, seed=9):
        text, stated = write_query(item, random.Random(item.index))
        assert any(noun in text for noun in item.design.kind.nouns)
        for key, value in stated.items():
            words = (value.lower(), COUNTS.get(value, value), *synonyms.get(value, ()))
            if (key, value) == ("pattern", "plain"):
                words += ("without a pattern",)
            assert any(word in text for word in words if word), (text, key, value)
            assert item.attributes[key] == value


def test_texts_are_not_the_titles_and_use_articles_well(small):
    titles = {p["title"].lower() for p in small[0]}
    for query in small[1]:
        if query["text"]:
            assert query["text"].lower() not in titles
            assert " a orange" not in query["text"]
            assert "  " not in query["text"]
            assert "{" not in query["text"]


def test_hard_negatives_are_of_the_same_category_and_one_attribute_away(small):
    products, queries = small
    rows = by_id(products)
    assert sum(bool(q["negatives"]) for q in queries) > 0.9 * len(queries)
    for query in queries:
        for negative in query["negatives"]:
            near = [p for p in query["positives"] if len(differing(rows[p], rows[negative])) == 1]
            assert near
            assert rows[near[0]]["category_path"] == rows[negative]["category_path"]


def test_an_image_query_asks_for_one_product(small):
    for query in small[1]:
        if query["type"] == "image":
            assert len(query["positives"]) == 1
            assert len(query["negatives"]) == 3


def test_a_photo_with_a_wish_asks_for_the_variant_and_leaves_out_the_photographed(small):
    products, queries = small
    rows = by_id(products)
    kinds = defaultdict(int)
    for query in (q for q in queries if q["type"] == "both"):
        kinds[query["kind"]] += 1
        (positive,) = query["positives"]
        if query["kind"] == "pointed":
            assert query["reference_product_id"] is None
            continue
        reference = query["reference_product_id"]
        assert reference != positive
        assert reference not in query["negatives"]
        (key,) = differing(rows[reference], rows[positive])
        value = attributes(rows[positive])[key]
        same_group = rows[reference]["group"] == rows[positive]["group"]
        assert same_group == (key == "colour") == (query["kind"] == "same_in_colour")
        if same_group:
            assert any(word in query["text"] for word in COLOUR_WORDS.get(value, (value,)))
    assert set(kinds) == {"pointed", "same_in_colour", "same_with_detail"}


# -------------------------------------------------------------------------------------------- files and commands


def test_written_tables_come_back_through_datasets_with_decoded_pictures(tmp_path):
    datasets = pytest.importorskip("datasets")
    options = {"products": 18, "seed": 4, "image_size": 64, "progress": False}
    products, queries = make_catalogue(**options)
    folder = write_catalogue(tmp_path / "shop", **options)
    tables = {
        name: datasets.load_dataset(
            "parquet", data_files=str(folder / f"{name}.parquet"), cache_dir=str(tmp_path), split="train"
        )
        for name in ("products", "queries", "query_images")
    }
    assert tables["products"]["product_id"][:] == [p["product_id"] for p in products]
    row = tables["products"][0]
    assert {k: row[k] for k in ("title", "category_path", "attributes", "group")} == {
        k: products[0][k] for k in ("title", "category_path", "attributes", "group")
    }
    assert row["images"][0].size == (64, 64)
    pictures = dict(zip(tables["query_images"]["image_id"], tables["query_images"]["image"], strict=True))
    for written, query in zip(tables["queries"], queries, strict=True):
        assert written["positives"] == query["positives"]
        assert written["negatives"] == query["negatives"]
        assert written["bbox"] == query["bbox"]
        assert (written["image_id"] in pictures) == (query["image"] is not None)


def test_the_contact_sheet_is_a_wide_picture(tmp_path):
    with Image.open(contact_sheet(tmp_path / "sheet.png")) as sheet:
        assert sheet.width == 1200
        assert sheet.height > 1000


def test_the_command_line_writes_tables_and_asks_for_something_to_do(tmp_path, capsys):
    assert main(["catalogue", "--output", str(tmp_path), "--products", "18", "--image-size", "64"]) == 0
    written = {"README.md", "products.parquet", "queries.parquet", "query_images.parquet"}
    assert {path.name for path in tmp_path.iterdir()} == written
    assert main(["catalogue"]) == 2
    assert "found no option" in capsys.readouterr().err


def test_the_picture_rate_is_counted():
    assert picture_rate(seconds=0.05, image_size=64) > 0


def test_one_split_drawn_alone_is_what_it_is_in_the_whole_catalogue():
    options = {"products": 36, "seed": 3, "image_size": 64, "progress": False}
    whole, alone = make_catalogue(**options), make_catalogue(**options, only="test")
    for rows, drawn in zip(whole, alone, strict=True):
        assert drawn == [row for row in rows if row["split"] == "test"] != []
    with pytest.raises(ValueError, match="only='tests'; expected one of train, valid, test, or None"):
        make_catalogue(**options, only="tests")
