"""Signatures of pictures: what changes them, how similar ones are looked up, and the distance that decides."""

from __future__ import annotations

import random

import numpy as np
import pytest
from pictures import noise
from PIL import Image

from processing_moon import open_image
from product_data.catalogue.making import make_catalogue
from product_data.catalogue.planted_duplicates import PICTURE_CHANGES, altered
from product_data.preparation.picture_signatures import (
    Signatures,
    compare_pictures,
    picture_hash,
    similar_hashes,
)


def distances(small_NSS3, pair_P2):
    return compare_pictures(small_NSS3, pair_P2).distance_P


@pytest.fixture(scope="module")
def drawn():
    rows, _ = make_catalogue(products=24, seed=5, queries_per_product=0, progress=False)
    return [open_image(row["images"][0]) for row in rows]


@pytest.mark.parametrize("bits", [0, 3, 7, 10])
def test_the_lookup_finds_exactly_the_pairs_that_comparing_all_of_them_finds(bits):
    rng = np.random.default_rng(0)
    seeds = rng.integers(0, 2**63, 40, dtype=np.uint64)
    hashes = []
    for seed in seeds:
        for _ in range(3):
            flips = rng.choice(64, rng.choice((0, 0, 1, 2, 5)), replace=False)
            hashes.append(seed ^ np.uint64(sum(1 << int(place) for place in flips)))
    hash_NH = np.array(hashes, dtype=np.uint64).reshape(-1, 2)
    found, crowded = similar_hashes(hash_NH, bits)
    least = np.bitwise_count(hash_NH[:, None, :, None] ^ hash_NH[None, :, None, :]).min(axis=(2, 3))
    expected = {(a, b) for a in range(len(least)) for b in range(a) if least[a, b] <= bits}
    assert {(b, a) for a, b in map(tuple, found.tolist())} == expected
    assert len(found) == len(expected) > 0
    assert not crowded.any()


def test_a_picture_that_too_many_products_show_is_looked_up_for_none():
    hash_NH = np.array([[1, 2]] * 5 + [[7 << 40, 9 << 50], [7 << 40, 9 << 50]], dtype=np.uint64)
    found, crowded = similar_hashes(hash_NH, 0, most_same=4)
    assert found.tolist() == [[5, 6]]
    assert crowded.tolist() == [True] * 5 + [False] * 2


@pytest.mark.parametrize("bits", [-1, 12])
def test_a_number_of_bits_that_the_lookup_would_miss_is_refused(bits):
    with pytest.raises(ValueError, match=f"most_bits: found {bits}; expected 0 to 11"):
        similar_hashes(np.zeros((1, 1), np.uint64), bits)


def test_nothing_is_found_among_no_pictures_and_one():
    for pictures in ([], [noise()]):
        signatures = Signatures.of(pictures)
        found, crowded = similar_hashes(signatures.hash_NH, 10)
        assert (found.shape, len(crowded)) == ((0, 2), len(pictures))
        assert distances(signatures.small_NSS3, found).shape == (0,)


def test_the_hash_is_the_sign_of_the_low_frequencies_of_the_cosine_transform():
    from scipy.fft import dctn

    picture = noise(64, 64, 3)
    grey = np.asarray(picture.convert("L").resize((32, 32), Image.Resampling.LANCZOS), dtype=float)
    low = dctn(grey)[:8, :8].ravel()
    bits = "".join("1" if value > np.median(low[1:]) else "0" for value in low)
    assert picture_hash(picture) == int(bits, 2)


@pytest.mark.parametrize("change", PICTURE_CHANGES)
def test_an_altered_picture_is_nearer_than_any_other_product(drawn, change):
    rng = random.Random(change)
    pictures = drawn + [altered(picture, change, rng) for picture in drawn]
    small = Signatures.of(pictures).small_NSS3
    count = len(drawn)
    own = distances(small, np.array([[row, count + row] for row in range(count)]))
    others = distances(small, np.array([[row, count + (row + 6) % count] for row in range(count)]))
    assert own.max() < others.min()


def test_the_distance_is_symmetric_and_zero_for_the_same_picture(drawn):
    small = Signatures.of(drawn[:6]).small_NSS3
    forth, back = (distances(small, np.array(pairs)) for pairs in ([[0, 1], [2, 5]], [[1, 0], [5, 2]]))
    np.testing.assert_allclose(forth, back, rtol=1e-3)
    assert distances(small, np.array([[3, 3]])).tolist() == [0]


def test_another_colour_is_far_although_its_hash_is_the_same():
    picture = noise(40, 40, 1).resize((120, 120))
    red, green, blue = picture.split()
    other = Image.merge("RGB", (blue, red, green))
    grey = [image.convert("L").convert("RGB") for image in (picture, picture)]
    assert picture_hash(grey[0]) == picture_hash(grey[1])
    assert distances(Signatures.of([picture, other]).small_NSS3, np.array([[0, 1]]))[0] > 20
