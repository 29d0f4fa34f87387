"""Own the files of an upgrade, in the folder `upgrade` of a folder of vectors.

upgrade.json         the two models, what was fitted and measured; written last
adapter.safetensors  the adapters new → old and old → new
vectors/             the new model's vectors of the sample and of backfilled products, as `moon3 embed` writes them
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from product_data.atomic_files import file_written_whole, write_atomically
from retrieval.upgrade.adapters import Adapter
from retrieval.upgrade.calibration import Calibration
from retrieval.upgrade.sampling import UpgradeError
from retrieval.vectors.vector_files import VectorFolder, is_vector_folder

FORMAT = 1
ADAPTER, BACK = "adapter.", "back."


@dataclass(frozen=True)
class ModelOf:
    """A model of an upgrade: its place, its fingerprint, and the width of its vectors."""

    model: str
    fingerprint: str
    dimension: int


@dataclass(frozen=True)
class Upgrade:
    """What lets a new model search an old model's vectors.

    Args:
        old, new: the two models.
        name (`str`): the adapter, such as "affine, rank 64".
        adapter: new → old, for queries.
        back: old → new, for products as queries.
        calibration: cosines with old vectors → cosines with new ones.
        sample (`int`): number of products that both models embedded.
        seed (`int`): of the sample and its parts.
        chosen_by: adapter → its R@10 on the products that chose it.
        ranks: search → rank of each query's answer, on products that neither fitted nor chose.
        notes: what was left out, and why.
    """

    old: ModelOf
    new: ModelOf
    name: str
    adapter: Adapter
    back: Adapter
    calibration: Calibration
    sample: int
    seed: int
    chosen_by: dict[str, float] = field(default_factory=dict)
    ranks: dict[str, list[int]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


class UpgradeFolder:
    """The folder of an upgrade; it need not exist.

    Args:
        vectors: the old model's folder of vectors.
    """

    def __init__(self, vectors: str | Path) -> None:
        self.path = Path(vectors) / "upgrade"

    @property
    def facts_file(self) -> Path:
        """Return the file of models and measures."""
        return self.path / "upgrade.json"

    @property
    def adapter_file(self) -> Path:
        """Return the file of the adapters."""
        return self.path / "adapter.safetensors"

    @property
    def vectors_path(self) -> Path:
        """Return the folder of the new model's vectors."""
        return self.path / "vectors"

    def vectors(self) -> VectorFolder | None:
        """Return the new model's vectors; `None` before the first job."""
        return VectorFolder(self.vectors_path) if is_vector_folder(self.vectors_path) else None

    def write(self, upgrade: Upgrade) -> None:
        """Write an upgrade. While its files are replaced, and after a kill there, the folder has none."""
        self.path.mkdir(parents=True, exist_ok=True)
        tensors = {ADAPTER + name: array for name, array in upgrade.adapter.tensors().items()}
        tensors |= {BACK + name: array for name, array in upgrade.back.tensors().items()}
        self.facts_file.unlink(missing_ok=True)
        with file_written_whole(self.adapter_file) as partial:
            safetensors.numpy.save_file(tensors, partial)
        facts = {"format": FORMAT, "old": asdict(upgrade.old), "new": asdict(upgrade.new), "name": upgrade.name}
        facts |= {"kind": upgrade.adapter.kind, "back_kind": upgrade.back.kind}
        facts |= {"calibration": asdict(upgrade.calibration), "sample": upgrade.sample, "seed": upgrade.seed}
        facts |= {"chosen_by": upgrade.chosen_by, "ranks": upgrade.ranks, "notes": upgrade.notes}
        write_atomically(self.facts_file, json.dumps(facts, indent=1, ensure_ascii=False) + "\n")

    def read(self) -> Upgrade | None:
        """Return the upgrade; `None` if none has been fitted.

        Raises:
            UpgradeError: files that cannot be read.
        """
        if not self.facts_file.is_file():
            return None
        try:
            facts = json.loads(self.facts_file.read_text(encoding="utf-8"))
            if facts.pop("format") != FORMAT:
                raise ValueError(f"not format {FORMAT}")
            tensors = safetensors.numpy.load_file(self.adapter_file)
            adapters = {
                key: Adapter.of_tensors(facts.pop(kind), _named(tensors, start))
                for key, kind, start in (("adapter", "kind", ADAPTER), ("back", "back_kind", BACK))
            }
            models = {side: ModelOf(**facts.pop(side)) for side in ("old", "new")}
            return Upgrade(**facts | adapters | models | {"calibration": Calibration(**facts["calibration"])})
        except (OSError, ValueError, KeyError, TypeError, AttributeError, safetensors.SafetensorError) as error:
            raise UpgradeError(
                f"{self.facts_file}: cannot be read ({type(error).__name__}: {error}); expected the files that moon3 upgrade "
                f"wrote; remove {self.path} to fit again"
            ) from error


def _named(tensors: dict[str, np.ndarray], start: str) -> dict[str, Any]:
    return {name.removeprefix(start): array for name, array in tensors.items() if name.startswith(start)}
