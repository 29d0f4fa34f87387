"""Search a store of products by words, by a picture, by both, or by a product: a store and the model of its vectors.

Shape suffixes: V vectors of one query, D size of a vector.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from product_data.rows import PRODUCT_FORMS
from retrieval.encode import load_for_evaluation
from retrieval.model_kinds import CheckpointError
from retrieval.queries import Query, SearchError, SearchOptions
from retrieval.query_encoder import EncodedQuery, QueryEncoder, weighted
from retrieval.reasoning_options import check_threshold
from retrieval.stores.interface import Hit, Store, StoredProduct
from retrieval.stores.opening import open_store
from retrieval.upgrade.opening import with_adapter
from retrieval.vectors.fingerprint import model_fingerprint
from retrieval.vectors.vector_files import VectorFolder, is_vector_folder
from retrieval.vectors.vector_types import shortened

Encode = Callable[[Query, str], EncodedQuery]
"""(query, mode of reasoning) → its vectors; raises `SearchError`."""


@dataclass(frozen=True, slots=True)
class Answer:
    """Products that were found for a query, and how.

    Args:
        hits: the products, best first.
        offset (`int`): rank of the first hit, from 0.
        form (`str`): the query's form, see `retrieval.queries.Query.form`.
        reasoned (`bool`): whether the model wrote attributes of the query before its vector was read.
        reasoning: the text that it wrote about each part of the query.
        margin (`float` or `None`): for reasoning "auto", the difference of the cosines of the two best products.
        store (`str`): what was searched, and how: exactly, or with an index.
        milliseconds: part of the work → its time: "encode", "search", "reason".
    """

    hits: tuple[Hit, ...]
    offset: int = 0
    form: str = "t"
    reasoned: bool = False
    reasoning: tuple[str, ...] = ()
    margin: float | None = None
    store: str = ""
    milliseconds: dict[str, float] = field(default_factory=dict)

    def json(self) -> str:
        """Return the answer as JSON text."""
        return json.dumps(self.as_dict(), indent=1, ensure_ascii=False, allow_nan=False)

    def as_dict(self) -> dict[str, Any]:
        """Return the answer in types of JSON."""
        return {
            "query_form": self.form,
            "offset": self.offset,
            "reasoned": self.reasoned,
            "reasoning": list(self.reasoning),
            "margin": self.margin if self.margin is None or math.isfinite(self.margin) else None,
            "store": self.store,
            "milliseconds": {part: round(time_of, 3) for part, time_of in self.milliseconds.items()},
            "hits": [hit_as_dict(hit, self.offset + rank) for rank, hit in enumerate(self.hits, start=1)],
        }


def hit_as_dict(hit: Hit, rank: int) -> dict[str, Any]:
    """Return a hit in types of JSON: rank from 1, score, cosine, form, and the product's facts."""
    return {"rank": rank, "score": hit.score, "cosine": hit.cosine, "form": hit.form} | product_as_dict(hit.product)


def product_as_dict(product: StoredProduct) -> dict[str, Any]:
    """Return the facts of a `StoredProduct` in types of JSON, without its digest."""
    return {
        "product_id": product.product_id,
        "title": product.title,
        "description": product.description,
        "category": list(product.category),
        "attributes": {key: list(values) for key, values in product.attributes.items()},
        "brand": product.brand,
        "price": product.price,
        "currency": product.currency,
        "availability": product.availability,
        "url": product.url,
        "images": list(product.images),
    }


