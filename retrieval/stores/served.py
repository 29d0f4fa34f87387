"""Keep a catalogue in a Qdrant collection: on a server, or through the client's local mode in a folder or in memory.

Each form is a named vector. The words are a sparse vector of BM25 weights without idf; Qdrant multiplies them by the idf of
its collection. A product is a point whose id is derived from the product's id.

Legend: Q queries, N products, P candidates of a pool, D embedding.
"""

from __future__ import annotations

import uuid
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from qdrant_client import QdrantClient, models

from product_data.rows import PRODUCT_FORMS
from retrieval.bm25 import saturation
from retrieval.centring import Centring
from retrieval.stores.facts import (
    attribute_pairs,
    category_paths,
    from_json,
    most_frequent,
    searched_words,
    split_words,
    to_json,
)
from retrieval.stores.interface import StoredProduct, StoreError
from retrieval.stores.postings import FACETS
from retrieval.stores.ranking import SAME_SCORE, TIE, Candidate, best, exact_cosines, pool_sizes, rounded
from retrieval.stores.searching import RankingStore, checked_batch, kept_centring
from retrieval.stores.where import Condition, Where

WORDS = "words"
MEMORY = ":memory:"
DRIFT = 0.05
"""`compact` writes the weights of words again once the mean length of texts changed by this share."""
_CHUNK = 256
_NAMES = uuid.UUID("6f1d3c1e-5a0b-4d0e-9a0c-6d6f6f6e3300")


