"""Define what a store of product vectors keeps and answers; `exact`, `embedded` and `served` implement it.

A store holds, for each product, its facts (`StoredProduct`) and one unit vector for each form that it was embedded in.
All its vectors come from one model: a store knows the model's fingerprint and refuses vectors of another.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from product_data.feeds.feed_product import UNKNOWN
from retrieval.centring import Centring


class StoreError(ValueError):
    """A store that cannot be opened, or a request that it cannot answer; says what was found and what is expected."""

    exit_status = 2


class StoreBusyError(StoreError):
    """Another process writes to the store; the same write can succeed later."""


CLIENT_DIGEST = "api:"
"""Start of the digest of a product that a client of the service wrote: it is not in the feed, and stays when that is indexed."""


@dataclass(frozen=True, slots=True)
class StoredProduct:
    """What a store keeps of a product besides its vectors: what a search filters by, ranks words by, and shows.

    Args:
        product_id (`str`): its id.
        title, description (`str`): texts; words are searched in them and in brand, category and attributes.
        category: levels, root first.
        attributes: key → values.
        brand (`str`), price (`float` or `None`), currency (`str`), availability (`str`), url (`str`): as in
            `product_data.feeds.feed_product.FeedProduct`.
        images: paths or URLs of its pictures; the first one is shown.
        digest (`str`): hash of these facts and of the contents that its vectors were made from; a store whose product has
            the same digest is up to date. It starts with `CLIENT_DIGEST` if a client wrote the product, not a feed.
    """

    product_id: str
    title: str = ""
    description: str = ""
    category: tuple[str, ...] = ()
    attributes: dict[str, tuple[str, ...]] = field(default_factory=dict)
    brand: str = ""
    price: float | None = None
    currency: str = ""
    availability: str = UNKNOWN
    url: str = ""
    images: tuple[str, ...] = ()
    digest: str = ""


@dataclass(frozen=True, slots=True)
class Hit:
    """One answer of a search.

    Args:
        product: the product.
        score (`float`): what the ranking is by: cosine of the query's and the product's vector; with words, the sum of
            reciprocal ranks.
        cosine (`float` or `None`): the cosine; `None` for a product that only the words found.
        form (`str`): form of the product's vector that is nearest; "" without a vector.
    """

    product: StoredProduct
    score: float
    cosine: float | None = None
    form: str = ""


class Store(Protocol):
    """A store of product vectors and facts.

    Writes are complete when the call returns, and are seen by the next search. One process writes at a time.
    """

    dimension: int
    fingerprint: str
    """Fingerprint of the model whose vectors the store holds: see `retrieval.vectors.fingerprint`."""
    about: str
    """What the store is and where, for messages: "exact search in memory over …"."""

    @property
    def centring(self) -> Centring | None:
        """The means by form that the store subtracts from the vectors of `upsert`, and that queries need too; or None."""
        ...

    @property
    def forms(self) -> tuple[str, ...]:
        """The forms of which the store has vectors."""
        ...

    def upsert(self, products: Sequence[StoredProduct], vectors: Mapping[str, np.ndarray]) -> None:
        """Add products, or replace those with the same ids.

        Args:
            products: distinct ids.
            vectors: form → (N, D) float32 unit vectors, row n for `products[n]`; a row of NaN means that the product has
                no vector of this form.

        Raises:
            StoreError: a wrong dimension, a vector that is not of length 1, a product without any vector, an id that is empty
                or occurs twice, a text that is not valid Unicode, or another process that writes to the store.
        """
        ...

    def delete(self, product_ids: Iterable[str]) -> int:
        """Remove products; return how many of the ids were in the store."""
        ...

    def get(self, product_ids: Sequence[str]) -> list[StoredProduct | None]:
        """Return products by id, in the given order; None for an unknown id."""
        ...

    def vectors(self, product_ids: Sequence[str], form: str) -> np.ndarray:
        """Return (N, D) float32 vectors by id; a row of NaN where there is none."""
        ...

    def search(
        self,
        query_QD: np.ndarray | None,
        *,
        words: Sequence[str] | None = None,
        k: int = 10,
        where: Any = None,
        forms: Sequence[str] | None = None,
        exclude: Iterable[str] = (),
    ) -> list[list[Hit]]:
        """Return for each query the best k products, best first; ties are in the order of ids.

        Args:
            query_QD: (Q, D) float32 unit vectors; `None` searches words alone.
            words: Q texts, ranked by BM25 and fused with the vectors by reciprocal rank. Default: vectors alone.
            k (`int`): number of products. Default 10.
            where (`retrieval.stores.where.Where` or `None`): only products for which it holds. The filter comes first: k
                products are found if k satisfy it.
            forms: forms of vectors to search; a product's cosine is that of its nearest vector. Default: all.
            exclude: product ids to leave out.
        """
        ...

    def products(self, where: Any = None) -> Iterator[StoredProduct]:
        """Iterate over the products in the order of ids."""
        ...

    def digests(self) -> dict[str, str]:
        """Return product id → digest of every product."""
        ...

    def count(self, where: Any = None) -> int:
        """Return the number of products."""
        ...

    def facets(self, where: Any = None, *, limit: int = 20) -> dict[str, dict[str, int]]:
        """Return for "category", "brand" and "availability" value → number of products, the most frequent first.

        A product counts once for each level of its category; the key of a level is its path, such as "Shoes > Boots". Empty
        values are not counted.
        """
        ...

    def compact(self) -> str:
        """Merge small files, remove old versions, bring the indices up to date; return a sentence on what was done."""
        ...

    def close(self) -> None:
        """Release files and connections."""
        ...
