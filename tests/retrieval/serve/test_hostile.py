"""Requests that mean harm, or are broken: each is answered with 4xx, in seconds, and the service goes on."""

from __future__ import annotations

import base64
import gc
import gzip
import json
import socket
import struct
import threading
import time
import weakref
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from pictures import file_of, noise, plain
from PIL import Image
from starlette.testclient import TestClient

from retrieval.encode import encode, load_for_evaluation
from retrieval.queries import Query, SearchError
from retrieval.query_encoder import QueryEncoder
from retrieval.search import Searcher
from retrieval.serve.app import create_app
from retrieval.serve.connections import LARGEST_HEAD, TimedProtocol, server_options
from retrieval.serve.memory import return_large_blocks
from retrieval.serve.settings import ServiceSettings
from retrieval.stores.embedded import EmbeddedStore
from retrieval.stores.interface import StoredProduct

KEY = "a key of this test"
AUTHORISED = {"Authorization": f"Bearer {KEY}"}
LIMIT = 200_000
SCRIPT = "<script>alert(1)</script>"
PHOTO = file_of(noise(40, 40, 1))
JSON_TYPE, FORM_TYPE = {"Content-Type": "application/json"}, {"Content-Type": "multipart/form-data; boundary=b"}


class QuickProtocol(TimedProtocol):
    """The service's connections with a shorter time, so that the test does not wait."""

    head_seconds = 1.0


@pytest.fixture(scope="module")
def searcher(tiny_moon: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Searcher]:
    moon = load_for_evaluation(tiny_moon(), device="cpu")
    store = EmbeddedStore(tmp_path_factory.mktemp("shop") / "store", 32, "print")
    titles = ("red shoes", "blue bag", SCRIPT)
    products = [StoredProduct(f"p{place}", title, images=("/etc/passwd",)) for place, title in enumerate(titles)]
    store.upsert(products, {"mm": encode(*moon, [{"title": title} for title in titles], progress=False).vectors})
    yield Searcher(store, QueryEncoder(*moon, "print"))
    store.close()


@pytest.fixture(scope="module")
def app(searcher: Searcher) -> Any:
    limits = {"max_body_bytes": LIMIT, "max_pixels": 1_000_000, "max_text": 100, "body_seconds": 1.5}
    return create_app(searcher, ServiceSettings(api_key=KEY, **limits))


@pytest.fixture(scope="module")
def server(app: Any) -> Iterator[int]:
    """Serve with uvicorn, as `moon3 serve` does; yield the port."""
    running = uvicorn.Server(uvicorn.Config(app, port=0, **server_options(http=QuickProtocol)))
    thread = threading.Thread(target=running.run)
    thread.start()
    while not running.started:
        assert thread.is_alive()
        time.sleep(0.02)
    yield running.servers[0].sockets[0].getsockname()[1]
    running.should_exit = True
    thread.join()


@pytest.fixture(scope="module")
def client(server: int, app: Any) -> TestClient:
    """A client in this process: a defect is raised here, not answered with 500. `server` runs the application's lifespan."""
    return TestClient(app)


