"""Keep opened and resized pictures that several records share, such as the variants of a product."""

from __future__ import annotations

import hashlib
import os
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

from PIL import Image

from .images_moon import Picture

Kept = TypeVar("Kept", Picture, Image.Image)


class PictureCache:
    """Keep pictures up to a number of bytes; the least recently used ones leave first.

    A file is taken to stay the same while it is in the cache: `clear` it between the parts of a job. One thread uses it.

    Args:
        max_bytes (`int`): bytes of all pixels together; a larger picture is not kept. Default 128 MiB.

    Raises:
        ValueError: a negative number.
    """

    def __init__(self, max_bytes: int = 128 * 2**20) -> None:
        if max_bytes < 0:
            raise ValueError(f"max_bytes={max_bytes}; expected 0 or more")
        self.max_bytes, self._bytes = max_bytes, 0
        self._pictures: OrderedDict[Hashable, Picture | Image.Image] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], Kept]) -> Kept:
        """Return the picture with the key, or make and keep it; an error of `make` passes through."""
        if key in self._pictures:
            self._pictures.move_to_end(key)
            return self._pictures[key]  # type: ignore[return-value]
        made = make()
        if (size := _size_in_bytes(made)) <= self.max_bytes:
            self._pictures[key] = made
            self._bytes += size
            while self._bytes > self.max_bytes:
                self._bytes -= _size_in_bytes(self._pictures.popitem(last=False)[1])
        return made

    def clear(self) -> None:
        """Remove all pictures."""
        self._pictures.clear()
        self._bytes = 0


def source_key(source: Any) -> Hashable:
    """Return what identifies a picture's source: its path, or a hash of its bytes; None for an image, an array or a tensor."""
    if isinstance(source, str | os.PathLike):
        return "path", os.fspath(source)
    if isinstance(source, bytes):
        return "bytes", hashlib.blake2b(source, digest_size=16).digest()
    return None


def _size_in_bytes(picture: Picture | Image.Image) -> int:
    image = picture.image if isinstance(picture, Picture) else picture
    return image.width * image.height * len(image.getbands())
