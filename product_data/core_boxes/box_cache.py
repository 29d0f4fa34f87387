"""Detect the boxes of pictures, each picture once: keep them in a file by the contents of the picture."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from processing_moon import ProductError, open_image
from product_data.atomic_files import append_line, mend_lines, read_lines
from product_data.core_boxes.detectors import NamedDetector
from product_data.core_boxes.saliency import Detection
from product_data.errors import OptionError
from product_data.table_files import ImageSource, is_address

UNREADABLE = "the picture cannot be opened"


@dataclass(frozen=True)
class Pictured:
    """A picture whose core is wanted.

    Args:
        name (`str`): of its product or query, for messages.
        picture: the picture.
        title: of the product; None if unknown.
    """

    name: str
    picture: ImageSource
    title: str | None = None


class BoxCache:
    """The boxes of one detector, by the contents of pictures; each batch is written to a file at once.

    A picture that cannot be opened is not written: the next run tries it again.

    Args:
        path: a file of JSON lines, made if missing; it can hold the boxes of several detectors.
        detector: detects what the file lacks.
        batch_size (`int`): pictures that are opened and detected together. Default 8.

    Raises:
        OptionError: a file that does not have this form.
    """

    def __init__(self, path: Path, detector: NamedDetector, batch_size: int = 8) -> None:
        self.path, self.detector, self.batch_size = path, detector, batch_size
        self.detected = 0
        self._known: dict[str, Detection] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        mend_lines(path)
        try:
            for line in read_lines(path):
                if line["detector"] == detector.digest:
                    self._known[line["key"]] = _detection(line)
        except (ValueError, KeyError, TypeError) as error:
            raise OptionError(
                f"{path}: found a line that is not a box ({error}); expected the unchanged file, or another folder"
            ) from error

    def detections(self, pictures: Sequence[Pictured]) -> list[Detection]:
        """Return a box or a reason for each picture, in order."""
        found: list[Detection] = []
        for start in range(0, len(pictures), self.batch_size):
            found += self._of_batch(pictures[start : start + self.batch_size])
        return found

    def _of_batch(self, pictures: Sequence[Pictured]) -> list[Detection]:
        outcomes: list[Detection | str] = [self._look_up(pictured) for pictured in pictures]
        missing: dict[str, tuple[Image.Image, str | None]] = {}
        for place, (pictured, key) in enumerate(zip(pictures, outcomes, strict=True)):
            if isinstance(key, str) and key not in missing:
                try:
                    image = open_image(pictured.picture, item=pictured.name)
                except ProductError as error:
                    outcomes[place] = Detection(None, f"{UNREADABLE}: {error.reason}")
                else:
                    missing[key] = (image, pictured.title if self.detector.reads_titles else None)
        images, titles = [image for image, _ in missing.values()], [title for _, title in missing.values()]
        detections = self.detector.detections(images, titles) if images else []
        for key, detection in zip(missing, detections, strict=True):
            box = None if detection.box is None else list(detection.box)
            line = {"detector": self.detector.digest, "key": key, "box": box, "reason": detection.reason}
            append_line(self.path, line)
            self._known[key] = detection
        self.detected += len(missing)
        return [self._known[outcome] if isinstance(outcome, str) else outcome for outcome in outcomes]

    def _look_up(self, pictured: Pictured) -> Detection | str:
        """Return the known box of a picture, or its key."""
        if is_address(pictured.picture):
            return Detection(None, f"{UNREADABLE}: a URL is not fetched without a folder for pictures")
        try:
            digest = _digest(pictured.picture)
        except OSError as error:
            return Detection(None, f"{UNREADABLE}: {error.strerror}")
        if self.detector.reads_titles:
            digest.update(b"\0" + (pictured.title or "").encode("utf-8", "surrogatepass"))
        key = digest.hexdigest()[:32]
        return self._known.get(key, key)


def _detection(line: dict[str, Any]) -> Detection:
    box = line["box"]
    if box is None:
        return Detection(None, line["reason"])
    x0, y0, x1, y1 = map(float, box)
    return Detection((x0, y0, x1, y1))


def _digest(picture: ImageSource) -> Any:
    """Return a SHA-256 of all bytes of a picture's file, or of its pixels."""
    if isinstance(picture, Image.Image):
        return hashlib.sha256(f"{picture.mode} {picture.size}".encode() + picture.tobytes())
    if isinstance(picture, bytes):
        return hashlib.sha256(picture)
    with open(picture, "rb") as stream:
        return hashlib.file_digest(stream, "sha256")
