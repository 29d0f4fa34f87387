"""Look up a teacher's vectors of products, from folders that `moon3 embed` wrote.

Shape suffixes: N products of the folders, R rows of a batch, E teacher width.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from retrieval.vectors.vector_files import VectorFolder

_NOT_TEXT = {"id", "images", "core_box", "reasoning"}


class TeacherVectors:
    """A teacher's vectors by product id, centred: `t = normalise(v − mean v)`, the mean over all products of the folders.

    Without centring, what all vectors of a frozen encoder share outweighs what tells products apart (precedent: all-but-the-top,
    arXiv 1702.01417). They are kept in float16: 2 · N · E bytes, which the workers of the data loader share.

    Args:
        folders: folders of one model's vectors, as `moon3 embed` writes them. A product id that two of them hold is refused.
        form: "t", "i" or "mm": the form in which the teacher read the products.

    Raises:
        ValueError: a folder that is not complete or lacks the form, folders of different models, a product id in two folders,
            or no vectors.
    """

    def __init__(self, folders: Sequence[str | Path], form: str) -> None:
        opened = [VectorFolder(folder) for folder in folders]
        prints = {folder.fingerprint for folder in opened}
        if len(prints) > 1:
            raise ValueError(
                f"found {len(prints)} models in {', '.join(map(str, folders))}; expected vectors of one model"
            )
        self.form = form
        self.row_of: dict[str, int] = {}
        parts: list[np.ndarray] = []
        for folder in opened:
            for ids, vector_ND in folder.vectors(form):
                for product_id in ids:
                    if product_id in self.row_of:
                        raise ValueError(
                            f"{folder.path}: found product {product_id!r} a second time; expected different ids"
                        )
                    self.row_of[product_id] = len(self.row_of)
                parts.append(vector_ND)
        if not parts:
            raise ValueError(
                f"{', '.join(map(str, folders))}: found no vectors of the form {form!r}; expected at least one"
            )
        vector_NE = np.concatenate(parts)
        vector_NE = vector_NE - vector_NE.mean(axis=0, dtype=np.float64).astype(np.float32)
        length_N1 = np.linalg.norm(vector_NE, axis=1, keepdims=True)
        self.vector_NE = (vector_NE / np.maximum(length_N1, 1e-12)).astype(np.float16)

    @property
    def width(self) -> int:
        """Return E."""
        return self.vector_NE.shape[1]

    def known(self, ids: Sequence[str]) -> int:
        """Return how many of these products have a vector."""
        return sum(product_id in self.row_of for product_id in ids)

    def of(self, records: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Return the vectors of the product records that have one and show what the teacher read.

        Args:
            records: product records of pairs, whose "id" is the data set's name, a slash, and the product's id.

        Shapes: "rows" (R,) int64, ascending; "vectors" (R, E) float32.
        """
        ids = [str(record["id"]).partition("/")[2] for record in records]
        rows = [row for row, record in enumerate(records) if ids[row] in self.row_of and self._shows(record)]
        places = [self.row_of[ids[row]] for row in rows]
        vector_RE = torch.from_numpy(self.vector_NE[places].astype(np.float32))
        return {"rows": torch.tensor(rows, dtype=torch.int64), "vectors": vector_RE}

    def _shows(self, record: Mapping[str, Any]) -> bool:
        return (self.form == "t" or bool(record.get("images"))) and (
            self.form == "i" or bool(record.keys() - _NOT_TEXT)
        )
