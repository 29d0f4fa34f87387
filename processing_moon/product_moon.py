"""The product record and the query record, their text, and opening their images safely.

Nothing here knows a tokenizer or a model: `read_product`, `read_query` and `given_reasoning` check a record and name its
parts, `open_image` turns whatever holds a picture into an upright RGB image or refuses it with a reason, `product_text`
writes the text.
"""

from __future__ import annotations

import difflib
import http.client
import io
import ipaddress
import math
import os
import re
import socket
import ssl
import stat
import struct
import threading
import time
import unicodedata
import urllib.parse
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image

from .reasoning_moon import reasoning_text, strip_tags

CATEGORY_START, CATEGORY_END = "<|category_start|>", "<|category_end|>"
ATTRIBUTE_START, ATTRIBUTE_END = "<|attribute_start|>", "<|attribute_end|>"
TITLE_START, TITLE_END = "<|title_start|>", "<|title_end|>"
FORMS = ("mm", "t", "i")
PRODUCT_FIELDS = ("title", "description", "images", "category", "attributes", "core_box", "reasoning", "id")
QUERY_FIELDS = ("text", "image", "core_box", "reasoning", "id")

Box = tuple[float, float, float, float]


class ProductError(ValueError):
    """A product, a query or an image that cannot be used, and why.

    Args:
        item (`str`): which one, such as "product 3 (id 'x')".
        field (`str`): which part of it, such as "images[0]".
        reason (`str`): what was found and what is expected.
    """

    def __init__(self, item: str, field: str, reason: str) -> None:
        super().__init__(f"{item}, field {field!r}: {reason}")
        self.item, self.field, self.reason = item, field, reason

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.item, self.field, self.reason)


class _RefusedError(Exception):
    """A reason, before it is known which item it concerns."""


# ---------------------------------------------------------------------------------------------------------------------
# Records


@dataclass
class ProductText:
    """The text of one item, by part; an empty part is absent.

    Args:
        title: the product's title, or a query's text.
        category: the category path, written "a > b > c".
        attributes: one string "key: v1, v2" per attribute.
        description: the product's description.
    """

    title: str = ""
    category: str = ""
    attributes: list[str] = field(default_factory=list)
    description: str = ""

    def __bool__(self) -> bool:
        return bool(self.title.strip() or self.category or self.attributes or self.description)


@dataclass
class Item:
    """A record that was read: named, checked, and in the form that was asked for.

    Args:
        name: what errors call it.
        text: its text; empty where it has none.
        images: pairs of field name and image source, in order, not yet opened.
        box: the core box as four finite ordered numbers, or None.
    """

    name: str
    text: ProductText
    images: list[tuple[str, Any]]
    box: Box | None = None


def _shown(value: Any, limit: int = 80) -> str:
    if isinstance(value, np.ndarray | torch.Tensor):
        return f"an array of shape {tuple(value.shape)}"
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer of more digits than Python writes, or endless nesting
        text = "of a size that cannot be written out"
    return text if len(text) <= limit else f"{text[:limit]}…"


def _is_finite_number(value: Any) -> bool:
    """Whether a value is a number, not a truth value, that a float can hold."""
    if not isinstance(value, int | float | np.integer | np.floating) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(float(value))
    except OverflowError:  # an integer of more than 308 digits
        return False


def _item_name(kind: str, index: int, record: Mapping[str, Any]) -> str:
    identity = record.get("id")
    return f"{kind} {index}" if identity is None else f"{kind} {index} (id {_shown(identity)})"


def _check_fields(name: str, record: Mapping[str, Any], known: Sequence[str]) -> None:
    for key in record:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1) if isinstance(key, str) else []
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ProductError(
                name, key if isinstance(key, str) else _shown(key), f"unknown field{hint}; expected {', '.join(known)}"
            )


_BLANK_CATEGORIES = frozenset(("Cc", "Cf", "Zs", "Zl", "Zp"))
# Fillers, joiners, variation selectors and the empty braille cell, which Unicode counts as letters, marks or symbols.
_BLANK = frozenset("\u034f\u115f\u1160\u2800\u3164\uffa0" + "".join(map(chr, range(0xFE00, 0xFE10))))


def has_visible_text(text: str) -> bool:
    """Whether a text has a character that can be seen: not only spaces, controls, zero-width and other blank ones."""
    return any(unicodedata.category(sign) not in _BLANK_CATEGORIES and sign not in _BLANK for sign in text)


