"""Compute the signatures of products' first pictures part by part, and keep them in files."""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from processing_moon import ProductError, open_image
from product_data.atomic_files import file_written_whole
from product_data.preparation.picture_signatures import Signatures
from product_data.rows import ProductRow
from product_data.table_files import ImageSource, is_address

_ROWS = 512


@dataclass(frozen=True)
class PictureSignatures:
    """The signatures of a catalogue's first pictures.

    Args:
        signatures: those of the pictures that can be opened.
        pictured: (M,) rows of their products, ascending.
        unreadable: row → why the picture cannot be opened.
        made (`int`): number of pictures that were opened now; the others were known.
    """

    signatures: Signatures
    pictured: np.ndarray
    unreadable: dict[int, str]
    made: int = 0


def picture_identity(image: ImageSource) -> str:
    """Return what changes if a picture does: a digest of its bytes; of a file its path, size and time; of a URL the URL."""
    if isinstance(image, bytes):
        return hashlib.blake2b(image, digest_size=16).hexdigest()
    if isinstance(image, Image.Image):
        return hashlib.blake2b(f"{image.mode} {image.size}".encode() + image.tobytes(), digest_size=16).hexdigest()
    if is_address(image):
        return image
    try:
        found = os.stat(image)
    except OSError:
        return f"{image} missing"
    return f"{image} {found.st_size} {found.st_mtime_ns}"


def pictures_digest(products: Sequence[ProductRow]) -> str:
    """Return a digest of all products' first pictures, in their order."""
    return _digest(products)


def read_signatures(products: Sequence[ProductRow], folder: Path, *, progress: bool = True) -> PictureSignatures:
    """Return the signatures of the first picture of each product; files of unchanged products are read, others made.

    Args:
        products: the products.
        folder: the folder of the files, 512 products each.
        progress (`bool`): whether to show a progress bar. Default True.
    """
    folder.mkdir(parents=True, exist_ok=True)
    parts: list[Signatures] = []
    rows: list[np.ndarray] = []
    made = 0
    unreadable: dict[int, str] = {}
    with tqdm(total=len(products), desc="signatures", unit="product", delay=3.0, disable=not progress) as bar:
        for start in range(0, len(products), _ROWS):
            chunk = products[start : start + _ROWS]
            path, key = folder / f"{start // _ROWS:06}.npz", _digest(chunk)
            found = _read(path, key)
            if found is None:
                found = _make(chunk)
                made += len(chunk)
                with file_written_whole(path) as partial, partial.open("wb") as stream:
                    np.savez(stream, key=np.array(key), **found)
            parts.append(Signatures(found["hash_NH"], found["small_NSS3"]))
            rows.append(start + found["rows"])
            reasons = zip(found["unreadable"].tolist(), found["reasons"].tolist(), strict=True)
            unreadable |= {start + int(row): str(reason) for row, reason in reasons}
            bar.update(len(chunk))
    pictured = np.concatenate([np.zeros(0, np.int64), *rows])
    return PictureSignatures(Signatures.joined(parts), pictured, unreadable, made)


def _digest(products: Sequence[ProductRow]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for row in products:
        digest.update(f"{picture_identity(row.images[0]) if row.images else ''}\0".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def _make(products: Sequence[ProductRow]) -> dict[str, Any]:
    parts: list[Signatures] = []
    rows: list[int] = []
    unreadable: dict[int, str] = {}
    for row, product in enumerate(products):
        if not product.images:
            continue
        try:
            parts.append(Signatures.of([open_image(product.images[0])]))
            rows.append(row)
        except ProductError as error:
            unreadable[row] = error.reason
    joined = Signatures.joined(parts)
    return {
        "hash_NH": joined.hash_NH,
        "small_NSS3": joined.small_NSS3,
        "rows": np.array(rows, dtype=np.int64),
        "unreadable": np.array(list(unreadable), dtype=np.int64),
        "reasons": np.array(list(unreadable.values()), dtype=str),
    }


def _read(path: Path, key: str) -> dict[str, Any] | None:
    """Return the arrays of a file; None if it is missing, torn, or of other pictures."""
    try:
        with np.load(path) as arrays:
            return {name: arrays[name] for name in arrays.files} if str(arrays["key"]) == key else None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
