"""Measure the service as a process under load, and check it while products are written and it is killed and started again.

    moon3 bench serve VECTORS --output results/service.json

The store is copied first: the measurement changes nothing of it. Clients run on the same machine and take part of its time.
"""

from __future__ import annotations

import base64
import json
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from evaluation.provenance import provenance
from evaluation.service_process import Client, ServiceProcess
from evaluation.service_truth import ServiceTruth
from product_data.atomic_files import write_atomically
from product_data.errors import OptionError
from retrieval.encode import encode
from retrieval.queries import Query
from retrieval.search import Searcher, open_searcher
from retrieval.stores.interface import StoredProduct
from retrieval.stores.opening import create_store, sync
from retrieval.vectors.vector_files import VectorFolder

KINDS = ("words", "words again", "picture", "both")
K = 10
_QUERIES, _CONTENTS = 24, 40
_PAUSE = 0.05
_WARM_UP, _SETTLED = 30.0, 0.02
"""Longest warm-up after the restart, in seconds, and the growth of memory within two seconds below which it ends."""


@dataclass(frozen=True)
class ServiceLoad:
    """Sizes of the measurement.

    Args:
        seconds (`float`): time of the check with writes and a kill. Default 120.
        level_seconds (`float`): time of each number of clients and kind of query. Default 10.
        clients (`int`): clients of the check, and of the largest level; the others have 1 and 8. Default 32.
        overload_clients (`int`): clients of a level beyond the requests that may be in work at once. Default 96.
        max_requests (`int`): requests that may be in work at once, see `moon3 serve`. Default 64.
        repeats (`int`): queries of each kind whose time is split into parts. Default 60.

    Raises:
        OptionError: a time that is not above 0, a number below 1, as many clients as requests may be in work, or an overload
            level that does not have more.
    """

    seconds: float = 120.0
    level_seconds: float = 10.0
    clients: int = 32
    overload_clients: int = 96
    max_requests: int = 64
    repeats: int = 60

    def __post_init__(self) -> None:
        for one in fields(self):
            least = 1 if one.type == "int" else 0.1
            if getattr(self, one.name) < least:
                raise OptionError(f"--{one.name}: found {getattr(self, one.name)}; expected at least {least}")
        if not self.clients < self.max_requests < self.overload_clients:
            raise OptionError(
                f"--max-requests: found {self.max_requests}; expected more than the {self.clients} of --clients, and fewer than "
                f"the {self.overload_clients} of --overload-clients"
            )


@dataclass
class LevelCounts:
    """What the clients of a level saw; each client adds to its own."""

    milliseconds: list[float] = field(default_factory=list)
    statuses: dict[int, int] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    without_retry_after: int = 0

    def note(self, status: int, milliseconds: float, retry_after: int | None = None) -> None:
        """Add an answer; the status 0 is none."""
        self.statuses[status] = self.statuses.get(status, 0) + 1
        self.without_retry_after += status == 429 and retry_after is None
        if status == 200:
            self.milliseconds.append(milliseconds)

    def add(self, other: LevelCounts) -> None:
        """Add what another client saw."""
        self.milliseconds += other.milliseconds
        self.wrong += other.wrong
        self.without_retry_after += other.without_retry_after
        for status, number in other.statuses.items():
            self.statuses[status] = self.statuses.get(status, 0) + number


def measure_service(output: Path, vectors: Path, sizes: ServiceLoad, model: str | None = None) -> dict[str, Any]:
    """Measure and check the service over a folder of vectors, write the results, and return them.

    Args:
        output: the JSON file.
        vectors: folder that `moon3 embed` wrote, whose products have pictures that can be shown.
        sizes: of the measurement.
        model: folder or hub id of the model. Default: the one that made the vectors.

    Raises:
        OptionError: a folder with fewer than `K` products that have a picture.
        ServiceError: a service that does not start.
    """
    with tempfile.TemporaryDirectory(prefix="moon3-service-") as scratch, _copied(vectors, Path(scratch)) as place:
        options = ["--device", "cpu", "--max-requests", str(sizes.max_requests)]
        options += ["--model", model] if model else []
        with open_searcher(place, model=model, device="cpu") as searcher:
            queries = _queries(list(searcher.store.products()))
            results: dict[str, Any] = {
                "products": searcher.store.count(),
                "parts": measure_parts(searcher, queries, sizes),
            }
            truth, contents = _truth(searcher, queries)
        service = ServiceProcess(place, Path(scratch) / "service.log", options)
        try:
            service.start()
            results["levels"] = measure_levels(service, queries, sizes)
            results["check"] = check_service(service, queries, truth, contents, sizes)
        finally:
            service.kill()
    results["provenance"] = provenance(0, sizes=asdict(sizes), vectors=vectors.name)
    output.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(output, json.dumps(results, indent=1) + "\n")
    return results


