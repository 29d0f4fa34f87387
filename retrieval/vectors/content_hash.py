"""Hash what a model reads of a product, to find the products whose vectors are out of date."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from PIL import Image

from product_data.rows import ProductRow
from product_data.table_files import ImageSource

_ENDS_BYTES = 1 << 16


def has_content(record: dict[str, Any]) -> bool:
    """Return whether a product record has something that can be embedded: a text field or a picture."""
    return bool(record.keys() - {"id", "core_box"})


def content_hash(row: ProductRow, form: str) -> str:
    """Return 32 hex digits for what a model reads of a product in one form; the id is no part of it.

    A picture counts by its contents: bytes; of a file its size and its first and last 64 KiB, so a file of up to 128 KiB is
    hashed completely. A picture of another shot, size or compression differs there; the precedent is
    `training.labels.annotate`. A picture at a URL counts by the URL, since nothing is fetched to find out: a shop that
    replaces a picture changes its URL.

    Args:
        row: the product.
        form (`str`): one of `product_data.rows.PRODUCT_FORMS`.
    """
    record = row.record(form)
    texts = {name: value for name, value in record.items() if name not in ("id", "images")}
    digest = hashlib.sha256(json.dumps([form, texts], sort_keys=True).encode("utf-8", "surrogatepass"))
    for image in record.get("images", ()):
        digest.update(picture_digest(image))
    return digest.hexdigest()[:32]


def picture_digest(image: ImageSource) -> bytes:
    """Return a digest of a picture's contents, see `content_hash`; of a file that cannot be read, of its name."""
    if isinstance(image, Image.Image):
        return hashlib.sha256(f"{image.mode} {image.size}".encode() + image.tobytes()).digest()
    if isinstance(image, bytes):
        return hashlib.sha256(image).digest()
    if image.startswith(("http://", "https://", "data:")):
        return hashlib.sha256(image.encode("utf-8", "surrogatepass")).digest()
    try:
        return _file_digest(Path(image))
    except OSError:
        return hashlib.sha256(b"unreadable\0" + str(image).encode("utf-8", "surrogatepass")).digest()


def _file_digest(path: Path) -> bytes:
    with path.open("rb") as stream:
        size = stream.seek(0, 2)
        stream.seek(0)
        digest = hashlib.sha256(size.to_bytes(8, "big"))
        digest.update(stream.read(_ENDS_BYTES))
        if size > _ENDS_BYTES:
            stream.seek(max(_ENDS_BYTES, size - _ENDS_BYTES))
            digest.update(stream.read(_ENDS_BYTES))
    return digest.digest()
