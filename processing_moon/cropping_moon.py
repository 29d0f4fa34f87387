"""Detect the core product in a picture (MOON, arXiv 2508.11999 §3.1); `crop_core` crops the picture to it."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText

from .images_moon import open_image
from .product_moon import Box, clamp_box
from .prompts_moon import PromptProcessor
from .text_moon import control_token_pattern, plain_text


class CoreDetector(Protocol):
    """Detects the core product in pictures. Any object with this method can be passed as `detector=`."""

    def detect(self, images: list[Image.Image], titles: list[str | None]) -> list[Box | None]:
        """Return a box (x0, y0, x1, y1) in pixels for each image; None if unsure.

        Args:
            images: upright RGB images.
            titles: titles of the products, one for each image; None if unknown.
        """


class LargestRegionDetector:
    """Detect the largest connected region that differs from the background, without a model. Our design.

    The background's colour is modelled as a plane over the picture, fitted to its border pixels. Pixels far from the plane are
    foreground, and their largest connected region is the core. This suits product shots on plain or shaded ground. The box is
    None if a plane does not describe the border, if there is no region, or if the region is tiny, fills the picture, or is
    hardly larger than the next one.

    Args:
        grid (`int`): longer side, in pixels, of the reduced picture that is searched. Default 128.
        contrast (`float`): minimum distance of the foreground from the background, in grey levels of 255; with a noisy
            border, six times its spread if that is more. Default 24.
        least_share (`float`): smallest region, as a share of the picture. Default 0.01.
        margin (`float`): margin on each side, as a share of the box. Default 0.02.

    Raises:
        ValueError: a value out of range.

    Relations: `GroundingDetector` finds the product that the title names, in cluttered pictures as well.
    """

    def __init__(
        self, grid: int = 128, contrast: float = 24.0, least_share: float = 0.01, margin: float = 0.02
    ) -> None:
        if grid < 8 or contrast <= 0 or not 0 < least_share < 1 or margin < 0:
            raise ValueError(
                "LargestRegionDetector: expected grid >= 8, contrast > 0, 0 < least_share < 1, margin >= 0"
            )
        self.grid, self.contrast, self.least_share, self.margin = grid, contrast, least_share, margin

    def detect(self, images: list[Image.Image], titles: list[str | None]) -> list[Box | None]:
        """Return a box for each image, see `CoreDetector`; the titles are not used."""
        return [self._largest_region(image) for image in images]

    def _largest_region(self, image: Image.Image) -> Box | None:
        shrink = max(1.0, max(image.size) / self.grid)
        size = (max(1, round(image.width / shrink)), max(1, round(image.height / shrink)))
        if min(size) < 4:
            return None
        pixels = np.asarray(image.convert("RGB").resize(size, Image.Resampling.BOX), dtype=np.float32)
        mask = _foreground(pixels, self.contrast)
        if mask is None:
            return None
        labels, areas = _connected_regions(mask)
        if not len(areas):
            return None
        order = np.argsort(areas)[::-1]
        share = areas[order[0]] / mask.size
        if share < self.least_share or (len(order) > 1 and areas[order[1]] > 0.8 * areas[order[0]]):
            return None
        rows, columns = np.nonzero(labels == order[0] + 1)
        x0, y0, x1, y1 = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
        if (x1 - x0) * (y1 - y0) > 0.95 * mask.size:
            return None
        across, down = image.width / size[0], image.height / size[1]
        wide, high = self.margin * (x1 - x0) * across, self.margin * (y1 - y0) * down
        box = (x0 * across - wide, y0 * down - high, x1 * across + wide, y1 * down + high)
        clamped = clamp_box((float(box[0]), float(box[1]), float(box[2]), float(box[3])), *image.size)
        return None if clamped is None else tuple(float(side) for side in clamped)  # type: ignore[return-value]


def _foreground(pixels: np.ndarray, contrast: float) -> np.ndarray | None:
    """Return a mask of the pixels that differ from the plane through the border's colours; None if it does not fit."""
    height, width, _ = pixels.shape
    rows, columns = np.mgrid[0:height, 0:width]
    border = (rows < 2) | (rows >= height - 2) | (columns < 2) | (columns >= width - 2)
    design = np.stack([np.ones(pixels.shape[:2]), columns / width - 0.5, rows / height - 0.5], axis=-1).astype(
        np.float32
    )
    keep = border
    distance = np.zeros(pixels.shape[:2], dtype=np.float32)
    for _ in range(3):  # robust: border pixels that the product covers are left out of the next fit
        plane, *_ = np.linalg.lstsq(design[keep], pixels[keep], rcond=None)
        distance = np.abs(pixels - design @ plane).max(axis=-1)
        keep = border & (distance <= max(contrast, 2.0 * float(np.median(distance[border]))))
        if keep.sum() < 12:
            return None
    spread = float(np.median(distance[keep]))
    if keep.sum() < 0.6 * border.sum() or spread > contrast:
        return None
    return distance > max(contrast, 6.0 * spread)