class ServedStore(RankingStore):
    """A store in Qdrant. Exact by default; `exact=False` uses the server's HNSW index for vectors.

    The weights of words assume the mean length of texts of the first upsert; `compact` corrects them when it has moved by more
    than 5 %.

    Args:
        address (`str`): URL of a server; a folder for local mode, which one process at a time can open; or ":memory:".
        collection (`str`): its name.
        dimension (`int`), fingerprint (`str`): of a collection to create; an existing one must agree. Default: an existing
            collection.
        centring: means by form of a collection to create; an existing centred one keeps its own. Default: none.
        exact (`bool`): search vectors exactly on the server. Default `True`. Local mode is always exact.

    Raises:
        StoreError: a server or folder that cannot be opened, no such collection, one that is not ours or not centred if
            `centring` is given, or another dimension or fingerprint.
    """

    def __init__(
        self,
        address: str,
        collection: str,
        dimension: int | None = None,
        fingerprint: str | None = None,
        centring: Centring | None = None,
        *,
        exact: bool = True,
    ) -> None:
        self.about = f"Qdrant collection {collection!r} at {address}"
        self.collection, self.exact = collection, exact
        self.is_server = address.startswith(("http://", "https://"))
        self._client = self._connected(address)
        if not self._exists():
            if dimension is None or fingerprint is None:
                raise StoreError(f"{self.about}: found no such collection; expected one that moon3 index made")
            try:
                self._create(dimension, fingerprint, centring)
            except Exception as error:  # see `_connected`
                raise StoreError(f"{self.about}: cannot be made ({error}); expected another name") from error
        metadata = self._client.get_collection(collection).config.metadata or {}
        try:
            self.dimension, self.fingerprint = int(metadata["dimension"]), str(metadata["fingerprint"])
        except (KeyError, TypeError, ValueError) as error:
            raise StoreError(f"{self.about}: found the metadata {metadata}; expected those of moon3 index") from error
        if (dimension or self.dimension, fingerprint or self.fingerprint) != (self.dimension, self.fingerprint):
            raise StoreError(
                f"{self.about}: found vectors of the model {self.fingerprint!r} with {self.dimension} dimensions; expected "
                f"{fingerprint!r} with {dimension}. Use another collection for another model"
            )

        self.centring = kept_centring(metadata.get("centring"), centring, self.about)
        if self.centring is not None:
            self.about += ", centred by form"

    def _connected(self, address: str) -> QdrantClient:
        try:
            if self.is_server:
                client = QdrantClient(url=address, check_compatibility=False)
            else:
                client = QdrantClient(address) if address == MEMORY else QdrantClient(path=address)
            client.get_collections()
        except Exception as error:  # the client raises errors of its transports, which have no common class
            raise StoreError(
                f"{self.about}: cannot be opened ({error}); expected a running server or a folder"
            ) from error
        return client

    def _exists(self) -> bool:
        try:
            return bool(self._client.collection_exists(self.collection))
        except Exception as error:  # see `_connected`
            raise StoreError(f"{self.about}: cannot be opened ({error}); expected another name") from error

    def _create(self, dimension: int, fingerprint: str, centring: Centring | None) -> None:
        self._client.create_collection(
            self.collection,
            vectors_config={
                form: models.VectorParams(size=dimension, distance=models.Distance.DOT) for form in PRODUCT_FORMS
            },
            sparse_vectors_config={WORDS: models.SparseVectorParams(modifier=models.Modifier.IDF)},
            metadata={"dimension": dimension, "fingerprint": fingerprint}
            | ({} if centring is None else {"centring": centring.as_dict()}),
        )
        if self.is_server:  # local mode has no indices of payloads
            types = dict.fromkeys(("brand", "availability", "category_paths", "attribute_pairs"), "keyword")
            for name, type_name in (types | {"price": "float"}).items():
                self._client.create_payload_index(self.collection, name, models.PayloadSchemaType(type_name))

    @property
    def forms(self) -> tuple[str, ...]:
        """The forms of which the store has vectors."""
        return tuple(form for form in sorted(PRODUCT_FORMS) if self._count(_having(form)))

    def upsert(self, products: Sequence[StoredProduct], vectors: Mapping[str, np.ndarray]) -> None:
        """Add or replace products: see `retrieval.stores.interface.Store.upsert`.

        Raises:
            StoreError: as there, and for a form that is not one of `product_data.rows.PRODUCT_FORMS`.
        """
        unknown = [form for form in vectors if form not in PRODUCT_FORMS]
        if unknown:
            raise StoreError(f"upsert: found the form {unknown[0]!r}; expected one of {', '.join(PRODUCT_FORMS)}")
        batch = checked_batch(products, vectors, self.dimension, self.centring)
        words = [searched_words(product) for product in products]
        mean = self._mean_length(words)
        for start in range(0, len(products), _CHUNK):
            points = []
            for number in range(start, min(start + _CHUNK, len(products))):
                named: dict[str, Any] = {
                    form: rows[number].tolist() for form, rows in batch.items() if not np.isnan(rows[number]).all()
                }
                named[WORDS] = word_weights(words[number], mean)
                payload = payload_of(products[number]) | {"length": len(words[number])}
                points.append(
                    models.PointStruct(id=point_id(products[number].product_id), vector=named, payload=payload)
                )
            self._client.upsert(self.collection, points, wait=True)

    def delete(self, product_ids: Iterable[str]) -> int:
        """Remove products; return how many of the ids were in the store."""
        deleted = 0
        for chunk in _chunks([point_id(product_id) for product_id in sorted(set(product_ids))]):
            points: list[Any] = list(chunk)
            deleted += len(self._client.retrieve(self.collection, points, with_payload=False))
            self._client.delete(self.collection, models.PointIdsList(points=points), wait=True)
        return deleted

    def get(self, product_ids: Sequence[str]) -> list[StoredProduct | None]:
        """Return products by id, in the given order; None for an unknown id."""
        found = {}
        for points in _chunks([point_id(product_id) for product_id in product_ids]):
            for record in self._client.retrieve(self.collection, points, with_payload=["facts"]):
                product = from_json((record.payload or {})["facts"])
                found[product.product_id] = product
        return [found.get(product_id) for product_id in product_ids]

    def vectors(self, product_ids: Sequence[str], form: str) -> np.ndarray:
        """Return (N, D) float32 vectors by id; a row of NaN where there is none."""
        found = np.full((len(product_ids), self.dimension), np.nan, dtype=np.float32)
        rows: dict[str, list[int]] = {}
        for row, product_id in enumerate(product_ids):
            rows.setdefault(point_id(product_id), []).append(row)
        for points in _chunks(list(rows)) if form in PRODUCT_FORMS else ():
            for record in self._client.retrieve(self.collection, points, with_payload=False, with_vectors=[form]):
                vector = (record.vector or {}).get(form)  # type: ignore[union-attr]
                if vector is not None:
                    found[rows[str(record.id)]] = np.asarray(vector, dtype=np.float32)
        return found

    def nearest(
        self, query_QD: np.ndarray, k: int, where: Where | None, forms: Sequence[str], exclude: frozenset[str]
    ) -> list[list[Candidate]]:
        """Return for each query the k products with the nearest vectors: see `RankingStore.nearest`."""
        condition = _filter(where, exclude)
        answers = []
        for query_D in query_QD:
            found = [one for form in forms for one in self._nearest_of_form(query_D, k, form, condition)]
            answers.append(best(found, k))
        return answers

    def _nearest_of_form(
        self, query_D: np.ndarray, k: int, form: str, condition: models.Filter | None
    ) -> list[Candidate]:
        candidates: list[Candidate] = []
        for pool in pool_sizes(k):
            found = self._points(query_D.tolist(), form, pool, condition, with_vectors=[form])
            if not found:
                return []
            scores = exact_cosines(query_D, np.array([point.vector[form] for point in found], dtype=np.float32))
            ids = [point.payload["product_id"] for point in found]
            candidates = [Candidate(*pair, form) for pair in zip(ids, scores.tolist(), strict=True)]
            if not self.exact or len(found) < pool or found[-1].score < np.sort(scores)[-k] - TIE:
                break
        return best(candidates, k)

    def matching(
        self, words: Sequence[str], k: int, where: Where | None, exclude: frozenset[str]
    ) -> list[list[Candidate]]:
        """Return for each text the k products with the highest BM25 score: see `RankingStore.matching`."""
        condition = _filter(where, exclude)
        return [self._matching(split_words(text), k, condition) for text in words]

    def _matching(self, words: Sequence[str], k: int, condition: models.Filter | None) -> list[Candidate]:
        counts = Counter(map(word_number, words))
        query = models.SparseVector(indices=list(counts), values=[float(count) for count in counts.values()])
        candidates: list[Candidate] = []
        for pool in pool_sizes(k) if words else ():
            found = [one for one in self._points(query, WORDS, pool, condition) if one.score > 0]
            candidates = [Candidate(one.payload["product_id"], rounded(one.score)) for one in found]
            if len(found) < pool or found[-1].score < found[k - 1].score * (1 - SAME_SCORE):
                break
        return best(candidates, k)

    def _points(self, query: Any, using: str, limit: int, condition: models.Filter | None, **options: Any) -> list[Any]:
        parameters = models.SearchParams(exact=self.exact) if self.is_server and using != WORDS else None
        answer = self._client.query_points(
            self.collection,
            query=query,
            using=using,
            limit=limit,
            query_filter=condition,
            search_params=parameters,
            with_payload=["product_id"],
            **options,
        )
        return answer.points

    def products(self, where: Where | None = None) -> Iterator[StoredProduct]:
        """Iterate over the products in the order of ids."""
        ids = sorted(payload["product_id"] for payload in self._payloads(["product_id"], _filter(where)))
        for chunk in _chunks(ids):
            yield from (product for product in self.get(chunk) if product is not None)

    def digests(self) -> dict[str, str]:
        """Return product id → digest of every product."""
        return {payload["product_id"]: payload["digest"] for payload in self._payloads(["product_id", "digest"], None)}

    def count(self, where: Where | None = None) -> int:
        """Return the number of products."""
        return self._count(_filter(where))

    def facets(self, where: Where | None = None, *, limit: int = 20) -> dict[str, dict[str, int]]:
        """Return value → number of products: see `retrieval.stores.interface.Store.facets`."""
        condition, counts = _filter(where), {}
        for name, column in FACETS.items():
            asked = limit + 1  # the empty value is not counted
            while True:
                hits = self._client.facet(
                    self.collection, key=column, facet_filter=condition, limit=asked, exact=True
                ).hits
                if len(hits) < asked or hits[-1].count < hits[limit - 1].count:
                    break
                asked *= 4  # values that are as frequent as the last one: the order of values decides
            counts[name] = most_frequent(((str(hit.value), hit.count) for hit in hits), limit)
        return counts

    def compact(self) -> str:
        """Correct the weights of words if the mean length of texts has moved; Qdrant merges its own files."""
        lengths = [payload["length"] for payload in self._payloads(["length"], None)]
        mean, assumed = float(np.mean(lengths)) if lengths else 0.0, self._assumed_length()
        if not lengths or assumed is None or abs(mean - assumed) <= DRIFT * assumed:
            return f"{len(lengths)} products; Qdrant merges its files by itself"
        self._client.update_collection(self.collection, metadata={"mean_length": mean})
        for payload in self._payloads(["facts"], None):
            product = from_json(payload["facts"])
            vector: Any = {WORDS: word_weights(searched_words(product), mean)}
            point = models.PointVectors(id=point_id(product.product_id), vector=vector)
            self._client.update_vectors(self.collection, [point])
        return f"{len(lengths)} products; weights of words written again for a mean length of {mean:.1f} words"

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def _assumed_length(self) -> float | None:
        metadata = self._client.get_collection(self.collection).config.metadata or {}
        return metadata.get("mean_length")

    def _mean_length(self, texts: Sequence[Sequence[str]]) -> float:
        """Return the mean length that weights assume; the first upsert fixes it."""
        mean = self._assumed_length()
        if mean is None and texts:
            mean = sum(map(len, texts)) / len(texts)
            self._client.update_collection(self.collection, metadata={"mean_length": mean})
        return mean or 0.0

    def _count(self, condition: models.Filter | None) -> int:
        return self._client.count(self.collection, count_filter=condition, exact=True).count

    def _payloads(self, names: Sequence[str], condition: models.Filter | None) -> Iterator[dict[str, Any]]:
        offset = None
        while True:
            records, offset = self._client.scroll(
                self.collection, scroll_filter=condition, limit=1000, offset=offset, with_payload=list(names)
            )
            yield from (record.payload or {} for record in records)
            if offset is None:
                return


