"""Read product and query records: check their fields, and return their text, images and core box.

Nothing here needs a tokenizer or a model; `open_image` opens the images, `product_text` writes the text.
"""

from __future__ import annotations

import difflib
import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from .errors_moon import ProductError, describe
from .images_moon import ACCEPTED_IMAGES, image_list
from .reasoning_moon import reasoning_text, strip_tags
from .text_moon import ProductText, has_visible_text

FORMS = ("mm", "t", "i")
PRODUCT_FIELDS = ("title", "description", "images", "category", "attributes", "core_box", "reasoning", "id")
QUERY_FIELDS = ("text", "image", "core_box", "reasoning", "id")

Box = tuple[float, float, float, float]


@dataclass
class Record:
    """A checked product or query record, reduced to the requested form.

    Args:
        name: the name used in error messages.
        text: the text of each part; empty if there is none.
        images: (field name, image source) pairs in order; the sources are not opened yet.
        box: the core box as four finite ordered numbers, or None.
    """

    name: str
    text: ProductText
    images: list[tuple[str, Any]]
    box: Box | None = None


def _is_finite_number(value: Any) -> bool:
    """Return whether a value is a number (not a bool) within the range of floats."""
    if not isinstance(value, int | float | np.integer | np.floating) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(float(value))
    except OverflowError:  # an integer with more than 308 digits
        return False


def _record_name(kind: str, index: int, record: Mapping[str, Any]) -> str:
    identity = record.get("id")
    return f"{kind} {index}" if identity is None else f"{kind} {index} (id {describe(identity)})"


def _unknown_field(name: str, key: Any, known: Sequence[str], accepted: str) -> ProductError:
    near = difflib.get_close_matches(key, known, n=1) if isinstance(key, str) else []
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return ProductError(
        name, key if isinstance(key, str) else describe(key), f"unknown field{hint}; expected {accepted}"
    )


def _read_text(name: str, field: str, value: Any) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ProductError(name, field, f"found {type(value).__name__} {describe(value)}; expected a string")
    if not value.isascii():
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ProductError(name, field, f"not valid Unicode ({error.reason}); expected a string") from error
        value = unicodedata.normalize("NFC", value)  # as in Qwen's tokenizer, which keeps offsets correct
    return value if has_visible_text(value) else ""


def _read_category(name: str, value: Any) -> str:
    if value is None or isinstance(value, str):
        return _read_text(name, "category", value).strip()
    if not isinstance(value, list | tuple | np.ndarray):
        reason = f"found {type(value).__name__} {describe(value)}; expected a string or a list of strings"
        raise ProductError(name, "category", reason)
    levels = [_read_text(name, f"category[{level}]", part).strip() for level, part in enumerate(value)]
    return " > ".join(level for level in levels if level)


def _read_value(name: str, field: str, value: Any) -> str:
    if _is_finite_number(value):
        return str(value)
    if value is not None and not isinstance(value, str):
        reason = f"found {type(value).__name__} {describe(value)}; expected a string, a finite number or a list of them"
        raise ProductError(name, field, reason)
    return _read_text(name, field, value).strip()


def _read_pairs(name: str, field: str, value: Mapping[Any, Any]) -> list[tuple[str, list[str]]]:
    """Return keys with their non-empty values; keys without such values are left out."""
    pairs = []
    for key, entry in value.items():
        if not isinstance(key, str) or not has_visible_text(key):
            raise ProductError(name, field, f"found key {describe(key)}; expected keys that are non-empty strings")
        entries = list(entry) if isinstance(entry, list | tuple | set | frozenset | np.ndarray) else [entry]
        texts = [_read_value(name, f"{field}[{key!r}]", item) for item in entries]
        if isinstance(entry, set | frozenset):  # its order differs between processes
            texts.sort()
        if any(texts):
            pairs.append((_read_text(name, field, key).strip(), [text for text in texts if text]))
    return pairs


def _read_attributes(name: str, value: Any) -> list[str]:
    if value is None:
        return []
    if not isinstance(value, Mapping):
        reason = f"found {type(value).__name__} {describe(value)}; expected a dict of key to value or list of values"
        raise ProductError(name, "attributes", reason)
    return [f"{key}: {', '.join(values)}" for key, values in _read_pairs(name, "attributes", value)]


