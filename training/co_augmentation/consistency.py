"""Score how well a picture and a title belong together.

Shape suffixes: N pairs, D embedding width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from product_data.errors import OptionError
from retrieval.encode import encode, load_for_evaluation
from retrieval.model_kinds import unread_records
from retrieval.vectors.fingerprint import model_fingerprint

TOLERANCE = 0.1


@dataclass(frozen=True)
class Vectors:
    """The vectors of pictures or titles.

    Shapes: `vectors` (N, D) float32, unit length; `valid` (N,) bool: False for one that the model could not read.
    """

    vectors: np.ndarray
    valid: np.ndarray

    def cosine(self, index: int, other: "Vectors", other_index: int) -> float | None:
        """Return the cosine of a vector and a vector of the other side, None if either is not valid."""
        if not (self.valid[index] and other.valid[other_index]):
            return None
        return float(self.vectors[index] @ other.vectors[other_index])


class Consistency:
    """`score = cos(f(picture alone), f(title alone))` by any encoder of the project.

    MOON2.0 (arXiv 2511.12449) keeps edited pictures "only when image–title consistency is high" and does not publish the measure.
    Ours: a variant is kept if its score is at least that of the original picture with the original title, minus a tolerance. A
    fixed threshold would depend on the model and on the kind of product.

    Args:
        model: a checkpoint's folder or hub id, or a peer by its kind, see `retrieval.encode.load_for_evaluation`.
        tolerance (`float`): a difference of cosines, from 0 to 2. Default 0.1.
        device (`str` or `None`): default: the first GPU, or else the CPU.
        batch_size (`int`): default 32.

    Raises:
        OptionError: the tolerance is out of range, or the model reads only pictures or only texts.
        CheckpointError: see `load_for_evaluation`.
    """

    def __init__(
        self, model: str, tolerance: float = TOLERANCE, device: str | None = None, batch_size: int = 32
    ) -> None:
        check_tolerance(tolerance)
        self.tolerance, self.batch_size = tolerance, batch_size
        self.name, self.fingerprint = model, model_fingerprint(model)
        self.model, self.processor = load_for_evaluation(model, device=device)
        blank = Image.new("RGB", (32, 32))
        for records in ([{"id": "picture", "images": [blank]}], [{"id": "title", "title": "title"}]):
            if why := unread_records(self.processor, records, "records"):
                raise OptionError(f"--model {model}: {why}; expected a model that reads pictures and titles")

    @property
    def settings(self) -> dict[str, Any]:
        """Everything that a score or an acceptance depends on."""
        return {"model": self.fingerprint, "tolerance": self.tolerance}

    def of_pictures(self, pictures: Sequence[Image.Image]) -> Vectors:
        """Return the vectors of pictures alone."""
        return self._encoded([{"id": str(n), "images": [picture]} for n, picture in enumerate(pictures)], "i")

    def of_titles(self, titles: Sequence[str]) -> Vectors:
        """Return the vectors of titles alone; an empty title is not valid."""
        places = [place for place, title in enumerate(titles) if title]
        found = self._encoded([{"id": str(place), "title": titles[place]} for place in places], "t")
        vector_ND = np.zeros((len(titles), found.vectors.shape[1] if len(places) else 1), np.float32)
        valid_N = np.zeros(len(titles), bool)
        vector_ND[places], valid_N[places] = found.vectors, found.valid
        return Vectors(vector_ND, valid_N)

    def _encoded(self, records: list[dict[str, Any]], form: str) -> Vectors:
        if not records:
            return Vectors(np.zeros((0, 1), np.float32), np.zeros(0, bool))
        encoded = encode(self.model, self.processor, records, form=form, batch_size=self.batch_size, progress=False)
        vector_ND = np.zeros((len(records), encoded.vectors.shape[1] if len(encoded.vectors) else 1), np.float32)
        valid_N = np.zeros(len(records), bool)
        vector_ND[encoded.kept], valid_N[encoded.kept] = encoded.vectors, True
        return Vectors(vector_ND, valid_N)

    def problem(self, score: float | None, original: float | None) -> str:
        """Return why a variant is not kept, or ""."""
        if score is None or original is None:
            return "the consistency of picture and title cannot be scored"
        if score >= original - self.tolerance:
            return ""
        return f"the consistency fell: {score:.2f}, the original has {original:.2f}"


def check_tolerance(tolerance: float) -> None:
    """Raise OptionError for a tolerance outside 0 to 2."""
    if not 0 <= tolerance <= 2:
        raise OptionError(f"--tolerance: found {tolerance}; expected a number from 0 to 2")
