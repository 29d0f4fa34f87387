"""Batches of like items: pictures with pictures, long texts with long texts, so that little of a batch is padding."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from torch.utils.data import Dataset

from training.batches.pairs import Pair, PairDataset

_SALT = 0x6275636B  # keeps these draws apart from those of the pairs, which share the seed


@dataclass(frozen=True)
class Outline:
    """What can be told of a pair without opening a picture.

    Args:
        modality: the query's type, "image", "text" or "both", by which batches are ordered.
        length: characters of all its texts.
    """

    modality: str
    length: int


def bucket_order(outlines: Sequence[Outline], batch_size: int, rng: np.random.Generator) -> list[int]:
    """Return an order in which each batch holds items of one modality and like length, the batches in random order.

    Items are shuffled, sorted by (modality, length) and cut into batches; where the items do not divide evenly, the short
    batch comes last. Only neighbours in the sorted order meet in one batch, so that at most one batch for each border
    between modalities is mixed. Our design (precedent: the length-grouped sampler of transformers, and the bucketing of
    Sutskever et al., arXiv 1409.3215).

    Args:
        outlines: what is known of each item.
        batch_size: items a batch, 1 or more.
        rng: source of every choice.
    """
    shuffled = rng.permutation(len(outlines)).tolist()
    ordered = sorted(shuffled, key=lambda index: (outlines[index].modality, outlines[index].length))  # stable
    batches = [ordered[start : start + batch_size] for start in range(0, len(ordered), batch_size)]
    short = [batches.pop()] if batches and len(batches[-1]) < batch_size else []
    return [index for number in rng.permutation(len(batches)) for index in batches[number]] + [
        index for batch in short for index in batch
    ]


class BucketedPairs(Dataset):
    """A PairDataset whose positions are reordered within windows, so that each batch of consecutive ones is alike.

    Which pairs a window holds does not change, only which batch they are in; a position is a function of (seed, position)
    as before, so that a run resumes at a number.

    Args:
        pairs: the data set.
        batch_size: pairs of one process and step.
        window_batches: batches a window, 2 or more; more make batches more alike and their order less random.
    """

    def __init__(self, pairs: PairDataset, batch_size: int, window_batches: int) -> None:
        self.pairs = pairs
        self.batch_size = batch_size
        self.window = batch_size * window_batches
        self._order = lru_cache(maxsize=2)(self._order_of)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, position: int) -> Pair:
        if not 0 <= position < len(self):
            raise IndexError(f"position: found {position}; expected 0 to {len(self) - 1}")
        window, place = divmod(position, self.window)
        return self.pairs[window * self.window + self._order(window)[place]]

    def __getstate__(self) -> dict:
        return {name: value for name, value in self.__dict__.items() if name != "_order"}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._order = lru_cache(maxsize=2)(self._order_of)

    def _order_of(self, window: int) -> list[int]:
        first = window * self.window
        outlines = [
            Outline(*self.pairs.outline(position)) for position in range(first, min(first + self.window, len(self)))
        ]
        return bucket_order(outlines, self.batch_size, np.random.default_rng((self.pairs.seed, _SALT, window)))

    def draw(self, position: int, attempt: int = 0) -> Pair:
        """Return a substitute as `PairDataset.draw` does; positions are the data set's own."""
        return self.pairs.draw(position, attempt)

    def missing_forms(self) -> list[str]:
        """Return what `PairDataset.missing_forms` does."""
        return self.pairs.missing_forms()
