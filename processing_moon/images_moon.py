"""Open a picture: turn a path, bytes, an image, an array or a URL into an upright RGB image, or refuse it with a reason.

A JPEG file can be decoded at 1/2, 1/4 or 1/8 of its scale, where its picture will be resized to less than that.
"""

from __future__ import annotations

import io
import math
import os
import re
import stat
import struct
import zlib
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn import functional

from .errors_moon import ImageError, ProductError, describe
from .urls_moon import fetch

ACCEPTED_IMAGES = "a path, bytes, a PIL image, a NumPy array or torch tensor, or with allow_urls=True an http(s) URL"
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF", "ICO")
# The errors that Pillow's decoders raise on damaged files, collected by experiment.
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
_SWAPS_SIDES = {Image.Transpose[name] for name in ("TRANSPOSE", "ROTATE_90", "ROTATE_270", "TRANSVERSE")}
# The transpositions that bring the right side of a stored picture to the left or the top, and its bottom to the left or the top.
_FROM_RIGHT = {Image.Transpose[name] for name in ("FLIP_LEFT_RIGHT", "ROTATE_180", "ROTATE_90", "TRANSVERSE")}
_FROM_BOTTOM = {Image.Transpose[name] for name in ("FLIP_TOP_BOTTOM", "ROTATE_180", "ROTATE_270", "TRANSVERSE")}
_TORCH_FILTERS = {Image.Resampling.BILINEAR: "bilinear", Image.Resampling.BICUBIC: "bicubic"}
_ORIENTATION_TAG = 0x0112
_ACCEPTED_ARRAYS = "expected uint8, uint16, bool, or float in [0, 1]; H×W, H×W×C or C×H×W with C = 1, 3 or 4"
_CHANNELS = (1, 3, 4)


