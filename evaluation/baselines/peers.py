"""What all peers share: reading records as Moon does, and vectors under the interface that `retrieval.encode` expects.

A peer is a model that somebody else made. Its adapter embeds the same records by the peer's own recipe; a form that the peer
does not read has no score and says why.

Shape suffixes: B records, N texts or pictures, D embedding, T tokens, H hidden.
"""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from PIL import Image
from torch import nn
from torch.nn import functional

from processing_moon import MoonBatch, ProductError, Shortened, Skipped, crop_core, open_image
from processing_moon.pixels_moon import box_in_image
from processing_moon.product_moon import Record, read_product, read_query
from processing_moon.text_moon import control_token_pattern, product_text

TOWERS_NOTE = "the mean of the unit vectors of what a record has: its text, and the mean of its pictures' unit vectors"


@dataclass(frozen=True)
class PeerConfig:
    """What is known of a peer, for the results file and its digest.

    Args:
        kind: the kind of model, as in `--model kind=PLACE`.
        vector_size: the number of dimensions of a vector.
        recipe: how records are embedded: what "mm" means, the instructions, the read-out.
        checkpoint: the configuration of the checkpoint.
    """

    kind: str
    vector_size: int
    recipe: dict[str, Any]
    checkpoint: dict[str, Any] = field(default_factory=dict)

    def to_json_string(self, use_diff: bool = False) -> str:
        """Return everything as JSON, as configurations of transformers do; there are no defaults to leave out."""
        return json.dumps(asdict(self), sort_keys=True, default=str)


class Peer(nn.Module):
    """A model whose output has `.embeddings`, and whose `config` is a `PeerConfig`.

    Args:
        config: what the peer is called and how it reads records.
        model: the library's model, which a subclass calls in `forward`. Default: None, for BM25, which has no model.
    """

    config: PeerConfig

    def __init__(self, config: PeerConfig, model: Any = None) -> None:
        super().__init__()
        self.config, self.model = config, model


@dataclass(frozen=True)
class PeerOutput:
    """`embeddings` (B, D) float32."""

    embeddings: torch.Tensor


@dataclass
class PeerRow:
    """A record as a peer embeds it.

    Args:
        index: its place in the call.
        side: "product", "query", or "label" for the text of a category or an attribute's value.
        text: everything that is written of it; "" without text.
        pictures: its opened pictures, with the core crop after the first where that is wanted.
    """

    index: int
    side: str
    text: str
    pictures: list[Image.Image]


class PeerProcessor(ABC):
    """Read records, write their text and open their pictures; a subclass makes the tensors of its model.

    The text is Moon's own without markers (title, category, attributes, description, a line each), so that every model reads
    the same words. Pictures are opened where Moon opens them, and a record with a picture that cannot be read is skipped as
    there. The core crop is added only where it is asked for: it is no part of a peer's recipe.

    Args:
        kind (`str`): the kind of model, for messages.
        control_tokens (`Sequence[str]`): tokens of the peer's tokenizer that a user's text must not become.
        reads_pictures (`bool`): whether the peer embeds pictures. Default True.
    """

    def __init__(self, kind: str, control_tokens: Sequence[str] = (), *, reads_pictures: bool = True) -> None:
        self.kind, self.reads_pictures, self.core_crop = kind, reads_pictures, False
        self._controls: re.Pattern[str] = control_token_pattern(control_tokens)

    @abstractmethod
    def tensors(self, rows: Sequence[PeerRow], shortened: list[Shortened]) -> Mapping[str, Any]:
        """Return the tensors of a batch; `shortened` takes the texts that were cut."""

    def __call__(
        self,
        *,
        products: Sequence[Any] | None = None,
        queries: Sequence[Any] | None = None,
        form: str = "mm",
        task: str | None = None,
        on_error: str = "raise",
        return_tensors: str = "pt",
    ) -> MoonBatch:
        """Process product records, or query records.

        Args:
            products, queries: records, as `MoonProcessor` takes them; one of the two.
            form (`str`): of products: "mm", "t" or "i". Default "mm".
            task (`str` or `None`): of queries: "query" (the default); "category" or "attribute" for the texts of labels.
            on_error (`str`): "raise", or "skip", which lists the records that cannot be used in `.skipped`.
            return_tensors (`str`): "pt".

        Raises:
            ProductError: a record that cannot be used (with on_error="raise").
            ValueError: both or none of products and queries, or other tensors.
        """
        if (products is None) == (queries is None) or return_tensors != "pt":
            raise ValueError("expected either products= or queries=, with return_tensors='pt'")
        side = "product" if products is not None else "query" if task in (None, "query") else "label"
        rows: list[PeerRow] = []
        skipped: list[Skipped] = []
        for index, source in enumerate(products if products is not None else queries or ()):
            try:
                record = read_product(source, index, form) if side == "product" else read_query(source, index)
                rows.append(self._row(index, side, record))
            except ProductError as error:
                if on_error == "raise":
                    raise
                skipped.append(Skipped(index, error.item, error.field, error.reason))
        shortened: list[Shortened] = []
        tensors = self.tensors(rows, shortened) if rows else {}
        return MoonBatch(dict(tensors), kept=[row.index for row in rows], skipped=skipped, shortened=shortened)

    def _row(self, index: int, side: str, record: Record) -> PeerRow:
        if record.images and not self.reads_pictures:
            raise ProductError(record.name, record.images[0][0], f"{self.kind} reads no pictures; expected text alone")
        pictures = [open_image(source, item=record.name, field=name) for name, source in record.images]
        if pictures and record.box is not None:
            pixels = box_in_image(record.box, pictures[0], record.name)
            if self.core_crop:
                pictures.insert(1, crop_core(pictures[0], pixels))
        return PeerRow(index, side, product_text(record.text, markers=False, control_tokens=self._controls), pictures)


