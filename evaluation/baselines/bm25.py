"""Search by shared words with BM25, the baseline for text queries without any model."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

from product_data.tables import ProductRow

_WORD = re.compile(r"\w+")


def words(text: str) -> list[str]:
    """Return the words of a text in lower case, without punctuation."""
    return _WORD.findall(text.casefold())


def product_text(product: ProductRow) -> str:
    """Return the whole text of a product: title, description, category path, attributes."""
    attributes = [word for key, values in product.attributes.items() for word in (key, *values)]
    return " ".join([product.title, product.description, *product.category, *attributes])


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
    counts = [Counter(words(document)) for document in documents]
    length_N = np.array([count.total() for count in counts], dtype=np.float64)
    norm_N = k1 * (1 - b + b * length_N / max(length_N.mean(), 1.0)) if len(counts) else length_N
    postings: dict[str, list[tuple[int, int]]] = {}
    for place, count in enumerate(counts):
        for word, number in count.items():
            postings.setdefault(word, []).append((place, number))
    scores_QN = np.zeros((len(queries), len(documents)))
    for row, query in enumerate(queries):
        for word in words(query):
            found = postings.get(word, [])
            idf = math.log(1 + (len(counts) - len(found) + 0.5) / (len(found) + 0.5))
            for place, number in found:
                scores_QN[row, place] += idf * number * (k1 + 1) / (number + norm_N[place])
    return scores_QN
