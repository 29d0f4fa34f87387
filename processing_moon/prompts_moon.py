"""Process prompts and pictures as Qwen's own processors do, for text generation with Moon and for grounding models."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np
from PIL import Image
from transformers import AutoTokenizer, PreTrainedConfig, ProcessorMixin, Qwen2VLImageProcessorPil

from .batch_moon import MoonBatch
from .errors_moon import check_budget
from .images_moon import ImageLimits, image_list, open_image
from .pixels_moon import check_ratio, pixel_limits, resize, target_size, token_side
from .product_moon import refuse_picture_path


class PromptProcessor(ProcessorMixin):
    """Convert prompts and pictures to the input of a Qwen3-VL or Qwen2.5-VL model.

    Args:
        image_processor: the base's image processor, like `Qwen2VLImageProcessorPil`.
        tokenizer: the base's tokenizer.
        chat_template (`str`): default: the tokenizer's.
        max_image_tokens (`int` or `None`): budget of an image, kept by resizing. Default None: the base's own.

    Raises:
        ValueError: a budget that is not positive; no chat template, neither as an argument nor in the tokenizer.

    Relations: `MoonProcessor` also processes products and queries.
    """

    # As in Qwen's processors.
    return_mm_token_type_ids = True
    text_kwargs = {"return_token_type_ids": False}

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        chat_template: Any = None,
        max_image_tokens: int | None = None,
    ) -> None:
        check_budget("max_image_tokens", max_image_tokens, optional=True)
        super().__init__(image_processor, tokenizer, chat_template=chat_template or tokenizer.chat_template)
        if self.chat_template is None:
            raise ValueError(f"{type(self).__name__}: neither the processor nor the tokenizer has a chat template")
        self.max_image_tokens = max_image_tokens
        self.image_token, self.video_token = "<|image_pad|>", "<|video_pad|>"
        self.vision_start_token, self.vision_end_token = "<|vision_start|>", "<|vision_end|>"
        self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
        self.video_token_id = tokenizer.convert_tokens_to_ids(self.video_token)

    @classmethod
    def from_base(cls, base_path: Any, *, revision: str | None = None, **settings: Any) -> PromptProcessor:
        """Make the processor of a base from its folder or hub id.

        Args:
            base_path: folder or hub id of a Qwen3-VL or Qwen2.5-VL checkpoint.
            revision: revision of the repository on the hub.
            **settings: `max_image_tokens` of the class.

        Raises:
            OSError: a folder or repository without a tokenizer or an image processor.
        """
        return cls(*cls._load_base(base_path, revision), **settings)

    @classmethod
    def _load_base(cls, base_path: Any, revision: str | None) -> tuple[Any, Any]:
        """Load the image processor and the tokenizer of a base."""
        tokenizer = AutoTokenizer.from_pretrained(base_path, revision=revision)
        image_processor = Qwen2VLImageProcessorPil.from_pretrained(base_path, revision=revision or "main")
        if tokenizer.chat_template is None:  # older repositories have it with the processor only
            tokenizer.chat_template = cls.get_processor_dict(base_path, revision=revision)[0].get("chat_template")
        return image_processor, tokenizer

    @classmethod
    def _get_arguments_from_pretrained(
        cls, pretrained_model_name_or_path: Any, processor_dict: Any = None, **kwargs: Any
    ) -> list[Any]:
        # Always the PIL backend: pixels must not depend on whether torchvision is installed.
        subfolder = kwargs.pop("subfolder", "")
        where = {"pretrained_model_name_or_path": pretrained_model_name_or_path, "subfolder": subfolder, **kwargs}
        image_processor = Qwen2VLImageProcessorPil.from_pretrained(**where)
        # A neutral configuration: the model's own would run the checkpoint's code where the model is not imported.
        return [image_processor, AutoTokenizer.from_pretrained(**{**where, "config": PreTrainedConfig()})]

    @property
    def model_input_names(self) -> list[str]:
        """Names of the tensors that the model takes."""
        return ["input_ids", "attention_mask", "mm_token_type_ids", "pixel_values", "image_grid_thw"]

    def __call__(self, images: Any = None, text: Any = None, **options: Any) -> MoonBatch:
        """Expand the image placeholders of prompts, tokenize them, and convert pictures to patches.

        Args:
            images: pictures as `open_image` takes them; a single one, a list, or a list of lists per text.
            text: a prompt or a list of prompts, in which control tokens are control tokens. Images without a placeholder
                are placed before the text of the same index. The path of a picture is refused, see `refuse_picture_path`.
            **options: `max_image_tokens`, the fields of `ImageLimits`, and the options of Qwen's processor.

        Returns:
            `MoonBatch`.

        Raises:
            ProductError: an image that cannot be used; the path of a picture as text.
            ValueError: placeholders and images that do not match; a budget that is not positive.
            TypeError: videos or audio; a text that is not a string.
        """
        if options.get("videos") is not None or options.get("audio") is not None:
            raise TypeError(f"{type(self).__name__} takes text and images; videos and audio are not supported")
        options = {name: value for name, value in options.items() if name not in ("videos", "audio")}
        limit_names = [field.name for field in fields(ImageLimits) if field.name in options]
        limits = ImageLimits(**{name: options.pop(name) for name in limit_names})
        budget = options.pop("max_image_tokens", self.max_image_tokens)
        check_budget("max_image_tokens", budget, optional=True)
        groups = _open_groups(images, limits)
        prompts = self._place_images(groups, text)
        flat = [image for group in groups for image in group] if groups is not None else None
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
        """Return 1 at image tokens and 0 elsewhere, as lists, an array or a tensor like the ids."""
        if isinstance(input_ids, list):
            return [[int(token == self.image_token_id) for token in row] for row in input_ids]
        is_image = input_ids == self.image_token_id
        return is_image.astype(np.int64) if isinstance(input_ids, np.ndarray) else is_image.long()

    def _place_images(self, opened: list[list[Image.Image]] | None, text: Any) -> list[str]:
        """Return the prompts, with a vision block before each text that has images but no placeholders."""
        groups = opened or []
        if text is None:
            text = [""] * len(groups)
        prompts = [text] if isinstance(text, str) else list(text)
        if not all(isinstance(prompt, str) for prompt in prompts):
            raise TypeError("text: expected a string or a list of strings")
        for index, prompt in enumerate(prompts):
            refuse_picture_path(prompt, f"text {index}", "text", 'images= or a query {"image": path} for the picture')
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
                "a placeholder for each image, or an entry of images for each text"
            )
        block = self.vision_start_token + self.image_token + self.vision_end_token
        return [
            prompt if hole else block * len(group) + prompt
            for prompt, hole, group in zip(prompts, holes, groups, strict=True)
        ]

    def replace_image_token(self, image_inputs: Any, image_idx: int, **kwargs: Any) -> str:
        """Return the placeholder of an image, repeated for each of its tokens; `ProcessorMixin` calls it."""
        patches = int(np.prod([int(side) for side in image_inputs["image_grid_thw"][image_idx]]))
        return self.image_token * (patches // self.image_processor.merge_size**2)


def _open_groups(images: Any, limits: ImageLimits) -> list[list[Image.Image]] | None:
    """Open an image, a list, or a list of lists, and return a list of lists; None stays None."""
    if images is None:
        return None
    entries = image_list(images)
    groups: list[list[Image.Image]] = []
    for index, entry in enumerate([images] if entries is None else entries):
        listed = image_list(entry)
        sources = listed if listed is not None else [] if entry is None else [entry]
        groups.append([])
        for place, source in enumerate(sources):
            name = f"images[{index}]" if listed is None else f"images[{index}][{place}]"
            image = open_image(source, item="input", field=name, limits=limits)
            check_ratio(image, "input", name)
            groups[-1].append(image)
    return groups