@dataclass(frozen=True)
class ImageLimits:
    """Limits of `open_image`.

    Args:
        allow_urls (`bool`): whether to fetch http(s) URLs of public hosts. Default False.
        timeout_seconds (`float`): time for one URL, including redirects; resolving the host's name is not limited. Default 10.
        max_bytes (`int`): maximum size of a fetched file. Default 32 MiB.
        max_pixels (`int`): width × height of any image. Default: Pillow's hard limit.
        admit: called with the width × height of a picture before it is decoded; what it raises is passed on. Default `None`.

    Raises:
        ValueError: a limit that is not positive; `allow_urls` that is not a bool.
    """

    allow_urls: bool = False
    timeout_seconds: float = 10.0
    max_bytes: int = 32 * 2**20
    max_pixels: int = 178_956_970
    admit: Callable[[int], Any] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.allow_urls, bool):
            raise ValueError(f"allow_urls={self.allow_urls!r}; expected True or False")
        for name in ("timeout_seconds", "max_bytes", "max_pixels"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or isinstance(value, bool) or not value > 0:
                raise ValueError(f"{name}={value!r}; expected a positive number")


@dataclass(frozen=True)
class Picture:
    """An opened picture, whose pixels may have been decoded at a reduced scale.

    Args:
        image: the upright RGB image.
        size: width and height at full scale, in pixels.
        scale (`int`): how many pixels of full scale make one pixel of `image`, along each side: 1, 2, 4 or 8. Default 1.
        offset: where the picture begins in `image`, in its pixels. Default (0, 0). A side of a reduced image has
            ceil(size / scale) pixels, and the picture can begin or end within one of them.
        key: what identifies the source and these pixels in a `PictureCache`. Default None: it is not kept there.
    """

    image: Image.Image
    size: tuple[int, int]
    scale: int = 1
    offset: tuple[float, float] = (0.0, 0.0)
    key: Hashable = None

    @property
    def width(self) -> int:
        """Width at full scale, in pixels."""
        return self.size[0]

    @property
    def height(self) -> int:
        """Height at full scale, in pixels."""
        return self.size[1]

    def crop(self, pixels: tuple[int, int, int, int]) -> Picture:
        """Return the part of the picture in a box (x0, y0, x1, y1), in pixels of full scale, inside the picture."""
        (left, top), scale = self.offset, self.scale
        x0, y0, x1, y1 = (side / scale for side in pixels)
        start = math.floor(left + x0), math.floor(top + y0)
        end = min(self.image.width, math.ceil(left + x1)), min(self.image.height, math.ceil(top + y1))
        size = pixels[2] - pixels[0], pixels[3] - pixels[1]
        key = None if self.key is None else (self.key, pixels)
        return Picture(self.image.crop((*start, *end)), size, scale, (left + x0 - start[0], top + y0 - start[1]), key)

    def resized(self, size: tuple[int, int], resample: Image.Resampling, *, vectorized: bool = False) -> Image.Image:
        """Return the picture resized to a width and height in pixels.

        Args:
            size: width and height in pixels.
            resample: the filter.
            vectorized (`bool`): resize with torch, whose bilinear and bicubic filters for bytes are those of Pillow with
                vector instructions: about four times faster, and values differ by at most 2 of 255. Other filters, and a
                picture that does not begin at the first pixel of its image, use Pillow. Default False.
        """
        left, top = self.offset
        width, height = self.width / self.scale, self.height / self.scale
        if not vectorized or self.offset != (0, 0) or resample not in _TORCH_FILTERS:
            return self.image.resize(size, resample, box=(left, top, left + width, top + height))
        pixels_1CHW = torch.from_numpy(np.array(self.image)).permute(2, 0, 1)[None]
        whole = (self.image.width, self.image.height) == (width, height)
        # A picture that ends within a pixel is a little smaller than its image: its own ratio of sizes, not the image's.
        target = {"size": size[::-1]} if whole else {"scale_factor": (size[1] / height, size[0] / width)}
        resized_1CHW = functional.interpolate(
            pixels_1CHW, **target, mode=_TORCH_FILTERS[resample], antialias=True, recompute_scale_factor=False
        )
        if resized_1CHW.shape[2:] != (size[1], size[0]):
            return self.image.resize(size, resample, box=(left, top, left + width, top + height))
        return Image.fromarray(resized_1CHW[0].permute(1, 2, 0).contiguous().numpy())


def image_list(value: Any) -> list[Any] | None:
    """Return the entries of a list of images, or of a 1-D array of paths or objects; None for a single image."""
    if isinstance(value, np.ndarray) and value.ndim == 1 and value.dtype.kind in "OU":
        return value.tolist()
    return list(value) if isinstance(value, list | tuple) else None


def open_image(
    source: Any, *, item: str = "image", field: str = "images", limits: ImageLimits | None = None
) -> Image.Image:
    """Open a picture as an upright RGB image, or refuse it. This is the only place where a picture is opened.

    The image is rotated according to its EXIF or XMP data, which is then removed: opening the result again changes
    nothing. Transparency is composited on white, CMYK is converted, and 16-bit grey is scaled by 1/257 (a PIL image of mode
    "I" is 8-bit grey if no value is above 255, else 16-bit grey). Of an animation, the first frame is used. Local files and
    bytes may be JPEG, PNG, WebP, GIF, BMP, TIFF, PPM, JPEG 2000, AVIF, ICO.

    Args:
        source: a path (`str` or `os.PathLike`), the bytes of a file, a PIL image, a NumPy array or torch tensor (H×W,
            H×W×C or C×H×W with 1, 3 or 4 channels; uint8, uint16, bool, or float in [0, 1]), or an http(s) URL.
        item: the name of the product, query or input in error messages.
        field: the name of the field in error messages.
        limits: default `ImageLimits()`, without URLs.

    Raises:
        ProductError: a string that is neither a file nor a permitted URL; a directory; a file that is empty, damaged,
            truncated or not an image; too many pixels, or none; an array of an unsupported type, shape or range.

    Relations: a program that sets Pillow's `ImageFile.LOAD_TRUNCATED_IMAGES` also accepts truncated files here.
    """
    return open_picture(source, item=item, field=field, limits=limits).image


def open_picture(
    source: Any,
    *,
    item: str = "image",
    field: str = "images",
    limits: ImageLimits | None = None,
    least_size: Callable[[tuple[int, int]], tuple[int, int]] | None = None,
) -> Picture:
    """Open a picture that will be resized; see `open_image`.

    A JPEG file is decoded at the smallest of the scales 1, 1/2, 1/4 and 1/8 at which both sides keep the least size, with
    the decoder's own scaled inverse cosine transform (libjpeg; Pillow's `Image.draft`), which reads the whole file but
    computes fewer pixels. The limit of pixels holds for the full scale. Other formats, and pictures that are passed as
    images or arrays, are decoded at full scale.

    Args:
        source, item, field, limits: as for `open_image`.
        least_size: upright width and height of the file's picture → the least width and height to decode. Default `None`:
            full scale.

    Raises:
        ProductError: see `open_image`.
    """
    try:
        return _open_source(source, limits or ImageLimits(), least_size)
    except ImageError as error:
        raise ProductError(item, field, str(error)) from error


def _open_source(source: Any, limits: ImageLimits, least_size: Callable[..., tuple[int, int]] | None) -> Picture:
    if isinstance(source, Image.Image):
        return _decode_opened(source, limits)
    if isinstance(source, bytes | bytearray | memoryview):
        return _decode(bytes(source), limits, "the bytes", least_size)
    if isinstance(source, str | os.PathLike):
        return _decode(*_read_path(source, limits), least_size)
    if isinstance(source, torch.Tensor):
        source = _from_tensor(source)
    if isinstance(source, np.ndarray):
        if source.size > limits.max_pixels * max(_CHANNELS):
            raise ImageError(f"an array of {source.size} values; expected at most {limits.max_pixels} pixels")
        return _decode_opened(_from_array(source), limits)
    raise ImageError(f"found {type(source).__name__} {describe(source)}; expected {ACCEPTED_IMAGES}")


def _read_path(source: str | os.PathLike[Any], limits: ImageLimits) -> tuple[bytes, ImageLimits, str]:
    """Return the bytes of a file or URL, the limits, and its name in error messages."""
    path = os.fsdecode(source)
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]+):", path)
    if isinstance(source, str) and scheme and (path[scheme.end() :].startswith("//") or scheme[1].lower() == "data"):
        if scheme[1].lower() not in ("http", "https"):
            raise ImageError(f"a {scheme[1].lower()}: URL is not opened; expected {ACCEPTED_IMAGES}")
        if not limits.allow_urls:
            raise ImageError(f"URL {describe(path)} is not fetched unless allow_urls=True; expected {ACCEPTED_IMAGES}")
        fetched = fetch(path, timeout_seconds=limits.timeout_seconds, max_bytes=limits.max_bytes)
        return fetched, limits, f"URL {describe(path)}"
    try:
        mode = os.stat(path)
    except (OSError, ValueError) as error:
        detail = "no such file" if isinstance(error, FileNotFoundError) else f"not a readable path ({error})"
        raise ImageError(f"{detail}: {describe(path)}; expected {ACCEPTED_IMAGES}") from error
    if not stat.S_ISREG(mode.st_mode):
        kind = "a directory" if stat.S_ISDIR(mode.st_mode) else "not a regular file"
        raise ImageError(f"{describe(path)} is {kind}; expected {ACCEPTED_IMAGES}")
    try:
        with open(path, "rb") as file:
            return file.read(), limits, describe(path)
    except OSError as error:
        raise ImageError(f"{describe(path)} cannot be read ({error.strerror})") from error


