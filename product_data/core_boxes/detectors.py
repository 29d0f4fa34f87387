"""Open a detector of core boxes by name, with everything that its boxes depend on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from processing_moon.cropping_moon import CoreDetector, GroundingDetector, LargestRegionDetector
from product_data.core_boxes.saliency import Detection, SaliencyDetector, SaliencyOptions
from product_data.errors import OptionError

DETECTORS = ("saliency", "largest-region", "grounding")


@dataclass(frozen=True)
class NamedDetector:
    """A detector and what its boxes depend on.

    Args:
        name (`str`): one of `DETECTORS`.
        settings: everything that a box depends on besides picture and title, as JSON values.
        detections: (images, titles) → a `Detection` for each image.
        reads_titles (`bool`): whether a box depends on the title. Default False.
    """

    name: str
    settings: dict[str, Any]
    detections: Callable[[list[Image.Image], list[str | None]], list[Detection]]
    reads_titles: bool = False

    @property
    def label(self) -> str:
        """The detector in one line, for the column `box_by` of tables."""
        return " ".join([self.name, *(f"{key}={value}" for key, value in self.settings.items())])

    @property
    def digest(self) -> str:
        """16 hex digits that differ if a setting differs."""
        text = json.dumps([self.name, self.settings], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def open_detector(
    name: str,
    *,
    weights: Path | None = None,
    saliency: SaliencyOptions | None = None,
    model: str | None = None,
    batch_size: int = 8,
    device: str | None = None,
) -> NamedDetector:
    """Return a detector.

    Args:
        name: one of `DETECTORS`.
        weights: the ONNX file of "saliency".
        saliency: how "saliency" turns a mask into a box. Default: `SaliencyOptions()`.
        model: folder or hub id of the model of "grounding".
        batch_size (`int`): pictures per run of the network. Default 8.
        device: of "grounding", such as "cuda". Default: the CPU.

    Raises:
        OptionError: an unknown name, or an option that the detector lacks or does not have.
        SaliencyError: see `SaliencyDetector`.
    """
    if name not in DETECTORS:
        raise OptionError(f"detector: found {name!r}; expected one of {', '.join(DETECTORS)}")
    given: dict[str, dict[str, Any]] = {
        "saliency": {"weights": weights, "saliency": saliency},
        "grounding": {"model": model, "device": device},
    }
    for owner, options in given.items():
        unused = [option for option, value in options.items() if value is not None and owner != name]
        if unused:
            raise OptionError(f"detector {name}: found {', '.join(unused)}; expected it with the detector {owner} only")
    if name == "saliency":
        if weights is None:
            raise OptionError("detector saliency: found no weights; expected the ONNX file of a U²-Net")
        network = SaliencyDetector(weights, saliency, batch_size=batch_size)
        return NamedDetector(name, network.settings, network.detections)
    if name == "largest-region":
        region = LargestRegionDetector()
        fields = ("grid", "contrast", "least_share", "margin")
        return NamedDetector(name, {field: getattr(region, field) for field in fields}, explained(region))
    if model is None:
        raise OptionError(
            "detector grounding: found no model; expected the folder or hub id of a Qwen2.5-VL or Qwen3-VL"
        )
    grounding = GroundingDetector.from_pretrained(model, batch_size=batch_size)
    if device is not None:
        grounding.model.to(device)
    settings = {"model": model, "weights": _digest_of_weights(grounding.model), "tokens": grounding.max_new_tokens}
    return NamedDetector(name, settings, explained(grounding), reads_titles=True)


def explained(detector: CoreDetector) -> Callable[[list[Image.Image], list[str | None]], list[Detection]]:
    """Return the detections of a detector that gives no reasons."""

    def detections(images: list[Image.Image], titles: list[str | None]) -> list[Detection]:
        boxes = detector.detect(images, titles)
        return [Detection(box, "" if box is not None else "the detector is unsure") for box in boxes]

    return detections


def _digest_of_weights(model: Any) -> str:
    """Return 16 hex digits of a model's configuration and of the names, sizes and sums of its weights."""
    facts = {name: [list(weight.shape), float(weight.double().sum())] for name, weight in model.state_dict().items()}
    text = json.dumps([model.config.to_dict(), facts], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
