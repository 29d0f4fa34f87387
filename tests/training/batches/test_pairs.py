from collections import Counter

import numpy as np
import pytest
from pictures import file_of, noise
from PIL import Image

from product_data.tables import ProductRow, ProductTables, QueryRow, ValidationReport
from training.batches.negatives import NO_ID, stable_id
from training.batches.pairs import PairDataset, PairSource
from training.batches.views import altered_view
from training.recipe.pairs import PairArguments


def product(number, leaf="Shirts", group=None, colour="red"):
    return ProductRow(
        product_id=f"p{number}",
        title=f"Thing {number}",
        category=("Clothes", leaf),
        attributes={"colour": (colour,)},
        images=(file_of(noise(seed=number)),),
        group=group,
    )


def tables(products, queries=(), name="shop"):
    report = ValidationReport(name, len(products), len(queries), {})
    return ProductTables(name, list(products), list(queries), report)


def dataset(*sources, length=400, seed=5, **options):
    return PairDataset(list(sources), PairArguments(**options), seed, length)


def form_of(pair):
    return {(True, False): "text", (False, True): "image", (True, True): "both"}[
        ("text" in pair.query, "image" in pair.query)
    ]


def fingerprint(pair):
    image = pair.query.get("image")
    pixels = image.tobytes() if isinstance(image, Image.Image) else image
    return pair.query.get("text"), pixels, tuple(pair.names), tuple(pair.other_ids), pair.query_group


def test_a_pair_depends_on_seed_and_position_alone():
    products = [product(number) for number in range(12)]
    one, two = dataset(PairSource(tables(products))), dataset(PairSource(tables(products)), length=20)
    forwards = [fingerprint(one[position]) for position in range(20)]
    backwards = [fingerprint(two[position]) for position in reversed(range(20))][::-1]
    assert forwards == backwards
    assert len(set(forwards)) > 15
    other = dataset(PairSource(tables(products)), seed=6)
    assert forwards != [fingerprint(other[position]) for position in range(20)]


def test_substitutes_depend_on_seed_position_and_attempt_alone():
    pairs = dataset(PairSource(tables([product(number) for number in range(12)])))
    drawn = [fingerprint(pairs.draw(3, attempt)) for attempt in range(6)]
    assert drawn[0] == fingerprint(pairs[3])
    assert len(set(drawn)) > 3
    assert drawn == [fingerprint(pairs.draw(3, attempt)) for attempt in range(6)]
    assert pairs.draw(3, 2).position == 3


def test_forms_come_in_the_proportions_of_the_mix():
    pairs = dataset(PairSource(tables([product(number) for number in range(12)])), length=1700)
    counts = Counter(form_of(pairs[position]) for position in range(1700))
    assert counts["image"] == pytest.approx(1200, abs=80)
    assert counts["text"] == pytest.approx(300, abs=60)
    assert counts["both"] == pytest.approx(200, abs=60)


def test_a_form_that_no_data_set_has_is_named_and_not_drawn():
    products = [product(number) for number in range(4)]
    queries = [QueryRow("q", "text", "a thing", positives=("p1",))]
    pairs = dataset(PairSource(tables(products, queries)), derived_queries=False)
    assert pairs.missing_forms() == ["i", "mm"]
    assert {form_of(pairs[position]) for position in range(30)} == {"text"}
    with pytest.raises(ValueError, match="query_mix: found no query of the forms"):
        dataset(PairSource(tables(products)), derived_queries=False)


def test_real_queries_replace_derived_ones_when_there_are_enough():
    products = [product(number) for number in range(4)]
    queries = [QueryRow(f"q{n}", "text", f"wish {n}", positives=(f"p{n % 4}",)) for n in range(4)]
    enough = dataset(PairSource(tables(products, queries)), query_mix={"t": 1})
    assert all(enough[position].query["text"].startswith("wish") for position in range(40))
    few = dataset(PairSource(tables(products, queries[:2])), query_mix={"t": 1})
    real = sum(few[position].query["text"].startswith("wish") for position in range(300))
    assert real == pytest.approx(100, abs=35)


