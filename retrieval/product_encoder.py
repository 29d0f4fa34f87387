"""Encode products fast: worker processes prepare the next batches while the model computes the present one.

This is the one place where vectors are made: `retrieval.encode.encode` is one call of a `ProductEncoder` without workers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from modeling_moon.thinking_moon import Thinking
from processing_moon import Reasoning
from processing_moon.batch_moon import Shortened
from product_data.errors import OptionError
from retrieval.encoded import Encoded, SkippedRecord, unit_vectors, vectors_of
from retrieval.patch_embedding import linear_patch_embedding
from retrieval.preparation import BatchPreparation, BatchTask, available_cpus
from retrieval.reasoning_options import REASONING, check_reasoning

KINDS = ("product", "query")
_PROGRESS_DELAY_SECONDS = 3.0


@dataclass(frozen=True)
class EncodingSettings:
    """Settings for encoding products and queries.

    Args:
        batch_size (`int`): records per batch. Default 32.
        progress (`bool`): show a progress bar after a few seconds. Default True.
        thinking (`Thinking`, its arguments or `None`): settings for writing reasoning; requires reasoning="generate".
            Default `None`: greedy, up to the model's number of tokens. With `do_sample`, the result also depends on the
            batches.

    Raises:
        ValueError: a batch size below 1, a `thinking` of the wrong type, or arguments that `Thinking` refuses.
    """

    batch_size: int = 32
    progress: bool = True
    thinking: Thinking | Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise OptionError(f"batch_size={self.batch_size}; expected 1 or more")
        if isinstance(self.thinking, Mapping):
            object.__setattr__(self, "thinking", Thinking(**self.thinking))
        if not isinstance(self.thinking, Thinking | None):
            raise ValueError(f"thinking={self.thinking!r}; expected a Thinking, a mapping of its arguments, or None")


def default_workers() -> int:
    """Return the default number of worker processes: the CPUs of this process without one for the model, 1 to 16."""
    return min(16, max(1, available_cpus() - 1))


class ProductEncoder:
    """Encode product and query records with one model, call after call.

    Worker processes open, resize and tokenize; the model runs in the calling process. A picture that several records of a
    call share (the same path, or equal bytes) is opened and resized once in each process, while the cache holds it; records
    with the same first picture are adjacent, therefore mostly in one batch. Records of similar length share a batch.

    Memory of the prepared batches: `(2 · workers + 1) · batch_size · p` bytes, where `p = 24 · token_side² · tokens` for
    the image tokens of a record (32 pixels: 24 KiB a token, 1.2 MB for a picture of 224 × 224); and in each process
    `cache_bytes` and the decoded pictures of one record.

    Scripts that use workers need the guard `if __name__ == "__main__":`, as for any process that is not forked.

    Args:
        model: takes the processor's tensors and returns `.embeddings`; it runs on its device, in its dtype and in
            evaluation mode; its previous mode is restored.
        processor: a MoonProcessor, or a peer's.
        workers (`int` or `None`): number of worker processes; they start with the first call. 0: a thread of this process.
            Default `None`: `default_workers()`.
        batch_size (`int`): records per batch. Default 32.
        reduced_decoding (`bool` or `None`): whether JPEG files are decoded at a reduced scale, see `MoonProcessor`; the patch
            embedding is then computed as a matrix product as well, see `linear_patch_embedding`. Vectors change slightly:
            `moon3 bench embed` measures by how much. False: the vectors of `encode`. `None`: the processor's own
            setting, and the model as it is. Default True. A peer's processor always decodes at full scale.
        cache_bytes (`int`): bytes of shared pictures that each process keeps. Default 64 MiB.
        progress (`bool`): show a progress bar after a few seconds. Default True.

    Raises:
        ValueError: settings out of range.

    Relations: `encode` is simpler for a few records.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        *,
        workers: int | None = None,
        batch_size: int = 32,
        reduced_decoding: bool | None = True,
        cache_bytes: int = 64 * 2**20,
        progress: bool = True,
    ) -> None:
        self.model, self.processor = model, processor
        self.settings = EncodingSettings(batch_size=batch_size, progress=progress)
        self.reduced_decoding = reduced_decoding
        workers = default_workers() if workers is None else workers
        self._preparation, self._calls = BatchPreparation(processor, workers, cache_bytes), 0

    def __enter__(self) -> ProductEncoder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the worker processes."""
        self._preparation.close()

    @torch.inference_mode()
    def encode(
        self,
        records: Sequence[dict[str, Any]],
        *,
        kind: str = "product",
        form: str = "mm",
        task: str | None = None,
        reasoning: str = "none",
        thinking: Thinking | Mapping[str, Any] | None = None,
    ) -> Encoded:
        """Encode records; the vectors are in their order.

        Args:
            records, kind, form, task, reasoning, thinking: see `retrieval.encode.encode`.

        Raises:
            ValueError: as `encode`.
            WorkerError: a worker process died.
        """
        settings = replace(self.settings, thinking=thinking)
        if kind not in KINDS:
            raise ValueError(f"kind={kind!r}; expected product or query")
        check_reasoning(self.model, self.processor, reasoning, REASONING)
        if settings.thinking is not None and reasoning != "generate":
            raise ValueError(
                f"thinking={settings.thinking} with reasoning={reasoning!r}; expected reasoning='generate'"
            )
        options: dict[str, Any] = {"form": form} if kind == "product" else {"task": task or "query"}
        options |= {} if reasoning == "none" else {"reasoning": reasoning}
        description = _description(kind, options)
        options |= {"side": "products" if kind == "product" else "queries"} | self._decoding()
        groups = batches_by_length(
            records, settings.batch_size, form if kind == "product" else "mm", reasoning == "given"
        )
        self._calls += 1
        tasks = [BatchTask(self._calls, [records[index] for index in group], options) for group in groups]
        found = _Results()
        with _evaluating(self.model), self._fast():
            bar = tqdm(
                self._preparation.batches(tasks),
                total=len(groups),
                desc=description,
                delay=_PROGRESS_DELAY_SECONDS,
                disable=not settings.progress,
            )
            for group, batch in zip(groups, bar, strict=True):
                found.add(group, batch, _rows(self.model, self.processor, batch, reasoning, settings))
        return found.encoded(self.model, reasoning)

    def _fast(self) -> AbstractContextManager[None]:
        return linear_patch_embedding(self.model) if self.reduced_decoding else nullcontext()

    def _decoding(self) -> dict[str, bool]:
        able = self.reduced_decoding is not None and hasattr(self.processor, "reduced_decoding")
        return {"reduced_decoding": bool(self.reduced_decoding)} if able else {}


class _Results:
    """What the batches of a call gave, by the record's index in the call."""

    def __init__(self) -> None:
        self.rows: dict[int, tuple[np.ndarray, Any, int]] = {}
        self.skipped: list[SkippedRecord] = []
        self.shortened: list[Shortened] = []

    def add(self, group: list[int], batch: Any, rows: Iterator[tuple[np.ndarray, Any, int]]) -> None:
        """Add the rows of a batch, whose records have the indices `group`."""
        self.rows |= {group[kept]: row for kept, row in zip(batch.kept, rows, strict=True)}
        self.skipped += [SkippedRecord(group[s.index], str(s.item), str(s.field), str(s.reason)) for s in batch.skipped]
        self.shortened += [replace(entry, index=group[entry.index]) for entry in batch.shortened]

    def encoded(self, model: Any, reasoning: str) -> Encoded:
        """Return everything in the order of the records."""
        kept = sorted(self.rows)
        vectors = [self.rows[index][0] for index in kept]
        stacked = np.stack(vectors) if kept else np.zeros((0, model.config.vector_size), np.float32)
        texts = None if reasoning == "none" else [self.rows[index][1] for index in kept]
        tokens = [self.rows[index][2] for index in kept] if reasoning == "generate" else None
        self.skipped.sort(key=lambda record: record.index)
        self.shortened.sort(key=lambda entry: entry.index)
        return Encoded(unit_vectors(stacked, kept), kept, self.skipped, texts, tokens, self.shortened)


