"""Keep small copies of products' pictures in a folder, each under the hash of its contents.

A feed or a client can send a picture as bytes, which has no path; results and the page then show the copy. A file is written
once and as a whole, so a killed process loses nothing, and one that nothing names any more is removed.
"""

from __future__ import annotations

import hashlib
import io
import time
from collections.abc import Collection
from pathlib import Path

from PIL import Image

from processing_moon.images_moon import ImageLimits, open_image
from product_data.atomic_files import file_written_whole

LARGEST_BYTES, SIDE = 256 * 1024, 1024
"""A JPEG, PNG or WebP file of at most this many bytes is kept as it is; another picture becomes a JPEG of this longest side."""
KEY_BYTES = 16
_KEPT_AS_THEY_ARE = {"JPEG": ".jpg", "PNG": ".png", "WEBP": ".webp"}


class PictureFolder:
    """A folder of pictures that are named by their contents.

    Args:
        path: the folder; made by the first picture.
        limits: limits of a picture. Default: those of `open_image`.
    """

    def __init__(self, path: str | Path, limits: ImageLimits | None = None) -> None:
        self.path, self.limits = Path(path).absolute(), limits

    def add(self, picture: bytes | Image.Image, *, owner: str = "") -> Path:
        """Keep a picture, unless it is kept already, and return its file.

        Args:
            picture: the bytes of a file, or a PIL image.
            owner (`str`): part of the name: pictures of different owners have files of their own. Default "": they share one.

        Raises:
            ProductError: a picture that cannot be read.
        """
        contents = picture if isinstance(picture, bytes) else picture.tobytes()
        size = "" if isinstance(picture, bytes) else f"{picture.mode} {picture.size}"
        key = hashlib.sha256(f"{owner}\0{size}\0".encode("utf-8", "surrogatepass") + contents).digest()[:KEY_BYTES]
        for suffix in _KEPT_AS_THEY_ARE.values():
            if (file := self.path / f"{key.hex()}{suffix}").is_file():
                return file
        data, suffix = self._small(picture)
        self.path.mkdir(parents=True, exist_ok=True)
        with file_written_whole(file := self.path / f"{key.hex()}{suffix}") as partial:
            partial.write_bytes(data)
        return file

    def _small(self, picture: bytes | Image.Image) -> tuple[bytes, str]:
        """Return the contents and the suffix of a picture's file."""
        opened = open_image(picture, limits=self.limits)
        if isinstance(picture, bytes) and len(picture) <= LARGEST_BYTES:
            with Image.open(io.BytesIO(picture)) as original:
                if original.format in _KEPT_AS_THEY_ARE:
                    return picture, _KEPT_AS_THEY_ARE[original.format]
        opened.thumbnail((SIDE, SIDE))
        stream = io.BytesIO()
        opened.save(stream, "JPEG", quality=90)
        return stream.getvalue(), ".jpg"

    def find(self, image: str) -> Path | None:
        """Return the file that an entry of `StoredProduct.images` names, also after the folder was moved; None if it has none."""
        file = self.path / Path(image).name
        return file if "://" not in image and key_of(file) and file.is_file() else None

    def keep_only(self, keys: Collection[bytes], *, seconds: float = 0.0) -> int:
        """Remove the pictures with other keys, and files that were not written whole; return how many.

        Args:
            keys: of the pictures to keep, see `key_of`.
            seconds (`float`): younger files stay too, since another process may be about to name them. Default 0.
        """
        removed, oldest = 0, time.time() - seconds
        for file in self.path.iterdir() if self.path.is_dir() else ():
            if key_of(file) not in keys and (not seconds or file.stat().st_mtime < oldest):
                file.unlink(missing_ok=True)
                removed += 1
        return removed


def key_of(file: str | Path) -> bytes:
    """Return the key in the name of a picture's file: 16 bytes; b"" for another file, or one that was not written whole."""
    path = Path(file)
    try:
        return bytes.fromhex(path.stem) if path.suffix in _KEPT_AS_THEY_ARE.values() else b""
    except ValueError:
        return b""
