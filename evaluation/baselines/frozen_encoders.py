"""Frozen encoders of pictures and of texts, alone and fused: what a shop uses if it trains nothing.

`frozen_image=PLACE` searches by pictures alone and `frozen_text=PLACE` by words alone, whatever else a record has.
`frozen=IMAGE_PLACE+TEXT_PLACE` joins both; `frozen=IMAGE_PLACE@0.3+TEXT_PLACE` gives pictures a weight of 0.3 instead of 0.5. An
image place is an ONNX file or a checkpoint, see `image_encoders`; a text place is a model of sentence-transformers.

Shape suffixes: B records, N texts or pictures, D embedding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from evaluation.baselines.image_encoders import ImageEncoder, load_image_encoder
from evaluation.baselines.peers import Peer, PeerConfig, PeerOutput, PeerProcessor, PeerRow, flat_parts
from evaluation.baselines.sentence_transformer import load as load_text_encoder
from processing_moon import ProductError, Shortened
from processing_moon.product_moon import Record
from retrieval.model_kinds import KINDS, CheckpointError, ModelKind

FUSED_NOTE = (
    "[√w · unit vector of the pictures; √(1 − w) · unit vector of the text], of unit length; what a record lacks is 0, and "
    "several pictures, or a picture and its core crop, are the mean of their unit vectors"
)
ALONE_NOTES = {"picture": "the pictures; the text is not read", "text": "the text; the pictures are not read"}
_TEXT = "text/"


class FrozenProcessor(PeerProcessor):
    """Pictures for the image encoder and texts for the text encoder; a record without either is refused.

    Args:
        kind: "frozen", "frozen_image" or "frozen_text".
        image: the image encoder; its image processor is used. None: pictures are not read.
        text: the text encoder's processor. None: texts are not read.
    """

    separate_spaces = True

    def __init__(self, kind: str, image: ImageEncoder | None, text: PeerProcessor | None) -> None:
        super().__init__(kind)
        self.pictures, self.text = (None if image is None else image.pictures), text
        self.needs = "" if image and text else "picture" if image else "text"

    def _row(self, index: int, side: str, record: Record) -> PeerRow:
        row = super()._row(index, side, replace(record, images=record.images if self.pictures else []))
        row = row if self.text is not None else replace(row, text="")
        if not row.text and not row.pictures:
            raise ProductError(record.name, "images" if self.needs == "picture" else "text", self.expectation)
        return row

    @property
    def expectation(self) -> str:
        """Return what a record must have, as a sentence for messages."""
        return f"{self.kind} reads {'pictures and texts' if not self.needs else self.needs + 's alone'}; found none"

    def tensors(self, rows: Sequence[PeerRow], shortened: list[Shortened]) -> Mapping[str, Any]:
        """Return the pixels, the text encoder's tensors under "text/…", and the rows that both belong to."""
        texts, pictures, tensors = flat_parts(rows)
        if pictures and self.pictures is not None:
            tensors["pixel_values"] = self.pictures(images=pictures, return_tensors="pt")["pixel_values"]
        if texts and self.text is not None:
            written = [replace(row, pictures=[]) for row in rows if row.text]
            tensors |= {_TEXT + name: value for name, value in self.text.tensors(written, shortened).items()}
        return tensors