def goes_on(client: TestClient) -> bool:
    answer = client.post("/search", json={"text": "red shoes"})
    return answer.status_code == 200 and len(answer.json()["hits"]) == 3


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def bomb(side: int) -> bytes:
    """Return a PNG of side × side pixels, all zero, in a few kilobytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer = zlib.compressobj(9)
    rows = packer.compress(bytes(side // 8 + 1) * min(side, 4096)) + packer.flush()
    head = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


# ---------------------------------------------------------------------------------------------------------------------
# Bodies of JSON
# ---------------------------------------------------------------------------------------------------------------------
BODIES = {
    "nothing": b"",
    "half": b'{"text": "re',
    "a list": b"[]",
    "null": b"null",
    "deep lists": b"[" * 100_000,
    "deep objects": b'{"text":' * 30_000,
    "deep, closed": b'{"text": ' + b"[" * 50_000 + b"]" * 50_000 + b"}",
    "NaN": b'{"text": "bag", "weight": NaN}',
    "infinity": b'{"text": "bag", "k": Infinity}',
    "a number beyond floats": b'{"like": "p1", "text": "bag", "weight": 1e999}',
    "a huge whole number": b'{"text": "bag", "k": ' + b"9" * 4000 + b"}",
    "a number of 10,000 digits": b'{"text": "bag", "k": ' + b"9" * 10_000 + b"}",
    "not UTF-8": b'{"text": "\xff\xfe"}',
    "half of a surrogate pair": b'{"text": "\\ud800"}',
    "a surrogate in a key": b'{"\\udfff": "bag"}',
    "a field of another name": b'{"__class__": "x", "text": "bag"}',
    "a negative offset": b'{"text": "bag", "offset": -1}',
    "text of another type": b'{"text": {"$gt": ""}}',
    "too long a text": b'{"text": "' + b"x" * 5_000 + b'"}',
    "only spaces": '{"text": "\u2028 \u00a0"}'.encode(),
    "SQL in an id": b'{"like": "p1\' OR 1=1 --"}',
    "a NUL in an id": b'{"like": "p1\\u0000"}',
    "SQL in a filter": b'{"text": "bag", "where": "price < 1; DROP TABLE products"}',
    "a filter without end": b'{"text": "bag", "where": "' + b"price < 1 and " * 2_000 + b'"}',
    "an open quote": b'{"text": "bag", "where": "brand = \'x"}',
    "boxes of NaN": b'{"image": "AAAA", "box": [0, 0, NaN, 1]}',
    "a box beyond floats": b'{"image": "AAAA", "box": [0, 0, 1e999, 1]}',
    "a box of texts": b'{"image": "AAAA", "box": ["http://169.254.169.254/", 0, 1, 1]}',
    "a box alone": b'{"box": [0, 0, 1, 1]}',
    "forms that are none": b'{"text": "bag", "forms": ["../../etc"]}',
    "a flag that is a list": b'{"text": "bag", "words": []}',
}


@pytest.mark.parametrize("name", BODIES)
def test_a_hostile_body_is_refused(client, name):
    answer = client.post("/search", content=BODIES[name], headers=JSON_TYPE)
    assert 400 <= answer.status_code < 500, answer.text
    assert answer.json()["error"]
    assert goes_on(client)


# ---------------------------------------------------------------------------------------------------------------------
# Pictures
# ---------------------------------------------------------------------------------------------------------------------
PICTURES = {
    "a file URL": "file:///etc/passwd",
    "a cloud's metadata": "http://169.254.169.254/latest/meta-data/",
    "a path": "../../../../etc/passwd",
    "a data URL of text": "data:text/html;base64," + encoded(SCRIPT.encode()),
    "a bomb": encoded(bomb(30_000)),
    "a bomb without its pixels": encoded(bomb(900)[:60]),
    "half a JPEG": encoded(file_of(noise(200, 200), "JPEG")[:3_000]),
    "half a PNG": encoded(PHOTO[: len(PHOTO) // 2]),
    "an SVG that fetches": encoded(b'<svg xmlns="http://www.w3.org/2000/svg"><image href="http://x/"/></svg>'),
    "an EPS, which runs programs": encoded(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"),
    "a compressed picture": encoded(gzip.compress(PHOTO)),
    "a PDF": encoded(b"%PDF-1.7\n"),
    "zeros": encoded(bytes(1000)),
    "a name and no pixels": encoded(b"\x89PNG\r\n\x1a\n"),
}


@pytest.mark.parametrize("name", PICTURES)
def test_a_hostile_picture_is_refused_and_nothing_is_opened(client, name, monkeypatch):
    monkeypatch.setattr("processing_moon.images_moon.fetch", lambda *_, **__: pytest.fail("a URL was fetched"))
    began = time.monotonic()
    for path in ("/search", "/embed", "/region"):
        answer = client.post(path, json={"image": PICTURES[name]})
        assert answer.status_code == 400, answer.text
        assert "root:" not in answer.text
    written = client.put(
        "/products", json={"products": [{"product_id": "x", "pictures": [PICTURES[name]]}]}, headers=AUTHORISED
    )
    assert written.status_code == 400
    assert time.monotonic() - began < 20
    assert goes_on(client)


def test_many_pictures_that_are_small_alone_are_too_large_together(client):
    pictures = [encoded(file_of(plain("red", 990)))] * 5
    answer = client.put("/products", json={"products": [{"product_id": "x", "pictures": pictures}]}, headers=AUTHORISED)
    assert (answer.status_code, "too many pixels" in answer.json()["error"]) == (400, True)


def megabytes(name: str) -> float:
    """Return a size of this process: VmRSS, or VmHWM, the most since the peak was reset."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1000


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="this system does not say the peak of memory")
def test_many_bombs_at_once_share_a_bounded_memory_and_return_it(searcher):
    """64 pictures of 9 million pixels would take 64 × 36 MB, and more while they are decoded.

    The first round makes the threads and their arenas, which stay; the second one shows what pictures leave behind.
    """
    settings = ServiceSettings(max_pixels=9_000_000)
    picture = bomb(3_000)
    assert len(picture) < 10_000
    assert return_large_blocks()
    bound = 3 * 4 * settings.pixels_in_work / 1e6
    with TestClient(create_app(searcher, settings)) as client:
        assert client.post("/search", json={"image": encoded(picture)}).status_code == 200
        peak, kept = memory_of_a_round(client, picture)
        assert peak < bound
        assert kept < 2 / 3 * peak
        peak, kept = memory_of_a_round(client, picture)
        assert peak < bound
        assert kept < 100
        assert goes_on(client)


