"""Score texts by shared words with BM25.

`score(q, d) = Σ_{w in q} idf(w) · saturation(f)`, where f is the count of the word w in the text d; see `idf` and `saturation`.

Source: Robertson and Zaragoza, "The Probabilistic Relevance Framework: BM25 and Beyond", 2009, with the idf of Lucene, which is
never negative.

Legend: N texts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

K1, B = 1.2, 0.75
"""Lucene's parameters: the saturation of a word's count, and the penalty for long texts."""


def idf(texts: int, having: Any) -> Any:
    """Return `log(1 + (N - n + 0.5) / (n + 0.5))`, where n of N texts have the word.

    Args:
        texts (`int`): N.
        having: n, a number or an array.
    """
    return np.log(1 + (texts - having + 0.5) / (having + 0.5))


def saturation(count: Any, length: Any, mean_length: float, k1: float = K1, b: float = B) -> Any:
    """Return `f · (k1 + 1) / (f + k1 · (1 - b + b · |d| / mean |d|))`; 0 for a count of 0.

    Args:
        count: f, a number or an array.
        length: |d|, the number of words of the text; broadcast with `count`.
        mean_length (`float`): mean over all texts; a mean below 1 counts as 1.
        k1 (`float`): a smaller value saturates earlier. Default 1.2.
        b (`float`): penalty for long texts, in [0, 1]. Default 0.75.
    """
    return count * (k1 + 1) / (count + k1 * (1 - b + b * length / max(mean_length, 1.0)))


class WordIndex:
    """An inverted index: for each word the texts that have it.

    Args:
        texts: words of each text, repeated ones too.

    Memory: 8 bytes for each different word of each text, and the words.
    """

    def __init__(self, texts: Iterable[Sequence[str]]) -> None:
        rows: dict[str, list[int]] = {}
        counts: dict[str, list[int]] = {}
        lengths = []
        for row, words in enumerate(texts):
            lengths.append(len(words))
            for word, count in Counter(words).items():
                rows.setdefault(word, []).append(row)
                counts.setdefault(word, []).append(count)
        self.length_N = np.array(lengths, dtype=np.float64)
        self.mean_length = float(self.length_N.mean()) if lengths else 0.0
        self._rows = {word: np.array(found, dtype=np.int32) for word, found in rows.items()}
        self._counts = {word: np.array(found, dtype=np.int32) for word, found in counts.items()}

    @property
    def memory_bytes(self) -> int:
        """Bytes of the index, without the words themselves."""
        return int(self.length_N.nbytes) + sum(2 * rows.nbytes for rows in self._rows.values())

    def scores(self, words: Sequence[str]) -> np.ndarray:
        """Return the BM25 score of every text for the words of a query: (N,) float64, 0 if no word is shared."""
        score_N = np.zeros(len(self.length_N))
        for word, number in Counter(words).items():
            rows = self._rows.get(word)
            if rows is not None:
                weights = saturation(self._counts[word].astype(float), self.length_N[rows], self.mean_length)
                score_N[rows] += number * idf(len(score_N), len(rows)) * weights
        return score_N
