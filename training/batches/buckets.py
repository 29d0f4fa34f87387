"""Group pairs of the same query form and similar length into batches, so that little of a batch is padding."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from torch.utils.data import Dataset

from training.batches.pairs import Pair, PairDataset

_SALT = 0x6275636B  # these draws differ from those of the pairs, which use the same seed


@dataclass(frozen=True)
class Outline:
    """The properties of a pair that are known without opening a picture.

    Args:
        modality: the type of the query, "image", "text" or "both".
        length: the number of characters of all texts.
    """

    modality: str
    length: int


def bucket_order(outlines: Sequence[Outline], batch_size: int, rng: np.random.Generator) -> list[int]:
    """Return an order in which each batch has pairs of one modality and similar length, in random order of batches.

    Pairs are shuffled, sorted by (modality, length) and cut into batches. An incomplete batch comes last. Each batch
    contains neighbours in the sorted order, so at most one batch for each boundary between modalities is mixed. Our
    design (precedent: the length-grouped sampler of transformers, and the bucketing of Sutskever et al., arXiv
    1409.3215).

    Args:
        outlines: the outline of each pair.
        batch_size: the number of pairs in a batch, at least 1.
        rng: the generator of all random choices.
    """
    shuffled = rng.permutation(len(outlines)).tolist()
    ordered = sorted(shuffled, key=lambda index: (outlines[index].modality, outlines[index].length))  # stable
    batches = [ordered[start : start + batch_size] for start in range(0, len(ordered), batch_size)]
    short = [batches.pop()] if batches and len(batches[-1]) < batch_size else []
    return [index for number in rng.permutation(len(batches)) for index in batches[number]] + [
        index for batch in short for index in batch
    ]


class BucketedPairs(Dataset):
    """A PairDataset that is reordered within windows, so that each batch of consecutive positions has similar pairs.

    A window keeps its pairs, which are only assigned to other batches. A pair remains a function of (seed, position),
    so a run can resume at any position.

    Args:
        pairs: the data set.
        batch_size: the number of pairs of a process and step.
        window_batches: the number of batches in a window, at least 2. Larger windows give batches of more similar
            pairs, in a less random order.
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
        """Return a substitute like `PairDataset.draw`, by the position in the data set before reordering."""
        return self.pairs.draw(position, attempt)

    def missing_forms(self) -> list[str]:
        """Return the result of `PairDataset.missing_forms`."""
        return self.pairs.missing_forms()