def _read_text(name: str, field: str, value: Any) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ProductError(name, field, f"found {type(value).__name__} {_shown(value)}; expected a string")
    if not value.isascii():
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ProductError(name, field, f"not valid Unicode ({error.reason}); expected a string") from error
        value = unicodedata.normalize("NFC", value)  # as Qwen's tokenizer does it, so that offsets stay true
    return value if has_visible_text(value) else ""


def _read_category(name: str, value: Any) -> str:
    if value is None or isinstance(value, str):
        return _read_text(name, "category", value).strip()
    if not isinstance(value, list | tuple | np.ndarray):
        reason = f"found {type(value).__name__} {_shown(value)}; expected a string or a list of strings"
        raise ProductError(name, "category", reason)
    levels = [_read_text(name, f"category[{level}]", part).strip() for level, part in enumerate(value)]
    return " > ".join(level for level in levels if level)


def _read_value(name: str, field: str, value: Any) -> str:
    if _is_finite_number(value):
        return str(value)
    if value is not None and not isinstance(value, str):
        reason = f"found {type(value).__name__} {_shown(value)}; expected a string, a finite number or a list of them"
        raise ProductError(name, field, reason)
    return _read_text(name, field, value).strip()


def _read_pairs(name: str, field: str, value: Mapping[Any, Any]) -> list[tuple[str, list[str]]]:
    """Keys and their values that are not empty; keys without any are left out."""
    pairs = []
    for key, entry in value.items():
        if not isinstance(key, str) or not has_visible_text(key):
            raise ProductError(name, field, f"key {_shown(key)}; expected keys that are non-empty strings")
        entries = list(entry) if isinstance(entry, list | tuple | set | frozenset | np.ndarray) else [entry]
        texts = [_read_value(name, f"{field}[{key!r}]", one) for one in entries]
        if isinstance(entry, set | frozenset):  # its own order differs from process to process
            texts.sort()
        if any(texts):
            pairs.append((_read_text(name, field, key).strip(), [text for text in texts if text]))
    return pairs


def _read_attributes(name: str, value: Any) -> list[str]:
    if value is None:
        return []
    if not isinstance(value, Mapping):
        reason = f"found {type(value).__name__} {_shown(value)}; expected a dict of key to value or list of values"
        raise ProductError(name, "attributes", reason)
    return [f"{key}: {', '.join(values)}" for key, values in _read_pairs(name, "attributes", value)]


def read_box(name: str, field: str, value: Any) -> Box | None:
    """Check a box [x0, y0, x1, y1]: four finite numbers, x0 < x1, y0 < y1.

    Raises:
        ProductError: anything else (`None` is no box).

    Relations: whether the box lies in the picture is checked where the picture is open, by `clamp_box`.
    """
    if value is None:
        return None
    accepted = "expected [x0, y0, x1, y1] in pixels of the first image, x0 < x1, y0 < y1"
    if isinstance(value, np.ndarray | torch.Tensor):
        try:
            value = value.tolist()
        except (RuntimeError, TypeError, ValueError) as error:  # a tensor without memory, or a sparse one
            raise ProductError(name, field, f"found {_shown(value)} that cannot be read; {accepted}") from error
    if not isinstance(value, list | tuple) or len(value) != 4:
        raise ProductError(name, field, f"found {_shown(value)}; {accepted}")
    numbers = int | float | np.integer | np.floating
    if not all(isinstance(side, numbers) and not isinstance(side, bool) for side in value):
        raise ProductError(name, field, f"found {_shown(value)}; {accepted}")
    if not all(_is_finite_number(side) for side in value):
        raise ProductError(name, field, f"a side is not finite in {_shown(value)}; {accepted}")
    box = (float(value[0]), float(value[1]), float(value[2]), float(value[3]))
    if box[0] >= box[2] or box[1] >= box[3]:
        raise ProductError(name, field, f"inverted or without area: {_shown(value)}; {accepted}")
    return box