def batches_by_length(
    records: Sequence[dict[str, Any]], batch_size: int, form: str = "mm", with_reasoning: bool = False
) -> list[list[int]]:
    """Return the indices of records in batches: by number of pictures, then by characters of text.

    Records with the same first picture stay together, at the place of the longest of them. Characters stand for tokens:
    counting tokens would cost this process as much as the workers' tokenizing.

    Args:
        records: product or query records.
        batch_size: records per batch.
        form (`str`): what is read of a product: "mm", "t" or "i". Default "mm".
        with_reasoning (`bool`): whether the record's reasoning is read. Default False.
    """
    lengths = [_length(record, form, with_reasoning) for record in records]
    together: dict[Any, list[int]] = {}
    for index, record in enumerate(records):
        together.setdefault(_first_picture(record, form) or index, []).append(index)
    order = sorted(together.values(), key=lambda indices: max(lengths[index] for index in indices))
    flat = [index for indices in order for index in sorted(indices, key=lambda index: lengths[index])]
    return [flat[start : start + batch_size] for start in range(0, len(flat), batch_size)]


def _first_picture(record: dict[str, Any], form: str) -> str | bytes | None:
    images = record.get("images", record.get("image")) if form != "t" else None
    first = images[0] if isinstance(images, list | tuple) and images else images
    return first if isinstance(first, str | bytes) else None