def memory_of_a_round(client, picture: bytes) -> tuple[float, float]:
    """Return by how many megabytes 64 searches at once raise the memory at most, and afterwards."""
    statuses: list[int] = []

    def search() -> None:
        statuses.append(client.post("/search", json={"image": encoded(picture)}).status_code)

    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before = megabytes("VmRSS")
    threads = [threading.Thread(target=search) for _ in range(64)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(statuses) <= {200, 429}
    assert statuses.count(200) >= 4
    return megabytes("VmHWM") - before, megabytes("VmRSS") - before


def test_an_error_does_not_keep_the_picture_of_its_request(searcher, monkeypatch):
    """The collector of cycles would find it, but a service that only encodes makes few new objects, so it runs seldom."""
    opened: list[weakref.ref[Image.Image]] = []

    def fail(query: Query, *_: Any) -> None:
        opened.append(weakref.ref(query.image))
        raise SearchError("query: not now")

    with TestClient(create_app(searcher)) as client:
        monkeypatch.setattr(Searcher, "search", lambda _, query, *more: fail(query, *more))
        gc.disable()
        try:
            assert client.post("/search", json={"image": encoded(PHOTO)}).status_code == 400
            assert [one() for one in opened] == [None]
        finally:
            gc.enable()


def part(name: str, value: bytes, filename: str = "") -> bytes:
    file = f'; filename="{filename}"' if filename else ""
    return f'--b\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'.encode() + value + b"\r\n"


FORMS = {
    "nothing": b"",
    "an open part": part("text", b"bag"),
    "half a head": b"--b\r\nContent-Dispo",
    "a part without a name": b"--b\r\nContent-Disposition: form-data\r\n\r\nx\r\n--b--\r\n",
    "thousands of fields": b"".join(part(f"f{number}", b"x") for number in range(2_000)) + b"--b--\r\n",
    "many files": part("image", PHOTO, "a.png") * 30 + b"--b--\r\n",
    "a file as text": part("text", PHOTO, "../../x.py") + b"--b--\r\n",
    "a path as picture": part("image", b"/etc/passwd") + b"--b--\r\n",
    "a file of nothing": part("image", b"", "a.png") + b"--b--\r\n",
    "many heads": b"--b\r\n" + b"X-Head: 1\r\n" * 5_000 + b"\r\nx\r\n--b--\r\n",
    "not a number": part("text", b"bag") + part("k", b"nan") + b"--b--\r\n",
    "a weight that is not finite": part("text", b"x") + part("weight", b"nan") + b"--b--\r\n",
    "a box beyond floats": part("image", PHOTO, "a.png") + part("box", b"0,0,inf,9") + b"--b--\r\n",
}


@pytest.mark.parametrize("name", FORMS)
def test_a_hostile_form_is_refused(client, name):
    answer = client.post("/search", content=FORMS[name], headers=FORM_TYPE)
    assert 400 <= answer.status_code < 500, answer.text
    assert goes_on(client)


@pytest.mark.parametrize(
    "kind", ["multipart/form-data", "multipart/form-data; boundary=", "application/xml", "text/plain", "", "a/b/c;;;"]
)
def test_another_type_or_a_form_without_a_boundary_is_refused(client, kind):
    answer = client.post("/search", content=b"--b\r\n", headers={"Content-Type": kind})
    assert answer.status_code in (400, 415)


# ---------------------------------------------------------------------------------------------------------------------
# Products of clients
# ---------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "product",
    [
        {"product_id": "x", "title": "x", "images": ["file:///etc/passwd"]},
        {"product_id": "x", "title": "x", "images": ["/etc/passwd"]},
        {"product_id": "x", "title": "x", "images": ["../store/moon_store.json"]},
        {"product_id": "x", "title": "x", "digest": "feed"},
        {"product_id": " ", "title": "x"},
        {"product_id": "x", "title": "x", "price": 1e400},
        {"product_id": "x", "title": "x", "price": True},
        {"product_id": "x", "title": "x", "attributes": {"a": [{"b": 1}]}},
        {"product_id": "\ud800", "title": "x"},
        {"product_id": "x", "title": "\ud800"},
        {"product_id": "x", "title": "x", "category": [["x"]]},
    ],
)
def test_a_hostile_product_is_refused(client, product):
    body = json.dumps({"products": [product]}).replace("Infinity", "1e400").encode()
    answer = client.put("/products", content=body, headers=AUTHORISED | JSON_TYPE)
    assert answer.status_code == 400, answer.text
    assert goes_on(client)


