"""Process products, queries, and plain text and images into the tensors of a Moon model.

All records share one prompt: the base's chat template on [system: instruction, user: images then text] with the generation
prompt, followed by `<emb>` if the model reads its vector there. Nothing here imports the model.
"""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields, replace
from functools import partial
from typing import Any

import numpy as np
from PIL import Image
from transformers import AddedToken

from .batch_moon import MoonBatch, Shortened, Skipped
from .budget_moon import image_sizes, shorten_text
from .cropping_moon import CoreDetector
from .errors_moon import ProductError, check_budget, check_choice
from .images_moon import ImageLimits, Picture, open_picture
from .picture_cache_moon import source_key
from .pixels_moon import (
    MAX_ASPECT_RATIO,
    aspect_ratio,
    box_in_image,
    check_ratio,
    count_tokens,
    least_size,
    pixel_limits,
    resample_filter,
    token_side,
)
from .product_moon import (
    Box,
    clamp_box,
    given_reasoning,
    is_product,
    read_product,
    read_query,
    refuse_picture_path,
    refuse_unclear,
)
from .prompts_moon import PromptProcessor
from .reasoning_moon import EMB_TOKEN, THINK_END, THINK_START, Reasoning, read_ids
from .rows_moon import RecordOptions, Row, stack_rows
from .text_moon import (
    ATTRIBUTE_END,
    ATTRIBUTE_START,
    CATEGORY_END,
    CATEGORY_START,
    TITLE_END,
    TITLE_START,
    control_token_pattern,
    plain_text,
    product_text,
)

MOON_TOKENS = (CATEGORY_START, CATEGORY_END, ATTRIBUTE_START, ATTRIBUTE_END, EMB_TOKEN)
READOUTS = ("mean", "emb", "last")
DEFAULT_INSTRUCTIONS = {
    "product": "Represent this product, from its pictures and its text, so that shoppers can find it.",
    "query": "Represent what this shopper is looking for, so that the right product is found.",
    "category": "Represent this product category, so that the products in it are found.",
    "attribute": "Represent this value of a product attribute, so that the products that have it are found.",
}
# The default instruction of Qwen3-VL-Embedding (arXiv 2601.04720).
EMBEDDER_INSTRUCTION = "Represent the user's input."
# Tokens of a product or query, and of an image.
DEFAULT_BUDGETS, EMBEDDER_BUDGETS = (1024, 256), (8192, 1800)
_TEXT_SLOT = "\ue000text\ue001"
_RECORD_OPTIONS = ("form", "task", "instruction", "on_error", "core_crop", "detector", "max_tokens", "reasoning")


