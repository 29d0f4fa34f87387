"""Read requests: JSON or a form, within limits of size; a picture is what the client sends, never a path or URL."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable, Mapping
from typing import Any

import anyio
from PIL import Image
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.requests import ClientDisconnect, Request

from processing_moon.images_moon import ImageLimits, open_image
from retrieval.queries import Query, SearchError, SearchOptions, read_box
from retrieval.serve.settings import ServiceSettings

QUERY_FIELDS = ("text", "image", "box", "like", "weight")
OPTION_FIELDS = ("k", "offset", "where", "forms", "words", "reasoning")
_TYPES: dict[str, tuple[type, ...]] = {
    "text": (str,),
    "image": (str,),
    "box": (list,),
    "like": (str,),
    "product": (str,),
    "weight": (int, float),
    "k": (int,),
    "offset": (int,),
    "where": (str,),
    "forms": (list,),
    "words": (bool,),
    "reasoning": (str,),
}
_READ_OF_TOO_LARGE = 4
"""A body that is too large is read up to this multiple of the limit, so that its client can read the answer."""
_NAMES = {str: "a string", list: "a list", int: "a whole number", float: "a number", bool: "true or false"}


TakePixels = Callable[[int], None]
"""Takes pixels of what all requests may hold, or raises an error for which the picture is not decoded."""


class UploadError(ValueError):
    """Raised for a request that cannot be read; `status` is that of the answer."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


async def read_body(request: Request, settings: ServiceSettings) -> bytes:
    """Return the body of a request.

    Raises:
        UploadError: more than `max_body_bytes` (413), or not complete after `body_seconds` (408).
    """
    limit, seconds = settings.max_body_bytes, settings.body_seconds
    body, size = bytearray(), 0
    try:
        with anyio.fail_after(seconds):
            async for part in request.stream():
                size += len(part)
                if size <= limit:
                    body += part
                if size > limit * _READ_OF_TOO_LARGE:
                    break
    except TimeoutError as error:
        raise UploadError(f"body: found {size} bytes after {seconds:g} s; expected all of it by then", 408) from error
    except ClientDisconnect as error:
        raise UploadError(f"body: found {size} bytes, then the end of the connection", 400) from error
    if size > limit:
        raise UploadError(f"body: found more than {limit} bytes; expected at most {limit}", 413)
    return bytes(body)