class Searcher:
    """Search a store with the model that made its vectors. Several threads may search at once.

    Args:
        store: from `retrieval.stores.opening.open_store`.
        encoder: the model.
        encode: replaces the call of `encoder.encode_queries` with one query, so that a service can collect the queries of
            several threads. Default: the encoder, one query at a time.

    Raises:
        SearchError: the store's vectors come from another model, or are wider than the model's.

    Relations: `open_searcher` opens both by their places.
    """

    def __init__(self, store: Store, encoder: QueryEncoder, *, encode: Encode | None = None) -> None:
        require_fingerprint(encoder.fingerprint, store)
        if store.dimension > (width := encoder.model.config.vector_size):
            raise SearchError(
                f"model: found vectors of size {width}; expected at least {store.dimension}, the store's size"
            )
        self.store, self.encoder = store, encoder
        self.encode = self._encode_one if encode is None else encode

    def _encode_one(self, query: Query, reasoning: str) -> EncodedQuery:
        encoded = self.encoder.encode_queries([query], reasoning)[0]
        if isinstance(encoded, SearchError):
            raise encoded
        return encoded

    def search(self, query: Query | str, options: SearchOptions | None = None, **changed: Any) -> Answer:
        """Return the best products for a query.

        With a product as the query, each of its vectors is searched, a product's cosine is the largest of them, and the
        product itself is left out. With reasoning "auto", a query first searches without reasoning; if the cosines of its two
        best products differ by less than `threshold`, it reasons and searches again (`modeling_moon.gate_moon.MarginGate`,
        with the products that the search can return as the gallery). A query of a product alone has nothing to reason about.

        Args:
            query: a `Query`, or words.
            options: settings. Default: `SearchOptions()`.
            **changed: settings that differ from `options`: k, offset, where, forms, words, reasoning, threshold.

        Raises:
            SearchError: options that `SearchOptions` refuses; an unreadable picture; an unknown product, or one without a
                vector of the forms; words=True without words, or with a product; reasoning that the model does not support.
            StoreError: a filter that the store cannot apply, or an unknown field.
        """
        chosen = replace(options or SearchOptions(), **changed)
        query = Query(text=query) if isinstance(query, str) else query
        self._check(query, chosen)
        times: dict[str, float] = {}
        reasons = bool(query.records())
        first = "generate" if chosen.reasoning == "generate" and reasons else "none"
        with _timed(times, "encode"):
            encoded = self.encode(query, first)
            vector_VD = self._vectors(query, encoded, chosen)
        margin = None
        if chosen.reasoning == "auto" and reasons:
            with _timed(times, "search"):
                margin = self._margin(vector_VD, query, chosen)
            if margin < check_threshold("auto", chosen.threshold):
                with _timed(times, "reason"):
                    encoded = self.encode(query, "generate")
                    vector_VD = self._vectors(query, encoded, chosen)
        with _timed(times, "search"):
            hits = self._ranked(vector_VD, query, chosen, chosen.offset + chosen.k)[chosen.offset :]
        return Answer(
            tuple(hits),
            offset=chosen.offset,
            form=query.form,
            reasoned=bool(encoded.reasoning),
            reasoning=encoded.reasoning,
            margin=margin,
            store=self.store.about,
            milliseconds=times,
        )

    def vectors(self, query: Query, forms: Sequence[str] | None = None) -> np.ndarray:
        """Return the (V, D) float32 unit vectors that a query searches with, without reasoning.

        Args:
            query: a query; one of a product has a vector for each of its forms, any other one vector.
            forms: forms of the product's vectors. Default: all.

        Raises:
            SearchError: see `search`.
        """
        chosen = SearchOptions(forms=forms)
        self._check(query, chosen)
        return self._vectors(query, self.encode(query, "none"), chosen)

    def _check(self, query: Query, chosen: SearchOptions) -> None:
        if chosen.words and (not query.has_text or query.like is not None):
            raise SearchError(
                f"words: found a query of the form {query.form!r}; expected words, alone or with a picture, to rank by"
            )
        if chosen.reasoning != "none":
            self.encoder.check_reasoning("generate")
        if query.like is not None and self.store.get([query.like])[0] is None:
            raise SearchError(
                f"like: found product id {query.like!r}; expected the id of one of the {self.store.count():,} products "
                "of the store"
            )

    def _vectors(self, query: Query, encoded: EncodedQuery, chosen: SearchOptions) -> np.ndarray:
        """Return the (V, D) vectors to search: one, or with a product one for each of its forms."""
        own_RD = shortened(encoded.vectors_RD, self.store.dimension)
        if self.store.centring is not None:
            own_RD = self.store.centring(own_RD, query.record_forms)
        if query.like is not None:
            other_VD = self._liked(query.like, chosen.forms)
            return other_VD if query.weight is None else weighted(own_RD[0], other_VD, query.weight)
        return own_RD if query.weight is None else weighted(own_RD[0], own_RD[1:], query.weight)

    def _liked(self, product_id: str, forms: Sequence[str] | None) -> np.ndarray:
        stored = [self.store.vectors([product_id], form) for form in (forms or PRODUCT_FORMS)]
        vector_VD = np.concatenate(stored)
        vector_VD = vector_VD[np.isfinite(vector_VD).all(axis=1)]
        if not len(vector_VD):
            raise SearchError(
                f"like: product {product_id!r} has no vector of the forms {', '.join(forms or PRODUCT_FORMS)}"
            )
        return vector_VD

    def _margin(self, vector_VD: np.ndarray, query: Query, chosen: SearchOptions) -> float:
        """Return the difference of the cosines of the two best products; infinite if there are fewer."""
        best = [hit.cosine for hit in self._ranked(vector_VD, query, chosen, 2, words=False) if hit.cosine is not None]
        return best[0] - best[1] if len(best) > 1 else math.inf

    def _ranked(
        self, vector_VD: np.ndarray, query: Query, chosen: SearchOptions, k: int, *, words: bool | None = None
    ) -> list[Hit]:
        texts = [query.text] * len(vector_VD) if (chosen.words if words is None else words) else None
        exclude = () if query.like is None else (query.like,)
        found = self.store.search(vector_VD, words=texts, k=k, where=chosen.where, forms=chosen.forms, exclude=exclude)
        if len(found) == 1:
            return found[0]
        best: dict[str, Hit] = {}
        for hit in (hit for hits in found for hit in hits):
            known = best.get(hit.product.product_id)
            if known is None or hit.score > known.score:
                best[hit.product.product_id] = hit
        return sorted(best.values(), key=lambda hit: (-hit.score, hit.product.product_id))[:k]