@contextmanager
def _copied(vectors: Path, scratch: Path) -> Iterator[Path]:
    """Copy a folder of vectors with a store that is up to date."""
    place = scratch / "vectors"
    shutil.copytree(vectors, place, ignore=shutil.ignore_patterns("work", "*.lock", "store", "phrases"))
    folder = VectorFolder(place)
    store = create_store(folder.store_folder, folder.dimension, folder.fingerprint)
    try:
        sync(store, folder)
    finally:
        store.close()
    yield place


def _queries(products: Sequence[StoredProduct]) -> dict[str, list[dict[str, Any]]]:
    """Return the fields of queries by kind; "words" is numbered by each client, so that none is repeated."""
    shown = [one for one in products if one.title and one.images and Path(one.images[0]).is_file()][:_QUERIES]
    if len(shown) < K:
        raise OptionError(f"the vectors: found {len(shown)} products with a title and a picture; expected {K} or more")
    words = [{"text": one.title} for one in shown]
    pictures = [{"image": base64.b64encode(Path(one.images[0]).read_bytes()).decode()} for one in shown]
    both = [picture | {"text": f"like this: {word['text']}"} for picture, word in zip(pictures, words, strict=True)]
    return {"words": words, "words again": words, "picture": pictures, "both": both}


def _query(fields_of: dict[str, Any]) -> Query:
    image = fields_of.get("image")
    return Query(fields_of.get("text", ""), None if image is None else base64.b64decode(image))


def measure_parts(searcher: Searcher, queries: dict[str, list[dict[str, Any]]], sizes: ServiceLoad) -> dict[str, Any]:
    """Return for each kind the 50 % and 95 % quantiles of a query's parts, in milliseconds, one query at a time."""
    parts: dict[str, Any] = {}
    for kind in ("words", "picture", "both"):
        chosen = queries[kind]
        searcher.search(_query(chosen[0]), k=K)
        answers = [searcher.search(_query(chosen[number % len(chosen)]), k=K) for number in range(sizes.repeats)]
        parts[kind] = {
            name: _quantiles([answer.milliseconds[name] for answer in answers]) for name in ("encode", "search")
        }
    return parts


def _quantiles(milliseconds: Sequence[float]) -> dict[str, float]:
    found = np.quantile(milliseconds, [0.5, 0.95]) if len(milliseconds) else (float("nan"),) * 2
    return {"p50": round(float(found[0]), 2), "p95": round(float(found[1]), 2)}


def measure_levels(
    service: ServiceProcess, queries: dict[str, list[dict[str, Any]]], sizes: ServiceLoad
) -> list[dict[str, Any]]:
    """Return latency, requests a second, refusals and memory for each number of clients and kind of query.

    The last level has more clients than requests may be in work. A client that is refused comes again after 50 ms, sooner than
    `Retry-After` says.
    """
    numbers = sorted({1, min(8, sizes.clients), sizes.clients})
    wanted = [(kind, clients) for kind in KINDS for clients in numbers] + [("words", sizes.overload_clients)]
    levels = []
    for kind, clients in tqdm(wanted, desc="levels", delay=3.0):
        numbered = count()

        def ask(client: Client, counts: LevelCounts, kind: str = kind, numbered: Iterator[int] = numbered) -> None:
            number = next(numbered)
            chosen = dict(queries[kind][number % len(queries[kind])], k=K)
            if kind == "words":
                chosen["text"] += f" {number}"
            _timed(client, chosen, counts)

        began = time.perf_counter()
        counts = _together(service.port, clients, sizes.level_seconds, ask)
        seconds = time.perf_counter() - began
        memory = {"megabytes": _megabytes(service.resident_bytes())}
        levels.append({"kind": kind, "clients": clients} | _level(counts, seconds) | memory)
    return levels