async def read_fields(request: Request, settings: ServiceSettings) -> dict[str, Any]:
    """Return the fields of a JSON object or of a form; a picture is bytes.

    Raises:
        UploadError: a body that is too large (413), of another type (415), or that cannot be read (400).
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in ("application/json", "multipart/form-data"):
        raise UploadError(f"content type: found {kind!r}; expected application/json or multipart/form-data", 415)
    body = await read_body(request, settings)
    return read_json(body) if kind == "application/json" else await _read_form(request, body)


def read_json(body: bytes) -> dict[str, Any]:
    """Return the JSON object of a body.

    Raises:
        UploadError: it is not a JSON object, has a number that is not finite, or a text that is not valid Unicode.
    """
    try:
        values = json.loads(body, parse_constant=_refuse_constant)
        if b"\\u" in body:  # half of a surrogate pair is no text
            json.dumps(values, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise UploadError(f"body: not JSON ({error}); expected a JSON object") from error
    if not isinstance(values, dict):
        raise UploadError(f"body: found {type(values).__name__}; expected a JSON object")
    return values


def _refuse_constant(name: str) -> None:
    raise ValueError(f"found {name}")


async def _read_form(request: Request, body: bytes) -> dict[str, Any]:
    """Return the fields of a form with the types that JSON would have."""
    sent = False

    async def receive() -> dict[str, Any]:
        nonlocal sent
        sent, first = True, not sent
        return {"type": "http.request", "body": body if first else b"", "more_body": False}

    try:
        form = await Request(request.scope, receive).form(max_files=1, max_fields=20, max_part_size=len(body))
    except (MultiPartException, HTTPException, ValueError, KeyError) as error:
        raise UploadError(f"form: cannot be read ({error}); expected multipart/form-data") from error
    try:
        return {name: await _form_value(name, form) for name in form}
    finally:
        await form.close()


async def _form_value(name: str, form: FormData) -> Any:
    value = form[name]
    if isinstance(value, UploadFile):
        if name != "image":
            raise UploadError(f"{name}: found a file; expected a file as image only")
        return await value.read()
    if name == "image":
        raise UploadError("image: found text; expected a file")
    try:
        if name == "box":
            return list(read_box(value))
        if name == "forms":
            return [form_name.strip() for form_name in value.split(",")]
        if name in ("k", "offset"):
            return int(value)
        if name == "weight":
            return float(value)
    except ValueError as error:
        raise UploadError(f"{name}: found {value!r}; expected a number") from error
    return {"true": True, "false": False}.get(value, value) if name == "words" else value


def check_fields(fields: Mapping[str, Any], accepted: tuple[str, ...]) -> dict[str, Any]:
    """Return the fields that have a value, after checking names and types.

    Raises:
        UploadError: an unknown field, or a value of the wrong type.
    """
    for name, value in fields.items():
        if name not in accepted:
            raise UploadError(f"{name}: unknown field; expected one of {', '.join(accepted)}")
        types = _TYPES[name]
        is_type = isinstance(value, types) and (bool in types or not isinstance(value, bool))
        if value is not None and not is_type and not (name == "image" and isinstance(value, bytes)):
            expected = " or ".join(_NAMES[one] for one in types)
            raise UploadError(f"{name}: found {type(value).__name__}; expected {expected}")
    return {name: value for name, value in fields.items() if value is not None}


def query_of(fields: Mapping[str, Any], settings: ServiceSettings, take: TakePixels) -> Query:
    """Return the query of a request; its picture is decoded within the limits.

    Args:
        fields: of the request.
        settings: limits.
        take: takes the pixels of the picture before it is decoded, see `retrieval.serve.pixel_budget`.

    Raises:
        UploadError: an invalid field.
        BusyError: the pictures of other requests leave no room.
        SearchError: a query that `Query` refuses.
        ProductError: a picture that cannot be read.
    """
    values = {name: fields[name] for name in QUERY_FIELDS if name in fields}
    if len(values.get("text", "")) > settings.max_text:
        raise UploadError(f"text: found {len(values['text'])} characters; expected at most {settings.max_text}")
    if "image" in values:
        values["image"] = decoded_picture(values["image"], "image", settings, take)
    if "box" in values:
        values["box"] = tuple(values["box"])
    return Query(**values)


def options_of(fields: Mapping[str, Any], settings: ServiceSettings) -> SearchOptions:
    """Return the options of a request.

    Raises:
        SearchError, StoreError: options that `SearchOptions` refuses, or too many products.
    """
    options = SearchOptions(**{name: fields[name] for name in OPTION_FIELDS if name in fields})
    if options.offset + options.k > settings.max_k:
        raise SearchError(f"k: found offset + k = {options.offset + options.k}; expected at most {settings.max_k}")
    return options


def decoded_picture(value: bytes | str, field: str, settings: ServiceSettings, take: TakePixels) -> Image.Image:
    """Return a picture from bytes or base64 text.

    Args:
        value: bytes of a file, or base64 text.
        field (`str`): its name in messages.
        settings: limits.
        take: takes the pixels of the picture before it is decoded, see `retrieval.serve.pixel_budget`.

    Raises:
        UploadError: text that is not base64, or pictures of one request with too many pixels together.
        BusyError: the pictures of other requests leave no room.
        ProductError: a picture that cannot be read, or with too many pixels.
    """
    if isinstance(value, str):
        try:
            value = base64.b64decode(value.rpartition("base64,")[2], validate=True)
        except (binascii.Error, ValueError) as error:
            raise UploadError(f"{field}: not base64 ({error}); expected the bytes of a picture in base64") from error
    limits = ImageLimits(max_bytes=settings.max_body_bytes, max_pixels=settings.max_pixels, admit=take)
    return open_image(value, item="request", field=field, limits=limits)