def point_id(product_id: str) -> str:
    """Return the id of a product's point: Qdrant takes numbers and UUIDs only."""
    return str(uuid.uuid5(_NAMES, product_id))


def word_number(word: str) -> int:
    """Return the index of a word in sparse vectors: its CRC-32. Two words rarely share one, and then count as the same."""
    return zlib.crc32(word.encode())


def word_weights(words: Sequence[str], mean_length: float) -> models.SparseVector:
    """Return the BM25 weights of a text's words, without their idf: see `retrieval.bm25.saturation`."""
    counts = Counter(map(word_number, words))
    weights = saturation(np.array(list(counts.values()), dtype=np.float64), len(words), mean_length)
    return models.SparseVector(indices=list(counts), values=weights.tolist())


def payload_of(product: StoredProduct) -> dict[str, Any]:
    """Return the facts of a product, and what filters compare."""
    return {
        "product_id": product.product_id,
        "facts": to_json(product),
        "digest": product.digest,
        "price": product.price,
        "brand": product.brand,
        "availability": product.availability,
        "category_paths": category_paths(product),
        "attribute_pairs": attribute_pairs(product),
    }


def condition_of(condition: Condition) -> models.Filter:
    """Return one condition of a filter as a filter of Qdrant."""
    if condition.key == "price":
        ranges = [_range(condition.operator, value) for value in condition.values]
        matches: list[Any] = [models.FieldCondition(key="price", range=one) for one in ranges]
        if condition.operator == "!=":
            priced = models.FieldCondition(key="price", range=models.Range(gte=-float(np.finfo(np.float64).max)))
            return models.Filter(must=[priced], must_not=matches)
    else:
        values = list(condition.compared)
        matches = [models.FieldCondition(key=condition.field, match=models.MatchAny(any=values))]
        if condition.operator == "!=":
            return models.Filter(must_not=matches)
    return models.Filter(should=matches)


def _range(operator: str, value: float) -> models.Range:
    names = {"<": "lt", "<=": "lte", ">": "gt", ">=": "gte"}
    if operator in names:
        return models.Range(**{names[operator]: value})
    return models.Range(gte=value, lte=value)


def _filter(where: Where | None, exclude: Iterable[str] = ()) -> models.Filter | None:
    must: list[Any] = [condition_of(condition) for condition in where.conditions] if where is not None else []
    left_out: list[Any] = [point_id(product_id) for product_id in sorted(exclude)]
    if not must and not left_out:
        return None
    return models.Filter(must=must, must_not=[models.HasIdCondition(has_id=left_out)] if left_out else [])


def _having(form: str) -> models.Filter:
    return models.Filter(must=[models.HasVectorCondition(has_vector=form)])


def _chunks(values: Sequence[str]) -> Iterator[list[str]]:
    for start in range(0, len(values), _CHUNK):
        yield list(values[start : start + _CHUNK])