def read_box(name: str, field: str, value: Any) -> Box | None:
    """Check a box [x0, y0, x1, y1]: four finite numbers, x0 < x1, y0 < y1.

    Raises:
        ProductError: anything else but None, which means that there is no box.

    Relations: `clamp_box` checks whether the box is inside the picture, once the picture is open.
    """
    if value is None:
        return None
    accepted = "expected [x0, y0, x1, y1] in pixels of the first image, x0 < x1, y0 < y1"
    if isinstance(value, np.ndarray | torch.Tensor):
        try:
            value = value.tolist()
        except (RuntimeError, TypeError, ValueError) as error:  # a tensor without memory, or a sparse one
            raise ProductError(name, field, f"found {describe(value)}, which cannot be read; {accepted}") from error
    if not isinstance(value, list | tuple) or len(value) != 4:
        raise ProductError(name, field, f"found {describe(value)}; {accepted}")
    numbers = int | float | np.integer | np.floating
    if not all(isinstance(side, numbers) and not isinstance(side, bool) for side in value):
        raise ProductError(name, field, f"found {describe(value)}; {accepted}")
    if not all(_is_finite_number(side) for side in value):
        raise ProductError(name, field, f"a side is not finite in {describe(value)}; {accepted}")
    box = (float(value[0]), float(value[1]), float(value[2]), float(value[3]))
    if box[0] >= box[2] or box[1] >= box[3]:
        raise ProductError(name, field, f"inverted or without area: {describe(value)}; {accepted}")
    return box


def clamp_box(box: Box, width: int, height: int) -> tuple[int, int, int, int] | None:
    """Return the pixels (x0, y0, x1, y1) that a box covers inside an image; None if it covers none or is not a valid box.

    Args:
        box: (x0, y0, x1, y1) in pixels.
        width: of the image, in pixels.
        height: of the image, in pixels.
    """
    if not all(math.isfinite(side) for side in box) or box[0] >= box[2] or box[1] >= box[3]:
        return None
    x0, y0 = max(0, math.floor(box[0])), max(0, math.floor(box[1]))
    x1, y1 = min(width, math.ceil(box[2])), min(height, math.ceil(box[3]))
    return (x0, y0, x1, y1) if x0 < x1 and y0 < y1 else None


def _read_images(name: str, field: str, value: Any) -> list[tuple[str, Any]]:
    if value is None:
        return []
    sources = image_list(value)
    if sources is None:
        return [(field, value)]
    for place, source in enumerate(sources):
        if source is None:
            raise ProductError(name, f"{field}[{place}]", f"found None; expected {ACCEPTED_IMAGES}")
    return [(f"{field}[{place}]", source) for place, source in enumerate(sources)]


def _as_record(kind: str, index: int, record: Any, fields: Sequence[str]) -> tuple[str, Mapping[str, Any]]:
    if not isinstance(record, Mapping):
        reason = f"found {type(record).__name__} {describe(record)}; expected a dict with {', '.join(fields)}"
        raise ProductError(f"{kind} {index}", "record", reason)
    name = _record_name(kind, index, record)
    for key in record:
        if key not in fields:
            raise _unknown_field(name, key, fields, f"one of {', '.join(fields)}")
    return name, record


def is_product(record: Any) -> bool:
    """Return whether a record has a field that only products have."""
    return isinstance(record, Mapping) and bool(set(record) & set(PRODUCT_FIELDS) - set(QUERY_FIELDS))


def refuse_unclear(record: Any, index: int) -> None:
    """Refuse a record that has an unknown field, and no field that only products or only queries have.

    Raises:
        ProductError: such a record; the message lists the first unknown field, and the fields of products and of queries.
    """
    distinctive = set(PRODUCT_FIELDS) ^ set(QUERY_FIELDS)
    if not isinstance(record, Mapping) or distinctive & set(record):
        return
    name = _record_name("record", index, record)
    accepted = f"of a product {', '.join(PRODUCT_FIELDS)}; of a query {', '.join(QUERY_FIELDS)}"
    for key in record:
        if key not in PRODUCT_FIELDS:
            raise _unknown_field(name, key, sorted(distinctive), accepted)


_PICTURE_PATH = re.compile(
    r"data:image/\S*|(?P<scheme>[a-z][a-z0-9+.-]*://)?[^\s<>|]*[^\s<>|/\\.]"
    r"\.(?:jpe?g|jfif|png|webp|gif|bmp|tiff?|ppm|jp2|avif|ico|heic|heif|svg)(?(scheme)(?:[?#]\S*)?)",
    re.IGNORECASE,
)


def refuse_picture_path(text: str, item: str, field: str, instead: str) -> None:
    """Refuse a bare string that is the path or URL of a picture, which would otherwise be read as words.

    Such a string has no spaces and ends in a name with a picture's extension ("photo.jpg", "a/b.PNG",
    "https://host/c.webp?width=200"), or is a data URL of a picture (our design). Whether the file exists does not matter:
    a string means the same everywhere.

    Args:
        text: the string.
        item: the name of the input in the error message.
        field: the name of the field in the error message.
        instead: how to pass a picture there.

    Raises:
        ProductError: such a string.

    Relations: in records, the field decides: {"text": "photo.jpg"} and {"title": "photo.jpg"} are words.
    """
    if _PICTURE_PATH.fullmatch(text.strip()):
        raise ProductError(item, field, f"found {describe(text)}, a picture's path or URL; expected {instead}")


