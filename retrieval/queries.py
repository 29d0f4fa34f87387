"""Define a query: words, a picture, both, or a product of the store, and what is searched for it."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from product_data.errors import OptionError
from product_data.rows import PRODUCT_FORMS
from product_data.table_files import ImageSource, is_address
from product_data.text_cells import has_visible_text
from retrieval.reasoning_options import QUERY_REASONING, check_threshold
from retrieval.stores.ranking import FUSION_DEPTH
from retrieval.stores.where import Where

MOST_PRODUCTS = 10**9
"""The largest `k` and `offset`; a store's library takes no larger ones."""


class SearchError(ValueError):
    """Raised for a query that cannot be searched; says what was found and what is expected."""

    exit_status = 2


@dataclass(frozen=True, slots=True)
class Query:
    """What a person looks for.

    Args:
        text (`str`): words. Default "".
        image: a picture: path, bytes or PIL image. Default `None`.
        box: (x0, y0, x1, y1), the region of the picture that shows the product, in pixels. Default `None`: all of it.
        like (`str` or `None`): id of a product of the store, whose vectors are the query. Default `None`.
        weight (`float` or `None`): with words beside a picture or a product, the share of the words w in [0, 1]: the query
            is (w·t + (1 − w)·p) / ‖w·t + (1 − w)·p‖, where t is the vector of the words and p that of the picture or
            product. Our design; precedent: the sum of features in composed image retrieval (Baldrati et al., CVPR 2022).
            Default `None`: the model reads words and picture together.

    Raises:
        SearchError: neither words, a picture nor a product; a picture and a product; a box without a picture, or one that is
            not four numbers; a weight outside [0, 1] or without two parts; a product with words but without a weight.
    """

    text: str = ""
    image: ImageSource | None = None
    box: tuple[float, float, float, float] | None = None
    like: str | None = None
    weight: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.text, str):
            raise SearchError(f"text: found {type(self.text).__name__}; expected a string")
        if not self.has_text and self.image is None and self.like is None:
            raise SearchError("query: found nothing to search for; expected words, a picture or a product id")
        if self.image is not None and self.like is not None:
            raise SearchError("query: found a picture and a product id; expected one of them")
        if self.box is not None:
            self._check_box()
        if self.weight is not None:
            self._check_weight()
        elif self.like is not None and self.has_text:
            raise SearchError("query: found words and a product id; expected a weight (0 to 1) for the words with them")

    def _check_box(self) -> None:
        expected = "expected x0, y0, x1, y1 in pixels of the picture, x0 < x1, y0 < y1"
        if self.image is None:
            raise SearchError("box: found a box without a picture; expected a picture with it")
        sides = tuple(self.box or ())
        if len(sides) != 4 or not all(_is_number(side) for side in sides):
            raise SearchError(f"box: found {self.box!r}; {expected}")
        if sides[0] >= sides[2] or sides[1] >= sides[3]:
            raise SearchError(f"box: found {self.box!r}, which has no area; {expected}")

    def _check_weight(self) -> None:
        if not _is_number(self.weight) or not 0 <= (self.weight or 0) <= 1:
            raise SearchError(
                f"weight: found {self.weight!r}; expected a number from 0 (picture only) to 1 (words only)"
            )
        if not self.has_text or (self.image is None and self.like is None):
            raise SearchError("weight: found a weight for one part; expected words, and a picture or a product id")

    @property
    def has_text(self) -> bool:
        """Whether the query has words."""
        return has_visible_text(self.text)

    @property
    def form(self) -> str:
        """Form of the query: "t" words, "i" picture, "mm" both, "like" a product's vectors, "like+t" these and words."""
        if self.like is not None:
            return "like+t" if self.has_text else "like"
        if self.image is None:
            return "t"
        return "mm" if self.has_text else "i"

    def records(self) -> list[dict[str, Any]]:
        """Return the query records that a model embeds: with a weight words and picture apart, otherwise at most one."""
        words: dict[str, Any] = {"text": self.text} if self.has_text else {}
        picture: dict[str, Any] = {} if self.image is None else {"image": self.image}
        if self.box is not None:
            picture["core_box"] = [float(side) for side in self.box]
        parts = [words | picture] if self.weight is None else [words, picture]
        return [part for part in parts if part]

    @property
    def record_forms(self) -> list[str]:
        """Return the form of each of `records`: "t", "i" or "mm"."""
        return ["mm" if "text" in one and "image" in one else "t" if "text" in one else "i" for one in self.records()]


def read_box(text: str) -> tuple[float, float, float, float]:
    """Return the box that "x0,y0,x1,y1" describes.

    Raises:
        SearchError: not four numbers.
    """
    try:
        x0, y0, x1, y1 = (float(part) for part in text.split(","))
    except ValueError as error:
        raise SearchError(
            f"box: found {text!r}; expected x0,y0,x1,y1 in pixels of the picture, such as 10,10,200,180"
        ) from error
    return x0, y0, x1, y1


def read_picture(path: str) -> str:
    """Return the path of a picture that a command line names.

    Raises:
        SearchError: not a file.
    """
    if not os.path.isfile(path):
        found = "a URL" if is_address(path) else "a folder" if os.path.isdir(path) else "no such file"
        raise SearchError(f"image {path!r}: found {found}; expected the file of a picture")
    return path


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


@dataclass(frozen=True, slots=True)
class SearchOptions:
    """Settings of a search.

    Args:
        k (`int`): number of products. Default 10.
        offset (`int`): number of best products to leave out, for the next page. Default 0.
        where (`str`, `Where` or `None`): only products for which it holds, such as "price < 50"; a text is read by
            `Where.parse`. Default `None`.
        forms: forms of products' vectors to search: "mm", "t", "i". Default `None`: all of the store.
        words (`bool`): rank by words too (BM25) and fuse both rankings by reciprocal rank. Pages then end at rank
            `FUSION_DEPTH`, since a deeper fusion would change the ranks before it. Default False.
        reasoning (`str`): "none"; "generate": the model writes attributes of the query first; "auto": only for a query whose
            two best products are almost equally near. Default "none".
        threshold (`float` or `None`): for "auto", the difference of cosines below which a query reasons. Default 0.05.

    Raises:
        SearchError: a value of the wrong type or out of range.
        StoreError: a filter that cannot be read.
    """

    k: int = 10
    offset: int = 0
    where: Where | str | None = None
    forms: Sequence[str] | None = None
    words: bool = False
    reasoning: str = "none"
    threshold: float | None = None

    def __post_init__(self) -> None:
        for name, least in (("k", 1), ("offset", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= MOST_PRODUCTS:
                raise SearchError(f"{name}: found {value!r}; expected a whole number from {least} to {MOST_PRODUCTS}")
        if self.forms is not None:
            unknown = [form for form in self.forms if form not in PRODUCT_FORMS]
            if unknown or not self.forms or isinstance(self.forms, str):
                raise SearchError(f"forms: found {self.forms!r}; expected some of {', '.join(PRODUCT_FORMS)}")
        if self.words and self.offset + self.k > FUSION_DEPTH:
            raise SearchError(
                f"words: found offset + k = {self.offset + self.k}; expected at most {FUSION_DEPTH}, the number of products "
                "whose ranks are fused"
            )
        if isinstance(self.where, str):
            object.__setattr__(self, "where", Where.parse(self.where))
        if self.reasoning not in QUERY_REASONING:
            raise SearchError(f"reasoning: found {self.reasoning!r}; expected one of {', '.join(QUERY_REASONING)}")
        try:
            check_threshold(self.reasoning, self.threshold)
        except OptionError as error:
            raise SearchError(str(error)) from error
