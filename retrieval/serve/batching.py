"""Collect queries of several threads for a few milliseconds, and encode them as one batch of the model."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field

from retrieval.queries import Query, SearchError
from retrieval.query_encoder import EncodedQuery

EncodeQueries = Callable[[Sequence[Query], str], Sequence[EncodedQuery | SearchError]]
"""`retrieval.query_encoder.QueryEncoder.encode_queries`, or what replaces it."""


class BusyError(RuntimeError):
    """Raised if the service has no room; the client should try again later."""


@dataclass(frozen=True, slots=True)
class _Waiting:
    query: Query
    reasoning: str
    answer: Future[EncodedQuery] = field(default_factory=Future)


class MicroBatcher:
    """Encode queries that arrive together in one batch; an instance replaces `Searcher.encode`.

    A thread takes the first waiting query, waits up to `milliseconds` for others, and encodes them by mode of reasoning. A
    query that arrives during the work of a batch waits for the next one. Our design; precedent: dynamic batching of
    inference servers such as NVIDIA Triton.

    Args:
        encode_queries: encodes a batch.
        batch_size (`int`): queries in a batch. Default 32.
        milliseconds (`float`): longest wait for a batch to fill. Default 4.
        queue_size (`int`): queries that can wait. Default 256.
        seconds (`float`): longest time that a caller waits. Default 30.
        observe: called with the size of each batch. Default `None`.
    """

    def __init__(
        self,
        encode_queries: EncodeQueries,
        *,
        batch_size: int = 32,
        milliseconds: float = 4.0,
        queue_size: int = 256,
        seconds: float = 30.0,
        observe: Callable[[int], None] | None = None,
    ) -> None:
        self._encode_queries, self._observe = encode_queries, observe
        self.batch_size, self.milliseconds, self.seconds = batch_size, milliseconds, seconds
        self._queue: queue.Queue[_Waiting | None] = queue.Queue(queue_size)
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="encode queries", daemon=True)
        self._thread.start()

    def __call__(self, query: Query, reasoning: str = "none") -> EncodedQuery:
        """Return the vectors of a query.

        Raises:
            SearchError: the query cannot be encoded.
            BusyError: the queue is full, or the service is closing.
            TimeoutError: the query was not encoded in time; it is removed from the queue.
        """
        waiting = _Waiting(query, reasoning)
        try:
            if self._closed:
                raise BusyError("the service is closing")
            self._queue.put_nowait(waiting)
        except queue.Full as error:
            raise BusyError(f"{self._queue.maxsize} queries are waiting") from error
        try:
            return waiting.answer.result(timeout=self.seconds)
        except TimeoutError:
            waiting.answer.cancel()
            raise

    def close(self) -> None:
        """Answer the queries that wait, and end the thread."""
        if not self._closed:
            self._closed = True
            self._queue.put(None)
            self._thread.join()
            while not self._queue.empty():  # arrived while the service was closing
                if (late := self._queue.get_nowait()) is not None:
                    late.answer.set_exception(BusyError("the service is closing"))

    def _work(self) -> None:
        while True:
            batch, more = self._next_batch()
            for reasoning in dict.fromkeys(waiting.reasoning for waiting in batch):
                group = [one for one in batch if one.reasoning == reasoning and not one.answer.cancelled()]
                if group:
                    self._encode(group, reasoning)
                del group
            del batch  # its pictures, which would stay until the next query comes
            if not more:
                return

    def _next_batch(self) -> tuple[list[_Waiting], bool]:
        """Return the next queries, and whether to go on after them."""
        first = self._queue.get()
        if first is None:
            return [], False
        batch, end = [first], time.monotonic() + self.milliseconds / 1000
        while len(batch) < self.batch_size:
            try:
                waiting = self._queue.get(timeout=max(0.0, end - time.monotonic()))
            except queue.Empty:
                break
            if waiting is None:
                return batch, False
            batch.append(waiting)
        return batch, True

    def _encode(self, group: Sequence[_Waiting], reasoning: str) -> None:
        if self._observe is not None:
            self._observe(len(group))
        try:
            answers: Sequence[EncodedQuery | Exception] = self._encode_queries([one.query for one in group], reasoning)
        except Exception as error:  # noqa: BLE001 - every caller gets the error, and the thread goes on
            answers = [error] * len(group)
        for waiting, answer in zip(group, answers, strict=True):
            try:
                if isinstance(answer, Exception):
                    waiting.answer.set_exception(answer)
                else:
                    waiting.answer.set_result(answer)
            except InvalidStateError:  # the caller no longer waits
                continue
