"""MoonProcessor: products, queries, or plain text and images → the tensors of a Moon model.

One prompt for all: the base's chat template on [system: instruction, user: images then text] with the generation prompt,
followed by `<emb>` where the model reads its vector there. Nothing here imports the model.
"""

from __future__ import annotations

import difflib
import math
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from transformers import (
    AddedToken,
    AutoTokenizer,
    PreTrainedConfig,
    ProcessorMixin,
    Qwen2VLImageProcessorPil,
)

from .batch_moon import MoonBatch, Shortened, Skipped
from .budget_moon import LEAST_OF_A_DESCRIPTION, SHORTENED_FIRST_TO_LAST, attributes_to_keep
from .pixels_moon import (
    MAX_ASPECT_RATIO,
    aspect_ratio,
    box_in_image,
    check_ratio,
    count_tokens,
    crop_core,
    equal_share,
    open_nested,
    patches,
    pixel_limits,
    resize,
    target_size,
    token_side,
)
from .product_moon import (
    ATTRIBUTE_END,
    ATTRIBUTE_START,
    CATEGORY_END,
    CATEGORY_START,
    FORMS,
    TITLE_END,
    TITLE_START,
    Box,
    ImageLimits,
    Item,
    ProductError,
    ProductText,
    clamp_box,
    control_token_pattern,
    given_reasoning,
    is_product,
    open_image,
    plain_text,
    product_text,
    read_product,
    read_query,
    refuse_picture_path,
    refuse_unclear,
)
from .reasoning_moon import EMB_TOKEN, THINK_END, THINK_START, Reasoning, read_ids

if TYPE_CHECKING:
    # The detectors import this file. That this line names theirs makes transformers save it with the processor.
    from .cropping_moon import CoreDetector

MOON_TOKENS = (CATEGORY_START, CATEGORY_END, ATTRIBUTE_START, ATTRIBUTE_END, EMB_TOKEN)
READOUTS = ("mean", "emb", "last")
REASONINGS = ("none", "generate", "given", "mixed")
DEFAULT_INSTRUCTIONS = {
    "product": "Represent this product, from its pictures and its text, so that shoppers can find it.",
    "query": "Represent what this shopper is looking for, so that the right product is found.",
    "category": "Represent this product category, so that the products in it are found.",
    "attribute": "Represent this value of a product attribute, so that the products that have it are found.",
}
# What Qwen3-VL-Embedding (arXiv 2601.04720) takes where the caller gives no instruction.
EMBEDDER_INSTRUCTION = "Represent the user's input."
# Tokens of an item and of an image.
DEFAULT_BUDGETS, EMBEDDER_BUDGETS = (1024, 256), (8192, 1800)
_TEXT_SLOT = "\ue000text\ue001"


@dataclass(frozen=True)
class _Options:
    """One call's options for products and queries; see `MoonProcessor.__call__`."""

    form: str = "mm"
    task: str | None = None
    instruction: str | None = None
    on_error: str = "raise"
    core_crop: bool = True
    detector: CoreDetector | None = None
    max_tokens: int = 1024
    max_image_tokens: int | None = None
    reasoning: str = "none"
    padding: bool | str = True
    padding_side: str | None = None
    pad_to_multiple_of: int | None = None
    return_tensors: str | None = "pt"
    limits: ImageLimits = field(default_factory=ImageLimits)

    def __post_init__(self) -> None:
        _one_of("form", self.form, FORMS)
        _one_of("on_error", self.on_error, ("raise", "skip"))
        _one_of("core_crop", self.core_crop, (True, False))
        _one_of("reasoning", self.reasoning, REASONINGS)
        _one_of("padding", self.padding, (True, False, "longest", "max_length", "do_not_pad"))
        _one_of("padding_side", self.padding_side, (None, "left", "right"))
        _one_of("return_tensors", self.return_tensors, (None, "pt", "np"))
        _budget("max_tokens", self.max_tokens)
        _budget("max_image_tokens", self.max_image_tokens, optional=True)
        _budget("pad_to_multiple_of", self.pad_to_multiple_of, optional=True)


def _one_of(name: str, value: Any, accepted: Sequence[Any]) -> None:
    if value not in accepted:
        raise ValueError(f"{name}={value!r} is not known; expected {', '.join(repr(one) for one in accepted)}")


def _budget(name: str, value: Any, optional: bool = False) -> None:
    if optional and value is None:
        return
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name}={value!r}; expected a positive whole number{' or None' if optional else ''}")


@dataclass
class _Row:
    """One item on its way through the processor."""

    index: int
    record: Any
    is_product: bool
    instruction: str
    item: Item = field(default_factory=lambda: Item("", ProductText(), []))
    images: list[Image.Image] = field(default_factory=list)
    ending: str = ""
    prompt: tuple[str, str] = ("", "")
    ids: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    shortened: list[Shortened] = field(default_factory=list)


