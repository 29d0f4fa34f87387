"""Pictures from URLs are fetched once, within limits, and what fails is written down."""

from __future__ import annotations

import csv
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from picture_server import picture_server, png

from product_data.errors import OptionError
from product_data.picture_files import FAILURES, PictureFetcher, PictureFetching, default_folder, fetch_pictures


def how(folder, **changes):
    return PictureFetching(folder=folder, **({"allow_private": True, "timeout_seconds": 5} | changes))


def test_each_address_is_asked_once_and_kept_for_the_next_run(tmp_path):
    with picture_server() as server:
        addresses = [server.url("red"), server.url("blue"), server.url("red")]
        first = fetch_pictures(addresses, how(tmp_path))
        second = fetch_pictures(addresses, how(tmp_path))
    assert dict(server.asked) == {"red": 1, "blue": 1}
    assert (first.fetched, second.fetched) == (2, 0)
    assert first.files == second.files
    assert list(first.files) == addresses[:2]
    assert not list(tmp_path.glob("*.partial"))


def test_what_fails_is_named_with_its_reason_and_asked_again(tmp_path):
    with picture_server() as server:
        names = ("missing", "page", "broken", "red")
        found = fetch_pictures([server.url(name) for name in names], how(tmp_path))
        assert list(found.files) == [server.url("red")]
        rows = list(csv.reader((tmp_path / FAILURES).open(encoding="utf-8")))
        assert rows[0] == ["address", "reason"]
        assert [(row[0].rsplit("/", 1)[1], word in row[1]) for row, word in zip(rows[1:], ("404", "text/html", "truncated"),
                strict=True)] == [("missing", True), ("page", True), ("broken", True)]  # fmt: skip
        fetch_pictures([server.url("missing")], how(tmp_path))
        assert server.asked["missing"] == 2
        fetch_pictures([server.url("red")], how(tmp_path))
        assert not (tmp_path / FAILURES).exists()
    assert "1 fetched" in str(found)
    assert "3 failed" in str(found)


def test_private_addresses_are_refused_unless_allowed(tmp_path):
    with picture_server() as server:
        found = fetch_pictures([server.url("red")], how(tmp_path, allow_private=False))
        assert "non-public address" in found.failures[server.url("red")]
        assert not server.asked


def test_the_limits_hold(tmp_path):
    with picture_server() as server:
        addresses = [server.url(name) for name in ("red", "green", "blue")]
        too_big = fetch_pictures(addresses[:1], how(tmp_path / "a", max_bytes=50))
        assert "at most max_bytes=50" in too_big.failures[addresses[0]]
        some = fetch_pictures(addresses, how(tmp_path / "b", workers=1, total_bytes=1))
        assert len(some.files) == 1
        assert all("bytes for all pictures were used up" in why for why in some.failures.values())
        late = fetch_pictures(addresses, how(tmp_path / "c", total_seconds=1e-9))
        assert all("seconds for all pictures were used up" in why for why in late.failures.values())
        asked = sum(server.asked.values())
        offline = fetch_pictures(addresses, how(tmp_path / "b", fetch=False))
        assert (len(offline.files), sum(server.asked.values())) == (1, asked)
        assert "fetching is turned off" in next(iter(offline.failures.values()))


def test_no_addresses_make_no_folder(tmp_path):
    assert fetch_pictures([], how(tmp_path / "none")).files == {}
    assert not (tmp_path / "none").exists()


def test_the_folder_can_be_named_and_limits_are_checked(tmp_path, monkeypatch):
    monkeypatch.setenv("MOON_PICTURE_CACHE", str(tmp_path))
    assert default_folder() == tmp_path
    with pytest.raises(OptionError, match="workers: found 0; expected a positive number"):
        PictureFetching(folder=tmp_path, workers=0)


@pytest.fixture
def busy_server():
    """A server whose first answers are errors; `answers` holds (status, Retry-After or None) for each of them."""
    answers: list[tuple[int, str | None]] = []
    times: list[float] = []

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            """Quiet."""

        def do_GET(self) -> None:
            times.append(time.monotonic())
            status, pause = answers.pop(0) if answers else (200, None)
            body = png("red")
            self.send_response(status)
            if pause is not None:
                self.send_header("Retry-After", pause)
            self.send_header("Content-Type", "image/png")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    local = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    local.daemon_threads = True
    threading.Thread(target=local.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield f"http://127.0.0.1:{local.server_address[1]}/red", answers, times
    local.shutdown()
    local.server_close()


def test_failures_that_may_pass_are_tried_again_after_a_growing_pause(tmp_path, busy_server):
    url, answers, times = busy_server
    answers += [(503, None), (429, None)]
    found = fetch_pictures([url], how(tmp_path, backoff_seconds=0.05))
    assert list(found.files) == [url]
    assert len(times) == 3
    assert times[1] - times[0] >= 0.05
    assert times[2] - times[1] >= 0.1


def test_a_server_says_how_long_to_wait(tmp_path, busy_server):
    url, answers, times = busy_server
    answers += [(429, "1")]
    assert fetch_pictures([url], how(tmp_path, backoff_seconds=0.01)).files
    assert times[1] - times[0] >= 1
    answers += [(429, "3600")]
    late = fetch_pictures([url + "?2"], how(tmp_path))
    assert "429" in late.failures[url + "?2"]
    assert len(times) == 3
    answers += [(503, "Wed, 21 Oct 2015 07:28:00 GMT")]
    assert fetch_pictures([url + "?3"], how(tmp_path, backoff_seconds=60)).files


def test_a_server_that_stays_busy_is_given_up_and_other_errors_are_not_tried_again(tmp_path, busy_server):
    url, answers, times = busy_server
    answers += [(500, None)] * 3
    found = fetch_pictures([url], how(tmp_path, backoff_seconds=0.01))
    assert found.failures[url].endswith("(3 attempts)")
    assert len(times) == 3
    answers += [(404, None)]
    assert "404" in fetch_pictures([url], how(tmp_path)).failures[url]
    assert len(times) == 4
    with pytest.raises(OptionError, match="retries: found -1; expected 0 or more"):
        how(tmp_path, retries=-1)


def test_several_calls_share_limits_failures_and_one_attempt_for_each_url(tmp_path):
    with picture_server() as server, PictureFetcher(how(tmp_path)) as fetcher:
        first = fetcher.fetch([server.url("red"), server.url("missing")])
        second = fetcher.fetch([server.url("missing"), server.url("blue")])
        assert (first.fetched, second.fetched) == (1, 1)
        assert first.failures == second.failures
        assert server.asked["missing"] == 1
        assert str(fetcher) == "pictures from URLs: 2 fetched (0.0 MiB), 1 failed"
    rows = list(csv.reader((tmp_path / FAILURES).open(encoding="utf-8")))
    assert [row[0] for row in rows[1:]] == [server.url("missing")]
