"""What one vector was read from: heat over pictures, weights of words, shares, gates and reasoning.

Shape suffixes: T tokens of the item, A heads, W words.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class PictureHeat:
    """One picture as the model saw it, and how much of the read-out's attention each of its tokens got.

    Args:
        name: "picture 1", "core crop", "picture 2" …
        pixels: (height, width, 3) uint8, after the processor's resizing.
        heat: (rows, columns) float32, one value an image token; the heats of all pictures of an item sum to 1.
    """

    name: str
    pixels: np.ndarray
    heat: np.ndarray


@dataclass(frozen=True)
class Explanation:
    """What one vector was read from.

    Args:
        item: the record's id, or its kind where it has none.
        kind: "product" or "query".
        readout: "mean", "emb" or "last".
        layers: the decoder layers that were averaged.
        relative: whether heat and word weights are relative to uniform attention, see `explain`.
        pictures: in the order in which the model saw them.
        words: the words of the item's text, markers and other special tokens left out.
        word_parts: the part of the text that each word belongs to: title, category, attributes, description, or text.
        word_weights: (W,) float32, sums to 1 where there are words.
        shares: set of tokens → its share of the read-out's attention; sums to 1.
        attention: (T,) float32, the read-out's attention to each token, sums to 1.
        input_ids: (T,) int64, the tokens.
        gates: (A, 3) float32, each fusion head's weight of the item's own state, its pictures and its title; None where
            the model has no fusion.
        reasoning: the written attributes (`Reasoning` of the processor); None where none were asked for.
    """

    item: str
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
        """What the index file says of it: item, read-out, layers, shares, gates and reasoning, in types of JSON."""
        found: dict[str, Any] = {"id": self.item, "readout": self.readout, "layers": list(self.layers)}
        found["shares"] = {name: round(share, 6) for name, share in self.shares.items()}
        if self.gates is not None:
            found["gates"] = [[round(float(value), 6) for value in head] for head in self.gates]
        if self.reasoning is not None:
            attributes = {key: list(values) for key, values in self.reasoning.attributes.items()}
            found["reasoning"] = {
                "text": self.reasoning.text,
                "attributes": attributes,
                "unparsed": list(self.reasoning.unparsed),
                "well_formed": self.reasoning.well_formed,
            }
        return found
