"""Encode queries for a search, from several threads, with one model.

Shape suffixes: R records of a query, V vectors of a picture or product, D size of a vector.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from product_data.errors import OptionError
from retrieval.encode import encode
from retrieval.model_kinds import unread_records
from retrieval.queries import Query, SearchError
from retrieval.reasoning_options import ROW_REASONING, check_reasoning

_SMALLEST_NORM = 1e-6


@dataclass(frozen=True, slots=True)
class EncodedQuery:
    """What a model made of a query.

    Args:
        vectors_RD (`np.ndarray`): (R, D) float32 unit vectors, one for each of `Query.records()`.
        reasoning: text that the model wrote about each record; empty without reasoning.
    """

    vectors_RD: np.ndarray
    reasoning: tuple[str, ...] = ()


class QueryEncoder:
    """Encode queries with one model; its calls wait for each other.

    Args:
        model, processor: from `retrieval.encode.load_for_evaluation`.
        fingerprint (`str`): the model's fingerprint, see `retrieval.vectors.fingerprint`; "" if it is not known.

    Relations: `Searcher` calls it for one query at a time; a service collects queries and calls `encode_queries`.
    """

    def __init__(self, model: Any, processor: Any, fingerprint: str = "") -> None:
        self.model, self.processor, self.fingerprint = model, processor, fingerprint
        self.lock = threading.Lock()

    def check_reasoning(self, reasoning: str) -> None:
        """Check that the model supports a mode of reasoning: "none" or "generate".

        Raises:
            SearchError: it does not.
        """
        try:
            check_reasoning(self.model, self.processor, reasoning, ROW_REASONING)
        except OptionError as error:
            raise SearchError(str(error)) from error

    def encode_queries(self, queries: Sequence[Query], reasoning: str = "none") -> list[EncodedQuery | SearchError]:
        """Return for each query its vectors, or why it cannot be encoded; one bad query does not fail the others.

        Args:
            queries: queries in any mixture of words and pictures.
            reasoning (`str`): "none" or "generate". Default "none".

        Raises:
            SearchError: a mode of reasoning that the model does not support.
        """
        self.check_reasoning(reasoning)
        records: list[dict[str, Any]] = []
        rows: list[range] = []
        for query in queries:
            parts = query.records()
            rows.append(range(len(records), len(records) + len(parts)))
            records += parts
        unread = [unread_records(self.processor, [record], "queries") for record in records]
        read = [row for row, why in enumerate(unread) if not why]
        with self.lock:
            encoded = encode(
                self.model,
                self.processor,
                [records[row] for row in read],
                kind="query",
                reasoning=reasoning,
                progress=False,
            )
        refused = {row: why for row, why in enumerate(unread) if why}
        refused |= {read[skipped.index]: f"{_shown(skipped.field)}: {skipped.reason}" for skipped in encoded.skipped}
        place = {read[kept]: row for row, kept in enumerate(encoded.kept)}
        answers: list[EncodedQuery | SearchError] = []
        for own in rows:
            if why := next((refused[row] for row in own if row in refused), ""):
                answers.append(SearchError(why))
                continue
            found = [place[row] for row in own]
            texts = () if encoded.reasoning is None else tuple(encoded.reasoning[row].text for row in found)
            answers.append(EncodedQuery(encoded.vectors[found], texts))
        return answers


def _shown(field: str) -> str:
    """Return the name that a query's part has in messages."""
    return {"image": "picture", "core_box": "box", "record": "query"}.get(field, field)


def weighted(words_D: np.ndarray, other_VD: np.ndarray, weight: float) -> np.ndarray:
    """Return the unit vectors of w·t + (1 − w)·p for each p; see `retrieval.queries.Query`.

    Args:
        words_D: (D,) unit vector t of the words.
        other_VD: (V, D) unit vectors p of a picture or of a product's forms.
        weight (`float`): w in [0, 1].

    Raises:
        SearchError: vectors that cancel each other.
    """
    sum_VD = weight * words_D + (1 - weight) * other_VD
    norm_V1 = np.linalg.norm(sum_VD, axis=1, keepdims=True)
    if (norm_V1 < _SMALLEST_NORM).any():
        raise SearchError(
            f"weight: {weight} makes the vectors of words and picture cancel each other; expected another"
        )
    return (sum_VD / norm_V1).astype(np.float32)