def test_the_positive_is_one_of_the_querys_and_all_of_them_are_known():
    products = [product(number) for number in range(6)]
    queries = [QueryRow("q", "text", "either", positives=("p1", "p4", "gone"))]
    pairs = dataset(PairSource(tables(products, queries)), query_mix={"t": 1}, derived_queries=False)
    drawn = {pairs[position].names[0] for position in range(40)}
    assert drawn == {"shop/p1", "shop/p4"}
    pair = pairs[0]
    known = {stable_id(f"shop/{name}") for name in ("p1", "p4", "gone")}
    assert {pair.product_ids[0], *pair.other_ids} == known


def test_hard_negatives_share_the_category_but_not_the_product_or_group():
    products = [product(n, leaf="Shirts" if n < 6 else "Shoes", group="a" if n < 3 else None) for n in range(12)]
    pairs = dataset(PairSource(tables(products)), query_mix={"i": 1}, hard_negatives=2)
    for position in range(200):
        positive, *negatives = (int(name.removeprefix("shop/p")) for name in pairs[position].names)
        assert len(set(negatives)) == 2
        assert positive not in negatives
        if positive >= 3:
            assert {number < 6 for number in negatives} == {positive < 6}
        if positive < 3:
            assert min(negatives) >= 3


def test_without_a_sibling_the_hard_negative_comes_from_the_parent_category():
    products = [product(0, leaf="Hats"), product(1, leaf="Shoes"), product(2, leaf="Shoes")]
    pairs = dataset(PairSource(tables(products)))
    assert all(len(pairs[position].names) == 2 for position in range(50))
    alone = dataset(PairSource(tables([product(0)])))
    assert alone[0].names == ["shop/p0"]


def test_a_querys_own_negatives_come_first():
    products = [product(number) for number in range(30)]
    query = QueryRow("q", "text", "wish", positives=("p1",), negatives=("p7", "p9"))
    pairs = dataset(PairSource(tables(products, [query])), query_mix={"t": 1}, derived_queries=False)
    assert {pairs[position].names[1] for position in range(40)} == {"shop/p7", "shop/p9"}
    assert set(pairs[0].negative_ids) == {stable_id("shop/p7"), stable_id("shop/p9")}


def test_answers_and_the_reference_product_are_no_hard_negatives_even_where_the_data_says_so():
    products = [product(number) for number in range(6)]
    query = QueryRow(
        "q", "text", "wish", positives=("p1", "p2"), negatives=("p1", "p2", "p0", "p5"), reference_product_id="p0"
    )
    pairs = dataset(PairSource(tables(products, [query])), query_mix={"t": 1}, derived_queries=False)
    assert {pairs[position].names[1] for position in range(40)} == {"shop/p5"}


def test_several_graded_positives_are_drawn_with_their_weights():
    products = [product(number) for number in range(9)]
    graded = QueryRow("q", "text", "either", positives=("p1", "p4", "p7", "gone"), positive_weights=(1, 0.5, 0.25, 0.1))
    pairs = dataset(
        PairSource(tables(products, [graded])),
        query_mix={"t": 1},
        derived_queries=False,
        positives_per_query=2,
        hard_negatives=2,
    )
    weight_of = {stable_id(f"shop/{name}"): weight for name, weight in graded.answers.items()}
    firsts, seconds = set(), set()
    for position in range(60):
        pair = pairs[position]
        assert pair.positive_count == 2
        assert len(pair.products) == 4
        assert list(pair.answers)[:2] == pair.product_ids[:2]
        assert pair.answers == weight_of
        assert not set(pair.product_ids[2:]) & set(weight_of)
        firsts.add(pair.names[0])
        seconds.add(pair.names[1])
    assert firsts == seconds == {"shop/p1", "shop/p4", "shop/p7"}
    single = dataset(PairSource(tables(products, [graded])), query_mix={"t": 1}, derived_queries=False)
    assert [single[n].names[0] for n in range(60)] == [pairs[n].names[0] for n in range(60)]


