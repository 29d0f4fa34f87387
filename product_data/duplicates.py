"""Find products that are equal: identical in everything that a model sees, or variants of one product.

Two products are *identical* in a form if their texts and pictures in that form are the same: a model cannot tell them
apart. They are *variants* if they share title and pictures and differ at most in attributes or descriptions, or if the
table gives them the same `group`. For scores, variants also need the same category: a group that spans categories, such
as apples, is not one product. Our design; precedents: the near-duplicate removal of MOON Embedding (arXiv 2511.11305)
and the false-negative masks of Qwen3-VL-Embedding (arXiv 2601.04720).

The comparison of texts ignores case, white space and Unicode compatibility forms. Pictures are compared by their bytes:
the same file under two names is one picture; the same photo, saved twice as JPEG, is two pictures.
"""

from __future__ import annotations

import functools
import hashlib
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from product_data.table_files import ImageSource, is_address

EXAMPLES = 5


class Product(Protocol):
    """The fields of a product that are compared; see `product_data.tables.ProductRow`."""

    @property
    def product_id(self) -> str: ...

    @property
    def title(self) -> str: ...

    @property
    def category(self) -> tuple[str, ...]: ...

    @property
    def images(self) -> tuple[ImageSource, ...]: ...

    @property
    def group(self) -> str | None: ...

    def record(self, form: str = "mm") -> dict[str, Any]: ...


class EqualProducts:
    """Find equal products; each answer is computed once.

    An answer is a list with one entry for each product: the place of the first product that equals it, or its own place
    if there is no earlier one.

    Args:
        products: the products to compare.
    """

    def __init__(self, products: Sequence[Product]) -> None:
        self.products = products
        self._identical: dict[str, list[int]] = {}

    def identical(self, form: str = "mm") -> list[int]:
        """Return for each product the first one that looks the same to a model in a form ("mm", "t" or "i").

        A product without content in that form equals only itself.
        """
        if form not in self._identical:
            self._identical[form] = _first_equal(
                self.products, lambda row: _text_of(row, form), with_pictures=form != "t", needs_pictures=form == "i"
            )
        return self._identical[form]

    @functools.cached_property
    def same_looks(self) -> list[int]:
        """Return for each product the first one with the same title and the same pictures, at least one picture."""
        return _first_equal(self.products, lambda row: _plain(row.title), with_pictures=True, needs_pictures=True)

    @functools.cached_property
    def variants(self) -> list[int]:
        """Return the first variant of each product: same title and pictures, or the same group in the same category."""
        return self._join(lambda row: (row.group, row.category) if row.group else None)

    @functools.cached_property
    def variants_by_group(self) -> list[int]:
        """Return the first variant of each product: same title and pictures, or the same group in any category."""
        return self._join(lambda row: row.group or None)

    def _join(self, group_of: Callable[[Product], Hashable]) -> list[int]:
        first = [min(pair) for pair in zip(self.identical(), self.same_looks, strict=True)]
        seen: dict[Hashable, int] = {}
        for place, row in enumerate(self.products):
            root, other = _root(first, place), _root(first, self.same_looks[place])
            first[max(root, other)] = min(root, other)
            if (group := group_of(row)) is not None:
                root, other = _root(first, place), _root(first, seen.setdefault(group, place))
                first[max(root, other)] = min(root, other)
        return [_root(first, place) for place in range(len(first))]


def _root(first: list[int], place: int) -> int:
    while first[place] != place:
        place = first[place]
    return place


def classes(first: Iterable[int]) -> Iterator[list[int]]:
    """Return the places of equal products, one list for each class of two or more.

    Args:
        first: an answer of `EqualProducts`.
    """
    members: dict[int, list[int]] = defaultdict(list)
    for place, representative in enumerate(first):
        members[representative].append(place)
    return (places for places in members.values() if len(places) > 1)


def identical_examples(equal: EqualProducts) -> Iterator[tuple[int, str]]:
    """Yield for each class of identical products how many repeat the first, and their description in a report."""
    for places in classes(equal.identical()):
        names = [repr(equal.products[place].product_id) for place in places]
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        yield len(places) - 1, f"{names[0]} = {' = '.join(names[1:3])}{more}"


def variants_sentence(equal: EqualProducts) -> str:
    """Return the sentence about variants for a table report; "" if the table has none."""
    groups = list(classes(equal.variants))
    if not groups:
        return ""
    return (
        f"variants: {sum(map(len, groups))} products are {len(groups)} products in several variants (same title and "
        "pictures, or same group and category). Training never uses them as negatives of each other; scores leave out "
        "the variants of a right answer unless a query distinguishes them (`negatives`, `reference_product_id`)"
    )


def _first_equal(
    products: Sequence[Product],
    text_of: Callable[[Product], Hashable],
    *,
    with_pictures: bool,
    needs_pictures: bool,
) -> list[int]:
    """Return the first equal product of each; pictures are read only if texts and the sizes of pictures agree."""
    first = list(range(len(products)))
    keys: list[Callable[[Product], Hashable]] = [text_of]
    if with_pictures:
        digest_of = functools.cache(_file_digest)
        keys += [
            lambda row: tuple(sorted(repr(_size_of(image)) for image in row.images)),
            lambda row: tuple(sorted(repr(_digest_of(image, digest_of)) for image in row.images)),
        ]
    with_content = [
        place
        for place, row in enumerate(products)
        if (row.images if needs_pictures else text_of(row) or (with_pictures and row.images))
    ]
    buckets = [with_content]
    for key in keys:
        parts: list[list[int]] = []
        for places in buckets:
            parted: dict[Hashable, list[int]] = defaultdict(list)
            for place in places:
                parted[key(products[place])].append(place)
            parts += [part for part in parted.values() if len(part) > 1]
        buckets = parts
    for places in buckets:
        for place in places:
            first[place] = places[0]
    return first


def _text_of(row: Product, form: str) -> Hashable:
    record = row.record(form)
    texts = [(name, value) for name, value in sorted(record.items()) if name not in ("id", "images", "core_box")]
    return _plain(repr(texts)) if texts else ""


def _plain(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _size_of(image: ImageSource) -> Hashable:
    if isinstance(image, bytes):
        return len(image)
    if isinstance(image, Image.Image):
        return image.mode, image.size
    if is_address(image):
        return image
    try:
        return Path(image).stat().st_size
    except OSError:
        return image


def _digest_of(image: ImageSource, file_digest: Callable[[str], Hashable]) -> Hashable:
    if isinstance(image, bytes):
        return _digest(image)
    if isinstance(image, Image.Image):
        return image.mode, image.size, _digest(image.tobytes())
    return image if is_address(image) else file_digest(str(image))


def _file_digest(path: str) -> Hashable:
    try:
        return _digest(Path(path).read_bytes())
    except OSError:
        return path


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def looks_of(row: Product) -> str:
    """Return a digest of a product's title and pictures, which another product shares only if both are the same.

    Picture files are compared by their path and are not read.
    """
    pictures = sorted(repr(_digest_of(image, lambda path: path)) for image in row.images)
    return _digest(repr((_plain(row.title), pictures)).encode())