def _decode(
    data: bytes, limits: ImageLimits, name: str, least_size: Callable[..., tuple[int, int]] | None = None
) -> Picture:
    if not data:
        raise ImageError(f"{name}: empty (zero bytes); expected an image file")
    Image.init()
    formats = [format_name for format_name in _FORMATS if format_name in Image.OPEN]
    try:
        image = Image.open(io.BytesIO(data), formats=formats)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(f"{name}: too many pixels ({error}); expected at most {limits.max_pixels}") from error
    except _DECODE_ERRORS as error:
        raise ImageError(f"{name}: not an image that can be read; expected one of {', '.join(_FORMATS)}") from error
    return _decode_opened(image, limits, least_size)


def _decode_opened(
    image: Image.Image, limits: ImageLimits, least_size: Callable[..., tuple[int, int]] | None = None
) -> Picture:
    label = image.format or image.mode
    _check_pixels(image, limits)
    if limits.admit is not None:
        limits.admit(image.width * image.height)
    try:
        scale, stored = 1, image.size
        if least_size is not None:
            scale = _reduce(image, least_size)
        image.load()
        _check_pixels(image, limits)
        turn = _turn(image)
        upright = _to_rgb(image) if turn is None else _to_rgb(image).transpose(turn)
        upright = upright.copy() if upright is image else upright
        upright.info = {}  # an orientation in it would turn the picture again at the next opening
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(f"too many pixels ({error}); expected at most {limits.max_pixels}") from error
    except _DECODE_ERRORS as error:
        raise ImageError(f"damaged or truncated {label} image ({error}); expected a complete image") from error
    if scale == 1:
        return Picture(upright, upright.size)
    left = image.width - stored[0] / scale if turn in _FROM_RIGHT else 0.0
    top = image.height - stored[1] / scale if turn in _FROM_BOTTOM else 0.0
    if turn in _SWAPS_SIDES:
        return Picture(upright, (stored[1], stored[0]), scale, (top, left))
    return Picture(upright, stored, scale, (left, top))


