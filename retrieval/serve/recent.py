"""Keep the vectors of recent queries of words, since many customers type the same words."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable

from retrieval.queries import Query
from retrieval.query_encoder import EncodedQuery
from retrieval.search import Encode


class RecentQueries:
    """Answer a query of words alone from memory, if its vector was made lately; an instance replaces `Searcher.encode`.

    A query with a picture, a product or reasoning is always encoded. The process has one model, so the words alone are the
    key, exactly as they were typed. Our design; the precedent is the least recently used cache of `functools.lru_cache`.

    Args:
        encode: encodes a query that is not kept.
        size (`int`): number of vectors to keep, each of 4 bytes × the model's size; 0 keeps none.
        observe: called for each query of words with whether it was kept. Default `None`.
    """

    def __init__(self, encode: Encode, size: int, observe: Callable[[bool], None] | None = None) -> None:
        self._encode, self.size, self._observe = encode, size, observe
        self._kept: OrderedDict[str, EncodedQuery] = OrderedDict()
        self._lock = threading.Lock()

    def __call__(self, query: Query, reasoning: str = "none") -> EncodedQuery:
        """Return the vectors of a query.

        Raises:
            SearchError, BusyError, TimeoutError: as `encode`; an error is not kept.
        """
        if not self.size or query.form != "t" or reasoning != "none":
            return self._encode(query, reasoning)
        with self._lock:
            if (kept := self._kept.get(query.text)) is not None:
                self._kept.move_to_end(query.text)
        if self._observe is not None:
            self._observe(kept is not None)
        if kept is not None:
            return kept
        made = self._encode(query, reasoning)
        made.vectors_RD.flags.writeable = False
        with self._lock:
            self._kept[query.text] = made
            if len(self._kept) > self.size:
                self._kept.popitem(last=False)
        return made
