"""Compute signatures of pictures that survive compression, scaling, a small crop and a change of brightness.

A signature is two perceptual hashes of 64 bits, of the whole picture and of its middle, and a small copy of the picture. The
hash is the sign of each low frequency of the cosine transform against their median (pHash; Zauner, "Implementation and
Benchmarking of Perceptual Image Hash Functions", 2010, §3.2.1). It finds candidates: grey, and blind to details. The distance
of two small copies, which sees colours, decides; it is our design.

Pairs of similar hashes are looked up, not compared one by one: a hash is cut into bands, and two hashes that differ in at most r
bits agree in one of b bands up to ⌊r / b⌋ bits (multi-index hashing; Norouzi, Punjani and Fleet, arXiv 1307.2982, §3).

Shape suffixes: N pictures, H hashes, P pairs, S side of a small copy.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, reduce
from itertools import combinations

import numpy as np
from PIL import Image
from tqdm import tqdm

SIDE = 32
"""Side of the small copy, in pixels."""
BITS, BANDS = 64, 4
MOST_SAME = 200
"""Number of pictures that may share a hash."""
_LOW, _GRID = 8, 32
_MIDDLES = (0.0, 0.02)
"""Margins of the hashed parts of a picture, as shares of its sides: two crops of one picture rarely agree whole to whole."""
_CUT = (0.0, 0.01, 0.02, 0.03)
"""Shares of a side that a crop may have cut off at each end."""
_BLOCK, _MOST_GAIN = 8, 1.4
_NEVER_SAME = 45.0
"""Distance from which pictures are not aligned."""
_NO_DETAILS = SIDE * SIDE * 3.0
"""Sum of squared differences from the neighbourhood below which a picture has no details: one level for each pixel."""
_LOOKUPS = 1 << 14
_PAIRS = 1 << 10


@dataclass(frozen=True)
class Signatures:
    """Signatures of N pictures.

    Args:
        hash_NH: (N, H) uint64 hashes, of the whole picture first.
        small_NSS3: (N, S, S, 3) uint8 small copies.
    """

    hash_NH: np.ndarray
    small_NSS3: np.ndarray

    def __len__(self) -> int:
        return len(self.hash_NH)

    @classmethod
    def of(cls, pictures: Sequence[Image.Image]) -> Signatures:
        """Return the signatures of RGB pictures."""
        hashes = [[picture_hash(picture, margin) for margin in _MIDDLES] for picture in pictures]
        small = [np.asarray(_resized(picture, SIDE, Image.Resampling.BOX)) for picture in pictures]
        return cls(
            np.array(hashes, dtype=np.uint64).reshape(-1, len(_MIDDLES)),
            np.array(small, dtype=np.uint8).reshape(-1, SIDE, SIDE, 3),
        )

    @classmethod
    def joined(cls, parts: Sequence[Signatures]) -> Signatures:
        """Return the signatures of several parts in one."""
        parts = [*parts, cls.of([])]
        return cls(
            np.concatenate([part.hash_NH for part in parts]), np.concatenate([part.small_NSS3 for part in parts])
        )


def picture_hash(picture: Image.Image, margin: float = 0.0) -> int:
    """Return the 64-bit perceptual hash of a picture: bit k is whether frequency k is above the median of all.

    Args:
        picture: an RGB picture.
        margin (`float`): share of each side that is left out on both ends. Default 0.
    """
    width, height = picture.size
    box = (margin * width, margin * height, (1 - margin) * width, (1 - margin) * height)
    grey = picture.convert("L").resize((_GRID, _GRID), Image.Resampling.LANCZOS, box=box, reducing_gap=3.0)
    cosine_LG = _cosines()
    low_LL = cosine_LG @ np.asarray(grey, dtype=np.float64) @ cosine_LG.T
    bits = low_LL.ravel() > np.median(low_LL.ravel()[1:])
    return int(np.packbits(bits).view(">u8")[0])


@cache
def _cosines() -> np.ndarray:
    """Return the lowest frequencies of the cosine transform, (8, 32)."""
    frequency_L1, place_G = np.arange(_LOW)[:, None], np.arange(_GRID)
    return np.cos(np.pi * (2 * place_G + 1) * frequency_L1 / (2 * _GRID))


def _resized(picture: Image.Image, side: int, method: Image.Resampling) -> Image.Image:
    return picture.resize((side, side), method, reducing_gap=3.0)


def similar_hashes(
    hash_NH: np.ndarray, most_bits: int, most_same: int = MOST_SAME, *, progress: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """Return the pairs of pictures with a hash of one and a hash of the other that differ in few bits.

    A hash that many pictures share, such as that of a placeholder "no picture", is evidence of nothing and is not looked up.

    Args:
        hash_NH: (N, H) uint64.
        most_bits (`int`): bits that may differ, 0 to 11: each band is looked up with up to two changed bits.
        most_same (`int`): pictures that may share a hash. Default 200.
        progress (`bool`): whether to show a progress bar. Default True.

    Shapes: returns (P, 2) int64 rows, the smaller first, in ascending order, each once; and (N,) bool, the pictures with a
    hash that too many share.

    Raises:
        ValueError: `most_bits` out of range.
    """
    if not 0 <= most_bits < 3 * BANDS:
        raise ValueError(f"most_bits: found {most_bits}; expected 0 to {3 * BANDS - 1}")
    pictures = np.repeat(np.arange(len(hash_NH)), hash_NH.shape[1])
    values, value_of = np.unique(hash_NH.ravel(), return_inverse=True)
    order = np.lexsort((pictures, value_of))
    holders = _Holders(pictures[order], value_of.ravel()[order], len(values))
    is_common = holders.sizes > most_same
    crowded_N = np.zeros(len(hash_NH), dtype=bool)
    crowded_N[holders.pictures[is_common[holders.value_of]]] = True
    rare = np.flatnonzero(~is_common)
    pairs = [holders.pairs(rare, rare)]
    for left, right in _similar_values(values[rare], most_bits, progress):
        pairs.append(holders.pairs(rare[left], rare[right]))
    pair_P2 = np.sort(np.concatenate(pairs), axis=1)
    key_P = np.unique(pair_P2[:, 0] * max(len(hash_NH), 1) + pair_P2[:, 1])
    pair_P2 = np.stack([key_P // max(len(hash_NH), 1), key_P % max(len(hash_NH), 1)], axis=1)
    return pair_P2[pair_P2[:, 0] != pair_P2[:, 1]], crowded_N


class _Holders:
    """The pictures that have each hash."""

    def __init__(self, pictures: np.ndarray, value_of: np.ndarray, values: int) -> None:
        kept = np.ones(len(pictures), dtype=bool)  # both hashes of one picture may be the same
        kept[1:] = (pictures[1:] != pictures[:-1]) | (value_of[1:] != value_of[:-1])
        self.pictures, self.value_of = pictures[kept], value_of[kept]
        self.sizes = np.bincount(self.value_of, minlength=values)
        self.starts = np.cumsum(self.sizes) - self.sizes

    def pairs(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """Return all pairs of a picture with the hash `left[k]` and one with `right[k]`, (P, 2)."""
        counts = self.sizes[left] * self.sizes[right]
        which = np.repeat(np.arange(len(left)), counts)
        number = np.arange(len(which)) - np.repeat(np.cumsum(counts) - counts, counts)
        first = self.starts[left][which] + number // self.sizes[right][which]
        second = self.starts[right][which] + number % self.sizes[right][which]
        return np.stack([self.pictures[first], self.pictures[second]], axis=1)


def _similar_values(values: np.ndarray, most_bits: int, progress: bool) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield pairs of places of different hashes that differ in at most `most_bits` bits; some come several times."""
    width = BITS // BANDS
    masks = _masks(width, most_bits // BANDS)
    bands = tqdm(range(BANDS), desc="similar pictures", unit="band", delay=3.0, leave=False, disable=not progress)
    for band in bands:
        own = (values >> np.uint64(band * width)) & np.uint64((1 << width) - 1)
        order = np.argsort(own, kind="stable")
        in_order = own[order]
        for start in range(0, len(values), _LOOKUPS):
            rows = np.arange(start, min(start + _LOOKUPS, len(values)))
            for mask in masks:
                wanted = own[rows] ^ mask
                first = np.searchsorted(in_order, wanted, side="left")
                sizes = np.searchsorted(in_order, wanted, side="right") - first
                left = np.repeat(rows, sizes)
                offsets = np.arange(len(left)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
                right = order[np.repeat(first, sizes) + offsets]
                near = (left < right) & (np.bitwise_count(values[left] ^ values[right]) <= most_bits)
                if near.any():
                    yield left[near], right[near]


def _masks(width: int, bits: int) -> np.ndarray:
    """Return the numbers of `width` bits of which at most `bits` are set."""
    chosen = [places for count in range(bits + 1) for places in combinations(range(width), count)]
    return np.array([sum(1 << place for place in places) for places in chosen], dtype=np.uint64)


@dataclass(frozen=True)
class PictureComparison:
    """How P pairs of pictures compare.

    Args:
        distance_P: (P,) float32, how different the colours are, in levels of 0 to 255.
        structure_P: (P,) float32, how similar the details are, from -1 to 1.
    """

    distance_P: np.ndarray
    structure_P: np.ndarray


def compare_pictures(small_NSS3: np.ndarray, pair_P2: np.ndarray) -> PictureComparison:
    """Compare the pictures of pairs, regardless of their light and of a small crop.

    The distance is that of the most different block of a picture, so that one detail of another colour counts, which an average
    over the picture would hide:
    `d(a, b) = max over blocks of mean over pixels x of the block of max(e(x), e'(x))`, with
    `e(x) = min over neighbours y of x of max over channels |√g·a(x) - b(y)/√g|`, and e' with a and b exchanged.

    The structure is the correlation of details, the mean over a small neighbourhood minus that over a large one,
    `s(a, b) = corr(mean₃(a) - mean₇(a), mean₃(b) - mean₇(b))`: two black shoes of one outline differ in their details.

    For both, g is the ratio of their brightness, and a is read in the window of its sides that fits best, or b in one of its
    own, as a crop would show it. Our design.

    Args:
        small_NSS3: (N, S, S, 3) uint8 small copies.
        pair_P2: (P, 2) rows.
    """
    parts = [
        _compare(small_NSS3[part[:, 0]].astype(np.float32), small_NSS3[part[:, 1]].astype(np.float32))
        for part in np.split(pair_P2, range(_PAIRS, len(pair_P2), _PAIRS))
    ]
    return PictureComparison(*(np.concatenate(values) for values in zip(*parts, strict=True)))


def _compare(a_PSS3: np.ndarray, b_PSS3: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if not len(a_PSS3):
        return np.zeros(0, np.float32), np.zeros(0, np.float32)
    half_P111 = np.sqrt(_gain(a_PSS3, b_PSS3))
    a_PSS3, b_PSS3 = np.minimum(a_PSS3 * half_P111, 255), np.minimum(b_PSS3 / half_P111, 255)
    distance_P, structure_P = _block_distance(a_PSS3, b_PSS3), _structure(a_PSS3, b_PSS3)
    cropped = np.flatnonzero(distance_P < _NEVER_SAME)  # a crop does not change more
    a_PSS3, b_PSS3 = a_PSS3[cropped], b_PSS3[cropped]
    for left, right in ((_aligned(a_PSS3, b_PSS3), b_PSS3), (a_PSS3, _aligned(b_PSS3, a_PSS3))) if len(cropped) else ():
        distance_P[cropped] = np.minimum(distance_P[cropped], _block_distance(left, right))
        structure_P[cropped] = np.maximum(structure_P[cropped], _structure(left, right))
    return distance_P, structure_P


def _gain(a_PSS3: np.ndarray, b_PSS3: np.ndarray) -> np.ndarray:
    """Return how much brighter b is than a, (P, 1, 1, 1), within the range of ordinary corrections."""
    square_P, other_P = ((side * side).sum(axis=(1, 2, 3)) for side in (a_PSS3, b_PSS3))
    return np.clip(np.sqrt(other_P / np.maximum(square_P, 1.0)), 1 / _MOST_GAIN, _MOST_GAIN)[:, None, None, None]


def _block_distance(a_PSS3: np.ndarray, b_PSS3: np.ndarray) -> np.ndarray:
    error_PSS = np.maximum(_least_error(a_PSS3, b_PSS3), _least_error(b_PSS3, a_PSS3))
    blocks = SIDE // _BLOCK
    mean_P = error_PSS.reshape(-1, blocks, _BLOCK, blocks, _BLOCK).mean(axis=(2, 4))
    return mean_P.max(axis=(1, 2))


def _least_error(a_PSS3: np.ndarray, b_PSS3: np.ndarray) -> np.ndarray:
    """Return the difference of each pixel of a from the nearest colour in its neighbourhood in b, (P, S, S)."""
    least = np.full(a_PSS3.shape[:3], np.inf, np.float32)
    for shifted in _shifts(b_PSS3, 1):
        np.minimum(least, np.abs(a_PSS3 - shifted).max(axis=-1), out=least)
    return least


def _structure(a_PSS3: np.ndarray, b_PSS3: np.ndarray) -> np.ndarray:
    a_PX, b_PX = (_details(side) for side in (a_PSS3, b_PSS3))
    norm_P = np.sqrt((a_PX * a_PX).sum(axis=1) * (b_PX * b_PX).sum(axis=1))
    # Two pictures without details, such as plain ones, have the same details; one of them has not.
    same_P = ((a_PX * a_PX).sum(axis=1) < _NO_DETAILS) & ((b_PX * b_PX).sum(axis=1) < _NO_DETAILS)
    return np.where(same_P, 1.0, (a_PX * b_PX).sum(axis=1) / np.maximum(norm_P, 1e-6)).astype(np.float32)


def _details(side_PSS3: np.ndarray) -> np.ndarray:
    """Return the mean around each pixel over 3 × 3 minus that over 7 × 7 pixels, (P, S·S·3), with a mean of 0."""
    near, far = (reduce(np.add, _shifts(side_PSS3, most)) / (2 * most + 1) ** 2 for most in (1, 3))
    flat_PX = (near - far).reshape(len(side_PSS3), -1)
    return flat_PX - flat_PX.mean(axis=1, keepdims=True)


def _shifts(side_PSS3: np.ndarray, most: int) -> Iterator[np.ndarray]:
    """Yield pictures shifted by up to `most` pixels in both directions; their edges are repeated."""
    padded = np.pad(side_PSS3, ((0, 0), (most, most), (most, most), (0, 0)), mode="edge")
    for down in range(2 * most + 1):
        for right in range(2 * most + 1):
            yield padded[:, down : down + SIDE, right : right + SIDE]


def _aligned(a_PSS3: np.ndarray, b_PSS3: np.ndarray) -> np.ndarray:
    """Return a in the window of its rows and columns that fits b best, (P, S, S, 3)."""
    columns = np.zeros(len(a_PSS3), dtype=np.int64)  # the first window is the whole side
    for _ in range(2):
        rows = _best_window(_in_columns(a_PSS3, columns), b_PSS3)
        # The columns of a picture are the rows of the transposed one.
        columns = _best_window(_in_rows(a_PSS3, rows).swapaxes(1, 2), b_PSS3.swapaxes(1, 2))
    return _in_columns(_in_rows(a_PSS3, rows), columns)


def _in_rows(a_PSS3: np.ndarray, window_P: np.ndarray) -> np.ndarray:
    """Return pictures in a window of their rows, each in its own."""
    flat_PSX = a_PSS3.reshape(len(a_PSS3), SIDE, SIDE * 3)
    return np.matmul(_windows()[window_P], flat_PSX).reshape(-1, SIDE, SIDE, 3)


def _in_columns(a_PSS3: np.ndarray, window_P: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(_in_rows(np.ascontiguousarray(a_PSS3.swapaxes(1, 2)), window_P).swapaxes(1, 2))


def _best_window(a_PSS3: np.ndarray, b_PSS3: np.ndarray) -> np.ndarray:
    """Return for each pair the number of the window of a's rows with the smallest mean difference."""
    flat_PSX = np.ascontiguousarray(a_PSS3).reshape(len(a_PSS3), SIDE, SIDE * 3)
    wanted_PSX = np.ascontiguousarray(b_PSS3).reshape(len(b_PSS3), SIDE, SIDE * 3)
    errors = [np.abs(np.matmul(window_SS, flat_PSX) - wanted_PSX).mean(axis=(1, 2)) for window_SS in _windows()]
    return np.argmin(errors, axis=0)


@cache
def _windows() -> np.ndarray:
    """Return the (W, S, S) linear interpolations of S pixels that read a window of S pixels along one side."""
    found = []
    for start in _CUT:
        for end in _CUT:
            centre_S = (np.arange(SIDE) + 0.5) * (1 - start - end) + start * SIDE - 0.5
            found.append(np.maximum(0, 1 - np.abs(np.clip(centre_S, 0, SIDE - 1)[:, None] - np.arange(SIDE))))
    return np.array(found, dtype=np.float32)
