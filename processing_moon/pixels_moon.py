"""Resize pictures to their token budgets, crop boxes, and convert pixels to patches.

Nothing here needs a tokenizer or a prompt. `image_processor` is always that of the base model, for example
`Qwen2VLImageProcessorPil`; only its settings are used, its code is never called.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from .errors_moon import ProductError
from .images_moon import Picture
from .product_moon import Box, clamp_box

# Qwen's image processors refuse pictures with a larger ratio of the longer to the shorter side.
MAX_ASPECT_RATIO = 200
REDUCED_OVER_TARGET = 2
"""How many times as many pixels as its target has, along each side, a picture keeps that is decoded at a reduced scale."""


def pixel_limits(image_processor: Any) -> tuple[int, int]:
    """Return the base's minimum and maximum number of pixels of a resized picture."""
    return image_processor.size["shortest_edge"], image_processor.size["longest_edge"]


def token_side(image_processor: Any) -> int:
    """Return the side, in pixels, of the square that an image token covers: patch × merge."""
    return image_processor.patch_size * image_processor.merge_size


def resample_filter(image_processor: Any) -> Image.Resampling:
    """Return the base's filter for resizing."""
    return Image.Resampling(int(image_processor.resample))


def count_tokens(size: tuple[int, int], image_processor: Any) -> int:
    """Return the number of image tokens of a resized picture.

    Args:
        size: width and height in pixels, multiples of `token_side`.
        image_processor: of the base.
    """
    return size[0] * size[1] // token_side(image_processor) ** 2