def clamp_box(box: Box, width: int, height: int) -> tuple[int, int, int, int] | None:
    """The whole pixels that a box covers inside an image, or None where it covers none or is no box.

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


def image_list(value: Any) -> list[Any] | None:
    """The entries of a list of images, which may be a 1-D array of paths or objects, or None where it is one image."""
    if isinstance(value, np.ndarray) and value.ndim == 1 and value.dtype.kind in "OU":
        return value.tolist()
    return list(value) if isinstance(value, list | tuple) else None


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
        reason = f"found {type(record).__name__} {_shown(record)}; expected a dict with {', '.join(fields)}"
        raise ProductError(f"{kind} {index}", "record", reason)
    name = _item_name(kind, index, record)
    _check_fields(name, record, fields)
    return name, record


def is_product(record: Any) -> bool:
    """Whether a record has a field that only products have, so that it must be read as one."""
    return isinstance(record, Mapping) and bool(set(record) & set(PRODUCT_FIELDS) - set(QUERY_FIELDS))


def refuse_unclear(record: Any, index: int) -> None:
    """Refuse a record of a mixture with an unknown field and none by which it is a product or a query.

    Raises:
        ProductError: names the first unknown field, and the fields of both kinds.
    """
    telling = set(PRODUCT_FIELDS) ^ set(QUERY_FIELDS)
    if not isinstance(record, Mapping) or telling & set(record):
        return
    name = _item_name("record", index, record)
    accepted = f"expected of a product {', '.join(PRODUCT_FIELDS)}; of a query {', '.join(QUERY_FIELDS)}"
    for key in record:
        if key not in PRODUCT_FIELDS:
            near = difflib.get_close_matches(key, sorted(telling), n=1) if isinstance(key, str) else []
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ProductError(name, key if isinstance(key, str) else _shown(key), f"unknown field{hint}; {accepted}")


_PICTURE_PATH = re.compile(
    r"data:image/\S*|(?P<scheme>[a-z][a-z0-9+.-]*://)?[^\s<>|]*[^\s<>|/\\.]"
    r"\.(?:jpe?g|jfif|png|webp|gif|bmp|tiff?|ppm|jp2|avif|ico|heic|heif|svg)(?(scheme)(?:[?#]\S*)?)",
    re.IGNORECASE,
)


def refuse_picture_path(text: str, item: str, field: str, instead: str) -> None:
    """Refuse a bare string that is the path or the address of a picture, which would be read as words.

    Rule, our design: the whole string, without a space in it, ends in a picture's extension after a name ("photo.jpg",
    "a/b.PNG", "https://host/c.webp?width=200") or is a data address of a picture. Whether there is such a file is not looked
    at, so that a string means the same everywhere.

    Args:
        text: the string.
        item: what the error calls the item.
        field: what the error calls the field.
        instead: how a picture is given there.

    Raises:
        ProductError: such a string.

    Relations: a record says what it means: {"text": "photo.jpg"} and {"title": "photo.jpg"} are words.
    """
    if _PICTURE_PATH.fullmatch(text.strip()):
        raise ProductError(item, field, f"found {_shown(text)}, a picture's path or address; expected {instead}")


def read_product(record: Any, index: int, form: str = "mm") -> Item:
    """Read one product record.

    Args:
        record: {"title": str, "description": str, "images": one or a list, "category": list of str or str,
            "attributes": {key: value or values}, "core_box": [x0, y0, x1, y1], "reasoning": see `given_reasoning`,
            "id": str or int}; every field may be missing or None. A 1-D array of paths or objects is a list of images.
            Attribute values stand in the given order, those of a set in alphabetical order.
        index: its place in the call, for error messages.
        form: "mm" keeps text and images, "t" text only, "i" images only.

    Raises:
        ProductError: not a dict, an unknown field, a field of the wrong type, or nothing left in this form.
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
        raise ProductError(name, "core_box", "there is no image that it could belong to; expected a box beside images")
    if form == "t":
        images, box = [], None
    elif form == "i":
        text = ProductText()
    if not text and not images:
        missing = {"mm": "neither text nor an image", "t": "no text", "i": "no image"}[form]
        wanted = {"mm": "title, description, category, attributes or images", "t": "title, description, category or "
                  "attributes (form='t')", "i": "images (form='i')"}[form]  # fmt: skip
        raise ProductError(name, "record", f"{missing}; expected at least one of {wanted}")
    return Item(name, text, images, box)


