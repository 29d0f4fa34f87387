"""Serve the pictures of a store's products, reduced in size, from the files that the store names."""

from __future__ import annotations

import io
import threading
from collections import OrderedDict
from collections.abc import Sequence
from urllib.parse import quote, urlsplit

from processing_moon import ProductError
from processing_moon.images_moon import ImageLimits, open_image
from retrieval.serve.pixel_budget import PixelBudget
from retrieval.serve.settings import ServiceSettings
from retrieval.serve.uploads import UploadError
from retrieval.stores.interface import Store
from retrieval.vectors.picture_folder import PictureFolder
from retrieval.vectors.product_facts import is_url

SIDE = 480
"""Longest side of a served picture, in pixels."""
_KEPT_BYTES = 64 * 2**20


def public_images(product_id: str, images: Sequence[str]) -> list[str]:
    """Return a product's pictures as clients may know them: a file by its path of the service, a URL as it is."""
    own = [f"pictures/{number}/{quote(product_id, safe='')}" for number in range(len(images))]
    return [image if is_url(image) else path for image, path in zip(images, own, strict=True)]


class ProductPictures:
    """Read, reduce and keep the pictures of products.

    Only what the store names is opened: files, because clients cannot name files (see `ProductWriter`), and URLs of hosts
    that the operator allows.

    Args:
        store: its products name the pictures.
        settings: limits of pictures, and the allowed hosts.
        pixels: bounds the pixels of all requests together.
    """

    def __init__(self, store: Store, settings: ServiceSettings, pixels: PixelBudget) -> None:
        self.store, self.settings, self.pixels = store, settings, pixels
        path = getattr(
            store, "path", None
        )  # of a store that is a folder: its own pictures, and those of the job beside it
        self._folders = [] if path is None else [PictureFolder(one / "pictures") for one in (path, path.parent)]
        self._kept: OrderedDict[tuple[str, str], bytes] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def jpeg(self, product_id: str, number: int) -> bytes:
        """Return a picture of a product as a JPEG of at most `SIDE` pixels a side.

        Args:
            product_id (`str`): the product.
            number (`int`): place of the picture among the product's, from 0.

        Raises:
            UploadError: no such product or picture, a picture that cannot be read, or a host that is not allowed (404).
            BusyError: the pictures of other requests leave no room.
        """
        product = self.store.get([product_id])[0]
        if product is None or number >= len(product.images):
            raise UploadError(f"picture {number} of product {product_id!r}: not in the store", 404)
        source = product.images[number]
        key = (product.digest, source)
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        data = self._reduced(source, product_id)
        with self._lock:
            if key not in self._kept:
                self._kept[key] = data
                self._bytes += len(data)
            while self._bytes > _KEPT_BYTES and len(self._kept) > 1:
                self._bytes -= len(self._kept.popitem(last=False)[1])
        return data

    def _reduced(self, source: str, product_id: str) -> bytes:
        is_url = "://" in source
        if is_url and urlsplit(source).hostname not in self.settings.picture_hosts:
            raise UploadError(f"product {product_id!r}: its picture is on a host that the service does not read", 404)
        own = next((file for folder in self._folders if (file := folder.find(source))), None)
        seconds = min(self.settings.seconds, 10)
        with self.pixels.share() as share:
            limits = ImageLimits(is_url, seconds, max_pixels=self.settings.max_pixels, admit=share.take)
            try:
                picture = open_image(own or source, item=product_id, limits=limits)
            except ProductError as error:
                raise UploadError(f"product {product_id!r}: its picture cannot be read", 404) from error
            picture.thumbnail((SIDE, SIDE))
        stream = io.BytesIO()
        picture.save(stream, "JPEG", quality=85)
        return stream.getvalue()