def target_size(size: tuple[int, int], image_processor: Any, max_image_tokens: int | None = None) -> tuple[int, int]:
    """Return width and height after resizing: multiples of patch × merge, within the base's limits and the image's budget.

    Source: `smart_resize` of Qwen2-VL's image processor; keeping the budget for thin images as well is our design.

    Args:
        size: width and height of the picture in pixels.
        image_processor: of the base.
        max_image_tokens: budget of the picture in tokens. Default None: the base's own limit.
    """
    width, height = size
    least, most, factor = *pixel_limits(image_processor), token_side(image_processor)
    if max_image_tokens is not None:
        most = min(most, max_image_tokens * factor**2)
        least = min(least, most)
    rows, columns = round(height / factor), round(width / factor)
    if rows * columns * factor**2 > most:
        shrink = math.sqrt(height * width / most)
        rows = max(1, math.floor(height / shrink / factor))
        columns = max(1, math.floor(width / shrink / factor))
    elif rows * columns * factor**2 < least:
        grow = math.sqrt(least / (height * width))
        rows, columns = math.ceil(height * grow / factor), math.ceil(width * grow / factor)
    if max_image_tokens is not None and rows * columns > max_image_tokens:
        rows, columns = min(rows, max_image_tokens), min(columns, max_image_tokens)
        rows, columns = (rows, max_image_tokens // rows) if rows <= columns else (max_image_tokens // columns, columns)
    return columns * factor, rows * factor


def least_size(
    size: tuple[int, int], image_processor: Any, max_image_tokens: int | None = None, box: Box | None = None
) -> tuple[int, int]:
    """Return the least width and height at which a picture is decoded: `REDUCED_OVER_TARGET` times the size after resizing.

    The factor 2 is that of Pillow's `Image.thumbnail` (`reducing_gap=2.0`): the filter still sees two pixels for each one
    that it writes. With a core box the crop keeps as much: the whole picture is decoded larger by the crop's share of it.

    Args:
        size: width and height of the picture in pixels.
        image_processor: of the base.
        max_image_tokens: budget of the picture in tokens. Default None: the base's own limit.
        box: core box in pixels of the picture, whose crop is resized as well. Default None.
    """
    width, height = (REDUCED_OVER_TARGET * side for side in target_size(size, image_processor, max_image_tokens))
    pixels = None if box is None else clamp_box(box, *size)
    if pixels is None:
        return width, height
    crop = pixels[2] - pixels[0], pixels[3] - pixels[1]
    wide, high = (REDUCED_OVER_TARGET * side for side in target_size(crop, image_processor, max_image_tokens))
    return max(width, math.ceil(wide * size[0] / crop[0])), max(height, math.ceil(high * size[1] / crop[1]))


def equal_share(counts: Sequence[int], room: int) -> int:
    """Return the maximum number of tokens of a picture for which all pictures together fit into the room. Our design.

    Pictures get equal shares; a small picture leaves the rest of its share to the others. Each gets at least one token.

    Args:
        counts: number of tokens that each picture would take; together more than `room`.
        room: number of tokens for all of them.
    """
    limit, left = 1, room
    for done, count in enumerate(sorted(counts)):
        limit = max(1, left // (len(counts) - done))
        if count > limit:  # like all that follow
            break
        left -= count
    return limit


def crop_core(image: Image.Image, box: Box, margin: float = 0.0) -> Image.Image:
    """Crop an image to a box.

    Args:
        image: any PIL image.
        box: (x0, y0, x1, y1) in pixels; clamped to the image.
        margin: margin on each side, as a share of the box's width and height. Default 0.

    Raises:
        ValueError: a box that is not finite, is inverted, or is outside the image; a negative margin.
    """
    if not all(math.isfinite(side) for side in box) or box[0] >= box[2] or box[1] >= box[3]:
        raise ValueError(f"box {list(box)}; expected finite x0 < x1, y0 < y1")
    if not margin >= 0:
        raise ValueError(f"margin={margin}; expected 0 or more")
    wide, high = margin * (box[2] - box[0]), margin * (box[3] - box[1])
    pixels = clamp_box((box[0] - wide, box[1] - high, box[2] + wide, box[3] + high), *image.size)
    if pixels is None:
        raise ValueError(
            f"box {list(box)} lies outside the image of {image.width}×{image.height} pixels; expected a box inside it"
        )
    return image.crop(pixels)


def resize(image: Image.Image, size: tuple[int, int], image_processor: Any) -> Image.Image:
    """Resize a picture with the base's filter."""
    return image.resize(size, resample_filter(image_processor))


def patches(images: Sequence[Image.Image], image_processor: Any) -> dict[str, np.ndarray]:
    """Convert resized images to patches, with the same values as the base's image processor.

    Rescaling and normalisation act on single bytes, so a table of 256 values per channel replaces them.

    Args:
        images: RGB, with sides that are multiples of `token_side`.
        image_processor: of the base.

    Shapes:
        pixel_values: (patches, channels × frames × patch²) float32; image_grid_thw: (images, 3) int64, in patches.
    """
    settings = image_processor
    patch, merge, frames = settings.patch_size, settings.merge_size, settings.temporal_patch_size
    values_of_bytes = np.arange(256, dtype=np.float64) * (settings.rescale_factor if settings.do_rescale else 1.0)
    table = np.repeat(values_of_bytes.astype(np.float32)[None], 3, axis=0)
    if settings.do_normalize:
        mean, std = (
            np.asarray(values, dtype=np.float32)[:, None] for values in (settings.image_mean, settings.image_std)
        )
        table = (table - mean) / std
    grids = [(1, image.height // patch, image.width // patch) for image in images]
    pixels = np.empty((sum(rows * columns for _, rows, columns in grids), 3, frames, patch, patch), dtype=np.float32)
    start = 0
    for image, (_, rows, columns) in zip(images, grids, strict=True):
        values = np.asarray(image).reshape(rows // merge, merge, patch, columns // merge, merge, patch, 3)
        values = values.transpose(6, 0, 3, 1, 4, 2, 5).reshape(3, rows * columns, 1, patch, patch)
        for channel in range(3):
            pixels[start : start + rows * columns, channel] = table[channel][values[channel]]
        start += rows * columns
    return {"pixel_values": pixels.reshape(start, -1), "image_grid_thw": np.asarray(grids, dtype=np.int64)}


def aspect_ratio(width: int, height: int) -> float:
    """Return the ratio of the longer side to the shorter one."""
    return max(width, height) / min(width, height)


def check_ratio(image: Image.Image | Picture, item: str, field_name: str) -> None:
    """Refuse a picture that is too long and thin for the base.

    Raises:
        ProductError: an aspect ratio above `MAX_ASPECT_RATIO`.
    """
    if aspect_ratio(*image.size) > MAX_ASPECT_RATIO:
        reason = (
            f"{image.width}×{image.height} is too long and thin; expected an aspect ratio of at most {MAX_ASPECT_RATIO}"
        )
        raise ProductError(item, field_name, reason)


def box_in_image(box: Box, image: Image.Image | Picture, item: str) -> tuple[int, int, int, int]:
    """Return the pixels (x0, y0, x1, y1) that a core box covers in its image.

    Raises:
        ProductError: a box that lies outside the image.
    """
    pixels = clamp_box(box, *image.size)
    if pixels is None:
        reason = f"{list(box)} lies outside the image of {image.width}×{image.height} pixels; expected a box inside it"
        raise ProductError(item, "core_box", reason)
    return pixels