def read_query(record: Any, index: int) -> Item:
    """Read one query record.

    Args:
        record: {"text": str, "image": one, "core_box": [x0, y0, x1, y1], "reasoning": see `given_reasoning`, "id": str or
            int}; every field may be missing or None, but at least one of text and image must be there.
        index: its place in the call, for error messages.

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
        raise ProductError(
            name, "core_box", "there is no image that it could belong to; expected a box beside an image"
        )
    if not text.strip() and image is None:
        raise ProductError(name, "record", "neither text nor an image; expected at least one of text and image")
    return Item(name, ProductText(title=text if text.strip() else ""), _read_images(name, "image", image), box)


def given_reasoning(record: Mapping[str, Any], name: str, *, optional: bool = False) -> str:
    """The reasoning that a record gives, without its tags. Its other fields must have been read.

    Args:
        record: with "reasoning": what stands between `<think>` and `</think>`, with or without these tags; or
            {key: value or values}, which is written as `write_reasoning` does. Keys without a value are left out.
        name: what errors call the item.
        optional: whether a record may give none or an empty one; then "". Default False.

    Raises:
        ProductError: a reasoning of another type; not `optional` and none, or an empty one.
    """
    value = record.get("reasoning")
    accepted = "expected a string, or a dict of key to value or list of values"
    if isinstance(value, Mapping):
        pairs = _read_pairs(name, "reasoning", value)
        if len({" ".join(key.split()) for key, _ in pairs}) < len(pairs):
            raise ProductError(
                name, "reasoning", f"keys that differ by spaces alone in {_shown(list(value))}; {accepted}"
            )
        text = reasoning_text(dict(pairs))
    elif value is None or isinstance(value, str):
        text = strip_tags(_read_text(name, "reasoning", value))
    else:
        raise ProductError(name, "reasoning", f"found {type(value).__name__} {_shown(value)}; {accepted}")
    if not text and not optional:
        found = "none is given" if value is None else f"{_shown(value)} is empty"
        raise ProductError(name, "reasoning", f"{found}, and reasoning='given' reads it from each record; {accepted}")
    return text


# ---------------------------------------------------------------------------------------------------------------------
# Text


def control_token_pattern(tokens: Iterable[str]) -> re.Pattern[str]:
    """A pattern that finds the tokenizer's control tokens in a text, the longest first.

    Tokens that a space after their first character leaves whole are not looked for: those of one character, and those
    of one character and spaces, or that begin with a space.
    """
    breakable = [token for token in tokens if token not in f"{token[:1]} {token[1:]}"]
    return re.compile("|".join(re.escape(token) for token in sorted(breakable, key=len, reverse=True)) or r"(?!)")


def plain_text(text: str, control_tokens: re.Pattern[str]) -> str:
    """Write a user's text so that the tokenizer finds no control token in it.

    A space is put after the first character of each control token that stands in the text: "<|im_end|>" becomes
    "< |im_end|>". Every other text is left as it is. Our design.

    Args:
        text: what the user wrote.
        control_tokens: from `control_token_pattern`.
    """
    while control_tokens.search(text):
        text = control_tokens.sub(lambda match: f"{match.group()[0]} {match.group()[1:]}", text)
    return text


def product_text(
    parts: ProductText, *, markers: bool, control_tokens: re.Pattern[str], title_markers: bool = False
) -> str:
    """Write an item's text: title, category, attributes, description, a line each; absent parts are left out.

    Source: title ⧺ category ⧺ attributes is MOON (arXiv 2508.11999 §3.1); the markers, which tell the model where
    title, category and attributes stand, and the description are our design.

    Args:
        parts: the item's text by part.
        markers: whether the marker tokens surround category and attributes.
        control_tokens: what must not arise from the user's text, from `control_token_pattern`.
        title_markers: whether the marker tokens surround the title, or a query's text. Default False.
    """
    title = plain_text(parts.title, control_tokens)
    category = plain_text(parts.category, control_tokens)
    attributes = plain_text("; ".join(parts.attributes), control_tokens)
    if title_markers:
        title = title and f"{TITLE_START}{title}{TITLE_END}"
    if markers:
        category = category and f"{CATEGORY_START}{category}{CATEGORY_END}"
        attributes = attributes and f"{ATTRIBUTE_START}{attributes}{ATTRIBUTE_END}"
    lines = (title, category, attributes, plain_text(parts.description, control_tokens))
    return "\n".join(line for line in lines if line)


# ---------------------------------------------------------------------------------------------------------------------
# Images

ACCEPTED_IMAGES = "a path, bytes, a PIL image, a NumPy array or torch tensor, or with allow_urls=True an http(s) URL"
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF", "ICO")
# What Pillow's decoders raise on damaged files, as found by feeding them such files.
_DECODE_ERRORS = (OSError, SyntaxError, ValueError, TypeError, ArithmeticError, LookupError, RuntimeError, AttributeError,
                  EOFError, MemoryError, struct.error, zlib.error)  # fmt: skip
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ORIENTATION_TAG = 0x0112
_ACCEPTED_ARRAYS = "expected uint8, uint16, bool, or float in [0, 1]; H×W, H×W×C or C×H×W with C = 1, 3 or 4"
_CHANNELS = (1, 3, 4)


@dataclass(frozen=True)
class ImageLimits:
    """What `open_image` allows.

    Args:
        allow_urls: whether http(s) URLs to public addresses are fetched.
        timeout_seconds: for one URL, redirects included (resolving the host's name is not under this limit).
        max_bytes: of a fetched file.
        max_pixels: width × height of any image; Pillow's own hard limit is the default.
    """

    allow_urls: bool = False
    timeout_seconds: float = 10.0
    max_bytes: int = 32 * 2**20
    max_pixels: int = 178_956_970

    def __post_init__(self) -> None:
        if not isinstance(self.allow_urls, bool):
            raise ValueError(f"allow_urls={self.allow_urls!r}; expected True or False")
        for name in ("timeout_seconds", "max_bytes", "max_pixels"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or isinstance(value, bool) or not value > 0:
                raise ValueError(f"{name}={value!r}; expected a positive number")


def open_image(
    source: Any, *, item: str = "image", field: str = "images", limits: ImageLimits | None = None
) -> Image.Image:
    """Open a picture as an upright RGB image, or refuse it. Nothing unreadable becomes something else.

    Rotated as its EXIF or XMP data says, and without such data, so that opening the result again changes nothing;
    transparency composited on white; CMYK converted; 16-bit grey scaled by 1/257 (a PIL image of mode "I" is 8-bit grey
    where no value is above 255, 16-bit grey otherwise); of an animation the first frame. Local files and bytes may be JPEG,
    PNG, WebP, GIF, BMP, TIFF, PPM, JPEG 2000, AVIF, ICO.

    Args:
        source: a path (`str` or `os.PathLike`), the bytes of a file, a PIL image, a NumPy array or torch tensor (H×W,
            H×W×C or C×H×W with 1, 3 or 4 channels; uint8, uint16, bool, or float in [0, 1]), or an http(s) URL.
        item: what errors call the item.
        field: what errors call the field.
        limits: default `ImageLimits()`: no URLs.

    Raises:
        ProductError: a string that is neither a file nor a permitted URL, a directory, an empty, damaged or truncated
            file, not an image, too many pixels, no pixels, an array of another type, shape or range.

    Relations: a program that sets Pillow's `ImageFile.LOAD_TRUNCATED_IMAGES` lets truncated files through here too.
    """
    try:
        return _open_source(source, limits or ImageLimits())
    except _RefusedError as refusal:
        raise ProductError(item, field, str(refusal)) from refusal


def _open_source(source: Any, limits: ImageLimits) -> Image.Image:
    if isinstance(source, Image.Image):
        return _decode_opened(source, limits)
    if isinstance(source, bytes | bytearray | memoryview):
        return _decode(bytes(source), limits, "the bytes")
    if isinstance(source, str | os.PathLike):
        return _open_path(source, limits)
    if isinstance(source, torch.Tensor):
        source = _from_tensor(source)
    if isinstance(source, np.ndarray):
        if source.size > limits.max_pixels * max(_CHANNELS):
            raise _RefusedError(f"an array of {source.size} values; expected at most {limits.max_pixels} pixels")
        return _decode_opened(_from_array(source), limits)
    raise _RefusedError(f"found {type(source).__name__} {_shown(source)}; expected {ACCEPTED_IMAGES}")


def _open_path(source: str | os.PathLike[Any], limits: ImageLimits) -> Image.Image:
    path = os.fsdecode(source)
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]+):", path)
    if isinstance(source, str) and scheme and (path[scheme.end() :].startswith("//") or scheme[1].lower() == "data"):
        if scheme[1].lower() not in ("http", "https"):
            raise _RefusedError(f"a {scheme[1].lower()}: address is not opened; expected {ACCEPTED_IMAGES}")
        if not limits.allow_urls:
            raise _RefusedError(f"URL {_shown(path)} is not fetched unless allow_urls=True; expected {ACCEPTED_IMAGES}")
        return _decode(_fetch(path, limits), limits, f"URL {_shown(path)}")
    try:
        mode = os.stat(path)
    except (OSError, ValueError) as error:
        detail = "no such file" if isinstance(error, FileNotFoundError) else f"not a readable path ({error})"
        raise _RefusedError(f"{detail}: {_shown(path)}; expected {ACCEPTED_IMAGES}") from error
    if not stat.S_ISREG(mode.st_mode):
        kind = "a directory" if stat.S_ISDIR(mode.st_mode) else "not a regular file"
        raise _RefusedError(f"{_shown(path)} is {kind}; expected {ACCEPTED_IMAGES}")
    try:
        with open(path, "rb") as file:
            return _decode(file.read(), limits, _shown(path))
    except OSError as error:
        raise _RefusedError(f"{_shown(path)} cannot be read ({error.strerror})") from error


def _decode(data: bytes, limits: ImageLimits, what: str) -> Image.Image:
    if not data:
        raise _RefusedError(f"{what}: empty (zero bytes); expected an image file")
    try:
        image = Image.open(io.BytesIO(data), formats=_readable_formats())
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _RefusedError(f"{what}: too many pixels ({error}); expected at most {limits.max_pixels}") from error
    except _DECODE_ERRORS as error:
        raise _RefusedError(f"{what}: not an image that can be read; expected {', '.join(_FORMATS)}") from error
    return _decode_opened(image, limits)


def _readable_formats() -> list[str]:
    Image.init()
    return [name for name in _FORMATS if name in Image.OPEN]


def _decode_opened(image: Image.Image, limits: ImageLimits) -> Image.Image:
    label = image.format or image.mode
    try:
        _check_pixels(image, limits)
        image.load()
        _check_pixels(image, limits)
        turn = _turn(image)
        upright = _to_rgb(image) if turn is None else _to_rgb(image).transpose(turn)
        upright = upright.copy() if upright is image else upright
        upright.info = {}  # an orientation that stayed there would turn the picture again at the next opening
        return upright
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _RefusedError(f"too many pixels ({error}); expected at most {limits.max_pixels}") from error
    except _DECODE_ERRORS as error:
        raise _RefusedError(
            f"damaged or truncated {label} image ({error}); expected an image that decodes wholly"
        ) from error


def _check_pixels(image: Image.Image, limits: ImageLimits) -> None:
    if image.width < 1 or image.height < 1:
        raise _RefusedError(f"an image of {image.width}×{image.height} has no pixels")
    if image.width * image.height > limits.max_pixels:
        raise _RefusedError(f"{image.width}×{image.height} is too many pixels; expected at most {limits.max_pixels}")


def _turn(image: Image.Image) -> Image.Transpose | None:
    """What makes the picture upright, as its EXIF or XMP data says."""
    try:
        orientation = image.getexif().get(_ORIENTATION_TAG)
    except _DECODE_ERRORS:  # EXIF data that does not parse says nothing about the picture, which is readable
        orientation = None
    return _TRANSPOSE.get(orientation) if isinstance(orientation, int) else None


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        image = Image.fromarray(_integer_grey(image))
    elif image.mode == "F":
        image = Image.fromarray(_to_uint8(np.asarray(image)))
    if image.has_transparency_data:
        if image.mode == "La":
            image = image.convert("LA")
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _integer_grey(image: Image.Image) -> np.ndarray:
    """Bytes of a picture of mode "I" or "I;16…", on white where its file names a transparent value."""
    values = np.asarray(image)
    if values.min() < 0 or values.max() > 0xFFFF:
        raise _RefusedError(f"grey values from {values.min()} to {values.max()}; expected 0 to 65535")
    # Pillow opens some files of 16 bits as "I"; otherwise this mode does not say what its white is.
    sixteen_bit = image.mode != "I" or image.format in ("PNG", "PPM", "JPEG2000") or values.max() > 0xFF
    grey = _to_uint8(values.astype(np.uint16 if sixteen_bit else np.uint8))
    clear = image.info.get("transparency")
    return np.where(values == clear, np.uint8(255), grey) if isinstance(clear, int) else grey


def _to_uint8(values: np.ndarray) -> np.ndarray:
    if values.dtype == np.uint8:
        return values
    if values.dtype == np.bool_:
        return values.astype(np.uint8) * 255
    if values.dtype == np.uint16:
        return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if not np.issubdtype(values.dtype, np.floating):
        raise _RefusedError(f"an array of {values.dtype}; {_ACCEPTED_ARRAYS}")
    if not np.isfinite(values).all():
        raise _RefusedError(f"an array with NaN or infinite values; {_ACCEPTED_ARRAYS}")
    if values.min() < -1e-3 or values.max() > 1 + 1e-3:
        raise _RefusedError(f"float values from {values.min():.4g} to {values.max():.4g}; {_ACCEPTED_ARRAYS}")
    return np.rint(np.clip(values, 0, 1) * 255).astype(np.uint8)


def _from_tensor(tensor: torch.Tensor) -> np.ndarray:
    try:
        tensor = tensor.detach().cpu()
        return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy(force=True)
    except (RuntimeError, TypeError, ValueError) as error:  # without memory, sparse, of a type that NumPy lacks
        kind = f"{tensor.dtype}, {tensor.layout}, on {tensor.device}"
        raise _RefusedError(f"a tensor ({kind}) that is no dense array in memory; {_ACCEPTED_ARRAYS}") from error


def _from_array(array: np.ndarray) -> Image.Image:
    if array.size == 0 or array.ndim not in (2, 3):
        raise _RefusedError(f"an array of shape {array.shape}; {_ACCEPTED_ARRAYS}")
    if array.ndim == 3:
        last, first = array.shape[2] in _CHANNELS, array.shape[0] in _CHANNELS
        if last == first:
            doubt = "could be H×W×C and C×H×W" if last else "has no axis of channels"
            raise _RefusedError(f"an array of shape {array.shape} {doubt}; {_ACCEPTED_ARRAYS}")
        array = array if last else np.moveaxis(array, 0, 2)
    pixels = np.ascontiguousarray(_to_uint8(array))
    return Image.fromarray(pixels[:, :, 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels)


# ---------------------------------------------------------------------------------------------------------------------
# URLs

_MAX_REDIRECTS = 5
_CHUNK = 1 << 16
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_IMAGE_TYPES = ("image/", "application/octet-stream", "binary/octet-stream")


@dataclass(frozen=True)
class _Target:
    """A URL whose host was resolved and checked; the connection goes to `address` and nowhere else."""

    scheme: str
    host: str
    port: int
    address: str
    path: str


def _is_public(address: str) -> bool:
    """Whether an address is a public unicast one, also when it is an IPv4 address carried in IPv6."""
    ip = ipaddress.ip_address(address.split("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.is_site_local:
            return False
        carried = [ip.ipv4_mapped, ip.sixtofour, *(ip.teredo or ())]
        if ip in _NAT64:
            carried.append(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF))
        inner = [part for part in carried if part is not None]
        if inner:
            return all(_is_public(str(part)) for part in inner)
    return ip.is_global and not ip.is_multicast and not ip.is_reserved


def _check_url(url: str, allow_private: bool = False) -> _Target:
    try:
        parts = urllib.parse.urlsplit(url)
        port = parts.port or {"http": 80, "https": 443}.get(parts.scheme, 0)
    except ValueError as error:
        raise _RefusedError(f"{_shown(url)} is not a URL ({error})") from error
    if parts.scheme not in ("http", "https") or not parts.hostname or not port:
        raise _RefusedError(f"URL {_shown(url)} is not fetched; expected http(s)://host/path")
    if parts.username is not None or parts.password is not None:
        raise _RefusedError("a URL with a user name or password is not fetched; expected http(s)://host/path")
    try:
        found = socket.getaddrinfo(parts.hostname, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise _RefusedError(f"host {_shown(parts.hostname)} cannot be resolved ({error})") from error
    addresses = [str(entry[4][0]) for entry in found]
    for address in () if allow_private else addresses:
        if not _is_public(address):
            raise _RefusedError(
                f"host {_shown(parts.hostname)} has the non-public address {address}; expected public addresses"
            )
    query = f"?{parts.query}" if parts.query else ""
    path = urllib.parse.quote((parts.path or "/") + query, safe="/%:=&?~+!$,;'@()*[]")
    return _Target(parts.scheme, parts.hostname, port, addresses[0], path)


class _PinnedConnection(http.client.HTTPConnection):
    """A connection to the address that was checked, under the host's name: no second resolution can redirect it."""

    def __init__(self, target: _Target, timeout: float) -> None:
        super().__init__(target.host, target.port, timeout=timeout)
        self.target = target
        self.open_socket: socket.socket | None = None  # http.client forgets its own once the answer has begun
        self.default_port = 443 if target.scheme == "https" else 80

    def connect(self) -> None:
        self.sock = socket.create_connection((self.target.address, self.target.port), self.timeout)
        self.open_socket = self.sock
        if self.target.scheme == "https":
            self.sock = ssl.create_default_context().wrap_socket(self.sock, server_hostname=self.target.host)
            self.open_socket = self.sock

    def abort(self) -> None:
        if self.open_socket is not None:
            try:
                self.open_socket.shutdown(socket.SHUT_RDWR)
            except OSError:  # closed already, which is what was wanted
                return


def fetch_image(url: str, limits: ImageLimits, *, allow_private: bool = False) -> bytes:
    """Return the bytes of a picture at an http(s) URL, within the time and size of `limits`; they are not decoded.

    Args:
        url: of a public address.
        limits: `timeout_seconds` and `max_bytes` count; the caller has decided to fetch, `allow_urls` is not read.
        allow_private: also fetch from addresses that are not public, such as those of a server of one's own. Default False.

    Raises:
        ProductError: an address, answer or body that `open_image` would refuse.
    """
    try:
        return _fetch(url, limits, allow_private)
    except _RefusedError as refusal:
        raise ProductError("image", "url", str(refusal)) from refusal


def _fetch(url: str, limits: ImageLimits, allow_private: bool = False) -> bytes:
    deadline = time.monotonic() + limits.timeout_seconds
    start = url
    for _ in range(_MAX_REDIRECTS + 1):
        try:
            answer = _request(_check_url(url, allow_private), deadline, limits)
        except (OSError, http.client.HTTPException, ValueError) as error:
            late = isinstance(error, TimeoutError) or time.monotonic() >= deadline
            why = f"timed out after {limits.timeout_seconds} seconds" if late else f"failed ({error})"
            raise _RefusedError(f"fetching {_shown(url)} {why}") from error
        if isinstance(answer, bytes):
            return answer
        url = urllib.parse.urljoin(url, answer)
    raise _RefusedError(f"{_shown(start)} redirects more than {_MAX_REDIRECTS} times")


def _request(target: _Target, deadline: float, limits: ImageLimits) -> bytes | str:
    """One request: the body, or where it redirects to."""
    remaining = deadline - time.monotonic()
    if remaining <= 0:
        raise TimeoutError
    connection = _PinnedConnection(target, remaining)
    # Socket time-outs are per read; the timer ends a server that sends a byte now and then.
    timer = threading.Timer(remaining, connection.abort)
    timer.daemon = True
    timer.start()
    try:
        connection.request("GET", target.path, headers={"Accept": "image/*", "Accept-Encoding": "identity"})
        response = connection.getresponse()
        location = response.getheader("Location")
        if response.status in (301, 302, 303, 307, 308) and location:
            return location
        return _read_body(response, deadline, limits)
    finally:
        timer.cancel()
        connection.close()


def _read_body(response: http.client.HTTPResponse, deadline: float, limits: ImageLimits) -> bytes:
    if response.status != 200:
        raise _RefusedError(f"the server answered {response.status} {response.reason}; expected 200 with an image")
    kind = (response.getheader("Content-Type") or "image/").lower()
    if not kind.startswith(_IMAGE_TYPES):
        raise _RefusedError(f"the server sent {_shown(kind)}; expected an image")
    if (response.getheader("Content-Encoding") or "identity").lower() != "identity":
        raise _RefusedError("the server sent an encoded body, which was not asked for; expected the image itself")
    body = bytearray()
    while chunk := response.read(min(_CHUNK, limits.max_bytes + 1 - len(body))):
        body += chunk
        if len(body) > limits.max_bytes:
            raise _RefusedError(f"more than {limits.max_bytes} bytes; expected at most max_bytes={limits.max_bytes}")
        if time.monotonic() >= deadline:
            raise TimeoutError
    if time.monotonic() >= deadline:
        raise TimeoutError
    if response.length:
        raise _RefusedError(f"the body ended {response.length} bytes early (truncated); expected the whole image")
    return bytes(body)
