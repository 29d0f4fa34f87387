"""URLs are fetched only when allowed, only from public addresses, within size and time."""

from __future__ import annotations

import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from pictures import file_of, noise

from processing_moon import ImageLimits, ProductError, open_image, urls_moon

URLS = ImageLimits(allow_urls=True, timeout_seconds=3)


class Handler(BaseHTTPRequestHandler):
    """Serves one picture under several kinds of behaviour."""

    picture = b""
    protocol_version = "HTTP/1.0"

    def log_message(self, *args):
        """Quiet."""

    def do_GET(self):
        name = self.path.split("?")[0].strip("/")
        redirects = {"redirect": "/picture.png", "loop": "/loop", "to_private": "http://10.0.0.1/x.png",
                     "to_file": "file:///etc/passwd", "to_name": "http://inside.test/picture.png"}  # fmt: skip
        if name in redirects:
            self.send_response(302)
            self.send_header("Location", redirects[name])
            self.end_headers()
            return
        self.send_response(404 if name == "missing" else 200)
        self.send_header("Content-Type", "text/html" if name == "page" else "image/png")
        if name == "gzip":
            self.send_header("Content-Encoding", "gzip")
        self.send_header("Content-Length", str(len(self.picture) + (1000 if name == "short" else 0)))
        self.end_headers()
        if name == "slow":
            for place in range(len(self.picture)):
                self.wfile.write(self.picture[place : place + 1])
                self.wfile.flush()
                time.sleep(0.2)
        self.wfile.write(b"<html>" if name == "not_image" else self.picture)


