"""Refuse records, images and options with messages that say what was found and what is expected."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch


class ProductError(ValueError):
    """Raised for a product, query or image that cannot be used.

    Args:
        item (`str`): the product, query or input, such as "product 3 (id 'x')".
        field (`str`): the part of it, such as "images[0]".
        reason (`str`): what was found and what is expected.
    """

    def __init__(self, item: str, field: str, reason: str) -> None:
        super().__init__(f"{item}, field {field!r}: {reason}")
        self.item, self.field, self.reason = item, field, reason

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.item, self.field, self.reason)


class ImageError(Exception):
    """Raised when an image cannot be opened; `open_image` adds the record and the field."""


def describe(value: Any, limit: int = 80) -> str:
    """Return a value as an error message shows it: arrays by their shape, anything else by its first `limit` characters."""
    if isinstance(value, np.ndarray | torch.Tensor):
        return f"an array of shape {tuple(value.shape)}"
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer with more digits than Python writes, or endless nesting
        text = "of a size that cannot be written out"
    return text if len(text) <= limit else f"{text[:limit]}…"


def check_choice(name: str, value: Any, accepted: Sequence[Any]) -> None:
    """Refuse an option that is not among the accepted values.

    Raises:
        ValueError: such a value.
    """
    if value not in accepted:
        raise ValueError(f"{name}={value!r} is not known; expected one of {', '.join(map(repr, accepted))}")


def check_budget(name: str, value: Any, optional: bool = False) -> None:
    """Refuse a number of tokens that is neither a positive whole number nor, if it is optional, None.

    Raises:
        ValueError: such a value.
    """
    if optional and value is None:
        return
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name}={value!r}; expected a positive whole number{' or None' if optional else ''}")
