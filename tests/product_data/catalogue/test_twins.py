"""Listings of the same products: two for each, look-alikes that differ in exactly one attribute, refusals."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from product_data.catalogue.making import differing_keys, plan_products
from product_data.catalogue.twins import draw_twins, product_of
from product_data.errors import OptionError


def picture(listing):
    return np.asarray(Image.open(io.BytesIO(listing["images"][0])).convert("RGB"), dtype=float)


@pytest.mark.parametrize("scene", ["studio", "street"])
def test_each_product_is_listed_twice_in_different_pictures(scene):
    twins = draw_twins(products=12, image_size=64, scene=scene, progress=False)
    ids = [listing["product_id"] for listing in twins.listings]
    assert len(ids) == len(set(ids)) == 24
    assert sorted({listing["product"] for listing in twins.listings}) == [p.product_id for p in plan_products(12)]
    for first, second in zip(twins.listings[::2], twins.listings[1::2], strict=True):
        assert twins.same(first["product_id"], second["product_id"])
        assert product_of(first["product_id"]) == first["product"] == second["product"]
        assert np.abs(picture(first) - picture(second)).mean() > 5
        x0, y0, x1, y1 = second["bbox"]
        assert 0 <= x0 < x1 <= 64
        assert 0 <= y0 < y1 <= 64
    assert not twins.same(ids[0], ids[2])


def test_look_alikes_differ_in_exactly_the_stated_attribute():
    planned = {product.product_id: product for product in plan_products(24)}
    twins = draw_twins(products=24, image_size=64, progress=False)
    for left, right, key in twins.look_alikes:
        assert differing_keys(planned[left], planned[right]) == [key]
    brute = [
        (a, b)
        for a in planned
        for b in planned
        if a < b
        and planned[a].design.kind == planned[b].design.kind
        and len(differing_keys(planned[a], planned[b])) == 1
    ]
    assert [pair[:2] for pair in twins.look_alikes] == brute
    assert {key for *_, key in twins.look_alikes} > {"colour"}


def test_without_near_twins_look_alikes_differ_in_colour_alone():
    twins = draw_twins(products=24, image_size=64, near_twins=False, progress=False)
    assert len(twins.listings) == 24
    assert {key for *_, key in twins.look_alikes} == {"colour"}


def test_a_seed_draws_the_same_listings_again():
    first, again, other = (draw_twins(products=6, seed=seed, image_size=64, progress=False) for seed in (1, 1, 2))
    assert first == again
    assert first.listings[1]["images"] != other.listings[1]["images"]


@pytest.mark.parametrize("wrong", [{"products": 5}, {"image_size": 32}, {"scene": "moon"}])
def test_options_that_draw_nothing_useful_are_refused(wrong):
    with pytest.raises(OptionError, match=next(iter(wrong))):
        draw_twins(**({"products": 6, "image_size": 64, "progress": False} | wrong))