def _level(counts: LevelCounts, seconds: float) -> dict[str, Any]:
    total = sum(counts.statuses.values())
    return _quantiles(counts.milliseconds) | {
        "answers_a_second": round(len(counts.milliseconds) / seconds, 1),
        "share_429": round(counts.statuses.get(429, 0) / max(total, 1), 4),
        "refused_without_retry_after": counts.without_retry_after,
        "other_statuses": {str(one): number for one, number in counts.statuses.items() if one not in (200, 429)},
    }


def _timed(client: Client, chosen: dict[str, Any], counts: LevelCounts) -> Any:
    """Send a search, note its time, and return its answer; None if it was not answered with 200."""
    began = time.perf_counter()
    status, answer = client.call("POST", "/search", chosen)
    counts.note(status, 1000 * (time.perf_counter() - began), client.retry_after)
    if status != 200:
        time.sleep(_PAUSE)
        return None
    return answer


def _together(
    port: int,
    clients: int,
    seconds: float,
    ask: Callable[[Client, LevelCounts], None],
    meanwhile: Callable[[], None] | None = None,
) -> LevelCounts:
    """Let clients ask again and again for some time, or as long as something else goes on; return what they saw together.

    Args:
        port (`int`): of the service.
        clients (`int`): number of threads, each with a connection.
        seconds (`float`): time, unless there is `meanwhile`.
        ask: sends one request.
        meanwhile: called by this thread; the clients end with it. Default `None`.
    """
    over, seen, failed = threading.Event(), [LevelCounts() for _ in range(clients)], list[BaseException]()

    def work(counts: LevelCounts) -> None:
        client = Client(port)
        try:
            while not over.is_set() and not failed:
                ask(client, counts)
        except BaseException as error:  # noqa: BLE001 - raised again below
            failed.append(error)
        finally:
            client.close()

    threads = [threading.Thread(target=work, args=(counts,)) for counts in seen]
    for thread in threads:
        thread.start()
    try:
        if meanwhile is not None:
            meanwhile()
        else:
            over.wait(seconds)
    finally:
        over.set()
        for thread in threads:
            thread.join()
    if failed:
        raise failed[0]
    whole = LevelCounts()
    for counts in seen:
        whole.add(counts)
    return whole


