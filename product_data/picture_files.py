"""Fetch pictures that tables give as URLs, each once, into a folder that later runs reuse; open those that they hold.

Our design (precedent: img2dataset, which fetches a table of URLs within limits and counts failures by reason).
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
from dataclasses import dataclass, field, replace
from pathlib import Path

from tqdm import tqdm

from product_data.checking import why_unreadable
from product_data.errors import OptionError
from product_data.missing_images import is_missing
from product_data.table_files import ImageSource, is_address

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
                raise OptionError(f"{name}: found {value!r}; expected a positive number")


@dataclass(frozen=True)
class FetchedPictures:
    """The outcome of fetching pictures.

    Args:
        files: URL → file.
        failures: URL → why there is no picture.
        fetched: number of pictures that came over the network, not from the folder.
        bytes: their total size.
        unreadable: `id` of an embedded picture, or of the path of an existing file → why it cannot be opened; see
            `available_pictures`. By `id`, because pictures of PIL cannot be keys.
    """

    files: dict[str, str]
    failures: dict[str, str]
    fetched: int = 0
    bytes: int = 0
    unreadable: dict[int, str] = field(default_factory=dict)

    def why_not(self, image: ImageSource) -> str | None:
        """Return why a picture cannot be used, or None."""
        if isinstance(image, str) and image in self.failures:
            return self.failures[image]
        return "no such file" if is_missing(image) else self.unreadable.get(id(image))

    def __str__(self) -> str:
        kept = len(self.files) - self.fetched
        return (
            f"pictures from URLs: {self.fetched} fetched ({self.bytes / 2**20:.1f} MiB), "
            f"{kept} already in the folder, {len(self.failures)} failed"
        )


def available_pictures(images: Iterable[ImageSource], settings: PictureFetching | None = None) -> FetchedPictures:
    """Fetch the pictures that are URLs, and open all others, several at a time.

    A picture that cannot be opened is known before the first vector, so that its row is left out as a whole.

    Args:
        images: of rows, which must live as long as the result.
        settings: limits and folder. Default: `PictureFetching()`.
    """
    settings = settings or PictureFetching()
    images = list(images)
    fetched = fetch_pictures((image for image in images if isinstance(image, str) and is_address(image)), settings)
    own = [image for image in images if not is_address(image) and not is_missing(image)]
    if not own:
        return fetched
    with ThreadPoolExecutor(min(settings.workers, len(own))) as pool:
        progress = tqdm(
            pool.map(why_unreadable, own), total=len(own), desc="pictures opened", unit="picture", delay=3.0
        )
        reasons = list(progress)
    found = {id(image): why for image, why in zip(own, reasons, strict=True) if why is not None}
    return replace(fetched, unreadable=found)


def fetch_pictures(addresses: Iterable[str], settings: PictureFetching | None = None) -> FetchedPictures:
    """Fetch each URL once, unless its file exists; write `failures.csv` (address, reason) if some fail.

    A picture counts only if it can be opened completely. A file gets its name once it is complete: several runs can
    share a folder. The next run tries failed URLs again.

    Args:
        addresses: http(s) URLs; duplicates are allowed.
        settings: limits and folder. Default: `PictureFetching()`.

    Returns: see `FetchedPictures`; keeps the order of `addresses`.
    """
    settings = settings or PictureFetching()
    wanted = list(dict.fromkeys(addresses))
    if not wanted:
        return FetchedPictures({}, {})
    settings.folder.mkdir(parents=True, exist_ok=True)
    run = _Run(settings)
    with ThreadPoolExecutor(min(settings.workers, len(wanted))) as pool:
        progress = tqdm(
            pool.map(run.fetch, wanted), total=len(wanted), desc="pictures fetched", unit="picture", delay=3.0
        )
        reasons = list(progress)
    files = {url: str(_file_of(settings.folder, url)) for url, why in zip(wanted, reasons, strict=True) if not why}
    failures = {url: why for url, why in zip(wanted, reasons, strict=True) if why}
    _write_failures(settings.folder / FAILURES, failures)
    return FetchedPictures(files, failures, run.fetched, run.bytes)


class _Run:
    """The limits that all pictures of one run share."""

    def __init__(self, settings: PictureFetching) -> None:
        self.settings, self.fetched, self.bytes = settings, 0, 0
        self._ends = time.monotonic() + settings.total_seconds if settings.total_seconds is not None else None
        self._lock = threading.Lock()

    def fetch(self, url: str) -> str:
        """Fetch the picture of a URL into the folder; return why that failed, or "" if it did not."""
        from processing_moon import ImageLimits, ProductError, open_image  # brings torch
        from processing_moon.errors_moon import ImageError
        from processing_moon.urls_moon import fetch

        path, settings = _file_of(self.settings.folder, url), self.settings
        if path.is_file():
            return ""
        if why := self._limit_reached():
            return why
        limits = ImageLimits(timeout_seconds=settings.timeout_seconds, max_bytes=settings.max_bytes)
        try:
            data = fetch(
                url,
                timeout_seconds=limits.timeout_seconds,
                max_bytes=limits.max_bytes,
                allow_private=settings.allow_private,
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

    def _limit_reached(self) -> str:
        if not self.settings.fetch:
            return f"not in {self.settings.folder}, and fetching is turned off"
        if self._ends is not None and time.monotonic() >= self._ends:
            return f"not fetched: the {self.settings.total_seconds:g} seconds for all pictures were used up"
        if self.settings.total_bytes is not None and self.bytes >= self.settings.total_bytes:
            return f"not fetched: the {self.settings.total_bytes} bytes for all pictures were used up"
        return ""


def _file_of(folder: Path, url: str) -> Path:
    return folder / hashlib.sha256(url.encode("utf-8", "surrogatepass")).hexdigest()[:40]


def _write_failures(path: Path, failures: dict[str, str]) -> None:
    """Write the failures of the last run; remove the file if there are none."""
    if not failures:
        path.unlink(missing_ok=True)
        return
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    with partial.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("address", "reason"))
        writer.writerows(failures.items())
    partial.replace(path)
