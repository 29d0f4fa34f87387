"""Run the embedding job in this process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from retrieval.embedding.embedding_options import EmbeddingOptions
from retrieval.embedding.executors.shard_encoder import EncodedShard, ShardEncoder, ShardTask


def run(tasks: Sequence[Path], options: EmbeddingOptions, fingerprint: str) -> Iterator[EncodedShard]:
    """Yield the rows of each shard, in the order of tasks.

    Args:
        tasks: files that `ShardTask.write` wrote.
        options: options of the job.
        fingerprint (`str`): of model and settings.
    """
    encoder = ShardEncoder(options, fingerprint)
    try:
        for path in tasks:
            yield encoder.encode(ShardTask.read(path))
    finally:
        encoder.close()
