"""Answer a search from two rankings, by vectors and by words; each store supplies the rankings.

Legend: Q queries, D embedding.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from retrieval.centring import Centring, content_form, read_form
from retrieval.stores.interface import Hit, StoredProduct, StoreError
from retrieval.stores.ranking import FUSION_DEPTH, Candidate, reciprocal_rank_fusion
from retrieval.stores.where import Where

Batch = dict[str, np.ndarray]
_ATTEMPTS = 5
"""How often a search is repeated during which a writer removes products that it ranked, so that none is missing at the end."""


class RankingStore(ABC):
    """A store whose `search` fuses `nearest` and `matching`."""

    dimension: int
    fingerprint: str
    about: str
    centring: Centring | None = None

    @abstractmethod
    def nearest(
        self, query_QD: np.ndarray, k: int, where: Where | None, forms: Sequence[str], exclude: frozenset[str]
    ) -> list[list[Candidate]]:
        """Return for each query the k products with the nearest vectors, best first, ties in the order of ids."""

    @abstractmethod
    def matching(
        self, words: Sequence[str], k: int, where: Where | None, exclude: frozenset[str]
    ) -> list[list[Candidate]]:
        """Return for each text the k products with the highest BM25 score above 0, best first, ties in the order of ids."""

    @abstractmethod
    def get(self, product_ids: Sequence[str]) -> list[StoredProduct | None]:
        """Return products by id, in the given order; None for an unknown id."""

    @property
    @abstractmethod
    def forms(self) -> tuple[str, ...]:
        """The forms of which the store has vectors."""

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
        """Return for each query the best k products, best first: see `retrieval.stores.interface.Store.search`.

        Raises:
            StoreError: no vectors and no words; another width than the store's; a row that is not finite; a form that the
                store does not have; numbers of vectors and words that differ; or k below 1.
        """
        query_QD, chosen = self._checked(query_QD, words, k, forms)
        leave = frozenset(exclude)
        for _ in range(_ATTEMPTS):
            answers, is_whole = self._answers(query_QD, words, k, where, chosen, leave)
            if is_whole:
                break
        return answers

    def _answers(
        self,
        query_QD: np.ndarray | None,
        words: Sequence[str] | None,
        k: int,
        where: Any,
        chosen: Sequence[str],
        leave: frozenset[str],
    ) -> tuple[list[list[Hit]], bool]:
        """Return the answers, and whether each product that was ranked was still there when its facts were read."""
        depth = k if query_QD is None or words is None else max(k, FUSION_DEPTH)
        nearest = None if query_QD is None else self.nearest(query_QD, depth, where, chosen, leave)
        if words is None:
            return self._hits([{one.product_id: one.score for one in found} for found in nearest or []], nearest, k)
        matching = self.matching(words, depth, where, leave)
        if nearest is None:
            return self._hits([_fused(found) for found in matching], None, k)
        return self._hits([_fused(*pair) for pair in zip(nearest, matching, strict=True)], nearest, k)

    def _checked(
        self, query_QD: np.ndarray | None, words: Sequence[str] | None, k: int, forms: Sequence[str] | None
    ) -> tuple[np.ndarray | None, tuple[str, ...]]:
        if k < 1:
            raise StoreError(f"search: found k = {k}; expected at least 1")
        if query_QD is None and words is None:
            raise StoreError("search: found neither vectors nor words; expected one or both")
        if forms is not None:
            require_forms(forms, self.forms)
        if query_QD is not None:
            query_QD = np.ascontiguousarray(query_QD, dtype=np.float32)
            if query_QD.ndim != 2 or query_QD.shape[1] != self.dimension:
                raise StoreError(
                    f"search: found query vectors of shape {query_QD.shape}; expected (Q, {self.dimension})"
                )
            bad = np.flatnonzero(~np.isfinite(query_QD).all(axis=1))
            if bad.size:
                raise StoreError(f"search: query vector {bad[0]} has a value that is not finite; expected unit vectors")
            if words is not None and len(words) != len(query_QD):
                raise StoreError(
                    f"search: found {len(query_QD)} vectors and {len(words)} texts; expected equal numbers"
                )
        return query_QD, self.forms if forms is None else tuple(dict.fromkeys(forms))

    def _hits(
        self, scores: Sequence[Mapping[str, float]], nearest: list[list[Candidate]] | None, k: int
    ) -> tuple[list[list[Hit]], bool]:
        ranked = [sorted(one.items(), key=lambda pair: (-pair[1], pair[0]))[:k] for one in scores]
        wanted = list(dict.fromkeys(product_id for one in ranked for product_id, _ in one))
        products = dict(zip(wanted, self.get(wanted), strict=True))
        answers = []
        for number, one in enumerate(ranked):
            by_id = {found.product_id: found for found in nearest[number]} if nearest else {}
            hits = []
            for product_id, score in one:
                product, found = products[product_id], by_id.get(product_id)
                if product is not None:  # a writer has removed it in the meantime
                    hits.append(Hit(product, score, found.score if found else None, found.form if found else ""))
            answers.append(hits)
        return answers, None not in products.values()


def _fused(*rankings: Sequence[Candidate]) -> dict[str, float]:
    return reciprocal_rank_fusion([[one.product_id for one in ranking] for ranking in rankings])


def require_forms(forms: Iterable[str], known: Sequence[str]) -> None:
    """Check that a store has vectors of the given forms; an empty store has none, and finds nothing.

    Raises:
        StoreError: it does not.
    """
    unknown = [form for form in forms if form not in known]
    if unknown and known:
        raise StoreError(f"forms: found {unknown[0]!r}; expected some of {', '.join(known)}, which the store has")


def checked_batch(
    products: Sequence[StoredProduct],
    vectors: Mapping[str, np.ndarray],
    dimension: int,
    centring: Centring | None = None,
) -> Batch:
    """Return the vectors of an upsert as float32, after checking them and the products.

    Args:
        products: the products to write.
        vectors: form → (N, D) unit vectors; a row of NaN is a missing vector.
        dimension (`int`): D of the store.
        centring: the store's means by form; a vector is centred by what the model read for it. Default: none.

    Raises:
        StoreError: an id that is empty or occurs twice, a text that is not valid Unicode, a price that is not finite, a wrong
            shape, a vector that is partly NaN or not of length 1, or a product without any vector.
    """
    seen: set[str] = set()
    for product in products:
        _check_product(product, seen)
    batch = {form: np.ascontiguousarray(rows, dtype=np.float32) for form, rows in vectors.items()}
    present_N = np.zeros(len(products), dtype=bool)
    for form, vector_ND in batch.items():
        if not form.isidentifier():
            raise StoreError(f"upsert: found the form {form!r}; expected letters, digits and _")
        if vector_ND.shape != (len(products), dimension):
            raise StoreError(
                f"upsert: found vectors of the form {form!r} with shape {vector_ND.shape}; expected "
                f"({len(products)}, {dimension})"
            )
        missing_N = np.isnan(vector_ND).all(axis=1)
        length_N = np.linalg.norm(vector_ND.astype(np.float64), axis=1)
        bad = np.flatnonzero(~missing_N & ~(np.abs(length_N - 1) < 1e-2))
        if bad.size:
            raise StoreError(
                f"upsert: product {products[bad[0]].product_id!r} has a vector of the form {form!r} with length "
                f"{length_N[bad[0]]:.4g}; expected length 1, or a row of NaN if there is none"
            )
        present_N |= ~missing_N
    if not present_N.all():
        product_id = products[int(np.flatnonzero(~present_N)[0])].product_id
        raise StoreError(f"upsert: product {product_id!r} has no vector; expected a vector of at least one form")
    if centring is not None:
        for form, vector_ND in batch.items():
            batch[form] = centring(vector_ND, [read_form(content_form(product), form) for product in products])
    return batch


def kept_centring(known: Any, wanted: Centring | None, place: str) -> Centring | None:
    """Return the centring of a store from its settings.

    Args:
        known: what `Centring.as_dict` made; None for a store that is not centred.
        wanted: the centring that its opener wants; None for whatever the store has.
        place (`str`): the store's, for the message.

    Raises:
        StoreError: a store that is not centred although its opener wants it, or settings that cannot be read.
    """
    if known is None and wanted is not None:
        raise StoreError(
            f"{place}: found a store whose vectors are not centred by form; expected a new one: remove it, and index again"
        )
    try:
        return None if known is None else Centring.of_dict(known)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise StoreError(f"{place}: found {error!r} in the means by form; expected those of moon3 index") from error


def require_uncentred(centring: Centring | None, purpose: str) -> None:
    """Check that a store's vectors are those that the model made.

    Args:
        centring: the store's.
        purpose (`str`): what reads the vectors, for the message.

    Raises:
        StoreError: the store is centred.
    """
    if centring is not None:
        raise StoreError(
            f"{purpose}: found a store that is centred by form; expected the vectors as the model made them: remove the store "
            "and run moon3 index without --centre"
        )


def _check_product(product: StoredProduct, seen: set[str]) -> None:
    product_id = product.product_id
    if not product_id:
        raise StoreError("upsert: found a product with an empty id; expected an id")
    if product_id in seen:
        raise StoreError(f"upsert: product {product_id!r} occurs twice; expected distinct ids")
    seen.add(product_id)
    if product.price is not None and not np.isfinite(product.price):
        raise StoreError(f"upsert: product {product_id!r} has the price {product.price}; expected a number or None")
    pairs = (text for key, values in product.attributes.items() for text in (key, *values))
    texts = (product_id, product.title, product.description, product.brand, product.currency, product.availability)
    for text in (*texts, product.url, product.digest, *product.category, *product.images, *pairs):
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise StoreError(
                f"upsert: product {product_id!r} has a text with the character {text[error.start]!r}, which is half of a "
                "surrogate pair; expected valid Unicode"
            ) from error