def flat_parts(rows: Sequence[PeerRow]) -> tuple[list[str], list[Image.Image], dict[str, torch.Tensor]]:
    """Return the texts and the pictures of rows, and the tensors that say which row each belongs to.

    Shapes: text_row (N,) and picture_row (N,) int64, row numbers; rows (B,) int64.
    """
    text_row = [number for number, row in enumerate(rows) if row.text]
    picture_row = [number for number, row in enumerate(rows) for _ in row.pictures]
    places = {"text_row": text_row, "picture_row": picture_row, "rows": list(range(len(rows)))}
    texts = [rows[number].text for number in text_row]
    pictures = [picture for row in rows for picture in row.pictures]
    return texts, pictures, {name: torch.tensor(found, dtype=torch.int64) for name, found in places.items()}


def towers_mean(
    text_ND: torch.Tensor | None, picture_ND: torch.Tensor | None, places: Mapping[str, torch.Tensor]
) -> torch.Tensor:
    """Return one unit vector for each record of a model with two towers: `TOWERS_NOTE`.

    `v = normalise(t + p)`, t the text's unit vector and `p = normalise(mean_n p_n)` over the pictures' unit vectors; what a
    record lacks contributes nothing. Precedent: the score fusion of UniIR (arXiv 2311.17136).

    Args:
        text_ND, picture_ND: the towers' outputs; None without a text, without a picture.
        places: from `flat_parts`.

    Shapes: returns (B, D) float32.
    """
    parts = []
    for vector_ND, name in ((text_ND, "text_row"), (picture_ND, "picture_row")):
        if vector_ND is None:
            continue
        unit_ND = functional.normalize(vector_ND.float(), dim=-1)
        sum_BD = torch.zeros(len(places["rows"]), unit_ND.shape[1], device=unit_ND.device)
        parts.append(functional.normalize(sum_BD.index_add(0, places[name], unit_ND), dim=-1))
    return functional.normalize(torch.stack(parts).sum(dim=0), dim=-1)


def cut_texts(
    tokenizer: Any, texts: Sequence[str], most: int, padding: str | bool, cut: list[tuple[int, int, int]]
) -> dict[str, torch.Tensor]:
    """Tokenize texts to at most `most` tokens each.

    Args:
        tokenizer: of transformers.
        texts: at least one.
        most: tokens that the text tower has positions for, special tokens included.
        padding: as the tokenizer takes it.
        cut: takes (index of the text, tokens before, tokens after) of what was too long.

    Shapes: returns input_ids and attention_mask (N, T) int64.
    """
    whole = tokenizer(list(texts), add_special_tokens=True, truncation=False, verbose=False)["input_ids"]
    cut += [(index, len(ids), most) for index, ids in enumerate(whole) if len(ids) > most]
    found = tokenizer(
        list(texts),
        truncation=True,
        max_length=most,
        padding=padding,
        return_attention_mask=True,
        return_tensors="pt",
    )
    return {name: found[name] for name in ("input_ids", "attention_mask")}


def note_cut(
    rows: Sequence[PeerRow], places: Mapping[str, torch.Tensor], cut: Sequence[tuple[int, int, int]]
) -> list[Shortened]:
    """Return what `cut_texts` cut, by the records' places in the call."""
    return [
        Shortened(rows[int(places["text_row"][index])].index, "text", before, after) for index, before, after in cut
    ]
