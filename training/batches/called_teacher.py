"""Let a teacher embed the records of a batch as they are trained on, with altered pictures, in place of stored vectors.

Shape suffixes: N records, R rows of a batch, E teacher width.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

import evaluation.baselines  # noqa: F401 - makes the kinds of encoders known
from retrieval.encode import Encoded, encode, load_for_evaluation

SAMPLE = 256
"""Records whose mean vector is subtracted."""
_TEXT_OF_QUERY, _PICTURE_OF_QUERY = "text", "image"


class CalledTeacher:
    """A teacher that reads records, queries as well as products: `t = normalise(v − mean v)`, the mean over a sample.

    Pictures without a product, such as the photos of queries, and altered pictures can so be taught, and no vectors are stored.
    It costs the teacher's forward pass in each step. The mean is subtracted as in `TeacherVectors`.

    Source: our design; precedent: the distillation of altered views in SEED, arXiv 2101.04731 §3.

    Args:
        embed: records → their unit vectors, and which of them could be read, such as `Encoder`.
        form: what the teacher reads: "t", "i", or "mm", all that a record has; a record without it is not taught.
        sample: records for the mean. A record that lacks the form is left out.

    Raises:
        ValueError: no record of the sample has the form, or none of them can be read.

    Relations: use `training.batches.teacher_vectors.TeacherVectors` for products and texts that never change.
    """

    def __init__(
        self, embed: Callable[[list[dict[str, Any]]], Encoded], form: str, sample: Sequence[Mapping[str, Any]]
    ) -> None:
        self.embed, self.form = embed, form
        records = [read for record in sample if (read := self._read(record)) is not None]
        vector_NE = embed(records).vectors if records else np.zeros((0, 0), np.float32)
        if not len(vector_NE):
            raise ValueError(
                f"found no record with the form {form!r} that can be read among {len(sample)}; expected one"
            )
        self.mean_E = vector_NE.mean(axis=0, dtype=np.float64).astype(np.float32)

    @property
    def width(self) -> int:
        """Return E."""
        return len(self.mean_E)

    def of(self, records: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Return the vectors of the records that have the teacher's form.

        Args:
            records: product or query records of pairs.

        Shapes: "rows" (R,) int64, ascending; "vectors" (R, E) float32, of unit length.
        """
        read = [self._read(record) for record in records]
        rows = [row for row, record in enumerate(read) if record is not None]
        if not rows:
            return {"rows": torch.zeros(0, dtype=torch.int64), "vectors": torch.zeros(0, self.width)}
        encoded = self.embed([record for record in read if record is not None])
        vector_RE = encoded.vectors - self.mean_E
        vector_RE /= np.maximum(np.linalg.norm(vector_RE, axis=1, keepdims=True), 1e-12)
        return {
            "rows": torch.tensor([rows[place] for place in encoded.kept], dtype=torch.int64),
            "vectors": torch.from_numpy(vector_RE.astype(np.float32)),
        }

    def _read(self, record: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return what the teacher reads of a record, as a product; None if the record lacks it. The core box is not read."""
        images = record.get("images") or ([record[_PICTURE_OF_QUERY]] if _PICTURE_OF_QUERY in record else [])
        kept = {
            name: value
            for name, value in record.items()
            if name not in ("images", "core_box", "reasoning", _PICTURE_OF_QUERY, _TEXT_OF_QUERY)
        }
        if _TEXT_OF_QUERY in record:
            kept["title"] = record[_TEXT_OF_QUERY]
        if self.form == "i":
            kept = {"id": kept.get("id", "")}
        if self.form != "t" and images:
            kept["images"] = images
        return kept if kept.keys() - {"id"} else None


class Encoder:
    """Embed records with a frozen model; each process loads it once, when it first needs it.

    Args:
        place: a checkpoint or a KIND=PLACE, see `retrieval.encode.load_for_evaluation`; it is loaded on the CPU.
        form: "t", "i" or "mm".

    Raises:
        CheckpointError: a place that cannot be loaded; raised by the first call.
    """

    def __init__(self, place: str, form: str) -> None:
        self.place, self.form = place, form
        self._loaded: tuple[int, Any, Any] | None = None

    def __call__(self, records: list[dict[str, Any]]) -> Encoded:
        """Return the vectors of product records."""
        if self._loaded is None or self._loaded[0] != os.getpid():  # a session of onnxruntime does not survive a fork
            self._loaded = (os.getpid(), *load_for_evaluation(self.place, device="cpu"))
        _, model, processor = self._loaded
        return encode(model, processor, records, form=self.form, batch_size=len(records), progress=False)


def sample_of(records: Sequence[Mapping[str, Any]], count: int = SAMPLE) -> list[Mapping[str, Any]]:
    """Return up to `count` records, spread evenly.

    Args:
        records: product and query records.
        count: the number of records. Default `SAMPLE`.
    """
    places = np.linspace(0, len(records) - 1, min(count, len(records))).round().astype(int)
    return [records[place] for place in places]
