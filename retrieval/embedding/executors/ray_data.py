"""Run the embedding job with Ray Data: processes on this machine, or on the machines of a cluster.

Each process holds the model and encodes shards; this process writes them, so that one manifest serves both executors. Ray
starts a process that died again and repeats its shard. (Ray's own checkpoints keep all ids in memory and read all input again.)
On a cluster the folder of vectors and the pictures are on a disk that all machines share.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from product_data.errors import OptionError
from retrieval.embedding.embedding_options import EmbeddingOptions
from retrieval.embedding.executors.shard_encoder import EncodedShard, ShardEncoder, ShardTask


class ShardActor:
    """A process of Ray that holds the model, which it loads with its first shard.

    Args:
        options: options of the job.
        fingerprint (`str`): of model and settings.
    """

    def __init__(self, options: EmbeddingOptions, fingerprint: str) -> None:
        self.options, self.fingerprint = options, fingerprint
        self._encoder: ShardEncoder | None = None

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list[bytes]]:
        """Return the pickled `EncodedShard` of each task of a batch; or, in its place, an error that a user can correct.

        Ray would start a process again that raises an error, and wrap the error in its own.
        """
        return {"shard": [pickle.dumps(self._encoded(Path(path)), pickle.HIGHEST_PROTOCOL) for path in batch["task"]]}

    def _encoded(self, path: Path) -> EncodedShard | Exception:
        try:
            self._encoder = self._encoder or ShardEncoder(self.options, self.fingerprint)
            return self._encoder.encode(ShardTask.read(path))
        except Exception as error:
            if not hasattr(error, "exit_status"):
                raise
            return error


def run(tasks: Sequence[Path], options: EmbeddingOptions, fingerprint: str) -> Iterator[EncodedShard]:
    """Yield the rows of each shard, in the order in which they are done.

    Ray is started on this machine with `options.models()` processors, unless it runs already or `RAY_ADDRESS` names a cluster.

    Args:
        tasks: files that `ShardTask.write` wrote.
        options: options of the job.
        fingerprint (`str`): of model and settings.

    Raises:
        OptionError: Ray is not installed.
        CheckpointError: as `ShardEncoder`.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise OptionError("executor 'ray' needs Ray; expected pip install 'moon3[ray]'") from error
    is_ours = not ray.is_initialized()
    if is_ours:
        local: dict[str, Any] = {"num_cpus": options.models(), "include_dashboard": False}
        ray.init(log_to_driver=False, **({} if os.environ.get("RAY_ADDRESS") else local))
    try:
        ray.data.DataContext.get_current().enable_progress_bars = False
        rows = ray.data.from_items([{"task": str(path)} for path in tasks], override_num_blocks=len(tasks))
        shards = rows.map_batches(
            ShardActor,
            fn_constructor_args=(options, fingerprint),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=options.models()),
            num_cpus=1,
            num_gpus=int(options.torch_device().startswith("cuda")),
        )
        for row in shards.iter_rows():
            shard = pickle.loads(row["shard"])
            if isinstance(shard, Exception):
                raise shard
            yield shard
    finally:
        if is_ours:
            ray.shutdown()
