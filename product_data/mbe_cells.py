"""Parse cells in the format of MBE: attributes "key:value,,key:value!!!value" and boxes of core products.

Source: MBE (MOON, arXiv 2508.11999 §4.2). Texts typed with a Chinese keyboard contain "：", "，", "！" instead of ":",
",", "!". Keys and values are converted to their compatibility form (Unicode NFKC): "Ｌ" and "L" are one value.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable, Mapping
from typing import Any

from product_data.table_files import is_absent, parse_attributes, parse_box

_PAIR, _VALUE = ",,", "!!!"
_CORNERS = (("x0", "y0", "x1", "y1"), ("x1", "y1", "x2", "y2"), ("left", "top", "right", "bottom"))
_FULL_WIDTH = str.maketrans({"，": ",", "：": ":", "！": "!", "；": ";", "｜": "|", "［": "[", "］": "]"})


def compatible(text: str) -> str:
    """Return a text in Unicode's compatibility form NFKC: full-width characters become plain ones."""
    return unicodedata.normalize("NFKC", text)


def parse_any_attributes(value: Any, clean: Callable[[str], str] = str) -> dict[str, tuple[str, ...]]:
    """Parse attributes in the format of MBE ("key:value!!!value,,key:value") or in those of `parse_attributes`.

    Args:
        value: the cell; full-width colons, commas, exclamation marks and semicolons count as plain ones.
        clean: function that is applied to each key and each value, before NFKC.

    Raises:
        ValueError: a pair without a colon, or an unknown format.
    """

    def plain(text: str) -> str:
        return compatible(clean(text)).strip()

    if isinstance(value, str) and value.lstrip()[:1] not in ("[", "{"):
        narrow = value.translate(_FULL_WIDTH)
        value = _pairs(narrow) if _VALUE in narrow or _PAIR in narrow else narrow
    return parse_attributes(value, plain)


def _pairs(text: str) -> list[dict[str, Any]]:
    pairs = []
    for pair in filter(None, (pair.strip() for pair in text.split(_PAIR))):
        key, colon, values = pair.partition(":")
        if not colon:
            raise ValueError(f"found {pair[:40]!r} without a colon; expected 'key:value,,key:value!!!value'")
        pairs.append({"key": key, "value": [part for part in values.split(_VALUE) if part.strip()]})
    return pairs


def parse_any_box(value: Any) -> tuple[float, float, float, float] | None:
    """Parse a box as `parse_box`, or from a mapping of corners or a list with one box; four zeros mean None.

    Args:
        value: the cell, in pixels: "[x0, y0, x1, y1]", "x0，y0，x1，y1", {"x0": …, "y0": …, "x1": …, "y1": …} (or x1 … y2,
            or left, top, right, bottom), [[x0, y0, x1, y1]].

    Raises:
        ValueError: anything else, or several boxes.
    """
    value = _corners(value)
    if is_absent(value):
        return None
    if isinstance(value, list | tuple) and len(value) == 1 and isinstance(value[0], list | tuple):
        value = value[0]
    if isinstance(value, list | tuple):
        if any(isinstance(number, list | tuple | Mapping) for number in value):
            raise ValueError(f"found {str(value)[:60]}; expected one box x0, y0, x1, y1")
        if len(value) == 4 and not any(value):
            return None
    return parse_box(value)


def _corners(value: Any) -> Any:
    """Return the corners of a cell as a list, or its text if that is not JSON."""
    if isinstance(value, str):
        value = compatible(value.translate(_FULL_WIDTH)).strip()
        if value[:1] not in ("[", "{"):
            return value.strip("()")
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise ValueError(f"{value[:40]!r} is not JSON ({error.msg}); expected [x0, y0, x1, y1]") from error
    if not isinstance(value, Mapping):
        return value
    corners = next((names for names in _CORNERS if all(name in value for name in names)), None)
    if corners is None:
        raise ValueError(f"found {sorted(value)}; expected x0, y0, x1, y1")
    return [value[name] for name in corners]
