"""Fetch pictures that tables give as URLs: each once, several at a time, into a folder that later runs reuse.

Our design (precedent: img2dataset, which fetches a table of URLs within limits and counts failures by reason). A failure that
may pass (a timeout, a busy server) is tried again after a growing pause; a run that was stopped goes on where it was, since
a picture in the folder is not fetched again.
Only URLs of public hosts are fetched, as in `processing_moon.images_moon.open_image`, unless private ones are allowed.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import os
import threading
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from tqdm import tqdm

from product_data.errors import OptionError

FAILURES = "failures.csv"
_KEPT_REASON = 300
ENVIRONMENT = "MOON_PICTURE_CACHE"


def default_folder() -> Path:
    """Return the folder in `MOON_PICTURE_CACHE`, or else `moon/pictures` in the user's cache."""
    if folder := os.environ.get(ENVIRONMENT):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "moon" / "pictures"


@dataclass(frozen=True)
class PictureFetching:
    """Settings and limits for fetching pictures.

    Args:
        folder (`Path`): the folder that keeps them. Default: see `default_folder`.
        fetch (`bool`): whether to fetch what the folder lacks from the network. Default True.
        workers (`int`): number of pictures that are fetched at a time. Default 16.
        timeout_seconds (`float`): limit for one picture. Default 10.
        total_seconds (`float` or `None`): limit for all pictures together; the rest counts as failed. Default: no
        limit.
        max_bytes (`int`): limit for one picture. Default 32 MiB.
        total_bytes (`int` or `None`): limit for all fetched pictures together; the rest counts as failed. Default: no
        limit.
        allow_private (`bool`): also fetch from hosts that are not public. Default False.
        retries (`int`): further attempts after a failure that may pass: a timeout, a broken connection, or status 408, 425,
            429, 500, 502, 503 or 504. Default 2.
        backoff_seconds (`float`): pause before the first further attempt; it doubles each time. A server's `Retry-After`
            counts instead. Default 0.5.
        max_wait_seconds (`float`): limit of a pause; a server that asks for a longer one counts as failed. Default 30.

    Raises:
        OptionError: a number that is not positive, or retries below 0.
    """

    folder: Path = field(default_factory=default_folder)
    fetch: bool = True
    workers: int = 16
    timeout_seconds: float = 10.0
    total_seconds: float | None = None
    max_bytes: int = 32 * 2**20
    total_bytes: int | None = None
    allow_private: bool = False
    retries: int = 2
    backoff_seconds: float = 0.5
    max_wait_seconds: float = 30.0

    def __post_init__(self) -> None:
        positive = ("workers", "timeout_seconds", "total_seconds", "max_bytes", "total_bytes", "backoff_seconds")
        for name in (*positive, "max_wait_seconds"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise OptionError(f"{name}: found {value!r}; expected a positive number")
        if self.retries < 0:
            raise OptionError(f"retries: found {self.retries!r}; expected 0 or more")


@dataclass(frozen=True)
class FetchedPictures:
    """The outcome of fetching pictures.

    Args:
        files: URL → file.
        failures: URL → why there is no picture.
        fetched: number of pictures that came over the network, not from the folder.
        bytes: their total size.
    """

    files: dict[str, str]
    failures: dict[str, str]
    fetched: int = 0
    bytes: int = 0

    def __str__(self) -> str:
        kept = len(self.files) - self.fetched
        return (
            f"pictures from URLs: {self.fetched} fetched ({self.bytes / 2**20:.1f} MiB), "
            f"{kept} already in the folder, {len(self.failures)} failed"
        )


def fetch_pictures(addresses: Iterable[str], settings: PictureFetching | None = None) -> FetchedPictures:
    """Fetch each URL once, unless its file exists; write `failures.csv` (address, reason) if some fail.

    A picture counts only if it can be opened completely. A file gets its name once it is complete: several runs can
    share a folder. The next run tries failed URLs again.

    Args:
        addresses: http(s) URLs; duplicates are allowed.
        settings: limits and folder. Default: `PictureFetching()`.

    Returns: see `FetchedPictures`; keeps the order of `addresses`.
    """
    with PictureFetcher(settings, progress=True) as fetcher:
        return fetcher.fetch(addresses)


class PictureFetcher:
    """Fetch pictures in several calls that share limits, folder and `failures.csv`, which is written when it closes.

    Args:
        settings: limits and folder. Default: `PictureFetching()`.
        progress (`bool`): show a progress bar for each call. Default False.
    """

    def __init__(self, settings: PictureFetching | None = None, *, progress: bool = False) -> None:
        self.settings = settings or PictureFetching()
        self.fetched = self.bytes = self.failed = 0
        self._progress = progress
        total = self.settings.total_seconds
        self._ends = time.monotonic() + total if total is not None else None
        self._lock = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None
        self._failures = _Failures(self.settings.folder / FAILURES)
        self._reasons: dict[str, str] = {}

    def __enter__(self) -> PictureFetcher:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def fetch(self, addresses: Iterable[str]) -> FetchedPictures:
        """Fetch each URL once, unless its file exists or this object has failed to fetch it.

        Args:
            addresses: http(s) URLs; duplicates are allowed.

        Returns: see `FetchedPictures`; its counts are those of this call.
        """
        wanted = list(dict.fromkeys(addresses))
        if not wanted:
            return FetchedPictures({}, {})
        self.settings.folder.mkdir(parents=True, exist_ok=True)
        self._pool = self._pool or ThreadPoolExecutor(self.settings.workers)
        fetched, size = self.fetched, self.bytes
        progress = tqdm(
            self._pool.map(self._outcome, wanted),
            total=len(wanted),
            desc="pictures fetched",
            unit="picture",
            delay=3.0,
            disable=not self._progress,
        )
        reasons = list(progress)
        files = {
            url: str(_file_of(self.settings.folder, url)) for url, why in zip(wanted, reasons, strict=True) if not why
        }
        failures = {url: why for url, why in zip(wanted, reasons, strict=True) if why}
        for url, why in failures.items():
            if url not in self._reasons:
                self._reasons[url] = why
                self._failures.add(url, why)
        self.failed = len(self._reasons)
        return FetchedPictures(files, failures, self.fetched - fetched, self.bytes - size)

    def __str__(self) -> str:
        return f"pictures from URLs: {self.fetched} fetched ({self.bytes / 2**20:.1f} MiB), {self.failed} failed"

    def close(self) -> None:
        """Stop the threads, and write `failures.csv`, or remove it if nothing failed."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._failures.close()
            self._pool = None

    def _outcome(self, url: str) -> str:
        """Return why there is no picture of a URL, or "" if there is one; failures that may pass are tried again."""
        from processing_moon import ProductError  # brings torch
        from processing_moon.errors_moon import ImageError
        from processing_moon.urls_moon import TransientFetchError

        if url in self._reasons:
            return self._reasons[url]
        path, settings = _file_of(self.settings.folder, url), self.settings
        if path.is_file():
            return ""
        for attempt in range(settings.retries + 1):
            if why := self._limit_reached():
                return why
            try:
                self._fetch_one(url, path)
            except TransientFetchError as error:
                why = f"{str(error)[:_KEPT_REASON]}{f' ({attempt + 1} attempts)' if attempt else ''}"
                pause = error.retry_after if error.retry_after is not None else settings.backoff_seconds * 2**attempt
                if attempt == settings.retries or pause > settings.max_wait_seconds:
                    return why
                if self._ends is not None and time.monotonic() + pause >= self._ends:
                    return why
                time.sleep(pause)
            except (ImageError, ProductError) as error:
                return getattr(error, "reason", str(error))[:_KEPT_REASON]
            else:
                return ""
        return why

    def _fetch_one(self, url: str, path: Path) -> None:
        """Fetch the picture of a URL into its file."""
        from processing_moon import ImageLimits, open_image
        from processing_moon.urls_moon import fetch

        settings = self.settings
        limits = ImageLimits(timeout_seconds=settings.timeout_seconds, max_bytes=settings.max_bytes)
        data = fetch(
            url,
            timeout_seconds=limits.timeout_seconds,
            max_bytes=limits.max_bytes,
            allow_private=settings.allow_private,
        )
        open_image(data, limits=limits)
        partial = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}.partial")
        try:
            partial.write_bytes(data)
            partial.replace(path)
        finally:
            with contextlib.suppress(FileNotFoundError):
                partial.unlink()
        with self._lock:
            self.fetched += 1
            self.bytes += len(data)

    def _limit_reached(self) -> str:
        if not self.settings.fetch:
            return f"not in {self.settings.folder}, and fetching is turned off"
        if self._ends is not None and time.monotonic() >= self._ends:
            return f"not fetched: the {self.settings.total_seconds:g} seconds for all pictures were used up"
        if self.settings.total_bytes is not None and self.bytes >= self.settings.total_bytes:
            return f"not fetched: the {self.settings.total_bytes} bytes for all pictures were used up"
        return ""


class _Failures:
    """The file of failed URLs of one run; it gets its name when the run ends."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
        self._stream: TextIO | None = None
        self._writer: Any = None

    def add(self, url: str, reason: str) -> None:
        if self._stream is None:
            self._stream = self._partial.open("w", encoding="utf-8", newline="")
            self._writer = csv.writer(self._stream)
            self._writer.writerow(("address", "reason"))
        self._writer.writerow((url, reason))

    def close(self) -> None:
        """Give the file its name; remove an older one if nothing failed."""
        if self._stream is None:
            self.path.unlink(missing_ok=True)
            return
        self._stream.close()
        self._partial.replace(self.path)
        self._stream = None


def _file_of(folder: Path, url: str) -> Path:
    return folder / hashlib.sha256(url.encode("utf-8", "surrogatepass")).hexdigest()[:40]
