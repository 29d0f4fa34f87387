"""Add, replace and remove products of a store at the request of a client that has the key."""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from processing_moon import ProductError
from product_data.feeds.feed_product import AVAILABILITY
from product_data.rows import ProductRow
from retrieval.encode import encode
from retrieval.query_encoder import QueryEncoder
from retrieval.serve.settings import ServiceSettings
from retrieval.serve.uploads import UploadError, decoded_picture
from retrieval.stores.interface import Store, StoredProduct

_TEXTS = ("product_id", "title", "description", "brand", "currency", "availability", "url")
FIELDS = (*_TEXTS, "category", "attributes", "price", "images", "pictures")
"""Fields of a product in a request: those of `StoredProduct`, and "pictures", which the model sees, in base64."""


class ProductWriter:
    """Embed products and write them to a store, one request at a time.

    Args:
        store: the store.
        encoder: the model; its `lock` is shared with searches.
        settings: limits of pictures.
    """

    def __init__(self, store: Store, encoder: QueryEncoder, settings: ServiceSettings) -> None:
        self.store, self.encoder, self.settings = store, encoder, settings
        self._lock = threading.Lock()

    def upsert(self, fields: Mapping[str, Any]) -> int:
        """Embed and write the products of a request, all or none, and return their number.

        Each product gets a vector in each form that the store has and the product has content for.

        Args:
            fields: {"products": [{field: value}]}, see `FIELDS`.

        Raises:
            UploadError: an invalid field, or a product without content.
            ProductError: a picture or record that cannot be read.
            StoreError: products that the store refuses.
        """
        entries = fields.get("products")
        if set(fields) != {"products"} or not isinstance(entries, list) or not entries:
            raise UploadError('body: expected {"products": [one or more products]}')
        read = [read_product(entry, place, self.settings) for place, entry in enumerate(entries)]
        forms = getattr(self.store, "forms", ()) or ("mm",)
        vectors = {form: self._embed([row for row, _ in read], form) for form in forms}
        there_N = np.any([np.isfinite(rows).all(axis=1) for rows in vectors.values()], axis=0)
        if not there_N.all():
            missing = read[int(np.flatnonzero(~there_N)[0])][1].product_id
            raise UploadError(f"product {missing!r}: found nothing to embed in the forms {', '.join(forms)}")
        with self._lock:
            self.store.upsert([product for _, product in read], vectors)
        return len(read)

    def delete(self, fields: Mapping[str, Any]) -> int:
        """Remove the products of a request, and return how many of them were in the store.

        Args:
            fields: {"product_ids": [id]}.

        Raises:
            UploadError: no list of ids.
        """
        ids = fields.get("product_ids")
        if set(fields) != {"product_ids"} or not isinstance(ids, list) or not all(isinstance(one, str) for one in ids):
            raise UploadError('body: expected {"product_ids": [ids]}')
        with self._lock:
            return self.store.delete(ids)

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


def read_product(entry: Any, place: int, settings: ServiceSettings) -> tuple[ProductRow, StoredProduct]:
    """Return what a model reads of a product, and what a store keeps of it.

    Args:
        entry: the product of a request.
        place (`int`): its place in the request, for messages.
        settings: limits of pictures.

    Raises:
        UploadError: an invalid field.
        ProductError: a picture that cannot be read.
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
        decoded_picture(text, f"{where}.pictures[{number}]", settings)
        for number, text in enumerate(_texts(entry.get("pictures", []), f"{where}.pictures"))
    )
    row = ProductRow(texts["product_id"], texts["title"], texts["description"], category, attributes, pictures)
    images = _texts(entry.get("images", []), f"{where}.images")
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
