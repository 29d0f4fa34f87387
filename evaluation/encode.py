"""Records → unit vectors, for any model whose output has `.embeddings`; and each set of records encoded only once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm
from transformers import AutoModel

import modeling_moon
import processing_moon
from evaluation.baselines import dual_tower
from evaluation.data.tables import ProductRow, QueryRow

KINDS = ("product", "query")
# Importing these (and the processor) makes their model types known to the Auto classes.
MODELS = (modeling_moon.MoonModel, dual_tower.DualTower)
_PROGRESS_DELAY_SECONDS = 3.0


@dataclass(frozen=True)
class SkippedRecord:
    """A record that could not be encoded: its place in the input, its name, the field, and why."""

    index: int
    item: str
    field: str
    reason: str

    def as_dict(self) -> dict[str, Any]:
        """For the results file."""
        return {"item": self.item, "field": self.field, "reason": self.reason}


@dataclass(frozen=True)
class Encoded:
    """Vectors of the records that could be encoded.

    Shapes: `vectors` (N_kept, D) float32, each of unit length; row r belongs to record `kept[r]`, ascending.
    """

    vectors: np.ndarray
    kept: list[int]
    skipped: list[SkippedRecord]


def load_for_evaluation(path: str | Path, *, device: str | None = None, dtype: Any = "auto") -> tuple[Any, Any]:
    """Model and processor of a checkpoint (Moon or dual tower), in evaluation mode.

    Args:
        path: folder or hub id.
        device (`str` or `None`): default: the first GPU, or else the CPU.
        dtype: of the weights; "auto" is that of the checkpoint.

    Raises:
        ValueError: a folder without config.json, or a model whose output has no vector.
    """
    if Path(path).is_dir() and not (Path(path) / "config.json").is_file():
        raise ValueError(f"{path}: no config.json; accepted: the folder of a saved checkpoint")
    model = AutoModel.from_pretrained(path, dtype=dtype)
    if model.config.model_type not in {known.config_class.model_type for known in MODELS}:
        raise ValueError(
            f"{path}: model type {model.config.model_type!r}; accepted: a Moon (see training.upcycle) or a dual tower"
        )
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return model.to(device).eval(), processing_moon.MoonProcessor.from_pretrained(path)


@torch.inference_mode()
def encode(
    model: Any,
    processor: Any,
    records: Sequence[dict[str, Any]],
    *,
    kind: str = "product",
    form: str = "mm",
    task: str | None = None,
    batch_size: int = 32,
    progress: bool = True,
) -> Encoded:
    """Vectors of product or query records.

    Records of like length share a batch, the next batch is prepared while one is computed, and the order is restored.

    Args:
        model: takes the processor's tensors and returns `.embeddings`; used on its device, in its dtype, in evaluation
            mode, and left as it was found.
        processor: a MoonProcessor.
        records: product or query records.
        kind (`str`): "product" or "query". Default "product".
        form (`str`): of products: "mm", "t" or "i". Default "mm".
        task (`str` or `None`): of queries: "query" (the default), "category", "attribute".
        batch_size (`int`): records a batch. Default 32.
        progress (`bool`): a bar, once the work has taken more than a few seconds. Default True.

    Raises:
        ValueError: another kind, a batch size below 1, or vectors that are not finite.

    Relations: `VectorCache` when several benchmarks need the same vectors.
    """
    if kind not in KINDS or batch_size < 1:
        raise ValueError(
            f"kind={kind!r}, batch_size={batch_size}; accepted: kind product or query, batch_size of 1 or more"
        )
    order = sorted(range(len(records)), key=lambda index: _length(records[index]))
    groups = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]

    def prepare(group: list[int]) -> Any:
        chosen = [records[index] for index in group]
        if kind == "product":
            return processor(products=chosen, form=form, on_error="skip", return_tensors="pt")
        return processor(queries=chosen, task=task or "query", on_error="skip", return_tensors="pt")

    vectors: dict[int, np.ndarray] = {}
    skipped: list[SkippedRecord] = []
    was_training = model.training
    model.eval()
    try:
        bar = tqdm(
            _prepared_ahead(prepare, groups),
            total=len(groups),
            desc="encode " + (f"products, {form}" if kind == "product" else f"queries, task {task or 'query'}"),
            delay=_PROGRESS_DELAY_SECONDS,
            disable=not progress,
        )
        for group, batch in bar:
            rows: Iterable[np.ndarray] = _embed(model, batch) if batch.kept else ()
            vectors.update({group[kept]: row for kept, row in zip(batch.kept, rows, strict=True)})
            skipped += [SkippedRecord(group[s.index], str(s.item), str(s.field), str(s.reason)) for s in batch.skipped]
    finally:
        model.train(was_training)
    kept = sorted(vectors)
    stacked = (
        np.stack([vectors[index] for index in kept]) if kept else np.zeros((0, model.config.vector_size), np.float32)
    )
    return Encoded(_unit(stacked, kept), kept, sorted(skipped, key=lambda record: record.index))


def _length(record: dict[str, Any]) -> tuple[int, int]:
    images = record.get("images", record.get("image"))
    count = 0 if images is None else len(images) if isinstance(images, list) else 1
    return count, sum(len(str(value)) for name, value in record.items() if name not in ("images", "image", "id"))


def _prepared_ahead(prepare: Callable[[list[int]], Any], groups: list[list[int]]) -> Iterable[tuple[list[int], Any]]:
    with ThreadPoolExecutor(max_workers=1) as pool:
        coming: Future | None = pool.submit(prepare, groups[0]) if groups else None
        for number, group in enumerate(groups):
            batch = coming.result() if coming is not None else None
            coming = pool.submit(prepare, groups[number + 1]) if number + 1 < len(groups) else None
            yield group, batch


def _embed(model: Any, batch: Any) -> np.ndarray:
    parameter = next(model.parameters())
    inputs = {}
    for name, value in batch.items():
        dtype = parameter.dtype if value.is_floating_point() else None
        inputs[name] = value.to(parameter.device, dtype=dtype)
    return model(**inputs).embeddings.float().cpu().numpy()


def _unit(vectors_ND: np.ndarray, kept: list[int]) -> np.ndarray:
    bad = [kept[row] for row in np.flatnonzero(~np.isfinite(vectors_ND).all(axis=1))]
    if bad:
        raise ValueError(f"the model gave vectors that are not finite for {len(bad)} records (indices {bad[:5]})")
    norm_N1 = np.linalg.norm(vectors_ND, axis=1, keepdims=True)
    return (vectors_ND / np.maximum(norm_N1, 1e-12)).astype(np.float32)


class VectorCache:
    """Each form of the gallery, each query and each label text encoded at most once for one model.

    Args:
        model, processor: as for `encode`.
        products, queries: the rows of the split that is evaluated.
        batch_size (`int`), progress (`bool`): as for `encode`.

    Relations: handed to every benchmark of a run.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        products: Sequence[ProductRow],
        queries: Sequence[QueryRow],
        *,
        batch_size: int = 32,
        progress: bool = True,
    ) -> None:
        self.model, self.processor = model, processor
        self.products, self.queries = products, queries
        self.settings: dict[str, Any] = {"batch_size": batch_size, "progress": progress}
        self._galleries: dict[str, Encoded] = {}
        self._queries: Encoded | None = None
        self._labels: dict[tuple[str, str], np.ndarray] = {}

    def gallery(self, form: str) -> Encoded:
        """The products that have what `form` asks for: "mm" anything, "t" text, "i" an image."""
        return self.varied_gallery(form, form, lambda row: row.record(form))

    def varied_gallery(self, name: str, form: str, record: Callable[[ProductRow], dict[str, Any]]) -> Encoded:
        """A gallery of records that `record` makes of the rows, kept under `name`; a row without content is left out."""
        if name not in self._galleries:
            made = [record(row) for row in self.products]
            rows = [index for index, fields in enumerate(made) if fields.keys() - {"id", "core_box"}]
            found = encode(self.model, self.processor, [made[index] for index in rows], form=form, **self.settings)
            self._galleries[name] = _renumbered(found, rows)
        return self._galleries[name]

    def all_queries(self) -> Encoded:
        """Every query, by its place in `queries`."""
        if self._queries is None:
            records = [row.record() for row in self.queries]
            self._queries = encode(self.model, self.processor, records, kind="query", **self.settings)
        return self._queries

    def labels(self, texts: Sequence[str], task: str) -> np.ndarray:
        """Vectors (L, D) of label texts under the instruction of `task` ("category" or "attribute").

        Raises:
            ValueError: a label that cannot be encoded.
        """
        missing = [text for text in dict.fromkeys(texts) if (task, text) not in self._labels]
        records = [{"text": text, "id": text} for text in missing]
        found = encode(self.model, self.processor, records, kind="query", task=task, **self.settings)
        if found.skipped:
            raise ValueError(f"label {found.skipped[0].item!r} cannot be encoded: {found.skipped[0].reason}")
        self._labels.update({(task, text): vector for text, vector in zip(missing, found.vectors, strict=True)})
        return np.stack([self._labels[task, text] for text in texts])

    def skipped(self) -> list[dict[str, Any]]:
        """Everything so far that could not be encoded, each product or query once."""
        found: dict[tuple[str, str], dict[str, Any]] = {}
        for record in (record for gallery in self._galleries.values() for record in gallery.skipped):
            row = self.products[record.index]
            found.setdefault(("product", row.product_id), {"kind": "product", "id": row.product_id} | record.as_dict())
        for record in self._queries.skipped if self._queries else []:
            query = self.queries[record.index]
            found.setdefault(("query", query.query_id), {"kind": "query", "id": query.query_id} | record.as_dict())
        return list(found.values())


def _renumbered(encoded: Encoded, rows: Sequence[int]) -> Encoded:
    skipped = [SkippedRecord(rows[s.index], s.item, s.field, s.reason) for s in encoded.skipped]
    return Encoded(encoded.vectors, [rows[index] for index in encoded.kept], skipped)


def config_digest(model: Any) -> str:
    """The first 16 hex digits of the SHA-256 of the model's configuration, wherever it was loaded from."""
    settings = json.loads(model.config.to_json_string(use_diff=False))
    text = json.dumps({name: settings[name] for name in settings if name != "_name_or_path"}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
