"""Find products that are listed more than once: the same product with another picture file, wording or set of attributes.

MOON Embedding (arXiv 2511.11305) removes near-duplicates from its training data; the rules are our design:

- Two products are candidates if they are identical to a model, their pictures' hashes are similar, all words of their texts are
  the same and one of them has no picture, or their vectors are near.
- Products that contradict each other are never the same: a key of their attributes has no value in common (also a size or a
  colour that the titles name), or the numbers in the titles differ. So variants stay apart, however similar they look.
- Candidates by pictures or vectors also need similar titles; a placeholder that many products show is no evidence.
- Pairs are joined in the order of their scores, and two groups are not joined if any two of their products contradict each
  other (precedent: the cannot-link constraints of COP-KMeans, Wagstaff et al. 2001).

Relations: `product_data.duplicates` finds what is equal byte by byte. `retrieval.decisions` decides about pairs with a promised
precision, from labelled pairs.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Protocol

import numpy as np
from tqdm import tqdm

from product_data.duplicates import EqualProducts, classes
from product_data.errors import OptionError
from product_data.preparation.entities import EntityDictionary, ProductFacts
from product_data.preparation.picture_signatures import (
    PictureComparison,
    Signatures,
    compare_pictures,
    similar_hashes,
)
from product_data.rows import ProductRow

IDENTICAL, PICTURES, TEXTS, VECTORS = REASONS = ("identical", "pictures", "texts", "vectors")
_MOST_OF_ONE_TEXT = 200


class NearVectors(Protocol):
    """Find products with similar vectors; `retrieval.near_vectors` reads those of `moon3 embed`."""

    digest: str
    """Identifies the vectors."""

    def pairs(self, product_ids: Sequence[str], least_cosine: float) -> tuple[np.ndarray, np.ndarray]:
        """Return (P, 2) places in `product_ids` of pairs with at least this cosine, and their (P,) cosines."""


@dataclass(frozen=True)
class DuplicateOptions:
    """When two products are the same.

    The defaults were chosen on planted duplicates of other seeds than those that are reported, see
    `evaluation.near_duplicates_study`.

    Args:
        picture_distance (`float`): largest distance of the first pictures, in levels of 0 to 255; see
            `picture_signatures.compare_pictures`. Default 18.
        structure (`float`): least correlation of their details, in [-1, 1]; see there. Default 0.95.
        title_similarity (`float`): least share of common words of the titles, in [0, 1], for candidates by pictures or
            vectors. Default 0.3.
        cosine (`float`): least cosine of vectors, in [-1, 1]. Default 0.98. It depends on the model.
        hash_bits (`int`): bits in which the hashes of candidates may differ, 0 to 11. Default 10.

    Raises:
        OptionError: a value out of range.
    """

    picture_distance: float = 18.0
    structure: float = 0.95
    title_similarity: float = 0.3
    cosine: float = 0.98
    hash_bits: int = 10

    def __post_init__(self) -> None:
        for name, least, most in (
            ("picture_distance", 0, 255),
            ("structure", -1, 1),
            ("title_similarity", 0, 1),
            ("cosine", -1, 1),
            ("hash_bits", 0, 11),
        ):
            if not least <= getattr(self, name) <= most:
                raise OptionError(f"{name}: found {getattr(self, name)}; expected a number from {least} to {most}")


@dataclass(frozen=True)
class DuplicatePair:
    """Two products that are the same.

    Args:
        left, right (`int`): rows of the products, the smaller first.
        reason (`str`): one of `REASONS`.
        score (`float`): 1 for identical products and texts, `1 - distance / 255` for pictures, the cosine for vectors.
        titles (`float`): similarity of the titles.
    """

    left: int
    right: int
    reason: str
    score: float
    titles: float = 1.0


@dataclass(frozen=True)
class DuplicateGroup:
    """Products that are the same.

    Args:
        rows: the products, ascending.
        kept (`int`): the product that stays if the others are removed: the one with most attributes and pictures, of these
            the first.
        joined_by: row → the pair with the best score that joins this product to another one of the group.
    """

    rows: tuple[int, ...]
    kept: int
    joined_by: dict[int, DuplicatePair]


class DuplicateFinder:
    """Find duplicates among the products of a catalogue.

    Args:
        products: N products, of all splits.
        signatures: signatures of M first pictures.
        pictured: the rows of the products that these belong to, ascending.
        vectors: finds near vectors. Default `None`: vectors are not compared.
        progress (`bool`): whether to show progress bars. Default True.
    """

    def __init__(
        self,
        products: Sequence[ProductRow],
        signatures: Signatures,
        pictured: np.ndarray,
        vectors: NearVectors | None = None,
        progress: bool = True,
    ) -> None:
        self._hidden = not progress
        self.products, self.signatures, self.pictured, self.vectors = products, signatures, pictured, vectors
        dictionary = EntityDictionary(products)
        bar = tqdm(products, desc="facts of products", unit="product", delay=3.0, leave=False, disable=not progress)
        self.facts = [ProductFacts.of(row, dictionary) for row in bar]
        self._comparisons: dict[tuple[int, float], tuple[np.ndarray, list[float], PictureComparison]] = {}
        self.crowded = 0
        """Number of pictures that too many products share."""

    def pairs(self, options: DuplicateOptions) -> list[DuplicatePair]:
        """Return the pairs of same products, the best scores first; of several reasons for a pair, the best score counts."""
        best: dict[tuple[int, int], DuplicatePair] = {}
        for found in (self._identical(), self._by_texts(), self.by_pictures(options), self.by_vectors(options)):
            for pair in found:
                known = best.get((pair.left, pair.right))
                if known is None or pair.score > known.score:
                    best[pair.left, pair.right] = pair
        return sorted(best.values(), key=lambda pair: (-pair.score, -pair.titles, pair.left, pair.right))

    def groups(self, pairs: Iterable[DuplicatePair]) -> tuple[list[DuplicateGroup], list[DuplicatePair]]:
        """Join pairs into groups, in their order, and return also the pairs that would join contradicting products."""
        members = {row: [row] for row in range(len(self.products))}
        refused: list[DuplicatePair] = []
        joining: dict[int, list[DuplicatePair]] = defaultdict(list)
        for pair in pairs:
            left, right = members[pair.left], members[pair.right]
            if left is not right and any(self.facts[a].contradicts(self.facts[b]) for a in left for b in right):
                refused.append(pair)
                continue
            for row in (pair.left, pair.right):
                joining[row].append(pair)
            if left is not right:
                left += right
                members |= dict.fromkeys(right, left)
        found = {id(rows): sorted(rows) for rows in members.values() if len(rows) > 1}
        return [self._group(rows, joining) for rows in sorted(found.values())], refused

    def _group(self, rows: list[int], joining: dict[int, list[DuplicatePair]]) -> DuplicateGroup:
        def richness(row: int) -> tuple[int, int, int]:
            product = self.products[row]
            return len(product.attributes), len(product.images), -row

        return DuplicateGroup(tuple(rows), max(rows, key=richness), {row: joining[row][0] for row in rows})

    def _identical(self) -> Iterator[DuplicatePair]:
        """Yield products that look the same to a model, each with the first one."""
        for first, *others in classes(EqualProducts(self.products).identical()):
            yield from (DuplicatePair(first, other, IDENTICAL, 1.0) for other in others)

    def _by_texts(self) -> Iterator[DuplicatePair]:
        """Yield products with the same words, in any order, and the same category, if one of each pair has no picture."""
        has_picture = np.zeros(len(self.products), dtype=bool)
        has_picture[self.pictured] = True
        same: dict[tuple[object, ...], list[int]] = defaultdict(list)
        for row, (product, facts) in enumerate(zip(self.products, self.facts, strict=True)):
            if len(facts.words) > 1:
                category = tuple(name.casefold() for name in product.category)
                same[tuple(sorted(facts.words)), facts.description, category].append(row)
        for rows in same.values():
            if len(rows) > _MOST_OF_ONE_TEXT:  # a text that so many products share describes none of them
                continue
            for left, right in combinations(rows, 2):
                pictures = has_picture[left] and has_picture[right]
                if not pictures and not self.facts[left].contradicts(self.facts[right]):
                    yield DuplicatePair(left, right, TEXTS, 1.0)

    def by_pictures(self, options: DuplicateOptions) -> Iterator[DuplicatePair]:
        """Yield products whose first pictures are the same, however they were compressed, scaled or lit."""
        row_P2, similarity, compared = self._compared(options)
        same_P = (compared.distance_P <= options.picture_distance) & (compared.structure_P >= options.structure)
        for place_of in np.flatnonzero(same_P).tolist():
            left, right = row_P2[place_of].tolist()
            closeness = 1 - float(compared.distance_P[place_of]) / 255
            yield DuplicatePair(left, right, PICTURES, closeness, similarity[place_of])

    def _compared(self, options: DuplicateOptions) -> tuple[np.ndarray, list[float], PictureComparison]:
        """Return candidates by pictures, the similarities of their titles, and how their pictures compare; computed once."""
        key = options.hash_bits, options.title_similarity
        if key not in self._comparisons:
            place_P2, crowded = similar_hashes(self.signatures.hash_NH, options.hash_bits, progress=not self._hidden)
            self.crowded = int(crowded.sum())
            row_P2, similarity = self._compatible(self.pictured[place_P2], options)
            place = {int(row): number for number, row in enumerate(self.pictured)}
            places = np.array([[place[a], place[b]] for a, b in row_P2.tolist()], dtype=np.int64).reshape(-1, 2)
            self._comparisons[key] = row_P2, similarity, compare_pictures(self.signatures.small_NSS3, places)
        return self._comparisons[key]

    def by_vectors(self, options: DuplicateOptions) -> Iterator[DuplicatePair]:
        """Yield products with near vectors."""
        if self.vectors is None:
            return
        pair_P2, cosine_P = self.vectors.pairs([row.product_id for row in self.products], options.cosine)
        cosine_of = {(int(a), int(b)): float(cosine) for (a, b), cosine in zip(pair_P2, cosine_P, strict=True)}
        row_P2, similarity = self._compatible(pair_P2, options)
        for (left, right), titles in zip(row_P2.tolist(), similarity, strict=True):
            yield DuplicatePair(left, right, VECTORS, min(cosine_of[left, right], 1.0), titles)

    def _compatible(self, row_P2: np.ndarray, options: DuplicateOptions) -> tuple[np.ndarray, list[float]]:
        """Return the pairs of rows that do not contradict each other and have similar titles, and these similarities."""
        kept, similarity = [], []
        bar = tqdm(row_P2.tolist(), desc="candidates", unit="pair", delay=3.0, leave=False, disable=self._hidden)
        for left, right in bar:
            titles = self.facts[left].similarity(self.facts[right])
            if titles >= options.title_similarity and not self.facts[left].contradicts(self.facts[right]):
                kept.append((left, right))
                similarity.append(titles)
        return np.array(kept, dtype=np.int64).reshape(-1, 2), similarity
