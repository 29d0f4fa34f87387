"""Search by shared words with BM25, the baseline for text queries without any model."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from evaluation.baselines.peers import Peer, PeerConfig, PeerProcessor, PeerRow
from processing_moon import Shortened
from product_data.rows import PRODUCT_FORMS
from product_data.tables import ProductRow
from retrieval.bm25 import idf, saturation
from retrieval.encode import Encoded, SkippedRecord, VectorCache
from retrieval.model_kinds import KINDS, ModelKind

_WORD = re.compile(r"\w+")


def words(text: str) -> list[str]:
    """Return the words of a text in lower case, without punctuation."""
    return _WORD.findall(text.casefold())


def product_text(product: ProductRow) -> str:
    """Return the whole text of a product: title, description, category path, attributes."""
    attributes = [word for key, values in product.attributes.items() for word in (key, *values)]
    return " ".join([product.title, product.description, *product.category, *attributes])


def bm25_weights(
    documents: Sequence[str], vocabulary: Sequence[str], *, k1: float = 1.2, b: float = 0.75
) -> np.ndarray:
    """Return what each word of a vocabulary adds to the score of each document; see `bm25_scores`.

    Args:
        documents: texts.
        vocabulary: different words.
        k1, b: as in `bm25_scores`.

    Shapes: returns (N, V) float64; 0 where a document does not have a word.
    """
    counts = [Counter(words(document)) for document in documents]
    length_N = np.array([count.total() for count in counts], dtype=np.float64)
    mean_length = float(length_N.mean()) if len(counts) else 0.0
    place = {word: column for column, word in enumerate(vocabulary)}
    count_NV = np.zeros((len(counts), len(place)))
    for row, count in enumerate(counts):
        for word, number in count.items():
            if word in place:
                count_NV[row, place[word]] = number
    having_V = (count_NV > 0).sum(axis=0)
    return idf(len(counts), having_V) * saturation(count_NV, length_N[:, None], mean_length, k1, b)


def word_counts(texts: Sequence[str], vocabulary: Sequence[str]) -> np.ndarray:
    """Return how often each text has each word of a vocabulary: (Q, V) float64."""
    place = {word: column for column, word in enumerate(vocabulary)}
    count_QV = np.zeros((len(texts), len(place)))
    for row, text in enumerate(texts):
        for word in words(text):
            if word in place:
                count_QV[row, place[word]] += 1
    return count_QV


def bm25_scores(queries: Sequence[str], documents: Sequence[str], *, k1: float = 1.2, b: float = 0.75) -> np.ndarray:
    """Score documents for queries by the words that they share.

    `score(q, d) = Σ_{w in q} idf(w) · f · (k1 + 1) / (f + k1 · (1 - b + b · |d| / mean |d|))`, where f is the count of w
    in d, and `idf(w) = log(1 + (N - n_w + 0.5) / (n_w + 0.5))`, where n_w of N documents contain w.

    Source: Robertson and Zaragoza, "The Probabilistic Relevance Framework: BM25 and Beyond", 2009, with the idf of Lucene,
    which is never negative.

    Args:
        queries, documents: texts.
        k1 (`float`): saturation of a word's count; a smaller value saturates earlier. Default 1.2.
        b (`float`): penalty for long documents, in [0, 1]. Default 0.75.

    Shapes:
        Returns (Q, N) float64; 0 if no word is shared.
    """
    vocabulary = sorted({word for query in queries for word in words(query)})
    return word_counts(queries, vocabulary) @ bm25_weights(documents, vocabulary, k1=k1, b=b).T


class BM25Cache(VectorCache):
    """BM25 under the interface of vectors: a query is the counts of its words, a product their weights.

    Their dot product is the score of `bm25_scores`, with the products of the gallery as the documents. Vectors are as wide as
    the queries have different words, and are not of unit length. Categories and attributes of products have no score: their
    texts are not queries, and scores of different queries cannot be compared. The category of a query has one: the labels are
    the documents.
    """

    def varied_gallery(self, name: str, form: str, record: Callable[[ProductRow], dict[str, Any]]) -> Encoded:
        """A gallery of products' texts; one that is made for labels is refused."""
        if name not in PRODUCT_FORMS and name not in self._galleries:
            return self.refuse_gallery(name, "bm25 scores products for queries; the texts of labels are not queries")
        return super().varied_gallery(name, form, record)

    def _encode(self, records: Sequence[dict[str, Any]], reasoning: str, **options: Any) -> Encoded:
        vocabulary = sorted({word for row in self.queries for word in words(row.text)})
        kind = options.get("kind", "product")
        batch = self.processor(**{"products" if kind == "product" else "queries": records}, on_error="skip")
        kept = [int(index) for index in batch.kept]
        texts = batch.get("texts", [])
        if kind == "query" and options.get("task") is None:
            vectors = word_counts(texts, vocabulary)
        else:
            vectors = bm25_weights(texts, vocabulary, k1=self.model.k1.item(), b=self.model.b.item())
        skipped = [SkippedRecord(one.index, one.item, one.field, one.reason) for one in batch.skipped]
        return Encoded(vectors, kept, skipped)


class BM25Processor(PeerProcessor):
    """Texts of records; see `product_text`. A record with a picture is refused."""

    def __init__(self) -> None:
        super().__init__("bm25", reads_pictures=False)

    def tensors(self, rows: Sequence[PeerRow], shortened: list[Shortened]) -> Mapping[str, Any]:
        """Return "texts", a list of strings."""
        return {"texts": [row.text for row in rows]}


class BM25(Peer):
    """BM25 as a model that `moon3 evaluate --model bm25` takes; `vector_cache` makes its vectors.

    Args:
        k1 (`float`), b (`float`): as in `bm25_scores`.
    """

    vector_cache = BM25Cache

    def __init__(self, k1: float = 1.2, b: float = 0.75) -> None:
        recipe = {"mm": None, "reads_pictures": False, "k1": k1, "b": b}
        super().__init__(PeerConfig("bm25", 0, recipe))
        self.k1, self.b = (
            nn.Parameter(torch.tensor(value, dtype=torch.float64), requires_grad=False) for value in (k1, b)
        )


def load(place: str, dtype: Any = "auto") -> tuple[BM25, BM25Processor]:
    """Return BM25 with Lucene's parameters; it has no place to load from and no weights whose type could be chosen."""
    return BM25(), BM25Processor()


KINDS["bm25"] = ModelKind(load, has_place=False)