def test_variants_of_every_known_answer_are_no_negatives():
    products = [product(number, group=f"g{number // 2}") for number in range(10)]
    query = QueryRow("q", "text", "either", positives=("p0", "p4"), negatives=("p5",))
    pairs = dataset(PairSource(tables(products, [query])), query_mix={"t": 1}, derived_queries=False, hard_negatives=3)
    variants = {stable_id("shop/p1"), stable_id("shop/p5")}
    for position in range(40):
        pair = pairs[position]
        assert not {"shop/p0", "shop/p1", "shop/p4"} & set(pair.names[1:])
        masked = {*pair.other_ids} | ({stable_id("shop/p1")} if pair.names[0] == "shop/p0" else set())
        assert masked & variants == {stable_id("shop/p1")}  # p5 is known to be wrong, whatever its group
        assert pair.names[1] == "shop/p5"


def test_a_query_that_starts_from_a_product_neither_rewards_nor_punishes_that_product():
    products = [product(number, group="family") for number in range(3)] + [product(9)]
    query = QueryRow("q", "both", "in blue", file_of(noise(seed=0)), positives=("p1",), reference_product_id="p0")
    pairs = dataset(PairSource(tables(products, [query])), query_mix={"mm": 1}, derived_queries=False)
    assert stable_id("shop/p0") in pairs[0].other_ids
    assert pairs[0].query_group == NO_ID
    assert all("shop/p0" not in pairs[position].names for position in range(40))


def test_groups_can_be_left_unmasked():
    products = [product(number, group="family") for number in range(3)]
    masked, unmasked = (
        dataset(PairSource(tables(products), mask_groups=mask), query_mix={"i": 1}) for mask in (True, False)
    )
    assert masked[0].query_group == masked[0].group_ids[0] != NO_ID
    assert unmasked[0].query_group == NO_ID
    assert len(unmasked[0].names) == 2
    assert len(masked[0].names) == 1


def test_an_attribute_phrase_knows_every_product_that_it_describes():
    products = [product(n, colour="red" if n % 2 else "blue") for n in range(8)]
    pairs = dataset(PairSource(tables(products)), query_mix={"t": 1})
    phrases = [pair for pair in (pairs[position] for position in range(40)) if "Thing" not in pair.query["text"]]
    assert phrases
    for pair in phrases:
        assert pair.query["text"] in ("red Shirts", "blue Shirts")
        assert len({pair.product_ids[0], *pair.other_ids}) == 4


def test_data_sets_are_drawn_by_weight_and_their_ids_kept_apart():
    products = [product(number) for number in range(5)]
    one, two = PairSource(tables(products, name="one"), 3), PairSource(tables(products, name="two"), 1)
    pairs = dataset(one, two)
    names = [pairs[position].names[0] for position in range(400)]
    assert sum(name.startswith("one/") for name in names) == pytest.approx(300, abs=40)
    assert len({number for position in range(100) for number in pairs[position].product_ids}) == 10


def test_targets_can_be_image_only_or_text_only_in_a_share_of_the_pairs():
    products = [product(number) for number in range(5)]
    pairs = dataset(PairSource(tables(products)), product_mix={"mm": 2, "i": 1, "t": 1})
    kinds = Counter(("title" in record, "images" in record) for n in range(400) for record in pairs[n].products)
    assert kinds[True, True] == pytest.approx(400, abs=80)
    assert kinds[False, True] == pytest.approx(200, abs=60)
    assert kinds[True, False] == pytest.approx(200, abs=60)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_photos_of_real_queries_are_altered_in_a_share_of_the_pairs(share):
    products = [product(number) for number in range(4)]
    queries = [QueryRow(f"q{n}", "image", image=file_of(noise(seed=50 + n)), positives=(f"p{n}",)) for n in range(4)]
    boxed = [QueryRow("b", "image", image=file_of(noise(20, 24, 60)), box=(2.0, 2.0, 9.0, 9.0), positives=("p0",))]
    options = {"query_mix": {"i": 1}, "derived_queries": False, "augment_queries": share, "length": 200}
    pairs = dataset(PairSource(tables(products, queries)), **options)
    altered = sum(isinstance(pairs[position].query["image"], Image.Image) for position in range(200))
    assert altered == pytest.approx(200 * share, abs=30 if share == 0.5 else 0)
    shown = [dataset(PairSource(tables(products, boxed)), **options)[position].query for position in range(40)]
    sizes = {query["image"].size for query in shown if isinstance(query["image"], Image.Image)}
    assert sizes == ({(20, 24)} if share else set())  # a box in pixels stays right
    assert all(query["core_box"] == [2.0, 2.0, 9.0, 9.0] for query in shown)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_pictures_of_products_are_altered_in_a_share_of_the_products_of_training(share):
    pairs = dataset(PairSource(tables([product(number) for number in range(6)])), augment_products=share, length=200)
    shown = [record["images"][0] for position in range(200) for record in pairs[position].products]
    altered = [image for image in shown if isinstance(image, Image.Image)]
    assert len(altered) == pytest.approx(share * len(shown), abs=60 if share == 0.5 else 0)
    again = pairs[3].products[0]["images"][0]
    assert share < 1 or again.tobytes() == pairs[3].products[0]["images"][0].tobytes()