def _reduce(image: Image.Image, least_size: Callable[..., tuple[int, int]]) -> int:
    """Set the scale at which a file that is not decoded yet will be decoded; return its divisor."""
    swapped = _turn(image) in _SWAPS_SIDES
    width, height = least_size((image.height, image.width) if swapped else image.size)
    stored = image.width
    drafted = image.draft("", (height, width) if swapped else (width, height))
    return 1 if drafted is None else round(stored / drafted[1][2])


def _check_pixels(image: Image.Image, limits: ImageLimits) -> None:
    if image.width < 1 or image.height < 1:
        raise ImageError(f"an image of {image.width}×{image.height} has no pixels")
    if image.width * image.height > limits.max_pixels:
        raise ImageError(f"{image.width}×{image.height} is too many pixels; expected at most {limits.max_pixels}")


def _turn(image: Image.Image) -> Image.Transpose | None:
    """Return the transposition that makes the picture upright, from its EXIF or XMP data."""
    try:
        orientation = image.getexif().get(_ORIENTATION_TAG)
    except _DECODE_ERRORS:  # invalid EXIF data; the picture itself is readable
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
    """Return the bytes of a picture of mode "I" or "I;16…", with white for the transparent value of its file."""
    values = np.asarray(image)
    if values.min() < 0 or values.max() > 0xFFFF:
        raise ImageError(f"grey values from {values.min()} to {values.max()}; expected 0 to 65535")
    # Pillow opens some 16-bit files as "I"; otherwise this mode does not define its white.
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
        raise ImageError(f"an array of {values.dtype}; {_ACCEPTED_ARRAYS}")
    if not np.isfinite(values).all():
        raise ImageError(f"an array with NaN or infinite values; {_ACCEPTED_ARRAYS}")
    if values.min() < -1e-3 or values.max() > 1 + 1e-3:
        raise ImageError(f"float values from {values.min():.4g} to {values.max():.4g}; {_ACCEPTED_ARRAYS}")
    return np.rint(np.clip(values, 0, 1) * 255).astype(np.uint8)


def _from_tensor(tensor: torch.Tensor) -> np.ndarray:
    try:
        tensor = tensor.detach().cpu()
        return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy(force=True)
    except (RuntimeError, TypeError, ValueError) as error:  # without memory, sparse, of a type that NumPy lacks
        kind = f"{tensor.dtype}, {tensor.layout}, on {tensor.device}"
        raise ImageError(f"a tensor ({kind}) that is not a dense array in memory; {_ACCEPTED_ARRAYS}") from error


def _from_array(array: np.ndarray) -> Image.Image:
    if array.size == 0 or array.ndim not in (2, 3):
        raise ImageError(f"an array of shape {array.shape}; {_ACCEPTED_ARRAYS}")
    if array.ndim == 3:
        last, first = array.shape[2] in _CHANNELS, array.shape[0] in _CHANNELS
        if last == first:
            ambiguity = "could be H×W×C and C×H×W" if last else "has no axis of channels"
            raise ImageError(f"an array of shape {array.shape} {ambiguity}; {_ACCEPTED_ARRAYS}")
        array = array if last else np.moveaxis(array, 0, 2)
    pixels = np.ascontiguousarray(_to_uint8(array))
    return Image.fromarray(pixels[:, :, 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels)