def _truth(searcher: Searcher, queries: dict[str, list[dict[str, Any]]]) -> tuple[ServiceTruth, list[dict[str, Any]]]:
    """Return what the answers have to be, and the contents that clients write."""
    store = searcher.store
    ids = [one.product_id for one in store.products()]
    vectors = [store.vectors(ids, form) for form in store.forms]
    if len(vectors) != 1:
        raise OptionError(f"the vectors: found the forms {', '.join(store.forms)}; expected one form")
    contents = [{"title": f"{one['text']}, written {number}"} for number, one in enumerate(queries["words"])]
    contents = (contents * (_CONTENTS // len(contents) + 1))[:_CONTENTS]
    form = store.forms[0]
    encoder = searcher.encoder
    written = encode(encoder.model, encoder.processor, contents, form=form, progress=False).vectors[
        :, : store.dimension
    ]
    written = written / np.linalg.norm(written, axis=1, keepdims=True)
    wanted = [one for kind in ("words", "picture", "both") for one in queries[kind]]
    query_QD = np.concatenate([searcher.vectors(_query(one)) for one in wanted])
    return ServiceTruth(ids, vectors[0], written, query_QD), contents


def check_service(
    service: ServiceProcess,
    queries: dict[str, list[dict[str, Any]]],
    truth: ServiceTruth,
    contents: Sequence[dict[str, Any]],
    sizes: ServiceLoad,
) -> dict[str, Any]:
    """Search and write for some time, kill the service right after an acknowledged write at half time, and start it again.

    Returns: numbers of answers, of wrong ones, of writes, of those that were lost, and memory in megabytes after the restart:
    the most in the first quarter of the time, the most later, and at the end.
    """
    wanted = [one for kind in ("words", "picture", "both") for one in queries[kind]]
    numbered, numbers, began = count(), count(), time.monotonic()
    memory: list[tuple[float, int]] = []

    def ask(client: Client, counts: LevelCounts) -> None:
        number = next(numbered) % len(wanted)
        before = truth.written()
        answer = _timed(client, dict(wanted[number], k=K), counts)
        if answer is not None and (wrong := truth.wrong(number, answer["hits"], K, before)):
            counts.wrong.append(f"query {number}: {wrong}")

    def write_until(end: float) -> None:
        client = Client(service.port)
        while time.monotonic() < end:
            number = next(numbers)
            _write(client, truth, f"written-{number}", number % len(contents), contents)
            if number % 5 == 4:
                _write(client, truth, f"written-{number - 4}", None, contents)
            memory.append((time.monotonic(), service.resident_bytes()))
        client.close()

    def warm_up() -> None:
        """Write until the memory of a process that has just started hardly grows any more, for a limited time."""
        end = time.monotonic() + _WARM_UP
        held = 0
        while service.resident_bytes() > (1 + _SETTLED) * held and time.monotonic() < end:
            held = service.resident_bytes()
            write_until(time.monotonic() + 2)

    def write_and_kill() -> None:
        write_until(began + sizes.seconds / 2)
        service.kill()
        service.start()
        warm_up()
        memory.clear()
        memory.append((time.monotonic(), service.resident_bytes()))
        write_until(time.monotonic() + sizes.seconds / 2)

    counts = _together(service.port, sizes.clients, sizes.seconds, ask, write_and_kill)
    return (
        _level(counts, time.monotonic() - began)
        | _kept(service.port, truth, contents)
        | {
            "wrong_answers": len(counts.wrong),
            "first_wrong": counts.wrong[:3],
        }
        | _memory(memory, memory[0][0] + sizes.seconds / 8)
    )


def _memory(samples: Sequence[tuple[float, int]], quarter: float) -> dict[str, int | None]:
    """Return the megabytes of samples (time, bytes) up to a time, after it, and at the end."""
    first = [held for moment, held in samples if moment <= quarter]
    later = [held for moment, held in samples if moment > quarter]
    return {
        "megabytes_first_quarter": _megabytes(max(first)),
        "megabytes_later": _megabytes(max(later, default=0)),
        "megabytes_at_end": _megabytes(samples[-1][1]),
    }


def _megabytes(held: int) -> int | None:
    """Return bytes in megabytes; `None` where the system does not say them."""
    return round(held / 1e6) if held else None


def _write(client: Client, truth: ServiceTruth, product_id: str, content: int | None, contents: Sequence[Any]) -> None:
    """Write or remove a product, again and again until it is acknowledged."""
    truth.begin(product_id)
    while True:
        if content is None:
            status, _ = client.call("DELETE", "/products", {"product_ids": [product_id]})
        else:
            status, _ = client.call("PUT", "/products", {"products": [{"product_id": product_id} | contents[content]]})
        if status == 200:
            return truth.acknowledge(product_id, content)
        if status not in (0, 429, 503, 504):
            raise RuntimeError(f"writing {product_id}: found status {status}; expected 200")
        time.sleep(_PAUSE)


def _kept(port: int, truth: ServiceTruth, contents: Sequence[Any]) -> dict[str, int]:
    """Return the number of acknowledged writes, and of those that the service does not show."""
    client, lost = Client(port), 0
    for product_id, state in truth.written().items():
        status, answer = client.call("GET", f"/products/{product_id}")
        title = None if state.content is None else contents[state.content]["title"]
        lost += (answer.get("title") if status == 200 else None) != title
    client.close()
    return {"writes": sum(state.version for state in truth.written().values()), "lost_writes": lost}
