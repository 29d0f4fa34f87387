"""Collecting queries of several threads into batches."""

from __future__ import annotations

import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from retrieval.queries import Query, SearchError
from retrieval.query_encoder import EncodedQuery
from retrieval.serve.batching import BusyError, MicroBatcher


def encoded(query: Query) -> EncodedQuery | SearchError:
    """Return a vector that tells queries apart; "bad" cannot be encoded."""
    return SearchError("bad") if query.text == "bad" else EncodedQuery(np.array([[float(query.text)]], np.float32))


class Encoder:
    """Note each batch; the first call waits for `go`."""

    def __init__(self) -> None:
        self.batches: list[tuple[list[str], str]] = []
        self.started, self.go = threading.Event(), threading.Event()

    def __call__(self, queries, reasoning):
        self.batches.append(([query.text for query in queries], reasoning))
        self.started.set()
        assert self.go.wait(10)
        return [encoded(query) for query in queries]


def waiting(batcher: MicroBatcher, count: int) -> None:
    """Wait until some queries are in the queue."""
    end = time.monotonic() + 10
    while batcher._queue.qsize() < count:
        assert time.monotonic() < end
        time.sleep(0.001)


def test_queries_that_wait_are_encoded_together_by_mode_of_reasoning_and_up_to_the_batch_size():
    encoder, sizes = Encoder(), []
    batcher = MicroBatcher(encoder, batch_size=4, milliseconds=50, observe=sizes.append)
    with ThreadPoolExecutor(8) as pool:
        first = pool.submit(batcher, Query("0"))
        assert encoder.started.wait(10)
        modes = ["none", "generate", "none", "none", "none", "generate"]
        rest = [pool.submit(batcher, Query(str(number)), mode) for number, mode in enumerate(modes, start=1)]
        waiting(batcher, len(rest))
        encoder.go.set()
        assert [float(one.result(10).vectors_RD[0, 0]) for one in (first, *rest)] == list(range(7))
    batcher.close()
    assert encoder.batches[0] == (["0"], "none")
    assert sorted(text for texts, _ in encoder.batches for text in texts) == [str(number) for number in range(7)]
    assert all(mode == modes[int(text) - 1] for texts, mode in encoder.batches[1:] for text in texts)
    assert max(sizes) <= 4
    assert len(encoder.batches) < 7
    assert sizes == [len(texts) for texts, _ in encoder.batches]


def test_a_query_alone_does_not_wait_for_more_than_the_time():
    encoder = Encoder()
    encoder.go.set()
    batcher = MicroBatcher(encoder, milliseconds=20)
    start = time.perf_counter()
    batcher(Query("1"))
    assert 0.015 < time.perf_counter() - start < 5
    batcher.close()


def test_an_error_reaches_its_own_caller_and_a_defect_reaches_all_of_its_batch():
    batcher = MicroBatcher(lambda queries, _: [encoded(query) for query in queries], milliseconds=50)
    with ThreadPoolExecutor(2) as pool:
        good, bad = pool.submit(batcher, Query("3")), pool.submit(batcher, Query("bad"))
        assert good.result(10).vectors_RD.tolist() == [[3.0]]
        with pytest.raises(SearchError, match="bad"):
            bad.result(10)
    batcher.close()

    def broken(*_):
        raise ZeroDivisionError("on purpose")

    batcher = MicroBatcher(broken)
    for _ in range(2):  # the thread goes on
        with pytest.raises(ZeroDivisionError, match="on purpose"):
            batcher(Query("1"))
    batcher.close()


def test_a_full_queue_refuses_and_a_late_query_is_given_up():
    encoder = Encoder()
    batcher = MicroBatcher(encoder, queue_size=1, milliseconds=0, seconds=0.3)
    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(batcher, Query("1"))
        assert encoder.started.wait(10)
        second = pool.submit(batcher, Query("2"))
        waiting(batcher, 1)
        with pytest.raises(BusyError, match="1 queries are waiting"):
            batcher(Query("3"))
        for late in (first, second):
            with pytest.raises(TimeoutError):
                late.result(10)
    encoder.go.set()
    batcher.close()
    assert [texts for texts, _ in encoder.batches] == [["1"]]  # the second was given up before its batch
    with pytest.raises(BusyError, match="closing"):
        batcher(Query("4"))
    batcher.close()


def test_closing_answers_the_queries_that_wait():
    encoder = Encoder()
    batcher = MicroBatcher(encoder, milliseconds=0)
    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(batcher, Query("1"))
        assert encoder.started.wait(10)
        second = pool.submit(batcher, Query("2"))
        waiting(batcher, 1)
        closing = pool.submit(batcher.close)
        encoder.go.set()
        assert first.result(10).vectors_RD.tolist() == [[1.0]]
        assert second.result(10).vectors_RD.tolist() == [[2.0]]
        closing.result(10)


def test_a_batcher_that_waits_for_queries_keeps_none_of_those_that_it_answered():
    batcher = MicroBatcher(lambda queries, _: [encoded(query) for query in queries], milliseconds=1)
    picture = Image.new("RGB", (2, 2))
    seen = weakref.ref(picture)
    batcher(Query("3", picture))
    del picture
    end = time.monotonic() + 10
    while seen() is not None and time.monotonic() < end:
        time.sleep(0.01)
    assert seen() is None
    batcher.close()
