"""Load a frozen image encoder: an ONNX file through onnxruntime, or a checkpoint of transformers (ViT, DINOv2, timm's models, …).

Shape suffixes: N pictures, D features, T places of a feature map.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn
from transformers import AutoImageProcessor, AutoModel, CLIPImageProcessorPil
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from retrieval.model_kinds import CheckpointError

_ONNX = ".onnx"
_SIDE = 224
"""Pixels of a side, where the graph leaves height and width open and no preprocessor_config.json names them."""
_KEPT = 20_000
"""Pictures whose features are kept: 100 MB of 1,280 features."""
_SETTINGS = "preprocessor_config.json"
_PACKAGE = "pip install 'moon3[onnx]'"


class ImageEncoder(nn.Module):
    """Pictures to features, without training. The features of the last pictures are kept, because an evaluation embeds each in
    several forms.

    Args:
        size: D, the number of features.
        pictures: the image processor of transformers: pictures → `pixel_values` (N, 3, height, width).
        facts: what is known of the encoder, for results files.
    """

    def __init__(self, size: int, pictures: Any, facts: dict[str, Any]) -> None:
        super().__init__()
        self.size, self.pictures, self.facts = size, pictures, facts
        self._known: dict[bytes, torch.Tensor] = {}

    def prepared(self, pictures: Sequence[Image.Image]) -> torch.Tensor:
        """Return the pixels of pictures, (N, 3, height, width) float32."""
        return self.pictures(images=list(pictures), return_tensors="pt")["pixel_values"]

    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return the features of pixels (N, D) float32, those of pixels that were seen before from memory."""
        keys = [hashlib.sha256(one.float().cpu().numpy().tobytes()).digest() for one in pixels]
        new = [row for row, key in enumerate(keys) if key not in self._known]
        known = [self._known.get(key) for key in keys]
        if new:
            for row, vector_D in zip(new, self(pixels[new]), strict=True):
                known[row] = self._known[keys[row]] = vector_D
            for key in list(self._known)[: max(len(self._known) - _KEPT, 0)]:
                del self._known[key]
        return torch.stack([vector_D for vector_D in known if vector_D is not None])


class OnnxImageEncoder(ImageEncoder):
    """An ONNX graph with one input of pictures; its first output is the features.

    A feature map (N, D, height, width) is averaged over its places. The graph runs on the CPU.

    Args:
        path: the .onnx file. A preprocessor_config.json beside it, as transformers writes it, says how a picture becomes pixels.
            Without one a picture is resized to the graph's height and width, whatever its proportions, and normalised by
            ImageNet's mean and deviation.

    Raises:
        CheckpointError: onnxruntime is not installed, the file cannot be read, or the graph does not take three-channel pictures.

    Shapes: pixels (N, 3, height, width) float32 → (N, D) float32.
    """

    def __init__(self, path: Path) -> None:
        session = _session(path)
        inputs = session.get_inputs()
        shape = inputs[0].shape
        if len(inputs) != 1 or len(shape) != 4 or 3 not in (shape[1], shape[3]):
            found = {one.name: one.shape for one in inputs}
            raise CheckpointError(f"{path}: found inputs {found}; expected one, of pictures (N, 3, height, width)")
        last = shape[1] != 3
        sides = shape[1:3] if last else shape[2:]
        height, width = (side if isinstance(side, int) else _SIDE for side in sides)
        facts = {"file": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        super().__init__(0, _picture_processor(path.parent, height, width), facts)
        self.session, self.input_name, self.channels_last = session, inputs[0].name, last
        self.facts["pictures"] = self.pictures.to_dict()
        self.size = self(self.prepared([Image.new("RGB", (width, height))])).shape[1]

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return the features of pixels."""
        pixels_N = pixels.float().cpu()
        array = (pixels_N.permute(0, 2, 3, 1) if self.channels_last else pixels_N).contiguous().numpy()
        features = torch.from_numpy(self.session.run(None, {self.input_name: array})[0]).float()
        if features.ndim == 4:
            features = features.mean(dim=(1, 2) if self.channels_last else (2, 3))
        if features.ndim != 2:
            raise CheckpointError(
                f"{self.facts['file']}: found an output of shape {tuple(features.shape)}; expected (N, D), or a feature map"
            )
        return features.to(pixels.device)


class CheckpointImageEncoder(ImageEncoder):
    """An image model of transformers; timm's checkpoints load through transformers' wrapper, which needs `pip install timm`.

    The features are the model's `pooler_output`, or without one the mean of `last_hidden_state` over its places.

    Args:
        place: folder or hub id.
        dtype: of the weights; "auto" is that of the checkpoint.

    Raises:
        CheckpointError: no such folder or hub id, not an image model, or a package that it needs is not installed.

    Shapes: pixels (N, 3, height, width) float → (N, D) float32.
    """

    def __init__(self, place: str, dtype: Any = "auto") -> None:
        try:
            pictures = AutoImageProcessor.from_pretrained(place, backend="pil")
            model = AutoModel.from_pretrained(place, dtype=dtype).eval()
        except (ValueError, ImportError, OSError) as error:
            raise CheckpointError(
                f"{place}: {error}; expected an image model of transformers, or an .onnx file"
            ) from error
        super().__init__(0, pictures, {"checkpoint": model.config.to_dict()})
        self.model = model
        with torch.inference_mode():
            self.size = self(self.prepared([Image.new("RGB", (_SIDE, _SIDE))])).shape[1]

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return the features of pixels."""
        parameter = next(self.model.parameters())
        output = self.model(pixel_values=pixels.to(parameter.device, parameter.dtype))
        features = getattr(output, "pooler_output", None)
        if features is None:
            states = output.last_hidden_state
            features = states.flatten(2).mean(dim=2) if states.ndim == 4 else states.mean(dim=1)
        return features.flatten(1).float()


def load_image_encoder(place: str, dtype: Any = "auto") -> ImageEncoder:
    """Load a frozen image encoder.

    Args:
        place: an .onnx file, a folder with exactly one, or a folder or hub id of an image model of transformers.
        dtype: of the weights of a checkpoint; "auto" is the checkpoint's. An ONNX graph keeps its own.

    Raises:
        CheckpointError: a place that holds none of these; see `OnnxImageEncoder` and `CheckpointImageEncoder`.
    """
    path = Path(place)
    graphs = sorted(path.glob(f"*{_ONNX}")) if path.is_dir() else []
    if path.suffix == _ONNX:
        return OnnxImageEncoder(path)
    if graphs and not (path / "config.json").is_file():
        if len(graphs) > 1:
            names = ", ".join(graph.name for graph in graphs)
            raise CheckpointError(f"{place}: found {names}; expected one .onnx file, or name the file itself")
        return OnnxImageEncoder(graphs[0])
    return CheckpointImageEncoder(place, dtype)


def _session(path: Path) -> Any:
    if not path.is_file():
        raise CheckpointError(f"{path}: found no file; expected an .onnx file")
    try:
        import onnxruntime
    except ImportError as error:
        raise CheckpointError(
            f"{path} needs the package onnxruntime, which is not installed; expected {_PACKAGE}"
        ) from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise CheckpointError(f"{path}: {error}; expected an ONNX file that onnxruntime reads") from error


def _picture_processor(folder: Path, height: int, width: int) -> Any:
    if (folder / _SETTINGS).is_file():
        return CLIPImageProcessorPil.from_pretrained(folder)
    return CLIPImageProcessorPil(
        size={"height": height, "width": width},
        do_center_crop=False,
        image_mean=IMAGENET_DEFAULT_MEAN,
        image_std=IMAGENET_DEFAULT_STD,
    )