class FrozenEncoders(Peer):
    """A frozen image encoder, a frozen text encoder, or both in one vector.

    `v = normalise([√w p; √(1 − w) t])`, where t is the unit vector of the text and `p = normalise(mean_n p_n)` over the unit
    vectors of the pictures; without a text or pictures that part is 0. So `v_q · v_p = w p_q · p_p + (1 − w) t_q · t_p` for
    records with both, the weighted sum of the two searches' scores (late fusion), and a query with one form alone ranks products
    that have both exactly as that encoder alone does. A mean of the two unit vectors is no alternative: the spaces differ in
    width and meaning. A text and a picture have nothing in common: their searches have no score. Among products, one with a
    single form has a longer part than one with both, as any store with cosine similarity would have it.

    Source: our design; precedent: the score fusion of UniIR (arXiv 2311.17136).

    Args:
        config: PeerConfig.
        image: the image encoder, or None.
        text: the text encoder, or None.
        image_weight (`float`): w, in (0, 1). Default 0.5.
    """

    def __init__(
        self, config: PeerConfig, image: ImageEncoder | None, text: Peer | None, image_weight: float = 0.5
    ) -> None:
        super().__init__(config)
        self.image, self.text = image, text
        self.image_weight = nn.Parameter(torch.tensor(image_weight), requires_grad=False)

    def forward(
        self,
        rows: torch.Tensor,
        text_row: torch.Tensor,
        picture_row: torch.Tensor,
        pixel_values: torch.Tensor | None = None,
        **words: torch.Tensor,
    ) -> PeerOutput:
        """Embed a batch of `FrozenProcessor`."""
        parts = []
        if self.image is not None:
            picture_BD = torch.zeros(len(rows), self.image.size, device=rows.device)
            if pixel_values is not None:
                unit_ND = functional.normalize(self.image.features(pixel_values), dim=-1)
                picture_BD = functional.normalize(picture_BD.index_add(0, picture_row, unit_ND), dim=-1)
            parts.append(self.image_weight.sqrt() * picture_BD)
        if self.text is not None:
            text_BD = torch.zeros(len(rows), self.text.config.vector_size, device=rows.device)
            if words:
                inputs = {name.removeprefix(_TEXT): value for name, value in words.items()}
                unit_ND = functional.normalize(self.text(**inputs).embeddings.float(), dim=-1)
                text_BD = text_BD.index_add(0, text_row, unit_ND)
            parts.append((1 - self.image_weight).sqrt() * text_BD)
        return PeerOutput(functional.normalize(torch.cat(parts, dim=-1), dim=-1))


def load_frozen(
    kind: str, image_place: str | None, text_place: str | None, image_weight: float = 0.5, dtype: Any = "auto"
) -> tuple[FrozenEncoders, FrozenProcessor]:
    """Load an image encoder, a text encoder, or both.

    Args:
        kind: "frozen", "frozen_image" or "frozen_text".
        image_place: of `load_image_encoder`. None: pictures are not read.
        text_place: folder or hub id of a model of sentence-transformers. None: texts are not read.
        image_weight (`float`): the weight of pictures, if there are both. Default 0.5.
        dtype: of the weights; "auto" is that of each checkpoint.

    Raises:
        CheckpointError: see `load_image_encoder`.
        OSError: no such folder or hub id.
    """
    image = None if image_place is None else load_image_encoder(image_place, dtype)
    text, text_processor = (None, None) if text_place is None else load_text_encoder(text_place, dtype)
    weight = image_weight if image and text else float(image is not None)
    processor = FrozenProcessor(kind, image, text_processor)
    size = (image.size if image else 0) + (text.config.vector_size if text else 0)
    recipe: dict[str, Any] = {"mm": ALONE_NOTES.get(processor.needs, FUSED_NOTE), "image_weight": weight}
    recipe |= {"image": image.facts if image else None, "text": text.config.recipe if text else None}
    config = PeerConfig(kind, size, recipe, text.config.checkpoint if text else {})
    return FrozenEncoders(config, image, text, weight), processor


def fused_places(place: str) -> tuple[str, float, str]:
    """Return the image place, the weight of pictures and the text place of "IMAGE_PLACE+TEXT_PLACE".

    Raises:
        CheckpointError: not two places, or a weight that is not a number between 0 and 1.
    """
    parts = place.split("+")
    if len(parts) != 2 or not all(parts):
        raise CheckpointError(f"model 'frozen={place}'; expected frozen=IMAGE_PLACE+TEXT_PLACE")
    image, _, weight = parts[0].partition("@")
    try:
        number = float(weight or 0.5)
    except ValueError:
        number = 0.0
    if not 0 < number < 1:
        raise CheckpointError(f"model 'frozen={place}': found weight {weight!r}; expected a number between 0 and 1")
    return image, number, parts[1]


def _load_fused(place: str, dtype: Any = "auto") -> tuple[FrozenEncoders, FrozenProcessor]:
    image, weight, text = fused_places(place)
    return load_frozen("frozen", image, text, weight, dtype)


def _load_image(place: str, dtype: Any = "auto") -> tuple[FrozenEncoders, FrozenProcessor]:
    return load_frozen("frozen_image", place, None, dtype=dtype)


def _load_text(place: str, dtype: Any = "auto") -> tuple[FrozenEncoders, FrozenProcessor]:
    return load_frozen("frozen_text", None, place, dtype=dtype)


def _places(place: str) -> tuple[str, list[str]]:
    image, weight, text = fused_places(place)
    return str(weight), [image, text]


KINDS["frozen"] = ModelKind(_load_fused, places=_places)
KINDS["frozen_image"] = ModelKind(_load_image)
KINDS["frozen_text"] = ModelKind(_load_text)