def read_product(record: Any, index: int, form: str = "mm") -> Record:
    """Read one product record.

    Args:
        record: {"title": str, "description": str, "images": an image or a list, "category": list of str or str,
            "attributes": {key: value or values}, "core_box": [x0, y0, x1, y1], "reasoning": see `given_reasoning`,
            "id": str or int}; any field may be missing or None. A 1-D array of paths or objects is a list of images.
            Attribute values keep their order; those of a set are sorted.
        index: its index in the call, for error messages.
        form: "mm" keeps text and images, "t" text only, "i" images only.

    Raises:
        ProductError: not a dict, an unknown field, a field of the wrong type, or a record that is empty in this form.
    """
    name, record = _as_record("product", index, record, PRODUCT_FIELDS)
    text = ProductText(
        title=_read_text(name, "title", record.get("title")).strip(),
        category=_read_category(name, record.get("category")),
        attributes=_read_attributes(name, record.get("attributes")),
        description=_read_text(name, "description", record.get("description")).strip(),
    )
    images = _read_images(name, "images", record.get("images"))
    box = read_box(name, "core_box", record.get("core_box"))
    if box is not None and not images:
        raise ProductError(name, "core_box", "found a box without an image; expected images with it")
    if form == "t":
        images, box = [], None
    elif form == "i":
        text = ProductText()
    if not text and not images:
        missing = {"mm": "neither text nor an image", "t": "no text", "i": "no image"}[form]
        wanted = {"mm": "title, description, category, attributes or images", "t": "title, description, category or "
                  "attributes (form='t')", "i": "images (form='i')"}[form]  # fmt: skip
        raise ProductError(name, "record", f"{missing}; expected at least one of {wanted}")
    return Record(name, text, images, box)


def read_query(record: Any, index: int) -> Record:
    """Read one query record.

    Args:
        record: {"text": str, "image": an image, "core_box": [x0, y0, x1, y1], "reasoning": see `given_reasoning`, "id": str or
            int}; any field may be missing or None, but text or image must be present.
        index: its index in the call, for error messages.

    Raises:
        ProductError: not a dict, an unknown field, a field of the wrong type, neither text nor image.
    """
    name, record = _as_record("query", index, record, QUERY_FIELDS)
    text = _read_text(name, "text", record.get("text"))
    image = record.get("image")
    if image_list(image) is not None:
        raise ProductError(name, "image", f"found a {type(image).__name__}; expected one image ({ACCEPTED_IMAGES})")
    box = read_box(name, "core_box", record.get("core_box"))
    if box is not None and image is None:
        raise ProductError(name, "core_box", "found a box without an image; expected an image with it")
    if not text.strip() and image is None:
        raise ProductError(name, "record", "neither text nor an image; expected at least one of text and image")
    return Record(name, ProductText(title=text if text.strip() else ""), _read_images(name, "image", image), box)


def given_reasoning(record: Mapping[str, Any], name: str, *, optional: bool = False) -> str:
    """Return the reasoning of a record, without its tags.

    Args:
        record: a record whose other fields are checked. Its "reasoning" is the text between `<think>` and `</think>`, with or
            without these tags, or {key: value or values}, which is written as in `write_reasoning`. Keys without a value are
            left out.
        name: the name of the record in error messages.
        optional: whether the reasoning may be missing or empty; then "" is returned. Default False.

    Raises:
        ProductError: reasoning of an unsupported type; missing or empty reasoning that is not `optional`.
    """
    value = record.get("reasoning")
    accepted = "expected a string, or a dict of key to value or list of values"
    if isinstance(value, Mapping):
        pairs = _read_pairs(name, "reasoning", value)
        if len({" ".join(key.split()) for key, _ in pairs}) < len(pairs):
            raise ProductError(
                name, "reasoning", f"keys that differ only in spaces in {describe(list(value))}; {accepted}"
            )
        text = reasoning_text(dict(pairs))
    elif value is None or isinstance(value, str):
        text = strip_tags(_read_text(name, "reasoning", value))
    else:
        raise ProductError(name, "reasoning", f"found {type(value).__name__} {describe(value)}; {accepted}")
    if not text and not optional:
        missing = "is missing" if value is None else f"{describe(value)} is empty"
        raise ProductError(name, "reasoning", f"{missing}, but reasoning='given' needs it in each record; {accepted}")
    return text