@pytest.fixture
def server(monkeypatch):
    """A server on this machine, and 127.0.0.1 taken for a public address."""
    Handler.picture = file_of(noise(96, 64))
    local = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    local.daemon_threads = True
    thread = threading.Thread(target=local.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    strict = urls_moon._is_public
    monkeypatch.setattr(urls_moon, "_is_public", lambda address: address == "127.0.0.1" or strict(address))
    yield f"http://127.0.0.1:{local.server_address[1]}"
    local.shutdown()
    local.server_close()


def test_a_permitted_url_gives_the_picture_that_is_there(server, processor):
    for path in ("picture.png", "redirect", "picture é.png?size=a b"):
        assert np.array_equal(np.asarray(open_image(f"{server}/{path}", limits=URLS)), np.asarray(noise(96, 64)))
    batch = processor(queries=[{"image": f"{server}/picture.png"}], allow_urls=True, timeout_seconds=3)
    assert batch["pixel_values"].equal(processor(queries=[{"image": noise(96, 64)}])["pixel_values"])
    plain = processor(text="a", images=f"{server}/picture.png", allow_urls=True, return_tensors="pt")
    assert plain["pixel_values"].equal(batch["pixel_values"])


def test_urls_are_refused_unless_the_caller_allows_them(server, processor):
    with pytest.raises(ProductError, match="is not fetched unless allow_urls=True"):
        open_image(f"{server}/picture.png")
    with pytest.raises(ProductError, match="query 0, field 'image': URL .* is not fetched unless allow_urls=True"):
        processor(queries=[{"image": f"{server}/picture.png"}])
    with pytest.raises(ProductError, match="is not fetched unless"):
        processor(text="a", images="https://example.com/x.png")


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("missing", "the server responded with 404"),
        ("page", "the server sent 'text/html'; expected an image"),
        ("gzip", "a body with encoding .gzip."),
        ("not_image", "truncated|not an image"),
        ("short", "bytes early"),
        ("loop", "redirects more than 5 times"),
        ("to_private", "non-public address 10.0.0.1"),
        ("to_file", "is not fetched; expected http"),
        ("to_name", "non-public address 192.168.7.7"),
    ],
)
def test_what_a_server_may_do_wrong_is_an_error(server, monkeypatch, path, reason):
    real = socket.getaddrinfo

    def resolve(host, *args, **kwargs):
        return real("192.168.7.7" if host == "inside.test" else host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    with pytest.raises(ProductError, match=reason):
        open_image(f"{server}/{path}", limits=URLS)


def test_size_and_time_are_limited(server):
    with pytest.raises(ProductError, match="more than 500 bytes"):
        open_image(f"{server}/picture.png", limits=ImageLimits(allow_urls=True, max_bytes=500))
    start = time.monotonic()
    with pytest.raises(ProductError, match=r"timed out after 0\.7 seconds"):
        open_image(f"{server}/slow", limits=ImageLimits(allow_urls=True, timeout_seconds=0.7))
    assert time.monotonic() - start < 2.5


def test_a_server_that_never_answers_times_out(monkeypatch):
    monkeypatch.setattr(urls_moon, "_is_public", lambda address: True)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/x.png"
        with pytest.raises(ProductError, match=r"timed out after 0\.5 seconds"):
            open_image(url, limits=ImageLimits(allow_urls=True, timeout_seconds=0.5))
    with pytest.raises(ProductError, match="failed"):
        open_image(url, limits=URLS)


@pytest.mark.parametrize(
    "url",
    ["http://127.0.0.1/x.png", "http://127.1/x.png", "http://2130706433/x.png", "http://localhost/x.png",
     "https://10.1.2.3/x.png", "http://172.16.0.1/", "http://192.168.1.1/", "http://169.254.169.254/latest/meta-data",
     "http://100.64.0.1/", "http://0.0.0.0/", "http://224.0.0.1/", "http://240.0.0.1/", "http://[::1]/x.png",
     "http://[::ffff:127.0.0.1]/x.png", "http://[::ffff:10.0.0.1]/", "http://[fe80::1]/", "http://[fc00::1]/",
     "http://[fec0::1]/", "http://[64:ff9b::a00:1]/", "http://[2002:7f00:1::]/", "http://[::]/", "http://[ff02::1]/"],
)  # fmt: skip
def test_addresses_that_are_not_public_are_refused(url):
    with pytest.raises(ProductError, match="has the non-public address"):
        open_image(url, limits=URLS)


def test_public_addresses_pass_the_check():
    for address in ("93.184.216.34", "8.8.8.8", "2606:4700:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"):
        assert urls_moon._is_public(address)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("file:///etc/passwd", "a file: URL is not opened"),
        ("ftp://example.com/x.png", "a ftp: URL is not opened"),
        ("FILE://localhost/x.png", "a file: URL is not opened"),
        ("data:image/png;base64,iVBORw0KGgo=", "a data: URL is not opened"),
        ("http://user:secret@example.com/x.png", "user name or password"),
        ("http://", "is not fetched"),
        ("http://[::1", "is not a URL"),
        ("http://example.com:99999/x.png", "is not a URL"),
        ("http://no-such-host.invalid/x.png", "cannot be resolved"),
        ("http://" + "a" * 70 + ".com/x.png", "cannot be resolved"),
    ],
)
def test_other_schemes_and_malformed_urls_are_refused(url, reason):
    with pytest.raises(ProductError, match=reason):
        open_image(url, limits=URLS)


def test_one_private_address_among_several_refuses_the_host(monkeypatch):
    entries = [(2, 1, 6, "", (address, 80)) for address in ("93.184.216.34", "10.0.0.5")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: entries)
    with pytest.raises(ProductError, match=r"non-public address 10\.0\.0\.5"):
        open_image("http://mixed.test/x.png", limits=URLS)


def test_the_connection_goes_to_the_address_that_was_checked(server, monkeypatch):
    """A name that resolves to another address the second time (DNS rebinding) gains nothing: there is no second time."""
    calls = []
    port = int(server.rsplit(":", 1)[1])

    def resolve(host, *args, **kwargs):
        calls.append(host)
        return [(2, 1, 6, "", ("127.0.0.1" if len(calls) == 1 else "10.0.0.5", port))]

    monkeypatch.setattr(urls_moon.socket, "getaddrinfo", resolve)
    target = urls_moon._check_url(f"http://rebinding.test:{port}/picture.png")
    assert (target.host, target.address) == ("rebinding.test", "127.0.0.1")
    reached = []
    monkeypatch.setattr(urls_moon.socket, "create_connection", lambda where, timeout: reached.append(where) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        urls_moon._PinnedConnection(target, 1.0).connect()
    assert reached == [("127.0.0.1", port)]
    assert calls == ["rebinding.test"]
