"""Fit a row into its token budget: resize its images, then shorten its text. Our design.

`processor` is the `MoonProcessor`, which tokenizes the row after each change.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .batch_moon import Shortened
from .errors_moon import ProductError
from .pixels_moon import count_tokens, equal_share, target_size
from .reasoning_moon import THINK_END
from .rows_moon import RecordOptions, Row
from .text_moon import plain_text

SHORTENED_FIRST_TO_LAST = ("description", "attributes", "title", "category")
"""The parts of a product's text, from the least important one."""
LEAST_OF_A_DESCRIPTION = 16
"""Tokens. A shorter beginning of a description says little, and takes the room of whole attributes."""


def image_sizes(processor: Any, row: Row, options: RecordOptions) -> list[tuple[int, int]]:
    """Return widths and heights of a row's images, within `max_image_tokens` and then `max_tokens`.

    Images leave the text min(its tokens, max_tokens / 4) tokens, and get equal shares of the rest. Each image gets at least
    one token, even if the text must then be shortened.

    Args:
        processor: see above.
        row: a row with opened pictures and a prompt; reduced images are added to its `shortened`.
        options: of the call.
    """
    own = processor.image_processor
    sizes = [target_size(picture.size, own, options.max_image_tokens) for picture in row.pictures]
    counts = [count_tokens(size, own) for size in sizes]
    fixed = _fixed_tokens(processor, row)
    room = options.max_tokens - fixed - options.max_tokens // 4
    if sum(counts) > room:  # only then the text must be tokenized
        text_tokens = len(processor.encode([processor.write(row)])[0]) - len(counts) - fixed
        room += max(0, options.max_tokens // 4 - text_tokens)
    if sum(counts) <= room:
        return sizes
    limit = equal_share(counts, room)
    for index, count in enumerate(counts):
        if count > limit:
            sizes[index] = target_size(row.pictures[index].size, own, limit)
    if (after := sum(count_tokens(size, own) for size in sizes)) < sum(counts):
        row.shortened.append(Shortened(row.index, "images", sum(counts), after))
    return sizes


def shorten_text(processor: Any, row: Row, options: RecordOptions) -> None:
    """Shorten the text of a row that exceeds the budget: description, attributes, title, category, in this order.

    Args:
        processor: see above.
        row: a tokenized row; shortened parts are added to its `shortened`.
        options: of the call.

    Raises:
        ProductError: a budget that is too small for the images, the instruction and the template, or leaves no text of a row
            without images.
    """
    if len(row.ids) <= options.max_tokens:
        return
    fixed = _fixed_tokens(processor, row)
    image_tokens = sum(count_tokens(image.size, processor.image_processor) for image in row.images)
    parts = "instruction, template and reasoning" if THINK_END in row.ending else "the instruction and template"
    if fixed + image_tokens > options.max_tokens:
        reason = (
            f"{image_tokens} image tokens (an image takes at least one) and {fixed} of {parts} are "
            f"more than max_tokens={options.max_tokens}; expected a larger max_tokens or fewer images"
        )
        raise ProductError(row.record.name, "max_tokens", reason)
    for part in SHORTENED_FIRST_TO_LAST:
        if len(row.ids) <= options.max_tokens:
            break
        before = _count(processor, row, part)
        while len(row.ids) > options.max_tokens and getattr(row.record.text, part):
            _cut(processor, row, part, len(row.ids) - options.max_tokens)
        if (after := _count(processor, row, part)) < before:
            name = part if row.is_product else "text"
            row.shortened.append(Shortened(row.index, name, before, after))
    if not row.record.text and not row.images:
        reason = f"max_tokens={options.max_tokens} leaves no room for text beside the {fixed} of {parts}"
        raise ProductError(row.record.name, "max_tokens", f"{reason}; expected a larger max_tokens")


def attributes_to_keep(sizes: Sequence[int], excess: int) -> list[int]:
    """Return the indices of the attributes to keep; the others together have at least `excess` tokens.

    The longest attributes are removed first; of equally long ones, the last.

    Args:
        sizes: number of tokens of each attribute, including its separator.
        excess: number of tokens to remove, at least one.
    """
    kept = set(range(len(sizes)))
    for index in sorted(kept, key=lambda index: (sizes[index], index), reverse=True):
        if excess <= 0:
            break
        kept.remove(index)
        excess -= sizes[index]
    return sorted(kept)


def _fixed_tokens(processor: Any, row: Row) -> int:
    """Return the number of tokens of instruction, template and ending, without image tokens."""
    return len(processor.encode(["".join(row.prompt)])[0]) - len(row.images)


def _count(processor: Any, row: Row, part: str) -> int:
    """Return the number of tokens of a part of the text."""
    value = getattr(row.record.text, part)
    text = "; ".join(value) if isinstance(value, list) else value
    return len(processor.encode([plain_text(text, processor.control_tokens)])[0]) if text else 0


def _cut(processor: Any, row: Row, part: str, excess: int) -> None:
    """Remove about `excess` tokens, at least one, from a part of the text, and tokenize the row again."""
    text = row.record.text
    if part == "attributes":
        sizes = [len(ids) for ids in processor.encode([f"; {pair}" for pair in text.attributes])]
        text.attributes = [text.attributes[index] for index in attributes_to_keep(sizes, excess)]
    else:
        words = plain_text(getattr(text, part), processor.control_tokens)
        setattr(text, part, processor.without_end(words, excess))
        if part == "description" and _count(processor, row, part) < LEAST_OF_A_DESCRIPTION:
            text.description = ""
    processor.tokenize([row])
