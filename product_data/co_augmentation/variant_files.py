"""The folder of a data set's variants: `moon3 co-augment` writes it, training and contact sheets read it.

`variants.parquet` has a row for each variant: product_id, kind (title, clean, scene), number, title, image (a path in
the folder), core_box, score (consistency of picture and title), original_score, accepted, reason (why not), made_by.
`co_augmentation.json` holds the settings and counts, and "complete": true at the end. There is no products table: the
folder is not a data set, so that no evaluation or gallery can open it.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from product_data.atomic_files import file_written_whole
from product_data.table_files import TableError

TABLE, RECORD, JOURNAL, TITLES, PICTURES, LOCK = (
    "variants.parquet",
    "co_augmentation.json",
    "variants.jsonl",
    "titles",
    "pictures",
    "co_augmentation.lock",
)
BESIDE = "co_augmentation"
"""The name of the folder inside a data set's folder where recipes look with `variants: auto`."""
TITLE, CLEAN, SCENE = "title", "clean", "scene"
_SCHEMA = pyarrow.schema(
    [(name, pyarrow.string()) for name in ("product_id", "kind")]
    + [("number", pyarrow.int32())]
    + [(name, pyarrow.string()) for name in ("title", "image")]
    + [("core_box", pyarrow.list_(pyarrow.float64()))]
    + [(name, pyarrow.float32()) for name in ("score", "original_score")]
    + [("accepted", pyarrow.bool_())]
    + [(name, pyarrow.string()) for name in ("reason", "made_by")]
)


@dataclass(frozen=True, slots=True)
class Variant:
    """A variant of a product.

    Args:
        product_id, kind, number: the product; "title", "clean" or "scene"; the number within its kind, from 0.
        title (`str`): the enriched title; "" for a picture.
        image (`str`): path of the picture in the folder; "" for a title, and for a picture that could not be made.
        core_box: (x0, y0, x1, y1) of the product in pixels of the picture, None if unknown.
        score, original_score: cosine of picture and title with the variant and without it, None if not scored.
        accepted (`bool`): whether training may draw it.
        reason (`str`): why it is not accepted; "" if it is.
        made_by (`str`): how it was made.
    """

    product_id: str
    kind: str
    number: int
    title: str = ""
    image: str = ""
    core_box: tuple[float, float, float, float] | None = None
    score: float | None = None
    original_score: float | None = None
    accepted: bool = True
    reason: str = ""
    made_by: str = ""

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Variant:
        """Return the variant of a row of the table or of the journal."""
        box = row["core_box"]
        return cls(**{**row, "core_box": None if box is None else tuple(box)})

    def as_row(self) -> dict[str, Any]:
        """Return the variant as a row of the table."""
        return asdict(self) | {"core_box": None if self.core_box is None else list(self.core_box)}


def write_variants(folder: Path, variants: Iterable[Variant]) -> None:
    """Write the table of a folder, whole or not at all."""
    rows = [variant.as_row() for variant in variants]
    with file_written_whole(folder / TABLE) as partial:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, schema=_SCHEMA), partial)


def is_variant_folder(folder: str | Path) -> bool:
    """Return whether a folder has complete variants."""
    path = Path(folder) / RECORD
    try:
        return bool(json.loads(path.read_text(encoding="utf-8"))["complete"]) and (path.parent / TABLE).is_file()
    except (OSError, ValueError, KeyError, TypeError):
        return False


class VariantFolder:
    """The variants of a data set.

    Args:
        folder: a folder that `moon3 co-augment` has completed.

    Raises:
        TableError: the folder has no complete variants.
    """

    def __init__(self, folder: str | Path) -> None:
        self.path = Path(folder)
        if not is_variant_folder(self.path):
            raise TableError(
                f"{self.path}: found no complete variants; expected a folder that moon3 co-augment has written to its end"
            )
        self.record: dict[str, Any] = json.loads((self.path / RECORD).read_text(encoding="utf-8"))

    @property
    def data_set(self) -> str:
        """The name of the data set whose products these are."""
        return str(self.record["data_set"])

    def digest(self) -> str:
        """Return 16 hex digits that differ if the table differs."""
        return hashlib.sha256((self.path / TABLE).read_bytes()).hexdigest()[:16]

    def variants(self, accepted_only: bool = False) -> dict[str, list[Variant]]:
        """Return product id → its variants, in the order of the table."""
        found: dict[str, list[Variant]] = defaultdict(list)
        for batch in pyarrow.parquet.ParquetFile(self.path / TABLE).iter_batches(4096):
            for row in batch.to_pylist():
                if row["accepted"] or not accepted_only:
                    found[row["product_id"]].append(Variant.of(row))
        return dict(found)

    def picture(self, variant: Variant) -> str:
        """Return the path of a variant's picture."""
        return str(self.path / variant.image)


def counts_of(variants: Sequence[Variant]) -> dict[str, dict[str, int]]:
    """Return kind → "made", "accepted" and each reason → its number; numbers and values in reasons are left out."""
    counts: dict[str, dict[str, int]] = {}
    for variant in variants:
        of_kind = counts.setdefault(variant.kind, {"made": 0, "accepted": 0})
        of_kind["made"] += 1
        outcome = "accepted" if variant.accepted else variant.reason.split(":")[0].split("'")[0].strip()
        of_kind[outcome] = of_kind.get(outcome, 0) + 1
    return counts