def _length(record: dict[str, Any], form: str, with_reasoning: bool) -> tuple[int, int]:
    images = record.get("images", record.get("image")) if form != "t" else None
    count = 0 if images is None else len(images) if isinstance(images, list) else 1
    unread = ("images", "image", "id") if with_reasoning else ("images", "image", "id", "reasoning")
    text = {} if form == "i" else {name: value for name, value in record.items() if name not in unread}
    return count, sum(len(str(value)) for value in text.values())


def _description(kind: str, options: Mapping[str, Any]) -> str:
    records = f"products, {options['form']}" if kind == "product" else f"queries, task {options['task']}"
    return f"encode {records}" + (f", reasoning {options['reasoning']}" if "reasoning" in options else "")


@contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def _rows(
    model: Any, processor: Any, batch: Any, reasoning: str, settings: EncodingSettings
) -> Iterator[tuple[np.ndarray, Reasoning | None, int]]:
    """Return an iterator over each row's vector, its reasoning, and the number of tokens that the model wrote."""
    if not batch.kept:
        return iter(())
    counts = [0] * len(batch.kept)
    if reasoning == "none":
        return zip(embed_batch(model, batch), [None] * len(batch.kept), counts, strict=True)
    # As a dict: a model that was loaded from a checkpoint's code has another class Thinking.
    thinking = asdict(settings.thinking) if isinstance(settings.thinking, Thinking) else None
    output = model.embed(batch, reasoning=reasoning, processor=processor, thinking=thinking)
    if reasoning == "generate":
        counts = (output.reasoning_ids != processor.tokenizer.pad_token_id).sum(dim=1).tolist()
    return zip(output.embeddings.float().cpu().numpy(), output.reasoning, counts, strict=True)


def embed_batch(model: Any, batch: Any) -> np.ndarray:
    """Return the vectors (B, D) float32 of a batch of the processor, as the model gives them."""
    parameter = next(model.parameters())
    inputs = {}
    for name, value in batch.items():
        dtype = parameter.dtype if value.is_floating_point() else None
        inputs[name] = value.to(parameter.device, dtype=dtype)
    return vectors_of(model(**inputs)).float().cpu().numpy()
