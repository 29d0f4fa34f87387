"""Fetch pictures that tables give as addresses: each once, several at a time, into a folder that is used again.

Our design (precedent: img2dataset, which fetches a table of addresses within limits and counts why some fail). Only public
addresses are asked, as `processing_moon.product_moon.open_image` does it, unless private ones are allowed.
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

from tqdm import tqdm

from product_data.errors import OptionError

FAILURES = "failures.csv"
_KEPT_REASON = 300
ENVIRONMENT = "MOON_PICTURE_CACHE"


def default_folder() -> Path:
    """The folder that `MOON_PICTURE_CACHE` names, or else `moon/pictures` in the user's cache."""
    if named := os.environ.get(ENVIRONMENT):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "moon" / "pictures"


@dataclass(frozen=True)
class PictureFetching:
    """How pictures are fetched.

    Args:
        folder (`Path`): where they are kept. Default: see `default_folder`.
        fetch (`bool`): whether the network is asked for what the folder lacks. Default True.
        workers (`int`): how many at a time. Default 16.
        timeout_seconds (`float`): for one picture. Default 10.
        total_seconds (`float` or `None`): for all of them together; what is left then counts as failed. Default: none.
        max_bytes (`int`): of one picture. Default 32 MiB.
        total_bytes (`int` or `None`): of all that is fetched; what is left then counts as failed. Default: none.
        allow_private (`bool`): also ask addresses that are not public. Default False.

    Raises:
        OptionError: a number that is not positive.
    """

    folder: Path = field(default_factory=default_folder)
    fetch: bool = True
    workers: int = 16
    timeout_seconds: float = 10.0
    total_seconds: float | None = None
    max_bytes: int = 32 * 2**20
    total_bytes: int | None = None
    allow_private: bool = False

    def __post_init__(self) -> None:
        for name in ("workers", "timeout_seconds", "total_seconds", "max_bytes", "total_bytes"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise OptionError(f"{name}={value!r}; expected a positive number")


@dataclass(frozen=True)
class FetchedPictures:
    """What became of addresses.

    Args:
        files: address → file.
        failures: address → why there is none.
        fetched: how many came over the network, not from the folder.
        bytes: their size together.
    """

    files: dict[str, str]
    failures: dict[str, str]
    fetched: int = 0
    bytes: int = 0

    def __str__(self) -> str:
        kept = len(self.files) - self.fetched
        return (
            f"pictures by address: {self.fetched} fetched ({self.bytes / 2**20:.1f} MiB), {kept} were there, "
            f"{len(self.failures)} failed"
        )


def fetch_pictures(addresses: Iterable[str], how: PictureFetching | None = None) -> FetchedPictures:
    """Fetch each address once, unless its file is there; write `failures.csv` (address, reason) where some fail.

    A picture counts only if it opens wholly; a file appears under its name when it is complete, so that several runs may share a
    folder. What failed is asked again by the next run.

    Args:
        addresses: http(s) addresses, repeated or not.
        how: Default: `PictureFetching()`.

    Returns: see `FetchedPictures`; the order of `addresses` is kept.
    """
    how = how or PictureFetching()
    wanted = list(dict.fromkeys(addresses))
    if not wanted:
        return FetchedPictures({}, {})
    how.folder.mkdir(parents=True, exist_ok=True)
    run = _Run(how)
    with ThreadPoolExecutor(min(how.workers, len(wanted))) as pool:
        progress = tqdm(
            pool.map(run.picture, wanted), total=len(wanted), desc="pictures fetched", unit="picture", delay=3.0
        )
        reasons = list(progress)
    files = {url: str(_file_of(how.folder, url)) for url, why in zip(wanted, reasons, strict=True) if not why}
    failures = {url: why for url, why in zip(wanted, reasons, strict=True) if why}
    _write_failures(how.folder / FAILURES, failures)
    return FetchedPictures(files, failures, run.fetched, run.bytes)


class _Run:
    """The limits that all pictures of one run share."""

    def __init__(self, how: PictureFetching) -> None:
        self.how, self.fetched, self.bytes = how, 0, 0
        self._ends = time.monotonic() + how.total_seconds if how.total_seconds is not None else None
        self._lock = threading.Lock()

    def picture(self, url: str) -> str:
        """Have the picture of an address in the folder; why there is none, or nothing."""
        from processing_moon import ImageLimits, ProductError, open_image  # brings torch
        from processing_moon.errors_moon import ImageError
        from processing_moon.urls_moon import fetch

        path, how = _file_of(self.how.folder, url), self.how
        if path.is_file():
            return ""
        if why := self._spent():
            return why
        limits = ImageLimits(timeout_seconds=how.timeout_seconds, max_bytes=how.max_bytes)
        try:
            data = fetch(
                url,
                timeout_seconds=limits.timeout_seconds,
                max_bytes=limits.max_bytes,
                allow_private=how.allow_private,
            )
            open_image(data, limits=limits)
        except (ImageError, ProductError) as error:
            return getattr(error, "reason", str(error))[:_KEPT_REASON]
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
        return ""

    def _spent(self) -> str:
        if not self.how.fetch:
            return f"not in {self.how.folder}, and nothing is fetched"
        if self._ends is not None and time.monotonic() >= self._ends:
            return f"not asked: the {self.how.total_seconds:g} seconds for all pictures were over"
        if self.how.total_bytes is not None and self.bytes >= self.how.total_bytes:
            return f"not asked: the {self.how.total_bytes} bytes for all pictures were used"
        return ""


def _file_of(folder: Path, url: str) -> Path:
    return folder / hashlib.sha256(url.encode("utf-8", "surrogatepass")).hexdigest()[:40]


def _write_failures(path: Path, failures: dict[str, str]) -> None:
    """Write what failed in the last run, or nothing where nothing did."""
    if not failures:
        path.unlink(missing_ok=True)
        return
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    with partial.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("address", "reason"))
        writer.writerows(failures.items())
    partial.replace(path)
