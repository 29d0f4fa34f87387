"""Find the pictures of a feed's products: files beside the feed, and URLs that are fetched into a folder."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from product_data.feeds.feed_product import FeedProduct
from product_data.missing_images import SIBLING
from product_data.picture_files import PictureFetcher
from product_data.table_files import ImageSource, TableError, is_address

PictureNote = Callable[[int, str, str, str], None]
"""Receives the picture's index in the product, the kind of loss, what was found, and why."""


class PictureFinder:
    """Replace the pictures of products by files.

    A URL is looked for by the last part of its path in the folder `images` beside the feed, then it is fetched, if
    `fetcher` is given. A path is relative to `images_root` or to the feed, or its last part is in that folder `images`.

    Args:
        feed: the file of the feed.
        images_root: folder of relative paths. Default: the folder of the feed.
        fetcher: fetches URLs. Default `None`: a URL without a file stays a URL.
        check (`bool`): open every picture. Default False.

    Raises:
        TableError: `images_root` is not a folder.
    """

    def __init__(
        self, feed: Path, images_root: str | Path | None, fetcher: PictureFetcher | None, check: bool = False
    ) -> None:
        if images_root is not None and not Path(images_root).is_dir():
            raise TableError(f"images folder {images_root}: no such folder")
        self._root = Path(images_root) if images_root is not None else feed.parent
        folders = dict.fromkeys((self._root / SIBLING, self._root, feed.parent / SIBLING))
        given = [*folders] if images_root is not None else [feed.parent / SIBLING]
        self._beside = [folder for folder in given if folder.is_dir()]
        self._fetcher, self._check = fetcher, check

    def find(self, products: Sequence[FeedProduct], note: Callable[[int], PictureNote]) -> list[FeedProduct]:
        """Return products with files in place of their pictures.

        A picture that is missing or cannot be fetched stays in `row.images` as it was found, so that opening it raises a
        clear error; it is noted. A picture that cannot be opened also stays.

        Args:
            products: several products, whose URLs are fetched together.
            note: `note(index)` receives the losses of product `index`.
        """
        local = [[self._local(source) for source in product.row.images] for product in products]
        wanted = [str(source) for sources in local for source, _ in sources if is_address(source)]
        fetched = self._fetcher.fetch(wanted) if self._fetcher is not None and wanted else None
        found = []
        for place, (product, sources) in enumerate(zip(products, local, strict=True)):
            tell = note(place)
            images: list[ImageSource] = []
            for number, (source, why) in enumerate(sources):
                if why:
                    tell(number, "missing_picture", str(product.row.images[number]), why)
                elif is_address(source) and fetched is None:
                    tell(number, "picture_not_fetched", str(source), "")
                elif is_address(source) and fetched is not None and source in fetched.failures:
                    tell(number, "failed_picture", str(source), fetched.failures[str(source)])
                elif is_address(source) and fetched is not None:
                    source = fetched.files[str(source)]
                if not why and not is_address(source) and self._check and (reason := _why_unreadable(source)):
                    tell(number, "unreadable_picture", str(product.row.images[number]), reason)
                if isinstance(source, str) and source in images:
                    tell(number, "shared_file", str(product.row.images[number]), f"its file is {source}")
                images.append(source)
            found.append(_with_images(product, images))
        return found

    def _local(self, source: ImageSource) -> tuple[ImageSource, str]:
        """Return the file of a picture, or the picture as it was found and why there is no file."""
        if not isinstance(source, str):
            return source, ""
        if is_address(source):
            return self._named(urlsplit(source).path) or source, ""
        path = self._root / source.lstrip("/") if not os.path.isfile(source) else Path(source)
        if os.path.isfile(path):  # False for a name that is too long, where Path.is_file raises an error
            return str(path), ""
        if beside := self._named(source) or self._nested(source):
            return beside, ""
        looked = ", ".join(dict.fromkeys(map(str, (path, *(folder / Path(source).name for folder in self._beside)))))
        return str(path), f"no such file: {looked}"

    def _named(self, path: str) -> str:
        """Return the file with the last part of a path in a folder beside the feed, or ""."""
        name = PurePosixPath(path.replace("\\", "/")).name
        for folder in self._beside:
            for form in dict.fromkeys((name, unquote(name))):
                if form not in ("", ".", "..") and len(os.fsencode(form)) < 256 and os.path.isfile(folder / form):
                    return str(folder / form)
        return ""

    def _nested(self, path: str) -> str:
        candidates = (folder / path.lstrip("/") for folder in self._beside)
        return next((str(file) for file in candidates if os.path.isfile(file)), "")


def _with_images(product: FeedProduct, images: Sequence[ImageSource]) -> FeedProduct:
    """Return a product with other pictures, each once; the indices of variants follow."""
    if tuple(images) == product.row.images:
        return product
    distinct: list[ImageSource] = []
    places = []
    for image in images:
        if image not in distinct:
            distinct.append(image)
        places.append(distinct.index(image))
    variants = tuple(
        replace(variant, images=tuple(dict.fromkeys(places[index] for index in variant.images)))
        for variant in product.variants
    )
    return replace(product, row=replace(product.row, images=tuple(distinct)), variants=variants)


def _why_unreadable(source: ImageSource) -> str:
    from processing_moon import ProductError, open_image  # brings torch, which feeds alone do not need

    try:
        open_image(source)
    except ProductError as error:
        return error.reason
    return ""