@pytest.mark.parametrize("key", ["", "Bearer", "Bearer ", "Bearer \xff", "Bearer " + "x" * 5_000, "Basic YTpi"])
def test_a_wrong_key_is_refused(client, key):
    answer = client.put("/products", json={}, headers={"Authorization": key.encode("latin-1")})
    assert answer.status_code == 401


def test_a_script_in_a_title_is_text(client):
    answer = client.get("/products/p2")
    assert (answer.json()["title"], answer.headers["content-type"]) == (SCRIPT, "application/json")
    assert SCRIPT not in client.get("/").text


# ---------------------------------------------------------------------------------------------------------------------
# Paths
# ---------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "path",
    [
        "/products/..%2f..%2fetc%2fpasswd",
        "/products/%00",
        "/products/%ff%fe",
        "/products/" + "x" * 8_000,
        "/products/p1'%20OR%201=1",
        "/pictures/0/p0",  # the store names /etc/passwd, which is not a picture
        "/pictures/-1/p0",
        "/pictures/99999999999999999999/p0",
        "/pictures/0/..%2f..%2fetc%2fpasswd",
        "/pictures/0/http:%2f%2f169.254.169.254%2f",
        "/pictures/1e3/p0",
        "/pictures/../../etc/passwd",
        "/../../etc/passwd",
        "/%2e%2e/%2e%2e/etc/passwd",
        "/page/index.html",
        "/static/..%5c..%5cwindows",
        "//169.254.169.254/",
        "/facets?where=" + "(" * 500,
        "/facets?where=price%20%3C%20%00",
    ],
)
def test_a_path_leads_nowhere(server, path):
    status, answer = sent(server, f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    assert 400 <= status < 500, answer
    assert b"root:" not in answer


# ---------------------------------------------------------------------------------------------------------------------
# Connections, through uvicorn
# ---------------------------------------------------------------------------------------------------------------------
def sent(port: int, *parts: bytes, pause: float = 0.0) -> tuple[int, bytes]:
    """Send parts with pauses; return the status and all that was answered until the end of the connection."""
    with socket.create_connection(("127.0.0.1", port), timeout=15) as opened:
        answer = b""
        try:
            for one in parts:
                opened.sendall(one)
                time.sleep(pause)
        except (BrokenPipeError, ConnectionResetError):
            pass  # it was answered before all was sent
        try:
            while data := opened.recv(65536):
                answer += data
        except ConnectionResetError:
            pass
    return (int(answer.split()[1]) if answer.startswith(b"HTTP/1.1 ") else 0), answer


HEAD = b"POST /search HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nConnection: close\r\n"
CONNECTIONS = {
    "a flood of headers": (400, [b"GET /health HTTP/1.1\r\nHost: x\r\n" + b"X-Flood: y\r\n" * 5_000]),
    "a huge header": (400, [b"GET /health HTTP/1.1\r\nHost: x\r\nX-A: " + b"y" * 2 * LARGEST_HEAD]),
    "a huge path": (400, [b"GET /" + b"y" * 2 * LARGEST_HEAD]),
    "no HTTP": (400, [b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 hello\r\n\r\n"]),
    "two lengths": (400, [HEAD + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nxx"]),
    "a negative length": (400, [HEAD + b"Content-Length: -1\r\n\r\n"]),
    "no length": (400, [HEAD + b"\r\n"]),
    "a broken chunk": (400, [HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\nxx\r\n"]),
    "a huge body": (413, [HEAD + f"Content-Length: {3 * LIMIT}\r\n\r\n".encode(), b"x" * 3 * LIMIT]),
    "a body without end": (
        413,
        [HEAD + b"Transfer-Encoding: chunked\r\n\r\n", *[b"8000\r\n" + b"x" * 32768 + b"\r\n"] * 99],
    ),
    "a compressed body": (400, [HEAD + b"Content-Encoding: gzip\r\nContent-Length: 2\r\n\r\n\x1f\x8b"]),
    "half a body": (408, [HEAD + b'Content-Length: 50\r\n\r\n{"text"']),
    "no head": (408, [b""]),
    "half a head": (408, [b"POST /search HTTP/1.1\r\nHost: x\r\n"]),
    "another host": (200, [b"GET /health HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n"]),
    "an upgrade": (
        200,
        [b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close, Upgrade\r\nUpgrade: websocket\r\n\r\n"],
    ),
}


@pytest.mark.parametrize("name", CONNECTIONS)
def test_a_hostile_connection_is_answered_and_closed(server, name):
    expected, parts = CONNECTIONS[name]
    began = time.monotonic()
    status, answer = sent(server, *parts)
    assert (status, time.monotonic() - began < 12) == (expected, True), answer


@pytest.mark.parametrize("slow", ["head", "body", "second head"])
def test_a_request_that_drips_is_closed_while_others_are_answered(server, client, slow):
    start = {
        "head": b"POST /search HTTP/1.1\r\n",
        "body": HEAD + b"Content-Length: 1000\r\n\r\n",
        "second head": b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n",
    }[slow]
    drips = [b"X: y\r\n" if "head" in slow else b" "] * 40
    ended: list[tuple[int, bytes, float]] = []

    def drip() -> None:
        began = time.monotonic()
        ended.append((*sent(server, start, *drips, pause=0.2), time.monotonic() - began))

    slow_ones = [threading.Thread(target=drip) for _ in range(8)]
    for thread in slow_ones:
        thread.start()
    assert goes_on(client)
    for thread in slow_ones:
        thread.join()
    assert len(ended) == 8
    for status, answer, seconds in ended:
        assert b" 408 " in answer or status == 0, answer  # 0: the answer was lost, since the client went on sending
        assert b" 500 " not in answer
        assert seconds < 8 - 0.5  # all drips take 8 s
    assert goes_on(client)


def test_idle_connections_do_not_keep_others_out(server, client):
    idle = [socket.create_connection(("127.0.0.1", server), timeout=15) for _ in range(200)]
    try:
        assert goes_on(client)
        assert sent(server, b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")[0] == 200
        time.sleep(2)
        assert all(b" 408 " in opened.recv(1000) for opened in idle)
    finally:
        for opened in idle:
            opened.close()