def test_an_altered_product_keeps_its_box_and_its_size():
    row = ProductRow("p0", title="Thing", images=(file_of(noise(20, 24, 7)),), core_box=(2.0, 2.0, 9.0, 9.0))
    pairs = dataset(PairSource(tables([row])), augment_products=1.0)
    record = pairs[0].products[0]
    assert (record["images"][0].size, record["core_box"]) == ((20, 24), [2.0, 2.0, 9.0, 9.0])


def test_titles_are_dropped_in_a_share_of_the_products_that_have_more_than_a_title():
    rows = [product(number) for number in range(6)] + [ProductRow("bare", title="Nothing else")]
    pairs = dataset(PairSource(tables(rows)), query_mix={"t": 1}, hard_negatives=0, drop_titles=0.5, length=400)
    records = [record for position in range(400) for record in pairs[position].products]
    bare = [record for record in records if record["id"] == "shop/bare"]
    others = [record for record in records if record["id"] != "shop/bare"]
    assert bare
    assert all("title" in record for record in bare)
    assert sum("title" in record for record in others) == pytest.approx(len(others) / 2, abs=60)
    assert all({"images", "category", "attributes"} <= record.keys() for record in others)


def test_other_draws_do_not_change_without_altered_products_and_dropped_titles():
    source = PairSource(tables([product(number) for number in range(12)]))
    plain, dropped = dataset(source), dataset(source, drop_titles=1.0)
    assert [fingerprint(plain[position]) for position in range(20)] == [
        fingerprint(dropped[position]) for position in range(20)
    ]


def test_a_picture_that_cannot_be_opened_is_left_for_the_processor_to_name():
    broken = ProductRow("p0", title="Thing", images=(b"no picture",))
    pairs = dataset(PairSource(tables([broken])), query_mix={"i": 1})
    assert pairs[0].query["image"] == b"no picture"


def test_positions_outside_and_empty_data_are_refused():
    pairs = dataset(PairSource(tables([product(0)])), length=3)
    with pytest.raises(IndexError, match="position: found 3; expected 0 to 2"):
        pairs[3]
    with pytest.raises(ValueError, match="shop: found no products"):
        PairSource(tables([]))
    with pytest.raises(ValueError, match="shop: weight: found 0"):
        PairSource(tables([product(0)]), weight=0)


@pytest.mark.parametrize("size", [(1, 1), (3, 900), (640, 480)])
def test_a_view_is_an_rgb_picture_that_repeats_for_its_seed(size):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    before = image.tobytes()
    views = [altered_view(image, np.random.default_rng(seed)) for seed in range(30)]
    again = [altered_view(image, np.random.default_rng(seed)) for seed in range(30)]
    assert [view.tobytes() for view in views] == [view.tobytes() for view in again]
    assert all(view.mode == "RGB" and min(view.size) >= 1 for view in views)
    assert image.tobytes() == before


def test_a_view_without_geometry_keeps_every_pixel_in_its_place():
    image = Image.new("RGB", (20, 30), "black")
    image.paste("white", (5, 5, 10, 10))
    view = np.asarray(altered_view(image, np.random.default_rng(1), geometry=False)).astype(int)
    assert view.shape == (30, 20, 3)
    assert view[5:10, 5:10].min() > 100
    assert view[20:].max() < 80
