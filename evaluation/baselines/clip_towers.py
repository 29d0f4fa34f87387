"""CLIP-shaped and SigLIP-shaped checkpoints of transformers: a text tower and an image tower in one space.

`clip=PLACE` takes CLIP (arXiv 2103.00020) and its descendants in the same shape, such as FashionCLIP
(`patrickjohncyh/fashion-clip`, doi 10.1038/s41598-022-23052-9). `siglip=PLACE` takes SigLIP (arXiv 2303.15343) and SigLIP2
(arXiv 2502.14786), with pictures of a fixed size or in their own proportions (NaFlex). `clip=random` and `siglip=random` are
small models of these shapes with random weights, see `random_towers`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    CLIPImageProcessorPil,
    Siglip2ImageProcessorPil,
    SiglipImageProcessorPil,
)

from evaluation.baselines.peers import (
    TOWERS_NOTE,
    Peer,
    PeerConfig,
    PeerOutput,
    PeerProcessor,
    PeerRow,
    cut_texts,
    flat_parts,
    note_cut,
    towers_mean,
)
from evaluation.baselines.random_towers import RANDOM, random_towers
from processing_moon import Shortened
from retrieval.model_kinds import KINDS, CheckpointError, ModelKind

# Always the PIL backend: pixels must not depend on whether torchvision is installed.
IMAGE_PROCESSORS = {
    "clip": CLIPImageProcessorPil,
    "siglip": SiglipImageProcessorPil,
    "siglip2": Siglip2ImageProcessorPil,
}
ACCEPTED = {"clip": ("clip",), "siglip": ("siglip", "siglip2")}


class TowersProcessor(PeerProcessor):
    """Texts and pictures for a CLIP-shaped or SigLIP-shaped model, each for its own tower.

    Args:
        kind: "clip" or "siglip".
        tokenizer, image_processor: of the checkpoint.
        max_tokens (`int`): positions of the text tower; longer texts are cut at the end.
    """

    def __init__(self, kind: str, tokenizer: Any, image_processor: Any, max_tokens: int) -> None:
        super().__init__(kind, tokenizer.all_special_tokens)
        self.tokenizer, self.image_processor, self.max_tokens = tokenizer, image_processor, max_tokens

    def tensors(self, rows: Sequence[PeerRow], shortened: list[Shortened]) -> Mapping[str, Any]:
        """Return the tensors of both towers, see `flat_parts`; without texts or pictures those of one."""
        texts, pictures, tensors = flat_parts(rows)
        if texts:
            cut: list[tuple[int, int, int]] = []
            # SigLIP was trained on texts padded to full length, and its text tower takes no mask.
            padding = "max_length" if self.kind == "siglip" else True
            found = cut_texts(self.tokenizer, texts, self.max_tokens, padding, cut)
            tensors |= {"input_ids": found["input_ids"]}
            if self.kind == "clip":
                tensors |= {"attention_mask": found["attention_mask"]}
            shortened += note_cut(rows, tensors, cut)
        if pictures:
            tensors |= dict(self.image_processor(images=pictures, return_tensors="pt"))
        return tensors


class Towers(Peer):
    """A CLIP-shaped or SigLIP-shaped model; a record with text and pictures is the mean of both towers' unit vectors.

    Args:
        config: PeerConfig.
        model: the `CLIPModel`, `SiglipModel` or `Siglip2Model`.
    """

    def forward(
        self,
        rows: torch.Tensor,
        text_row: torch.Tensor,
        picture_row: torch.Tensor,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        **pixels: torch.Tensor,
    ) -> PeerOutput:
        """Embed a batch of `TowersProcessor`; see `towers_mean`."""
        text_ND = picture_ND = None
        if input_ids is not None:
            mask = {} if attention_mask is None else {"attention_mask": attention_mask}
            text_ND = self.model.get_text_features(input_ids=input_ids, **mask, return_dict=True).pooler_output
        if pixels:
            picture_ND = self.model.get_image_features(**pixels, return_dict=True).pooler_output
        places = {"rows": rows, "text_row": text_row, "picture_row": picture_row}
        return PeerOutput(towers_mean(text_ND, picture_ND, places))


def load_towers(kind: str, place: str, dtype: Any = "auto") -> tuple[Towers, TowersProcessor]:
    """Load a CLIP-shaped ("clip") or SigLIP-shaped ("siglip") checkpoint.

    Args:
        kind: "clip" or "siglip".
        place: folder or hub id, or "random".
        dtype: of the weights; "auto" is that of the checkpoint.

    Raises:
        CheckpointError: a checkpoint of another architecture.
        OSError: no such folder or hub id.
    """
    if place == RANDOM:
        return _towers(kind, *random_towers(kind))
    config = AutoConfig.from_pretrained(place)
    if config.model_type not in ACCEPTED[kind]:
        raise CheckpointError(
            f"{kind}={place}: model type {config.model_type!r}; expected {' or '.join(ACCEPTED[kind])}"
        )
    model = AutoModel.from_pretrained(place, dtype=dtype)
    image_processor = IMAGE_PROCESSORS[config.model_type].from_pretrained(place)
    return _towers(kind, model, AutoTokenizer.from_pretrained(place), image_processor)


def _towers(kind: str, model: Any, tokenizer: Any, image_processor: Any) -> tuple[Towers, TowersProcessor]:
    config = model.config
    most = config.text_config.max_position_embeddings
    size = config.projection_dim if kind == "clip" else config.text_config.projection_size
    recipe = {"mm": TOWERS_NOTE, "instruction": None, "max_tokens": most}
    peer = PeerConfig(kind, size, recipe, config.to_dict())
    return Towers(peer, model), TowersProcessor(kind, tokenizer, image_processor, most)


def _load_clip(place: str, dtype: Any = "auto") -> tuple[Towers, TowersProcessor]:
    return load_towers("clip", place, dtype)


def _load_siglip(place: str, dtype: Any = "auto") -> tuple[Towers, TowersProcessor]:
    return load_towers("siglip", place, dtype)


KINDS["clip"] = ModelKind(_load_clip)
KINDS["siglip"] = ModelKind(_load_siglip)