class MoonProcessor(PromptProcessor):
    """Convert products, queries, or plain text and images to a Moon model's input.

    Args:
        image_processor: the base's image processor, like `Qwen2VLImageProcessorPil`.
        tokenizer: the base's tokenizer with Moon's tokens, see `from_base`.
        chat_template (`str`): default: the tokenizer's.
        instructions (`dict[str, str]`): task → instruction. The tasks product, query, category and attribute have a default;
            in a base that is an embedder already (readout "last" without markers) it is "Represent the user's input." for all
            of them. More tasks can be added.
        readout (`str`): "mean", "emb" or "last", as in the model; with "emb", every prompt ends with `<emb>`, except those
            for "generate" (see `reasoning` of the call). Default "mean".
        markers (`bool`): whether marker tokens surround a product's category and attributes. Default True.
        max_tokens (`int`): budget of a product or query, for everything that the processor returns for it: text, image
            tokens, a given reasoning and the closing tokens; it does not include tokens that a model generates. If the images
            leave less room than the text needs, or than a quarter of the budget if that is less, they are resized to equal
            shares of the rest; then the text is shortened: the description is cut at its end, or left out if fewer than 16
            of its tokens would remain; then whole attributes are left out, the longest first; then title and category are
            cut. Default 1024.
        max_image_tokens (`int` or `None`): budget of an image, kept by resizing. Default None: the base's own; `from_base`
            has other defaults.
        core_crop (`bool`): whether the core of the first image is inserted as a second image if its box is known (MOON,
            arXiv 2508.11999 §3.1). A box outside the image is refused in either case. Default True.
        title_markers (`bool`): whether marker tokens surround a product's title and a query's text. Default False.
        max_reasoning_tokens (`int` or `None`): budget of the reasoning between its tags; requires readout "emb". Default
            None: the call's option `reasoning` is refused.
        reduced_decoding (`bool`): whether the JPEG files of products and queries are decoded at 1/2, 1/4 or 1/8 of their
            scale where both sides keep at least twice the size after resizing (`least_size`), which is several times
            faster on large photos, and whether pictures are resized with vector instructions, see `Picture.resized`.
            Vectors then differ slightly. Default False, also for checkpoints that were saved without this setting: their
            vectors stay the same, bit for bit.

    Raises:
        ValueError: an unknown read-out, a budget that is not positive, an instruction without text, a token that the
            tokenizer lacks, `max_reasoning_tokens` with a read-out other than "emb".

    Relations: `from_base` makes a processor from a base checkpoint; `from_pretrained` and `save_pretrained` keep all settings.
    """

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
        reduced_decoding: bool = False,
    ) -> None:
        check_choice("reduced_decoding", reduced_decoding, (True, False))
        check_choice("readout", readout, READOUTS)
        check_budget("max_tokens", max_tokens)
        check_budget("max_reasoning_tokens", max_reasoning_tokens, optional=True)
        if max_reasoning_tokens is not None and readout != "emb":
            raise ValueError(
                f"max_reasoning_tokens={max_reasoning_tokens} requires readout='emb'; found readout={readout!r}"
            )
        super().__init__(image_processor, tokenizer, chat_template, max_image_tokens)
        embedder = readout == "last" and not markers
        defaults = dict.fromkeys(DEFAULT_INSTRUCTIONS, EMBEDDER_INSTRUCTION) if embedder else DEFAULT_INSTRUCTIONS
        self.instructions = {**defaults, **(instructions or {})}
        for task, instruction in self.instructions.items():
            _with_full_stop(instruction, f"instructions[{task!r}]")
        self.readout, self.markers, self.title_markers = readout, bool(markers), bool(title_markers)
        self.max_reasoning_tokens = max_reasoning_tokens
        self.max_tokens, self.core_crop, self.reduced_decoding = max_tokens, bool(core_crop), bool(reduced_decoding)
        needed = [self.image_token, self.vision_start_token, self.vision_end_token]
        needed += [CATEGORY_START, CATEGORY_END, ATTRIBUTE_START, ATTRIBUTE_END] if markers else []
        needed += [EMB_TOKEN] if readout == "emb" else []
        _check_tokens(tokenizer, [*needed, *_optional_tokens(title_markers, max_reasoning_tokens)])
        self._scaffolds: dict[Any, tuple[str, str]] = {}
        self._controls: tuple[int, re.Pattern[str]] = (-1, control_token_pattern(()))

    @classmethod
    def from_base(cls, base_path: Any, *, revision: str | None = None, **settings: Any) -> MoonProcessor:
        """Make the processor of a Moon model from the folder or hub id of its base.

        Moon's five tokens, and with `title_markers` the two around titles, are added to the tokenizer as special tokens.
        `max_reasoning_tokens` adds `<think>` and `</think>` if they are missing, as tokens that are not special, like those of
        Qwen3's tokenizer. All other ids stay unchanged.

        Args:
            base_path: folder or hub id of a Qwen3-VL or Qwen2.5-VL checkpoint (embedders included).
            revision: revision of the repository on the hub.
            **settings: `readout`, `markers`, `instructions`, `max_tokens`, `max_image_tokens`, `core_crop`,
                `title_markers`, `max_reasoning_tokens`, `reduced_decoding` of the class. The budgets of records and of
                images default to 1024 and 256; in an embedder (readout "last", markers False) to 8192 and 1800, as in
                Qwen3-VL-Embedding (arXiv 2601.04720). A base whose own limit of an image is not higher keeps it, as with
                `max_image_tokens=None`.

        Raises:
            ValueError: see the class.
            OSError: a folder or repository without a tokenizer or an image processor.
            TypeError: a setting that the class does not have.
        """
        image_processor, tokenizer = cls._load_base(base_path, revision)
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
        """Process products, queries, a mixture of both, or plain text and images.

        Args:
            images, text: plain prompts and their pictures, without an instruction; see `PromptProcessor.__call__`.
            products: product records, or a single one; see `read_product`.
            queries: query records, or a single one; see `read_query`.
            records: products and queries mixed. A record with a field that only products have is a product; a record with an
                unknown field and no field of either kind is refused.
            **options: for products and queries
                form ("mm", "t" or "i"; products only): text and images, or one of them. Default "mm".
                task: selects the instruction. Default "product" or "query".
                instruction: replaces the instruction for this call.
                on_error ("raise" or "skip"): "skip" leaves out records that cannot be used and lists them in `.skipped`.
                core_crop, max_tokens, max_image_tokens, reduced_decoding: as in the class, for this call. With a detector,
                    pictures are decoded at full scale.
                picture_cache (`PictureCache`): keeps the opened and resized pictures of files that several records share.
                reasoning ("none", "generate", "given" or "mixed"; all but the first need `max_reasoning_tokens`): the end of
                    the prompt.
                    "generate": with `<think>`, without `<emb>`, padded on the left, for the model to continue.
                    "given": with `<think>`, the record's "reasoning" (see `given_reasoning`) cut to `max_reasoning_tokens`,
                    `</think>` and `<emb>`. "mixed": as "given" for records with a "reasoning" that is not empty, as "none"
                    for the others, in one batch. Default "none": the record's "reasoning" is not read.
                detector (`CoreDetector`): finds the missing core boxes.
                allow_urls, timeout_seconds, max_bytes, max_pixels: see `ImageLimits`.
                padding (True, False or "max_length", i.e. to max_tokens; default True), padding_side, pad_to_multiple_of.
                return_tensors ("pt", "np" or None, which returns lists of ids). Default "pt".

        Returns:
            `MoonBatch`.

        Shapes:
            input_ids, attention_mask, mm_token_type_ids (1 at image tokens): (B, T) int64; pixel_values: (patches,
            channels × frames × patch²) float32; image_grid_thw: (images, 3) int64; the last two only if there is an image.

        Raises:
            ProductError: a record that cannot be used (with on_error="raise").
            ValueError: an option out of range; an unknown task.
            TypeError: no kind of input or several, or an unknown option (with the nearest known one).
        """
        kinds = {"products": products, "queries": queries, "records": records}
        given = [name for name, value in kinds.items() if value is not None]
        plain = text is not None or images is not None
        if len(given) + plain != 1:
            raise TypeError("MoonProcessor takes one of: products=, queries=, records=, or text= and images=")
        if plain:
            for name in _RECORD_OPTIONS:
                if name in options:
                    raise TypeError(
                        f"MoonProcessor: {name}= belongs to products= and queries=; text= and images= do not accept it"
                    )
            return super().__call__(images, text, **options)
        records = kinds[given[0]]
        if isinstance(records, str) or not isinstance(records, Iterable):
            raise TypeError(
                f"{given[0]}: found {type(records).__name__}; expected a record (a dict) or a list of records"
            )
        records = [records] if isinstance(records, Mapping) else list(records)
        if not records:
            raise ValueError(f"{given[0]} is empty; expected at least one record")
        if queries is not None and "form" in options:
            raise TypeError("MoonProcessor: form= belongs to products=; queries= does not accept it")
        are_products = [is_product(record) if given[0] == "records" else given[0] == "products" for record in records]
        return self._process_records(records, are_products, self._read_options(options), mixed=given[0] == "records")

    @staticmethod
    def bare_query(text: str, index: int) -> dict[str, str]:
        """Return a query record for a bare string.

        Args:
            text: the words.
            index: its index in the call, for error messages.

        Raises:
            ProductError: the path or URL of a picture, see `refuse_picture_path`.
        """
        instead = '{"image": path} or Image.open(path) for the picture, {"text": path} for the words'
        refuse_picture_path(text, f"input {index}", "text", instead)
        return {"text": text}

    def _read_options(self, arguments: dict[str, Any]) -> RecordOptions:
        options = dict(arguments)
        for group in ("common_kwargs", "text_kwargs", "images_kwargs", "audio_kwargs", "videos_kwargs"):
            nested = options.pop(group, None) or {}
            if group in ("common_kwargs", "text_kwargs"):
                nested = {key: value for key, value in nested.items() if key != "truncation"}  # the budget truncates
                options = {**nested, **options}
        if options.get("max_length") is not None:
            options.setdefault("max_tokens", options["max_length"])
        options.pop("max_length", None)
        limit_names = [field.name for field in fields(ImageLimits)]
        known = [field.name for field in fields(RecordOptions) if field.name != "limits"] + limit_names
        for name in options:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise TypeError(f"MoonProcessor: unknown option {name!r}{hint}")
        limits = ImageLimits(**{name: options.pop(name) for name in limit_names if name in options})
        own = ("core_crop", "max_tokens", "max_image_tokens", "reduced_decoding")
        settings = {name: getattr(self, name) for name in own}
        read = RecordOptions(**{**settings, **options}, limits=limits)
        if read.reasoning != "none":
            self._require_reasoning(f"reasoning={read.reasoning!r}")
        return read

    def _require_reasoning(self, request: str) -> None:
        if self.max_reasoning_tokens is None:
            raise ValueError(
                f"MoonProcessor: {request} needs a processor that was made with max_reasoning_tokens and readout='emb'; "
                "found max_reasoning_tokens=None"
            )

    def _process_records(
        self, records: Sequence[Any], are_products: list[bool], options: RecordOptions, mixed: bool
    ) -> MoonBatch:
        instructions = {
            kind: self._instruction("product" if kind else "query", options) for kind in sorted(set(are_products))
        }
        skipped: list[Skipped] = []
        rows = [
            Row(index, source, kind, instructions[kind])
            for index, (source, kind) in enumerate(zip(records, are_products, strict=True))
        ]

        def read(row: Row) -> None:
            if mixed:
                refuse_unclear(row.source, row.index)
            if row.is_product:
                row.record = read_product(row.source, row.index, options.form)
            else:
                row.record = read_query(row.source, row.index)
            row.ending = self._ending(row, options.reasoning)
            self._open_images(row, options, slice(0, 1))
            if options.detector is None:
                self._prepare_images(row, options)

        rows = _apply(read, rows, options, skipped)
        if options.detector is not None:
            if options.core_crop:
                _detect_boxes(rows, options.detector)
            rows = _apply(lambda row: self._prepare_images(row, options), rows, options, skipped)
        self.tokenize(rows)
        rows = _apply(lambda row: shorten_text(self, row, options), rows, options, skipped)
        return MoonBatch(
            stack_rows(rows, options, self) if rows else {},
            tensor_type=options.return_tensors,
            kept=[row.index for row in rows],
            skipped=sorted(skipped, key=lambda record: record.index),
            shortened=[part for row in rows for part in row.shortened],
        )

    def _instruction(self, default_task: str, options: RecordOptions) -> str:
        if options.instruction is not None:
            return _with_full_stop(options.instruction, "instruction")
        task = default_task if options.task is None else options.task
        if task not in self.instructions:
            raise ValueError(f"task {task!r} is not known; expected one of {', '.join(self.instructions)}")
        return _with_full_stop(self.instructions[task], task)

    def _ending(self, row: Row, reasoning: str) -> str:
        """Return the text after the template: nothing, `<emb>`, or the reasoning up to where the model continues."""
        if reasoning == "generate":
            return THINK_START
        emb = EMB_TOKEN if self.readout == "emb" else ""
        if reasoning == "none":
            return emb
        most = self.max_reasoning_tokens or 0
        given = given_reasoning(row.source, row.record.name, optional=reasoning == "mixed")
        if not given:
            return emb
        text = plain_text(given, self.control_tokens)
        before = after = len(self.encode([text])[0])
        while after > most:
            text = self.without_end(text, after - most)
            after = len(self.encode([text])[0])
        if after < before:
            row.shortened.append(Shortened(row.index, "reasoning", before, after))
        return f"{THINK_START}{text}{THINK_END}{emb}"

    def _open_images(self, row: Row, options: RecordOptions, which: slice) -> None:
        for field_name, source in row.record.images[which]:
            picture = self._open(row, field_name, source, options)
            check_ratio(picture, row.record.name, field_name)
            row.pictures.append(picture)

    def _open(self, row: Row, field_name: str, source: Any, options: RecordOptions) -> Picture:
        """Open a picture at the scale that its row needs, or take it from the cache."""
        box = row.record.box if options.core_crop and not row.pictures else None
        reduced = options.reduced_decoding and options.detector is None

        def load() -> Picture:
            least = partial(least_size, image_processor=self.image_processor, box=box,
                            max_image_tokens=options.max_image_tokens) if reduced else None  # fmt: skip
            return open_picture(source, item=row.record.name, field=field_name, limits=options.limits, least_size=least)

        name = None if options.picture_cache is None else source_key(source)
        if options.picture_cache is None or name is None:
            return load()
        key = (name, box if reduced else None)
        return options.picture_cache.get(key, lambda: replace(load(), key=key))

    def _prepare_images(self, row: Row, options: RecordOptions) -> None:
        """Open the images after the first, insert the core crop after the first, and resize all of them to the budgets."""
        self._open_images(row, options, slice(1, None))
        if row.pictures and row.record.box is not None:
            pixels = box_in_image(row.record.box, row.pictures[0], row.record.name)
            if options.core_crop:
                crop = row.pictures[0].crop(pixels)
                check_ratio(crop, row.record.name, "core_box")
                row.pictures.insert(1, crop)
        before, after = self._scaffold(len(row.pictures), bool(row.record.text), row.instruction)
        row.prompt = (before, after + row.ending)
        if row.pictures:
            sizes = image_sizes(self, row, options)
            row.images = [
                self._resized(picture, size, options) for picture, size in zip(row.pictures, sizes, strict=True)
            ]
            row.pictures.clear()

    def _resized(self, picture: Picture, size: tuple[int, int], options: RecordOptions) -> Image.Image:
        resample, fast = resample_filter(self.image_processor), options.reduced_decoding
        if options.picture_cache is None or picture.key is None:
            return picture.resized(size, resample, vectorized=fast)
        return options.picture_cache.get((picture.key, size), lambda: picture.resized(size, resample, vectorized=fast))

    def _scaffold(self, images: int, has_text: bool, instruction: str) -> tuple[str, str]:
        """Return the prompt before and after the text; records with the same structure share one rendered template."""
        templates: Any = self.chat_template
        template = templates if isinstance(templates, str) else templates["default"]
        key = (images, has_text, instruction, template)
        if key not in self._scaffolds:
            content = [{"type": "image"}] * images + ([{"type": "text", "text": _TEXT_SLOT}] if has_text else [])
            system = [{"type": "text", "text": plain_text(instruction, self.control_tokens)}]
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
        template without a control token at the beginning of a turn."""
        before, after = self._scaffold(0, True, EMBEDDER_INSTRUCTION)
        opening, closing = self.encode([before, after])
        controls = [place for place, token in enumerate(opening) if token in self.tokenizer.added_tokens_decoder]
        if not controls or not closing or closing[0] not in self.tokenizer.added_tokens_decoder:
            return None, None
        return opening[controls[-1] :], closing[0]

    @property
    def control_tokens(self) -> re.Pattern[str]:
        """The pattern of the tokenizer's control tokens, see `control_token_pattern`."""
        if self._controls[0] != len(self.tokenizer):
            added = self.tokenizer.added_tokens_decoder.values()
            tokens = {token.content for token in added if token.special or not token.content.isalnum()}
            self._controls = (len(self.tokenizer), control_token_pattern(tokens))
        return self._controls[1]

    def write(self, row: Row) -> str:
        """Return the whole prompt of a row, with one placeholder for each image."""
        text = product_text(
            row.record.text,
            markers=self.markers,
            control_tokens=self.control_tokens,
            title_markers=self.title_markers,
        )
        return text.join(row.prompt)

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Return the ids of texts, without special tokens, padding or truncation."""
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

    def tokenize(self, rows: list[Row]) -> None:
        """Set the ids of rows, with each image placeholder repeated for the tokens of its image."""
        for row, ids in zip(rows, self.encode([self.write(row) for row in rows]), strict=True):
            prompt = np.asarray(ids, dtype=np.int64)
            counts = np.ones(len(prompt), dtype=np.int64)
            counts[prompt == self.image_token_id] = [
                count_tokens(image.size, self.image_processor) for image in row.images
            ]
            row.ids = np.repeat(prompt, counts)

    def without_end(self, text: str, excess: int) -> str:
        """Return a text without its last `excess` tokens, cut at a whole character."""
        offsets = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        keep = max(0, len(offsets["input_ids"]) - excess)
        return text[: offsets["offset_mapping"][keep][0]].rstrip() if keep else ""

    def read_reasoning(self, ids: Any) -> list[Reasoning]:
        """Decode and read what a model generated after `<think>`.

        Args:
            ids: (B, R) int64 tensor or array, or a list of rows that may differ in length; see `read_ids`.

        Returns:
            A `Reasoning` for each of the B rows.

        Raises:
            ValueError: a processor without `max_reasoning_tokens`; see `read_ids`.

        Relations: the function `read_reasoning` reads a string.
        """
        self._require_reasoning("read_reasoning")
        return read_ids(ids, self.tokenizer)


def _with_full_stop(instruction: Any, name: str) -> str:
    """Strip an instruction and add a full stop if it does not end in punctuation.

    Source: the reference code of Qwen3-VL-Embedding (arXiv 2601.04720).
    """
    if not isinstance(instruction, str) or not instruction.strip():
        raise ValueError(f"{name}={instruction!r}; expected a string that is not empty")
    instruction = instruction.strip()
    return instruction if unicodedata.category(instruction[-1]).startswith("P") else f"{instruction}."


def _optional_tokens(title_markers: bool, max_reasoning_tokens: int | None) -> tuple[str, ...]:
    """Return the tokens that these two settings require."""
    titles = (TITLE_START, TITLE_END) if title_markers else ()
    return (*titles, THINK_START, THINK_END) if max_reasoning_tokens is not None else titles


def _check_tokens(tokenizer: Any, tokens: Sequence[str]) -> None:
    known = tokenizer.get_added_vocab()
    missing = [token for token in tokens if token not in known]
    if missing:
        raise ValueError(f"the tokenizer lacks {', '.join(missing)}; MoonProcessor.from_base adds Moon's own tokens")
    if tokenizer.pad_token_id is None:
        raise ValueError("the tokenizer has no pad token; expected one, which fills the rows of a batch")


def _apply(step: Callable[[Row], None], rows: list[Row], options: RecordOptions, skipped: list[Skipped]) -> list[Row]:
    """Apply a step to every row and return those that pass; add a row that fails to `skipped`, or raise its error."""
    passed = []
    for row in rows:
        try:
            step(row)
        except ProductError as error:
            if options.on_error == "raise":
                raise
            skipped.append(Skipped(row.index, error.item, error.field, error.reason))
        else:
            passed.append(row)
    return passed


def _detect_boxes(rows: list[Row], detector: CoreDetector) -> None:
    """Detect the missing core boxes; ignore a box that does not leave a usable crop."""
    rows = [row for row in rows if row.pictures and row.record.box is None]
    if not rows:
        return
    boxes: list[Box | None] = detector.detect(
        [row.pictures[0].image for row in rows], [row.record.text.title or None for row in rows]
    )
    if len(boxes) != len(rows):
        raise ValueError(
            f"{type(detector).__name__}.detect returned {len(boxes)} boxes for {len(rows)} images; expected one for each image"
        )
    for row, box in zip(rows, boxes, strict=True):
        pixels = clamp_box(box, *row.pictures[0].size) if box is not None else None
        if pixels is None:
            continue
        if aspect_ratio(pixels[2] - pixels[0], pixels[3] - pixels[1]) <= MAX_ASPECT_RATIO:
            row.record.box = box