@contextmanager
def _timed(times: dict[str, float], part: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    times[part] = times.get(part, 0.0) + 1000 * (time.perf_counter() - start)


@contextmanager
def open_searcher(place: str | Path, *, model: str | None = None, device: str | None = None) -> Iterator[Searcher]:
    """Open a store and the model that made its vectors; the store is closed at the end of the `with` block.

    The fingerprints are compared before the model is loaded. A new model searches an old one's vectors through the adapter
    that `moon3 upgrade` wrote beside them.

    Args:
        place: a folder of `moon3 embed`, or "qdrant=URL/COLLECTION", see `retrieval.stores.opening.open_store`.
        model: folder or hub id of the model: that of the vectors, or one with an adapter. Default: the one that made the
            vectors of the folder.
        device: device of the model. Default: the first GPU, or else the CPU.

    Raises:
        SearchError: a place that names no model, or a model that neither made the vectors nor has an adapter.
        StoreError, VectorFileError, UpgradeError: a store or an adapter that cannot be opened.
        CheckpointError: a model that cannot be loaded.
    """
    store = open_store(place)
    try:
        name, fingerprint = _named_model(place) if model is None else (model, model_fingerprint(model))
        store = with_adapter(store, place, fingerprint)
        require_fingerprint(fingerprint, store, name, place)
        yield Searcher(store, QueryEncoder(*load_for_evaluation(name, device=device), fingerprint))
    finally:
        store.close()


def _named_model(place: str | Path) -> tuple[str, str]:
    """Return the model that a folder of vectors names, and its fingerprint."""
    if not is_vector_folder(place):
        raise SearchError(f"{place}: found no name of a model; expected --model, the model that made its vectors")
    name = VectorFolder(place).embedding.model
    try:
        return name, model_fingerprint(name)
    except CheckpointError as error:
        raise SearchError(
            f"{place} was made with the model {name!r}, which is not here ({error}); expected --model and its place"
        ) from error


def require_fingerprint(fingerprint: str, store: Store, model: str = "", place: str | Path | None = None) -> None:
    """Check that a model made the vectors of a store.

    Args:
        fingerprint (`str`): the model's.
        store: the store.
        model (`str`): the model's name, for the message. Default "".
        place: the store's place; for a folder of vectors the message names the command that fits an adapter. Default: none.

    Raises:
        SearchError: another model made them.
    """
    if fingerprint != store.fingerprint:
        adapted = place is not None and is_vector_folder(place)
        raise SearchError(
            f"model{f' {model}' if model else ''}: found fingerprint {fingerprint or 'none'!r}; "
            f"expected {store.fingerprint!r}, that of the model which made the store's vectors"
            + (
                f", or a model with an adapter for them: run moon3 upgrade {place} {model or 'MODEL'}"
                if adapted
                else ""
            )
        )
