"""Define the explanation of a vector: heat over pictures, weights of words, shares, gates and reasoning.

Shape suffixes: T tokens of the product or query, A heads, W words.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class PictureHeat:
    """One picture as the model sees it, and the share of the read-out's attention that each of its tokens gets.

    Args:
        name: "picture 1", "core crop", "picture 2" …
        pixels: (height, width, 3) uint8, after the processor's resizing.
        heat: (rows, columns) float32, one value per image token; the heats of all pictures of a record sum to 1.
    """

    name: str
    pixels: np.ndarray
    heat: np.ndarray


@dataclass(frozen=True)
class Explanation:
    """The parts of a product or query that one vector was read from.

    Args:
        record_id: the record's id, or its kind if it has no id.
        kind: "product" or "query".
        readout: "mean", "emb" or "last".
        layers: the averaged decoder layers.
        relative: whether heat and word weights are relative to uniform attention, see `explain`.
        pictures: the pictures in the order of the model's input.
        words: the words of the text, without markers or other special tokens.
        word_parts: the part of the text that each word belongs to: title, category, attributes, description, or text.
        word_weights: (W,) float32, sums to 1 if there are words.
        shares: set of tokens → its share of the read-out's attention; the shares sum to 1.
        attention: (T,) float32, the read-out's attention to each token, sums to 1.
        input_ids: (T,) int64, the tokens.
        gates: (A, 3) float32, the weight that each fusion head assigns to the read-out's state, to the pictures and to
            the title; None for a model without fusion.
        reasoning: the written attributes (`Reasoning` of the processor); None without reasoning.
    """

    record_id: str
    kind: str
    readout: str
    layers: tuple[int, ...]
    relative: bool
    pictures: tuple[PictureHeat, ...]
    words: tuple[str, ...]
    word_parts: tuple[str, ...]
    word_weights: np.ndarray
    shares: dict[str, float]
    attention: np.ndarray
    input_ids: np.ndarray
    gates: np.ndarray | None = None
    reasoning: Any = None

    def as_dict(self) -> dict[str, Any]:
        """Return the entry of the index file: id, read-out, layers, shares, gates and reasoning, in types of JSON."""
        entry: dict[str, Any] = {"id": self.record_id, "readout": self.readout, "layers": list(self.layers)}
        entry["shares"] = {name: round(share, 6) for name, share in self.shares.items()}
        if self.gates is not None:
            entry["gates"] = [[round(float(value), 6) for value in head] for head in self.gates]
        if self.reasoning is not None:
            attributes = {key: list(values) for key, values in self.reasoning.attributes.items()}
            entry["reasoning"] = {
                "text": self.reasoning.text,
                "attributes": attributes,
                "unparsed": list(self.reasoning.unparsed),
                "well_formed": self.reasoning.well_formed,
            }
        return entry
