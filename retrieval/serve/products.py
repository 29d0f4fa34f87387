"""Add, replace and remove products of a store at the request of a client that has the key.

A write is in the store when it is answered, and survives a process that is killed right after. What a client wrote has a digest
of its own (`CLIENT_DIGEST`), by which `moon3 index` and `moon3 embed` keep it although it is not in the feed.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from processing_moon import ProductError
from product_data.feeds.feed_product import AVAILABILITY
from product_data.rows import ProductRow
from retrieval.encode import encode
from retrieval.query_encoder import QueryEncoder
from retrieval.serve.pixel_budget import PixelBudget
from retrieval.serve.settings import ServiceSettings
from retrieval.serve.uploads import TakePixels, UploadError, decoded_picture
from retrieval.stores.exact import ExactStore
from retrieval.stores.interface import CLIENT_DIGEST, Store, StoreBusyError, StoredProduct
from retrieval.vectors.picture_folder import PictureFolder, key_of

WAIT_SECONDS = 5.0
"""How long a write waits for another process that writes."""
COMPACT_AFTER = 200
LEFT_SECONDS = 3600.0
"""Age from which a picture that no product has is taken for left by a process that was killed."""
_Result = TypeVar("_Result")
_TEXTS = ("product_id", "title", "description", "brand", "currency", "availability", "url")
FIELDS = (*_TEXTS, "category", "attributes", "price", "images", "pictures")
"""Fields of a product in a request: those of `StoredProduct`, and "pictures", which the model sees, in base64."""


class ProductWriter:
    """Embed products and write them to a store, one request at a time.

    Other processes may write to the same store in turn: a write waits up to `WAIT_SECONDS` for theirs. Pictures that a client
    sends are kept as small JPEG files in the folder `pictures` of a store that is a folder, one for each product that has
    them, so that search results can show them, and are removed with their product.

    Args:
        store: the store.
        encoder: the model; its `lock` is shared with searches.
        settings: limits of pictures.
        pixels: bounds the pixels of all requests together.
    """

    def __init__(self, store: Store, encoder: QueryEncoder, settings: ServiceSettings, pixels: PixelBudget) -> None:
        self.store, self.encoder, self.settings, self.pixels = store, encoder, settings, pixels
        path = getattr(store, "path", None)  # of a store that is a folder
        self.pictures = None if path is None else PictureFolder(path / "pictures")
        self._lock = threading.Lock()
        self._writes = 0

    def upsert(self, fields: Mapping[str, Any]) -> int:
        """Embed and write the products of a request, all or none, and return their number.

        Each product gets a vector in each form that the store has and the product has content for.

        Args:
            fields: {"products": [{field: value}]}, see `FIELDS`.

        Raises:
            UploadError: an invalid field, a product without content, or a store in memory (409).
            ProductError: a picture or record that cannot be read.
            StoreBusyError: another process is writing to the store.
            StoreError: products that the store refuses.
            BusyError: the pictures of other requests leave no room.
        """
        self._require_lasting_store()
        entries = fields.get("products")
        if set(fields) != {"products"} or not isinstance(entries, list) or not entries:
            raise UploadError('body: expected {"products": [one or more products]}')
        with self.pixels.share() as share:
            read = [read_product(entry, place, self.settings, share.take) for place, entry in enumerate(entries)]
            return self._write(read)

    def _write(self, read: Sequence[tuple[ProductRow, StoredProduct]]) -> int:
        forms = self.store.forms or ("mm",)
        vectors = {form: self._embed([row for row, _ in read], form) for form in forms}
        there_N = np.any([np.isfinite(rows).all(axis=1) for rows in vectors.values()], axis=0)
        if not there_N.all():
            missing = read[int(np.flatnonzero(~there_N)[0])][1].product_id
            raise UploadError(f"product {missing!r}: found nothing to embed in the forms {', '.join(forms)}")
        ids = [product.product_id for _, product in read]
        before = self._files(ids)
        products = [self._shown(row, product) for row, product in read]
        try:
            self._in_turn(lambda: self.store.upsert(products, vectors))
        finally:
            self._remove(before | self._files_of(products), self._files(ids))
        return len(read)

    def delete(self, fields: Mapping[str, Any]) -> int:
        """Remove the products of a request, and return how many of them were in the store.

        Args:
            fields: {"product_ids": [id]}.

        Raises:
            UploadError: no list of ids, or a store in memory (409).
            StoreBusyError: another process is writing to the store.
        """
        self._require_lasting_store()
        ids = fields.get("product_ids")
        if set(fields) != {"product_ids"} or not isinstance(ids, list) or not all(isinstance(one, str) for one in ids):
            raise UploadError('body: expected {"product_ids": [ids]}')
        before = self._files(ids)
        removed = self._in_turn(lambda: self.store.delete(ids))
        self._remove(before, self._files(ids))
        return removed

    def tidy(self) -> None:
        """After each `COMPACT_AFTER` writes merge the store's small files, and remove pictures that no product has.

        Each write adds a version of the store; without this, searches become slower and the disk fuller.
        """
        with self._lock:
            self._writes += 1
            if self._writes % COMPACT_AFTER:
                return
        with contextlib.suppress(StoreBusyError):  # the next time
            self._in_turn(self.store.compact)
        if self.pictures is not None:
            ids = [one for one, digest in self.store.digests().items() if digest.startswith(CLIENT_DIGEST)]
            self.pictures.keep_only({key_of(file) for file in self._files(ids)}, seconds=LEFT_SECONDS)

    def _in_turn(self, write: Callable[[], _Result]) -> _Result:
        """Return the result of a write, after waiting for another process that writes."""
        end = time.monotonic() + WAIT_SECONDS
        while True:
            try:
                with self._lock:
                    return write()
            except StoreBusyError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.05)

    def _shown(self, row: ProductRow, product: StoredProduct) -> StoredProduct:
        """Return a product with the files of its pictures before its URLs, and with its digest."""
        own: list[str] = []
        if self.pictures is not None:
            pictures = [image for image in row.images if isinstance(image, Image.Image)]
            own = [str(self.pictures.add(image, owner=product.product_id)) for image in pictures]
        product = replace(product, images=(*own, *product.images))
        of_facts = hashlib.sha256(repr(product).encode("utf-8", "surrogatepass")).hexdigest()[:32]
        return replace(product, digest=f"{CLIENT_DIGEST}{of_facts}")

    def _files(self, product_ids: Sequence[str]) -> set[str]:
        return self._files_of([one for one in self.store.get(product_ids) if one is not None])

    def _files_of(self, products: Sequence[StoredProduct]) -> set[str]:
        """Return the files in the folder of pictures that products name."""
        folder = self.pictures
        named = [image for product in products for image in product.images] if folder is not None else []
        return {str(file) for image in named if folder is not None and (file := folder.find(image))}

    def _remove(self, files: set[str], kept: set[str]) -> None:
        for file in files - kept:
            Path(file).unlink(missing_ok=True)

    def _require_lasting_store(self) -> None:
        if isinstance(self.store, ExactStore):
            raise UploadError(f"{self.store.about}: changes would be lost; expected a store that moon3 index made", 409)

    def _embed(self, rows: Sequence[ProductRow], form: str) -> np.ndarray:
        """Return (N, D) vectors in a form; a row of NaN for a product that has no content for it."""
        records = [row.record(form) for row in rows]
        there = [place for place, record in enumerate(records) if record.keys() - {"id"}]
        vectors_ND = np.full((len(rows), self.store.dimension), np.nan, np.float32)
        chosen = [records[place] for place in there]
        with self.encoder.lock:
            encoded = encode(self.encoder.model, self.encoder.processor, chosen, form=form, progress=False)
        if encoded.skipped:
            first = encoded.skipped[0]
            raise ProductError(first.item, first.field, first.reason)
        prefix_ND = encoded.vectors[:, : self.store.dimension]
        vectors_ND[there] = prefix_ND / np.maximum(np.linalg.norm(prefix_ND, axis=1, keepdims=True), 1e-12)
        return vectors_ND


def read_product(
    entry: Any, place: int, settings: ServiceSettings, take: TakePixels
) -> tuple[ProductRow, StoredProduct]:
    """Return what a model reads of a product, and what a store keeps of it.

    Args:
        entry: the product of a request.
        place (`int`): its place in the request, for messages.
        settings: limits of pictures.
        take: takes the pixels of each picture before it is decoded.

    Raises:
        UploadError: an invalid field, or too many pixels in one request.
        ProductError: a picture that cannot be read.
        BusyError: the pictures of other requests leave no room.
    """
    where = f"products[{place}]"
    if not isinstance(entry, dict) or set(entry) - set(FIELDS):
        found = ", ".join(sorted(set(entry) - set(FIELDS))) if isinstance(entry, dict) else type(entry).__name__
        raise UploadError(f"{where}: found {found}; expected an object with some of {', '.join(FIELDS)}")
    texts = {name: _text(entry.get(name, ""), f"{where}.{name}") for name in _TEXTS}
    if not texts["product_id"].strip():
        raise UploadError(f"{where}.product_id: found none; expected an id")
    if texts["availability"] not in AVAILABILITY:
        known = ", ".join(filter(None, AVAILABILITY))
        raise UploadError(f"{where}.availability: found {texts['availability']!r}; expected one of {known}")
    category = _texts(entry.get("category", []), f"{where}.category")
    attributes = _attributes(entry.get("attributes", {}), f"{where}.attributes")
    price = entry.get("price")
    if price is not None and (
        not isinstance(price, int | float) or isinstance(price, bool) or not math.isfinite(price)
    ):
        raise UploadError(f"{where}.price: found {price!r}; expected a number")
    pictures = tuple(
        decoded_picture(text, f"{where}.pictures[{number}]", settings, take)
        for number, text in enumerate(_texts(entry.get("pictures", []), f"{where}.pictures"))
    )
    row = ProductRow(texts["product_id"], texts["title"], texts["description"], category, attributes, pictures)
    images = _texts(entry.get("images", []), f"{where}.images")
    for number, image in enumerate(images):
        if not image.startswith(("http://", "https://")):
            raise UploadError(
                f"{where}.images[{number}]: found {image!r}; expected a URL (the picture itself: pictures)"
            )
    facts = StoredProduct(**texts, category=category, attributes=attributes, price=price, images=images)
    return row, facts


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise UploadError(f"{where}: found {type(value).__name__}; expected a string")
    return value


def _texts(value: Any, where: str) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise UploadError(f"{where}: found {type(value).__name__}; expected a list of strings")
    return tuple(_text(one, f"{where}[{place}]") for place, one in enumerate(value))


def _attributes(value: Any, where: str) -> dict[str, tuple[str, ...]]:
    if not isinstance(value, dict):
        raise UploadError(f"{where}: found {type(value).__name__}; expected an object of key to value or values")
    return {
        key: _texts(values if isinstance(values, list) else [values], f"{where}.{key}") for key, values in value.items()
    }