class MoonProcessor(ProcessorMixin):
    """Turns products, queries, or plain text and images into a Moon model's input.

    Args:
        image_processor: the base's image processor, of the kind of `Qwen2VLImageProcessorPil`.
        tokenizer: the base's tokenizer with Moon's tokens, see `from_base`.
        chat_template (`str`): default the tokenizer's.
        instructions (`dict[str, str]`): task → instruction. Tasks left out keep their default: product, query, category and
            attribute each have one, "Represent the user's input." for all in a base that is an embedder already
            (readout "last" without markers). Further tasks may be added.
        readout (`str`): "mean", "emb" or "last", as in the model; "emb" ends every prompt with `<emb>`, but those
            for "generate" (see the call's `reasoning`). Default "mean".
        markers (`bool`): whether marker tokens surround a product's category and attributes. Default True.
        max_tokens (`int`): budget of one item, all that the processor emits for it: text, image tokens, a given reasoning
            and the closing tokens; what a model goes on to write is not in it. Images that leave less room than the text
            needs, or than a quarter of the budget if that is less, are made smaller, to equal shares of what they may
            take; then the text is made shorter: first the description is cut at its end, or left out where fewer than 16 of
            its tokens would stay; then whole attributes are left out, the longest first; then title and category are cut.
            Default 1024.
        max_image_tokens (`int` or `None`): budget of one image, kept by resizing. Default None: the base's own; `from_base`
            has others.
        core_crop (`bool`): whether the core of the first image is appended as a second image where its box is known
            (MOON, arXiv 2508.11999 §3.1). A box outside the image is refused either way. Default True.
        title_markers (`bool`): whether marker tokens surround a product's title and a query's text. Default False.
        max_reasoning_tokens (`int` or `None`): budget of a reasoning, between its tags; asks for readout "emb". Default
            None: the call option `reasoning` is refused.

    Raises:
        ValueError: an unknown read-out, a budget that is not positive, an instruction without text, a token that the
            tokenizer lacks, `max_reasoning_tokens` beside another read-out than "emb".

    Relations: `from_base` makes one of a base checkpoint; `from_pretrained` and `save_pretrained` keep all settings.
    """

    # As in Qwen's processors.
    return_mm_token_type_ids = True
    text_kwargs = {"return_token_type_ids": False}

    def __init__(  # noqa: PLR0913 - transformers reads this signature to save and to restore each setting
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        chat_template: Any = None,
        instructions: dict[str, str] | None = None,
        readout: str = "mean",
        markers: bool = True,
        max_tokens: int = 1024,
        max_image_tokens: int | None = None,
        core_crop: bool = True,
        title_markers: bool = False,
        max_reasoning_tokens: int | None = None,
    ) -> None:
        _one_of("readout", readout, READOUTS)
        _budget("max_tokens", max_tokens)
        _budget("max_image_tokens", max_image_tokens, optional=True)
        _budget("max_reasoning_tokens", max_reasoning_tokens, optional=True)
        if max_reasoning_tokens is not None and readout != "emb":
            raise ValueError(f"max_reasoning_tokens={max_reasoning_tokens} asks for readout='emb'; found {readout!r}")
        super().__init__(image_processor, tokenizer, chat_template=chat_template or tokenizer.chat_template)
        if self.chat_template is None:
            raise ValueError("MoonProcessor: neither the processor nor the tokenizer has a chat template")
        embedder = readout == "last" and not markers
        defaults = dict.fromkeys(DEFAULT_INSTRUCTIONS, EMBEDDER_INSTRUCTION) if embedder else DEFAULT_INSTRUCTIONS
        self.instructions = {**defaults, **(instructions or {})}
        for task, instruction in self.instructions.items():
            _finished(instruction, f"instructions[{task!r}]")
        self.readout, self.markers, self.title_markers = readout, bool(markers), bool(title_markers)
        self.max_reasoning_tokens = max_reasoning_tokens
        self.max_tokens, self.max_image_tokens, self.core_crop = max_tokens, max_image_tokens, bool(core_crop)
        self.image_token, self.video_token = "<|image_pad|>", "<|video_pad|>"
        self.vision_start_token, self.vision_end_token = "<|vision_start|>", "<|vision_end|>"
        needed = [self.image_token, self.vision_start_token, self.vision_end_token]
        needed += [CATEGORY_START, CATEGORY_END, ATTRIBUTE_START, ATTRIBUTE_END] if markers else []
        needed += [EMB_TOKEN] if readout == "emb" else []
        _check_tokens(tokenizer, [*needed, *_optional_tokens(title_markers, max_reasoning_tokens)])
        self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
        self.video_token_id = tokenizer.convert_tokens_to_ids(self.video_token)
        self._scaffolds: dict[Any, tuple[str, str]] = {}
        self._controls: tuple[int, re.Pattern[str]] = (-1, control_token_pattern(()))

    @classmethod
    def from_base(cls, base_path: Any, *, revision: str | None = None, **settings: Any) -> MoonProcessor:
        """Make the processor of a Moon model from the folder or hub id of its base.

        Moon's five tokens, and with `title_markers` the two around titles, are added to the tokenizer as single special
        tokens. `max_reasoning_tokens` adds `<think>` and `</think>` where they lack, not special, as Qwen3's tokenizer has
        them. Every other id stays as it is.

        Args:
            base_path: folder or hub id of a Qwen3-VL or Qwen2.5-VL checkpoint (embedders included).
            revision: of the hub repository.
            **settings: `readout`, `markers`, `instructions`, `max_tokens`, `max_image_tokens`, `core_crop`,
                `title_markers`, `max_reasoning_tokens` of the class. The two budgets of items and images default to 1024
                and 256, in an embedder (readout "last", markers False) to 8192 and 1800, as in Qwen3-VL-Embedding
                (arXiv 2601.04720). A base whose own limit of an image is no higher keeps it; so does
                `max_image_tokens=None`.

        Raises:
            ValueError: see the class.
            OSError: no tokenizer or image processor there.
            TypeError: a setting that the class does not have.
        """
        tokenizer = AutoTokenizer.from_pretrained(base_path, revision=revision)
        image_processor = Qwen2VLImageProcessorPil.from_pretrained(base_path, revision=revision or "main")
        if tokenizer.chat_template is None:  # older repositories keep it beside the processor only
            tokenizer.chat_template = cls.get_processor_dict(base_path, revision=revision)[0].get("chat_template")
        known = tokenizer.get_added_vocab()
        optional = _optional_tokens(settings.get("title_markers", False), settings.get("max_reasoning_tokens"))
        for token in (*MOON_TOKENS, *optional):
            if token not in known:
                special = token not in (THINK_START, THINK_END)
                tokenizer.add_tokens([AddedToken(token, special=special, normalized=False)], special_tokens=special)
        embedder = settings.get("readout") == "last" and not settings.get("markers", True)
        max_tokens, most = EMBEDDER_BUDGETS if embedder else DEFAULT_BUDGETS
        own_most = pixel_limits(image_processor)[1] // token_side(image_processor) ** 2
        defaults = {"max_tokens": max_tokens, "max_image_tokens": None if own_most <= most else most}
        return cls(image_processor, tokenizer, **{**defaults, **settings})

    @classmethod
    def _get_arguments_from_pretrained(
        cls, pretrained_model_name_or_path: Any, processor_dict: Any = None, **kwargs: Any
    ) -> list[Any]:
        # The PIL backend always: pixels must not depend on whether torchvision is installed.
        subfolder = kwargs.pop("subfolder", "")
        where = {"pretrained_model_name_or_path": pretrained_model_name_or_path, "subfolder": subfolder, **kwargs}
        image_processor = Qwen2VLImageProcessorPil.from_pretrained(**where)
        # A neutral configuration: the model's own asks to run the checkpoint's code where the model is not imported.
        return [image_processor, AutoTokenizer.from_pretrained(**{**where, "config": PreTrainedConfig()})]

    @property
    def model_input_names(self) -> list[str]:
        """Names of the tensors that the model takes."""
        return ["input_ids", "attention_mask", "mm_token_type_ids", "pixel_values", "image_grid_thw"]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_scaffolds": {}}

    def __call__(
        self,
        images: Any = None,
        text: Any = None,
        *,
        products: Any = None,
        queries: Any = None,
        records: Any = None,
        **options: Any,
    ) -> MoonBatch:
        """Process products, or queries, or a mixture of both, or plain text and images.

        Args:
            images: with `text`: pictures as `open_image` takes them; one, a list, or a list of lists per text.
            text: prompts, taken as they are, as by Qwen's own processor: image placeholders are expanded, no instruction
                is added, control tokens are control tokens. Where no placeholder stands, an image is put before the text
                of the same index. A picture's path is refused, see `refuse_picture_path`.
            products: product records (or one), see `read_product`.
            queries: query records (or one), see `read_query`.
            records: products and queries mixed: a record with a field that only products have is a product; an
                unknown field in one without a field of either kind is refused with the fields of both.
            **options: for products and queries
                form ("mm", "t" or "i"; of products only): text and images, or one of them. Default "mm".
                task: which instruction. Default "product" or "query".
                instruction: another one, for this call.
                on_error ("raise" or "skip"): "skip" leaves bad items out and lists them in `.skipped`.
                core_crop, max_tokens, max_image_tokens: as in the class, for this call.
                reasoning ("none", "generate", "given" or "mixed"; all but the first need `max_reasoning_tokens`): how the
                    prompt ends.
                    "generate": with `<think>`, without `<emb>`, padded on the left, for the model to go on from there.
                    "given": with `<think>`, the record's "reasoning" (see `given_reasoning`) cut to `max_reasoning_tokens`,
                    `</think>` and `<emb>`. "mixed": as "given" where the record's "reasoning" is not empty, else as
                    "none", in one batch. Default "none": the record's "reasoning" is not read.
                detector (`CoreDetector`): finds the core box where none is given.
                allow_urls, timeout_seconds, max_bytes, max_pixels: see `ImageLimits`.
                padding (True, False or "max_length", i.e. to max_tokens; default True), padding_side, pad_to_multiple_of.
                return_tensors ("pt", "np" or None, which gives lists of ids). Default "pt".
                For text and images: `max_image_tokens`, the four of `ImageLimits`, and what Qwen's processor takes.

        Returns:
            `MoonBatch`.

        Shapes:
            input_ids, attention_mask, mm_token_type_ids (1 on image tokens): (B, T) int64; pixel_values: (patches,
            channels × frames × patch²) float32; image_grid_thw: (images, 3) int64; the last two only if there is an image.

        Raises:
            ProductError: an item that cannot be used (with on_error="raise").
            ValueError: an option out of range; an unknown task.
            TypeError: none or several kinds of input, or an unknown option (with the nearest known one).
        """
        kinds = {"products": products, "queries": queries, "records": records}
        given = [name for name, value in kinds.items() if value is not None]
        plain = text is not None or images is not None
        if len(given) + plain != 1:
            raise TypeError("MoonProcessor takes one of: products=, queries=, records=, or text= and images=")
        if plain:
            return self._process_plain(images, text, options)
        records = kinds[given[0]]
        if isinstance(records, str) or not isinstance(records, Iterable):
            raise TypeError(
                f"{given[0]}: found {type(records).__name__}; expected a record (a dict) or a list of records"
            )
        records = [records] if isinstance(records, Mapping) else list(records)
        if not records:
            raise ValueError(f"{given[0]} is empty; expected at least one record")
        if queries is not None and "form" in options:
            raise TypeError("MoonProcessor: form= belongs to products=")
        are_products = [is_product(record) if given[0] == "records" else given[0] == "products" for record in records]
        return self._process_records(records, are_products, self._read_options(options), mixed=given[0] == "records")

    @staticmethod
    def bare_query(text: str, index: int) -> dict[str, str]:
        """Return the query record of a bare string.

        Args:
            text: the words.
            index: its place in the call, for error messages.

        Raises:
            ProductError: a picture's path or address, see `refuse_picture_path`.
        """
        instead = '{"image": path} or Image.open(path) for the picture, {"text": path} for the words'
        refuse_picture_path(text, f"item {index}", "text", instead)
        return {"text": text}

    # -----------------------------------------------------------------------------------------------------------------
    # Products and queries

    def _read_options(self, given: dict[str, Any]) -> _Options:
        options = dict(given)
        for group in ("common_kwargs", "text_kwargs", "images_kwargs", "audio_kwargs", "videos_kwargs"):
            nested = options.pop(group, None) or {}
            if group in ("common_kwargs", "text_kwargs"):
                nested = {key: value for key, value in nested.items() if key != "truncation"}  # the budget does that
                options = {**nested, **options}
        if options.get("max_length") is not None:
            options.setdefault("max_tokens", options["max_length"])
        options.pop("max_length", None)
        limits = {one.name: options.pop(one.name) for one in fields(ImageLimits) if one.name in options}
        known = [one.name for one in fields(_Options) if one.name != "limits"] + [
            one.name for one in fields(ImageLimits)
        ]
        for name in options:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                raise TypeError(
                    f"MoonProcessor: unknown option {name!r}" + (f"; did you mean {near[0]!r}?" if near else "")
                )
        settings = {name: getattr(self, name) for name in ("core_crop", "max_tokens", "max_image_tokens")}
        read = _Options(**{**settings, **options}, limits=ImageLimits(**limits))
        if read.reasoning != "none":
            self._check_reasons(f"reasoning={read.reasoning!r}")
        return read

    def _check_reasons(self, what: str) -> None:
        if self.max_reasoning_tokens is None:
            raise ValueError(
                f"MoonProcessor: {what} needs a processor that was made with max_reasoning_tokens and readout='emb'; "
                "found max_reasoning_tokens=None"
            )

    def _process_records(
        self, records: Sequence[Any], are_products: list[bool], options: _Options, mixed: bool
    ) -> MoonBatch:
        instructions = {
            kind: self._instruction("product" if kind else "query", options) for kind in sorted(set(are_products))
        }
        skipped: list[Skipped] = []
        rows = [
            _Row(index, record, kind, instructions[kind])
            for index, (record, kind) in enumerate(zip(records, are_products, strict=True))
        ]

        def read(row: _Row) -> None:
            if mixed:
                refuse_unclear(row.record, row.index)
            if row.is_product:
                row.item = read_product(row.record, row.index, options.form)
            else:
                row.item = read_query(row.record, row.index)
            row.ending = self._ending(row, options.reasoning)
            self._open_images(row, options.limits, slice(0, 1))
            if options.detector is None:
                self._prepare_images(row, options)

        rows = _survivors(rows, read, options, skipped)
        if options.detector is not None:
            if options.core_crop:
                _detect_boxes(rows, options.detector)
            rows = _survivors(rows, lambda row: self._prepare_images(row, options), options, skipped)
        self._tokenize_rows(rows)
        rows = _survivors(rows, lambda row: self._keep_budget(row, options), options, skipped)
        skipped.sort(key=lambda one: one.index)
        shortened = [one for row in rows for one in row.shortened]
        return MoonBatch(
            self._tensors(rows, options) if rows else {},
            tensor_type=options.return_tensors,
            kept=[row.index for row in rows],
            skipped=skipped,
            shortened=shortened,
        )

    def _ending(self, row: _Row, reasoning: str) -> str:
        """What stands after the template: nothing, `<emb>`, or the reasoning as far as it goes."""
        if reasoning == "generate":
            return THINK_START
        emb = EMB_TOKEN if self.readout == "emb" else ""
        if reasoning == "none":
            return emb
        most = self.max_reasoning_tokens or 0
        given = given_reasoning(row.record, row.item.name, optional=reasoning == "mixed")
        if not given:
            return emb
        whole = plain_text(given, self._control_tokens)
        before = after = len(self._encode([whole])[0])
        while after > most:
            whole = self._without_end(whole, after - most)
            after = len(self._encode([whole])[0])
        if after < before:
            row.shortened.append(Shortened(row.index, "reasoning", before, after))
        return f"{THINK_START}{whole}{THINK_END}{emb}"

    def _without_end(self, text: str, excess: int) -> str:
        """A text without its last `excess` tokens, ended at a whole character."""
        offsets = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        keep = max(0, len(offsets["input_ids"]) - excess)
        return text[: offsets["offset_mapping"][keep][0]].rstrip() if keep else ""

    def _instruction(self, default_task: str, options: _Options) -> str:
        if options.instruction is not None:
            return _finished(options.instruction, "instruction")
        task = default_task if options.task is None else options.task
        if task not in self.instructions:
            raise ValueError(f"task {task!r} is not known; expected {', '.join(self.instructions)}")
        return _finished(self.instructions[task], task)

    def _open_images(self, row: _Row, limits: ImageLimits, which: slice) -> None:
        for field_name, source in row.item.images[which]:
            image = open_image(source, item=row.item.name, field=field_name, limits=limits)
            check_ratio(image, row.item.name, field_name)
            row.images.append(image)

    def _prepare_images(self, row: _Row, options: _Options) -> None:
        """Open the images after the first, put the core crop after the first, and resize them all to the budgets."""
        self._open_images(row, options.limits, slice(1, None))
        if row.images and row.item.box is not None:
            pixels = box_in_image(row.item.box, row.images[0], row.item.name)
            if options.core_crop:
                crop = crop_core(row.images[0], pixels)
                check_ratio(crop, row.item.name, "core_box")
                row.images.insert(1, crop)
        before, after = self._scaffold(len(row.images), bool(row.item.text), row.instruction)
        row.prompt = (before, after + row.ending)
        if row.images:
            sizes = self._sizes_in_budget(row, options)
            row.images = [
                resize(image, size, self.image_processor) for image, size in zip(row.images, sizes, strict=True)
            ]

    def _sizes_in_budget(self, row: _Row, options: _Options) -> list[tuple[int, int]]:
        """Widths and heights of an item's images, after `max_image_tokens` and then `max_tokens`. Our design.

        Images leave the text min(its tokens, max_tokens / 4) tokens, and get equal shares of what then remains. None gets
        less than one token, even if the text must yield.
        """
        own = self.image_processor
        sizes = [target_size(image.size, own, options.max_image_tokens) for image in row.images]
        counts = [count_tokens(size, own) for size in sizes]
        fixed = self._fixed_tokens(row)
        room = options.max_tokens - fixed - options.max_tokens // 4
        if sum(counts) > room:  # only now the text must be counted
            text_tokens = len(self._encode([self._write(row)])[0]) - len(counts) - fixed
            room += max(0, options.max_tokens // 4 - text_tokens)
        if sum(counts) <= room:
            return sizes
        limit = equal_share(counts, room)
        for place, count in enumerate(counts):
            if count > limit:
                sizes[place] = target_size(row.images[place].size, own, limit)
        if (after := sum(count_tokens(size, own) for size in sizes)) < sum(counts):
            row.shortened.append(Shortened(row.index, "images", sum(counts), after))
        return sizes

    def _fixed_tokens(self, row: _Row) -> int:
        """Tokens of instruction and template, without the images' own."""
        return len(self._encode(["".join(row.prompt)])[0]) - len(row.images)

    def _scaffold(self, images: int, has_text: bool, instruction: str) -> tuple[str, str]:
        """The prompt before and after the text, by structure: one template rendering serves all items alike."""
        templates: Any = self.chat_template
        template = templates if isinstance(templates, str) else templates["default"]
        key = (images, has_text, instruction, template)
        if key not in self._scaffolds:
            content = [{"type": "image"}] * images + ([{"type": "text", "text": _TEXT_SLOT}] if has_text else [])
            system = [{"type": "text", "text": plain_text(instruction, self._control_tokens)}]
            prompt = self.tokenizer.apply_chat_template(
                [{"role": "system", "content": system}, {"role": "user", "content": content}],
                chat_template=template,
                tokenize=False,
                add_generation_prompt=True,
            )
            before, slot, after = prompt.partition(_TEXT_SLOT)
            if bool(slot) != has_text or prompt.count(self.image_token) != images:
                raise ValueError(
                    "the chat template drops or repeats the user's text or images; expected Qwen's templates"
                )
            if len(self._scaffolds) >= 256:
                self._scaffolds.clear()
            self._scaffolds[key] = (before, after)
        return self._scaffolds[key]

    @property
    def user_turn(self) -> tuple[list[int] | None, int | None]:
        """Ids of the tokens that open the user's turn in the chat template, and the id that ends it; (None, None) for a
        template whose turns no control token opens."""
        before, after = self._scaffold(0, True, EMBEDDER_INSTRUCTION)
        opening, closing = self._encode([before, after])
        controls = [place for place, token in enumerate(opening) if token in self.tokenizer.added_tokens_decoder]
        if not controls or not closing or closing[0] not in self.tokenizer.added_tokens_decoder:
            return None, None
        return opening[controls[-1] :], closing[0]

    @property
    def _control_tokens(self) -> re.Pattern[str]:
        if self._controls[0] != len(self.tokenizer):
            added = self.tokenizer.added_tokens_decoder.values()
            tokens = {token.content for token in added if token.special or not token.content.isalnum()}
            self._controls = (len(self.tokenizer), control_token_pattern(tokens))
        return self._controls[1]

    def _write(self, row: _Row) -> str:
        controls = self._control_tokens
        text = product_text(
            row.item.text, markers=self.markers, control_tokens=controls, title_markers=self.title_markers
        )
        return text.join(row.prompt)

    def _encode(self, texts: list[str]) -> list[list[int]]:
        if not texts:
            return []
        return self.tokenizer(
            texts,
            add_special_tokens=False,
            padding=False,
            truncation=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )["input_ids"]

    def _tokenize_rows(self, rows: list[_Row]) -> None:
        for row, ids in zip(rows, self._encode([self._write(row) for row in rows]), strict=True):
            row.ids = self._expand(ids, row.images)

    def _expand(self, ids: list[int], images: list[Image.Image]) -> np.ndarray:
        row = np.asarray(ids, dtype=np.int64)
        counts = np.ones(len(row), dtype=np.int64)
        counts[row == self.image_token_id] = [count_tokens(image.size, self.image_processor) for image in images]
        return np.repeat(row, counts)

    def _keep_budget(self, row: _Row, options: _Options) -> None:
        """Shorten the text of an item that is over the budget: description, attributes, title, category, in this order."""
        if len(row.ids) <= options.max_tokens:
            return
        fixed = self._fixed_tokens(row)
        image_tokens = sum(count_tokens(image.size, self.image_processor) for image in row.images)
        parts = "instruction, template and reasoning" if THINK_END in row.ending else "the instruction and template"
        if fixed + image_tokens > options.max_tokens:
            reason = (
                f"{image_tokens} image tokens (an image takes at least one) and {fixed} of {parts} are "
                f"more than max_tokens={options.max_tokens}; expected a larger max_tokens or fewer images"
            )
            raise ProductError(row.item.name, "max_tokens", reason)
        for part in SHORTENED_FIRST_TO_LAST:
            if len(row.ids) <= options.max_tokens:
                break
            before = self._count(row, part)
            while len(row.ids) > options.max_tokens and getattr(row.item.text, part):
                self._cut(row, part, len(row.ids) - options.max_tokens)
            if (after := self._count(row, part)) < before:
                name = part if row.is_product else "text"
                row.shortened.append(Shortened(row.index, name, before, after))
        if not row.item.text and not row.images:
            reason = f"max_tokens={options.max_tokens} leaves no room for text beside the {fixed} of {parts}"
            raise ProductError(row.item.name, "max_tokens", reason)

    def _count(self, row: _Row, part: str) -> int:
        value = getattr(row.item.text, part)
        text = "; ".join(value) if isinstance(value, list) else value
        return len(self._encode([plain_text(text, self._control_tokens)])[0]) if text else 0

    def _cut(self, row: _Row, part: str, excess: int) -> None:
        """Take about `excess` tokens, at least one, out of one part, and tokenize the item again."""
        text = row.item.text
        if part == "attributes":
            sizes = [len(ids) for ids in self._encode([f"; {pair}" for pair in text.attributes])]
            text.attributes = [text.attributes[place] for place in attributes_to_keep(sizes, excess)]
        else:
            setattr(text, part, self._without_end(plain_text(getattr(text, part), self._control_tokens), excess))
            if part == "description" and self._count(row, part) < LEAST_OF_A_DESCRIPTION:
                text.description = ""
        row.ids = self._expand(self._encode([self._write(row)])[0], row.images)

    def _tensors(self, rows: list[_Row], options: _Options) -> dict[str, Any]:
        lengths = [len(row.ids) for row in rows]
        own_side = "left" if options.reasoning == "generate" else self.tokenizer.padding_side
        side = options.padding_side or own_side
        if options.padding in (False, "do_not_pad"):
            if options.return_tensors is not None and len(set(lengths)) > 1:
                raise ValueError(
                    "padding=False gives rows of different lengths; expected padding=True or return_tensors=None"
                )
            widths = lengths
        else:
            step = options.pad_to_multiple_of or 1
            width = options.max_tokens if options.padding == "max_length" else max(lengths)
            widths = [math.ceil(width / step) * step] * len(rows)
        places = [_places(length, width, side) for length, width in zip(lengths, widths, strict=True)]
        ids = [np.full(width, self.tokenizer.pad_token_id, dtype=np.int64) for width in widths]
        mask = [np.zeros(width, dtype=np.int64) for width in widths]
        for row, place, row_ids, row_mask in zip(rows, places, ids, mask, strict=True):
            row_ids[place], row_mask[place] = row.ids, 1
        kinds = [(one == self.image_token_id).astype(np.int64) for one in ids]
        data: dict[str, Any] = {"input_ids": ids, "attention_mask": mask, "mm_token_type_ids": kinds}
        as_lists = options.return_tensors is None
        data = {name: [one.tolist() for one in part] if as_lists else np.stack(part) for name, part in data.items()}
        images = [image for row in rows for image in row.images]
        return {**data, **patches(images, self.image_processor)} if images else data

    # -----------------------------------------------------------------------------------------------------------------
    # Reasoning

    def read_reasoning(self, ids: Any) -> list[Reasoning]:
        """Decode and read what a model wrote after `<think>`.

        Args:
            ids: (B, R) int64 tensor or array, or a list of rows that may differ in length; see `read_ids`.

        Returns:
            B readings.

        Raises:
            ValueError: a processor without `max_reasoning_tokens`; see `read_ids`.

        Relations: the function `read_reasoning` reads a string.
        """
        self._check_reasons("read_reasoning")
        return read_ids(ids, self.tokenizer)

    # -----------------------------------------------------------------------------------------------------------------
    # Plain text and images

    def _process_plain(self, images: Any, text: Any, options: dict[str, Any]) -> MoonBatch:
        if options.get("videos") is not None or options.get("audio") is not None:
            raise TypeError("MoonProcessor takes text and images; videos and audio are not supported")
        options = {key: value for key, value in options.items() if key not in ("videos", "audio")}
        for name in ("form", "task", "instruction", "on_error", "core_crop", "detector", "max_tokens", "reasoning"):
            if name in options:
                raise TypeError(f"MoonProcessor: {name}= belongs to products= and queries=, not to text= and images=")
        limits = ImageLimits(**{one.name: options.pop(one.name) for one in fields(ImageLimits) if one.name in options})
        budget = options.pop("max_image_tokens", self.max_image_tokens)
        _budget("max_image_tokens", budget, optional=True)
        opened = open_nested(images, limits)
        prompts = self._place_images(opened, text)
        flat = [image for group in opened for image in group] if opened is not None else None
        if flat and budget is not None:
            own = self.image_processor
            flat = [resize(image, target_size(image.size, own, budget), own) for image in flat]
            size = {"shortest_edge": token_side(own) ** 2, "longest_edge": pixel_limits(own)[1]}
            options["images_kwargs"] = {"size": size, **(options.get("images_kwargs") or {})}
        data = dict(super().__call__(images=flat or None, text=prompts, **options))
        if "mm_token_type_ids" not in data:  # transformers 5.17 leaves it to each processor
            data["mm_token_type_ids"] = self._image_tokens_of(data["input_ids"])
        return MoonBatch(data, kept=range(len(prompts)))

    def _image_tokens_of(self, input_ids: Any) -> Any:
        """1 where an image token stands, 0 elsewhere, in the kind that the ids are of."""
        if isinstance(input_ids, list):
            return [[int(token == self.image_token_id) for token in row] for row in input_ids]
        return (
            (input_ids == self.image_token_id).astype(np.int64)
            if isinstance(input_ids, np.ndarray)
            else (input_ids == self.image_token_id).long()
        )

    def _place_images(self, opened: list[list[Image.Image]] | None, text: Any) -> list[str]:
        """The prompts, with a vision block before each text whose images have no placeholder in it."""
        groups = opened or []
        if text is None:
            text = [""] * len(groups)
        prompts = [text] if isinstance(text, str) else list(text)
        if not all(isinstance(prompt, str) for prompt in prompts):
            raise TypeError("text: expected a string or a list of strings")
        for place, prompt in enumerate(prompts):
            refuse_picture_path(prompt, f"text {place}", "text", 'images= or a query {"image": path} for the picture')
        holes = [prompt.count(self.image_token) for prompt in prompts]
        total = sum(len(group) for group in groups)
        if sum(holes) == total:
            return prompts
        if len(prompts) == 1:
            groups = [[image for group in groups for image in group]]
        if len(groups) != len(prompts) or any(
            hole not in (0, len(group)) for hole, group in zip(holes, groups, strict=True)
        ):
            raise ValueError(
                f"{sum(holes)} image placeholders in {len(prompts)} texts, but {total} images in {len(groups)} groups; expected "
                "a placeholder for each image, or one entry of images for each text"
            )
        block = self.vision_start_token + self.image_token + self.vision_end_token
        return [
            prompt if hole else block * len(group) + prompt
            for prompt, hole, group in zip(prompts, holes, groups, strict=True)
        ]

    def replace_image_token(self, image_inputs: Any, image_idx: int, **kwargs: Any) -> str:
        """The placeholder of one image, once for each of its tokens; `ProcessorMixin` calls it."""
        patches = int(np.prod([int(side) for side in image_inputs["image_grid_thw"][image_idx]]))
        return self.image_token * (patches // self.image_processor.merge_size**2)


def _finished(instruction: Any, name: str) -> str:
    """An instruction, stripped, with a full stop if it does not end in punctuation.

    Source: the reference code of Qwen3-VL-Embedding (arXiv 2601.04720).
    """
    if not isinstance(instruction, str) or not instruction.strip():
        raise ValueError(f"{name}={instruction!r}; expected a string that is not empty")
    instruction = instruction.strip()
    return instruction if unicodedata.category(instruction[-1]).startswith("P") else f"{instruction}."


def _optional_tokens(title_markers: bool, max_reasoning_tokens: int | None) -> tuple[str, ...]:
    """The tokens that these two settings need."""
    titles = (TITLE_START, TITLE_END) if title_markers else ()
    return (*titles, THINK_START, THINK_END) if max_reasoning_tokens is not None else titles


def _check_tokens(tokenizer: Any, tokens: Sequence[str]) -> None:
    known = tokenizer.get_added_vocab()
    missing = [token for token in tokens if token not in known]
    if missing:
        raise ValueError(f"the tokenizer lacks {', '.join(missing)}; MoonProcessor.from_base adds Moon's own tokens")
    if tokenizer.pad_token_id is None:
        raise ValueError("the tokenizer has no pad token")


def _survivors(rows: list[_Row], step: Callable[[_Row], None], options: _Options, skipped: list[Skipped]) -> list[_Row]:
    """Take one step with every row; a row that fails it is listed in `skipped`, or raises."""
    kept = []
    for row in rows:
        try:
            step(row)
        except ProductError as error:
            if options.on_error == "raise":
                raise
            skipped.append(Skipped(row.index, error.item, error.field, error.reason))
        else:
            kept.append(row)
    return kept


def _detect_boxes(rows: list[_Row], detector: CoreDetector) -> None:
    """Fill in the boxes that are missing; a box that leaves no usable crop is as good as none."""
    rows = [row for row in rows if row.images and row.item.box is None]
    if not rows:
        return
    boxes: list[Box | None] = detector.detect(
        [row.images[0] for row in rows], [row.item.text.title or None for row in rows]
    )
    if len(boxes) != len(rows):
        raise ValueError(f"{type(detector).__name__}.detect gave {len(boxes)} boxes for {len(rows)} images")
    for row, box in zip(rows, boxes, strict=True):
        pixels = clamp_box(box, *row.images[0].size) if box is not None else None
        if (
            box is not None
            and pixels is not None
            and aspect_ratio(pixels[2] - pixels[0], pixels[3] - pixels[1]) <= MAX_ASPECT_RATIO
        ):
            row.item.box = box


def _places(length: int, width: int, side: str) -> slice:
    return slice(width - length, width) if side == "left" else slice(0, length)