def _connected_regions(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Label the 4-connected regions of a mask.

    Union-find joins the runs of a row with the runs that they touch in the row above.

    Returns:
        labels (height, width) int64, 0 outside, 1… inside; areas (regions,) int64, of label index + 1.
    """
    height, width = mask.shape
    edges = np.diff(np.pad(mask.astype(np.int8), ((0, 0), (1, 1))), axis=1)
    row_of, start = np.nonzero(edges == 1)
    _, end = np.nonzero(edges == -1)
    parent = np.arange(len(start))

    def root(run: int) -> int:
        while parent[run] != run:
            parent[run] = parent[parent[run]]
            run = int(parent[run])
        return run

    first = np.searchsorted(row_of, np.arange(height + 1))
    for row in range(1, height):
        above, below = int(first[row - 1]), int(first[row])
        while above < first[row] and below < first[row + 1]:
            if start[above] < end[below] and start[below] < end[above]:
                parent[root(int(below))] = root(int(above))
            if end[above] < end[below]:
                above += 1
            else:
                below += 1
    roots = np.array([root(run) for run in range(len(start))], dtype=np.int64)
    _, region = np.unique(roots, return_inverse=True)
    labels = np.zeros((height, width), dtype=np.int64)
    for line, left, right, label in zip(row_of, start, end, region + 1, strict=True):
        labels[line, left:right] = label
    return labels, np.bincount(labels.ravel())[1:]


# ---------------------------------------------------------------------------------------------------------------------
# Grounding

_NUMBER = r"\s*([-+]?\d+(?:\.\d+)?)\s*"
_BOX = re.compile(rf"\[{_NUMBER},{_NUMBER},{_NUMBER},{_NUMBER}\]")
_NAMED_BOX = re.compile(r"bbox(?:_2d)?[\"']?\s*:\s*" + _BOX.pattern)
# How each backbone writes boxes: in pixels of the resized picture, or in thousandths of its sides.
CONVENTIONS = {"qwen2_5_vl": "pixels", "qwen3_vl": "thousandths"}


def parse_box(answer: str, convention: str, resized: tuple[int, int], size: tuple[int, int]) -> Box | None:
    """Read the first box in a grounding model's answer; any text is accepted.

    Args:
        answer: the model's text, such as '[{"bbox_2d": [10, 20, 110, 220], "label": "shoe"}]'.
        convention: "pixels" of the resized picture (Qwen2.5-VL), or "thousandths" of its sides (Qwen3-VL).
        resized: width and height of the picture after the model's own resizing.
        size: width and height of the original picture, in whose pixels the box is returned.

    Returns:
        The box inside the picture; None if there is none, or one that is inverted, empty or outside.
    """
    match = _NAMED_BOX.search(answer) or _BOX.search(answer)
    if match is None:
        return None
    numbers = [float(number) for number in match.groups()]
    width, height = resized if convention == "pixels" else (1000, 1000)
    across, down = size[0] / width, size[1] / height
    box = (numbers[0] * across, numbers[1] * down, numbers[2] * across, numbers[3] * down)
    if not all(math.isfinite(side) for side in box) or box[0] >= box[2] or box[1] >= box[3]:
        return None
    inside = (max(box[0], 0.0), max(box[1], 0.0), min(box[2], float(size[0])), min(box[3], float(size[1])))
    return inside if inside[0] < inside[2] and inside[1] < inside[3] else None


class GroundingDetector:
    """Detect the product that the title names with a grounding vision-language model.

    Source: MOON (arXiv 2508.11999 §3.1): Qwen2.5-VL, prompted with the title, answers with a box. The prompt's words and the
    cache are our design.

    Args:
        model: a Qwen2.5-VL or Qwen3-VL model with a language head.
        processor: a `PromptProcessor` or `MoonProcessor` of the same base.
        name: name of the model, for the cache.
        cache: a JSONL file of detected boxes, keyed by picture, title and model; None for no cache. New boxes are
            appended, and an interrupted run therefore continues.
        batch_size: number of pictures per generation. Default 8.
        max_new_tokens: maximum number of tokens of an answer. Default 96.

    Raises:
        ValueError: a model of an unsupported architecture; a `batch_size` or `max_new_tokens` below 1.

    Relations: `LargestRegionDetector` needs no model.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        *,
        name: str,
        cache: str | os.PathLike[str] | None = None,
        batch_size: int = 8,
        max_new_tokens: int = 96,
    ) -> None:
        kind = model.config.model_type
        if kind not in CONVENTIONS:
            raise ValueError(f"GroundingDetector: model type {kind!r}; expected one of {', '.join(CONVENTIONS)}")
        if batch_size < 1 or max_new_tokens < 1:
            raise ValueError(
                f"GroundingDetector: found batch_size={batch_size}, max_new_tokens={max_new_tokens}; expected 1 or more"
            )
        self.model, self.processor, self.name = model.eval(), processor, name
        self.convention = CONVENTIONS[kind]
        self.batch_size, self.max_new_tokens = batch_size, max_new_tokens
        self.cache = None if cache is None else Path(cache)
        self._boxes = {} if self.cache is None else _read_cache(self.cache)

    @classmethod
    def from_pretrained(
        cls, base: str | os.PathLike[str], *, dtype: Any = "auto", **settings: Any
    ) -> GroundingDetector:
        """Load the model and its processor from a folder or the hub.

        Args:
            base: folder or hub id of a Qwen2.5-VL or Qwen3-VL checkpoint.
            dtype: of the weights; "auto" as stored.
            **settings: `cache`, `batch_size`, `max_new_tokens` of the class.
        """
        model = AutoModelForImageTextToText.from_pretrained(base, dtype=dtype)
        # The base's own resolution finds small products.
        return cls(model, PromptProcessor.from_base(base), name=str(base), **settings)

    def detect(self, images: list[Image.Image], titles: list[str | None]) -> list[Box | None]:
        """Return a box for each image, see `CoreDetector`; None for an answer that cannot be read, in the cache as well."""
        keys = [(_digest(image), title or "", self.name) for image, title in zip(images, titles, strict=True)]
        todo = {key: place for place, key in enumerate(keys) if key not in self._boxes}
        places = list(todo.values())
        for start in range(0, len(places), self.batch_size):
            part = places[start : start + self.batch_size]
            boxes = self._detect_batch([images[place] for place in part], [titles[place] for place in part])
            for place, box in zip(part, boxes, strict=True):
                self._boxes[keys[place]] = box
            self._append_to_cache([keys[place] for place in part])
        return [self._boxes[key] for key in keys]

    @torch.inference_mode()
    def _detect_batch(self, images: Sequence[Image.Image], titles: Sequence[str | None]) -> list[Box | None]:
        controls = control_token_pattern(self.processor.tokenizer.get_added_vocab())
        prompts = []
        for title in titles:
            wanted = f'the product "{plain_text(title, controls)}"' if title else "the main product of this picture"
            words = f"Locate {wanted}. Answer with its bounding box as JSON: " + '[{"bbox_2d": [x1, y1, x2, y2]}]'
            message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": words}]}
            prompts.append(self.processor.apply_chat_template([message], add_generation_prompt=True))
        opened = [open_image(image) for image in images]
        batch = self.processor(text=prompts, images=opened, padding=True, padding_side="left", return_tensors="pt")
        batch = batch.to(self.model.device)
        written = self.model.generate(**batch, max_new_tokens=self.max_new_tokens, do_sample=False)
        answers = self.processor.batch_decode(written[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
        patch = self.processor.image_processor.patch_size
        grids = batch["image_grid_thw"].tolist()
        return [
            parse_box(answer, self.convention, (columns * patch, rows * patch), image.size)
            for answer, (_, rows, columns), image in zip(answers, grids, opened, strict=True)
        ]

    def _append_to_cache(self, keys: list[tuple[str, str, str]]) -> None:
        if self.cache is None:
            return
        self.cache.parent.mkdir(parents=True, exist_ok=True)
        lines = [
            json.dumps({"image": image, "title": title, "model": model, "box": self._boxes[image, title, model]})
            for image, title, model in keys
        ]
        # Begins with a line end if a killed run left its last line unfinished.
        with self.cache.open("a+b") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 1))
            unfinished = file.read(1) not in (b"", b"\n")
            file.write((("\n" if unfinished else "") + "\n".join(lines) + "\n").encode("utf-8"))


def _digest(image: Image.Image) -> str:
    return hashlib.sha256(f"{image.mode} {image.size}".encode() + image.tobytes()).hexdigest()


def _read_cache(path: Path) -> dict[tuple[str, str, str], Box | None]:
    boxes: dict[tuple[str, str, str], Box | None] = {}
    if not path.exists():
        return boxes
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            entry = json.loads(line)
            box = entry["box"]
            boxes[entry["image"], entry["title"], entry["model"]] = None if box is None else tuple(map(float, box))  # type: ignore[assignment]
        except (ValueError, KeyError, TypeError):  # the unfinished line of a killed run; its picture is detected again
            continue
    return boxes
