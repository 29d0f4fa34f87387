"""Hold the options of a call and the rows of its batch, and pad the rows into tensors."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from .batch_moon import Shortened
from .cropping_moon import CoreDetector
from .errors_moon import check_budget, check_choice
from .images_moon import ImageLimits, Picture
from .picture_cache_moon import PictureCache
from .pixels_moon import patches
from .product_moon import FORMS, Record
from .text_moon import ProductText

REASONINGS = ("none", "generate", "given", "mixed")


@dataclass(frozen=True)
class RecordOptions:
    """Options of a call with products or queries; see `MoonProcessor.__call__`."""

    form: str = "mm"
    task: str | None = None
    instruction: str | None = None
    on_error: str = "raise"
    core_crop: bool = True
    detector: CoreDetector | None = None
    max_tokens: int = 1024
    max_image_tokens: int | None = None
    reduced_decoding: bool = False
    picture_cache: PictureCache | None = None
    reasoning: str = "none"
    padding: bool | str = True
    padding_side: str | None = None
    pad_to_multiple_of: int | None = None
    return_tensors: str | None = "pt"
    limits: ImageLimits = field(default_factory=ImageLimits)

    def __post_init__(self) -> None:
        check_choice("form", self.form, FORMS)
        check_choice("on_error", self.on_error, ("raise", "skip"))
        check_choice("core_crop", self.core_crop, (True, False))
        check_choice("reduced_decoding", self.reduced_decoding, (True, False))
        check_choice("reasoning", self.reasoning, REASONINGS)
        check_choice("padding", self.padding, (True, False, "longest", "max_length", "do_not_pad"))
        check_choice("padding_side", self.padding_side, (None, "left", "right"))
        check_choice("return_tensors", self.return_tensors, (None, "pt", "np"))
        check_budget("max_tokens", self.max_tokens)
        check_budget("max_image_tokens", self.max_image_tokens, optional=True)
        check_budget("pad_to_multiple_of", self.pad_to_multiple_of, optional=True)


@dataclass
class Row:
    """A row of the batch in preparation.

    Args:
        index: index of the record in the call.
        source: the record as it was passed.
        is_product: whether it is a product; otherwise it is a query.
        instruction: the instruction in the system message.
        record: the checked record.
        pictures: its opened pictures, with the core crop after the first, until they are resized.
        images: its resized images, in the same order.
        ending: the text after the template: `<emb>`, or the reasoning up to where the model continues.
        prompt: the prompt before and after the record's text.
        ids: ids of the whole prompt, with image tokens expanded.
        shortened: what was shortened to keep the budget.
    """

    index: int
    source: Any
    is_product: bool
    instruction: str
    record: Record = field(default_factory=lambda: Record("", ProductText(), []))
    pictures: list[Picture] = field(default_factory=list)
    images: list[Image.Image] = field(default_factory=list)
    ending: str = ""
    prompt: tuple[str, str] = ("", "")
    ids: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    shortened: list[Shortened] = field(default_factory=list)


def stack_rows(rows: list[Row], options: RecordOptions, processor: Any) -> dict[str, Any]:
    """Pad the rows and return the tensors of the batch as NumPy arrays, or as lists with `return_tensors=None`.

    Args:
        rows: finished rows, at least one.
        options: of the call.
        processor: the `MoonProcessor`, for its padding and its image token.

    Raises:
        ValueError: rows of different lengths without padding, with `return_tensors`.
    """
    lengths = [len(row.ids) for row in rows]
    own_side = "left" if options.reasoning == "generate" else processor.tokenizer.padding_side
    side = options.padding_side or own_side
    if options.padding in (False, "do_not_pad"):
        if options.return_tensors is not None and len(set(lengths)) > 1:
            raise ValueError(
                "padding=False produces rows of different lengths; expected padding=True or return_tensors=None"
            )
        widths = lengths
    else:
        step = options.pad_to_multiple_of or 1
        width = options.max_tokens if options.padding == "max_length" else max(lengths)
        widths = [math.ceil(width / step) * step] * len(rows)
    columns: dict[str, list[np.ndarray]] = {"input_ids": [], "attention_mask": [], "mm_token_type_ids": []}
    for row, length, width in zip(rows, lengths, widths, strict=True):
        padding = (width - length, 0) if side == "left" else (0, width - length)
        ids = np.pad(row.ids, padding, constant_values=processor.tokenizer.pad_token_id)
        columns["input_ids"].append(ids)
        columns["attention_mask"].append(np.pad(np.ones(length, dtype=np.int64), padding))
        columns["mm_token_type_ids"].append((ids == processor.image_token_id).astype(np.int64))
    as_lists = options.return_tensors is None
    data = {name: [part.tolist() for part in parts] if as_lists else np.stack(parts) for name, parts in columns.items()}
    images = [image for row in rows for image in row.images]
    return {**data, **patches(images, processor.image_processor)} if images else data
