"""Encode one shard: from products and their forms to rows. Every executor calls this, so all write the same vectors."""

from __future__ import annotations

import pickle
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from product_data.rows import ProductRow
from retrieval.embedding.embedding_options import EmbeddingOptions
from retrieval.encode import load_for_evaluation
from retrieval.model_kinds import CheckpointError, unread_records
from retrieval.product_encoder import ProductEncoder
from retrieval.reasoning_options import check_reasoning
from retrieval.vectors.content_hash import has_content
from retrieval.vectors.shard_files import ShardRows

_PICTURE = re.compile(r"images\[(\d+)\]")


@dataclass(frozen=True)
class ShardTask:
    """The work of one shard.

    Args:
        number (`int`): of the shard.
        products: products of the feed.
        hashes: for each product, form → hash of its content in the forms to embed.
    """

    number: int
    products: Sequence[ProductRow]
    hashes: Sequence[dict[str, str]]

    def write(self, path: Path) -> None:
        """Write the task to a file of this job, which the process that does the work reads."""
        with path.open("wb") as stream:
            pickle.dump(self, stream, pickle.HIGHEST_PROTOCOL)

    @classmethod
    def read(cls, path: Path) -> ShardTask:
        """Read a task that `write` wrote."""
        with path.open("rb") as stream:
            return pickle.load(stream)


@dataclass(frozen=True)
class EncodedShard:
    """The rows of one shard, and how many seconds of one process they took."""

    number: int
    rows: ShardRows
    seconds: float


class ShardEncoder:
    """Hold a model, and encode shards.

    Args:
        options: options of the job.
        fingerprint (`str`): of model and settings, for the rows.

    Raises:
        CheckpointError: a model that cannot be loaded.
        OptionError: reasoning with a model that does not reason.
    """

    def __init__(self, options: EmbeddingOptions, fingerprint: str) -> None:
        self.options, self.fingerprint = options, fingerprint
        for module in options.imports:
            import_module(module)
        self.model, self.processor = load_for_evaluation(options.model, device=options.torch_device())
        check_reasoning(self.model, self.processor, options.reasoning)
        self._encoder = ProductEncoder(
            self.model,
            self.processor,
            workers=options.preparing_workers(),
            batch_size=options.batch_size,
            reduced_decoding=options.reduced_decoding,
            progress=False,
        )

    def close(self) -> None:
        """End the processes that prepare pictures and texts."""
        self._encoder.close()

    def encode(self, task: ShardTask) -> EncodedShard:
        """Return the rows of a shard: for each product and form a vector, or the reason why there is none.

        Raises:
            CheckpointError: the model reads no pictures, and products of a form have some; or a vector is not finite.
        """
        begin = time.perf_counter()
        forms = [form for form in self.options.forms if any(form in hashes for hashes in task.hashes)]
        parts = [self._of_form(form, task) for form in forms]
        rows = ShardRows(
            product_ids=[product_id for part in parts for product_id in part.product_ids],
            forms=[form for part in parts for form in part.forms],
            content_hashes=[hash_ for part in parts for hash_ in part.content_hashes],
            fingerprint=self.fingerprint,
            vectors_ND=np.concatenate([part.vectors_ND for part in parts]),
            errors=[error for part in parts for error in part.errors],
        )
        return EncodedShard(task.number, rows, time.perf_counter() - begin)

    def _of_form(self, form: str, task: ShardTask) -> ShardRows:
        chosen = [index for index, hashes in enumerate(task.hashes) if form in hashes]
        records = [task.products[index].record(form) for index in chosen]
        errors: list[str | None] = [None if has_content(record) else _nothing(form) for record in records]
        rows = [row for row, error in enumerate(errors) if error is None]
        wanted = [records[row] for row in rows]
        if why := unread_records(self.processor, wanted, f"products of the form {form!r}"):
            raise CheckpointError(f"{self.options.model}: {why}; expected --forms t, or a model that reads pictures")
        vectors_ND = np.zeros((len(records), self.model.config.vector_size), np.float32)
        if wanted:
            encoded = self._encoder.encode(wanted, form=form, reasoning=self.options.reasoning)
            vectors_ND[[rows[index] for index in encoded.kept]] = encoded.vectors
            for skipped in encoded.skipped:
                errors[rows[skipped.index]] = describe_error(skipped, wanted[skipped.index])
        return ShardRows(
            [task.products[index].product_id for index in chosen],
            [form] * len(chosen),
            [task.hashes[index][form] for index in chosen],
            self.fingerprint,
            vectors_ND,
            errors,
        )


def _nothing(form: str) -> str:
    shows = {"mm": "neither text nor pictures", "t": "no text", "i": "no pictures"}[form]
    return f"the product has {shows}; expected some for the form {form!r}"


def describe_error(skipped: Any, record: dict[str, Any]) -> str:
    """Return why a record has no vector, with the path or URL of its picture.

    Args:
        skipped: a `retrieval.encoded.SkippedRecord`.
        record: the record.
    """
    picture = _PICTURE.match(skipped.field)
    source = record["images"][int(picture[1])] if picture else None
    name = f" ({source})" if isinstance(source, str) and source not in skipped.reason else ""
    return f"{skipped.field}{name}: {skipped.reason}"
