"""Checkpoints of open_clip, such as Marqo's e-commerce models (`open_clip=Marqo/marqo-ecommerce-embeddings-B`).

The package `open_clip_torch` brings torchvision and timm, which nothing else here needs: it is not among the project's extras.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from evaluation.baselines.peers import (
    TOWERS_NOTE,
    Peer,
    PeerConfig,
    PeerOutput,
    PeerProcessor,
    PeerRow,
    flat_parts,
    towers_mean,
)
from processing_moon import Shortened
from retrieval.model_kinds import KINDS, ModelKind


class OpenClipProcessor(PeerProcessor):
    """Texts and pictures for a model of open_clip, each for its own tower.

    Args:
        tokenizer: open_clip's, texts → (N, T) int64, cut to its `context_length`.
        transform: open_clip's preprocessing of a picture for evaluation.
    """

    def __init__(self, tokenizer: Any, transform: Any) -> None:
        super().__init__("open_clip")
        self.tokenizer, self.transform = tokenizer, transform

    def tensors(self, rows: Sequence[PeerRow], shortened: list[Shortened]) -> Mapping[str, Any]:
        """Return the tensors of both towers, see `flat_parts`; open_clip does not say which texts it cuts."""
        texts, pictures, tensors = flat_parts(rows)
        if texts:
            tensors["input_ids"] = self.tokenizer(texts)
        if pictures:
            tensors["pixel_values"] = torch.stack([self.transform(picture) for picture in pictures])
        return tensors


class OpenClipTowers(Peer):
    """An open_clip model; a record with text and pictures is embedded as the mean of both towers' unit vectors.

    Args:
        config: PeerConfig.
        model: has `encode_text` and `encode_image`.
    """

    def forward(
        self,
        rows: torch.Tensor,
        text_row: torch.Tensor,
        picture_row: torch.Tensor,
        input_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
    ) -> PeerOutput:
        """Embed a batch of `OpenClipProcessor`; see `towers_mean`."""
        text_ND = None if input_ids is None else self.model.encode_text(input_ids)
        picture_ND = None if pixel_values is None else self.model.encode_image(pixel_values)
        places = {"rows": rows, "text_row": text_row, "picture_row": picture_row}
        return PeerOutput(towers_mean(text_ND, picture_ND, places))


def load(place: str, dtype: Any = "auto") -> tuple[OpenClipTowers, OpenClipProcessor]:
    """Load a checkpoint of open_clip.

    Args:
        place: a folder with `open_clip_config.json`, a hub id ("Marqo/marqo-ecommerce-embeddings-B"), or a name that open_clip
            itself takes.
        dtype: of the weights; "auto" is that of the checkpoint.
    """
    import open_clip

    name = f"local-dir:{place}" if Path(place).is_dir() else f"hf-hub:{place}" if "/" in place else place
    model, _, transform = open_clip.create_model_and_transforms(name)
    model = model if dtype == "auto" else model.to(dtype)
    tokenizer = open_clip.get_tokenizer(name)
    size = int(model.encode_text(tokenizer(["a"])).shape[1])
    recipe = {"mm": TOWERS_NOTE, "instruction": None}
    return OpenClipTowers(PeerConfig("open_clip", size, recipe, {"name": place}), model), OpenClipProcessor(
        tokenizer, transform
    )


KINDS["open_clip"] = ModelKind(load, package="open_clip", install="pip install open_clip_torch")
