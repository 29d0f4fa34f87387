"""Detect the core product in a picture with a salient object detection network: U²-Net, as an ONNX file.

The network runs in onnxruntime, an optional library. A shipped file must not import it, even inside a function: transformers
refuses to load a checkpoint whose files import a library that is missing. The detector is therefore in this package, and not
beside the others in `processing_moon.cropping_moon`.

Shape suffixes: B batch, C channels, H height, W width.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy import ndimage

from processing_moon.product_moon import Box, clamp_box
from product_data.errors import OptionError

REGIONS = ("all", "largest")
INPUT_SIDE = 320
_MEAN = np.array([0.485, 0.456, 0.406], dtype=np.float32)
_DEVIATION = np.array([0.229, 0.224, 0.225], dtype=np.float32)
_LEAST_PEAK = 0.2  # a blank picture has a peak of up to .06, random pixels .15, a photo of a product .9 or more
_LEAST_SHARE = 0.005
_MOST_SHARE = 0.95


class SaliencyError(ValueError):
    """Raised for weights that cannot be used, or without onnxruntime; says what was found and what is expected."""

    exit_status = 2


@dataclass(frozen=True)
class Detection:
    """The core of one picture.

    Args:
        box: (x0, y0, x1, y1) in pixels of the picture, or None.
        reason (`str`): why there is no box; "" with a box.
    """

    box: Box | None
    reason: str = ""


@dataclass(frozen=True)
class SaliencyOptions:
    """How a mask becomes a box.

    Args:
        threshold (`float`): least value of the foreground, in (0, 1), of a mask that is scaled to [0, 1]. Default 0.5.
        region (`str`): "all" boxes the whole foreground, "largest" its largest connected region. Default "all".
        margin (`float`): margin on each side, as a share of the box. Default 0.02.

    Raises:
        OptionError: a value out of range.
    """

    threshold: float = 0.5
    region: str = "all"
    margin: float = 0.02

    def __post_init__(self) -> None:
        if not 0 < self.threshold < 1:
            raise OptionError(f"threshold: found {self.threshold}; expected a number above 0 and below 1")
        if self.region not in REGIONS:
            raise OptionError(f"region: found {self.region!r}; expected one of {', '.join(REGIONS)}")
        if not 0 <= self.margin <= 1:
            raise OptionError(f"margin: found {self.margin}; expected a number from 0 to 1")


def box_of_mask(mask_HW: np.ndarray, size: tuple[int, int], options: SaliencyOptions | None = None) -> Detection:
    """Return the box of a saliency mask's foreground.

    `foreground = (m - min m) / (max m - min m) >= threshold`; the scaling is that of U²-Net's own code (Qin et al., "U²-Net:
    going deeper with nested U-structure for salient object detection", 2020). Our design: there is no box if the peak of
    the mask is below .2, or if the box covers less than .5 % or more than 95 % of the picture.

    Args:
        mask_HW: (H, W) saliency in [0, 1].
        size: width and height of the picture in pixels.
        options: default `SaliencyOptions()`.
    """
    options = options or SaliencyOptions()
    peak, low = float(mask_HW.max()), float(mask_HW.min())
    if not np.isfinite(mask_HW).all() or peak < _LEAST_PEAK or peak == low:
        return Detection(None, "nothing is salient")
    foreground_HW = (mask_HW - low) / (peak - low) >= options.threshold
    if options.region == "largest":
        region_HW, _ = ndimage.label(foreground_HW)
        foreground_HW = region_HW == 1 + int(np.argmax(np.bincount(region_HW.ravel())[1:]))
    rows, columns = np.flatnonzero(foreground_HW.any(axis=1)), np.flatnonzero(foreground_HW.any(axis=0))
    x0, y0, x1, y1 = int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
    share = (x1 - x0) * (y1 - y0) / mask_HW.size
    if share > _MOST_SHARE:
        return Detection(None, "the whole picture is salient")
    if share < _LEAST_SHARE:
        return Detection(None, "the salient region is tiny")
    across, down = size[0] / mask_HW.shape[1], size[1] / mask_HW.shape[0]
    wide, high = options.margin * (x1 - x0), options.margin * (y1 - y0)
    box = ((x0 - wide) * across, (y0 - high) * down, (x1 + wide) * across, (y1 + high) * down)
    clamped = clamp_box(box, *size)
    return (
        Detection(None, "the salient region is tiny") if clamped is None else Detection(tuple(map(float, clamped)))  # type: ignore[arg-type]
    )


class SaliencyDetector:
    """Detect what is salient in a picture with a U²-Net.

    Source: U²-Net (Qin et al. 2020); its use for the core crop is our design. MOON (arXiv 2508.11999 §3.1) uses a grounding
    model, which also reads the title.

    Args:
        weights: an ONNX file whose input is (B, 3, H, W), RGB with ImageNet's mean and deviation, and whose first output is the
            mask (B, 1, H, W) in [0, 1]. H and W that the file leaves open are 320.
        options: default `SaliencyOptions()`.
        batch_size (`int`): pictures per run of the network, if the file leaves B open. Default 8.
        threads (`int` or `None`): threads of the network. Default: those of onnxruntime, one for each core.

    Raises:
        SaliencyError: onnxruntime is not installed; no such file; a file that is not an ONNX network of this form.
        OptionError: a `batch_size` or `threads` below 1.

    Relations: `processing_moon.cropping_moon.LargestRegionDetector` needs no weights and suits plain grounds;
        `GroundingDetector` finds the product that the title names.
    """

    def __init__(
        self,
        weights: str | os.PathLike[str],
        options: SaliencyOptions | None = None,
        *,
        batch_size: int = 8,
        threads: int | None = None,
    ) -> None:
        for name, value in (("batch_size", batch_size), ("threads", threads)):
            if value is not None and value < 1:
                raise OptionError(f"{name}: found {value}; expected 1 or more")
        self.weights, self.options = Path(weights), options or SaliencyOptions()
        self._network = _open_network(self.weights, threads)
        self._input, (fixed, self._height, self._width) = _input_of(self._network, self.weights)
        self._output = self._network.get_outputs()[0].name
        self._fixed, self.batch_size = fixed, fixed or batch_size

    @property
    def settings(self) -> dict[str, Any]:
        """Everything that a box depends on, besides the picture."""
        digest = hashlib.sha256(self.weights.read_bytes()).hexdigest()
        return {"file": self.weights.name, "sha256": digest, **asdict(self.options)}

    def masks(self, images: Sequence[Image.Image]) -> list[np.ndarray]:
        """Return the (H, W) float32 mask of each picture, before it is scaled to [0, 1].

        Raises:
            SaliencyError: an output of another form.
        """
        masks: list[np.ndarray] = []
        for start in range(0, len(images), self.batch_size):
            part = [self._pixels(image) for image in images[start : start + self.batch_size]]
            padding = [part[-1]] * max(0, self._fixed - len(part))
            pixel_BCHW = np.stack([*part, *padding])
            mask_B1HW = np.asarray(self._network.run([self._output], {self._input: pixel_BCHW})[0])
            if mask_B1HW.ndim != 4 or mask_B1HW.shape[:2] != (len(pixel_BCHW), 1):
                raise SaliencyError(
                    f"{self.weights}: found a first output of shape {mask_B1HW.shape}; expected masks (B, 1, H, W)"
                )
            masks += [mask.astype(np.float32) for mask in mask_B1HW[: len(part), 0]]
        return masks

    def detections(self, images: list[Image.Image], titles: list[str | None]) -> list[Detection]:
        """Return a box or a reason for each image; the titles are not used."""
        return [
            box_of_mask(mask, image.size, self.options) for mask, image in zip(self.masks(images), images, strict=True)
        ]

    def detect(self, images: list[Image.Image], titles: list[str | None]) -> list[Box | None]:
        """Return a box for each image, see `processing_moon.cropping_moon.CoreDetector`; the titles are not used."""
        return [detection.box for detection in self.detections(images, titles)]

    def _pixels(self, image: Image.Image) -> np.ndarray:
        resized = image.convert("RGB").resize((self._width, self._height), Image.Resampling.BILINEAR)
        return ((np.asarray(resized, dtype=np.float32) / 255 - _MEAN) / _DEVIATION).transpose(2, 0, 1)


def _open_network(weights: Path, threads: int | None) -> Any:
    """Return the onnxruntime session of a file."""
    if not weights.is_file():
        raise SaliencyError(f"{weights}: no such file; expected the ONNX file of a U²-Net")
    try:
        import onnxruntime
    except ImportError as error:
        raise SaliencyError(
            "the saliency detector: found no onnxruntime; expected the library: pip install 'moon3[onnx]'"
        ) from error
    session = onnxruntime.SessionOptions()
    session.intra_op_num_threads = threads or 0
    session.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(str(weights), session, providers=onnxruntime.get_available_providers())
    except Exception as error:
        raise SaliencyError(
            f"{weights}: not an ONNX file that onnxruntime can run ({str(error)[:200]}); expected that of a U²-Net"
        ) from error


def _input_of(network: Any, weights: Path) -> tuple[str, tuple[int, int, int]]:
    """Return the name of a network's only input, and its batch size (0 if the file leaves it open), height and width."""
    inputs = network.get_inputs()
    shape = inputs[0].shape if len(inputs) == 1 else [entry.shape for entry in inputs]
    if len(inputs) != 1 or len(shape) != 4 or shape[1] != 3 or inputs[0].type != "tensor(float)":
        raise SaliencyError(
            f"{weights}: found the input {shape}; expected one input (B, 3, {INPUT_SIDE}, {INPUT_SIDE})"
        )
    batch, _, height, width = (side if isinstance(side, int) and side > 0 else 0 for side in shape)
    return inputs[0].name, (batch, height or INPUT_SIDE, width or INPUT_SIDE)
