"""Find products that are equal: identical in all that a model sees, or variants of one product.

Two products are *identical* in a form where their texts and pictures in that form are the same: no model can tell them
apart. They are *variants* where they share title and pictures, and differ in attributes or descriptions at most, or where
the table puts them into one `group` (and, for scores, into one category: a group that spans categories is a kind of thing,
such as apples, and not one product). Our design; precedents: the near-duplicate removal of MOON Embedding
(arXiv 2511.11305) and the false-negative masks of Qwen3-VL-Embedding (arXiv 2601.04720).

Texts are compared without differences of case, white space and Unicode compatibility forms. Pictures are compared by their
bytes, wherever they lie: the same file under two names is one picture, the same photo saved twice as JPEG is not.
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

from evaluation.data.table_files import ImageSource, is_address

EXAMPLES = 5


class Product(Protocol):
    """What is compared; see `evaluation.data.tables.ProductRow`."""

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
    """Which of some products are equal. Every answer is computed once.

    Args:
        products: the products; an answer is a list with an entry for each, the place of the first product that equals it
            (its own place where none comes before).
    """

    def __init__(self, products: Sequence[Product]) -> None:
        self.products = products
        self._identical: dict[str, list[int]] = {}

    def identical(self, form: str = "mm") -> list[int]:
        """The first product that looks the same to a model in a form ("mm", "t", "i"); an empty one equals nothing."""
        if form not in self._identical:
            self._identical[form] = _first_equal(
                self.products, lambda row: _text_of(row, form), with_pictures=form != "t", needs_pictures=form == "i"
            )
        return self._identical[form]

    @functools.cached_property
    def same_looks(self) -> list[int]:
        """The first product with the same title and the same pictures, at least one."""
        return _first_equal(self.products, lambda row: _plain(row.title), with_pictures=True, needs_pictures=True)

    @functools.cached_property
    def variants(self) -> list[int]:
        """The first variant of each product: same looks, or the same group in the same category."""
        return self._joined(lambda row: (row.group, row.category) if row.group else None)

    @functools.cached_property
    def variants_by_group(self) -> list[int]:
        """The first variant of each product: same looks, or the same group whatever the category."""
        return self._joined(lambda row: row.group or None)

    def _joined(self, group_of: Callable[[Product], Hashable]) -> list[int]:
        first = [min(pair) for pair in zip(self.identical(), self.same_looks, strict=True)]
        seen: dict[Hashable, int] = {}
        for place, row in enumerate(self.products):
            one, other = _root(first, place), _root(first, self.same_looks[place])
            first[max(one, other)] = min(one, other)
            if (group := group_of(row)) is not None:
                one, other = _root(first, place), _root(first, seen.setdefault(group, place))
                first[max(one, other)] = min(one, other)
        return [_root(first, place) for place in range(len(first))]


def _root(first: list[int], place: int) -> int:
    while first[place] != place:
        place = first[place]
    return place


def classes(first: Iterable[int]) -> Iterator[list[int]]:
    """The places of equal products, of each class that has more than one; `first` is an answer of `EqualProducts`."""
    found: dict[int, list[int]] = defaultdict(list)
    for place, one in enumerate(first):
        found[one].append(place)
    return (places for places in found.values() if len(places) > 1)


def identical_examples(equal: EqualProducts) -> Iterator[tuple[int, str]]:
    """(how many repeat the first, how a report names them) for each class of products that are identical in all they have."""
    for places in classes(equal.identical()):
        names = [repr(equal.products[place].product_id) for place in places]
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        yield len(places) - 1, f"{names[0]} = {' = '.join(names[1:3])}{more}"


def variants_sentence(equal: EqualProducts) -> str:
    """What a table report says about variants, or nothing where there are none."""
    groups = list(classes(equal.variants))
    if not groups:
        return ""
    return (
        f"variants: {sum(map(len, groups))} products are {len(groups)} products in several variants (same title and "
        "pictures, or same group and category). Training takes them for no negatives of each other; scores leave the variants "
        "of a right answer out unless a query tells them apart (`negatives`, `reference_product_id`)"
    )


def _first_equal(
    products: Sequence[Product],
    text_of: Callable[[Product], Hashable],
    *,
    with_pictures: bool,
    needs_pictures: bool,
) -> list[int]:
    """Pictures are read only where texts, and the pictures' sizes, agree."""
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
    """A name for a product's title and pictures, the same wherever both are met again; files count by their path, unread."""
    pictures = sorted(repr(_digest_of(image, lambda path: path)) for image in row.images)
    return _digest(repr((_plain(row.title), pictures)).encode())
